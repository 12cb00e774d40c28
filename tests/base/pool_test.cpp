#include "runtime/base/pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <set>
#include <vector>

#include "runtime/base/thread.hpp"

namespace falaj {
namespace {

using Pool = BlockPool<48>;

TEST(BlockPool, NoBlockIsGivenTwice) {
  std::set<void*> held;
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 1000; ++i) EXPECT_TRUE(held.insert(Pool::take()).second);
    for (auto* block : held) Pool::give(block);
    held.clear();
  }
}

// One thread makes, the other frees, and both end: what lies in a block is what its maker wrote, whoever had it before.
TEST(BlockPool, BlocksTravelBetweenThreads) {
  constexpr std::size_t kRing = 256;
  constexpr std::uint64_t kBlocks = 50'000;
  std::vector<std::atomic<std::uint64_t*>> ring(kRing);
  std::uint64_t wrong = 0;
  {
    Thread maker("maker", [&] {
      for (std::uint64_t i = 0; i < kBlocks; ++i) {
        auto* block = static_cast<std::uint64_t*>(Pool::take());
        block[0] = i;
        block[5] = ~i;
        auto& place = ring[i % kRing];
        while (place.load(std::memory_order_acquire) != nullptr) {
        }
        place.store(block, std::memory_order_release);
      }
    });
    Thread freer("freer", [&] {
      for (std::uint64_t i = 0; i < kBlocks; ++i) {
        auto& place = ring[i % kRing];
        std::uint64_t* block = nullptr;
        while ((block = place.load(std::memory_order_acquire)) == nullptr) {
        }
        place.store(nullptr, std::memory_order_release);
        if (block[0] != i || block[5] != ~i) ++wrong;
        Pool::give(block);
      }
    });
  }
  EXPECT_EQ(wrong, 0U);
}

// What the thread-local objects of a thread free after its cache has ended must not be lost or kept.
TEST(BlockPool, AThreadMayFreeWhileItEnds) {
  struct Late {
    std::vector<void*> blocks;
    ~Late() {
      for (auto* block : blocks) Pool::give(block);
      Pool::give(Pool::take());
    }
  };
  for (int i = 0; i < 20; ++i) {
    Thread("late", [] {
      static thread_local Late late;  // made before the cache's own end, so destroyed after it
      for (int n = 0; n < 500; ++n) late.blocks.push_back(Pool::take());
    });
  }
}

}  // namespace
}  // namespace falaj
