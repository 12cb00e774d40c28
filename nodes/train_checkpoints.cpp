#include "nodes/train_checkpoints.hpp"

#include <filesystem>

#include "nodes/artifacts.hpp"
#include "runtime/base/format.hpp"
#include "storage/digest.hpp"
#include "storage/files.hpp"

namespace falaj::nodes {
namespace {

void add(storage::Sha256& sum, const kernels::Tensor& tensor) {
  sum.update(format("{}{};", to_string(tensor.dtype()), to_string(tensor.shape())));
  if (tensor.dtype() != kernels::DType::string) {
    sum.update(ByteView(static_cast<const std::uint8_t*>(tensor.raw()), tensor.bytes()));
    return;
  }
  for (const auto& text : tensor.data<std::string>()) sum.update(format("{};", text.size())).update(text);
}

ByteView bytes_of(std::span<const float> values) { return {reinterpret_cast<const std::uint8_t*>(values.data()), values.size_bytes()}; }

std::string text_of(const std::optional<double>& value) { return value ? format("{:.17g}", *value) : std::string(); }

// Named as the options are.
kernels::StepsIdentity identity_of(const TrainingArguments& a, const TrainingData& data, const kernels::Trainer& trainer, ByteView model) {
  storage::Sha256 of_model;
  of_model.update(model).update(bytes_of(trainer.parameters()));  // weights may lie in other files
  const auto statistics = trainer.statistics();
  of_model.update(bytes_of(statistics));
  storage::Sha256 of_data;
  for (const auto& input : data.inputs) add(of_data, input);
  storage::Sha256 of_labels;
  add(of_labels, data.labels);
  std::string frozen;
  for (const auto& name : a.freeze) frozen += format("{}{}", frozen.empty() ? "" : ", ", name);
  return {{"model", of_model.finish().hex()},
          {"input", of_data.finish().hex()},
          {"labels", of_labels.finish().hex()},
          {"--loss", a.loss},
          {"--huber-delta", format("{:.17g}", a.huber_delta)},
          {"--logits", a.logits},
          {"--batch", std::to_string(a.batch)},
          {"--seed", std::to_string(a.seed)},
          {"--no-shuffle", a.no_shuffle ? "given" : ""},
          {"--dropout", a.dropout ? "given" : ""},
          {"--fixed-statistics", a.fixed_statistics ? "given" : ""},
          {"--freeze", frozen},
          {"--precision", a.run.precision},
          {"--optimizer", a.optimizer},
          {"--lr", text_of(a.rate)},
          {"--weight-decay", text_of(a.weight_decay)},
          {"--momentum", text_of(a.momentum)},
          {"--nesterov", a.nesterov ? "given" : ""},
          {"--beta1", text_of(a.beta1)},
          {"--beta2", text_of(a.beta2)},
          {"--epsilon", text_of(a.epsilon)},
          {"--clip-norm", format("{:.17g}", a.clip_norm)},
          {"--accumulate", std::to_string(a.accumulate)},
          {"--schedule", a.schedule},
          {"--warmup", std::to_string(a.warmup)},
          {"--every", std::to_string(a.every)},
          {"--gamma", format("{:.17g}", a.gamma)},
          {"--patience", std::to_string(a.patience)},
          {"--steps", a.schedule == "cosine" ? std::to_string(a.steps) : std::string()}};
}

}  // namespace

void add_checkpoint_options(CLI::App& command, CheckpointArguments& a) {
  command.add_option("--checkpoint-every", a.every, "Write the run's state to --checkpoint each time so many steps are done; 0: never")
      ->capture_default_str()
      ->type_name("K");
  command.add_option("--checkpoint", a.file, "Where the state is kept: replaced as a whole each time, and synced")->type_name("FILE");
  command.add_option("--resume", a.resume, "Go on from this checkpoint, with the same options: the result has the same bytes")
      ->type_name("FILE");
}

Status check(const CheckpointArguments& a) {
  if ((a.every == 0) == a.file.empty()) return {};
  return invalid(a.every == 0 ? "--checkpoint needs --checkpoint-every K" : "--checkpoint-every needs --checkpoint FILE");
}

Result<TrainCheckpoints> TrainCheckpoints::open(const CheckpointArguments& a, const TrainingArguments& run, const TrainingData& data,
                                                const kernels::Trainer& trainer) {
  TrainCheckpoints out;
  out.arguments_ = a;
  if (a.every == 0 && a.resume.empty()) return out;
  FALAJ_ASSIGN(const auto model, read_binary_file(run.model));
  out.identity_ = identity_of(run, data, trainer, model);
  if (a.resume.empty()) return out;
  FALAJ_ASSIGN(const auto content, read_binary_file(a.resume));
  auto state = kernels::decode_steps(content, out.identity_);
  if (!state) return within(a.resume, state.error());
  if (state->step > run.steps) return invalid(format("{}: is of step {}, --steps is {}", a.resume, state->step, run.steps));
  out.from_ = std::make_unique<kernels::StepsState>(std::move(*state));
  return out;
}

kernels::Checkpoints TrainCheckpoints::plan() const {
  return {.from = from_.get(), .every = arguments_.every, .save = [this](const kernels::StepsState& state) -> Status {
            const auto path = std::filesystem::absolute(arguments_.file);
            return storage::replace_file(path, kernels::encode(state, identity_), 0644);
          }};
}

const std::vector<kernels::StepReport>& TrainCheckpoints::reports() const {
  static const std::vector<kernels::StepReport> kNone;
  return from_ ? from_->reports : kNone;
}

}  // namespace falaj::nodes
