// Gradient-boosted trees: what a user may set. The method is Friedman's ("Greedy function approximation: a gradient boosting machine",
// 2001) with second-order leaves and gains (Chen and Guestrin, "XGBoost", 2016), over histograms of quantile bins with leaf-wise growth
// (Ke et al., "LightGBM", 2017).
#pragma once
#include <cstddef>
#include <cstdint>

#include "runtime/base/result.hpp"

namespace falaj::kernels::trees {

constexpr std::uint32_t kBinsMax = 255;                 // of a column's values; one more stands for missing numbers
constexpr std::size_t kRowsMax = std::size_t{1} << 26;  // so that a cell's sums fit (histogram.hpp)
constexpr std::size_t kColumnsMax = std::size_t{1} << 16;
constexpr std::uint32_t kLeavesMax = 4096;
constexpr std::uint32_t kRoundsMax = 100'000;

struct Spec {
  std::uint32_t rounds = 100;  // a tree each; with C > 2 classes, C trees each
  std::uint32_t leaves = 31;   // of a tree, at most
  double learning_rate = 0.1;
  std::uint32_t rows_min = 20;     // of a leaf
  double hessian_min = 1e-3;       // likewise: sum of second derivatives
  double l2 = 0;                   // added to the second derivatives of a leaf
  double gain_min = 0;             // a split must gain more than this
  double column_share = 1;         // of the columns, drawn anew for each tree
  double row_share = 1;            // of the training rows, likewise
  std::uint32_t bins = kBinsMax;   // of a column
  double category_smoothing = 10;  // hessian that pulls a category's mean towards 0 when categories are put in order
  double category_l2 = 10;         // l2 on top for splits of categories, which fit noise more easily
  std::uint32_t patience = 0;      // rounds without a better validation loss before it stops; 0: never
  std::uint64_t seed = 0;
  bool operator==(const Spec&) const = default;
};
Status check(const Spec& spec);  // names the parameter and its range

// Random numbers by what they are for, not by who asks first: the same for any number of threads or ranks.
constexpr std::uint64_t mixed(std::uint64_t x) noexcept {  // the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ x >> 27) * 0x94D049BB133111EBULL;
  return x ^ x >> 31;
}
enum class Purpose : std::uint64_t { rows = 1, columns = 2, rounding = 3, sample = 4 };
// One stream for each (seed, purpose, tree); its numbers are counted by row or column.
constexpr std::uint64_t stream(std::uint64_t seed, Purpose purpose, std::uint64_t tree) noexcept {
  return mixed(mixed(seed + 0x9E3779B97F4A7C15ULL * static_cast<std::uint64_t>(purpose)) + tree);
}
constexpr std::uint64_t draw(std::uint64_t numbers, std::uint64_t counter) noexcept {
  return mixed(numbers + 0x9E3779B97F4A7C15ULL * (counter + 1));
}

}  // namespace falaj::kernels::trees
