// Tree ensembles over f32 columns: small trees by masks of leaves (leaf_masks.hpp); else one flat array of nodes, eight walks at a time, so
// that the loads of one hide behind the others'. Many rows walk one tree together, one row walks many trees. Sums are those of the
// reference, in its order, in double: the same bits.
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <span>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/leaf_masks.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/ops/tree.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::size_t kWalks = 8;
constexpr std::int64_t kRowsTogether = 64;  // their columns and one tree stay in the nearest cache

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("flat trees: {}", why)}; }

// A walk goes on to `child`, or to its neighbour if the test fails; a leaf leads to itself.
struct Flat {
  float split = 0;
  std::uint32_t feature = 0;
  std::uint32_t child = 0;
  std::uint16_t inner = 0;    // 1: no leaf
  std::uint16_t missing = 0;  // 1: NaN passes the test
};
struct Leaf {
  std::uint32_t first = 0, count = 0;  // weights
};

class FlatTrees {
 public:
  static Result<FlatTrees> make(const Ensemble& e) {
    FlatTrees flat;
    flat.weights_ = e.weights;
    flat.targets_ = static_cast<std::size_t>(e.targets);
    flat.features_ = e.features;
    flat.mode_ = TreeMode::leaf;
    if (e.aggregate != TreeAggregate::sum && e.aggregate != TreeAggregate::average) return refuse("only sums and averages");
    for (const TreeNode& node : e.nodes) {
      if (node.mode == TreeMode::leaf) continue;
      if (flat.mode_ != TreeMode::leaf && node.mode != flat.mode_) return refuse("nodes compare in several ways");
      flat.mode_ = node.mode;
      if (node.mode >= TreeMode::eq) return refuse("only comparisons by size");
      const auto split = static_cast<float>(node.split);
      if (static_cast<double>(split) != node.split && !std::isnan(node.split)) return refuse("splits are no float32");
      if (std::fpclassify(split) == FP_SUBNORMAL) return refuse("splits too small to be compared with as float32");
      flat.missing_ = flat.missing_ || node.missing_true;
    }
    if (e.features == 0) return refuse("there are no columns");
    flat.masks_ = LeafMasks::make(e, flat.mode_);
    for (const std::size_t root : e.roots) {
      if (!flat.masks_) flat.add_tree(e, root);
    }
    flat.divisor_ = e.aggregate == TreeAggregate::average ? static_cast<double>(std::max<std::size_t>(e.roots.size(), 1)) : 1.0;
    flat.base_ = e.base;
    return flat;
  }

  [[nodiscard]] std::string_view name() const { return masks_ ? "trees by masks of leaves, avx512" : "flat trees, eight walks"; }
  // sums: targets for each row.
  void scores(const float* x, std::int64_t rows, double* sums) const {
    std::fill_n(sums, static_cast<std::size_t>(rows) * targets_, 0.0);
    std::int64_t row = 0;
    if (masks_) {
      masks_->add(x, rows, sums);
      row = rows;
    }
    for (; row + static_cast<std::int64_t>(kWalks) <= rows; row += kRowsTogether) {
      const std::int64_t together =
          std::min(kRowsTogether, (rows - row) / static_cast<std::int64_t>(kWalks) * static_cast<std::int64_t>(kWalks));
      for (const std::uint32_t root : roots_) {
        for (std::int64_t r = row; r < row + together; r += kWalks)
          rows_of_tree(x + r * features_, root, sums + static_cast<std::size_t>(r) * targets_);
      }
      if (together < kRowsTogether) {
        row += together;
        break;
      }
    }
    for (; row < rows; ++row) trees_of_row(x + row * features_, sums + static_cast<std::size_t>(row) * targets_);
    for (std::size_t i = 0; i < static_cast<std::size_t>(rows) * targets_; ++i) {
      if (divisor_ != 1.0) sums[i] /= divisor_;
      if (!base_.empty()) sums[i] += base_[base_.size() == 1 ? 0 : i % targets_];
    }
  }

 private:
  // Breadth first, so that the two children of a node are neighbours.
  void add_tree(const Ensemble& e, std::size_t root) {
    std::vector<std::pair<std::size_t, std::uint32_t>> queue = {{root, static_cast<std::uint32_t>(nodes_.size())}};
    roots_.push_back(queue[0].second);
    nodes_.emplace_back();
    leaves_.emplace_back();
    for (std::size_t i = 0; i < queue.size(); ++i) {
      const auto [from, to] = queue[i];
      const TreeNode& node = e.nodes[from];
      if (node.mode == TreeMode::leaf) {
        nodes_[to] = {0, 0, to, 0, 0};
        leaves_[to] = {static_cast<std::uint32_t>(node.first), static_cast<std::uint32_t>(node.count)};
        continue;
      }
      const auto child = static_cast<std::uint32_t>(nodes_.size());
      nodes_[to] = {static_cast<float>(node.split), static_cast<std::uint32_t>(node.feature), child, 1,
                    static_cast<std::uint16_t>(node.missing_true ? 1 : 0)};
      nodes_.resize(nodes_.size() + 2);
      leaves_.resize(nodes_.size());
      queue.emplace_back(node.yes, child);
      queue.emplace_back(node.no, child + 1);
    }
  }

