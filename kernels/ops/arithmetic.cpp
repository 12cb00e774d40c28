// Arithmetic on elements, with broadcasting: Add Sub Mul Div Pow Min Max; Neg Abs Sign Sqrt Reciprocal Exp Log Erf Floor Ceil Clip;
// and the gradients' own ReduceLike, ClipGrad, ExtremumGrad.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

Status infer_binary(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN(Shape shape, broadcast(call.in(0).shape, aligned_second(call)));
  return set_output(call, 0, call.in(0).dtype, shape);
}

Status infer_variadic(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  Shape shape = call.in(0).shape;
  for (std::size_t i = 1; i < call.inputs.size(); ++i) {
    FALAJ_TRY(check_same_dtype(call, 0, i));
    FALAJ_ASSIGN(shape, broadcast(shape, call.in(i).shape));
  }
  return set_output(call, 0, call.in(0).dtype, shape);
}

// Integers wrap around: overflow of signed ones would be undefined.
template <class T, class F>
T wrapping(T a, T b, F f) {
  if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(f(static_cast<U>(a), static_cast<U>(b)));
  } else {
    return f(a, b);
  }
}
template <class T>
T negated(T x) {
  if constexpr (std::is_integral_v<T>) return wrapping(T{0}, x, [](auto a, auto b) { return a - b; });
  return -x;
}

// NaN stays NaN; what is unsigned has no sign to lose.
template <class T>
T negated_if_signed(T x) {
  if constexpr (std::is_unsigned_v<T>) return x;
  return negated(x);
}

Result<KernelPtr> make_add(const KernelCall& c) {
  return dispatch_numeric(c.outputs[0].dtype, [&]<class T>() {
    return binary_kernel<T>(c, [](T a, T b) { return wrapping(a, b, [](auto x, auto y) { return x + y; }); });
  });
}
Result<KernelPtr> make_sub(const KernelCall& c) {
  return dispatch_numeric(c.outputs[0].dtype, [&]<class T>() {
    return binary_kernel<T>(c, [](T a, T b) { return wrapping(a, b, [](auto x, auto y) { return x - y; }); });
  });
}
Result<KernelPtr> make_mul(const KernelCall& c) {
  return dispatch_numeric(c.outputs[0].dtype, [&]<class T>() {
    return binary_kernel<T>(c, [](T a, T b) { return wrapping(a, b, [](auto x, auto y) { return x * y; }); });
  });
}

// Integers: truncates; x / 0 gives 0 and min / -1 wraps, for a trap would end the process on bad data.
template <class T>
T divide(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    return a / b;
  } else {
    if (b == 0) return 0;
    if constexpr (std::is_signed_v<T>) {
      if (b == -1) return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
    }
    return a / b;
  }
}
Result<KernelPtr> make_div(const KernelCall& c) {
  return dispatch_numeric(c.outputs[0].dtype, [&]<class T>() { return binary_kernel<T>(c, [](T a, T b) { return divide(a, b); }); });
}

Status infer_pow(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  FALAJ_TRY(check_number(call, 1));
  FALAJ_ASSIGN(Shape shape, broadcast(call.in(0).shape, aligned_second(call)));
  return set_output(call, 0, call.in(0).dtype, shape);
}

template <class T, class E>
KernelPtr pow_kernel(const KernelCall& c) {
  const Shape& out = c.outputs[0].shape;
  auto walk = broadcast_walk<3>(out, {&out, &c.in(0).shape, &c.in(1).shape});
  return make_kernel([walk](const Io& io) {
    const T* a = io.input<T>(0);
    const E* b = io.input<E>(1);
    T* y = io.output<T>(0);
    walk([&](const auto& at, std::int64_t n, const auto& step) {
      for (std::int64_t i = 0; i < n; ++i) {
        // Squares are what models write Pow for; x * x is exact where pow may not be.
        T base = a[at[1] + i * step[1]];
        E exponent = b[at[2] + i * step[2]];
        y[at[0] + i * step[0]] = exponent == E{2} ? wrapping(base, base, [](auto x, auto z) { return x * z; })
                                                  : static_cast<T>(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
      }
    });
  });
}

Result<KernelPtr> make_pow(const KernelCall& c) {
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() -> Result<KernelPtr> {
    switch (c.in(1).dtype) {
      case DType::f32:
        return pow_kernel<T, float>(c);
      case DType::f64:
        return pow_kernel<T, double>(c);
      case DType::i64:
        return pow_kernel<T, std::int64_t>(c);
      case DType::i32:
        return pow_kernel<T, std::int32_t>(c);
      case DType::u64:
        return pow_kernel<T, std::uint64_t>(c);
      default:
        return no_kernel(c.in(1).dtype);
    }
  });
}

