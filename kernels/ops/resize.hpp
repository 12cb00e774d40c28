// What Resize and Upsample ask for, read by the reference kernel and by the backends: each resized dimension is a list of input positions
// and weights for each output position, and dimensions are treated one after the other.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops.hpp"

namespace falaj::kernels {

struct Resizing {
  Shape out;
  std::vector<double> scales;              // for each dimension
  std::vector<double> roi_begin, roi_end;  // of tf_crop_and_resize
  std::vector<bool> touched;
  std::string mode, coordinates, nearest;
  bool antialias = false, exclude_outside = false;
  double cubic = -0.75, extrapolation = 0;

  [[nodiscard]] bool crops() const { return coordinates == "tf_crop_and_resize"; }
};
Result<Resizing> resizing(const OpCall& call);

struct Tap {
  std::int64_t at;
  double weight;
};
struct ResizedAxis {
  std::size_t axis;
  std::vector<std::vector<Tap>> taps;  // of each output position, equally many
  std::vector<bool> outside;           // gets the extrapolation value
};
std::vector<ResizedAxis> resized_axes(const Resizing& r, const Shape& in);

}  // namespace falaj::kernels
