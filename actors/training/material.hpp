// What the learners of all families share: the rows of a job, how they are split, and how a fit's end is told.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/training/learner.hpp"
#include "kernels/train/fit.hpp"

namespace falaj::training {

using Rows = std::vector<std::uint32_t>;

// All that the Learners of one process share.
struct Material {
  kernels::Table table;
  std::vector<std::string> labels;    // as texts
  std::vector<std::string> required;  // columns that the view says may not be missing
  kernels::TargetSpec target;
  std::vector<kernels::Split> splits;  // of each fit
  kernels::FamilySpec family;
  std::optional<kernels::Graph> imported;
  kernels::FitSpec fit;
  kernels::Schedule schedule;  // total_steps is filled in for each fit
  std::optional<kernels::Plateau> plateau;
  kernels::TrainTarget how;  // its spec is `target`
  bool skip_not_finite = false;
  std::uint64_t seed = 0;
};

// Metrics and confusion of held-out rows.
void note(const kernels::Evaluation& evaluation, Outcome& out);
// ONNX, with what the view requires in its metadata.
Result<Bytes> export_model(const Material& material, kernels::Graph graph);

// Family boosted_trees: a step is a round of boosting, done by the one worker's commit(); nothing is summed over ranks.
Result<std::shared_ptr<const Course>> tree_course(messages::TrainingJob::Reader job, std::shared_ptr<const Material> material);

}  // namespace falaj::training