// NaN wins, as in NumPy.
template <class T>
T extremum(T a, T b, bool max) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(a)) return a;
    if (std::isnan(b)) return b;
  }
  return max ? std::max(a, b) : std::min(a, b);
}

// Over all inputs, pairwise from the left.
template <class T>
KernelPtr extremum_kernel(const KernelCall& c, bool max) {
  const Shape& out = c.outputs[0].shape;
  std::vector<Walk<2>> walks;
  for (const auto& input : c.inputs) walks.push_back(broadcast_walk<2>(out, {&out, &input.shape}));
  return make_kernel([walks, max](const Io& io) {
    T* y = io.output<T>(0);
    for (std::size_t k = 0; k < walks.size(); ++k) {
      const T* x = io.input<T>(k);
      walks[k]([&](const auto& at, std::int64_t n, const auto& step) {
        for (std::int64_t i = 0; i < n; ++i) {
          T& to = y[at[0] + i * step[0]];
          T from = x[at[1] + i * step[1]];
          to = k == 0 ? from : extremum(to, from, max);
        }
      });
    }
  });
}
Result<KernelPtr> make_max(const KernelCall& c) {
  return dispatch_numeric(c.outputs[0].dtype, [&]<class T>() { return extremum_kernel<T>(c, true); });
}
Result<KernelPtr> make_min(const KernelCall& c) {
  return dispatch_numeric(c.outputs[0].dtype, [&]<class T>() { return extremum_kernel<T>(c, false); });
}

// --- one operand ----------------------------------------------------------------------------------------------------------

Result<KernelPtr> make_neg(const KernelCall& c) {
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() { return unary_kernel<T>(c, [](T x) { return negated(x); }); });
}
Result<KernelPtr> make_abs(const KernelCall& c) {
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() {
    return unary_kernel<T>(c, [](T x) { return !(x > T{0}) && x != T{0} ? negated_if_signed(x) : (x == T{0} ? T{0} : x); });
  });
}
Result<KernelPtr> make_sign(const KernelCall& c) {
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() {
    return unary_kernel<T>(c, [](T x) { return x > T{0} ? T{1} : (x == T{0} || x != x ? x : static_cast<T>(-1)); });
  });
}
#define FALAJ_FLOAT_UNARY(name, expression)                                                                                   \
  Result<KernelPtr> name(const KernelCall& c) {                                                                               \
    return dispatch_float(c.in(0).dtype, [&]<class T>() { return unary_kernel<T>(c, [](T x) -> T { return expression; }); }); \
  }
FALAJ_FLOAT_UNARY(make_sqrt, std::sqrt(x))
FALAJ_FLOAT_UNARY(make_reciprocal, T{1} / x)
FALAJ_FLOAT_UNARY(make_exp, std::exp(x))
FALAJ_FLOAT_UNARY(make_log, std::log(x))
FALAJ_FLOAT_UNARY(make_erf, std::erf(x))
FALAJ_FLOAT_UNARY(make_floor, std::floor(x))
FALAJ_FLOAT_UNARY(make_ceil, std::ceil(x))
#undef FALAJ_FLOAT_UNARY

Status infer_clip(InferCall& call) {
  FALAJ_TRY(infer_numeric(call));
  if (call.opset < 11) return {};
  for (std::size_t i : {1U, 2U}) {
    if (!call.has(i)) continue;
    FALAJ_TRY(check_same_dtype(call, 0, i));
    if (call.in(i).shape.elements() != 1) return invalid(format("bound '{}' must be one number", call.node.inputs[i]));
  }
  return {};
}

