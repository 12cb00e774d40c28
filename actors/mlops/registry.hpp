// `mlops/registry` on the control node: versions of models with their lineage, aliases, and the gate in front of `production`.
//
// Keys in the control store: models/<tenant>/<model>/head (the newest version's number), .../version/<number>, .../alias/<alias>.
// A version never changes but for its verdict; an alias moves in the same transaction that stores the verdict which allowed it. A command
// with an idempotency key is carried out once (actors/control/commands.hpp).
#pragma once
#include <functional>
#include <map>
#include <string>

#include "actors/control/commands.hpp"
#include "messages/registry.capnp.h"
#include "runtime/host/actor.hpp"
#include "storage/control_store.hpp"

namespace falaj::mlops {

using Metrics = std::map<std::string, double, std::less<>>;

// Measures `artifact` on the rows that `spec` holds out of `snapshot`.
using Evaluate = std::function<Task<Result<Metrics>>(Context&, std::string artifact, std::string snapshot, Message spec)>;

struct RegistryOptions {
  storage::ControlStore* store = nullptr;  // outlives the actor
  Evaluate evaluate;                       // empty: champions of other snapshots cannot be compared, and the verdict says so
  control::CommandLimits commands;
};

ChildSpec registry(RegistryOptions options);

// --- the gate, a pure function -------------------------------------------------------------------------------------------------------

struct GateInput {
  messages::GateSpec::Reader gate;
  Metrics candidate;
  std::uint64_t champion_version = 0;  // 0: none
  Metrics champion;                    // on the candidate's held-out rows
  std::string champion_error;          // why it could not be measured
};
struct GateVerdict {
  bool passed = true;
  std::vector<std::string> reasons;  // one for each rule, with its figure
};
GateVerdict judge(const GateInput& input);

}  // namespace falaj::mlops
