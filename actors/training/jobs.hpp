// `training/jobs` on the control node: which jobs have run, run, and should run. Starts one training/job for each run that is not
// over, again after a restart, and answers what `falaj runs` asks.
#pragma once
#include "actors/training/job.hpp"

namespace falaj::training {

ChildSpec jobs(JobsOptions options);

}  // namespace falaj::training
