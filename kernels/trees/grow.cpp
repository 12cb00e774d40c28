#include "kernels/trees/grow.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace falaj::kernels::trees {
namespace {

constexpr std::size_t kRowsEach = 1U << 13;  // of a leaf that is cut by several threads

struct Leaf {
  std::size_t begin = 0, end = 0;  // in the list of rows
  Sums sums;
  Split best;
  std::vector<std::int64_t> histogram;  // empty: never needed
  std::int32_t parent = -1;             // node, and the branch of it that leads here
  bool on_left = false;
  [[nodiscard]] std::size_t size() const noexcept { return end - begin; }
};

}  // namespace

struct Grower::Impl {
  const Matrix& matrix;
  const Bins& bins;
  const Spec& spec;
  Team& team;
  Layout layout;
  Scale scale;
  std::vector<Word> words;                      // of each row
  std::vector<std::vector<Word>> narrow;        // of each group
  std::vector<std::uint32_t> rows, spare;       // rows of leaf after leaf
  std::vector<std::vector<std::int64_t>> pool;  // histograms to be used again
  std::vector<std::uint8_t> column_used;
  std::vector<std::uint8_t> goes_left = std::vector<std::uint8_t>(kStride);
  std::vector<Leaf> leaves;

  Impl(const Matrix& m, const Bins& b, const Spec& s, Team& t) : matrix(m), bins(b), spec(s), team(t), layout(b) {
    for (const Matrix::Group& group : matrix.groups()) narrow.emplace_back(group.width * kStride, Word{0});
  }

  [[nodiscard]] std::span<const std::uint32_t> rows_in(const Leaf& leaf) const { return std::span(rows).subspan(leaf.begin, leaf.size()); }

