#include "kernels/train/objective.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/convert.hpp"
#include "kernels/plan.hpp"
#include "kernels/train/soft_targets.hpp"
#include "kernels/train/trainer.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {

namespace {

struct Name {
  Loss loss;
  std::string_view text;
  std::string_view op;
};
constexpr Name kNames[] = {
    {Loss::cross_entropy, "cross-entropy", "SoftmaxCrossEntropy"},
    {Loss::bce, "bce", "SigmoidCrossEntropy"},
    {Loss::mse, "mse", "MeanSquare"},
    {Loss::l1, "l1", "MeanAbsolute"},
    {Loss::huber, "huber", "Huber"},
};
const Name& name_of(Loss loss) { return *std::ranges::find(kNames, loss, &Name::loss); }

Shape with_rows(std::int64_t rows, const Shape& row) {
  Shape out{rows};
  for (const std::int64_t d : row) out.push_back(d);
  return out;
}

// Does `row` with its classes taken out at `axis` have the labels' shape?
bool fits(const Shape& row, std::size_t axis, const Shape& labels) {
  Shape rest = row;
  rest.erase(axis);
  return rest == labels;
}

}  // namespace

std::string_view to_string(Loss loss) noexcept { return name_of(loss).text; }

Result<Loss> parse_loss(std::string_view text) {
  for (const Name& name : kNames) {
    if (name.text == text) return name.loss;
  }
  return invalid(format("loss '{}' is not known: use cross-entropy, bce, mse, l1 or huber", text));
}

Result<Comparison> compare(const Objective& objective, const Shape& logits_row) {
  if (objective.distillation) return compare_distilled(objective, logits_row);
  Comparison c{objective, logits_row};
  const Shape& labels = objective.label_row;
  if (!(objective.huber_delta > 0))
    return invalid(format("the delta of the Huber loss is {}, it must be larger than 0", objective.huber_delta));
  if (objective.loss != Loss::cross_entropy) {
    c.per_row = logits_row.elements();
    Shape flat = logits_row;
    if (!flat.empty() && flat.back() == 1) flat.erase(flat.rank() - 1);
    if (labels != logits_row && labels != flat)
      return invalid(format("a row's labels have shape {}, the trained value has {}: {} needs one label for each number", to_string(labels),
                            to_string(logits_row), to_string(objective.loss)));
    return c;
  }
  if (logits_row.empty()) return invalid("cross-entropy needs logits [rows, classes], the trained value has no classes");
  const std::size_t last = logits_row.rank() - 1;
  c.classes_last = last > 0 && !fits(logits_row, 0, labels);
  if (!fits(logits_row, c.classes_last ? last : 0, labels))
    return invalid(format("a row's labels have shape {}, its logits {}: cross-entropy needs one class number in place of the classes",
                          to_string(labels), to_string(logits_row)));
  c.classes = logits_row[c.classes_last ? last : 0];
  c.per_row = labels.elements();
  return c;
}

Result<Tensor> read_labels(const Comparison& c, const Tensor& labels) {
  if (c.objective.distillation) return read_distilled_labels(c, labels);
  if (labels.dtype() == DType::string || labels.shape().empty()) return invalid("labels must be numbers, one row each");
  const std::int64_t rows = labels.shape()[0];
  const auto per_row = static_cast<std::size_t>(std::max<std::int64_t>(c.per_row, 1));
  if (c.objective.loss != Loss::cross_entropy) {
    const Tensor out = converted(labels, DType::f32);
    for (std::size_t i = 0; i < out.elements(); ++i) {
      const float value = out.data<float>()[i];
      if (!std::isfinite(value)) return invalid(format("row {}: the label is {}", i / per_row, value));
      if (c.objective.loss == Loss::bce && !(value >= 0 && value <= 1))
        return invalid(format("row {}: label {} is no probability, which bce needs", i / per_row, value));
    }
    return out.reshaped(with_rows(rows, c.logits_row));
  }
  if (is_float(labels.dtype())) return invalid("cross-entropy needs class numbers: the labels are floats");
  const Tensor out = converted(labels, DType::i64);
  for (std::size_t i = 0; i < out.elements(); ++i) {
    const std::int64_t label = out.data<std::int64_t>()[i];
    if (label != kIgnoredLabel && (label < 0 || label >= c.classes))
      return invalid(format("row {}: label {} is not the number of one of {} classes", i / per_row, label, c.classes));
  }
  return out.reshaped(with_rows(rows, c.objective.label_row));
}

ValueInfo label_input(const Comparison& c, std::string_view name) {
  const bool taught = c.objective.distillation.has_value();
  const bool classes = c.objective.loss == Loss::cross_entropy && !taught;
  ValueInfo info{std::string(name), classes ? DType::i64 : DType::f32,
                 with_rows(-1, classes || taught ? c.objective.label_row : c.logits_row)};
  info.symbols.assign(info.shape.rank(), "");
  info.symbols[0] = "N";
  return info;
}

