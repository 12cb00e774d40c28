#include "kernels/memory.hpp"

#include <algorithm>
#include <array>
#include <numeric>

#include "runtime/base/random.hpp"

namespace falaj::kernels {
namespace {

std::size_t size_of(const Block& block) {
  constexpr std::size_t kAlign = 64;
  return (std::max<std::size_t>(block.bytes, 1) + kAlign - 1) / kAlign * kAlign;
}

// Each block in turn where it fits first.
Placing place_in_order(std::span<const Block> blocks, std::span<const std::size_t> order) {
  Placing result;
  result.offsets.assign(blocks.size(), 0);
  std::vector<std::size_t> placed;  // by offset
  for (std::size_t at : order) {
    const Block& block = blocks[at];
    const std::size_t size = size_of(block);
    std::size_t offset = 0;
    for (std::size_t other : placed) {
      const Block& there = blocks[other];
      if (there.last < block.first || block.last < there.first) continue;
      if (offset + size <= result.offsets[other]) break;  // fits in front of it, and of all that follow
      offset = std::max(offset, result.offsets[other] + size_of(there));
    }
    result.offsets[at] = offset;
    result.bytes = std::max(result.bytes, offset + size);
    auto where = std::ranges::upper_bound(placed, offset, {}, [&](std::size_t i) { return result.offsets[i]; });
    placed.insert(where, at);
  }
  return result;
}

// What lives at once at the worst step: no placing takes less.
std::size_t least_bytes(std::span<const Block> blocks) {
  std::size_t steps = 0;
  for (const Block& block : blocks) steps = std::max(steps, block.last + 1);
  std::vector<std::ptrdiff_t> change(steps + 1, 0);
  for (const Block& block : blocks) {
    change[block.first] += static_cast<std::ptrdiff_t>(size_of(block));
    change[block.last + 1] -= static_cast<std::ptrdiff_t>(size_of(block));
  }
  std::ptrdiff_t now = 0;
  std::ptrdiff_t most = 0;
  for (const std::ptrdiff_t c : change) most = std::max(most, now += c);
  return static_cast<std::size_t>(most);
}

}  // namespace

Placing place(std::span<const Block> blocks) {
  using Key = std::size_t (*)(const Block&);
  // The largest first; where that leaves holes, those that live longest, or that fill most of space and time.
  constexpr std::array<Key, 3> kKeys = {[](const Block& b) { return b.bytes; }, [](const Block& b) { return b.last - b.first; },
                                        [](const Block& b) { return b.bytes * (b.last - b.first + 1); }};
  const std::size_t least = least_bytes(blocks);
  Placing best;
  std::vector<std::size_t> best_order;
  const auto better = [&](const std::vector<std::size_t>& order) {
    Placing found = place_in_order(blocks, order);
    if (!best.offsets.empty() && found.bytes > best.bytes) return;
    best = std::move(found);
    best_order = order;
  };
  std::vector<std::size_t> order(blocks.size());
  for (const Key key : kKeys) {
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
      return std::pair(key(blocks[a]), blocks[a].bytes) > std::pair(key(blocks[b]), blocks[b].bytes);
    });
    better(order);
    if (best.bytes <= least) return best;
  }
  // Then with a block put forward here and there, as long as that is cheap and much is lost. The seed is fixed: a graph has one placing.
  constexpr std::size_t kWork = std::size_t{1} << 20;
  constexpr std::size_t kTriesMax = 512;
  Random random(1);
  for (std::size_t left = std::min(kTriesMax, kWork / (blocks.size() * blocks.size())); left > 0 && best.bytes > least + least / 32;
       --left) {
    order = best_order;
    const auto from = static_cast<std::ptrdiff_t>(random.below(order.size()));
    const auto to = static_cast<std::ptrdiff_t>(random.below(static_cast<std::uint64_t>(from) + 1));
    std::rotate(order.begin() + to, order.begin() + from, order.begin() + from + 1);
    better(order);
  }
  return best;
}

}  // namespace falaj::kernels
