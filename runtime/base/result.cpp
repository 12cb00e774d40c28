#include "runtime/base/result.hpp"

#include <array>

namespace falaj {

std::string_view to_string(ErrorCode code) noexcept {
  constexpr std::array<std::string_view, 12> names = {"failed",      "invalid", "not_found", "conflict",      "denied",  "overloaded",
                                                      "unreachable", "gone",    "deadline",  "unimplemented", "corrupt", "no_space"};
  const auto index = static_cast<std::size_t>(code);
  return index < names.size() ? names[index] : "failed";
}

std::string to_string(const Error& error) { return std::string(to_string(error.code)) + ": " + error.message; }

Error within(std::string_view where, Error inner) {
  inner.message = std::string(where) + ": " + inner.message;
  return inner;
}

}  // namespace falaj
