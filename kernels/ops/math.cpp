// Functions of one element that need no speed of their own: trigonometry, rounding, and activations beyond the common ones. Computed in
// double, whatever the type.
#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

// f(x, a, b) and its slope there, a and b being attributes of the op. At a kink the slope is that of the side PyTorch takes.
using Curve = double (*)(double x, double a, double b);
struct Function {
  std::string_view op;
  Curve f, slope;
  std::string_view a_name = {}, b_name = {};
  double a = 0, b = 0;
};

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

double sigmoid(double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }
double mish_slope(double x) {
  double t = std::tanh(softplus(x));
  return t + x * (1 - t * t) * sigmoid(x);
}

constexpr double kSeluAlpha = 1.67326319217681884765625;
constexpr double kSeluGamma = 1.05070102214813232421875;

#define FALAJ_CURVE(expression) [](double x, [[maybe_unused]] double a, [[maybe_unused]] double b) -> double { return expression; }
constexpr Function kFunctions[] = {
    {"Sin", FALAJ_CURVE(std::sin(x)), FALAJ_CURVE(std::cos(x))},
    {"Cos", FALAJ_CURVE(std::cos(x)), FALAJ_CURVE(-std::sin(x))},
    {"Tan", FALAJ_CURVE(std::tan(x)), FALAJ_CURVE(1 + std::tan(x) * std::tan(x))},
    {"Asin", FALAJ_CURVE(std::asin(x)), FALAJ_CURVE(1 / std::sqrt(1 - x * x))},
    {"Acos", FALAJ_CURVE(std::acos(x)), FALAJ_CURVE(-1 / std::sqrt(1 - x * x))},
    {"Atan", FALAJ_CURVE(std::atan(x)), FALAJ_CURVE(1 / (1 + x * x))},
    {"Sinh", FALAJ_CURVE(std::sinh(x)), FALAJ_CURVE(std::cosh(x))},
    {"Cosh", FALAJ_CURVE(std::cosh(x)), FALAJ_CURVE(std::sinh(x))},
    {"Asinh", FALAJ_CURVE(std::asinh(x)), FALAJ_CURVE(1 / std::sqrt(x * x + 1))},
    {"Acosh", FALAJ_CURVE(std::acosh(x)), FALAJ_CURVE(1 / (std::sqrt(x - 1) * std::sqrt(x + 1)))},
    {"Atanh", FALAJ_CURVE(std::atanh(x)), FALAJ_CURVE(1 / (1 - x * x))},
    {"Round", FALAJ_CURVE(std::nearbyint(x)), nullptr},  // ties to even
    {"Softsign", FALAJ_CURVE(x / (1 + std::abs(x))), FALAJ_CURVE(1 / ((1 + std::abs(x)) * (1 + std::abs(x))))},
    {"Elu", FALAJ_CURVE(x < 0 ? a * std::expm1(x) : x), FALAJ_CURVE(x < 0 ? a * std::exp(x) : 1), "alpha", {}, 1.0},
    {"Selu", FALAJ_CURVE(b*(x > 0 ? x : a * std::expm1(x))), FALAJ_CURVE(b*(x > 0 ? 1 : a * std::exp(x))), "alpha", "gamma", kSeluAlpha,
     kSeluGamma},
    {"Celu",
     FALAJ_CURVE(std::max(x, 0.0) + std::min(0.0, a* std::expm1(x / a))),
     FALAJ_CURVE(x > 0 ? 1 : std::exp(x / a)),
     "alpha",
     {},
     1.0},
    {"HardSigmoid", FALAJ_CURVE(std::max(0.0, std::min(1.0, a* x + b))), FALAJ_CURVE(a* x + b > 0 && a * x + b < 1 ? a : 0), "alpha",
     "beta", 0.2, 0.5},
    {"HardSwish", FALAJ_CURVE(x* std::max(0.0, std::min(1.0, x / 6 + 0.5))), FALAJ_CURVE(x <= -3 ? 0 : (x >= 3 ? 1 : x / 3 + 0.5))},
    {"Mish", FALAJ_CURVE(x* std::tanh(softplus(x))), FALAJ_CURVE(mish_slope(x))},
    {"Swish", FALAJ_CURVE(x* sigmoid(a* x)), FALAJ_CURVE(sigmoid(a* x) * (1 + a * x * (1 - sigmoid(a * x)))), "alpha", {}, 1.0},
    {"ThresholdedRelu", FALAJ_CURVE(x > a ? x : 0), FALAJ_CURVE(x > a ? 1 : 0), "alpha", {}, 1.0},
    {"Shrink", FALAJ_CURVE(x < -a ? x + b : (x > a ? x - b : 0)), FALAJ_CURVE(x<-a || x> a ? 1 : 0), "lambd", "bias", 0.5, 0.0},
};
#undef FALAJ_CURVE

