// One tree, leaf by leaf: the leaf that gains most is cut next, until there are enough leaves or nothing is gained. Of two new leaves
// only the smaller one's rows are counted; the other's histogram is the parent's less that.
//
// Deterministic: the same rows, gradients and numbers drawn give the same tree for any number of threads.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/trees/tree.hpp"

namespace falaj::kernels::trees {

// Gradients and hessians of the loss for one output, indexed by row.
struct Slopes {
  std::span<const float> gradients, hessians;
};

class Grower {
 public:
  // The matrix must be packed; all must outlive the Grower.
  Grower(const Matrix& matrix, const Bins& bins, const Spec& spec, Team& team);
  ~Grower();
  Grower(const Grower&) = delete;
  Grower& operator=(const Grower&) = delete;

  // `number` of the tree: what is drawn for it depends on this and the seed. Leaves hold -learning_rate * G / (H + l2), of the slopes
  // themselves, not of their whole numbers. `failed` when slopes are no longer numbers.
  Result<Tree> grow(std::span<const std::uint32_t> rows, const Slopes& slopes, std::uint64_t number);
  // Of the tree grown last: the rows of each leaf, in the order of `rows`.
  [[nodiscard]] std::span<const std::uint32_t> rows_of(std::size_t leaf) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace falaj::kernels::trees
