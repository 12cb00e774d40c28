// `control/membership`: who is in the cluster, what runs where, and the view of it that every node follows.
//
// Invariants: the epoch grows with every start of control (persisted before the first view), the revision with every change; a node
// is up from its Register until control has lost it (its agent's end, seen by watch, or an accused node that does not answer) and
// another node's witness says the same (`suspicion.hpp`, `witness.hpp`). Who is known and who is to leave is stored. With fewer than
// half of the known nodes here nothing is placed anew, and the view says so. Partitions are dealt to features nodes when the first of
// them is needed, and stay: rows lie there.
#pragma once
#include <map>
#include <set>
#include <string>

#include "messages/control.capnp.h"
#include "messages/governance.capnp.h"
#include "runtime/host/actor.hpp"
#include "storage/control_store.hpp"

namespace falaj::control {

struct MembershipOptions {
  std::string cluster;
  Epoch epoch;                   // of this start, from next_epoch()
  storage::ControlStore* store;  // outlives the actor
};

// Reads, increments and persists control's epoch. Blocking; call once at start.
Result<Epoch> next_epoch(storage::ControlStore& store);

ChildSpec membership(MembershipOptions options);

}  // namespace falaj::control
