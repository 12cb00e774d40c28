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
// Blocks that are needed at one time do not overlap. Each lies at the lowest offset that is free while it is needed, in the best of a few
// orders of choosing: the largest first, if that is as good as can be.
Placing place(std::span<const Block> blocks);

}  // namespace falaj::kernels
