// Ranges of a graph's inner values over sample rows: what post-training quantisation chooses its scales by.
//
// minmax: smallest and largest. percentile: at most (100 - p) percent of the values lie outside, on both sides together. entropy: the
// threshold whose quantised histogram has the least Kullback-Leibler divergence from the whole one (Migacz, "8-bit inference with
// TensorRT", 2017). The last two count values in kHistogramBins bins, so their thresholds are edges of bins.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/graph.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

enum class Calibration : std::uint8_t { minmax, percentile, entropy };
std::string_view to_string(Calibration calibration) noexcept;
Result<Calibration> parse_calibration(std::string_view text);

constexpr std::size_t kHistogramBins = 2048;
constexpr double kPercentile = 99.99;

struct Range {
  double low = 0, high = 0;  // 0 is always within
};

// Runs rows in batches. Where the model fixes its batch, in batches of that, and what is left over is not looked at.
class Rows {
 public:
  // Inputs as the graph takes them, as many rows in each; errors name the input.
  static Result<Rows> make(const Graph& graph, std::span<const Tensor> inputs, std::int64_t batch);
  [[nodiscard]] std::int64_t rows() const { return rows_; }
  [[nodiscard]] std::int64_t batch() const { return batch_; }
  // At most `most` of the rows.
  [[nodiscard]] Rows first(std::int64_t most) const;
  // The inputs of the batch that begins at `row`.
  [[nodiscard]] std::vector<Tensor> at(std::int64_t row) const;

 private:
  std::vector<Tensor> inputs_;
  std::int64_t rows_ = 0, batch_ = 1;
};

// Ranges of the named values, each of f32. A value that is not finite is an error that names it and the batch.
Result<std::map<std::string, Range>> calibrate(const Graph& graph, std::span<const std::string> values, const Rows& rows,
                                               Calibration calibration, double percentile = kPercentile);

// All rows' values of `name`, one below the other, f32. It must have a row for each.
Result<Tensor> values_of(const Graph& graph, const std::string& name, const Rows& rows);

// The bins counted, for tests: of `counts` over [0, largest] the threshold that `levels` quanta serve best.
double entropy_threshold(std::span<const std::uint64_t> counts, double largest, std::size_t levels);

}  // namespace falaj::kernels