struct Bound {  // a function with its attributes read
  const Function* function;
  double a, b;
};
Result<Bound> function_of(const Node& node, std::string_view op) {
  for (const Function& function : kFunctions) {
    if (function.op != op) continue;
    Bound bound{&function, function.a, function.b};
    if (!function.a_name.empty()) {
      FALAJ_ASSIGN(bound.a, attr_float(node, function.a_name, bound.a));
    }
    if (!function.b_name.empty()) {
      FALAJ_ASSIGN(bound.b, attr_float(node, function.b_name, bound.b));
    }
    return bound;
  }
  return Error{ErrorCode::unimplemented, format("'{}' is no function of one element", op)};
}

Result<KernelPtr> make_function(const KernelCall& c) {
  FALAJ_ASSIGN(const Bound bound, function_of(c.node, c.node.op));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return unary_kernel<T>(c, [f = bound.function->f, a = bound.a, b = bound.b](T x) { return f(x, a, b); });
  });
}
Status infer_function(InferCall& call) { return call.node.op == "Shrink" ? infer_numeric(call) : infer_float(call); }

// dy, x -> dx, for the function that the attribute names.
Status infer_function_grad(InferCall& call) {
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  if (call.in(0).shape != call.in(1).shape) return invalid("the gradient does not fit the input");
  return infer_float(call);
}
Result<KernelPtr> make_function_grad(const KernelCall& c) {
  FALAJ_ASSIGN(const auto op, attr_string(c.node, "function"));
  FALAJ_ASSIGN(const Bound bound, function_of(c.node, op));
  if (bound.function->slope == nullptr) return invalid(format("'{}' has no slope", op));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([n = c.in(0).shape.elements(), f = bound.function->slope, a = bound.a, b = bound.b](const Io& io) {
      for (std::int64_t i = 0; i < n; ++i) io.output<T>(0)[i] = io.input<T>(0)[i] * f(io.input<T>(1)[i], a, b);
    });
  });
}
Status grad_function(GradientCall& g) {
  FALAJ_ASSIGN(const Bound bound, function_of(g.node(), g.node().op));
  if (bound.function->slope == nullptr) return g.stop(), Status{};
  Attributes attributes = g.node().attributes;
  attributes.insert_or_assign("function", g.node().op);
  return g.set(0, g.add_falaj("FunctionGrad", {g.dy(), g.input(0)}, std::move(attributes))), Status{};
}

// --- IsInf ------------------------------------------------------------------------------------------------------------------

Status infer_is_inf(InferCall& call) {
  FALAJ_TRY(infer_float(call));
  return set_output(call, 0, DType::boolean, call.in(0).shape);
}
Result<KernelPtr> make_is_inf(const KernelCall& c) {
  FALAJ_ASSIGN(auto negative, attr_int(c.node, "detect_negative", 1));
  FALAJ_ASSIGN(auto positive, attr_int(c.node, "detect_positive", 1));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return unary_kernel<T>(c, [negative, positive](T x) -> bool { return std::isinf(x) && (x > 0 ? positive != 0 : negative != 0); });
  });
}

// --- PRelu: the slope broadcasts to x ------------------------------------------------------------------------------------------

