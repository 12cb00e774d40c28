// The one door to {fmt} (libstdc++ 12 has no <format>). format("{} rows", n).
#pragma once
#include <spdlog/fmt/fmt.h>

#include <string>
#include <utility>

namespace falaj {

template <class... Args>
std::string format(fmt::format_string<Args...> text, Args&&... args) {
  return fmt::format(text, std::forward<Args>(args)...);
}

}  // namespace falaj
