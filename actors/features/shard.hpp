// features/shard/<node>: the rows of the partitions that the cluster view gives to this node. Asked by fronts only.
//
// A ShardPut is answered when its rows are on disk. What is queued while a commit runs goes into the next commit together. Rows
// older than the view's TTL are not read. A partition that belongs to another node is refused with `conflict`, which names the owner.
// Not here: purposes, tenants and audit (front.hpp).
#pragma once
#include <memory>
#include <string>

#include "runtime/cluster/view.hpp"
#include "runtime/host/actor.hpp"
#include "storage/feature_rows.hpp"

namespace falaj::features {

struct ShardOptions {
  std::string node;
  std::shared_ptr<storage::FeatureRows> rows;
  const cluster::ClusterViewHolder* cluster = nullptr;  // outlives the actor
  std::size_t commit_rows_max = 8192;                   // rows in one transaction
  std::size_t queued_rows_max = 65536;                  // beyond it puts are refused with overloaded
};

std::string shard_name(std::string_view node);  // "features/shard/<node>"
ChildSpec shard(ShardOptions options);

}  // namespace falaj::features
