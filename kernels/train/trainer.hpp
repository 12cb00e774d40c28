// Training of one graph by one process: gradients of given rows, parameters as one flat vector, evaluation, export.
//
//   auto trainer = Trainer::make(graph, target);                   // a family's graph or an imported one
//   auto data = (*trainer)->prepare(table, labels);                // preprocessing runs once, here; or tensors, with an objective
//   loss += *(*trainer)->gradient(*data, rows, sum_of_gradients);  // sums over rows, so that micro-shards add up
//   optimizer.step((*trainer)->parameters(), mean_of_gradients);
//   auto model = (*trainer)->export_graph();                       // the same graph with the present parameters
//
// The graph is cut in two: the prefix that depends on no parameter (imputation, standardising, codes) is evaluated once for a data set;
// the rest is differentiated. The flat vector holds the parameters in the order in which the backward pass finishes their
// gradients, so that buckets are ranges of it.
//
// Deterministic: the same rows, parameters and step key give the same bits on the same machine, on any thread.
// Ways to get hurt: not thread-safe, and a gradient() takes as long as it takes: call it where blocking is allowed.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "kernels/graph.hpp"
#include "kernels/train/families.hpp"
#include "kernels/train/metrics.hpp"
#include "kernels/train/objective.hpp"
#include "kernels/train/preprocess.hpp"

namespace falaj::kernels {

class Team;

struct TrainTarget {
  TargetSpec spec;
  std::string logits = {};                  // value to train; empty: metadata, else what feeds the last Sigmoid or Softmax, else output 0
  std::vector<std::string> trainable = {};  // initialisers; empty: weights, biases, embeddings and scales that reach the logits
  std::vector<std::string> frozen = {};     // of those, not these; a name may end in *
  std::optional<Objective> objective = {};  // instead of the spec's task
  Objective regression = {.loss = Loss::mse};  // of a regression task: mse, l1 or huber, of the standardised label
  bool batch_statistics = false;               // BatchNormalization by the batch, moving its running statistics
  bool dropout = false;                        // Dropout nodes drop while training
  bool bf16 = false;                           // products and convolutions take their operands rounded to bfloat16; parameters stay f32
  std::size_t threads = 1;                     // of a run with gradients: the same bits on any number
};

// Rows ready for training: the values at the cut, and the labels. Made by Trainer::prepare, for that trainer's graph only (trainers of
// equal graphs may share it).
class DataSet {
 public:
  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::span<const float> labels() const noexcept { return labels_; }  // class numbers, or raw targets; of a task only

 private:
  friend class Trainer;
  std::vector<Tensor> values_;  // first dimension: rows
  std::vector<float> labels_;
  Tensor targets_;  // with an objective
  std::size_t rows_ = 0;
};

struct Parameter {
  std::string name;
  Shape shape;
  std::size_t offset = 0;
  std::size_t count = 0;
  bool decay = true;  // matrices and embeddings; not biases and scales
};

struct Bucket {
  std::size_t offset = 0;
  std::size_t count = 0;
};

// Metrics of one kind; merges with others of the same kind.
struct Evaluation {
  double loss_sum = 0;
  std::uint64_t rows = 0;
  std::variant<BinaryMetrics, MulticlassMetrics, RegressionMetrics> metrics;
  [[nodiscard]] double loss() const noexcept { return rows == 0 ? 0.0 : loss_sum / static_cast<double>(rows); }
  // binary: auc; multiclass: accuracy; regression: -rmse. Larger is better.
  [[nodiscard]] double score() const;
  [[nodiscard]] std::map<std::string, double, std::less<>> named() const;  // auc, accuracy, log_loss, rmse, ...
  Status merge(const Evaluation& other);
};

// Logits [rows x outputs] of a target and the labels of the same rows (class numbers, or numbers in their own unit). Two outputs for a
// binary target are taken for a softmax.
Evaluation evaluate_logits(const TargetSpec& target, std::span<float> logits, std::span<const float> labels);
// Likewise what Trainer::predict() gives.
std::vector<float> outputs_of_logits(const TargetSpec& target, std::vector<float> logits, std::size_t rows);
// A graph as it is, with nothing in it to train, on rows of a table; labels are those of all rows.
Result<Evaluation> evaluate_graph(const Graph& graph, const TargetSpec& target, const Table& table, std::span<const float> labels,
                                  std::span<const std::uint32_t> rows);

class Trainer {
 public:
  static Result<std::unique_ptr<Trainer>> make(Graph graph, TrainTarget target);
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  // Columns are matched to the graph's inputs by name; a missing one, or one of the wrong kind, is an error naming it.
  Result<DataSet> prepare(const Table& table, std::vector<float> labels);
  // With an objective: the graph's inputs in its order, and the labels; one row each in the first dimension.
  Result<DataSet> prepare(std::vector<Tensor> inputs, const Tensor& labels);

  // Writes the sum over `rows` of d(loss)/d(parameters) to sum_of_gradients (parameters().size() floats; no rows: zeros) and returns
  // the sum of the losses. key: seeds dropout, the same for a step on all ranks.
  Result<double> gradient(const DataSet& data, std::span<const std::uint32_t> rows, std::span<float> sum_of_gradients,
                          std::uint64_t key = 0);

  // What the mean of the losses of these rows divides by: the rows or, with an objective, all that is compared.
  [[nodiscard]] double compared(const DataSet& data, std::span<const std::uint32_t> rows) const;
  // Where a loss or a gradient of these rows stopped being a number (see first_not_finite).
  Result<std::string> first_not_finite(const DataSet& data, std::span<const std::uint32_t> rows, std::uint64_t key = 0);

  // [rows x outputs]: probability of the positive class, of each class, or the prediction in the label's unit.
  Result<std::vector<float>> predict(const DataSet& data, std::span<const std::uint32_t> rows);
  Result<Evaluation> evaluate(const DataSet& data, std::span<const std::uint32_t> rows);

  [[nodiscard]] std::span<float> parameters() noexcept;
  [[nodiscard]] std::span<const float> parameters() const noexcept;
  Status load(std::span<const float> parameters);
  // BatchNormalization's running statistics, where the batch's are trained by; otherwise empty. Not parameters, but part of the state.
  [[nodiscard]] std::vector<float> statistics() const;
  Status load_statistics(std::span<const float> statistics);
  [[nodiscard]] const std::vector<Parameter>& layout() const noexcept;
  [[nodiscard]] std::vector<std::uint8_t> decay_mask() const;                          // for Optimizer
  [[nodiscard]] std::vector<std::size_t> tensor_sizes() const;                         // likewise
  [[nodiscard]] std::vector<Bucket> buckets(std::size_t floats_min = 1U << 18) const;  // whole parameters, in order of completion

  [[nodiscard]] Graph export_graph() const;
  [[nodiscard]] const TargetSpec& target() const noexcept;
  [[nodiscard]] Team* team() const noexcept;           // the threads, for the rest of a step; null: one
  [[nodiscard]] std::size_t outputs() const noexcept;  // floats for each row of predict()

 private:
  struct Impl;
  explicit Trainer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The error of step `number` (the first is 1), by the rows of its batch: names the first value that is no number.
Error not_finite(Trainer& trainer, const DataSet& data, std::span<const std::uint32_t> rows, std::uint64_t key, std::uint64_t number);

// Where such steps are left out: this many one after the other are too many, for nothing will become of it.
constexpr std::uint64_t kSkippedMax = 100;
Error too_many_skipped(std::uint64_t number);

}  // namespace falaj::kernels
