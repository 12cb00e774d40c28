// Losses of ai.onnx: NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss, with class weights, ignored labels and reductions.
#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

enum class Reduce : std::uint8_t { none, sum, mean };
struct Criterion {
  std::int64_t batch = 0, classes = 0, inner = 1;  // scores are [batch, classes, inner], labels [batch, inner]
  Shape labels;
  Reduce reduce = Reduce::mean;
  std::optional<std::int64_t> ignore;
  bool i64 = true, weighted = false;
};
Result<Criterion> criterion(const OpCall& call) {
  const Shape& x = call.in(0).shape;
  Criterion c;
  FALAJ_TRY(check_dtype(call, 1, {DType::i64, DType::i32}));
  if (x.rank() < 2 || x[1] < 1) return invalid(format("the scores {} need a batch and classes", to_string(x)));
  c.batch = x[0];
  c.classes = x[1];
  c.inner = x.elements(2, x.rank());
  c.labels = x;
  c.labels.erase(1);
  if (call.in(1).shape != c.labels)
    return invalid(format("the labels are {}; they must be {}", to_string(call.in(1).shape), to_string(c.labels)));
  c.weighted = call.has(2);
  if (c.weighted && call.in(2).shape != Shape{c.classes}) return invalid("one weight for each class is needed");
  c.i64 = call.in(1).dtype == DType::i64;
  FALAJ_ASSIGN(auto text, attr_string(call.node, "reduction", "mean"));
  if (text != "mean" && text != "sum" && text != "none") return invalid(format("attribute 'reduction' is '{}'", text));
  c.reduce = text == "mean" ? Reduce::mean : (text == "sum" ? Reduce::sum : Reduce::none);
  if (call.node.attributes.contains("ignore_index")) {
    FALAJ_ASSIGN(c.ignore, attr_int(call.node, "ignore_index"));
  }
  return c;
}

Status infer_criterion(InferCall& call) {
  FALAJ_TRY(check_float(call, 0));
  FALAJ_ASSIGN(auto c, criterion(call));
  FALAJ_TRY(set_output(call, 0, call.in(0).dtype, c.reduce == Reduce::none ? c.labels : Shape{}));
  return set_output(call, 1, call.in(0).dtype, call.in(0).shape);
}

// From log-probabilities [batch, classes, inner].
void run_loss(const Criterion& c, const Io& io, const double* logs) {
  double total = 0;
  double weights = 0;
  for (std::int64_t i = 0; i < c.batch * c.inner; ++i) {
    std::int64_t label = index_at(io, 1, c.i64, i);
    double loss = 0;
    double weight = 0;
    if (!(c.ignore && *c.ignore == label)) {
      if (label < 0 || label >= c.classes) return io.fail(format("label {} at position {} is outside [0, {})", label, i, c.classes));
      weight = c.weighted ? io.input<double>(2)[label] : 1;
      loss = -weight * logs[(i / c.inner * c.classes + label) * c.inner + i % c.inner];
    }
    total += loss;
    weights += weight;
    if (c.reduce == Reduce::none) io.output<double>(0)[i] = loss;
  }
  if (c.reduce != Reduce::none) *io.output<double>(0) = c.reduce == Reduce::sum ? total : total / weights;
}

Result<KernelPtr> make_likelihood(const KernelCall& call) {
  FALAJ_ASSIGN(auto c, criterion(call));
  return dispatch<double>(call.in(0).dtype, [&]<class T>() { return make_kernel([c](const Io& io) { run_loss(c, io, io.input<T>(0)); }); });
}
Result<KernelPtr> make_cross_entropy(const KernelCall& call) {
  FALAJ_ASSIGN(auto c, criterion(call));
  auto bytes = static_cast<std::size_t>(call.in(0).shape.elements()) * sizeof(double);
  return dispatch<double>(call.in(0).dtype, [&]<class T>() {
    return make_kernel(
        [c, two = call.outputs.size() > 1](const Io& io) {
          auto* logs = reinterpret_cast<double*>(io.scratch);
          for (std::int64_t i = 0; i < c.batch * c.inner; ++i) {
            std::int64_t first = i / c.inner * c.classes * c.inner + i % c.inner;
            const double* x = io.input<double>(0) + first;
            double top = x[0];
            for (std::int64_t k = 1; k < c.classes; ++k) top = std::max(top, x[k * c.inner]);
            double sum = 0;
            for (std::int64_t k = 0; k < c.classes; ++k) sum += std::exp(x[k * c.inner] - top);
            for (std::int64_t k = 0; k < c.classes; ++k) logs[first + k * c.inner] = x[k * c.inner] - top - std::log(sum);
          }
          if (two && io.out[1] != nullptr) std::copy_n(logs, c.batch * c.classes * c.inner, io.output<double>(1));
          run_loss(c, io, logs);
        },
        bytes);
  });
}

