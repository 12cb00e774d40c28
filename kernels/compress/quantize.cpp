#include "kernels/compress/quantize.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/plan.hpp"
#include "kernels/train/cut.hpp"
#include "kernels/train/trainer.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

constexpr std::size_t kTimesMin = 5;
constexpr std::size_t kTimesMax = 100000;

std::size_t initializer_bytes(const Graph& graph) {
  std::size_t bytes = 0;
  for (const auto& [name, value] : graph.initializers) bytes += value.bytes();
  return bytes;
}

double relative_error(const Tensor& value, const Tensor& reference) {
  double difference = 0;
  double size = 0;
  for (std::size_t i = 0; i < value.elements(); ++i) {
    const double r = static_cast<double>(reference.data<float>()[i]);
    const double d = static_cast<double>(value.data<float>()[i]) - r;
    difference += d * d;
    size += r * r;
  }
  return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

double disagreement(const Tensor& value, const Tensor& reference) {
  const auto width = static_cast<std::size_t>(value.shape().back());
  const std::size_t rows = value.elements() / width;
  std::size_t others = 0;
  for (std::size_t r = 0; r < rows; ++r) {
    const auto largest = [&](const Tensor& t) {
      const auto row = t.data<float>().subspan(r * width, width);
      return std::ranges::max_element(row) - row.begin();
    };
    others += largest(value) != largest(reference) ? 1 : 0;
  }
  return rows == 0 ? 0 : static_cast<double>(others) / static_cast<double>(rows);
}

// How good a graph is, and how that is called.
class Referee {
 public:
  static Result<Referee> make(const Graph& graph, const Judge& judge, const Rows& rows) {
    Referee r(rows);
    if (graph.outputs.empty()) return invalid("the model has no outputs");
    r.value_ = graph.outputs[0].name;
    if (judge.objective) {
      FALAJ_ASSIGN(r.value_, logits_of(graph, judge.logits));
    }
    FALAJ_ASSIGN(r.reference_, values_of(graph, r.value_, rows));
    if (!judge.objective) {
      r.measure_ = r.reference_.shape().rank() == 2 && r.reference_.shape()[1] > 1 ? "disagreement" : "error";
      return r;
    }
    Shape row = r.reference_.shape();
    row.erase(0);
    FALAJ_ASSIGN(auto comparison, compare(*judge.objective, row));
    if (judge.labels.shape().empty() || judge.labels.shape()[0] < rows.rows())
      return invalid(format("there are labels {} for {} rows", to_string(judge.labels.shape()), rows.rows()));
    FALAJ_ASSIGN(r.labels_, read_labels(comparison, judge.labels.rows(0, rows.rows())));
    r.comparison_ = std::move(comparison);
    FALAJ_ASSIGN(const auto evaluation, falaj::kernels::measure(*r.comparison_, r.reference_, r.labels_));
    r.measure_ = evaluation.named().contains("accuracy") ? "accuracy" : "loss";
    FALAJ_ASSIGN(r.f32_, r.quality(r.reference_));
    return r;
  }

  struct Verdict {
    double quality = 0;  // by the measure
    double loss = 0;
    double error = 0;  // relative, of the value itself
  };
  Result<Verdict> judge(const Graph& graph) const {
    FALAJ_ASSIGN(const Tensor value, values_of(graph, value_, rows_));
    Verdict v;
    v.error = relative_error(value, reference_);
    FALAJ_ASSIGN(v.quality, quality(value));
    if (!comparison_) {
      v.loss = v.quality;
    } else {
      const double worse = measure_ == "accuracy" ? f32_ - v.quality : v.quality - f32_;
      v.loss = f32_ != 0 ? worse / std::abs(f32_) : worse;
    }
    return v;
  }
  const std::string& measure() const { return measure_; }
  double f32() const { return f32_; }

 private:
  explicit Referee(const Rows& rows) : rows_(rows) {}
  Result<double> quality(const Tensor& value) const {
    if (measure_ == "disagreement") return disagreement(value, reference_);
    if (!comparison_) return relative_error(value, reference_);
    FALAJ_ASSIGN(const auto evaluation, falaj::kernels::measure(*comparison_, value, labels_));
    const auto named = evaluation.named();
    return measure_ == "accuracy" ? named.find("accuracy")->second : evaluation.loss();
  }
  Rows rows_;
  std::string value_, measure_;
  Tensor reference_, labels_;
  std::optional<Comparison> comparison_;
  double f32_ = 0;
};

std::vector<std::string> calibrated_names(const std::map<std::string, std::string>& values) {
  std::set<std::string> names;
  for (const auto& [value, source] : values) names.insert(source);
  return {names.begin(), names.end()};
}

// Ranges of everything that quantising all layers, or each alone, could ask for.
Result<std::map<std::string, Range>> all_ranges(const Graph& prepared, const std::vector<Layer>& layers, const Rows& rows,
                                                const QuantizeSpec& spec) {
  std::set<std::string> all;
  for (const Layer& layer : layers) all.insert(layer.output);
  FALAJ_ASSIGN(const auto values, quantised_values(prepared, all));
  std::set<std::string> names;
  for (auto& name : calibrated_names(values)) names.insert(std::move(name));
  for (const Layer& layer : layers) {
    FALAJ_ASSIGN(const auto alone, quantised_values(prepared, {layer.output}));
    for (auto& name : calibrated_names(alone)) names.insert(std::move(name));
  }
  const std::vector<std::string> list(names.begin(), names.end());
  return calibrate(prepared, list, rows, spec.calibration, spec.percentile);
}

// Which of the chosen layers do not run on integers as they are written, and why.
Status explain(const Graph& graph, std::vector<LayerReport>& layers) {
  FALAJ_ASSIGN(const auto compiled, compile(graph));
  auto why = compiled->why(1);
  if (!why) return {};  // its inputs have open sizes that one cannot stand for
  for (LayerReport& report : layers) {
    const std::string marker = format("'{}' ({}) is no integer product: ", report.layer.name, report.layer.op);
    const auto at = why->find(marker);
    if (!report.quantised || at == std::string::npos) continue;
    report.why = why->substr(at + marker.size(), why->find('\n', at) - at - marker.size());
  }
  return {};
}

}  // namespace

