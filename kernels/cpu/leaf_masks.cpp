#include "kernels/cpu/leaf_masks.hpp"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>

#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/vector_math.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::size_t kTrees = 16;         // of a group
constexpr std::size_t kLeaves = 32;        // of a tree, at most
constexpr std::int64_t kInRegisters = 32;  // columns that two vectors hold

}  // namespace

// Yes first: leaves come from left to right.
void LeafMasks::collect(const Ensemble& e, std::size_t at, Tree& tree) {
  const TreeNode& node = e.nodes[at];
  if (tree.leaves.size() > kLeaves) return;  // refused anyway
  if (node.mode == TreeMode::leaf) {
    tree.leaves.push_back({node.first, node.count});
    return;
  }
  const std::size_t from = tree.leaves.size();
  collect(e, node.yes, tree);
  const std::uint64_t left = (std::uint64_t{1} << std::min(tree.leaves.size(), kLeaves)) - (std::uint64_t{1} << std::min(from, kLeaves));
  tree.nodes.push_back(
      {static_cast<float>(node.split), static_cast<std::int32_t>(node.feature), node.missing_true, ~static_cast<std::uint32_t>(left)});
  collect(e, node.no, tree);
}

LeafMasks::Group LeafMasks::group_of(const std::vector<Tree>& trees, std::size_t first) const {
  const std::size_t count = std::min(kTrees, trees.size() - first);
  std::size_t slots = 0;
  for (std::size_t t = 0; t < count; ++t) slots = std::max(slots, trees[first + t].nodes.size());
  Group group{Tensor(DType::i32, {static_cast<std::int64_t>(slots * 3 * kTrees)}), std::vector<std::uint16_t>(slots)};
  auto* to = group.slots.mutable_data<std::int32_t>().data();
  for (std::size_t s = 0; s < slots; ++s, to += 3 * kTrees) {
    for (std::size_t t = 0; t < kTrees; ++t) {
      const bool here = t < count && s < trees[first + t].nodes.size();
      const Node node = here ? trees[first + t].nodes[s] : Node{0, 0, false, ~0U};
      to[t] = std::bit_cast<std::int32_t>(turned_ ? -node.split : node.split);
      to[kTrees + t] = node.feature;
      to[2 * kTrees + t] = static_cast<std::int32_t>(node.kept);
      if (node.missing) group.missing[s] = static_cast<std::uint16_t>(group.missing[s] | 1U << t);
    }
  }
  return group;
}

std::optional<LeafMasks> LeafMasks::make(const Ensemble& e, TreeMode mode) {
  if (!has_avx512()) return std::nullopt;
  LeafMasks made;
  made.turned_ = mode == TreeMode::gte || mode == TreeMode::gt;
  made.equal_ = mode == TreeMode::leq || mode == TreeMode::gte;
  made.trees_ = e.roots.size();
  made.targets_ = static_cast<std::size_t>(e.targets);
  made.features_ = e.features;
  made.weights_ = e.weights;
  std::vector<Tree> trees(e.roots.size());
  bool single = e.targets == 1;
  for (std::size_t t = 0; t < trees.size(); ++t) {
    collect(e, e.roots[t], trees[t]);
    if (trees[t].leaves.size() > kLeaves) return std::nullopt;
    for (const Node& node : trees[t].nodes) made.missing_ = made.missing_ || node.missing;
    for (const Leaf& leaf : trees[t].leaves) single = single && leaf.count <= 1;
    trees[t].leaves.resize(kLeaves);
    made.leaves_.insert(made.leaves_.end(), trees[t].leaves.begin(), trees[t].leaves.end());
  }
  for (const Leaf& leaf : made.leaves_) {
    if (single) made.values_.push_back(leaf.count == 0 ? 0.0 : e.weights[leaf.first].value);
  }
  for (std::size_t first = 0; first < trees.size(); first += kTrees) made.groups_.push_back(made.group_of(trees, first));
  return made;
}

void LeafMasks::add_leaves(std::size_t first, const std::uint32_t* left, double* sums) const {
  const std::size_t count = std::min(kTrees, trees_ - first);
  if (!values_.empty()) {
    for (std::size_t t = 0; t < count; ++t) *sums += values_[(first + t) * kLeaves + static_cast<std::size_t>(std::countr_zero(left[t]))];
    return;
  }
  for (std::size_t t = 0; t < count; ++t) {
    const Leaf leaf = leaves_[(first + t) * kLeaves + static_cast<std::size_t>(std::countr_zero(left[t]))];
    for (const LeafWeight& w : std::span(weights_).subspan(leaf.first, leaf.count)) sums[w.target] += w.value;
  }
}

template <bool kEqual>
FALAJ_AVX512 void LeafMasks::rows_of_group(std::size_t number, const float* x, std::int64_t rows, double* sums) const {
  const Group& group = groups_[number];
  const __m512 sign = _mm512_set1_ps(turned_ ? -0.0F : 0.0F);
  const bool in_registers = features_ <= kInRegisters;
  for (std::int64_t r = 0; r < rows; ++r, x += features_, sums += targets_) {
    const __m512 low = _mm512_maskz_loadu_ps(some_lanes(features_), x);
    const __m512 high = _mm512_maskz_loadu_ps(some_lanes(features_ - 16), x + (features_ > 16 ? 16 : 0));
    const bool nan = missing_ && (!in_registers || (_mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q) != 0));
    const auto* slot = static_cast<const std::int32_t*>(group.slots.raw());
    __m512i left = _mm512_set1_epi32(-1);
    for (std::size_t s = 0; s < group.missing.size(); ++s, slot += 3 * kTrees) {
      const __m512 split = _mm512_load_ps(slot);
      const __m512i column = _mm512_load_si512(slot + kTrees);
      __m512 value = in_registers ? _mm512_permutex2var_ps(low, column, high) : _mm512_i32gather_ps(column, x, sizeof(float));
      value = _mm512_xor_ps(value, sign);
      __mmask16 fails = _mm512_cmp_ps_mask(value, split, kEqual ? _CMP_NLE_UQ : _CMP_NLT_UQ);
      if (nan) fails = static_cast<__mmask16>(fails & ~(_mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q) & group.missing[s]));
      left = _mm512_mask_and_epi32(left, fails, left, _mm512_load_si512(slot + 2 * kTrees));
    }
    alignas(64) std::uint32_t masks[kTrees];
    _mm512_store_si512(masks, left);
    add_leaves(number * kTrees, masks, sums);
  }
}

void LeafMasks::add(const float* x, std::int64_t rows, double* sums) const {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    if (equal_) {
      rows_of_group<true>(g, x, rows, sums);
    } else {
      rows_of_group<false>(g, x, rows, sums);
    }
  }
}

}  // namespace falaj::kernels::cpu
