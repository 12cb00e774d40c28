// Elements of one type as elements of another, for every pair of number types: the meaning of ONNX's Cast.
//
// Floats become integers by truncation; what is out of range saturates and NaN becomes 0 (ONNX leaves it open, C++ undefined).
// Integers wrap around. To narrower floats: to nearest, ties to even.
#pragma once
#include <cstdint>

#include "kernels/tensor.hpp"

namespace falaj::kernels {

double half_to_double(std::uint16_t bits) noexcept;
std::uint16_t half_from_double(double value) noexcept;
double bfloat16_to_double(std::uint16_t bits) noexcept;
std::uint16_t bfloat16_from_double(double value) noexcept;
double float8_to_double(DType dtype, std::uint8_t bits) noexcept;
// Beyond the largest finite value: that value if `saturate`, otherwise infinity or NaN, as the type has it.
std::uint8_t float8_from_double(DType dtype, double value, bool saturate) noexcept;

// n elements; both types are numbers or booleans (asserted).
void convert_elements(DType from, const void* x, DType to, void* y, std::int64_t n, bool saturate = true);
// A number type's elements as doubles and back.
void to_doubles(DType from, const void* x, double* y, std::int64_t n);
Tensor converted(const Tensor& tensor, DType to);

}  // namespace falaj::kernels