std::string append_loss(Graph& graph, const Comparison& c, const std::string& logits, const std::string& labels) {
  if (c.objective.distillation) return append_distilled_loss(graph, c, logits, labels);
  Attributes attributes = {{"reduction", std::string("sum")}};
  std::string x = logits;
  std::string target = labels;
  if (c.objective.loss == Loss::huber) attributes.emplace("delta", static_cast<float>(c.objective.huber_delta));
  if (c.objective.loss == Loss::cross_entropy) {
    attributes.emplace("ignore_index", kIgnoredLabel);
    if (c.logits_row.rank() > 1) {  // one line of classes for each position
      if (!c.classes_last) {
        std::vector<std::int64_t> perm = {0};
        for (std::size_t d = 1; d < c.logits_row.rank(); ++d) perm.push_back(static_cast<std::int64_t>(d) + 1);
        perm.push_back(1);
        x = graph.add("Transpose", {x}, {{"perm", perm}}, graph.fresh("falaj/positions"));
      }
      const std::string lines = graph.add_initializer(graph.fresh("falaj/lines"), Tensor::vector<std::int64_t>({-1, c.classes}));
      const std::string flat = graph.add_initializer(graph.fresh("falaj/flat"), Tensor::vector<std::int64_t>({-1}));
      x = graph.add("Reshape", {x, lines}, {}, graph.fresh("falaj/logits_by_position"));
      target = graph.add("Reshape", {target, flat}, {}, graph.fresh("falaj/labels_by_position"));
    }
  }
  return graph.add(kFalaj, name_of(c.objective.loss).op, {x, target}, std::move(attributes), graph.fresh("falaj/loss"));
}

double compared(const Comparison& c, const Tensor& labels) {
  if (c.objective.distillation) return static_cast<double>(labels.shape()[0] * c.per_row);
  if (c.objective.loss != Loss::cross_entropy) return static_cast<double>(labels.elements());
  const auto all = labels.data<std::int64_t>();
  return static_cast<double>(all.size()) - static_cast<double>(std::ranges::count(all, kIgnoredLabel));
}

namespace {

void measure_classes(const Comparison& c, const Tensor& logits, const Tensor& labels, Evaluation& out) {
  const auto classes = static_cast<std::size_t>(c.classes);
  const auto positions = static_cast<std::size_t>(c.per_row);
  const float* x = logits.data<float>().data();
  std::vector<float> line(classes);
  for (std::size_t i = 0; i < labels.elements(); ++i) {
    const std::int64_t label = labels.data<std::int64_t>()[i];
    if (label == kIgnoredLabel) continue;
    for (std::size_t k = 0; k < classes; ++k)
      line[k] = c.classes_last ? x[i * classes + k] : x[(i / positions * classes + k) * positions + i % positions];
    const double top = static_cast<double>(std::ranges::max(line));
    double sum = 0;
    for (const float v : line) sum += std::exp(static_cast<double>(v) - top);
    const auto actual = static_cast<std::size_t>(label);
    out.loss_sum += top + std::log(sum) - static_cast<double>(line[actual]);
    ++out.rows;
    for (float& v : line) v = static_cast<float>(std::exp(static_cast<double>(v) - top) / sum);
    if (auto* binary = std::get_if<BinaryMetrics>(&out.metrics)) {
      binary->add(line[1], actual == 1);
    } else {
      std::get<MulticlassMetrics>(out.metrics).add(line, actual);
    }
  }
}

}  // namespace

Result<Evaluation> measure(const Comparison& c, const Tensor& logits, const Tensor& labels) {
  if (logits.dtype() != DType::f32) return invalid(format("the measured value is {}, not float32", to_string(logits.dtype())));
  if (c.objective.distillation) return invalid("a model is measured by its labels, not by a teacher");
  Evaluation out;
  if (c.objective.loss == Loss::cross_entropy) {
    if (c.classes != 2) out.metrics = MulticlassMetrics(static_cast<std::size_t>(c.classes));
    if (logits.elements() != labels.elements() * static_cast<std::size_t>(c.classes)) return invalid("logits and labels differ in number");
    measure_classes(c, logits, labels, out);
    return out;
  }
  if (c.objective.loss != Loss::bce) out.metrics = RegressionMetrics();
  if (logits.elements() != labels.elements()) return invalid("values and labels differ in number");
  for (std::size_t i = 0; i < labels.elements(); ++i) {
    const double x = static_cast<double>(logits.data<float>()[i]);
    const double label = static_cast<double>(labels.data<float>()[i]);
    const double off = std::abs(x - label);
    const double delta = c.objective.huber_delta;
    switch (c.objective.loss) {
      case Loss::bce:
        out.loss_sum += std::max(x, 0.0) - x * label + std::log1p(std::exp(-std::abs(x)));
        break;
      case Loss::mse:
        out.loss_sum += off * off;
        break;
      case Loss::l1:
        out.loss_sum += off;
        break;
      default:
        out.loss_sum += off <= delta ? 0.5 * off * off : delta * (off - 0.5 * delta);
    }
    ++out.rows;
    if (auto* binary = std::get_if<BinaryMetrics>(&out.metrics)) {
      binary->add(static_cast<float>(1.0 / (1.0 + std::exp(-x))), label > 0.5);
    } else {
      std::get<RegressionMetrics>(out.metrics).add(static_cast<float>(x), static_cast<float>(label));
    }
  }
  return out;
}

}  // namespace falaj::kernels
