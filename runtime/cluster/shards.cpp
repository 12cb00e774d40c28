#include "runtime/cluster/shards.hpp"

namespace falaj::cluster {

std::optional<ShardOwner> shard_owner(messages::ShardMap::Reader map, messages::ShardType::Reader type, std::size_t partition) {
  const auto owners = type.getOwners();
  const auto epochs = type.getEpochs();
  const auto nodes = map.getNodes();
  const auto at = static_cast<unsigned>(partition);
  if (at >= owners.size() || at >= epochs.size() || owners[at] == 0 || owners[at] > nodes.size()) return std::nullopt;
  const auto node = nodes[owners[at] - 1U];
  return ShardOwner{text(node.getName()), Incarnation(node.getIncarnation()), epochs[at]};
}

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
  return shard_owner(*map_, *found, partition);
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
