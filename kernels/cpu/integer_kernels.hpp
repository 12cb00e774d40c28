// What kernels of quantised convolutions share.
#pragma once
#include "kernels/cpu/plane.hpp"
#include "kernels/ops/integer.hpp"

namespace falaj::kernels::cpu {

constexpr std::int64_t kIntegerSlack = 64;  // bytes beyond the last one that may be read

// An image into its place in the plane, whose other bytes become the zero point.
void copy_padded(const ConvSpec& s, const Plane& plane, std::int32_t x_zero, const std::uint8_t* x, std::uint8_t* to);

KernelPtr make_integer_depthwise(const IntegerConv& spec, const Tensor& weights, const float* multiplier, const float* offset);

}  // namespace falaj::kernels::cpu
