// JSON of any schema struct, by Cap'n Proto's own codec: field names as in the schema, 64-bit integers as strings, Data as an
// array of numbers. It is the JSON of the admin API and of `falaj call`.
//
// from_json refuses unknown fields, more than limits::kNestingMax levels and texts over limits::kMessageBytesMax; errors are
// `invalid` and nothing is thrown. On error `into` is half filled: drop it.
#pragma once
#include <capnp/dynamic.h>

#include <string>
#include <string_view>

#include "runtime/base/result.hpp"

namespace falaj {

enum class JsonStyle : bool { compact, pretty };

std::string to_json(capnp::DynamicStruct::Reader value, JsonStyle style = JsonStyle::compact);
inline std::string to_json(capnp::DynamicStruct::Reader value, bool pretty) {
  return to_json(value, pretty ? JsonStyle::pretty : JsonStyle::compact);
}
Status from_json(std::string_view json, capnp::DynamicStruct::Builder into);

template <class T>
Status from_json(std::string_view json, typename T::Builder into) {
  return from_json(json, capnp::DynamicStruct::Builder(into));
}

}  // namespace falaj
