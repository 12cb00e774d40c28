#include "runtime/cluster/shards.hpp"

namespace falaj::cluster {

std::optional<messages::ShardType::Reader> ShardSnapshot::find(std::string_view type) const {
  for (const auto one : map_->getTypes()) {
    if (text(one.getName()) == type) return one;
  }
  return std::nullopt;
}

std::size_t ShardSnapshot::partitions(std::string_view type) const {
  const auto found = find(type);
  return found ? found->getOwners().size() : 0;
}

std::optional<ShardSnapshot::Owner> ShardSnapshot::owner(std::string_view type, std::uint16_t partition) const {
  const auto found = find(type);
  if (!found) return std::nullopt;
  const auto owners = found->getOwners();
  const auto epochs = found->getEpochs();
  const auto nodes = map_->getNodes();
  if (partition >= owners.size() || partition >= epochs.size() || owners[partition] == 0 || owners[partition] > nodes.size())
    return std::nullopt;
  const auto node = nodes[owners[partition] - 1U];
  return Owner{text(node.getName()), Incarnation(node.getIncarnation()), epochs[partition]};
}

bool ShardHolder::set(std::shared_ptr<const ShardSnapshot> snapshot) {
  const std::scoped_lock lock(mutex_);
  if (snapshot_) {
    const auto order = [](const ShardSnapshot& s) { return std::pair(s.map().getControlEpoch(), s.map().getRevision()); };
    if (order(*snapshot) <= order(*snapshot_)) return false;
  }
  snapshot_ = std::move(snapshot);
  return true;
}

}  // namespace falaj::cluster
