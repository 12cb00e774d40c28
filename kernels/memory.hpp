// Where the values of a plan live: offsets in one arena for blocks that are each needed from one launch to another.
#pragma once
#include <cstddef>
#include <span>
#include <vector>

namespace falaj::kernels {

struct Block {
  std::size_t bytes = 0;
  std::size_t first = 0, last = 0;  // launches, both included
};
struct Placing {
  std::vector<std::size_t> offsets;  // one for each block, multiples of 64
  std::size_t bytes = 0;             // size of the arena
};
// Blocks that are needed at one time do not overlap. Largest first, each at the lowest offset that is free while it is needed.
Placing place(std::span<const Block> blocks);

}  // namespace falaj::kernels
