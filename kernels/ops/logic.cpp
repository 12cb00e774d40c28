// Comparisons, logic, selection and casts: Equal Less LessOrEqual Greater GreaterOrEqual Not And Or IsNaN Where Cast CastLike.
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/convert.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

Status infer_compare(InferCall& call) {
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN(Shape shape, broadcast(call.in(0).shape, aligned_second(call)));
  return set_output(call, 0, DType::boolean, shape);
}
Status infer_logic(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::boolean}));
  return infer_compare(call);
}
Status infer_not(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::boolean}));
  return infer_same(call);
}
Status infer_is_nan(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  return set_output(call, 0, DType::boolean, call.in(0).shape);
}

template <class... Ts, class F>
Result<KernelPtr> compare(const KernelCall& c, F f) {
  return dispatch<Ts...>(c.in(0).dtype,
                         [&]<class T>() { return binary_kernel<T>(c, [f](const T& a, const T& b) -> bool { return f(a, b); }); });
}
Result<KernelPtr> make_equal(const KernelCall& c) {
  return compare<float, double, std::int64_t, std::int32_t, std::uint64_t, bool, std::string>(c, std::equal_to<>{});
}
Result<KernelPtr> make_less(const KernelCall& c) {
  return compare<float, double, std::int64_t, std::int32_t, std::uint64_t>(c, std::less<>{});
}
Result<KernelPtr> make_less_equal(const KernelCall& c) {
  return compare<float, double, std::int64_t, std::int32_t, std::uint64_t>(c, std::less_equal<>{});
}
Result<KernelPtr> make_greater(const KernelCall& c) {
  return compare<float, double, std::int64_t, std::int32_t, std::uint64_t>(c, std::greater<>{});
}
Result<KernelPtr> make_greater_equal(const KernelCall& c) {
  return compare<float, double, std::int64_t, std::int32_t, std::uint64_t>(c, std::greater_equal<>{});
}
Result<KernelPtr> make_and(const KernelCall& c) { return compare<bool>(c, std::logical_and<>{}); }
Result<KernelPtr> make_or(const KernelCall& c) { return compare<bool>(c, std::logical_or<>{}); }
Result<KernelPtr> make_not(const KernelCall& c) {
  return unary_kernel<bool>(c, [](bool x) { return !x; });
}
Result<KernelPtr> make_is_nan(const KernelCall& c) {
  return dispatch_float(c.in(0).dtype, [&]<class T>() { return unary_kernel<T>(c, [](T x) -> bool { return std::isnan(x); }); });
}

// --- Where ----------------------------------------------------------------------------------------------------------------

Status infer_where(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::boolean}));
  FALAJ_TRY(check_same_dtype(call, 1, 2));
  FALAJ_ASSIGN(Shape shape, broadcast(call.in(1).shape, call.in(2).shape));
  FALAJ_ASSIGN(shape, broadcast(shape, call.in(0).shape));
  return set_output(call, 0, call.in(1).dtype, shape);
}

Result<KernelPtr> make_where(const KernelCall& c) {
  return dispatch_moving(c.in(1).dtype, [&]<class T>() {
    const Shape& out = c.outputs[0].shape;
    auto walk = broadcast_walk<4>(out, {&out, &c.in(0).shape, &c.in(1).shape, &c.in(2).shape});
    return make_kernel([walk](const Io& io) {
      const bool* condition = io.input<bool>(0);
      const T* a = io.input<T>(1);
      const T* b = io.input<T>(2);
      T* y = io.output<T>(0);
      walk([&](const auto& at, std::int64_t n, const auto& step) {
        for (std::int64_t i = 0; i < n; ++i) {
          y[at[0] + i * step[0]] = condition[at[1] + i * step[1]] ? a[at[2] + i * step[2]] : b[at[3] + i * step[3]];
        }
      });
    });
  });
}

Status grad_where(GradientCall& g) {
  std::string zero = g.constant(0.0, g.output_type(0).dtype);
  if (g.wants(1)) g.set(1, reduce_to_input(g, g.add("Where", {g.input(0), g.dy(), zero}), 1));
  if (g.wants(2)) g.set(2, reduce_to_input(g, g.add("Where", {g.input(0), zero, g.dy()}), 2));
  return {};
}

// --- Cast -----------------------------------------------------------------------------------------------------------------

Status infer_cast(InferCall& call) {
  FALAJ_ASSIGN(auto code, attr_int(call.node, "to"));
  DType to = dtype_of_code(code);
  if (to == DType::undefined) return Error{ErrorCode::unimplemented, format("casts to ONNX element type {} are not supported", code)};
  return set_output(call, 0, to, call.in(0).shape);
}
Status infer_cast_like(InferCall& call) { return set_output(call, 0, call.in(1).dtype, call.in(0).shape); }

