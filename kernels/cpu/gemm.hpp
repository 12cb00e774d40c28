// Our own f32 matrix product, for AVX2 and AVX-512. Every element of the result is one chain of fused multiply-adds over k, in order,
// whatever the number of rows: a row's bits do not depend on the batch it came in, nor on whether the right operand was packed.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/isa.hpp"
#include "kernels/ops/matmul.hpp"

namespace falaj::kernels::cpu {

constexpr std::int64_t kPanel = 16;  // columns of the right operand that lie together when packed

// Floats, to whole cache lines: what lies behind them is aligned as packed forms must be.
constexpr std::int64_t whole_lines(std::int64_t floats) { return (floats + 15) / 16 * 16; }

// Elements that the packed form of a k x n operand takes: whole panels, k x 16 each, zeros beyond n.
std::size_t packed_elements(std::int64_t k, std::int64_t n);
void pack(const float* b, std::int64_t row_stride, std::int64_t col_stride, std::int64_t k, std::int64_t n, float* packed);

// What happens to an element when its sum is complete.
struct Finish {
  float alpha = 1.0F;
  float beta = 1.0F;
  const float* bias = nullptr;  // bias[m * row + n * col]
  std::int64_t bias_row = 0, bias_col = 0;
  Activation activation = Activation::none;
  float activation_alpha = 0.01F;
  std::int64_t y_row = 0;  // elements from row to row of the result; 0: n, rows follow one another
  // So simply that it can be done where the sums are: one bias for all rows or none, and no activation or Relu. Most are.
  [[nodiscard]] bool is_simple() const {
    return (activation == Activation::none || activation == Activation::relu) &&
           (bias == nullptr || (bias_row == 0 && bias_col == 1 && beta == 1.0F));
  }
};

// y[m x n] = finish(a * b); a is read through strides, b is packed.
using Multiply = void (*)(const float* a, std::int64_t a_row, std::int64_t a_col, const float* packed, float* y, std::int64_t m,
                          std::int64_t n, std::int64_t k, const Finish& finish);
void multiply_avx2(const float* a, std::int64_t a_row, std::int64_t a_col, const float* packed, float* y, std::int64_t m, std::int64_t n,
                   std::int64_t k, const Finish& finish);
void multiply_avx512(const float* a, std::int64_t a_row, std::int64_t a_col, const float* packed, float* y, std::int64_t m, std::int64_t n,
                     std::int64_t k, const Finish& finish);
// The faster of those that this CPU has; not without AVX2. The bits are the same.
inline Multiply multiply_packed() { return has_avx512() ? multiply_avx512 : multiply_avx2; }

}  // namespace falaj::kernels::cpu
