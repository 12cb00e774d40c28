// Training by a number of steps, as falaj model train does it: batch after batch through shuffled epochs, one optimizer step for one or
// several batches, each told as it is done.
#pragma once
#include <cstdint>
#include <functional>

#include "kernels/train/optimizer.hpp"
#include "kernels/train/sampler.hpp"
#include "kernels/train/steps_state.hpp"
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
  bool skip_not_finite = false;  // steps whose loss or gradient is no number are left out, instead of ending the run
};
Status check(const StepsSpec& spec);

struct Checkpoints {
  const StepsState* from = nullptr;  // goes on from there, on a trainer made alike; its reports are not told again
  std::uint64_t every = 0;           // steps; 0: never
  std::function<Status(const StepsState&)> save = {};
};

// Ends at the first loss or gradient that is not finite, with the step and the first value that went bad; or leaves such steps out, but
// for too many one after the other. Nothing is updated by them.
Status train_steps(Trainer& trainer, const DataSet& data, const StepsSpec& spec, const std::function<Status(const StepReport&)>& on_step,
                   const Checkpoints& checkpoints = {});

}  // namespace falaj::kernels