// --- gradients: d loss, scores, labels, [weights] -> d scores -----------------------------------------------------------------------

Result<Criterion> grad_criterion(const OpCall& call) {
  const std::vector<ValueType> forward(call.inputs.begin() + 1, call.inputs.end());
  return criterion(OpCall{call.node, forward, call.opset});
}
Status infer_criterion_grad(InferCall& call) {
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN(auto c, grad_criterion(call));
  if (call.in(0).shape != (c.reduce == Reduce::none ? c.labels : Shape{})) return invalid("the gradient does not fit the loss");
  return set_output(call, 0, call.in(0).dtype, call.in(1).shape);
}

void run_loss_grad(const Criterion& c, bool softmax, const Io& io) {
  const double* x = io.input<double>(1);
  double* dx = io.output<double>(0);
  auto weight_of = [&](std::int64_t label) {
    if (c.ignore && *c.ignore == label) return 0.0;
    return c.weighted ? io.input<double>(3)[label] : 1.0;
  };
  double weights = 0;
  for (std::int64_t i = 0; i < c.batch * c.inner; ++i) {
    std::int64_t label = index_at(io, 2, c.i64, i);
    if (!(c.ignore && *c.ignore == label) && (label < 0 || label >= c.classes))
      return io.fail(format("label {} at position {} is outside [0, {})", label, i, c.classes));
    weights += weight_of(label);
  }
  for (std::int64_t i = 0; i < c.batch * c.inner; ++i) {
    std::int64_t label = index_at(io, 2, c.i64, i);
    std::int64_t first = i / c.inner * c.classes * c.inner + i % c.inner;
    double factor = weight_of(label) * io.input<double>(0)[c.reduce == Reduce::none ? i : 0];
    if (c.reduce == Reduce::mean) factor /= weights;
    double top = x[first];
    double sum = 0;
    for (std::int64_t k = 1; softmax && k < c.classes; ++k) top = std::max(top, x[first + k * c.inner]);
    for (std::int64_t k = 0; softmax && k < c.classes; ++k) sum += std::exp(x[first + k * c.inner] - top);
    for (std::int64_t k = 0; k < c.classes; ++k) {
      double share = softmax ? std::exp(x[first + k * c.inner] - top) / sum : 0.0;
      dx[first + k * c.inner] = factor == 0 ? 0 : factor * (share - (k == label ? 1.0 : 0.0));
    }
  }
}
Result<KernelPtr> make_criterion_grad(const KernelCall& call) {
  FALAJ_ASSIGN(auto c, grad_criterion(call));
  const bool softmax = call.node.op == "SoftmaxCrossEntropyLossGrad";
  return dispatch<double>(call.in(0).dtype,
                          [&]<class T>() { return make_kernel([c, softmax](const Io& io) { run_loss_grad(c, softmax, io); }); });
}
Status grad_of_criterion(GradientCall& g) {
  const bool through_scores = g.node().outputs.size() > 1 && !g.dy(1).empty();
  if (g.dy().empty() || through_scores)
    return Error{ErrorCode::unimplemented, "a gradient through the log-probabilities: take a LogSoftmax of its own for them"};
  if (g.wants(2)) return Error{ErrorCode::unimplemented, "no gradient for the weights of classes"};
  std::vector<std::string> inputs = {g.dy()};
  inputs.insert(inputs.end(), g.node().inputs.begin(), g.node().inputs.end());
  return g.set(0, g.add_falaj(g.node().op + "Grad", std::move(inputs), g.node().attributes)), Status{};
}

constexpr OpDef kOps[] = {
    {kOnnx, "NegativeLogLikelihoodLoss", 2, 3, 1, 1, infer_criterion, make_likelihood, grad_of_criterion},
    {kOnnx, "SoftmaxCrossEntropyLoss", 2, 3, 1, 2, infer_criterion, make_cross_entropy, grad_of_criterion},
    {kFalaj, "NegativeLogLikelihoodLossGrad", 3, 4, 1, 1, infer_criterion_grad, make_criterion_grad},
    {kFalaj, "SoftmaxCrossEntropyLossGrad", 3, 4, 1, 1, infer_criterion_grad, make_criterion_grad},
};

}  // namespace

std::span<const OpDef> criterion_ops() { return kOps; }

}  // namespace falaj::kernels
