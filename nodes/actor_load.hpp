// Actor messages from this process to an actor of the control node, some under way at once; for the demo and for `falaj bench`.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "nodes/client.hpp"
#include "nodes/http_load.hpp"

namespace falaj::nodes {

struct ActorLoadPlan {
  std::string actor;
  std::vector<Message> messages;  // sent in turn
  std::uint64_t requests = 1000;
  unsigned under_way = 8;
  Duration timeout = std::chrono::seconds(10);
  std::function<void(std::uint64_t done)> progress;  // from a host thread, about every hundredth
};

LoadReport run_actor_load(Client& client, const ActorLoadPlan& plan);

}  // namespace falaj::nodes
