// The version that `falaj version` and model lineage name; CHANGELOG.md tells what each one brought.
#pragma once

namespace falaj::nodes {

inline constexpr const char* kVersion = "0.1.0";

}  // namespace falaj::nodes
