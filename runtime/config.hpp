// Configuration and resources: TOML read onto Cap'n Proto schema structs by reflection, so that the schema is the one list of
// keys. snake_case keys are camelCase fields; an unknown key is an error naming file, line, column and the nearest known key;
// a missing $required field, a wrong type and a value outside $range or $oneOf are errors of the same shape.
#pragma once
#include <capnp/dynamic.h>
#include <capnp/message.h>

#include <string>
#include <string_view>

#include "runtime/base/result.hpp"

namespace falaj::config {

// Fills `into` from the text. `name` is the file's name in errors ("job.toml:12:3: unknown key 'epoch'; did you mean 'epochs'?").
// All errors of a file are found in one pass and joined by newlines (at most 20). On error `into` is half filled: drop it.
Status parse_toml(std::string_view text, std::string_view name, capnp::DynamicStruct::Builder into);

template <class T>
Status parse_toml(std::string_view text, std::string_view name, typename T::Builder into) {
  return parse_toml(text, name, capnp::toDynamic(into));
}

// Reads the whole file (at most 1 MiB).
Result<std::string> read_file(const std::string& path);

// The same struct as TOML text; parse_toml gives the struct back.
std::string to_toml(capnp::DynamicStruct::Reader value);

}  // namespace falaj::config
