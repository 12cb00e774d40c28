// What a matrix product is, whatever op it comes from: MatMul, Gemm, or the fused ai.falaj MatMul. Read by the reference kernel and
// by the backends.
#pragma once
#include <cstdint>

#include "kernels/ops.hpp"

namespace falaj::kernels {

enum class Activation : std::uint8_t { none, relu, leaky_relu, sigmoid, tanh, gelu, clip, hard_swish, swish };  // clip: from 0 to alpha
Result<Activation> activation_of(std::string_view op);                                                          // "" is none

// For each of `batch` pairs: Y[m, n] = act(alpha * sum_k A[m, k] B[k, n] + bias), with A and B read through strides, so that
// transposition costs nothing to express. Y is contiguous [batch, m, n].
struct MatMulSpec {
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t a_row = 0, a_col = 0, b_row = 0, b_col = 0;  // strides in elements: A[m][k] is at m * a_row + k * a_col
  Shape batch;                                              // of the output; empty is one product
  std::array<std::int64_t, kRankMax> a_batch{}, b_batch{};  // strides along each batch dimension
  double alpha = 1.0;
  double beta = 1.0;  // factor of the bias
  bool has_bias = false;
  std::int64_t bias_row = 0, bias_col = 0;  // bias[m][n] is at m * bias_row + n * bias_col
  Activation activation = Activation::none;
  double activation_alpha = 0.01;
  Shape out;  // of the op's output

  [[nodiscard]] std::int64_t batches() const { return batch.elements(); }
};

Result<MatMulSpec> matmul_spec(const OpCall& call);

// Offsets of the batch-th pair.
struct BatchOffsets {
  std::int64_t a, b;
};
BatchOffsets batch_offsets(const MatMulSpec& spec, std::int64_t index);

}  // namespace falaj::kernels