template <class T>
std::pair<T, T> clip_bounds(const Io& io, bool has_min, bool has_max, std::size_t first) {
  T low = has_min ? *io.input<T>(first) : std::numeric_limits<T>::lowest();
  T high = has_max ? *io.input<T>(first + 1) : std::numeric_limits<T>::max();
  if constexpr (std::is_floating_point_v<T>) {
    if (!has_min) low = -std::numeric_limits<T>::infinity();
    if (!has_max) high = std::numeric_limits<T>::infinity();
  }
  return {low, high};
}

// Before opset 11 the bounds were attributes.
Result<KernelPtr> make_old_clip(const KernelCall& c) {
  FALAJ_ASSIGN(double low, attr_float(c.node, "min", -std::numeric_limits<double>::infinity()));
  FALAJ_ASSIGN(double high, attr_float(c.node, "max", std::numeric_limits<double>::infinity()));
  return dispatch<double>(
      c.in(0).dtype, [&]<class T>() { return unary_kernel<T>(c, [low, high](T x) { return x < low ? low : (x > high ? high : x); }); });
}
Result<KernelPtr> make_clip(const KernelCall& c) {
  if (c.opset < 11) return make_old_clip(c);
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() {
    return make_kernel([n = c.in(0).shape.elements(), has_min = c.has(1), has_max = c.has(2)](const Io& io) {
      auto [low, high] = clip_bounds<T>(io, has_min, has_max, 1);
      const T* x = io.input<T>(0);
      T* y = io.output<T>(0);
      for (std::int64_t i = 0; i < n; ++i) {
        T v = x[i] < low ? low : x[i];
        y[i] = v > high ? high : v;
      }
    });
  });
}

Result<KernelPtr> make_clip_grad(const KernelCall& c) {
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel([n = c.in(0).shape.elements(), has_min = c.has(2), has_max = c.has(3)](const Io& io) {
      auto [low, high] = clip_bounds<T>(io, has_min, has_max, 2);
      const T* dy = io.input<T>(0);
      const T* x = io.input<T>(1);
      T* dx = io.output<T>(0);
      for (std::int64_t i = 0; i < n; ++i) dx[i] = x[i] >= low && x[i] <= high ? dy[i] : T{0};
    });
  });
}

// --- sums down to a broadcast operand ---------------------------------------------------------------------------------------

Status infer_reduce_like(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  FALAJ_ASSIGN(Shape both, broadcast(call.in(0).shape, call.in(1).shape));
  if (both != call.in(0).shape)
    return invalid(format("{} does not broadcast to {}", to_string(call.in(1).shape), to_string(call.in(0).shape)));
  return infer_like_second(call);
}

Result<KernelPtr> make_reduce_like(const KernelCall& c) {
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    const Shape& in = c.in(0).shape;
    const Shape& out = c.outputs[0].shape;
    // Sums in float lose digits over long batches: the accumulator is double, whatever T is.
    auto walk = broadcast_walk<2>(in, {&in, &out});
    auto n = out.elements();
    return make_kernel(
        [walk, n](const Io& io) {
          auto* sum = reinterpret_cast<double*>(io.scratch);
          std::fill_n(sum, n, 0.0);
          const T* x = io.input<T>(0);
          walk([&](const auto& at, std::int64_t count, const auto& step) {
            for (std::int64_t i = 0; i < count; ++i) sum[at[1] + i * step[1]] += static_cast<double>(x[at[0] + i * step[0]]);
          });
          T* y = io.output<T>(0);
          for (std::int64_t i = 0; i < n; ++i) y[i] = static_cast<T>(sum[i]);
        },
        static_cast<std::size_t>(n) * sizeof(double));
  });
}

// --- gradients ------------------------------------------------------------------------------------------------------------

