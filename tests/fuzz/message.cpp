// A message from outside, whole in its frame: what opens can be read and copied to the last byte. Trusted views are read without checks, so
// that an error in what Layout::fits lets through is a read out of bounds.
#include "messages/message.hpp"

#include <capnp/dynamic.h>

#include "tests/messages/sample.capnp.h"

namespace {

std::size_t read_all(capnp::DynamicValue::Reader value) {
  std::size_t sum = 0;
  if (value.getType() == capnp::DynamicValue::STRUCT) {
    const auto structure = value.as<capnp::DynamicStruct>();
    // A null pointer to a struct of the same type would be read as one default within the other, without end.
    const auto there = [&](const auto& field) { return field.getProto().isGroup() || structure.has(field); };
    for (const auto field : structure.getSchema().getNonUnionFields()) sum += there(field) ? read_all(structure.get(field)) : 0;
    KJ_IF_MAYBE (field, structure.which()) sum += there(*field) ? read_all(structure.get(*field)) : 0;
  } else if (value.getType() == capnp::DynamicValue::LIST) {
    for (const auto element : value.as<capnp::DynamicList>()) sum += read_all(element);
  } else if (value.getType() == capnp::DynamicValue::TEXT) {
    for (const char c : value.as<capnp::Text>()) sum += static_cast<unsigned char>(c);
  } else if (value.getType() == capnp::DynamicValue::DATA) {
    for (const auto byte : value.as<capnp::Data>()) sum += byte;
  }
  return sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace falaj;
  using sample::Sample;
  auto message = message_from_bytes(TypeId(capnp::typeId<Sample>()), {data, size / 8 * 8});
  if (!message.has_value()) return 0;
  const auto view = message->open<Sample>();
  if (!view.has_value()) return 0;
  volatile std::size_t sum = read_all(capnp::DynamicStruct::Reader(**view));
  static_cast<void>(sum);
  static_cast<void>(Message::copy_of<Sample>(**view));
  if (!message->open<Sample>().has_value()) __builtin_trap();  // once opened, always opened
  return 0;
}
