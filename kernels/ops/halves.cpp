#include "kernels/ops/halves.hpp"

#include "kernels/convert.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels {

Shape rows_form(std::int64_t m, std::int64_t n) { return {m, n + n % 2}; }
Shape pairs_form(std::int64_t m, std::int64_t n) { return {(n + kHalfPanel - 1) / kHalfPanel, (m + 1) / 2, kHalfPanel, 2}; }

Result<HalfProductSpec> half_product_spec(const OpCall& call) {
  FALAJ_ASSIGN(const auto turned, attr_int(call.node, "transB", 0));
  FALAJ_ASSIGN(const auto relu, attr_int(call.node, "relu", 0));
  const Shape& a = call.in(0).shape;
  const Shape& b = call.in(1).shape;
  if (a.rank() != 2 || b.rank() != 2) return invalid(format("A {} and B {} must be matrices", to_string(a), to_string(b)));
  HalfProductSpec s;
  s.m = a[0];
  s.k = turned != 0 ? b[1] : b[0];
  s.n = turned != 0 ? b[0] : b[1];
  s.b_row = turned != 0 ? 1 : b[1];
  s.b_col = turned != 0 ? b[1] : 1;
  s.rounded = call.in(0).dtype == DType::bf16;
  s.relu = relu != 0;
  s.has_bias = call.has(2);
  s.has_mask = call.has(3);
  if (a != (s.rounded ? rows_form(s.m, s.k) : Shape{s.m, s.k}))
    return invalid(format("A {} does not fit B {}", to_string(a), to_string(b)));
  if (s.has_bias && call.in(2).shape != Shape{s.n}) return invalid(format("the bias {} is not [{}]", to_string(call.in(2).shape), s.n));
  if (s.has_mask && (s.has_bias || s.relu)) return invalid("a product is masked, or has a bias or Relu");
  if (s.has_mask && (call.in(3).dtype != DType::bf16 || call.in(3).shape != pairs_form(s.m, s.n)))
    return invalid(format("the mask {} is not {}", to_string(call.in(3).shape), to_string(pairs_form(s.m, s.n))));
  return s;
}

Result<HalfGradSpec> half_grad_spec(const OpCall& call) {
  const Shape& like = call.in(2).shape;
  if (like.rank() != 2) return invalid(format("{} is no matrix", to_string(like)));
  HalfGradSpec s{like[0], like[1], 0, call.in(0).dtype == DType::bf16, call.in(1).dtype == DType::bf16};
  const Shape& p = call.in(0).shape;
  const Shape& q = call.in(1).shape;
  const std::size_t p_rank = s.p_rounded ? 4 : 2;
  const std::size_t q_rank = s.q_rounded ? 4 : 2;
  if (p.rank() != p_rank || q.rank() != q_rank) return invalid(format("P {} and Q {} have other ranks", to_string(p), to_string(q)));
  s.k = !s.p_rounded ? p[0] : (!s.q_rounded ? q[0] : 2 * p[1]);
  const bool fits =
      p == (s.p_rounded ? pairs_form(s.k, s.m) : Shape{s.k, s.m}) && q == (s.q_rounded ? pairs_form(s.k, s.n) : Shape{s.k, s.n});
  if (!fits) return invalid(format("P {} and Q {} do not make {}", to_string(p), to_string(q), to_string(like)));
  return s;
}

namespace {

using Half = std::uint16_t;

double rounded(float x) { return bfloat16_to_double(bfloat16_from_double(static_cast<double>(x))); }
// Where a matrix's element is in its pairs.
std::int64_t in_pairs_form(std::int64_t rows, std::int64_t row, std::int64_t column) {
  return ((column / kHalfPanel * ((rows + 1) / 2) + row / 2) * kHalfPanel + column % kHalfPanel) * 2 + row % 2;
}

Status infer_product(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::f32, DType::bf16}));
  FALAJ_TRY(check_dtype(call, 1, {DType::f32}));
  FALAJ_ASSIGN(const auto s, half_product_spec(call));
  const std::array<ValueType, 4> types = {
      {{DType::f32, {s.m, s.n}}, {DType::bf16, rows_form(s.m, s.n)}, {DType::bf16, pairs_form(s.m, s.n)}, {DType::f32, {s.n}}}};
  for (std::size_t i = 0; i < call.outputs.size(); ++i) FALAJ_TRY(set_output(call, i, types[i].dtype, types[i].shape));
  return {};
}

