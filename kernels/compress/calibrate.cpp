#include "kernels/compress/calibrate.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>

#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

// `see(k, values)` is given the k-th named value of each batch.
using See = std::function<Status(std::size_t, const Tensor&)>;
Status run_values(const Graph& graph, std::span<const std::string> names, const Rows& rows, const See& see) {
  Graph watched = graph;
  watched.origin = nullptr;
  watched.outputs.clear();
  for (const auto& name : names) watched.outputs.push_back({name, DType::undefined, {}, {}, false});
  FALAJ_ASSIGN(auto compiled, compile(std::move(watched)));
  Executor executor(std::move(compiled));
  std::vector<Tensor> outputs;
  for (std::int64_t row = 0; row < rows.rows(); row += rows.batch()) {
    const auto inputs = rows.at(row);
    FALAJ_TRY(executor.run(inputs, outputs));
    for (std::size_t k = 0; k < outputs.size(); ++k) {
      if (outputs[k].dtype() != DType::f32)
        return invalid(format("value '{}' is {}; only float32 can be quantised", names[k], to_string(outputs[k].dtype())));
      if (auto seen = see(k, outputs[k]); !seen) return within(format("value '{}', rows from {} on", names[k], row), seen.error());
    }
  }
  return {};
}

// Values in kHistogramBins bins over [low, high].
struct Histogram {
  double low = 0, width = 1;
  std::array<std::uint64_t, kHistogramBins> counts{};
  Histogram(double from, double to) : low(from), width(std::max((to - from) / static_cast<double>(kHistogramBins), 1e-30)) {}
  void add(double v) {
    const double at = std::clamp((v - low) / width, 0.0, static_cast<double>(kHistogramBins - 1));
    ++counts[static_cast<std::size_t>(at)];
  }
};

Range percentile_range(const Histogram& h, const Range& whole, double percentile) {
  const auto total = static_cast<double>(std::accumulate(h.counts.begin(), h.counts.end(), std::uint64_t{0}));
  const double outside = total * (100.0 - percentile) / 100.0 / 2;
  double below = 0;
  std::size_t first = 0;
  while (first + 1 < kHistogramBins && below + static_cast<double>(h.counts[first]) <= outside)
    below += static_cast<double>(h.counts[first++]);
  double above = 0;
  std::size_t last = kHistogramBins - 1;
  while (last > first && above + static_cast<double>(h.counts[last]) <= outside) above += static_cast<double>(h.counts[last--]);
  return {std::max(whole.low, h.low + h.width * static_cast<double>(first)),
          std::min(whole.high, h.low + h.width * static_cast<double>(last + 1))};
}

Range with_zero(Range r) { return {std::min(r.low, 0.0), std::max(r.high, 0.0)}; }

}  // namespace

std::string_view to_string(Calibration calibration) noexcept {
  return calibration == Calibration::minmax ? "minmax" : calibration == Calibration::percentile ? "percentile" : "entropy";
}
Result<Calibration> parse_calibration(std::string_view text) {
  for (const auto c : {Calibration::minmax, Calibration::percentile, Calibration::entropy}) {
    if (text == to_string(c)) return c;
  }
  return invalid(format("calibration '{}' is not known; there are minmax, percentile and entropy", text));
}

Result<Rows> Rows::make(const Graph& graph, std::span<const Tensor> inputs, std::int64_t batch) {
  if (inputs.size() != graph.inputs.size())
    return invalid(format("{} inputs are given; the model takes {}", inputs.size(), graph.inputs.size()));
  if (inputs.empty()) return invalid("a model without inputs has nothing to calibrate");
  if (batch < 1) return invalid(format("a batch of {} rows; it must be at least 1", batch));
  Rows out;
  out.inputs_.assign(inputs.begin(), inputs.end());
  out.batch_ = batch;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const ValueInfo& info = graph.inputs[i];
    if (inputs[i].shape().empty()) return invalid(format("input '{}' is a single number: it has no rows", info.name));
    if (i > 0 && inputs[i].shape()[0] != out.rows_)
      return invalid(format("input '{}' has {} rows, '{}' has {}: give as many in each", info.name, inputs[i].shape()[0],
                            graph.inputs[0].name, out.rows_));
    out.rows_ = inputs[i].shape()[0];
    if (info.has_shape && !info.shape.empty() && info.shape[0] >= 0) out.batch_ = std::max<std::int64_t>(info.shape[0], 1);
  }
  const bool fixed =
      std::ranges::any_of(graph.inputs, [](const auto& info) { return info.has_shape && !info.shape.empty() && info.shape[0] >= 0; });
  if (fixed) out.rows_ -= out.rows_ % out.batch_;
  if (out.rows_ < 1) return invalid(format("there are too few rows for one batch of {}", out.batch_));
  return out;
}

Rows Rows::first(std::int64_t most) const {
  Rows out = *this;
  out.rows_ = std::min(rows_, std::max(most / batch_, std::int64_t{1}) * batch_);
  return out;
}

std::vector<Tensor> Rows::at(std::int64_t row) const {
  std::vector<Tensor> out;
  for (const Tensor& input : inputs_) out.push_back(input.rows(row, std::min(batch_, rows_ - row)));
  return out;
}

