#include "messages/json.hpp"

#include <capnp/compat/json.h>
#include <kj/exception.h>

#include "runtime/base/bytes.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/json_syntax.hpp"
#include "runtime/base/limits.hpp"

namespace falaj {
namespace {

std::string one_line(kj::StringPtr description) {
  std::string out(description.cStr(), description.size());
  for (auto& c : out) c = c == '\n' ? ' ' : c;
  return out;
}

// Texts may hold any bytes that somebody sent: what is not UTF-8 becomes U+FFFD, so that a reader of JSON can read the rest.
std::string repaired(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    std::size_t length = 1;
    while (length <= 4 && length <= text.size() && !is_utf8(text.substr(0, length))) ++length;
    const bool good = length <= 4 && length <= text.size();
    out += good ? text.substr(0, length) : std::string_view("\xef\xbf\xbd");
    text.remove_prefix(good ? length : 1);
  }
  return out;
}

}  // namespace

std::string to_json(capnp::DynamicStruct::Reader value, JsonStyle style) {
  capnp::JsonCodec codec;
  codec.setPrettyPrint(style == JsonStyle::pretty);
  const auto text = codec.encode(value, value.getSchema());
  const std::string_view all(text.cStr(), text.size());
  return is_utf8(all) ? std::string(all) : repaired(all);
}

Status from_json(std::string_view json, capnp::DynamicStruct::Builder into) {
  if (json.size() > limits::kMessageBytesMax) {
    return invalid(format("JSON of {} bytes is over the limit of {}", json.size(), limits::kMessageBytesMax));
  }
  // The codec says what it missed but not where; behind this it meets well-formed text only.
  if (const auto flaw = find_json_flaw(json, limits::kNestingMax + 1)) {
    const auto [line, column] = line_and_column(json, flaw->offset);
    return invalid(format("JSON:{}:{}: {}", line, column, flaw->what));
  }
  if (json[json.find_first_not_of(" \t\r\n")] != '{') return invalid("JSON:1:1: expected an object");
  try {
    capnp::JsonCodec codec;
    codec.setMaxNestingDepth(static_cast<std::size_t>(limits::kNestingMax) + 2);
    codec.setRejectUnknownFields(true);
    codec.decode(kj::arrayPtr(json.data(), json.size()), into);
  } catch (const kj::Exception& e) {
    return invalid("JSON: " + one_line(e.getDescription()));
  }
  return {};
}

}  // namespace falaj
