// Losses, of our own domain: SigmoidCrossEntropy, SoftmaxCrossEntropy, MeanSquare, MeanAbsolute, Huber, each with its gradient. They take
// logits, so that no probability is ever 0 or 1. Sums run in double, in row order.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

// Inputs before the loss's own (its gradient has d loss first).
Result<bool> is_sum(const Node& node) {
  FALAJ_ASSIGN(auto text, attr_string(node, "reduction", "mean"));
  if (text != "mean" && text != "sum") return invalid(format("attribute 'reduction' is '{}'; it must be 'mean' or 'sum'", text));
  return text == "sum";
}

// Logits, targets of the same shape and type, optional weights of the same shape.
Status check_pointwise(const OpCall& call, std::size_t first) {
  FALAJ_TRY(check_dtype(call, first, {DType::f32, DType::f64}));
  for (std::size_t i = first + 1; i < call.inputs.size(); ++i) {
    if (!call.has(i)) continue;
    FALAJ_TRY(check_same_dtype(call, first, i));
    if (call.in(i).shape != call.in(first).shape) {
      return invalid(
          format("'{}' has shape {}; it must be {}", call.node.inputs[i], to_string(call.in(i).shape), to_string(call.in(first).shape)));
    }
  }
  FALAJ_ASSIGN([[maybe_unused]] bool sum, is_sum(call.node));
  return {};
}
Status infer_pointwise(InferCall& call) {
  FALAJ_TRY(check_pointwise(call, 0));
  return set_output(call, 0, call.in(0).dtype, {});
}
Status infer_pointwise_grad(InferCall& call) {
  FALAJ_TRY(check_pointwise(call, 1));
  return set_output(call, 0, call.in(1).dtype, call.in(1).shape);
}

// Loss and slope at x; `delta` is Huber's.
using PointLoss = double (*)(double x, double target, double delta);
double sigmoid_loss(double x, double target, double) { return std::max(x, 0.0) - x * target + std::log1p(std::exp(-std::abs(x))); }
double sigmoid_slope(double x, double target, double) {
  return (x >= 0 ? 1.0 / (1.0 + std::exp(-x)) : std::exp(x) / (1.0 + std::exp(x))) - target;
}
double square_loss(double x, double target, double) { return (x - target) * (x - target); }
double square_slope(double x, double target, double) { return 2.0 * (x - target); }
double absolute_loss(double x, double target, double) { return std::abs(x - target); }
double absolute_slope(double x, double target, double) { return x > target ? 1.0 : (x < target ? -1.0 : x - target); }
double huber_loss(double x, double target, double delta) {
  double d = std::abs(x - target);
  return d <= delta ? 0.5 * d * d : delta * (d - 0.5 * delta);
}
double huber_slope(double x, double target, double delta) {
  double d = x - target;
  return std::abs(d) <= delta ? d : std::copysign(delta, d);
}

Result<double> huber_delta(const Node& node) {
  FALAJ_ASSIGN(double delta, attr_float(node, "delta", 1.0));
  if (!(delta > 0)) return invalid(format("attribute 'delta' is {}; it must be larger than 0", delta));
  return delta;
}
template <PointLoss kLoss>
Result<KernelPtr> make_pointwise(const KernelCall& c) {
  FALAJ_ASSIGN(bool sum, is_sum(c.node));
  FALAJ_ASSIGN(double delta, huber_delta(c.node));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel([n = c.in(0).shape.elements(), sum, delta, weighted = c.has(2)](const Io& io) {
      const T* x = io.input<T>(0);
      const T* target = io.input<T>(1);
      const T* weight = weighted ? io.input<T>(2) : nullptr;
      double total = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        double loss = kLoss(static_cast<double>(x[i]), static_cast<double>(target[i]), delta);
        total += weight != nullptr ? loss * static_cast<double>(weight[i]) : loss;
      }
      *io.output<T>(0) = static_cast<T>(sum ? total : total / static_cast<double>(n));
    });
  });
}
template <PointLoss kSlope>
Result<KernelPtr> make_pointwise_grad(const KernelCall& c) {
  FALAJ_ASSIGN(bool sum, is_sum(c.node));
  FALAJ_ASSIGN(double delta, huber_delta(c.node));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel([n = c.in(1).shape.elements(), sum, delta, weighted = c.has(3)](const Io& io) {
      double scale = static_cast<double>(*io.input<T>(0)) / (sum ? 1.0 : static_cast<double>(n));
      const T* x = io.input<T>(1);
      const T* target = io.input<T>(2);
      const T* weight = weighted ? io.input<T>(3) : nullptr;
      T* dx = io.output<T>(0);
      for (std::int64_t i = 0; i < n; ++i) {
        double slope = kSlope(static_cast<double>(x[i]), static_cast<double>(target[i]), delta) * scale;
        dx[i] = static_cast<T>(weight != nullptr ? slope * static_cast<double>(weight[i]) : slope);
      }
    });
  });
}