Shape slope_shape(const OpCall& call) {
  Shape slope = call.in(1).shape;
  // Before opset 7 a slope for each channel has no dimensions behind it.
  if (call.opset < 7 && slope.rank() == 1 && slope[0] != 1) {
    for (std::size_t d = 2; d < call.in(0).shape.rank(); ++d) slope.push_back(1);
  }
  return slope;
}
Status infer_prelu(InferCall& call) {
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_TRY(infer_numeric(call));
  FALAJ_ASSIGN(Shape both, broadcast(call.in(0).shape, slope_shape(call)));
  if (both != call.in(0).shape)
    return invalid(format("the slope {} does not broadcast to {}", to_string(call.in(1).shape), to_string(call.in(0).shape)));
  return {};
}
Result<KernelPtr> make_prelu(const KernelCall& c) {
  return dispatch<double, std::int64_t>(c.in(0).dtype, [&]<class T>() {
    const Shape& out = c.outputs[0].shape;
    Shape slope = slope_shape(c);
    return make_kernel([walk = broadcast_walk<2>(out, {&out, &slope})](const Io& io) {
      walk([&](const auto& at, std::int64_t n, const auto& step) {
        for (std::int64_t i = 0; i < n; ++i) {
          T x = io.input<T>(0)[at[0] + i * step[0]];
          io.output<T>(0)[at[0] + i * step[0]] = x < T{0} ? x * io.input<T>(1)[at[1] + i * step[1]] : x;
        }
      });
    });
  });
}

// dy, x, slope -> dx, and dslope as large as x (the caller sums it).
Status infer_prelu_grad(InferCall& call) {
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_TRY(check_same_dtype(call, 0, 2));
  FALAJ_ASSIGN(Shape both, broadcast(call.in(1).shape, call.in(2).shape));
  if (both != call.in(1).shape || call.in(0).shape != both) return invalid("the gradient, the input and the slope do not fit");
  FALAJ_TRY(set_output(call, 0, call.in(0).dtype, both));
  return set_output(call, 1, call.in(0).dtype, both);
}
Result<KernelPtr> make_prelu_grad(const KernelCall& c) {
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    const Shape& out = c.in(1).shape;
    return make_kernel([walk = broadcast_walk<2>(out, {&out, &c.in(2).shape}), two = c.outputs.size() > 1](const Io& io) {
      walk([&](const auto& at, std::int64_t n, const auto& step) {
        for (std::int64_t i = 0; i < n; ++i) {
          const std::int64_t here = at[0] + i * step[0];
          const T x = io.input<T>(1)[here];
          const T dy = io.input<T>(0)[here];
          if (io.out[0] != nullptr) io.output<T>(0)[here] = x < 0 ? dy * io.input<T>(2)[at[1] + i * step[1]] : dy;
          if (two && io.out[1] != nullptr) io.output<T>(1)[here] = x < 0 ? dy * x : 0;
        }
      });
    });
  });
}
Status grad_prelu(GradientCall& g) {
  const auto d = g.add_many(kFalaj, "PReluGrad", {g.dy(), g.input(0), g.input(1)}, {}, 2);
  if (g.wants(0)) g.set(0, d[0]);
  if (g.wants(1)) g.set(1, reduce_to_input(g, d[1], 1));
  return {};
}

constexpr OpDef function_op(std::string_view op) {
  return {kOnnx, op, 1, 1, 1, 1, infer_function, make_function, grad_function, Placement::in_place};
}
constexpr OpDef kOps[] = {
    function_op("Sin"),
    function_op("Cos"),
    function_op("Tan"),
    function_op("Asin"),
    function_op("Acos"),
    function_op("Atan"),
    function_op("Sinh"),
    function_op("Cosh"),
    function_op("Asinh"),
    function_op("Acosh"),
    function_op("Atanh"),
    function_op("Round"),
    function_op("Softsign"),
    function_op("Elu"),
    function_op("Selu"),
    function_op("Celu"),
    function_op("HardSigmoid"),
    function_op("HardSwish"),
    function_op("Mish"),
    function_op("Swish"),
    function_op("ThresholdedRelu"),
    function_op("Shrink"),
    {kOnnx, "IsInf", 1, 1, 1, 1, infer_is_inf, make_is_inf},
    {kOnnx, "PRelu", 2, 2, 1, 1, infer_prelu, make_prelu, grad_prelu},
    {kFalaj, "FunctionGrad", 2, 2, 1, 1, infer_function_grad, make_function_grad, nullptr, Placement::in_place},
    {kFalaj, "PReluGrad", 3, 3, 1, 2, infer_prelu_grad, make_prelu_grad},
};

}  // namespace

std::span<const OpDef> math_ops() { return kOps; }

}  // namespace falaj::kernels
