// Probes: on each machine an actor that tests the runtime's own promises against the probes of the others. Order and no repetition for each
// pair, one end for each ask within its deadline, one on_down for each watch, fenced incarnations, bounded mailboxes, bounded restarts.
#pragma once
#include <string>
#include <vector>

#include "runtime/host/host.hpp"
#include "simulations/verdict.hpp"

namespace falaj::simulations {

struct ProbeOptions {
  std::string machine;
  std::vector<std::string> peers;
  Verdict* verdict = nullptr;  // outlives the actors
};

// Starts the probe of this boot.
void start_probe(Host& host, ProbeOptions options);

}  // namespace falaj::simulations
