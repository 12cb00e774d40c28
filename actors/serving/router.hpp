// `serving/router` on every gateway node: chooses a replica for each request, and another when that one is lost.
#pragma once
#include "runtime/cluster/view.hpp"
#include "runtime/host/actor.hpp"

namespace falaj::serving {

struct RouterOptions {
  const cluster::ClusterViewHolder* view = nullptr;  // outlives the actor
};

ChildSpec router(RouterOptions options);

}  // namespace falaj::serving
