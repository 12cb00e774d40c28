// The best way to cut a leaf in two by one column, from the leaf's histogram of that column.
//
// Numbers are cut at an edge between two bins; missing ones are tried on both sides. Categories are put in the order of their mean gradient
// per (smoothed) hessian and cut there: the best of all subsets is such a cut (Fisher, "On grouping for maximum homogeneity", 1958; for
// gradients as LightGBM has it, Ke et al., 2017). Up to four of them are neither smoothed nor held back by more l2.
// What the leaf has not seen (an empty bin, missing numbers) goes where most of its rows go.
//
// gain = G_l^2 / (H_l + l2) + G_r^2 / (H_r + l2) - G^2 / (H + l2), with sums G of gradients and H of hessians: twice what the loss falls
// by. Of equal gains the first counts: the lower edge, missing on the right, fewer categories.
#pragma once
#include <array>
#include <cstdint>

#include "kernels/trees/histogram.hpp"

namespace falaj::kernels::trees {

// A set of a column's bins.
struct BinSet {
  std::array<std::uint64_t, 4> words{};
  [[nodiscard]] bool has(std::size_t bin) const noexcept { return (words[bin >> 6] >> (bin & 63) & 1) != 0; }
  void add(std::size_t bin) noexcept { words[bin >> 6] |= std::uint64_t{1} << (bin & 63); }
  bool operator==(const BinSet&) const = default;
};

struct Split {
  double gain = 0;  // none unless above 0
  std::uint32_t column = 0;
  BinSet left;
  std::uint32_t edge = 0;     // numbers: bins up to this one are on the left
  bool missing_left = false;  // numbers
  Sums left_sums, right_sums;
  [[nodiscard]] bool exists() const noexcept { return gain > 0; }
};

// The leaf's cells of `column` (bins.bins() cells of two integers), and the leaf's sums.
Split best_split(const ColumnBins& bins, std::uint32_t column, const std::int64_t* cells, const Sums& leaf, const Scale& scale,
                 const Spec& spec);

// Whether a leaf of these sums can be cut at all.
bool can_split(const Sums& leaf, const Scale& scale, const Spec& spec) noexcept;

}  // namespace falaj::kernels::trees
