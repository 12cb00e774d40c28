// What the ops on [N, spatial..., C] of ai.falaj mean; read by their reference kernels and by the backends.
#pragma once
#include "kernels/ops/conv.hpp"
#include "kernels/ops/matmul.hpp"

namespace falaj::kernels {

// y = activation(convolution of x with w + bias[M] + addend[like y]); w as in ONNX: [M, C / groups, kernel...]. With `pooled`, in two
// dimensions and without an addend, y has of each two by two neighbouring results only the largest, and no odd last row or column: a
// MaxPool of that size and stride.
struct FusedConv {
  ConvSpec conv;
  bool has_bias = false, has_addend = false, pooled = false;
  Activation activation = Activation::none;
  double activation_alpha = 0.01;
  // Rows and columns of y in dimension d.
  [[nodiscard]] std::int64_t out(std::size_t d) const { return pooled ? conv.window.out[d] / 2 : conv.window.out[d]; }
};
Result<FusedConv> fused_conv(const OpCall& call);

// The window of a pool over [N, spatial..., C]; of a Global... one, the whole plane.
Result<Window> channels_last_window(const OpCall& call);

std::span<const OpDef> nhwc_ops();  // the family

Shape channels_first(const Shape& last);  // [N, spatial..., C] -> [N, C, spatial...]
Shape channels_last(const Shape& first);

}  // namespace falaj::kernels