Status grad_add(GradientCall& g) {
  for (std::size_t i : {0U, 1U}) {
    if (g.wants(i)) g.set(i, reduce_to_input(g, g.dy(), i));
  }
  return {};
}
Status grad_sub(GradientCall& g) {
  if (g.wants(0)) g.set(0, reduce_to_input(g, g.dy(), 0));
  if (g.wants(1)) g.set(1, reduce_to_input(g, g.add("Neg", {g.dy()}), 1));
  return {};
}
Status grad_mul(GradientCall& g) {
  if (g.wants(0)) g.set(0, reduce_to_input(g, g.add("Mul", {g.dy(), g.input(1)}), 0));
  if (g.wants(1)) g.set(1, reduce_to_input(g, g.add("Mul", {g.dy(), g.input(0)}), 1));
  return {};
}
Status grad_div(GradientCall& g) {
  if (g.wants(0)) g.set(0, reduce_to_input(g, g.add("Div", {g.dy(), g.input(1)}), 0));
  if (g.wants(1)) {
    std::string slope = g.add("Neg", {g.add("Div", {g.output(0), g.input(1)})});
    g.set(1, reduce_to_input(g, g.add("Mul", {g.dy(), slope}), 1));
  }
  return {};
}
Status grad_pow(GradientCall& g) {
  DType t = g.input_type(0).dtype;
  std::string exponent = g.input(1);
  if (g.input_type(1).dtype != t) exponent = g.add_falaj("CastLike", {exponent, g.input(0)});
  if (g.wants(0)) {
    std::string less_one = g.add("Sub", {exponent, g.constant(1.0, t)});
    std::string slope = g.add("Mul", {exponent, g.add("Pow", {g.input(0), less_one})});
    g.set(0, reduce_to_input(g, g.add("Mul", {g.dy(), slope}), 0));
  }
  if (g.wants(1)) {
    std::string slope = g.add("Mul", {g.output(0), g.add("Log", {g.input(0)})});
    g.set(1, reduce_to_input(g, g.add("Mul", {g.dy(), slope}), 1));
  }
  return {};
}

// dy goes to the first operand that attains the extremum, so that ties are counted once.
Status infer_extremum_grad(InferCall& call) { return set_output(call, 0, call.in(0).dtype, call.in(0).shape); }
Result<KernelPtr> make_extremum_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto index, attr_int(c.node, "index"));
  FALAJ_ASSIGN(auto max, attr_int(c.node, "max"));
  if (index < 0 || index + 1 >= static_cast<std::int64_t>(c.inputs.size())) return invalid("attribute 'index' names no input");
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    const Shape& out = c.in(0).shape;
    std::vector<Strides> strides;
    for (std::size_t k = 1; k < c.inputs.size(); ++k) strides.push_back(broadcast_strides(c.in(k).shape, out));
    Strides own = row_major(out);
    return make_kernel([index, max, strides, own, rank = out.rank(), n = out.elements()](const Io& io) {
      const T* dy = io.input<T>(0);
      T* dx = io.output<T>(0);
      for (std::int64_t i = 0; i < n; ++i) {
        std::size_t best = 0;
        T value{};
        for (std::size_t k = 0; k < strides.size(); ++k) {
          std::int64_t at = 0;
          for (std::size_t d = 0, rest = static_cast<std::size_t>(i); d < rank; ++d) {
            at += static_cast<std::int64_t>(rest / static_cast<std::size_t>(own[d])) * strides[k][d];
            rest %= static_cast<std::size_t>(own[d]);
          }
          T x = io.input<T>(k + 1)[at];
          if (k == 0 || (max != 0 ? x > value : x < value)) {
            best = k;
            value = x;
          }
        }
        dx[i] = best == static_cast<std::size_t>(index) ? dy[i] : T{0};
      }
    });
  });
}
Status grad_extremum(GradientCall& g) {
  std::int64_t max = g.node().op == "Max" ? 1 : 0;
  for (std::size_t i = 0; i < g.node().inputs.size(); ++i) {
    if (!g.wants(i)) continue;
    std::vector<std::string> inputs = {g.dy()};
    inputs.insert(inputs.end(), g.node().inputs.begin(), g.node().inputs.end());
    Attributes attributes = attr("index", static_cast<std::int64_t>(i));
    attributes.emplace("max", max);
    g.set(i, reduce_to_input(g, g.add_falaj("ExtremumGrad", std::move(inputs), std::move(attributes)), i));
  }
  return {};
}