  // Those with the smallest numbers drawn.
  void choose_columns(std::uint64_t number) {
    column_used.assign(bins.size(), 1);
    if (spec.column_share >= 1) return;
    const std::uint64_t numbers = stream(spec.seed, Purpose::columns, number);
    std::vector<std::size_t> order(bins.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::sort(order, {}, [&](std::size_t i) { return std::pair(draw(numbers, i), i); });
    const auto wanted = static_cast<std::size_t>(spec.column_share * static_cast<double>(bins.size()) + 0.5);
    for (std::size_t i = std::max<std::size_t>(wanted, 1); i < order.size(); ++i) column_used[order[i]] = 0;
  }

  std::vector<std::int64_t> empty_histogram() {
    if (pool.empty()) return std::vector<std::int64_t>(layout.integers());
    auto out = std::move(pool.back());
    pool.pop_back();
    return out;  // zeroed by groups, where it is filled
  }
  void give_back(std::vector<std::int64_t>& histogram) {
    if (!histogram.empty()) pool.push_back(std::move(histogram));
    histogram.clear();
  }

  void fill(const Matrix::Group& group, std::size_t g, Leaf& leaf) {
    const std::size_t first = 2 * layout.first[group.first];
    const std::size_t last = 2 * layout.first[group.first + group.width];
    std::fill(leaf.histogram.begin() + static_cast<std::ptrdiff_t>(first), leaf.histogram.begin() + static_cast<std::ptrdiff_t>(last), 0);
    accumulate(group, rows_in(leaf), words.data(), narrow[g].data(), layout, leaf.histogram.data());
  }

  [[nodiscard]] Split best_of(const Matrix::Group& group, const Leaf& leaf) const {
    Split best;
    for (std::size_t c = group.first; c < group.first + group.width; ++c) {
      if (column_used[c] == 0) continue;
      Split split = best_split(bins[c], static_cast<std::uint32_t>(c), leaf.histogram.data() + 2 * layout.first[c], leaf.sums, scale, spec);
      if (split.gain > best.gain) best = split;
    }
    return best;
  }

  // Of equal gains the first column's.
  static void settle(Leaf& leaf, std::span<const Split> of_groups) {
    leaf.best = {};
    for (const Split& split : of_groups) {
      if (split.gain > leaf.best.gain) leaf.best = split;
    }
  }

  void plant(std::span<const std::uint32_t> wanted) {
    for (Leaf& leaf : leaves) give_back(leaf.histogram);
    leaves.clear();
    rows.assign(wanted.begin(), wanted.end());
    spare.resize(rows.size());
    Leaf root{.begin = 0, .end = rows.size()};
    const auto& groups = matrix.groups();
    root.histogram = empty_histogram();
    team.run(groups.size(), [&](std::size_t g) { fill(groups[g], g, root); });
    // Any column's cells add up to the leaf's sums.
    for (std::size_t b = 0; b < bins[0].bins(); ++b) root.sums += read_cell(root.histogram.data() + 2 * b);
    if (can_split(root.sums, scale, spec)) {
      std::vector<Split> found(groups.size());
      team.run(groups.size(), [&](std::size_t g) { found[g] = best_of(groups[g], root); });
      settle(root, found);
    }
    leaves.push_back(std::move(root));
  }

  // Rows that go left to the front, both sides in their order. Returns how many.
  std::size_t part(const Leaf& leaf, const Split& split) {
    for (std::size_t b = 0; b < kStride; ++b) goes_left[b] = split.left.has(b) ? 1 : 0;
    const std::uint8_t* column = matrix.column(split.column);
    std::uint32_t* from = rows.data() + leaf.begin;
    std::uint32_t* to = spare.data() + leaf.begin;
    const std::size_t size = leaf.size();
    const std::size_t parts = size < 2 * kRowsEach ? 1 : std::min(team.threads(), size / kRowsEach);
    const std::size_t length = (size + parts - 1) / parts;
    std::vector<std::size_t> lefts(parts);
    // Each part keeps its left rows in place and its right ones beside, then all are brought together.
    team.run(parts, [&](std::size_t p) {
      const std::size_t begin = p * length;
      const std::size_t end = std::min(size, begin + length);
      std::size_t l = begin;
      std::size_t r = begin;
      for (std::size_t i = begin; i < end; ++i) {
        const std::uint32_t row = from[i];
        const std::size_t left = goes_left[column[row]];
        from[l] = row;
        to[r] = row;
        l += left;
        r += 1 - left;
      }
      lefts[p] = l - begin;
    });
    std::size_t left = lefts[0];
    for (std::size_t p = 1; p < parts; ++p) {
      std::copy_n(from + p * length, lefts[p], from + left);
      left += lefts[p];
    }
    std::size_t at = left;
    for (std::size_t p = 0; p < parts; ++p) {
      const std::size_t count = std::min(size, (p + 1) * length) - p * length - lefts[p];
      std::copy_n(to + p * length, count, from + at);
      at += count;
    }
    return left;
  }

  // Cuts leaf `i`: it becomes the left one, the right one is new.
  void cut(std::size_t i, Tree& tree) {
    const Split split = leaves[i].best;
    const auto node = static_cast<std::int32_t>(tree.nodes.size());
    if (leaves[i].parent >= 0) {
      TreeNode& above = tree.nodes[static_cast<std::size_t>(leaves[i].parent)];
      (leaves[i].on_left ? above.left : above.right) = node;
    }
    const auto right_leaf = static_cast<std::int32_t>(leaves.size());
    tree.nodes.push_back({.column = split.column,
                          .edge = split.edge,
                          .missing_left = split.missing_left,
                          .goes_left = split.left,
                          .left = ~static_cast<std::int32_t>(i),
                          .right = ~right_leaf,
                          .gain = split.gain});
    const std::size_t middle = leaves[i].begin + part(leaves[i], split);
    Leaf right{.begin = middle, .end = leaves[i].end, .sums = split.right_sums, .parent = node, .on_left = false};
    Leaf& left = leaves[i];
    left.end = middle;
    left.sums = split.left_sums;
    left.best = {};
    left.parent = node;
    left.on_left = true;
    leaves.push_back(std::move(right));
  }

  // Histograms and best cuts of the two leaves that came out of one; the first has the parent's histogram.
  void look_for_cuts(Leaf& left, Leaf& right) {
    const bool left_can = can_split(left.sums, scale, spec);
    const bool right_can = can_split(right.sums, scale, spec);
    if (!left_can && !right_can) return give_back(left.histogram);
    const bool left_small = left.size() <= right.size();
    Leaf& small = left_small ? left : right;
    Leaf& large = left_small ? right : left;
    if (left_small) large.histogram = std::move(left.histogram);
    small.histogram = empty_histogram();
    const auto& groups = matrix.groups();
    std::vector<Split> of_small(groups.size());
    std::vector<Split> of_large(groups.size());
    const bool small_can = left_small ? left_can : right_can;
    const bool large_can = left_small ? right_can : left_can;
    team.run(groups.size(), [&](std::size_t g) {
      fill(groups[g], g, small);
      subtract(groups[g], layout, large.histogram.data(), small.histogram.data());
      if (small_can) of_small[g] = best_of(groups[g], small);
      if (large_can) of_large[g] = best_of(groups[g], large);
    });
    settle(small, of_small);
    settle(large, of_large);
    if (!small_can) give_back(small.histogram);
    if (!large_can) give_back(large.histogram);
  }

  void set_values(Tree& tree, const Slopes& slopes) {
    tree.leaves.resize(leaves.size());
    team.run(leaves.size(), [&](std::size_t i) {
      double g = 0;
      double h = 0;
      for (const std::uint32_t row : rows_in(leaves[i])) {
        g += static_cast<double>(slopes.gradients[row]);
        h += static_cast<double>(slopes.hessians[row]);
      }
      tree.leaves[i] = h + spec.l2 > 0 ? static_cast<float>(-spec.learning_rate * g / (h + spec.l2)) : 0.0F;
    });
  }
};

Grower::Grower(const Matrix& matrix, const Bins& bins, const Spec& spec, Team& team)
    : impl_(std::make_unique<Impl>(matrix, bins, spec, team)) {}
Grower::~Grower() = default;

Result<Tree> Grower::grow(std::span<const std::uint32_t> rows, const Slopes& slopes, std::uint64_t number) {
  Impl& self = *impl_;
  self.scale = fit_scale(slopes.gradients, slopes.hessians, rows, self.team);
  if (!std::isfinite(self.scale.gradient) || !std::isfinite(self.scale.hessian))
    return failed("boosted trees: the scores grow beyond all numbers: lower the learning rate");
  quantise(slopes.gradients, slopes.hessians, rows, self.scale, stream(self.spec.seed, Purpose::rounding, number), self.words, self.team);
  self.choose_columns(number);
  self.plant(rows);
  Tree tree;
  while (self.leaves.size() < self.spec.leaves) {
    const auto next = std::ranges::max_element(self.leaves, {}, [](const Leaf& leaf) { return leaf.best.gain; });  // the first of equals
    if (!next->best.exists()) break;
    const auto i = static_cast<std::size_t>(next - self.leaves.begin());
    self.cut(i, tree);
    if (self.leaves.size() < self.spec.leaves) self.look_for_cuts(self.leaves[i], self.leaves.back());
  }
  self.set_values(tree, slopes);
  if (!std::ranges::all_of(tree.leaves, [](float value) { return std::isfinite(value); }))
    return failed("boosted trees: a leaf grows beyond all numbers: lower the learning rate");
  return tree;
}

std::span<const std::uint32_t> Grower::rows_of(std::size_t leaf) const { return impl_->rows_in(impl_->leaves[leaf]); }

}  // namespace falaj::kernels::trees
