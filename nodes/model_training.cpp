// The training options of `falaj model`, and what stands behind them.
#include "nodes/model_training.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "kernels/plan.hpp"
#include "kernels/train/cut.hpp"
#include "nodes/array_files.hpp"
#include "nodes/artifacts.hpp"
#include "nodes/model_files.hpp"
#include "nodes/progress.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/thread.hpp"

namespace falaj::nodes {

namespace fs = std::filesystem;
using kernels::Tensor;

Result<TrainingData> read_training_data(const TrainingArguments& a) {
  TrainingData data;
  FALAJ_ASSIGN(data.graph, load_model(a.model));
  data.declared = data.graph.inputs;
  FALAJ_ASSIGN(data.inputs, read_rows(data.graph, a.inputs));
  FALAJ_ASSIGN(data.labels, read_label_array(a.labels));
  if (data.labels.shape().empty()) return invalid(format("{}: labels need rows in their first dimension", a.labels));
  FALAJ_ASSIGN(data.objective.loss, kernels::parse_loss(a.loss));
  data.objective.huber_delta = a.huber_delta;
  data.objective.label_row = data.labels.shape();
  data.objective.label_row.erase(0);
  if (!data.inputs.empty() && data.inputs[0].shape()[0] != data.labels.shape()[0]) {
    return invalid(format("{}: labels for {} rows; input '{}' has {}", a.labels, data.labels.shape()[0], data.graph.inputs[0].name,
                          data.inputs[0].shape()[0]));
  }
  return data;
}

Result<kernels::Evaluation> evaluate_model(kernels::Graph graph, const TrainingData& data, const std::string& logits, std::uint32_t batch,
                                           const RunOptions& how, const std::string& progress) {
  if (batch == 0) return invalid("--batch must be at least 1");
  FALAJ_ASSIGN(const unsigned threads, usable_threads(how.threads));
  FALAJ_ASSIGN(const auto value, kernels::logits_of(graph, logits));
  graph.outputs = {{value, kernels::DType::undefined, {}, {}, false}};
  FALAJ_ASSIGN(auto compiled, kernels::compile(std::move(graph), compile_options(how.precision, threads)));
  kernels::Executor executor(std::move(compiled), threads);
  std::optional<kernels::Evaluation> total;
  const std::int64_t rows = data.labels.shape()[0];
  Progress bar(progress, progress.empty() ? 0 : static_cast<std::uint64_t>(rows));
  for (std::int64_t first = 0; first < rows; first += batch) {
    const std::int64_t count = std::min<std::int64_t>(batch, rows - first);
    std::vector<Tensor> inputs;
    for (const Tensor& input : data.inputs) inputs.push_back(input.rows(first, count));
    std::vector<Tensor> outputs;
    FALAJ_TRY(executor.run(inputs, outputs));
    kernels::Shape row = outputs[0].shape();
    if (row.empty() || row[0] != count)
      return invalid(format("'{}' has shape {} for {} rows: it has no row for each", value, to_string(row), count));
    row.erase(0);
    FALAJ_ASSIGN(const auto comparison, kernels::compare(data.objective, row));
    auto labels = kernels::read_labels(comparison, data.labels.rows(first, count));
    if (!labels) return within(format("labels, from row {} on", first), labels.error());
    FALAJ_ASSIGN(auto part, kernels::measure(comparison, outputs[0], *labels));
    if (total) {
      FALAJ_TRY(total->merge(part));
    } else {
      total = std::move(part);
    }
    bar.at(static_cast<std::uint64_t>(first + count));
  }
  bar.end();
  if (!total) return invalid("there are no rows to evaluate");
  return std::move(*total);
}

std::string metrics_json(const kernels::Evaluation& evaluation) {
  std::string out = "{";
  for (const auto& [name, value] : evaluation.named())
    out += format("{}\"{}\":{}", out.size() > 1 ? "," : "", name, std::isfinite(value) ? format("{:.9g}", value) : std::string("null"));
  return out + "}";
}

void TrainingLog::add(const kernels::StepReport& report) {
  text += format("{},{:.9g},{:.9g},{:.9g}\n", report.step, report.loss, report.learning_rate, report.gradient_norm);
  if (report.skipped()) {
    ++skipped;
  } else {
    losses.push_back(report.loss);
  }
}

std::string TrainingLog::change() const {
  if (losses.empty()) return format("all {} steps left out: no number", skipped);
  return format("loss {:.6g} -> {:.6g}{}", losses.front(), losses.back(),
                skipped == 0 ? std::string() : format(", {} steps left out: no number", skipped));
}

std::string TrainingLog::change_json() const {
  const auto number = [&](bool last) {
    return losses.empty() ? std::string("null") : format("{:.9g}", last ? losses.back() : losses.front());
  };
  return format("\"first_loss\":{},\"last_loss\":{},\"skipped\":{}", number(false), number(true), skipped);
}

Status TrainingLog::write(const std::string& path) const { return path.empty() ? Status{} : write_file(path, as_bytes(text)); }

Result<kernels::StepsSpec> steps_spec(const TrainingArguments& a) {
  kernels::StepsSpec spec;
  FALAJ_ASSIGN(const auto kind, kernels::optimizer_kind(a.optimizer));
  spec.optimizer = kernels::default_optimizer(kind);
  spec.optimizer.learning_rate = a.rate.value_or(spec.optimizer.learning_rate);
  spec.optimizer.weight_decay = a.weight_decay.value_or(spec.optimizer.weight_decay);
  spec.optimizer.momentum = a.momentum.value_or(spec.optimizer.momentum);
  spec.optimizer.beta1 = a.beta1.value_or(spec.optimizer.beta1);
  spec.optimizer.beta2 = a.beta2.value_or(spec.optimizer.beta2);
  spec.optimizer.epsilon = a.epsilon.value_or(spec.optimizer.epsilon);
  spec.optimizer.nesterov = a.nesterov;
  spec.optimizer.clip_norm = a.clip_norm;
  spec.sampler = {.global_batch = a.batch, .seed = a.seed, .shuffle = !a.no_shuffle};
  spec.steps = a.steps;
  spec.accumulate = a.accumulate;
  spec.schedule.warmup_steps = a.warmup;
  spec.schedule.total_steps = a.steps;
  spec.schedule.every = a.every;
  spec.schedule.gamma = spec.plateau_spec.gamma = a.gamma;
  spec.plateau_spec.patience = a.patience;
  if (a.schedule == "cosine") spec.schedule.kind = kernels::ScheduleKind::warmup_cosine;
  if (a.schedule == "step") spec.schedule.kind = kernels::ScheduleKind::step;
  spec.plateau = a.schedule == "plateau";
  spec.skip_not_finite = a.not_finite == "skip";
  FALAJ_TRY(check(spec));
  return spec;
}

Result<kernels::TrainTarget> train_target(const TrainingArguments& a, const kernels::Objective& objective) {
  FALAJ_ASSIGN(const unsigned threads, usable_threads(a.run.threads));
  return kernels::TrainTarget{.logits = a.logits,
                              .frozen = a.freeze,
                              .objective = objective,
                              .batch_statistics = !a.fixed_statistics,
                              .dropout = a.dropout,
                              .bf16 = a.run.precision == "bf16",
                              .threads = threads};
}

Status check_writable(const std::string& path) {
  if (path.empty()) return {};
  const fs::path folder = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path(".");
  if (::access(folder.c_str(), W_OK | X_OK) == 0) return {};
  return Error{ErrorCode::invalid, format("{}: cannot be written: {}", path, std::strerror(errno))};
}

void add_data_options(CLI::App& command, TrainingArguments& a) {
  command.add_option("model", a.model, "ONNX file")->required()->type_name("FILE");
  command
      .add_option("--input,-i", a.inputs,
                  "NAME=FILE, one for each input; rows in the first dimension. FILE is X.npy, X.npz[:ENTRY] or X.csv[:COLUMN,...]")
      ->type_name("NAME=FILE");
  command
      .add_option("--labels", a.labels,
                  "Labels, .npy, .npz[:ENTRY] or .csv:COLUMN: class numbers for cross-entropy (-100 counts as nothing), else numbers")
      ->required()
      ->type_name("FILE");
  command.add_option("--loss", a.loss, "cross-entropy, bce (with logits), mse, l1, huber: means, as PyTorch's losses")
      ->capture_default_str()
      ->check(CLI::IsMember({"cross-entropy", "bce", "mse", "l1", "huber"}));
  command.add_option("--huber-delta", a.huber_delta, "Where the Huber loss turns from squares to lines")->capture_default_str();
  command
      .add_option("--logits", a.logits,
                  "Value that is compared with the labels; by default what feeds the last Sigmoid or Softmax, or the first output")
      ->type_name("NAME");
  command.add_option("--batch,-b", a.batch, "Rows at a time")->capture_default_str()->type_name("N");
  command.add_flag("--json", a.json, "Print JSON");
}

void add_step_options(CLI::App& command, TrainingArguments& a) {
  command.add_option("--optimizer", a.optimizer, "adamw, adam, sgd, lamb; what is not given is PyTorch's default")
      ->capture_default_str()
      ->check(CLI::IsMember({"adamw", "adam", "sgd", "lamb"}));
  command.add_option("--lr", a.rate, "Learning rate (0.001)")->type_name("X");
  command.add_option("--weight-decay", a.weight_decay, "Of every trained tensor (adamw, lamb 0.01; adam, sgd 0)")->type_name("X");
  command.add_option("--momentum", a.momentum, "Of sgd (0)")->type_name("X");
  command.add_flag("--nesterov", a.nesterov, "Nesterov's momentum");
  command.add_option("--beta1", a.beta1, "Of adam, adamw, lamb (0.9)")->type_name("X");
  command.add_option("--beta2", a.beta2, "Of adam, adamw, lamb (0.999)")->type_name("X");
  command.add_option("--epsilon", a.epsilon, "Of adam, adamw (1e-8), lamb (1e-6)")->type_name("X");
  command.add_option("--clip-norm", a.clip_norm, "Largest norm of all gradients together; 0: any")->capture_default_str()->type_name("X");
  command
      .add_option(
          "--precision", a.run.precision,
          "f32, or bf16: products and convolutions take their operands rounded to bfloat16, which is what is kept between convolutions; "
          "sums, statistics and parameters stay f32")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  command.add_option("--threads", a.run.threads, "0: as many as there are; the trained model does not depend on it")
      ->capture_default_str()
      ->type_name("T");
  command.add_option("--accumulate", a.accumulate, "Batches of one step")->capture_default_str()->type_name("N");
  command.add_option("--schedule", a.schedule, "Of the learning rate: constant, cosine (to 0 at the last step), step, plateau")
      ->capture_default_str()
      ->check(CLI::IsMember({"constant", "cosine", "step", "plateau"}));
  command.add_option("--warmup", a.warmup, "Steps over which the rate rises to its full height")->capture_default_str()->type_name("N");
  command.add_option("--every", a.every, "Schedule step: steps between drops")->type_name("N");
  command.add_option("--gamma", a.gamma, "Schedules step and plateau: factor of a drop")->capture_default_str()->type_name("X");
  command.add_option("--patience", a.patience, "Schedule plateau: epochs without a better loss that are borne")
      ->capture_default_str()
      ->type_name("N");
  command.add_option("--steps", a.steps, "Optimizer steps")->capture_default_str()->type_name("K");
  command.add_option("--seed", a.seed, "Of the order of rows, and of dropout")->capture_default_str()->type_name("S");
  command.add_flag("--no-shuffle", a.no_shuffle, "Take the rows in their order, epoch after epoch");
  command.add_flag("--dropout", a.dropout, "Let the model's Dropout nodes drop; without it they pass everything");
  command.add_flag("--fixed-statistics", a.fixed_statistics,
                   "Keep BatchNormalization's running statistics, instead of training by the batch's");
  command
      .add_option("--not-finite", a.not_finite,
                  "When a step's loss or gradient is no number: stop, with the first value that went bad, or skip the step and count it")
      ->capture_default_str()
      ->check(CLI::IsMember({"stop", "skip"}));
  command.add_option("--freeze", a.freeze, "Initialisers that are not trained; a name may end in *")->type_name("NAME");
  command.add_option("--log", a.log, "CSV with one row a step: step, loss before the update, learning rate, norm of the gradient")
      ->type_name("FILE");
}

}  // namespace falaj::nodes
