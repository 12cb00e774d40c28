// What the commands share that train a model from a file: its data, the options of losses and optimizers, the log, the evaluation.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/train/steps.hpp"
#include "nodes/cli.hpp"
#include "nodes/run_options.hpp"

namespace falaj::nodes {

struct TrainingArguments {
  std::string model;
  std::vector<std::string> inputs;  // NAME=FILE
  std::string labels;
  std::string loss = "cross-entropy";
  std::string logits;
  double huber_delta = 1.0;
  std::uint32_t batch = 64;
  bool json = false;

  std::string optimizer = "adamw";
  std::optional<double> rate, weight_decay, momentum, beta1, beta2, epsilon;
  bool nesterov = false;
  double clip_norm = 0;
  std::string schedule = "constant";
  std::uint64_t warmup = 0, every = 0;
  double gamma = 0.1;
  std::uint32_t patience = 10;
  std::uint32_t accumulate = 1;
  std::uint64_t steps = 0;
  std::uint64_t seed = 0;
  bool no_shuffle = false, dropout = false, fixed_statistics = false;
  std::string not_finite = "stop";
  RunOptions run;
  std::vector<std::string> freeze;
  std::string log, output;
  bool external_data = false;
};

// Options that read data: model, --input, --labels, --loss, ...; and those of the steps: --optimizer, --lr, --steps, --seed, ...
void add_data_options(CLI::App& command, TrainingArguments& a);
void add_step_options(CLI::App& command, TrainingArguments& a);
Result<kernels::StepsSpec> steps_spec(const TrainingArguments& a);
Result<kernels::TrainTarget> train_target(const TrainingArguments& a, const kernels::Objective& objective);

// The model, with the sizes that its inputs leave open filled in from the arrays (all but the rows), and the arrays.
struct TrainingData {
  kernels::Graph graph;
  std::vector<kernels::Tensor> inputs;
  kernels::Tensor labels;
  kernels::Objective objective;
  std::vector<kernels::ValueInfo> declared;  // the model's inputs as its file has them
};
Result<TrainingData> read_training_data(const TrainingArguments& a);

// Loss and metrics of a graph on these rows, `batch` at a time; `logits` as of --logits. `progress`: shown on a terminal; "": none.
Result<kernels::Evaluation> evaluate_model(kernels::Graph graph, const TrainingData& data, const std::string& logits, std::uint32_t batch,
                                           const RunOptions& how = {}, const std::string& progress = {});
std::string metrics_json(const kernels::Evaluation& evaluation);

// Rows of the log, kept until the run is over: a run that fails leaves no half of one.
struct TrainingLog {
  std::string text = "step,loss,learning_rate,gradient_norm\n";
  std::vector<double> losses;  // without those of steps that were left out
  std::uint64_t skipped = 0;
  void add(const kernels::StepReport& report);
  Status write(const std::string& path) const;    // nowhere if the path is empty
  [[nodiscard]] std::string change() const;       // the first and the last loss, as people read them
  [[nodiscard]] std::string change_json() const;  // "first_loss":...,"last_loss":...,"skipped":...
};

Status check_writable(const std::string& path);  // said before hours of work, not after; an empty path is fine

}  // namespace falaj::nodes
