// Waiting for a deployment, as the CLI, the demo and the benchmark do.
#pragma once
#include <string>

#include "nodes/client.hpp"

namespace falaj::nodes {

// Until control says that all replicas are ready. While control or its node is away it goes on asking; `deadline` names what is missing.
Status wait_ready(Client& client, const std::string& tenant, const std::string& deployment, Duration patience);

}  // namespace falaj::nodes
