// Whose a key is: an immutable snapshot of control's last ShardMap, and until when this node may answer for what it has.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "messages/message.hpp"
#include "messages/shards.capnp.h"
#include "runtime/base/clock.hpp"
#include "runtime/base/ids.hpp"

namespace falaj::cluster {

inline std::uint16_t shard_partition(std::string_view key, std::size_t partitions) {
  return static_cast<std::uint16_t>(stable_hash(key) % partitions);
}

struct ShardOwner {
  std::string_view node;  // as long as the map lives
  Incarnation incarnation;
  std::uint64_t epoch = 0;
};
// Nothing: nobody has it, or the map does not hold together there.
std::optional<ShardOwner> shard_owner(messages::ShardMap::Reader map, messages::ShardType::Reader type, std::size_t partition);

class ShardSnapshot {
 public:
  explicit ShardSnapshot(View<messages::ShardMap> map) : map_(std::move(map)) {}
  using Owner = ShardOwner;
  [[nodiscard]] messages::ShardMap::Reader map() const { return *map_; }
  [[nodiscard]] std::size_t partitions(std::string_view type) const;  // 0: the type is not known
  [[nodiscard]] std::optional<Owner> owner(std::string_view type, std::uint16_t partition) const;

 private:
  [[nodiscard]] std::optional<messages::ShardType::Reader> find(std::string_view type) const;
  View<messages::ShardMap> map_;
};

// Thread-safe.
class ShardHolder {
 public:
  [[nodiscard]] std::shared_ptr<const ShardSnapshot> get() const {
    const std::scoped_lock lock(mutex_);
    return snapshot_;
  }
  // False: not newer than what is held (by revision, or the same of a newer control), and ignored.
  bool set(std::shared_ptr<const ShardSnapshot> snapshot);

  void lease(Instant until) noexcept { until_.store(until.time_since_epoch().count(), std::memory_order_release); }
  [[nodiscard]] Instant leased_until() const noexcept { return Instant(Duration(until_.load(std::memory_order_acquire))); }
  [[nodiscard]] bool leased(Instant now) const noexcept { return now < leased_until(); }

  // Numbers for whoever must tell the past from the present: greater than all that an earlier owner of the partition was given.
  std::uint64_t token(std::uint64_t epoch) noexcept {
    return epoch << 40 | (tokens_.fetch_add(1, std::memory_order_relaxed) & 0xFFFFFFFFFF);
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const ShardSnapshot> snapshot_;
  std::atomic<Duration::rep> until_{0};
  std::atomic<std::uint64_t> tokens_{1};
};

}  // namespace falaj::cluster