  template <TreeMode kMode, bool kMissing>
  void walk(std::array<std::uint32_t, kWalks>& end, const std::array<const float*, kWalks>& x) const {
    const Flat* nodes = nodes_.data();
    std::array<std::uint32_t, kWalks> at = end;
    std::uint32_t open = 1;
    while (open != 0) {
      open = 0;
      FALAJ_UNROLL
      for (std::size_t k = 0; k < kWalks; ++k) {
        const Flat& node = nodes[at[k]];
        const float v = x[k][node.feature];
        std::uint32_t pass = kMode == TreeMode::leq   ? v <= node.split
                             : kMode == TreeMode::lt  ? v < node.split
                             : kMode == TreeMode::gte ? v >= node.split
                                                      : v > node.split;
        if constexpr (kMissing) pass |= static_cast<std::uint32_t>(v != v) & node.missing;
        open |= node.inner;
        at[k] = node.child + (node.inner & (pass ^ 1U));
      }
    }
    end = at;
  }
  void walk(std::array<std::uint32_t, kWalks>& at, const std::array<const float*, kWalks>& x) const {
    switch (mode_) {
      case TreeMode::lt:
        return missing_ ? walk<TreeMode::lt, true>(at, x) : walk<TreeMode::lt, false>(at, x);
      case TreeMode::gte:
        return missing_ ? walk<TreeMode::gte, true>(at, x) : walk<TreeMode::gte, false>(at, x);
      case TreeMode::gt:
        return missing_ ? walk<TreeMode::gt, true>(at, x) : walk<TreeMode::gt, false>(at, x);
      default:  // leaves only, too
        return missing_ ? walk<TreeMode::leq, true>(at, x) : walk<TreeMode::leq, false>(at, x);
    }
  }
  void add(std::uint32_t end, double* sums) const {
    const Leaf leaf = leaves_[end];
    for (const LeafWeight& w : std::span(weights_).subspan(leaf.first, leaf.count)) sums[w.target] += w.value;
  }

  void rows_of_tree(const float* x, std::uint32_t root, double* sums) const {
    std::array<std::uint32_t, kWalks> at;
    std::array<const float*, kWalks> rows;
    for (std::size_t k = 0; k < kWalks; ++k) {
      at[k] = root;
      rows[k] = x + static_cast<std::int64_t>(k) * features_;
    }
    walk(at, rows);
    for (std::size_t k = 0; k < kWalks; ++k) add(at[k], sums + k * targets_);
  }
  void trees_of_row(const float* x, double* sums) const {
    std::array<const float*, kWalks> rows;
    rows.fill(x);
    for (std::size_t t = 0; t < roots_.size(); t += kWalks) {
      const std::size_t count = std::min(kWalks, roots_.size() - t);
      std::array<std::uint32_t, kWalks> at;
      for (std::size_t k = 0; k < kWalks; ++k) at[k] = roots_[t + std::min(k, count - 1)];
      walk(at, rows);
      for (std::size_t k = 0; k < count; ++k) add(at[k], sums);
    }
  }

  std::optional<LeafMasks> masks_;  // instead of nodes, where trees are small
  std::vector<Flat> nodes_;
  std::vector<Leaf> leaves_;  // by node
  std::vector<std::uint32_t> roots_;
  std::vector<LeafWeight> weights_;
  std::vector<double> base_;
  std::size_t targets_ = 1;
  std::int64_t features_ = 0;
  double divisor_ = 1.0;
  TreeMode mode_ = TreeMode::leq;
  bool missing_ = false;
};

// `Meaning` is an Ensemble or a Classifier.
template <class Meaning>
class TreesKernel final : public Kernel {
 public:
  TreesKernel(Meaning meaning, FlatTrees flat, bool two) : meaning_(std::move(meaning)), flat_(std::move(flat)), two_(two) {}
  void run(const Io& io) const override {
    const Ensemble& e = trees();
    auto* sums = reinterpret_cast<double*>(io.scratch);
    flat_.scores(io.input<float>(0), e.rows, sums);
    const RowScores row = [sums, targets = e.targets](std::int64_t r, std::vector<double>& out) {
      std::copy_n(sums + r * targets, targets, out.begin());
    };
    if constexpr (std::is_same_v<Meaning, Ensemble>) {
      write_scores(e, row, io.output<float>(0));
    } else {
      write_classes(meaning_, row, io, two_);
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return static_cast<std::size_t>(trees().rows * trees().targets) * sizeof(double);
  }
  [[nodiscard]] std::string_view implementation() const override { return flat_.name(); }

 private:
  [[nodiscard]] const Ensemble& trees() const {
    if constexpr (std::is_same_v<Meaning, Ensemble>) {
      return meaning_;
    } else {
      return meaning_.trees;
    }
  }
  Meaning meaning_;
  FlatTrees flat_;
  bool two_;
};

}  // namespace

Result<KernelPtr> make_trees(const KernelCall& call) {
  if (call.in(0).dtype != DType::f32) return refuse(format("only float32, not {}", to_string(call.in(0).dtype)));
  if (call.node.op == "TreeEnsembleClassifier") {
    FALAJ_ASSIGN(auto classifier, classifying_trees(call));
    FALAJ_ASSIGN(auto flat, FlatTrees::make(classifier.trees));
    classifier.trees.nodes.clear();
    return std::make_unique<TreesKernel<Classifier>>(std::move(classifier), std::move(flat), call.outputs.size() > 1);
  }
  FALAJ_ASSIGN(auto trees, scoring_trees(call));
  FALAJ_ASSIGN(auto flat, FlatTrees::make(trees));
  trees.nodes.clear();
  return std::make_unique<TreesKernel<Ensemble>>(std::move(trees), std::move(flat), false);
}

}  // namespace falaj::kernels::cpu
