// From logits to metrics; what an Evaluation says: its metrics by name, and how two become one.
#include <algorithm>
#include <cmath>

#include "kernels/plan.hpp"
#include "kernels/train/columns.hpp"
#include "kernels/train/cut.hpp"
#include "kernels/train/trainer.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

constexpr std::size_t kRunRows = 512;

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// Softmax in place; returns the logarithm of the sum, so that -log p(c) = that - logit(c).
double soften(std::span<float> row) {
  const double top = std::ranges::max(row);
  double sum = 0;
  for (const float x : row) sum += std::exp(static_cast<double>(x) - top);
  for (float& x : row) x = static_cast<float>(std::exp(static_cast<double>(x) - top) / sum);
  return top + std::log(sum);
}

// Logits of a row, where they go through a softmax.
std::size_t softmax_width(const TargetSpec& target, std::size_t logits, std::size_t rows) {
  if (target.task == Task::multiclass) return target.classes.size();
  return target.task == Task::binary && logits == 2 * rows ? 2 : 0;
}

}  // namespace

std::vector<float> outputs_of_logits(const TargetSpec& target, std::vector<float> logits, std::size_t rows) {
  const std::size_t width = softmax_width(target, logits.size(), rows);
  if (target.task == Task::regression) {
    for (float& x : logits) x = static_cast<float>(target.mean + target.scale * static_cast<double>(x));
  } else if (width == 0) {
    for (float& x : logits) x = static_cast<float>(sigmoid(static_cast<double>(x)));
  } else {
    for (std::size_t row = 0; row < rows; ++row) soften(std::span(logits).subspan(row * width, width));
    if (target.task == Task::binary) {
      for (std::size_t row = 0; row < rows; ++row) logits[row] = logits[row * 2 + 1];
      logits.resize(rows);
    }
  }
  return logits;
}

Evaluation evaluate_logits(const TargetSpec& target, std::span<float> logits, std::span<const float> labels) {
  const std::size_t width = softmax_width(target, logits.size(), labels.size());
  Evaluation out;
  out.rows = labels.size();
  if (target.task == Task::multiclass) out.metrics = MulticlassMetrics(target.classes.size());
  if (target.task == Task::regression) out.metrics = RegressionMetrics();
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const float label = labels[i];
    if (width > 0) {
      const auto row = logits.subspan(i * width, width);
      const auto actual = static_cast<std::size_t>(label);
      const double logit = row[actual];
      out.loss_sum += soften(row) - logit;
      if (auto* metrics = std::get_if<MulticlassMetrics>(&out.metrics)) {
        metrics->add(row, actual);
      } else {
        std::get<BinaryMetrics>(out.metrics).add(row[1], actual == 1);
      }
    } else if (target.task == Task::binary) {
      const double x = logits[i];
      out.loss_sum += std::max(x, 0.0) - x * label + std::log1p(std::exp(-std::abs(x)));
      std::get<BinaryMetrics>(out.metrics).add(static_cast<float>(sigmoid(x)), label == 1.0F);
    } else {
      const double difference = logits[i] - (label - target.mean) / target.scale;
      out.loss_sum += difference * difference;
      std::get<RegressionMetrics>(out.metrics).add(static_cast<float>(target.mean + target.scale * logits[i]), label);
    }
  }
  return out;
}

Result<Evaluation> evaluate_graph(const Graph& graph, const TargetSpec& target, const Table& table, std::span<const float> labels,
                                  std::span<const std::uint32_t> rows) {
  FALAJ_TRY(check(table));
  if (labels.size() != table.rows()) return invalid(format("{} labels for {} rows", labels.size(), table.rows()));
  FALAJ_ASSIGN(const auto logits, logits_of(graph));
  Graph forward = graph;
  forward.outputs = {{logits, DType::undefined, {}, {}, false}};
  FALAJ_ASSIGN(auto compiled, compile(std::move(forward)));
  Executor executor(compiled);
  std::vector<float> values;
  std::vector<float> of_rows;
  std::vector<Tensor> outputs;
  for (std::size_t first = 0; first < table.rows(); first += kRunRows) {  // all rows, in their order: columns are read where they lie
    const std::size_t count = std::min(kRunRows, table.rows() - first);
    std::vector<Tensor> inputs;
    for (const ValueInfo& info : compiled->inputs()) {
      FALAJ_ASSIGN(Tensor tensor, column_input(info, compiled->inputs().size() == 1, table, first, count));
      inputs.push_back(std::move(tensor));
    }
    FALAJ_TRY(executor.run(inputs, outputs));
    if (outputs[0].dtype() != DType::f32 || outputs[0].elements() % count != 0)
      return invalid(format("'{}' is {}{} for {} rows", logits, to_string(outputs[0].dtype()), to_string(outputs[0].shape()), count));
    const auto got = outputs[0].data<float>();
    values.insert(values.end(), got.begin(), got.end());
  }
  const std::size_t width = table.rows() == 0 ? 0 : values.size() / table.rows();
  const std::size_t expected = target.task == Task::multiclass ? target.classes.size() : 1;
  if (width != expected && !(target.task == Task::binary && width == 2))
    return invalid(format("'{}' has {} values a row, a {} target needs {}", logits, width, to_string(target.task), expected));
  std::vector<float> chosen;
  for (const std::uint32_t row : rows) {
    if (row >= table.rows()) return invalid(format("row {} of {}", row, table.rows()));
    chosen.insert(chosen.end(), values.begin() + static_cast<std::ptrdiff_t>(row * width),
                  values.begin() + static_cast<std::ptrdiff_t>((row + 1) * width));
    of_rows.push_back(labels[row]);
  }
  return evaluate_logits(target, chosen, of_rows);
}

double Evaluation::score() const {
  if (const auto* binary = std::get_if<BinaryMetrics>(&metrics)) return binary->auc();
  if (const auto* classes = std::get_if<MulticlassMetrics>(&metrics)) return classes->accuracy();
  return -std::get<RegressionMetrics>(metrics).rmse();
}

std::map<std::string, double, std::less<>> Evaluation::named() const {
  if (const auto* m = std::get_if<BinaryMetrics>(&metrics)) {
    return {{"auc", m->auc()},
            {"log_loss", m->log_loss()},
            {"accuracy", m->accuracy()},
            {"precision", m->precision()},
            {"recall", m->recall()},
            {"f1", m->f1()},
            {"loss", loss()}};
  }
  if (const auto* m = std::get_if<MulticlassMetrics>(&metrics)) {
    return {{"accuracy", m->accuracy()}, {"log_loss", m->log_loss()}, {"macro_f1", m->macro_f1()}, {"loss", loss()}};
  }
  const auto& m = std::get<RegressionMetrics>(metrics);
  return {{"rmse", m.rmse()}, {"mae", m.mae()}, {"r2", m.r2()}, {"loss", loss()}};
}

Status Evaluation::merge(const Evaluation& other) {
  if (metrics.index() != other.metrics.index()) return invalid("evaluations of different tasks cannot be merged");
  loss_sum += other.loss_sum;
  rows += other.rows;
  std::visit([&]<class M>(M& mine) { mine.merge(std::get<M>(other.metrics)); }, metrics);
  return {};
}

}  // namespace falaj::kernels
