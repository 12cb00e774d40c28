// Post-training quantisation to 8 bits: calibrates on sample rows, measures what each layer costs, and takes the worst layers back to float
// until the model is within its budget.
//
// What is measured: with labels, accuracy where the loss has one (cross-entropy, bce), otherwise the loss itself. Without them, of the
// model's first output: the share of rows whose largest value is another than in f32, where rows have several values; else the
// root mean square of the difference, relative to that of the f32 values. `loss` is how much worse the model became, relative to f32
// (for the measures without labels, the measure itself); it must not exceed the budget.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/compress/calibrate.hpp"
#include "kernels/compress/qdq.hpp"
#include "kernels/train/objective.hpp"
#include "runtime/base/clock.hpp"

namespace falaj::kernels {

struct QuantizeSpec {
  Calibration calibration = Calibration::minmax;
  double percentile = kPercentile;
  double budget = 0.01;
  std::int64_t calibration_rows = 512;  // the first ones
  std::int64_t batch = 32;              // rows that are run at a time
  std::vector<std::string> keep;        // layers, by name, that stay float whatever they cost
};

// What quality is measured by.
struct Judge {
  std::optional<Objective> objective;
  Tensor labels;       // of all rows
  std::string logits;  // what is compared with the labels; empty: as in training
};

struct LayerReport {
  Layer layer;
  double error = 0;  // of the model's output with this layer alone quantised: root mean square, relative to f32
  bool quantised = false;
  std::string why;  // it is not
};
struct QuantizeReport {
  Calibration calibration = Calibration::minmax;
  std::int64_t rows = 0, calibration_rows = 0;
  std::string measure;  // "accuracy", "loss", "disagreement", "error"
  double f32 = 0, int8 = 0;
  double loss = 0, budget = 0;
  std::vector<LayerReport> layers;            // in the order of computation
  std::size_t f32_bytes = 0, int8_bytes = 0;  // of the initialisers
  [[nodiscard]] bool within_budget() const { return loss <= budget; }
};
struct Quantised {
  Graph graph;
  QuantizeReport report;
};

// `inputs` in the order of graph.inputs, rows in the first dimension. `progress` is told the work done and all of it.
using QuantizeProgress = std::function<void(std::uint64_t done, std::uint64_t all)>;
Result<Quantised> quantize(const Graph& graph, std::span<const Tensor> inputs, const Judge& judge, const QuantizeSpec& spec,
                           const QuantizeProgress& progress = {});
// All layers, by the ranges of these inputs, whatever it costs: for measuring speed.
Result<Graph> quantize_all(const Graph& graph, std::span<const Tensor> inputs, Calibration calibration = Calibration::minmax);

// Medians of a run of one batch, both models in turns, on the calling thread.
struct SpeedReport {
  std::int64_t batch = 1;
  double f32_us = 0, int8_us = 0;
  [[nodiscard]] double ratio() const { return int8_us > 0 ? f32_us / int8_us : 0; }
};
Result<SpeedReport> measure_speed(const Graph& f32, const Graph& int8, std::span<const Tensor> inputs, std::int64_t batch, double seconds,
                                  const Clock& clock);

}  // namespace falaj::kernels
