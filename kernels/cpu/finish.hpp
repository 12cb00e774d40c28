// What products and convolutions share: loops that must be unrolled, and how work is cut.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/cpu/vector_math.hpp"

// The sums of a tile must live in registers, so its loops over rows and columns must be gone at -O2 too.
#if defined(__clang__)
#define FALAJ_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FALAJ_UNROLL _Pragma("GCC unroll 16")
#endif

namespace falaj::kernels::cpu {

// A share of `total` things in `parts` parts, as even as can be: the first of part i.
inline std::int64_t first_of(std::int64_t part, std::int64_t parts, std::int64_t total) {
  return part * (total / parts) + std::min(part, total % parts);
}

// The same for many parts, without a division for each: the first ones are the larger ones.
class Shares {
 public:
  Shares(std::int64_t parts, std::int64_t total) : least_(total / parts), larger_(total % parts) {}
  [[nodiscard]] std::int64_t first(std::int64_t part) const { return part * least_ + std::min(part, larger_); }

 private:
  std::int64_t least_, larger_;
};

}  // namespace falaj::kernels::cpu