double entropy_threshold(std::span<const std::uint64_t> counts, double largest, std::size_t levels) {
  const std::size_t bins = counts.size();
  double least = INFINITY;
  std::size_t best = bins;
  double total = 0;
  for (const auto c : counts) total += static_cast<double>(c);
  if (total == 0) return largest;
  std::vector<double> p;
  for (std::size_t kept = levels; kept <= bins; kept += std::max<std::size_t>(bins / 256, 1)) {
    // The distribution that is left when all beyond the threshold is moved onto it...
    p.assign(counts.begin(), counts.begin() + static_cast<std::ptrdiff_t>(kept));
    p.back() += static_cast<double>(std::accumulate(counts.begin() + static_cast<std::ptrdiff_t>(kept), counts.end(), std::uint64_t{0}));
    // ... against the one that `levels` quanta can tell apart, each spread evenly over the bins of its own that are not empty.
    double divergence = 0;
    double quantised = 0;
    for (std::size_t i = 0; i < kept; ++i) quantised += static_cast<double>(counts[i]);
    if (quantised == 0) continue;
    for (std::size_t level = 0; level < levels; ++level) {
      const std::size_t from = level * kept / levels;
      const std::size_t to = (level + 1) * kept / levels;
      double sum = 0;
      double met = 0;
      for (std::size_t i = from; i < to; ++i) {
        sum += static_cast<double>(counts[i]);
        met += p[i] > 0 ? 1 : 0;
      }
      for (std::size_t i = from; i < to; ++i) {
        if (p[i] <= 0) continue;
        const double q = std::max(sum / met / quantised, 1e-12);
        divergence += p[i] / total * std::log(p[i] / total / q);
      }
    }
    if (divergence < least) {
      least = divergence;
      best = kept;
    }
  }
  return largest * static_cast<double>(best) / static_cast<double>(bins);
}

Result<std::map<std::string, Range>> calibrate(const Graph& graph, std::span<const std::string> values, const Rows& rows,
                                               Calibration calibration, double percentile) {
  if (!(percentile > 50 && percentile <= 100))
    return invalid(format("a percentile of {}; it must be more than 50 and at most 100", percentile));
  std::map<std::string, Range> ranges;
  if (values.empty()) return ranges;
  std::vector<Range> whole(values.size(), Range{INFINITY, -INFINITY});
  FALAJ_TRY(run_values(graph, values, rows, [&](std::size_t k, const Tensor& t) -> Status {
    for (const float v : t.data<float>()) {
      if (!std::isfinite(v)) return invalid(format("it holds {}: look for bad rows in the samples", v));
      whole[k].low = std::min(whole[k].low, static_cast<double>(v));
      whole[k].high = std::max(whole[k].high, static_cast<double>(v));
    }
    return {};
  }));
  if (calibration != Calibration::minmax) {
    const bool entropy = calibration == Calibration::entropy;
    std::vector<Histogram> histograms;
    for (const Range& r : whole)
      histograms.emplace_back(entropy ? 0.0 : r.low, entropy ? std::max(std::abs(r.low), std::abs(r.high)) : r.high);
    FALAJ_TRY(run_values(graph, values, rows, [&](std::size_t k, const Tensor& t) -> Status {
      for (const float v : t.data<float>()) {
        if (!entropy) {
          histograms[k].add(static_cast<double>(v));
        } else if (v != 0.0F) {  // zero is a quantum whatever the threshold: what a Relu cut off must not decide
          histograms[k].add(std::abs(static_cast<double>(v)));
        }
      }
      return {};
    }));
    for (std::size_t k = 0; k < whole.size(); ++k) {
      if (!entropy) {
        whole[k] = percentile_range(histograms[k], whole[k], percentile);
        continue;
      }
      // Values of one sign have all 256 quanta for it, others half of them.
      const double largest = std::max(std::abs(whole[k].low), std::abs(whole[k].high));
      const double t = entropy_threshold(histograms[k].counts, largest, whole[k].low < 0 && whole[k].high > 0 ? 128 : 256);
      whole[k] = {std::max(whole[k].low, -t), std::min(whole[k].high, t)};
    }
  }
  for (std::size_t k = 0; k < values.size(); ++k) ranges[values[k]] = with_zero(whole[k]);
  return ranges;
}

Result<Tensor> values_of(const Graph& graph, const std::string& name, const Rows& rows) {
  std::vector<float> all;
  Shape shape;
  const std::string names[] = {name};
  FALAJ_TRY(run_values(graph, names, rows, [&](std::size_t, const Tensor& t) -> Status {
    shape = t.shape();
    all.insert(all.end(), t.data<float>().begin(), t.data<float>().end());
    return {};
  }));
  if (shape.empty()) shape.push_back(1);
  const std::int64_t each = std::max<std::int64_t>(shape.elements(1, shape.rank()), 1);
  shape[0] = static_cast<std::int64_t>(all.size()) / each;
  if (shape[0] != rows.rows())
    return invalid(format("value '{}' has {} rows for {} of the inputs: it has none for each", name, shape[0], rows.rows()));
  return Tensor::of<float>(shape, all);
}

}  // namespace falaj::kernels
