// Tree ensembles without walks, for AVX-512: after Lucchese and others, QuickScorer (SIGIR 2015). A tree's leaves are bits of a mask, from
// left ("yes") to right. Each node whose test fails clears the leaves of its left side, whatever the order; the walk would have ended at
// the leftmost leaf that is left. So sixteen trees are sixteen lanes: all nodes of all of them are tested, without a branch that depends
// on data and without a load that waits for another.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/ops/tree.hpp"
#include "kernels/tensor.hpp"

namespace falaj::kernels::cpu {

class LeafMasks {
 public:
  // None where a tree has more than 32 leaves, or the CPU no AVX-512. All nodes compare by `mode`, which is one by size, with splits that
  // are f32 and not denormal.
  static std::optional<LeafMasks> make(const Ensemble& e, TreeMode mode);
  // Adds the leaves' weights to each row's sums (e.targets of them), in the order of the trees.
  void add(const float* x, std::int64_t rows, double* sums) const;

 private:
  struct Node {
    float split;
    std::int32_t feature;
    bool missing;        // NaN passes the test
    std::uint32_t kept;  // leaves, where the test fails
  };
  struct Leaf {
    std::size_t first = 0, count = 0;  // weights
  };
  struct Tree {
    std::vector<Node> nodes;
    std::vector<Leaf> leaves;
  };
  // Sixteen trees. A slot is one node of each: sixteen splits, columns and masks.
  struct Group {
    Tensor slots;
    std::vector<std::uint16_t> missing;  // by slot, a bit for each tree
  };
  static void collect(const Ensemble& e, std::size_t at, Tree& tree);
  [[nodiscard]] Group group_of(const std::vector<Tree>& trees, std::size_t first) const;
  void add_leaves(std::size_t first, const std::uint32_t* left, double* sums) const;
  template <bool kEqual>
  void rows_of_group(std::size_t group, const float* x, std::int64_t rows, double* sums) const;

  std::vector<Group> groups_;
  std::vector<Leaf> leaves_;    // 32 for each tree
  std::vector<double> values_;  // likewise: their weights, where none has several and there is one target; else empty
  std::vector<LeafWeight> weights_;
  std::size_t trees_ = 0, targets_ = 1;
  std::int64_t features_ = 0;
  bool equal_ = true;    // a value that is the split passes
  bool turned_ = false;  // larger values pass: all signs are turned
  bool missing_ = false;
};

}  // namespace falaj::kernels::cpu
