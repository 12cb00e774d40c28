// Activations and their gradients. Where the slope can be had from the output (Relu, Sigmoid, Tanh, LeakyRelu with a positive alpha)
// the gradient reads the output, so that the value before the activation is not kept and the activation can be fused.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

template <class T>
T sigmoid(T x) {
  // Two forms, so that exp never overflows.
  if (x >= T{0}) return T{1} / (T{1} + std::exp(-x));
  T e = std::exp(x);
  return e / (T{1} + e);
}
template <class T>
T softplus(T x) {
  return std::max(x, T{0}) + std::log1p(std::exp(-std::abs(x)));
}

constexpr double kGeluTanhScale = 0.7978845608028654;  // sqrt(2 / pi)
constexpr double kGeluTanhCubic = 0.044715;

template <class T>
T gelu(T x, bool tanh_form) {
  if (!tanh_form) return static_cast<T>(0.5) * x * (T{1} + std::erf(x * static_cast<T>(std::numbers::sqrt2 / 2)));
  T inner = static_cast<T>(kGeluTanhScale) * (x + static_cast<T>(kGeluTanhCubic) * x * x * x);
  return static_cast<T>(0.5) * x * (T{1} + std::tanh(inner));
}
template <class T>
T gelu_slope(T x, bool tanh_form) {
  if (!tanh_form) {
    T cdf = static_cast<T>(0.5) * (T{1} + std::erf(x * static_cast<T>(std::numbers::sqrt2 / 2)));
    T pdf = std::exp(static_cast<T>(-0.5) * x * x) * static_cast<T>(0.5 * std::numbers::inv_sqrtpi * std::numbers::sqrt2);
    return cdf + x * pdf;
  }
  T inner = static_cast<T>(kGeluTanhScale) * (x + static_cast<T>(kGeluTanhCubic) * x * x * x);
  T t = std::tanh(inner);
  T inner_slope = static_cast<T>(kGeluTanhScale) * (T{1} + static_cast<T>(3 * kGeluTanhCubic) * x * x);
  return static_cast<T>(0.5) * (T{1} + t) + static_cast<T>(0.5) * x * (T{1} - t * t) * inner_slope;
}

Result<bool> tanh_form(const Node& node) {
  FALAJ_ASSIGN(auto text, attr_string(node, "approximate", "none"));
  if (text != "none" && text != "tanh") return invalid(format("attribute 'approximate' is '{}'; it must be 'none' or 'tanh'", text));
  return text == "tanh";
}

Result<KernelPtr> make_relu(const KernelCall& c) {
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() { return unary_kernel<T>(c, [](T x) { return x < T{0} ? T{0} : x; }); });
}
Result<KernelPtr> make_sigmoid(const KernelCall& c) {
  return dispatch_float(c.in(0).dtype, [&]<class T>() { return unary_kernel<T>(c, [](T x) { return sigmoid(x); }); });
}
Result<KernelPtr> make_tanh(const KernelCall& c) {
  return dispatch_float(c.in(0).dtype, [&]<class T>() { return unary_kernel<T>(c, [](T x) -> T { return std::tanh(x); }); });
}
Result<KernelPtr> make_softplus(const KernelCall& c) {
  return dispatch_float(c.in(0).dtype, [&]<class T>() { return unary_kernel<T>(c, [](T x) { return softplus(x); }); });
}
Result<KernelPtr> make_leaky_relu(const KernelCall& c) {
  FALAJ_ASSIGN(double alpha, attr_float(c.node, "alpha", static_cast<double>(0.01F)));
  return dispatch_float(c.in(0).dtype,
                        [&]<class T>() { return unary_kernel<T>(c, [a = static_cast<T>(alpha)](T x) { return x < T{0} ? a * x : x; }); });
}
Result<KernelPtr> make_gelu(const KernelCall& c) {
  FALAJ_ASSIGN(bool form, tanh_form(c.node));
  return dispatch_float(c.in(0).dtype, [&]<class T>() { return unary_kernel<T>(c, [form](T x) { return gelu(x, form); }); });
}

// --- gradients: dx = f(dy, value), value being the input or the output -------------------------------------------------------