// --- SoftmaxCrossEntropy: logits [N, C], labels i64 [N], weights [N]; rows with the label `ignore_index` count as nothing
// ------------------------------------------------------------

Status check_classes(const OpCall& call, std::size_t first) {
  FALAJ_TRY(check_dtype(call, first, {DType::f32, DType::f64}));
  FALAJ_TRY(check_dtype(call, first + 1, {DType::i64}));
  const Shape& logits = call.in(first).shape;
  if (logits.rank() != 2 || logits[1] < 1) return invalid(format("logits {} must be [rows, classes]", to_string(logits)));
  for (std::size_t i = first + 1; i < call.inputs.size(); ++i) {
    if (call.has(i) && call.in(i).shape != Shape{logits[0]}) {
      return invalid(format("'{}' has shape {}; it must be [{}]", call.node.inputs[i], to_string(call.in(i).shape), logits[0]));
    }
  }
  if (call.has(first + 2)) FALAJ_TRY(check_same_dtype(call, first, first + 2));
  FALAJ_ASSIGN([[maybe_unused]] bool sum, is_sum(call.node));
  return {};
}
Status infer_classes(InferCall& call) {
  FALAJ_TRY(check_classes(call, 0));
  return set_output(call, 0, call.in(0).dtype, {});
}
Status infer_classes_grad(InferCall& call) {
  FALAJ_TRY(check_classes(call, 1));
  return set_output(call, 0, call.in(1).dtype, call.in(1).shape);
}

// No row has this label unless the node says which is left out.
constexpr std::int64_t kIgnoreNone = std::numeric_limits<std::int64_t>::min();
Result<std::int64_t> ignored(const Node& node) { return attr_int(node, "ignore_index", kIgnoreNone); }
// The rows that count, which a mean divides by.
double counted(const std::int64_t* labels, std::int64_t rows, std::int64_t ignore) {
  return static_cast<double>(rows - std::count(labels, labels + rows, ignore));
}

bool label_fits(const Io& io, std::int64_t label, std::int64_t row, std::int64_t classes) {
  if (label >= 0 && label < classes) return true;
  io.fail(format("label {} in row {} is outside [0, {})", label, row, classes));
  return false;
}
// log(sum(exp(x))) of a row.
template <class T>
double log_sum_exp(const T* x, std::int64_t n) {
  double top = static_cast<double>(*std::max_element(x, x + n));
  double sum = 0;
  for (std::int64_t k = 0; k < n; ++k) sum += std::exp(static_cast<double>(x[k]) - top);
  return top + std::log(sum);
}

