// `node/agent/<node>`: a node's hand. Registers with control and registers again whenever control was lost; passes each new
// ClusterView on; starts and stops the actors and worker processes that control wants here.
//
// A node goes on with its last view while control is away: nothing here stops because control is silent.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "messages/control.capnp.h"
#include "runtime/base/process.hpp"
#include "runtime/cluster/view.hpp"
#include "runtime/host/host.hpp"
#include "runtime/net/identity.hpp"

namespace falaj::control {

struct AgentOptions {
  Message self;              // Register: this node's NodeInfo
  std::string control_node;  // its links' name
  cluster::ClusterViewHolder* view = nullptr;
  std::function<void(std::shared_ptr<const cluster::ClusterSnapshot>)> on_view;  // wiring: directory, links to peers
  // Writes entries of the view's `revoked` down that are not yet in the node's own list; blocks.
  std::function<Status(const std::vector<std::string>& entries)> revoke;
  // A replica as a child of this agent; an error refuses the placement.
  std::function<Result<ChildSpec>(const Message& actor_spec)> make_replica;
  // The command that runs a worker process with these credentials (blocks shortly: it writes them to a file).
  // `slot`: the worker's number on this node, its name in the certificate; no other worker process has it meanwhile.
  std::function<Result<ProcessSpec>(messages::WorkerSpec::Reader, std::uint32_t slot, const net::Credentials&)> make_worker;
  std::function<net::SpiffeId(std::uint32_t slot)> worker_id;
  ProcessTable* processes = nullptr;
  std::function<void(messages::NodeStats::Builder)> fill_stats;
  std::function<std::pair<std::vector<ActorInfo>, std::vector<DeadLetter>>()> look;
};

std::string agent_name(std::string_view node);

ChildSpec agent(AgentOptions options);

}  // namespace falaj::control
