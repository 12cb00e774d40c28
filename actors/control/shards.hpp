// `control/shards`: which node has which keys, and which singletons (messages/shards.capnp).
//
// Invariants: a node may answer only while its lease lasts; a lease is granted with the newest map or to who has it. A partition changes
// its owner in two ways only. Asked: the owner freezes it, its new owner holds what was in it, then the map changes. Unasked: the owner's
// lease has ended by this clock, which began to count later than the owner's and is given a margin, and the node is down, began anew or has
// been silent for seconds; until the new map is stored and told, the old owner gets no lease. Each map is stored before anybody is told;
// epochs of partitions only grow. After a start nothing moves unasked until every lease of an earlier control has ended.
#pragma once
#include "runtime/base/ids.hpp"
#include "runtime/cluster/view.hpp"
#include "runtime/host/actor.hpp"
#include "storage/control_store.hpp"

namespace falaj::control {

struct ShardsOptions {
  storage::ControlStore* store = nullptr;  // outlives the actor
  cluster::ClusterViewHolder* view = nullptr;
  Epoch epoch;  // of this start of control
};

ChildSpec shards(ShardsOptions options);

}  // namespace falaj::control
