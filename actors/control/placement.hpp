// Where replicas run. Part of control/resources: no actor of its own, called from its coroutines only.
//
// A replica's name carries its generation (serving/replica/<deployment>/<index>.<generation>), so that a new one can be ready before
// the old one goes. Each placement is stored before a node is told (key placement/<name>), and deleted after the node has stopped it.
#pragma once
#include <map>
#include <set>
#include <string>

#include "messages/control_internal.capnp.h"
#include "runtime/cluster/view.hpp"
#include "runtime/host/actor.hpp"
#include "storage/control_store.hpp"

namespace falaj::control {

class Placer {
 public:
  Placer(storage::ControlStore& store, cluster::ClusterViewHolder& view, Epoch epoch) : store_(store), view_(view), epoch_(epoch) {}

  void load();                 // what was placed before; throws std::runtime_error when it cannot be read
  Task<> begin(Context& ctx);  // notes which nodes are there, and stops replicas that nobody placed
  // One step towards what the record wants; gives its ResourceStatus.
  Task<Message> deployment(Context& ctx, Message record);
  Task<> remove_others(Context& ctx, std::set<std::string> deployments);

 private:
  struct Placed {
    std::string deployment;
    std::uint32_t index = 0;
    std::uint64_t generation = 0;
    std::string node;
    Message spec;  // EnsureActor
    Instant node_down_since{};
    bool node_down = false;
    bool confirmed = false;  // its node has taken it, in this incarnation
    Incarnation confirmed_by;
  };
  struct Target {
    std::uint64_t version = 0;
    std::string artifact;
  };

  [[nodiscard]] std::string crowded(std::string_view deployment, std::size_t count, const cluster::ClusterSnapshot& view) const;
  [[nodiscard]] std::string pick_node(std::string_view deployment, const cluster::ClusterSnapshot& view) const;
  Task<Result<Target>> resolve(Context& ctx, Message record);
  Task<Status> place(Context& ctx, Message record, Target target, std::uint32_t index, std::string node);
  Task<Status> ensure(Context& ctx, std::string name);
  Task<Status> stop(Context& ctx, std::string name, std::string node);
  Task<> retire(Context& ctx, std::string name);
  [[nodiscard]] bool ready(const std::string& name, const cluster::ClusterSnapshot& view) const;
  [[nodiscard]] bool fits(const Placed& placed, const Target& target, messages::Deployment::Reader wanted) const;

  storage::ControlStore& store_;
  cluster::ClusterViewHolder& view_;
  Epoch epoch_;
  std::map<std::string, Placed> placed_;
};

}  // namespace falaj::control
