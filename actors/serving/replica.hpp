// `serving/replica/<deployment>/<index>.<generation>`: one model, answering batches. Replicas of a process share what is compiled.
#pragma once
#include <memory>
#include <string>

#include "actors/serving/models.hpp"
#include "messages/control.capnp.h"
#include "runtime/host/actor.hpp"

namespace falaj::serving {

struct ReplicaOptions {
  Message spec;                    // EnsureActor with a ReplicaSpec
  std::string agent;               // name of this node's agent: told ActorReady (for the directory) when the model is loaded
  std::shared_ptr<Models> models;  // of this process
};

// The host gives it the id and name of the spec.
ChildSpec replica(ReplicaOptions options);

}  // namespace falaj::serving
