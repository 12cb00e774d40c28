// features/front: every node's door to the feature shards, wherever they are.
//
// It settles who may: the tenant of the message's scope, and the purpose, which must be one that the view allows (a read without
// one is denied, and the refusal audited). Reads of views with personal fields, and commands, are audited on this node's disk
// before they are done: with a count of entities, never their names. Then it cuts the request by partition, asks the shards in
// parallel, and puts the answers into the order asked. unreachable, gone and not-yet-found shards are asked again until
// the message's deadline: reads have no effect, and a row written twice is one row.
//
// CreateSnapshot reads all partitions in order and streams them into artifacts/store, holding one window of pages.
#pragma once
#include "runtime/cluster/view.hpp"
#include "runtime/host/actor.hpp"

namespace falaj::features {

struct FrontOptions {
  const cluster::ClusterViewHolder* cluster = nullptr;  // outlives the actor
  std::size_t page_rows = 1024;                         // of a scan
  std::size_t scan_window = 16;                         // partitions read at once for a snapshot
  Duration retry_min = std::chrono::milliseconds(5);
  Duration retry_max = std::chrono::milliseconds(200);
  Duration snapshot_timeout = std::chrono::seconds(60);  // for one page or chunk of a snapshot
  bool require_audit = true;                             // false: without governance/audit on this node requests go on unaudited (tests)
};

constexpr std::string_view kFront = "features/front";
ChildSpec front(FrontOptions options);

}  // namespace falaj::features
