#pragma once

namespace falaj::nodes {

inline constexpr const char* kVersion = "0.1.0";

}  // namespace falaj::nodes