Status grad_neg(GradientCall& g) { return g.set(0, g.add("Neg", {g.dy()})), Status{}; }
Status grad_abs(GradientCall& g) { return g.set(0, g.add("Mul", {g.dy(), g.add("Sign", {g.input(0)})})), Status{}; }
Status grad_sqrt(GradientCall& g) {
  std::string half = g.add("Mul", {g.dy(), g.constant(0.5, g.input_type(0).dtype)});
  return g.set(0, g.add("Div", {half, g.output(0)})), Status{};
}
Status grad_reciprocal(GradientCall& g) {
  std::string square = g.add("Mul", {g.output(0), g.output(0)});
  return g.set(0, g.add("Neg", {g.add("Mul", {g.dy(), square})})), Status{};
}
Status grad_exp(GradientCall& g) { return g.set(0, g.add("Mul", {g.dy(), g.output(0)})), Status{}; }
Status grad_log(GradientCall& g) { return g.set(0, g.add("Div", {g.dy(), g.input(0)})), Status{}; }
Status grad_erf(GradientCall& g) {
  std::string bell = g.add("Exp", {g.add("Neg", {g.add("Mul", {g.input(0), g.input(0)})})});
  std::string slope = g.add("Mul", {bell, g.constant(2.0 / std::sqrt(std::numbers::pi), g.input_type(0).dtype)});
  return g.set(0, g.add("Mul", {g.dy(), slope})), Status{};
}
Status grad_clip(GradientCall& g) {
  std::vector<std::string> inputs = {g.dy()};
  inputs.insert(inputs.end(), g.node().inputs.begin(), g.node().inputs.end());
  if (g.wants(0)) g.set(0, g.add_falaj("ClipGrad", std::move(inputs)));
  return {};
}

Status grad_flat(GradientCall& g) { return g.stop(), Status{}; }

constexpr OpDef kOps[] = {
    {kOnnx, "Add", 2, 2, 1, 1, infer_binary, make_add, grad_add, Placement::in_place},
    {kOnnx, "Sub", 2, 2, 1, 1, infer_binary, make_sub, grad_sub, Placement::in_place},
    {kOnnx, "Mul", 2, 2, 1, 1, infer_binary, make_mul, grad_mul, Placement::in_place},
    {kOnnx, "Div", 2, 2, 1, 1, infer_binary, make_div, grad_div, Placement::in_place},
    {kOnnx, "Pow", 2, 2, 1, 1, infer_pow, make_pow, grad_pow, Placement::own},
    {kOnnx, "Min", 1, kVariadic, 1, 1, infer_variadic, make_min, grad_extremum, Placement::own},
    {kOnnx, "Max", 1, kVariadic, 1, 1, infer_variadic, make_max, grad_extremum, Placement::own},
    {kOnnx, "Neg", 1, 1, 1, 1, infer_numeric, make_neg, grad_neg, Placement::in_place},
    {kOnnx, "Abs", 1, 1, 1, 1, infer_numeric, make_abs, grad_abs, Placement::in_place},
    {kOnnx, "Sign", 1, 1, 1, 1, infer_numeric, make_sign, grad_flat, Placement::in_place},
    {kOnnx, "Sqrt", 1, 1, 1, 1, infer_float, make_sqrt, grad_sqrt, Placement::in_place},
    {kOnnx, "Reciprocal", 1, 1, 1, 1, infer_float, make_reciprocal, grad_reciprocal, Placement::in_place},
    {kOnnx, "Exp", 1, 1, 1, 1, infer_float, make_exp, grad_exp, Placement::in_place},
    {kOnnx, "Log", 1, 1, 1, 1, infer_float, make_log, grad_log, Placement::in_place},
    {kOnnx, "Erf", 1, 1, 1, 1, infer_float, make_erf, grad_erf, Placement::in_place},
    {kOnnx, "Floor", 1, 1, 1, 1, infer_float, make_floor, grad_flat, Placement::in_place},
    {kOnnx, "Ceil", 1, 1, 1, 1, infer_float, make_ceil, grad_flat, Placement::in_place},
    {kOnnx, "Clip", 1, 3, 1, 1, infer_clip, make_clip, grad_clip, Placement::own},
    {kFalaj, "ClipGrad", 2, 4, 1, 1, infer_same, make_clip_grad, nullptr, Placement::own},
    {kFalaj, "ReduceLike", 2, 2, 1, 1, infer_reduce_like, make_reduce_like, nullptr, Placement::own, 0b10},
    {kFalaj, "ExtremumGrad", 2, kVariadic, 1, 1, infer_extremum_grad, make_extremum_grad, nullptr, Placement::own},
};

}  // namespace

std::span<const OpDef> arithmetic_ops() { return kOps; }

}  // namespace falaj::kernels