Result<Quantised> quantize(const Graph& graph, std::span<const Tensor> inputs, const Judge& judge, const QuantizeSpec& spec,
                           const QuantizeProgress& progress) {
  if (!(spec.budget >= 0)) return invalid(format("a budget of {}; it must not be negative", spec.budget));
  if (spec.calibration_rows < 1) return invalid("calibration needs at least one row");
  FALAJ_ASSIGN(const Graph prepared, prepare_for_quantisation(graph));
  FALAJ_ASSIGN(const auto layers, quantisable_layers(prepared));
  if (layers.empty()) return invalid("the model has no product or convolution by known weights that could be quantised");
  for (const auto& name : spec.keep) {
    if (std::ranges::none_of(layers, [&](const Layer& layer) { return layer.name == name; })) {
      std::string names;
      for (const Layer& layer : layers) names += format("{}{}", names.empty() ? "" : ", ", layer.name);
      return invalid(format("there is no layer '{}'; there are {}", name, names));
    }
  }
  FALAJ_ASSIGN(const Rows rows, Rows::make(prepared, inputs, spec.batch));
  const Rows calibration_rows = rows.first(spec.calibration_rows);
  FALAJ_ASSIGN(const Referee referee, Referee::make(prepared, judge, rows));
  FALAJ_ASSIGN(const auto ranges, all_ranges(prepared, layers, calibration_rows, spec));

  Quantised out{{}, {}};
  QuantizeReport& report = out.report;
  report.calibration = spec.calibration;
  report.rows = rows.rows();
  report.calibration_rows = calibration_rows.rows();
  report.measure = referee.measure();
  report.f32 = referee.f32();
  report.budget = spec.budget;
  report.f32_bytes = initializer_bytes(graph);
  std::set<std::string> chosen;
  const std::uint64_t work = layers.size() + 1;
  for (const Layer& layer : layers) {
    LayerReport each{layer, 0, true, {}};
    FALAJ_ASSIGN(const Graph alone, write_quantised(prepared, {layer.output}, ranges));
    FALAJ_ASSIGN(const auto verdict, referee.judge(alone));
    each.error = verdict.error;
    if (std::ranges::find(spec.keep, layer.name) != spec.keep.end()) {
      each.quantised = false;
      each.why = "kept in float as asked";
    } else {
      chosen.insert(layer.output);
    }
    report.layers.push_back(std::move(each));
    if (progress) progress(report.layers.size(), work);
  }
  // The worst first.
  std::vector<std::size_t> order(layers.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return report.layers[a].error > report.layers[b].error; });
  std::size_t next = 0;
  while (true) {
    FALAJ_ASSIGN(out.graph, write_quantised(prepared, chosen, ranges));
    FALAJ_ASSIGN(const auto verdict, referee.judge(out.graph));
    report.int8 = verdict.quality;
    report.loss = verdict.loss;
    if (report.within_budget() || chosen.empty()) break;
    while (next < order.size() && !chosen.contains(layers[order[next]].output)) ++next;
    if (next == order.size()) break;
    LayerReport& worst = report.layers[order[next]];
    worst.quantised = false;
    worst.why = format("taken back: with it the model loses {:.4g}, its budget is {:.4g}", report.loss, spec.budget);
    chosen.erase(worst.layer.output);
  }
  if (progress) progress(work, work);
  FALAJ_TRY(explain(out.graph, report.layers));
  report.int8_bytes = initializer_bytes(out.graph);
  return out;
}

