// Windows that reach beyond the input.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/ops/conv.hpp"

namespace falaj::kernels::cpu {

// The places of a window that meet the input, in one dimension: the first one's number, its index in the input, and how many they are.
struct Meet {
  std::int64_t place, first, count;
};
inline std::vector<Meet> all_meets(const Window& w, std::size_t d) {
  std::vector<Meet> meets;
  for (std::int64_t o = 0; o < w.out[d]; ++o) {
    const std::int64_t start = o * w.strides[d] - w.pad_begin[d];
    const std::int64_t step = w.dilations[d];
    const std::int64_t before = start < 0 ? (-start + step - 1) / step : 0;  // places in the padding
    const std::int64_t end = std::min(w.kernel[d], w.in[d] > start ? (w.in[d] - start + step - 1) / step : 0);
    meets.push_back({before, start + before * step, std::max<std::int64_t>(end - before, 0)});
  }
  return meets;
}

}  // namespace falaj::kernels::cpu
