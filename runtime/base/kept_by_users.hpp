// What several need and is dear to make: made once for a key, shared by all who ask for it while somebody still has it, and kept by nobody
// else.
#pragma once
#include <map>
#include <memory>
#include <mutex>

#include "runtime/base/result.hpp"

namespace falaj {

// Thread-safe. Key: ordered by <.
template <class Key, class T>
class KeptByUsers {
 public:
  // Null: nobody has it now, or somebody is about to make it.
  std::shared_ptr<const T> find(const Key& key) {
    const auto mine = slot(key);
    const std::unique_lock lock(mine->making, std::try_to_lock);
    return lock.owns_lock() ? mine->value.lock() : nullptr;
  }

  // Blocks while another makes it. make(): Result<std::shared_ptr<const T>>; its error is the answer, and the next who asks tries again.
  template <class Make>
  Result<std::shared_ptr<const T>> get(const Key& key, Make make) {
    const auto mine = slot(key);
    const std::scoped_lock lock(mine->making);
    if (auto known = mine->value.lock()) return known;
    FALAJ_ASSIGN(std::shared_ptr<const T> made, make());
    mine->value = made;
    return made;
  }

 private:
  struct Slot {
    std::mutex making;  // guards value
    std::weak_ptr<const T> value;
  };

  std::shared_ptr<Slot> slot(const Key& key) {
    const std::scoped_lock lock(mutex_);
    std::erase_if(slots_, [](const auto& entry) {
      const std::unique_lock unused(entry.second->making, std::try_to_lock);
      return unused.owns_lock() && entry.second.use_count() == 1 && entry.second->value.expired();
    });
    auto& found = slots_[key];
    if (found == nullptr) found = std::make_shared<Slot>();
    return found;
  }

  std::mutex mutex_;
  std::map<Key, std::shared_ptr<Slot>> slots_;
};

}  // namespace falaj
