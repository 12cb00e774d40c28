// `node/witness` on every node: watches a few others (the next three up nodes in the order of their names' hashes), and says to control
// when the link to one is lost, again every half second for as long as that node does not answer. Control decides (`suspicion.hpp`).
// So a node has a bounded number of witnesses and of nodes to look after, however large the cluster is.
#pragma once
#include <string>
#include <vector>

#include "runtime/cluster/view.hpp"
#include "runtime/host/actor.hpp"

namespace falaj::control {

inline constexpr std::string_view kWitness = "node/witness";

struct WitnessOptions {
  std::string node;          // its own
  std::string control_node;  // its links' name; nobody accuses it: there is nobody to hear it
  cluster::ClusterViewHolder* view = nullptr;
};

// Whom `node` looks after.
std::vector<std::string> watched_by(const cluster::ClusterSnapshot& view, std::string_view node, std::string_view control_node);

ChildSpec witness(WitnessOptions options);

}  // namespace falaj::control
