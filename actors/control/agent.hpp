// `node/agent/<node>`: a node's hand. Registers with control and registers again whenever control was lost; passes each new
// ClusterView on; starts and stops the actors and worker processes that control wants here.
//
// A node goes on with its last view while control is away: nothing here stops because control is silent.
#pragma once
#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "messages/control.capnp.h"
#include "runtime/cluster/view.hpp"
#include "runtime/host/host.hpp"
#include "runtime/net/identity.hpp"

namespace falaj::control {

// How a node runs its worker processes: as children of its own process, or as nodes of a simulation.
class WorkerProcesses {
 public:
  virtual ~WorkerProcesses() = default;
  virtual Result<net::SigningRequest> make_request(std::uint32_t slot) = 0;
  // Runs a worker with these credentials; blocks shortly (they are written to a file). `on_exit` is called once, on any thread.
  // `slot`: the worker's number on this node, its name in the certificate; no other worker process has it meanwhile.
  virtual Result<pid_t> start(messages::WorkerSpec::Reader spec, std::uint32_t slot, const net::Credentials& credentials,
                              std::function<void(const std::string& how)> on_exit) = 0;
  virtual void end(pid_t pid) = 0;
  [[nodiscard]] virtual bool runs(pid_t pid) const = 0;
};

struct AgentOptions {
  Message self;              // Register: this node's NodeInfo
  std::string control_node;  // its links' name
  cluster::ClusterViewHolder* view = nullptr;
  std::function<void(std::shared_ptr<const cluster::ClusterSnapshot>)> on_view;  // wiring: directory, links to peers
  // Writes entries of the view's `revoked` down that are not yet in the node's own list; blocks.
  std::function<Status(const std::vector<std::string>& entries)> revoke;
  // A replica as a child of this agent; an error refuses the placement.
  std::function<Result<ChildSpec>(const Message& actor_spec)> make_replica;
  WorkerProcesses* workers = nullptr;  // null: this node runs no workers
  std::function<void(messages::NodeStats::Builder)> fill_stats;
  std::function<std::pair<std::vector<ActorInfo>, std::vector<DeadLetter>>()> look;
  Tracer* tracer = nullptr;  // of the host
};

std::string agent_name(std::string_view node);

ChildSpec agent(AgentOptions options);

}  // namespace falaj::control
