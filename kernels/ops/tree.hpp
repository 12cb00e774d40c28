// Tree ensembles, whatever op they come from: read by the reference kernels and by the backends.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/ops.hpp"
#include "kernels/ops/post_transform.hpp"

namespace falaj::kernels {

enum class TreeMode : std::uint8_t { leaf, leq, lt, gte, gt, eq, neq, member };
struct TreeNode {
  TreeMode mode = TreeMode::leaf;
  bool missing_true = false;
  std::int64_t feature = 0;
  double split = 0;
  std::size_t yes = 0, no = 0;       // nodes
  std::size_t first = 0, count = 0;  // weights of a leaf
  std::vector<float> members = {};
};
struct LeafWeight {
  std::int64_t target;
  double value;
};
enum class TreeAggregate : std::uint8_t { sum, average, min, max };

struct Ensemble {
  std::vector<TreeNode> nodes;
  std::vector<LeafWeight> weights;
  std::vector<std::size_t> roots;
  std::int64_t targets = 1;
  std::vector<double> base;
  TreeAggregate aggregate = TreeAggregate::sum;
  PostTransform post = PostTransform::none;
  std::int64_t rows = 0, features = 0;

  // A walk ends at a leaf, for the nodes were checked to form trees.
  template <class T>
  [[nodiscard]] const TreeNode& leaf(std::size_t at, const T* x) const {
    while (nodes[at].mode != TreeMode::leaf) {
      const TreeNode& node = nodes[at];
      auto v = static_cast<double>(x[node.feature]);
      bool yes = false;
      switch (node.mode) {
        case TreeMode::leq:
          yes = v <= node.split;
          break;
        case TreeMode::lt:
          yes = v < node.split;
          break;
        case TreeMode::gte:
          yes = v >= node.split;
          break;
        case TreeMode::gt:
          yes = v > node.split;
          break;
        case TreeMode::eq:
          yes = v == node.split;
          break;
        case TreeMode::neq:
          yes = v != node.split;
          break;
        case TreeMode::member:
          yes = std::ranges::find(node.members, static_cast<float>(v)) != node.members.end();
          break;
        case TreeMode::leaf:
          break;
      }
      if (node.missing_true && std::isnan(v)) yes = true;
      at = yes ? node.yes : node.no;
    }
    return nodes[at];
  }

  template <class T>
  void scores(const T* x, std::vector<double>& out, std::vector<bool>& seen) const {
    std::ranges::fill(out, 0.0);
    std::fill(seen.begin(), seen.end(), false);
    for (std::size_t root : roots) {
      const TreeNode& end = leaf(root, x);
      for (std::size_t k = end.first; k < end.first + end.count; ++k) {
        auto t = static_cast<std::size_t>(weights[k].target);
        double v = weights[k].value;
        if (aggregate == TreeAggregate::min || aggregate == TreeAggregate::max) {
          out[t] = !seen[t] ? v : (aggregate == TreeAggregate::min ? std::min(out[t], v) : std::max(out[t], v));
        } else {
          out[t] += v;
        }
        seen[t] = true;
      }
    }
    for (std::size_t t = 0; t < out.size(); ++t) {
      if (aggregate == TreeAggregate::average) out[t] /= static_cast<double>(std::max<std::size_t>(roots.size(), 1));
      if (!base.empty()) out[t] += base[base.size() == 1 ? 0 : t];
    }
  }
};

struct Classifier {
  Ensemble trees;
  Tensor labels;
  bool binary = false;   // two classes, weights for one of them only
  bool positive = true;  // all weights are non-negative: then they are taken for probabilities
};
// What the ops TreeEnsembleRegressor, TreeEnsemble (both give scores) and TreeEnsembleClassifier say.
Result<Ensemble> scoring_trees(const OpCall& call);
Result<Classifier> classifying_trees(const OpCall& call);

// Sums of one row, as Ensemble::scores gives them; the backends have their own way to them.
using RowScores = std::function<void(std::int64_t row, std::vector<double>& out)>;
void write_scores(const Ensemble& trees, const RowScores& scores, float* y);
void write_classes(const Classifier& classifier, const RowScores& scores, const Io& io, bool two);

}  // namespace falaj::kernels
