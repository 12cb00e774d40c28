// The loops of elementwise.cpp, which includes this once for each width of vectors: see vector_math_body.hpp. For that reason it has no
// #pragma once.
//
// Every element is computed by the same instructions wherever it lies in its vector, so that results do not depend on the batch.

constexpr std::int64_t kWidth = static_cast<std::int64_t>(sizeof(FALAJ_V) / sizeof(float));

template <Binary kOp>
FALAJ_LANES inline FALAJ_V apply(FALAJ_V a, FALAJ_V b) {
  const FALAJ_V one = all(a, 1.0F);
  const FALAJ_V zero = all(a, 0.0F);
  if constexpr (kOp == Binary::add) return add(a, b);
  if constexpr (kOp == Binary::sub) return sub(a, b);
  if constexpr (kOp == Binary::mul) return mul(a, b);
  if constexpr (kOp == Binary::div) return div(a, b);
  if constexpr (kOp == Binary::min) return where_nan(b, b, where_less(b, a, b, a));
  if constexpr (kOp == Binary::max) return where_nan(b, b, where_less(a, b, b, a));
  if constexpr (kOp == Binary::prelu) return where_less(a, zero, mul(a, b), a);
  if constexpr (kOp == Binary::relu_slope) return where_less(zero, b, a, zero);
  if constexpr (kOp == Binary::sigmoid_slope) return mul(mul(a, b), sub(one, b));
  if constexpr (kOp == Binary::tanh_slope) return mul(a, fnmadd(b, b, one));
}

// `p` and `q` are the function's parameters, in all lanes.
template <Unary kOp>
FALAJ_LANES inline FALAJ_V apply(FALAJ_V x, [[maybe_unused]] FALAJ_V p, [[maybe_unused]] FALAJ_V q) {
  const FALAJ_V zero = all(x, 0.0F);
  const FALAJ_V one = all(x, 1.0F);
  const FALAJ_V sign = all(x, -0.0F);
  if constexpr (kOp == Unary::relu) return relu_of(x);
  if constexpr (kOp == Unary::sigmoid) return sigmoid_of(x);
  if constexpr (kOp == Unary::tanh) return tanh_of(x);
  if constexpr (kOp == Unary::exp) return exp_of(x);
  if constexpr (kOp == Unary::log) return log_of(x);
  if constexpr (kOp == Unary::sqrt) return root(x);
  if constexpr (kOp == Unary::neg) return sub(sign, x);
  if constexpr (kOp == Unary::abs) return and_not_bits(sign, x);
  if constexpr (kOp == Unary::reciprocal) return div(one, x);
  if constexpr (kOp == Unary::floor) return down(x);
  if constexpr (kOp == Unary::ceil) return up(x);
  if constexpr (kOp == Unary::round) return nearest(x);
  if constexpr (kOp == Unary::erf) return erf_of(x);
  if constexpr (kOp == Unary::gelu) return gelu_of(x);
  if constexpr (kOp == Unary::gelu_by_tanh) return gelu_by_tanh_of(x);
  if constexpr (kOp == Unary::leaky_relu) return where_less(x, zero, mul(x, p), x);
  if constexpr (kOp == Unary::elu) return mul(q, where_less(x, zero, mul(p, exp_less_one_of(x)), x));
  if constexpr (kOp == Unary::softplus) return softplus_of(x);
  if constexpr (kOp == Unary::softsign) return div(x, add(one, and_not_bits(sign, x)));
  if constexpr (kOp == Unary::hard_sigmoid) return hard_sigmoid_of(x, p, q);
  if constexpr (kOp == Unary::hard_swish) return hard_swish_of(x);
  if constexpr (kOp == Unary::swish) return swish_of(x, p);
  if constexpr (kOp == Unary::mish) return mish_of(x);
  if constexpr (kOp == Unary::clip) {
    const FALAJ_V raised = where_less(x, p, p, x);
    return where_less(q, raised, q, raised);
  }
  if constexpr (kOp == Unary::square) return mul(x, x);
  if constexpr (kOp == Unary::cube) return mul(mul(x, x), x);
  // As pow has it, and a square root not: of -0 and of negative infinity.
  if constexpr (kOp == Unary::power_of_half) return where_less(x, all(x, -3.40282347e38F), all(x, __builtin_inff()), root(add(x, zero)));
}

// One run of n elements; an operand that is `one` is one number for all of it.
template <Binary kOp>
FALAJ_LANES void binary_run(const float* a, bool a_one, const float* b, bool b_one, float* y, std::int64_t n) {
  const FALAJ_V v{};
  if (a_one) {
    const FALAJ_V x = all(v, *a);
    for (std::int64_t i = 0; i < n; i += kWidth) store(y + i, apply<kOp>(x, load(v, b + i, n - i)), n - i);
  } else if (b_one) {
    const FALAJ_V z = all(v, *b);
    for (std::int64_t i = 0; i < n; i += kWidth) store(y + i, apply<kOp>(load(v, a + i, n - i), z), n - i);
  } else {
    for (std::int64_t i = 0; i < n; i += kWidth) store(y + i, apply<kOp>(load(v, a + i, n - i), load(v, b + i, n - i)), n - i);
  }
}

template <Unary kOp>
FALAJ_LANES void unary_run(const float* x, float* y, std::int64_t n, float p, float q) {
  const FALAJ_V ps = all(FALAJ_V{}, p);
  const FALAJ_V qs = all(FALAJ_V{}, q);
  for (std::int64_t i = 0; i < n; i += kWidth) store(y + i, apply<kOp>(load(ps, x + i, n - i), ps, qs), n - i);
}

template <std::size_t... kOps>
constexpr std::array<BinaryRun, sizeof...(kOps)> binary_runs(std::index_sequence<kOps...> /*all*/) {
  return {binary_run<static_cast<Binary>(kOps)>...};
}
template <std::size_t... kOps>
constexpr std::array<UnaryRun, sizeof...(kOps)> unary_runs(std::index_sequence<kOps...> /*all*/) {
  return {unary_run<static_cast<Unary>(kOps)>...};
}
constexpr auto kBinary = binary_runs(std::make_index_sequence<kBinaryOps>());
constexpr auto kUnary = unary_runs(std::make_index_sequence<kUnaryOps>());