// Numbers as people and programs write them: "inf", "+INF", "NaN" and a leading plus too.
template <class To>
KernelPtr parse_kernel(std::int64_t n) {
  return make_kernel([n](const Io& io) {
    const auto* x = io.input<std::string>(0);
    To* y = io.output<To>(0);
    for (std::int64_t i = 0; i < n; ++i) {
      const char* end = x[i].data() + x[i].size();
      const char* begin = x[i].data() + (x[i].size() > 1 && x[i][0] == '+' && x[i][1] != '-' ? 1 : 0);
      auto [at, code] = std::from_chars(begin, end, y[i]);
      if (code != std::errc{} || at != end) return io.fail(format("'{}' at position {} is not a number", x[i].substr(0, 40), i));
    }
  });
}

// As ONNX's reference prints: the shortest text that reads back, with a point (1.0), exponents from 1e16 on; infinities as INF.
template <class From>
std::string print_number(From x) {
  if constexpr (std::is_floating_point_v<From>) {
    if (std::isnan(x)) return "NaN";
    if (std::isinf(x)) return x > 0 ? "INF" : "-INF";
    std::string text = format("{}", x);
    if (text.find_first_of(".e") == std::string::npos) text += ".0";
    return text;
  } else {
    return format("{}", x);
  }
}

template <class From>
KernelPtr print_kernel(std::int64_t n) {
  return make_kernel([n](const Io& io) {
    const From* x = io.input<From>(0);
    auto* y = io.output<std::string>(0);
    for (std::int64_t i = 0; i < n; ++i) y[i] = print_number(x[i]);
  });
}

Result<KernelPtr> make_cast(const KernelCall& c) {
  DType to = c.outputs[0].dtype;
  DType from = c.in(0).dtype;
  auto n = c.outputs[0].shape.elements();
  if (from == to) {
    return dispatch_moving(to, [&]<class T>() { return unary_kernel<T>(c, [](const T& x) { return x; }); });
  }
  if (from == DType::string) return dispatch<float, double, std::int64_t, std::int32_t>(to, [&]<class T>() { return parse_kernel<T>(n); });
  if (to == DType::string) return dispatch<float, double, std::int64_t, std::int32_t>(from, [&]<class T>() { return print_kernel<T>(n); });
  FALAJ_ASSIGN(auto saturate, attr_int(c.node, "saturate", 1));
  return make_kernel(
      [from, to, n, saturate = saturate != 0](const Io& io) { convert_elements(from, io.in[0], to, io.out[0], n, saturate); });
}

Status grad_cast(GradientCall& g) {
  if (is_float(g.input_type(0).dtype) && is_float(g.output_type(0).dtype)) g.set(0, g.add_falaj("CastLike", {g.dy(), g.input(0)}));
  return {};
}

constexpr OpDef kOps[] = {
    {kOnnx, "Equal", 2, 2, 1, 1, infer_compare, make_equal},
    {kOnnx, "Less", 2, 2, 1, 1, infer_compare, make_less},
    {kOnnx, "LessOrEqual", 2, 2, 1, 1, infer_compare, make_less_equal},
    {kOnnx, "Greater", 2, 2, 1, 1, infer_compare, make_greater},
    {kOnnx, "GreaterOrEqual", 2, 2, 1, 1, infer_compare, make_greater_equal},
    {kOnnx, "And", 2, 2, 1, 1, infer_logic, make_and},
    {kOnnx, "Or", 2, 2, 1, 1, infer_logic, make_or},
    {kOnnx, "Not", 1, 1, 1, 1, infer_not, make_not, nullptr, Placement::in_place},
    {kOnnx, "IsNaN", 1, 1, 1, 1, infer_is_nan, make_is_nan},
    {kOnnx, "Where", 3, 3, 1, 1, infer_where, make_where, grad_where, Placement::in_place},
    {kOnnx, "Cast", 1, 1, 1, 1, infer_cast, make_cast, grad_cast},
    {kOnnx, "CastLike", 2, 2, 1, 1, infer_cast_like, make_cast, grad_cast, Placement::own, 0b10},
    {kFalaj, "CastLike", 2, 2, 1, 1, infer_cast_like, make_cast, grad_cast, Placement::own, 0b10},
};

}  // namespace

std::span<const OpDef> logic_ops() { return kOps; }

}  // namespace falaj::kernels
