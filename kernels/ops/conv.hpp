// What a sliding window is, whatever op it comes from (convolutions, pools), and what a convolution is. Read by the reference kernels
// and by the backends.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/ops.hpp"

namespace falaj::kernels {

// One entry for each spatial dimension.
struct Window {
  std::vector<std::int64_t> in, out, kernel, strides, pad_begin, pad_end, dilations;

  [[nodiscard]] std::size_t rank() const { return in.size(); }
  [[nodiscard]] std::int64_t in_elements() const;
  [[nodiscard]] std::int64_t out_elements() const;
  [[nodiscard]] std::int64_t kernel_elements() const;
  // How far a kernel reaches in dimension d.
  [[nodiscard]] std::int64_t extent(std::size_t d) const { return (kernel[d] - 1) * dilations[d] + 1; }
};
// From the attributes strides, pads, dilations, auto_pad and ceil_mode; `in` and `kernel` are the sizes of the spatial dimensions.
Result<Window> sliding_window(const OpCall& call, std::span<const std::int64_t> in, std::span<const std::int64_t> kernel);

Result<Window> whole_plane(const Shape& in);  // of [N, C, in...], as one window
// How many places of the o-th window lie in the input or its padding.
std::int64_t padded_count(const Window& window, std::int64_t o);

// For the o-th output position: the kernel positions that meet the input, with both offsets.
struct Meeting {
  std::int64_t kernel, in;
};
void meetings(const Window& window, std::int64_t o, std::vector<Meeting>& out);

// x [N, C, in...], w [M, C / groups, kernel...] -> y [N, M, out...].
struct ConvSpec {
  Window window;
  std::int64_t batch = 0, channels = 0, maps = 0, groups = 1;
};
Result<ConvSpec> conv_spec(const OpCall& call, std::size_t x, std::size_t w);
Shape conv_shape(const ConvSpec& spec);
// Of a ConvTranspose with x [N, C, out...], w [C, M / groups, kernel...]. The window is that of the convolution whose gradient this is: its
// `in` is the output.
Result<ConvSpec> transpose_spec(const OpCall& call);
// Of ai.falaj's ConvTransposeDataGrad (dy, w, x) or ConvTransposeWeightGrad (dy, x, w): the convolution that reads dy and gives what is
// like x.
Result<ConvSpec> transpose_grad_spec(const OpCall& call);
void convolve(const ConvSpec& spec, const double* x, const double* w, const double* bias, double* y);
// What a change of y means for x, and for w: added to dx, to dw.
void convolve_back_to_input(const ConvSpec& spec, const double* dy, const double* w, double* dx);
void convolve_back_to_weights(const ConvSpec& spec, const double* dy, const double* x, double* dw);

}  // namespace falaj::kernels
