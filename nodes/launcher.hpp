// The local launcher: runs the nodes of one directory as processes of this machine, starts a dead one again, and writes
// cluster.json. `falaj up` starts it in the background, `falaj down` ends it and with it just those nodes.
#pragma once
#include <string>
#include <vector>

#include "nodes/setup.hpp"

namespace falaj::nodes {

// The nodes of `falaj up`: control+gateway, 2 compute, 2 features, 2 serving, on free ports of 127.0.0.1.
Result<std::vector<NodePlan>> local_plan();

// Makes what is missing of the cluster in `dir`, starts the launcher in the background, and waits until every node has registered.
// `conflict`: it runs already.
Status up(const ClusterDir& dir, const std::string& cluster, const Clock& clock, Duration timeout);
// Ends the launcher of `dir` and waits for it. not_found: none runs.
Status down(const ClusterDir& dir, const Clock& clock, Duration timeout);

// Body of the background process; returns its exit code.
int run_launcher(const ClusterDir& dir);

}  // namespace falaj::nodes
