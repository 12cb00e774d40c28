#include "kernels/memory.hpp"

#include <algorithm>
#include <numeric>

namespace falaj::kernels {

Placing place(std::span<const Block> blocks) {
  constexpr std::size_t kAlign = 64;
  Placing result;
  result.offsets.assign(blocks.size(), 0);
  std::vector<std::size_t> order(blocks.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return blocks[a].bytes > blocks[b].bytes; });
  std::vector<std::size_t> placed;  // by offset
  for (std::size_t at : order) {
    const Block& block = blocks[at];
    std::size_t size = (std::max<std::size_t>(block.bytes, 1) + kAlign - 1) / kAlign * kAlign;
    std::size_t offset = 0;
    for (std::size_t other : placed) {
      const Block& there = blocks[other];
      if (there.last < block.first || block.last < there.first) continue;
      if (offset + size <= result.offsets[other]) break;  // fits in front of it, and of all that follow
      std::size_t end = result.offsets[other] + (std::max<std::size_t>(there.bytes, 1) + kAlign - 1) / kAlign * kAlign;
      offset = std::max(offset, end);
    }
    result.offsets[at] = offset;
    result.bytes = std::max(result.bytes, offset + size);
    auto where = std::ranges::upper_bound(placed, offset, {}, [&](std::size_t i) { return result.offsets[i]; });
    placed.insert(where, at);
  }
  return result;
}

}  // namespace falaj::kernels
