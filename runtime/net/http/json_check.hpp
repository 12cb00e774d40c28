// Where a JSON text is wrong: a plain checker, slow and exact, used only after the fast parser has said no.
#pragma once
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace falaj::net {

struct JsonFlaw {
  std::size_t offset;
  std::string what;
};
std::optional<JsonFlaw> find_json_flaw(std::string_view text, std::size_t depth_max);

}  // namespace falaj::net
