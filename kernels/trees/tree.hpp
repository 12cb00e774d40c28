// Grown trees as values, and a forest of them with all that is needed to ask it.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/trees/best_split.hpp"
#include "runtime/base/bytes.hpp"

namespace falaj::kernels::trees {

// A branch that is below 0 ends in the leaf ~branch.
struct TreeNode {
  std::uint32_t column = 0;
  std::uint32_t edge = 0;  // numbers: x <= upper[edge] is on the left (edge beyond the last: all that is not missing)
  bool missing_left = false;
  BinSet goes_left;
  std::int32_t left = 0, right = 0;
  double gain = 0;
  bool operator==(const TreeNode&) const = default;
};

struct Tree {
  std::vector<TreeNode> nodes;  // the first is the root; none: one leaf
  std::vector<float> leaves;    // what is added to the score, learning rate and all
  [[nodiscard]] std::size_t leaf(const Matrix& matrix, std::size_t row) const noexcept;
  bool operator==(const Tree&) const = default;
};

struct Forest {
  Bins bins;
  std::vector<float> base;  // score of each output before any tree
  std::vector<Tree> trees;  // round after round, in each one tree for each output
  [[nodiscard]] std::size_t outputs() const noexcept { return base.size(); }
  [[nodiscard]] std::size_t rounds() const noexcept { return base.empty() ? 0 : trees.size() / base.size(); }
};

// Scores of the rows, [rows x outputs], summed in the order of the trees.
std::vector<double> scores(const Forest& forest, const Matrix& matrix, std::span<const std::uint32_t> rows, Team& team);

Bytes encode(std::span<const Tree> trees);
// Checked against the bins: whatever the bytes, a walk through a tree ends in one of its leaves.
Result<std::vector<Tree>> decode_trees(ByteView bytes, const Bins& bins);

}  // namespace falaj::kernels::trees
