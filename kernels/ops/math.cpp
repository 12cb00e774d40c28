// Functions of one element that need no speed of their own: trigonometry, rounding, and activations beyond the common ones. Computed in
// double, whatever the type.
#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

// f(x, a, b), a and b being attributes of the op.
struct Function {
  std::string_view op;
  double (*f)(double x, double a, double b);
  std::string_view a_name = {}, b_name = {};
  double a = 0, b = 0;
};

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

constexpr double kSeluAlpha = 1.67326319217681884765625;
constexpr double kSeluGamma = 1.05070102214813232421875;

const Function kFunctions[] = {
    {"Sin", [](double x, double, double) { return std::sin(x); }},
    {"Cos", [](double x, double, double) { return std::cos(x); }},
    {"Tan", [](double x, double, double) { return std::tan(x); }},
    {"Asin", [](double x, double, double) { return std::asin(x); }},
    {"Acos", [](double x, double, double) { return std::acos(x); }},
    {"Atan", [](double x, double, double) { return std::atan(x); }},
    {"Sinh", [](double x, double, double) { return std::sinh(x); }},
    {"Cosh", [](double x, double, double) { return std::cosh(x); }},
    {"Asinh", [](double x, double, double) { return std::asinh(x); }},
    {"Acosh", [](double x, double, double) { return std::acosh(x); }},
    {"Atanh", [](double x, double, double) { return std::atanh(x); }},
    {"Round", [](double x, double, double) { return std::nearbyint(x); }},  // ties to even
    {"Softsign", [](double x, double, double) { return x / (1 + std::abs(x)); }},
    {"Elu", [](double x, double a, double) { return x < 0 ? a * std::expm1(x) : x; }, "alpha", {}, 1.0},
    {"Selu", [](double x, double a, double b) { return b * (x > 0 ? x : a * std::expm1(x)); }, "alpha", "gamma", kSeluAlpha, kSeluGamma},
    {"Celu", [](double x, double a, double) { return std::max(x, 0.0) + std::min(0.0, a * std::expm1(x / a)); }, "alpha", {}, 1.0},
    {"HardSigmoid", [](double x, double a, double b) { return std::max(0.0, std::min(1.0, a * x + b)); }, "alpha", "beta", 0.2, 0.5},
    {"HardSwish", [](double x, double, double) { return x * std::max(0.0, std::min(1.0, x / 6 + 0.5)); }},
    {"Mish", [](double x, double, double) { return x * std::tanh(softplus(x)); }},
    {"Swish", [](double x, double a, double) { return x / (1 + std::exp(-a * x)); }, "alpha", {}, 1.0},
    {"ThresholdedRelu", [](double x, double a, double) { return x > a ? x : 0.0; }, "alpha", {}, 1.0},
    {"Shrink", [](double x, double a, double b) { return x < -a ? x + b : (x > a ? x - b : 0.0); }, "lambd", "bias", 0.5, 0.0},
};

Result<KernelPtr> make_function(const KernelCall& c) {
  for (const Function& function : kFunctions) {
    if (function.op != c.node.op) continue;
    double a = function.a;
    double b = function.b;
    if (!function.a_name.empty()) {
      FALAJ_ASSIGN(a, attr_float(c.node, function.a_name, a));
    }
    if (!function.b_name.empty()) {
      FALAJ_ASSIGN(b, attr_float(c.node, function.b_name, b));
    }
    return dispatch<double>(c.in(0).dtype,
                            [&]<class T>() { return unary_kernel<T>(c, [f = function.f, a, b](T x) { return f(x, a, b); }); });
  }
  return no_kernel(c.in(0).dtype);
}
Status infer_function(InferCall& call) { return call.node.op == "Shrink" ? infer_numeric(call) : infer_float(call); }

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

constexpr OpDef function_op(std::string_view op) {
  return {kOnnx, op, 1, 1, 1, 1, infer_function, make_function, nullptr, Placement::in_place};
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
    {kOnnx, "PRelu", 2, 2, 1, 1, infer_prelu, make_prelu},
};

}  // namespace

std::span<const OpDef> math_ops() { return kOps; }

}  // namespace falaj::kernels
