// Training by a number of steps, as falaj model train does it: batch after batch through shuffled epochs, one optimizer step for one or
// several batches, each told as it is done.
#pragma once
#include <cstdint>
#include <functional>

#include "kernels/train/optimizer.hpp"
#include "kernels/train/sampler.hpp"
#include "kernels/train/trainer.hpp"

namespace falaj::kernels {

struct StepsSpec {
  SamplerSpec sampler = {};  // micro_shards does not matter here
  OptimizerSpec optimizer = {};
  Schedule schedule = {};
  bool plateau = false;  // lower the rate when an epoch's loss is no better than before
  Plateau plateau_spec = {};
  std::uint32_t accumulate = 1;  // batches of one optimizer step
  std::uint64_t steps = 0;
};
Status check(const StepsSpec& spec);

struct StepReport {
  std::uint64_t step = 0;  // the first is 1
  double loss = 0;         // mean over what the step's batches compare, before the update
  double learning_rate = 0;
  double gradient_norm = 0;  // before clipping
};

// Ends at the first loss or gradient that is not finite, with the step and the first value that went bad; nothing is updated by it.
Status train_steps(Trainer& trainer, const DataSet& data, const StepsSpec& spec, const std::function<Status(const StepReport&)>& on_step);

}  // namespace falaj::kernels
