#include "kernels/train/fit.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/codec.hpp"
#include "kernels/collective/float_mode.hpp"

namespace falaj::kernels {

bool EarlyStopping::update(std::uint64_t epoch, double score) {
  if (!any || score > best + delta_min) {
    any = true;
    best = score;
    best_epoch = epoch;
    bad_epochs = 0;
    return true;
  }
  ++bad_epochs;
  return false;
}

namespace {
constexpr std::uint32_t kCheckpointMagic = 0x4b434c46;  // "FLCK"
constexpr std::uint32_t kCheckpointFormat = 1;
}  // namespace

Bytes encode(const Checkpoint& c) {
  Writer writer;
  writer.number(kCheckpointMagic);
  writer.number(kCheckpointFormat);
  for (const std::uint64_t value : {c.step, c.epoch, c.seed, c.loss_rows}) writer.number(value);
  writer.number(c.loss_sum);
  writer.floats(c.parameters);
  writer.floats(c.optimizer_state);
  writer.floats(c.best_parameters);
  writer.number(c.stopping.patience);
  writer.number(c.stopping.delta_min);
  writer.number(c.stopping.best);
  writer.number(c.stopping.best_epoch);
  writer.number(c.stopping.bad_epochs);
  writer.number(static_cast<std::uint8_t>(c.stopping.any ? 1 : 0));
  return writer.finish();
}

Result<Checkpoint> decode_checkpoint(ByteView bytes) {
  FALAJ_ASSIGN(Reader reader, Reader::open(bytes, "checkpoint"));
  if (reader.number<std::uint32_t>() != kCheckpointMagic) return error(ErrorCode::corrupt, "checkpoint: these bytes are something else");
  if (const auto version = reader.number<std::uint32_t>(); version != kCheckpointFormat) {
    return error(
        ErrorCode::unimplemented,
        format("checkpoint: format {} is not known here (this build reads {}): use the build that wrote it", version, kCheckpointFormat));
  }
  Checkpoint c;
  for (std::uint64_t* value : {&c.step, &c.epoch, &c.seed, &c.loss_rows}) *value = reader.number<std::uint64_t>();
  c.loss_sum = reader.number<double>();
  c.parameters = reader.floats();
  c.optimizer_state = reader.floats();
  c.best_parameters = reader.floats();
  c.stopping.patience = reader.number<std::uint32_t>();
  c.stopping.delta_min = reader.number<double>();
  c.stopping.best = reader.number<double>();
  c.stopping.best_epoch = reader.number<std::uint64_t>();
  c.stopping.bad_epochs = reader.number<std::uint32_t>();
  c.stopping.any = reader.number<std::uint8_t>() != 0;
  FALAJ_TRY(reader.finish());
  return c;
}

Status check(const FitSpec& spec) {
  FALAJ_TRY(check(spec.sampler));
  FALAJ_TRY(check(spec.optimizer));
  if (spec.epochs == 0 || spec.epochs > 1'000'000) return invalid(format("epochs is {}, it must be 1 to 1000000", spec.epochs));
  if (!(spec.warmup_share >= 0 && spec.warmup_share <= 1))
    return invalid(format("warmup_share is {}, it must be in [0, 1]", spec.warmup_share));
  return {};
}

FitSpec recommended_fit(Family family, std::size_t train_rows) {
  FitSpec spec;
  spec.epochs = 40;
  spec.sampler.global_batch = 64;
  spec.optimizer.learning_rate = family == Family::linear ? 0.01 : 0.003;
  const double decay = family == Family::linear ? 800.0 : 2400.0;
  spec.optimizer.weight_decay = std::clamp(decay / static_cast<double>(std::max<std::size_t>(train_rows, 1)), 0.01, 3.0);
  return spec;
}

Schedule schedule_of(const FitSpec& spec, std::uint64_t steps_per_epoch) {
  Schedule schedule{.kind = spec.schedule};
  schedule.total_steps = steps_per_epoch * spec.epochs;
  schedule.warmup_steps = static_cast<std::uint64_t>(spec.warmup_share * static_cast<double>(schedule.total_steps));
  return schedule;
}

Result<double> micro_shard_gradients(Trainer& trainer, const DataSet& data, Sampler& sampler, std::uint64_t step, std::uint32_t first,
                                     std::span<std::vector<float>> gradients) {
  double loss = 0;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    gradients[i].resize(trainer.parameters().size());
    const auto rows = sampler.micro_shard(step, first + static_cast<std::uint32_t>(i));
    FALAJ_ASSIGN(const double part, trainer.gradient(data, rows, gradients[i], sampler.spec().seed + step));
    loss += part;
  }
  return loss;
}

double apply_step(Trainer& trainer, Optimizer& optimizer, double factor, std::size_t batch_rows, std::span<float> sum_of_gradients) {
  const float share = 1.0F / static_cast<float>(std::max<std::size_t>(batch_rows, 1));
  return optimizer.step(trainer.parameters(), sum_of_gradients, factor, trainer.team(), share);
}

Result<FitReport> fit(Trainer& trainer, const DataSet& data, const FitSpec& spec, std::vector<std::uint32_t> train,
                      std::span<const std::uint32_t> validation, const std::function<void(const EpochReport&)>& on_epoch) {
  FALAJ_TRY(check(spec));
  if (train.empty()) return invalid("there are no training rows");
  const auto train_rows = static_cast<double>(train.size());
  Sampler sampler(spec.sampler, std::move(train));
  Optimizer optimizer(spec.optimizer, trainer.parameters().size(), trainer.decay_mask());
  const std::uint64_t steps_per_epoch = sampler.steps_per_epoch();
  const Schedule schedule = schedule_of(spec, steps_per_epoch);
  EarlyStopping stopping{.patience = spec.patience};
  std::vector<float> best;
  std::vector<std::vector<float>> shards(spec.sampler.micro_shards);
  std::vector<float> sum(trainer.parameters().size());
  FitReport report;
  for (std::uint64_t epoch = 0; epoch < spec.epochs && !stopping.stop(); ++epoch) {
    double loss = 0;
    for (std::uint64_t step = epoch * steps_per_epoch; step < (epoch + 1) * steps_per_epoch; ++step) {
      FALAJ_ASSIGN(const double part, micro_shard_gradients(trainer, data, sampler, step, 0, shards));
      loss += part;
      fold_micro_shards(shards, sum);
      const auto rows = sampler.batch(step);
      const double norm = apply_step(trainer, optimizer, schedule.factor(step), rows.size(), sum);
      if (!std::isfinite(norm)) return not_finite(trainer, data, rows, spec.sampler.seed + step, step + 1);
      ++report.steps;
    }
    ++report.epochs;
    report.loss = loss / train_rows;
    EpochReport line{epoch, report.loss, std::nullopt};
    if (!validation.empty()) {
      FALAJ_ASSIGN(Evaluation evaluation, trainer.evaluate(data, validation));
      if (spec.patience != 0 && stopping.update(epoch, evaluation.score()))
        best.assign(trainer.parameters().begin(), trainer.parameters().end());
      line.validation = std::move(evaluation);
    }
    if (on_epoch) on_epoch(line);
  }
  if (!best.empty()) {
    FALAJ_TRY(trainer.load(best));
  }
  return report;
}

void fold_micro_shards(std::span<const std::vector<float>> shards, std::span<float> sum) {
  const FlushDenormals mode;
  std::ranges::fill(sum, 0.0F);
  for (const auto& shard : shards) {
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += shard[i];
  }
}

}  // namespace falaj::kernels
