// Products of operands rounded to bfloat16 (ai.falaj's HalfMatMul and HalfWeightGrad) that hand results on in the forms that the next
// ones read, so that nothing is rounded or turned twice. Sums are f32. Made by share_halves (kernels/halves.cpp), for training.
//
// Forms of a matrix [m, n] in bfloat16, zeros where there is nothing of it:
//   rows   [m, n rounded up to even]                    a left operand: pairs along n lie together
//   pairs  [ceil(n / 16), ceil(m / 2), 16, 2]           either operand of a product along m: pairs along m lie together
#pragma once
#include <cstdint>

#include "kernels/ops.hpp"

namespace falaj::kernels {

constexpr std::int64_t kHalfPanel = 16;  // columns that lie together in pairs

Shape rows_form(std::int64_t m, std::int64_t n);
Shape pairs_form(std::int64_t m, std::int64_t n);

// HalfMatMul(A f32[m,k] or its rows, B f32[k,n] (transB: [n,k]), bias f32[n]?, mask pairs of [m,n]?)
//   -> Y f32[m,n]?, Y's rows?, Y's pairs?, sums of Y's columns f32[n]?
// Y = A B + bias, of which relu = 1 keeps what is positive; or Y = A B, of which the mask keeps what stands where it is positive.
struct HalfProductSpec {
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t b_row = 0, b_col = 0;  // strides of B in elements
  bool rounded = false;               // A comes as rows
  bool has_bias = false, has_mask = false, relu = false;
};
Result<HalfProductSpec> half_product_spec(const OpCall& call);

// HalfWeightGrad(P f32[k,m] or its pairs, Q f32[k,n] or its pairs, like f32[m,n]) -> P^T Q f32[m,n]; of `like` only the shape is read.
// One of P and Q at least is f32, or both have as many pairs.
struct HalfGradSpec {
  std::int64_t m = 0, n = 0, k = 0;  // k: of pairs only, rounded up to even
  bool p_rounded = false, q_rounded = false;
};
Result<HalfGradSpec> half_grad_spec(const OpCall& call);

}  // namespace falaj::kernels
