// `control/resources`: takes commands, stores what is wanted, and makes it so.
//
// Level-triggered: every change (a command, a new view, a tick) only says "look again"; reconcile() compares what is wanted with what
// is, and does the next step. It may be ended at any point and begun again. Each command is audited, and answered when it is durable; one
// with an idempotency key is carried out once (commands.hpp).
#pragma once
#include "actors/control/commands.hpp"
#include "messages/control.capnp.h"
#include "runtime/cluster/view.hpp"
#include "runtime/host/actor.hpp"
#include "storage/control_store.hpp"

namespace falaj::control {

struct ResourcesOptions {
  storage::ControlStore* store = nullptr;
  cluster::ClusterViewHolder* view = nullptr;
  Epoch epoch;
  CommandLimits commands;
};

ChildSpec resources(ResourcesOptions options);

}  // namespace falaj::control
