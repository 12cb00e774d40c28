#include "kernels/train/soft_targets.hpp"

#include <cmath>

#include "kernels/convert.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

Status check(const Objective& objective, const Distillation& how, const Shape& logits_row) {
  if (!(how.temperature > 0 && how.temperature <= 1000))
    return invalid(format("the temperature is {}, it must be larger than 0, at most 1000", how.temperature));
  if (!(how.share >= 0 && how.share <= 1)) return invalid(format("the teacher's share of the loss is {}, it must be 0 to 1", how.share));
  const bool known = objective.loss == Loss::cross_entropy || objective.loss == Loss::bce || objective.loss == Loss::mse;
  if (!known) return invalid(format("distillation is for cross-entropy, bce and mse, not for {}", to_string(objective.loss)));
  if (logits_row.rank() > 1)
    return invalid(format("distillation needs logits [rows, outputs]: those of a row have shape {}", to_string(logits_row)));
  return {};
}

class Builder {
 public:
  Builder(Graph& graph, std::int64_t outputs) : graph_(graph), outputs_(outputs) {}

  std::string scaled(const std::string& x, double factor) {
    if (factor == 1.0) return x;
    const std::string number = graph_.add_initializer(graph_.fresh("falaj/factor"), Tensor::scalar<float>(static_cast<float>(factor)));
    return add("Mul", {x, number});
  }
  std::string columns(const std::string& x, std::int64_t first) {
    const auto bound = [&](std::int64_t value) {
      return graph_.add_initializer(graph_.fresh("falaj/bound"), Tensor::vector<std::int64_t>({value}));
    };
    return add("Slice", {x, bound(first), bound(first + outputs_), bound(1)});
  }
  std::string add(std::string_view op, std::vector<std::string> inputs, Attributes attributes = {}) {
    return graph_.add(op, std::move(inputs), std::move(attributes), graph_.fresh("falaj/distil"));
  }
  std::string loss(std::string_view op, const std::string& x, const std::string& target) {
    return graph_.add(kFalaj, op, {x, target}, {{"reduction", std::string("sum")}}, graph_.fresh("falaj/distil"));
  }
  // -sum p log softmax(x)
  std::string entropy(const std::string& x, const std::string& p) {
    const std::string logs = add("LogSoftmax", {x}, {{"axis", std::int64_t{-1}}});
    return scaled(add("ReduceSum", {add("Mul", {p, logs})}, {{"keepdims", std::int64_t{0}}}), -1.0);
  }

 private:
  Graph& graph_;
  std::int64_t outputs_;
};

}  // namespace

Result<Objective> distilled(const Objective& hard, const Distillation& how, const Shape& logits_row) {
  FALAJ_TRY(check(hard, how, logits_row));
  Objective out = hard;
  out.distillation = how;
  out.label_row = {2 * logits_row.elements()};
  return out;
}

Result<Tensor> distilled_labels(const Objective& hard, const Tensor& teacher, const Tensor& labels) {
  if (hard.distillation) return invalid("these labels have a teacher already");
  if (teacher.dtype() != DType::f32 || teacher.shape().empty() || labels.shape().empty() || teacher.shape()[0] != labels.shape()[0])
    return invalid(format("the teacher gives {}{} for {} rows", to_string(teacher.dtype()), to_string(teacher.shape()),
                          labels.shape().empty() ? 0 : labels.shape()[0]));
  const std::int64_t rows = labels.shape()[0];
  Shape row = teacher.shape();
  row.erase(0);
  FALAJ_ASSIGN(const Comparison comparison, compare(hard, row));
  FALAJ_ASSIGN(const Tensor read, read_labels(comparison, labels));
  const auto outputs = static_cast<std::size_t>(row.elements());
  Tensor out(DType::f32, {rows, static_cast<std::int64_t>(2 * outputs)});
  const auto values = out.mutable_data<float>();
  for (std::size_t i = 0; i < static_cast<std::size_t>(rows); ++i) {
    const auto to = values.subspan(i * 2 * outputs, 2 * outputs);
    for (std::size_t k = 0; k < outputs; ++k) {
      to[k] = teacher.data<float>()[i * outputs + k];
      if (!std::isfinite(to[k])) return invalid(format("row {}: the teacher's answer is {}", i, to[k]));
      if (hard.loss != Loss::cross_entropy) to[outputs + k] = read.data<float>()[i * outputs + k];
    }
    if (hard.loss != Loss::cross_entropy) continue;
    const std::int64_t label = read.data<std::int64_t>()[i];
    if (label == kIgnoredLabel) return invalid(format("row {}: a label that counts as nothing; leave such rows out when distilling", i));
    to[outputs + static_cast<std::size_t>(label)] = 1;
  }
  return out;
}

Result<Comparison> compare_distilled(const Objective& objective, const Shape& logits_row) {
  FALAJ_TRY(check(objective, *objective.distillation, logits_row));
  Comparison c{objective, logits_row};
  const std::int64_t outputs = logits_row.elements();
  if (objective.label_row != Shape{2 * outputs})
    return invalid(format("the teacher has {} outputs, the model {}", objective.label_row.elements() / 2, outputs));
  c.classes = objective.loss == Loss::cross_entropy ? outputs : 0;
  c.per_row = objective.loss == Loss::cross_entropy ? 1 : outputs;
  return c;
}

Result<Tensor> read_distilled_labels(const Comparison& c, const Tensor& labels) {
  if (labels.dtype() != DType::f32 || labels.shape().rank() != 2 || labels.shape()[1] != c.objective.label_row[0])
    return invalid("labels with a teacher are made by distilled_labels");
  return labels;
}

std::string append_distilled_loss(Graph& graph, const Comparison& c, const std::string& logits, const std::string& labels) {
  const std::int64_t outputs = c.logits_row.elements();
  const Distillation& how = *c.objective.distillation;
  Builder build(graph, outputs);
  std::string z = logits;
  if (c.logits_row.empty()) {
    const std::string flat = graph.add_initializer(graph.fresh("falaj/column"), Tensor::vector<std::int64_t>({-1, 1}));
    z = build.add("Reshape", {z, flat});
  }
  const std::string teacher = build.columns(labels, 0);
  const std::string hard = build.columns(labels, outputs);
  std::string soft_loss;
  std::string hard_loss;
  double factor = how.share;
  if (c.objective.loss == Loss::mse) {
    soft_loss = build.loss("MeanSquare", z, teacher);
    hard_loss = build.loss("MeanSquare", z, hard);
  } else {
    factor *= how.temperature * how.temperature;
    const std::string cool = build.scaled(z, 1.0 / how.temperature);
    const std::string taught = build.scaled(teacher, 1.0 / how.temperature);
    if (c.objective.loss == Loss::bce) {
      soft_loss = build.loss("SigmoidCrossEntropy", cool, build.add("Sigmoid", {taught}));
      hard_loss = build.loss("SigmoidCrossEntropy", z, hard);
    } else {
      soft_loss = build.entropy(cool, build.add("Softmax", {taught}, {{"axis", std::int64_t{-1}}}));
      hard_loss = build.entropy(z, hard);
    }
  }
  return build.add("Add", {build.scaled(soft_loss, factor), build.scaled(hard_loss, 1.0 - how.share)});
}

}  // namespace falaj::kernels
