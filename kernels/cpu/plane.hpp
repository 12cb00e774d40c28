// How convolutions over packed columns read images [N, H, W, C]: through a copy with padding where there is any, so that every pixel finds
// its kernel places at the same offsets. With one group, places that are neighbours in a row are one run.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/ops/conv.hpp"

namespace falaj::kernels::cpu {

struct Plane {
  bool copied = false;
  std::int64_t height = 0, width = 0;
  [[nodiscard]] std::int64_t elements(std::int64_t channels) const { return height * width * channels; }
};
// A place's `depth` elements are read in steps of `step`, which may reach beyond an image that is not copied.
inline Plane plane_of(const ConvSpec& s, std::int64_t depth, std::int64_t step, bool always) {
  const Window& w = s.window;
  std::int64_t size[2];
  for (std::size_t d = 0; d < 2; ++d)
    size[d] = w.pad_begin[d] + std::max((w.out[d] - 1) * w.strides[d] + w.extent(d) - w.pad_begin[d], w.in[d]);
  Plane plane;
  plane.copied = always || depth % step != 0 || size[0] != w.in[0] || size[1] != w.in[1];
  plane.height = size[0];
  plane.width = size[1];
  return plane;
}

inline bool runs_along_rows(const ConvSpec& s) { return s.groups == 1 && s.window.dilations[1] == 1; }

// In bytes, of each run of places.
inline std::vector<std::int64_t> place_offsets(const ConvSpec& s, const Plane& plane, std::int64_t element_bytes) {
  std::vector<std::int64_t> offsets;
  const Window& w = s.window;
  for (std::int64_t k = 0; k < w.kernel[0]; ++k) {
    for (std::int64_t l = 0; l < (runs_along_rows(s) ? 1 : w.kernel[1]); ++l)
      offsets.push_back((k * w.dilations[0] * plane.width + l * w.dilations[1]) * s.channels * element_bytes);
  }
  return offsets;
}

}  // namespace falaj::kernels::cpu
