// artifacts/store: the cluster's artifacts, on the control node, over storage::ArtifactStore. Chunks first, then the manifest
// that makes them an artifact; both are on disk when they are answered. Asked through fetch.hpp.
#pragma once
#include <memory>

#include "runtime/host/actor.hpp"
#include "storage/artifact_store.hpp"

namespace falaj::artifacts {

constexpr std::string_view kStore = "artifacts/store";

struct StoreOptions {
  std::shared_ptr<storage::ArtifactStore> store;
};
ChildSpec store(StoreOptions options);

}  // namespace falaj::artifacts
