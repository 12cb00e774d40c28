// Checkpoints of `falaj model train`: a run that is killed goes on from its last one and ends with the same bytes, on the same machine.
//
// A checkpoint knows its run by digests of the model and the data, and by the settings; one of another run is refused with the name of
// what differs. More steps than before are no other run, unless the schedule counts them.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "kernels/train/steps.hpp"
#include "nodes/model_training.hpp"

namespace falaj::nodes {

struct CheckpointArguments {
  std::uint64_t every = 0;
  std::string file;    // written
  std::string resume;  // read first; may be the same file
};
void add_checkpoint_options(CLI::App& command, CheckpointArguments& a);
Status check(const CheckpointArguments& a);

class TrainCheckpoints {
 public:
  // `trainer` as it was made: its parameters are part of what the model is known by.
  static Result<TrainCheckpoints> open(const CheckpointArguments& a, const TrainingArguments& run, const TrainingData& data,
                                       const kernels::Trainer& trainer);
  [[nodiscard]] kernels::Checkpoints plan() const;                        // for train_steps; borrows this
  [[nodiscard]] const std::vector<kernels::StepReport>& reports() const;  // of the steps that were done before

 private:
  CheckpointArguments arguments_;
  kernels::StepsIdentity identity_;
  std::unique_ptr<kernels::StepsState> from_;
};

}  // namespace falaj::nodes