Result<Graph> quantize_all(const Graph& graph, std::span<const Tensor> inputs, Calibration calibration) {
  FALAJ_ASSIGN(const Graph prepared, prepare_for_quantisation(graph));
  FALAJ_ASSIGN(const auto layers, quantisable_layers(prepared));
  if (layers.empty()) return invalid("the model has no product or convolution by known weights that could be quantised");
  std::set<std::string> chosen;
  for (const Layer& layer : layers) chosen.insert(layer.output);
  FALAJ_ASSIGN(const auto values, quantised_values(prepared, chosen));
  FALAJ_ASSIGN(const Rows rows, Rows::make(prepared, inputs, std::max<std::int64_t>(inputs.empty() ? 1 : inputs[0].shape()[0], 1)));
  FALAJ_ASSIGN(const auto ranges, calibrate(prepared, calibrated_names(values), rows, calibration));
  return write_quantised(prepared, chosen, ranges);
}

Result<SpeedReport> measure_speed(const Graph& f32, const Graph& int8, std::span<const Tensor> inputs, std::int64_t batch, double seconds,
                                  const Clock& clock) {
  FALAJ_ASSIGN(const Rows rows, Rows::make(f32, inputs, batch));
  const auto given = rows.at(0);
  SpeedReport report;
  report.batch = given[0].shape()[0];
  std::vector<Executor> executors;
  std::vector<Tensor> outputs[2];
  for (const Graph* graph : {&f32, &int8}) {
    FALAJ_ASSIGN(auto compiled, compile(*graph));
    executors.emplace_back(std::move(compiled));
    for (int warm = 0; warm < 3; ++warm) FALAJ_TRY(executors.back().run(given, outputs[executors.size() - 1]));
  }
  // In turns, so that what else the machine does slows both.
  std::vector<double> times[2];
  const Instant began = clock.now();
  const auto budget = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
  while (times[0].size() < kTimesMax && (times[0].size() < kTimesMin || clock.now() - began < budget)) {
    for (std::size_t k = 0; k < 2; ++k) {
      const Instant start = clock.now();
      FALAJ_TRY(executors[k].run(given, outputs[k]));
      times[k].push_back(std::chrono::duration<double, std::micro>(clock.now() - start).count());
    }
  }
  const auto median = [](std::vector<double>& t) {
    std::ranges::nth_element(t, t.begin() + static_cast<std::ptrdiff_t>(t.size() / 2));
    return t[t.size() / 2];
  };
  report.f32_us = median(times[0]);
  report.int8_us = median(times[1]);
  return report;
}

}  // namespace falaj::kernels