Result<KernelPtr> make_classes(const KernelCall& c) {
  FALAJ_ASSIGN(bool sum, is_sum(c.node));
  FALAJ_ASSIGN(auto ignore, ignored(c.node));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel([rows = c.in(0).shape[0], classes = c.in(0).shape[1], sum, ignore, weighted = c.has(2)](const Io& io) {
      const T* x = io.input<T>(0);
      const auto* labels = io.input<std::int64_t>(1);
      double total = 0;
      for (std::int64_t r = 0; r < rows; ++r, x += classes) {
        if (labels[r] == ignore) continue;
        if (!label_fits(io, labels[r], r, classes)) return;
        double loss = log_sum_exp(x, classes) - static_cast<double>(x[labels[r]]);
        total += weighted ? loss * static_cast<double>(io.input<T>(2)[r]) : loss;
      }
      *io.output<T>(0) = static_cast<T>(sum ? total : total / counted(labels, rows, ignore));
    });
  });
}
Result<KernelPtr> make_classes_grad(const KernelCall& c) {
  FALAJ_ASSIGN(bool sum, is_sum(c.node));
  FALAJ_ASSIGN(auto ignore, ignored(c.node));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel([rows = c.in(1).shape[0], classes = c.in(1).shape[1], sum, ignore, weighted = c.has(3)](const Io& io) {
      const T* x = io.input<T>(1);
      const auto* labels = io.input<std::int64_t>(2);
      double scale = static_cast<double>(*io.input<T>(0)) / (sum ? 1.0 : counted(labels, rows, ignore));
      T* dx = io.output<T>(0);
      for (std::int64_t r = 0; r < rows; ++r, x += classes, dx += classes) {
        if (labels[r] == ignore) {
          std::fill_n(dx, classes, T{0});
          continue;
        }
        if (!label_fits(io, labels[r], r, classes)) return;
        double log_sum = log_sum_exp(x, classes);
        double factor = weighted ? scale * static_cast<double>(io.input<T>(3)[r]) : scale;
        for (std::int64_t k = 0; k < classes; ++k) {
          dx[k] = static_cast<T>(factor * (std::exp(static_cast<double>(x[k]) - log_sum) - (k == labels[r] ? 1.0 : 0.0)));
        }
      }
    });
  });
}

Status grad_loss(GradientCall& g) {
  std::vector<std::string> inputs = {g.dy()};
  inputs.insert(inputs.end(), g.node().inputs.begin(), g.node().inputs.end());
  for (std::size_t i = 1; i < g.node().inputs.size(); ++i) {
    if (g.wants(i))
      return Error{ErrorCode::unimplemented, format("no gradient for '{}': only the first input of a loss is differentiated", g.input(i))};
  }
  g.set(0, g.add_falaj(g.node().op + "Grad", std::move(inputs), g.node().attributes));
  return {};
}

constexpr OpDef kOps[] = {
    {kFalaj, "SigmoidCrossEntropy", 2, 3, 1, 1, infer_pointwise, make_pointwise<sigmoid_loss>, grad_loss},
    {kFalaj, "MeanSquare", 2, 3, 1, 1, infer_pointwise, make_pointwise<square_loss>, grad_loss},
    {kFalaj, "MeanAbsolute", 2, 3, 1, 1, infer_pointwise, make_pointwise<absolute_loss>, grad_loss},
    {kFalaj, "Huber", 2, 3, 1, 1, infer_pointwise, make_pointwise<huber_loss>, grad_loss},
    {kFalaj, "SoftmaxCrossEntropy", 2, 3, 1, 1, infer_classes, make_classes, grad_loss},
    {kFalaj, "SigmoidCrossEntropyGrad", 3, 4, 1, 1, infer_pointwise_grad, make_pointwise_grad<sigmoid_slope>},
    {kFalaj, "MeanSquareGrad", 3, 4, 1, 1, infer_pointwise_grad, make_pointwise_grad<square_slope>},
    {kFalaj, "MeanAbsoluteGrad", 3, 4, 1, 1, infer_pointwise_grad, make_pointwise_grad<absolute_slope>},
    {kFalaj, "HuberGrad", 3, 4, 1, 1, infer_pointwise_grad, make_pointwise_grad<huber_slope>},
    {kFalaj, "SoftmaxCrossEntropyGrad", 3, 4, 1, 1, infer_classes_grad, make_classes_grad},
};

}  // namespace

std::span<const OpDef> loss_ops() { return kOps; }

}  // namespace falaj::kernels
