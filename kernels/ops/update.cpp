// Optimizer steps as ops (ai.onnx.preview.training): Adagrad Adam Momentum. Inputs are the rate, the step's number, then for n tensors:
// values, gradients, states; outputs the new values and states.
#include <cmath>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

std::size_t states_of(const Node& node) { return node.op == "Adam" ? 2 : 1; }

Result<std::size_t> tensors(const OpCall& call) {
  std::size_t each = 2 + states_of(call.node);
  if (call.inputs.size() < 2 + each || (call.inputs.size() - 2) % each != 0) return invalid("values, gradients and states must be as many");
  return (call.inputs.size() - 2) / each;
}
Status infer_update(InferCall& call) {
  FALAJ_ASSIGN(auto n, tensors(call));
  FALAJ_TRY(check_float(call, 0));
  if (call.in(0).shape.elements() != 1 || call.in(1).shape.elements() != 1 || call.in(1).dtype != DType::i64)
    return invalid("the rate must be one float, the step one int64");
  for (std::size_t i = 2; i < call.inputs.size(); ++i) {
    FALAJ_TRY(check_same_dtype(call, 2, i));
    if (call.in(i).shape != call.in(2 + (i - 2) % n).shape) return invalid("a gradient or state has another shape than its value");
  }
  for (std::size_t i = 0; i < call.outputs.size() && i < n * (1 + states_of(call.node)); ++i)
    FALAJ_TRY(set_output(call, i, call.in(2).dtype, call.in(2 + i % n).shape));
  return {};
}

struct Settings {
  double alpha = 0, beta = 0, norm = 0, norm_post = 0, epsilon = 0, decay = 0;
  bool nesterov = false;
};
Result<Settings> settings(const Node& node) {
  Settings s;
  bool adam = node.op == "Adam";
  if (node.op == "Momentum") {
    FALAJ_ASSIGN(s.alpha, attr_float(node, "alpha"));
    FALAJ_ASSIGN(s.beta, attr_float(node, "beta"));
    FALAJ_ASSIGN(auto mode, attr_string(node, "mode"));
    if (mode != "standard" && mode != "nesterov") return invalid(format("attribute 'mode' is '{}'", mode));
    s.nesterov = mode == "nesterov";
  } else if (adam) {
    FALAJ_ASSIGN(s.alpha, attr_float(node, "alpha", static_cast<double>(0.9F)));
    FALAJ_ASSIGN(s.beta, attr_float(node, "beta", static_cast<double>(0.999F)));
    FALAJ_ASSIGN(s.norm_post, attr_float(node, "norm_coefficient_post", 0.0));
  } else {
    FALAJ_ASSIGN(s.decay, attr_float(node, "decay_factor", 0.0));
  }
  FALAJ_ASSIGN(s.norm, attr_float(node, "norm_coefficient", 0.0));
  // Of what is meant without it there are two opinions: 1e-6 by the standard's text, 1e-2 by its tests.
  if (adam && !node.attributes.contains("epsilon")) return Error{ErrorCode::unimplemented, "attribute 'epsilon' must be given"};
  FALAJ_ASSIGN(s.epsilon, attr_float(node, "epsilon", static_cast<double>(1e-6F)));
  return s;
}

Result<KernelPtr> make_update(const KernelCall& c) {
  FALAJ_ASSIGN(auto n, tensors(c));
  FALAJ_ASSIGN(auto given, settings(c.node));
  std::vector<std::int64_t> sizes;
  for (std::size_t k = 0; k < n; ++k) sizes.push_back(c.in(2 + k).shape.elements());
  bool all = c.outputs.size() == n * (1 + states_of(c.node));
  for (const auto& output : c.outputs) all = all && output.dtype != DType::undefined;
  if (!all) return Error{ErrorCode::unimplemented, "all outputs must be named"};
  int kind = c.node.op == "Adam" ? 0 : (c.node.op == "Adagrad" ? 1 : 2);
  return dispatch<double>(c.in(2).dtype, [&]<class T>() -> Result<KernelPtr> {
    if (c.in(0).dtype != DType::f64) return no_kernel(c.in(0).dtype);
    return make_kernel([sizes, n, kind, s = given](const Io& io) {
      double rate = *io.input<double>(0);
      auto step = static_cast<double>(*io.input<std::int64_t>(1));
      if (kind == 0 && step > 0) rate *= std::sqrt(1 - std::pow(s.beta, step)) / (1 - std::pow(s.alpha, step));
      if (kind == 1) rate /= 1 + step * s.decay;
      for (std::size_t k = 0; k < n; ++k) {
        for (std::int64_t i = 0; i < sizes[k]; ++i) {
          double x = io.input<double>(2 + k)[i];
          double g = s.norm * x + io.input<double>(2 + n + k)[i];
          double state = io.input<double>(2 + 2 * n + k)[i];
          double& to = io.output<double>(k)[i];
          double& next = io.output<double>(n + k)[i];
          if (kind == 0) {
            next = s.alpha * state + (1 - s.alpha) * g;
            double square = s.beta * io.input<double>(2 + 3 * n + k)[i] + (1 - s.beta) * g * g;
            io.output<double>(2 * n + k)[i] = square;
            to = (1 - s.norm_post) * (x - rate * next / (std::sqrt(square) + s.epsilon));
          } else if (kind == 1) {
            next = state + g * g;
            to = x - rate * g / (std::sqrt(next) + s.epsilon);
          } else {
            next = s.alpha * state + (step > 0 ? s.beta : 1) * g;
            to = x - rate * (s.nesterov ? g + s.alpha * next : next);
          }
        }
      }
    });
  });
}

constexpr OpDef kOps[] = {
    {kOnnxTraining, "Adagrad", 3, kVariadic, 1, kVariadic, infer_update, make_update},
    {kOnnxTraining, "Adam", 3, kVariadic, 1, kVariadic, infer_update, make_update},
    {kOnnxTraining, "Momentum", 3, kVariadic, 1, kVariadic, infer_update, make_update},
};

}  // namespace

std::span<const OpDef> update_ops() { return kOps; }

}  // namespace falaj::kernels
