// The training loop of one process, and the small values that any training loop keeps: early stopping, checkpoints. fit() is what
// deterministic distributed training must reproduce bit by bit: the sum over micro-shards in their order, divided by the
// batch's rows, then one optimizer step.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "kernels/train/optimizer.hpp"
#include "kernels/train/sampler.hpp"
#include "kernels/train/split.hpp"
#include "kernels/train/trainer.hpp"
#include "runtime/base/bytes.hpp"

namespace falaj::kernels {

// Larger is better (negate losses). A value: goes into the checkpoint.
struct EarlyStopping {
  std::uint32_t patience = 0;  // epochs without improvement; 0: never stop
  double delta_min = 0.0;
  double best = 0;
  std::uint64_t best_epoch = 0;
  std::uint32_t bad_epochs = 0;
  bool any = false;
  bool update(std::uint64_t epoch, double score);  // true: the best so far
  [[nodiscard]] bool stop() const noexcept { return patience != 0 && bad_epochs >= patience; }
  bool operator==(const EarlyStopping&) const = default;
};

// All that a training run needs to go on as if nothing had happened.
struct Checkpoint {
  std::uint64_t step = 0;  // optimizer steps done
  std::uint64_t epoch = 0;
  std::uint64_t seed = 0;
  double loss_sum = 0;  // of the epoch so far
  std::uint64_t loss_rows = 0;
  std::vector<float> parameters;
  std::vector<float> optimizer_state;
  std::vector<float> best_parameters;  // empty: none yet
  EarlyStopping stopping;
  bool operator==(const Checkpoint&) const = default;
};
Bytes encode(const Checkpoint& checkpoint);  // versioned, little endian, with a checksum
Result<Checkpoint> decode_checkpoint(ByteView bytes);

struct FitSpec {
  std::uint32_t epochs = 60;
  SamplerSpec sampler = {};
  OptimizerSpec optimizer = {};
  ScheduleKind schedule = ScheduleKind::warmup_cosine;
  double warmup_share = 0.05;  // of all steps
  std::uint32_t patience = 0;  // needs validation rows; the best epoch's parameters are restored at the end
};
Status check(const FitSpec& spec);
// What does well on tables of this size without tuning: small tables need strong weight decay, large ones hardly any.
FitSpec recommended_fit(Family family, std::size_t train_rows);
Schedule schedule_of(const FitSpec& spec, std::uint64_t steps_per_epoch);

struct EpochReport {
  std::uint64_t epoch = 0;
  double loss = 0;  // mean over the epoch's rows, at the parameters of their step
  std::optional<Evaluation> validation;
};

struct FitReport {
  std::uint64_t steps = 0;
  std::uint64_t epochs = 0;
  double loss = 0;
};

// The parameters end up in the trainer.
Result<FitReport> fit(Trainer& trainer, const DataSet& data, const FitSpec& spec, std::vector<std::uint32_t> train,
                      std::span<const std::uint32_t> validation = {}, const std::function<void(const EpochReport&)>& on_epoch = {});

// One step of a rank on its micro-shards [first, first + count): gradients[i] gets shard first + i. Returns the sum of losses.
Result<double> micro_shard_gradients(Trainer& trainer, const DataSet& data, Sampler& sampler, std::uint64_t step, std::uint32_t first,
                                     std::span<std::vector<float>> gradients);
// What the collective `fold` computes over all ranks: 0 + shards[0] + shards[1] + ...
void fold_micro_shards(std::span<const std::vector<float>> shards, std::span<float> sum);
// After the reduction: mean over the batch, then the optimizer, with `factor` of its rate. Returns the gradient's norm; where that is not
// finite nothing was changed.
double apply_step(Trainer& trainer, Optimizer& optimizer, double factor, std::size_t batch_rows, std::span<float> sum_of_gradients);

}  // namespace falaj::kernels
