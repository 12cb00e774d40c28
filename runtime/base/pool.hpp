// Blocks of one size for what is made and freed a million times a second, often by another thread than made it.
//
// A thread keeps what it frees and makes new ones of it. One that frees more than it makes hands on whole batches, and one that makes more
// takes them: a lock for each batch, not for each block (magazines and a depot: Bonwick and Adams, "Magazines and Vmem", 2001). Beyond
// kBatchesMax batches in the depot the memory goes back. Under sanitizers each block comes from the heap, so that they see what is used
// after its end.
//
// Thread-safe, also while a thread ends.
#pragma once
#include <cstddef>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace falaj {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kBlocksFromHeap = true;
#elif defined(__has_feature)
inline constexpr bool kBlocksFromHeap = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
inline constexpr bool kBlocksFromHeap = false;
#endif

template <std::size_t Bytes>
class BlockPool {
 public:
  // Throws std::bad_alloc.
  static void* take() {
    if constexpr (kBlocksFromHeap) return ::operator new(Bytes);
    Cache& mine = t_cache;
    if (mine.head == nullptr) return refill(mine);
    --mine.count;
    return std::exchange(mine.head, mine.head->next);
  }
  static void give(void* memory) noexcept {
    if constexpr (kBlocksFromHeap) return ::operator delete(memory, Bytes);
    Cache& mine = t_cache;
    auto* block = new (memory) Block{mine.head};
    mine.head = block;
    if (++mine.count >= mine.limit) spill(mine);
  }

 private:
  static constexpr std::size_t kBatch = 64;
  static constexpr std::size_t kBatchesMax = 128;
  static_assert(Bytes >= sizeof(void*));

  struct Block {
    Block* next;
  };
  struct Cache {
    Block* head = nullptr;
    std::size_t count = 0;
    std::size_t limit = 1;  // so that the first one ever given finds out that the thread is new
    bool ended = false;     // the thread is about to be: nothing is kept any more
  };
  struct Depot {
    std::mutex mutex;
    std::vector<Block*> batches;  // of kBatch each
  };

  static Depot& depot() {
    static auto& depot = *new Depot;  // never destroyed: threads may free until the very end
    return depot;
  }
  // At the thread's end what it keeps goes back.
  struct AtEnd {
    ~AtEnd() {
      t_cache.ended = true;
      t_cache.limit = 1;
      t_cache.count = 0;
      free_all(std::exchange(t_cache.head, nullptr));
    }
  };
  static void begin(Cache& mine) {
    if (mine.ended || mine.limit != 1) return;
    static thread_local AtEnd at_end;
    static_cast<void>(&at_end);
    mine.limit = 2 * kBatch;
  }
  static void free_all(Block* block) noexcept {
    while (block != nullptr) ::operator delete(std::exchange(block, block->next), Bytes);
  }
  [[gnu::noinline]] static void* refill(Cache& mine) {
    begin(mine);
    if (!mine.ended) {
      auto& all = depot();
      const std::scoped_lock lock(all.mutex);
      if (!all.batches.empty()) {
        mine.head = all.batches.back();
        all.batches.pop_back();
        mine.count = kBatch - 1;
        return std::exchange(mine.head, mine.head->next);
      }
    }
    return ::operator new(Bytes);
  }
  [[gnu::noinline]] static void spill(Cache& mine) noexcept {
    begin(mine);
    if (mine.count < mine.limit) return;
    if (mine.ended) {
      mine.count = 0;
      return free_all(std::exchange(mine.head, nullptr));
    }
    Block* const batch = mine.head;
    Block* last = batch;
    for (std::size_t i = 1; i < kBatch; ++i) last = last->next;
    mine.head = std::exchange(last->next, nullptr);
    mine.count -= kBatch;
    {
      auto& all = depot();
      const std::scoped_lock lock(all.mutex);
      if (all.batches.capacity() == 0) all.batches.reserve(kBatchesMax);
      if (all.batches.size() < kBatchesMax) return all.batches.push_back(batch);
    }
    free_all(batch);
  }

  static constinit inline thread_local Cache t_cache;
};

}  // namespace falaj
