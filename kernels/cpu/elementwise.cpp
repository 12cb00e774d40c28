// Vectorised f32 element-wise kernels. Every element is computed by the same instructions wherever it lies in the
// vector, so that results do not depend on the batch: tails go through the same eight lanes.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/parallel.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kLanes = 8;

FALAJ_AVX2 inline __m256 load(const float* p, std::int64_t left) {
  if (left >= kLanes) return _mm256_loadu_ps(p);
  alignas(32) float lane[8] = {};
  std::memcpy(lane, p, static_cast<std::size_t>(left) * sizeof(float));
  return _mm256_load_ps(lane);
}
FALAJ_AVX2 inline void store(float* p, __m256 v, std::int64_t left) {
  if (left >= kLanes) return _mm256_storeu_ps(p, v);
  alignas(32) float lane[8];
  _mm256_store_ps(lane, v);
  std::memcpy(p, lane, static_cast<std::size_t>(left) * sizeof(float));
}

enum class Binary : std::uint8_t { add, sub, mul, div, relu_slope, sigmoid_slope, tanh_slope };
enum class Unary : std::uint8_t { relu, sigmoid, tanh, exp, sqrt, neg, erf, gelu };

template <Binary kOp>
FALAJ_AVX2 inline __m256 apply(__m256 a, __m256 b) {
  __m256 one = _mm256_set1_ps(1.0F);
  if constexpr (kOp == Binary::add) return _mm256_add_ps(a, b);
  if constexpr (kOp == Binary::sub) return _mm256_sub_ps(a, b);
  if constexpr (kOp == Binary::mul) return _mm256_mul_ps(a, b);
  if constexpr (kOp == Binary::div) return _mm256_div_ps(a, b);
  if constexpr (kOp == Binary::relu_slope) return _mm256_and_ps(a, _mm256_cmp_ps(b, _mm256_setzero_ps(), _CMP_GT_OQ));
  if constexpr (kOp == Binary::sigmoid_slope) return _mm256_mul_ps(_mm256_mul_ps(a, b), _mm256_sub_ps(one, b));
  if constexpr (kOp == Binary::tanh_slope) return _mm256_mul_ps(a, _mm256_fnmadd_ps(b, b, one));
}
template <Unary kOp>
FALAJ_AVX2 inline __m256 apply(__m256 x) {
  if constexpr (kOp == Unary::relu) return _mm256_blendv_ps(x, _mm256_setzero_ps(), _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
  if constexpr (kOp == Unary::sigmoid) return sigmoid_of(x);
  if constexpr (kOp == Unary::tanh) return tanh_of(x);
  if constexpr (kOp == Unary::exp) return exp_of(x);
  if constexpr (kOp == Unary::sqrt) return _mm256_sqrt_ps(x);
  if constexpr (kOp == Unary::erf) return erf_of(x);
  if constexpr (kOp == Unary::gelu) return gelu_of(x);
  if constexpr (kOp == Unary::neg) return _mm256_xor_ps(x, _mm256_set1_ps(-0.0F));
}

// One run of n elements; an operand with step 0 is one number for all of it.
template <Binary kOp>
FALAJ_AVX2 void binary_run(const float* a, bool a_one, const float* b, bool b_one, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes) {
    __m256 x = a_one ? _mm256_broadcast_ss(a) : load(a + i, n - i);
    __m256 z = b_one ? _mm256_broadcast_ss(b) : load(b + i, n - i);
    store(y + i, apply<kOp>(x, z), n - i);
  }
}
template <Unary kOp>
FALAJ_AVX2 void unary_run(const float* x, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes) store(y + i, apply<kOp>(load(x + i, n - i)), n - i);
}

using BinaryRun = void (*)(const float*, bool, const float*, bool, float*, std::int64_t);
using UnaryRun = void (*)(const float*, float*, std::int64_t);

template <class F>
class Loop final : public Kernel {
 public:
  explicit Loop(F f) : f_(std::move(f)) {}
  void run(const Io& io) const override { f_(io); }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 loop"; }

 private:
  F f_;
};
template <class F>
KernelPtr loop(F f) {
  return std::make_unique<Loop<F>>(std::move(f));
}

}  // namespace

Result<KernelPtr> make_binary(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 loop"));
  const Shape& out = call.outputs[0].shape;
  if (call.opset < 7) return Error{ErrorCode::unimplemented, "avx2 loop: operands of this opset are aligned by an attribute"};
  Strides a = broadcast_strides(call.in(0).shape, out);
  Strides b = broadcast_strides(call.in(1).shape, out);
  std::string_view op = call.node.op;
  BinaryRun run = op == "Add"   ? binary_run<Binary::add>
                  : op == "Sub" ? binary_run<Binary::sub>
                  : op == "Mul" ? binary_run<Binary::mul>
                                : binary_run<Binary::div>;
  for (std::size_t d = out.rank(); d-- > 0;) {
    // The innermost dimension that has any length decides: both operands must walk it evenly or stand still.
    if (out[d] == 1) continue;
    if (out[d] < kLanes && out.elements() > out[d] && (a[d] == 0 || b[d] == 0))
      return Error{ErrorCode::unimplemented, "avx2 loop: the innermost dimension is too short"};
    break;
  }
  return loop([walk = Walk<3>(out, {row_major(out), a, b}), run](const Io& io) {
    walk([&](const auto& at, std::int64_t n, const auto& step) {
      in_ranges(io, n, kPartWork, [&](std::int64_t first, std::int64_t last) {
        run(io.input<float>(0) + at[1] + first * step[1], step[1] == 0, io.input<float>(1) + at[2] + first * step[2], step[2] == 0,
            io.output<float>(0) + at[0] + first, last - first);
      });
    });
  });
}

Result<KernelPtr> make_unary(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 loop"));
  std::string_view op = call.node.op;
  if (op == "Gelu") {
    FALAJ_ASSIGN(const auto form, attr_string(call.node, "approximate", "none"));
    if (form != "none") return Error{ErrorCode::unimplemented, "avx2 loop: only the exact Gelu"};
  }
  UnaryRun run = op == "Relu"      ? unary_run<Unary::relu>
                 : op == "Sigmoid" ? unary_run<Unary::sigmoid>
                 : op == "Tanh"    ? unary_run<Unary::tanh>
                 : op == "Exp"     ? unary_run<Unary::exp>
                 : op == "Sqrt"    ? unary_run<Unary::sqrt>
                 : op == "Erf"     ? unary_run<Unary::erf>
                 : op == "Gelu"    ? unary_run<Unary::gelu>
                                   : unary_run<Unary::neg>;
  return loop([run, n = call.in(0).shape.elements()](const Io& io) {
    in_ranges(io, n, kPartWork,
              [&](std::int64_t first, std::int64_t last) { run(io.input<float>(0) + first, io.output<float>(0) + first, last - first); });
  });
}

Result<KernelPtr> make_slope(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 loop"));
  std::string_view op = call.node.op;
  BinaryRun run = op == "ReluGrad"      ? binary_run<Binary::relu_slope>
                  : op == "SigmoidGrad" ? binary_run<Binary::sigmoid_slope>
                                        : binary_run<Binary::tanh_slope>;
  return loop([run, n = call.in(0).shape.elements()](const Io& io) {
    in_ranges(io, n, kPartWork, [&](std::int64_t first, std::int64_t last) {
      run(io.input<float>(0) + first, false, io.input<float>(1) + first, false, io.output<float>(0) + first, last - first);
    });
  });
}

}  // namespace falaj::kernels::cpu
