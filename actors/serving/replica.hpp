// `serving/replica/<deployment>/<index>.<generation>`: one model, compiled once, answering batches.
#pragma once
#include <string>

#include "messages/control.capnp.h"
#include "runtime/host/actor.hpp"

namespace falaj::serving {

struct ReplicaOptions {
  Message spec;       // EnsureActor with a ReplicaSpec
  std::string agent;  // name of this node's agent: told ActorReady (for the directory) when the model is loaded
};

// The host gives it the id and name of the spec.
ChildSpec replica(ReplicaOptions options);

}  // namespace falaj::serving
