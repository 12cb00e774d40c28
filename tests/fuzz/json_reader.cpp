// Any bytes as a JSON body: no crash, and the fast parser and the slow checker agree on what JSON is.
#include "runtime/net/http/json_reader.hpp"

#include <cstdlib>

#include "runtime/base/json_syntax.hpp"

namespace {

using falaj::net::JsonType;
using falaj::net::JsonValue;

std::size_t walk(const JsonValue& value) {
  std::size_t seen = 1;
  if (value.type() == JsonType::string) seen += value.as_string()->size();
  if (value.type() == JsonType::number && !value.as_double().has_value()) std::abort();
  for (auto it = value.begin(); it != value.end(); ++it) seen += it.key().size() + walk(*it);
  return seen;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static falaj::net::JsonReader reader;
  const falaj::ByteView bytes(data, size);
  const auto root = reader.parse(bytes);
  const auto flaw = falaj::find_json_flaw(falaj::as_text(bytes), 64);
  if (!root.has_value()) return 0;
  if (flaw.has_value()) std::abort();
  if (walk(*root) == 0) std::abort();
  std::vector<float> floats;
  std::vector<std::int64_t> integers;
  std::vector<std::string> texts;
  static_cast<void>(root->flatten(floats, 1000));
  static_cast<void>(root->flatten(integers, 1000));
  static_cast<void>(root->flatten(texts, 1000));
  return 0;
}
