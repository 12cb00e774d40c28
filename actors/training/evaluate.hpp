// Measures a model on the rows that a job holds out of a snapshot: how the registry's gate compares with a champion that was measured
// on other rows. For wiring: RegistryOptions::evaluate.
#pragma once
#include <map>
#include <string>

#include "runtime/host/actor.hpp"

namespace falaj::training {

// `spec`: a TrainingJob. `principal`: in whose name the snapshot is read, for the job's purpose.
Task<Result<std::map<std::string, double, std::less<>>>> evaluate(Context& ctx, std::string artifact, std::string snapshot, Message spec,
                                                                  std::string principal);

}  // namespace falaj::training