template <class T, class F>
KernelPtr slope_kernel(const KernelCall& c, F f) {
  return make_kernel([n = c.in(0).shape.elements(), f](const Io& io) {
    const T* dy = io.input<T>(0);
    const T* v = io.input<T>(1);
    T* dx = io.output<T>(0);
    for (std::int64_t i = 0; i < n; ++i) dx[i] = f(dy[i], v[i]);
  });
}
Result<KernelPtr> make_relu_grad(const KernelCall& c) {
  return dispatch_float(c.in(0).dtype, [&]<class T>() { return slope_kernel<T>(c, [](T dy, T y) { return y > T{0} ? dy : T{0}; }); });
}
Result<KernelPtr> make_sigmoid_grad(const KernelCall& c) {
  return dispatch_float(c.in(0).dtype, [&]<class T>() { return slope_kernel<T>(c, [](T dy, T y) { return dy * y * (T{1} - y); }); });
}
Result<KernelPtr> make_tanh_grad(const KernelCall& c) {
  return dispatch_float(c.in(0).dtype, [&]<class T>() { return slope_kernel<T>(c, [](T dy, T y) { return dy * (T{1} - y * y); }); });
}
Result<KernelPtr> make_softplus_grad(const KernelCall& c) {
  return dispatch_float(c.in(0).dtype, [&]<class T>() { return slope_kernel<T>(c, [](T dy, T x) { return dy * sigmoid(x); }); });
}
Result<KernelPtr> make_leaky_relu_grad(const KernelCall& c) {
  FALAJ_ASSIGN(double alpha, attr_float(c.node, "alpha", static_cast<double>(0.01F)));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return slope_kernel<T>(c, [a = static_cast<T>(alpha)](T dy, T v) { return v < T{0} ? a * dy : dy; });
  });
}
Result<KernelPtr> make_gelu_grad(const KernelCall& c) {
  FALAJ_ASSIGN(bool form, tanh_form(c.node));
  return dispatch_float(c.in(0).dtype,
                        [&]<class T>() { return slope_kernel<T>(c, [form](T dy, T x) { return dy * gelu_slope(x, form); }); });
}

Status grad_relu(GradientCall& g) { return g.set(0, g.add_falaj("ReluGrad", {g.dy(), g.output(0)})), Status{}; }
Status grad_sigmoid(GradientCall& g) { return g.set(0, g.add_falaj("SigmoidGrad", {g.dy(), g.output(0)})), Status{}; }
Status grad_tanh(GradientCall& g) { return g.set(0, g.add_falaj("TanhGrad", {g.dy(), g.output(0)})), Status{}; }
Status grad_softplus(GradientCall& g) { return g.set(0, g.add_falaj("SoftplusGrad", {g.dy(), g.input(0)})), Status{}; }
Status grad_leaky_relu(GradientCall& g) {
  FALAJ_ASSIGN(double alpha, attr_float(g.node(), "alpha", static_cast<double>(0.01F)));
  // The output has the input's sign only while alpha is not negative.
  return g.set(0, g.add_falaj("LeakyReluGrad", {g.dy(), alpha >= 0 ? g.output(0) : g.input(0)}, g.node().attributes)), Status{};
}
Status grad_gelu(GradientCall& g) { return g.set(0, g.add_falaj("GeluGrad", {g.dy(), g.input(0)}, g.node().attributes)), Status{}; }

Status infer_slope(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  if (call.in(0).shape != call.in(1).shape)
    return invalid(format("gradient {} and value {} must have one shape", to_string(call.in(0).shape), to_string(call.in(1).shape)));
  return infer_same(call);
}

constexpr OpDef kOps[] = {
    {kOnnx, "Relu", 1, 1, 1, 1, infer_numeric, make_relu, grad_relu, Placement::in_place},
    {kOnnx, "LeakyRelu", 1, 1, 1, 1, infer_float, make_leaky_relu, grad_leaky_relu, Placement::in_place},
    {kOnnx, "Sigmoid", 1, 1, 1, 1, infer_float, make_sigmoid, grad_sigmoid, Placement::in_place},
    {kOnnx, "Tanh", 1, 1, 1, 1, infer_float, make_tanh, grad_tanh, Placement::in_place},
    {kOnnx, "Gelu", 1, 1, 1, 1, infer_float, make_gelu, grad_gelu, Placement::in_place},
    {kOnnx, "Softplus", 1, 1, 1, 1, infer_float, make_softplus, grad_softplus, Placement::in_place},
    {kFalaj, "ReluGrad", 2, 2, 1, 1, infer_slope, make_relu_grad, nullptr, Placement::in_place},
    {kFalaj, "LeakyReluGrad", 2, 2, 1, 1, infer_slope, make_leaky_relu_grad, nullptr, Placement::in_place},
    {kFalaj, "SigmoidGrad", 2, 2, 1, 1, infer_slope, make_sigmoid_grad, nullptr, Placement::in_place},
    {kFalaj, "TanhGrad", 2, 2, 1, 1, infer_slope, make_tanh_grad, nullptr, Placement::in_place},
    {kFalaj, "GeluGrad", 2, 2, 1, 1, infer_slope, make_gelu_grad, nullptr, Placement::in_place},
    {kFalaj, "SoftplusGrad", 2, 2, 1, 1, infer_slope, make_softplus_grad, nullptr, Placement::in_place},
};

}  // namespace

std::span<const OpDef> activation_ops() { return kOps; }

}  // namespace falaj::kernels
