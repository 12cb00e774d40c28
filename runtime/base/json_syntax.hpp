// The grammar of JSON (RFC 8259), once: says where a text is wrong. A plain checker, slow and exact, before or after a parser that is
// quick because it does not know where it is. Builds nothing.
//
// Stricter than the RFC in two places, so that no reader behind it has to guess: numbers must fit the machine's (64-bit integers, finite
// doubles), and \u escapes of surrogates must come in pairs.
#pragma once
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace falaj {

struct JsonFlaw {
  std::size_t offset;
  std::string what;
};
// `depth_max`: a value that is not inside another has depth 1.
std::optional<JsonFlaw> find_json_flaw(std::string_view text, std::size_t depth_max);

// Line and column of a byte, both from 1.
std::pair<std::size_t, std::size_t> line_and_column(std::string_view text, std::size_t offset);

}  // namespace falaj