Result<KernelPtr> make_product(const KernelCall& c) {
  FALAJ_ASSIGN(const auto spec, half_product_spec(c));
  return make_kernel([s = spec, outputs = c.outputs.size()](const Io& io) {
    const auto out = [&](std::size_t i) { return i < outputs ? io.out[i] : nullptr; };
    auto* y = static_cast<float*>(out(0));
    auto* rows = static_cast<Half*>(out(1));
    auto* pairs = static_cast<Half*>(out(2));
    auto* sums = static_cast<float*>(out(3));
    const std::int64_t padded = s.n + s.n % 2;
    if (rows != nullptr) std::fill_n(rows, s.m * padded, Half{0});
    if (pairs != nullptr) std::fill_n(pairs, pairs_form(s.m, s.n).elements(), Half{0});
    for (std::int64_t j = 0; j < s.n; ++j) {
      double down = 0;
      for (std::int64_t i = 0; i < s.m; ++i) {
        double sum = s.has_bias ? static_cast<double>(io.input<float>(2)[j]) : 0.0;
        for (std::int64_t k = 0; k < s.k; ++k) {
          const double a =
              s.rounded ? bfloat16_to_double(io.input<Half>(0)[i * (s.k + s.k % 2) + k]) : rounded(io.input<float>(0)[i * s.k + k]);
          sum += a * rounded(io.input<float>(1)[k * s.b_row + j * s.b_col]);
        }
        if (s.relu && sum < 0) sum = 0;
        if (s.has_mask && !(bfloat16_to_double(io.input<Half>(3)[in_pairs_form(s.m, i, j)]) > 0)) sum = 0;
        const auto value = static_cast<float>(sum);
        const Half half = bfloat16_from_double(static_cast<double>(value));
        if (y != nullptr) y[i * s.n + j] = value;
        if (rows != nullptr) rows[i * padded + j] = half;
        if (pairs != nullptr) pairs[in_pairs_form(s.m, i, j)] = half;
        down += static_cast<double>(value);
      }
      if (sums != nullptr) sums[j] = static_cast<float>(down);
    }
  });
}

Status infer_grad_of_weights(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::f32, DType::bf16}));
  FALAJ_TRY(check_dtype(call, 1, {DType::f32, DType::bf16}));
  FALAJ_ASSIGN(const auto s, half_grad_spec(call));
  return set_output(call, 0, DType::f32, {s.m, s.n});
}

Result<KernelPtr> make_grad_of_weights(const KernelCall& c) {
  FALAJ_ASSIGN(const auto spec, half_grad_spec(c));
  return make_kernel([s = spec](const Io& io) {
    const auto at = [&](std::size_t input, bool pairs, std::int64_t width, std::int64_t row, std::int64_t column) {
      return pairs ? bfloat16_to_double(io.input<Half>(input)[in_pairs_form(s.k, row, column)])
                   : rounded(io.input<float>(input)[row * width + column]);
    };
    for (std::int64_t i = 0; i < s.m; ++i) {
      for (std::int64_t j = 0; j < s.n; ++j) {
        double sum = 0;
        for (std::int64_t k = 0; k < s.k; ++k) sum += at(0, s.p_rounded, s.m, k, i) * at(1, s.q_rounded, s.n, k, j);
        io.output<float>(0)[i * s.n + j] = static_cast<float>(sum);
      }
    }
  });
}

constexpr OpDef kOps[] = {
    {kFalaj, "HalfMatMul", 2, 4, 1, 4, infer_product, make_product},
    {kFalaj, "HalfWeightGrad", 3, 3, 1, 1, infer_grad_of_weights, make_grad_of_weights, nullptr, Placement::own, 1U << 2},
};

}  // namespace

std::span<const OpDef> halves_ops() { return kOps; }

}  // namespace falaj::kernels
