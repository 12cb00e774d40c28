// Histograms of gradients over the bins of columns, in whole numbers: exact, hence the same in any order, for any number of threads,
// and a parent less one child is the other child to the last bit. A rank's histogram of a leaf is one flat array of 64-bit integers,
// so that ranks may add theirs with any all-reduce (they must agree on the Scale first: the largest gradient and hessian of all).
//
// Gradients g and hessians h of a tree become multiples of a unit, rounded up or down by a number drawn for the row, so that sums are right
// on average (Shi et al., "Quantized training of gradient boosting decision trees", 2022; with far more levels than theirs: 32,767 and
// 2,047). A row's pair is one word
//     bits 63-36: g (signed, 28)    35-13: h (23)    12-0: rows (13)
// so that one addition takes a row into a bin; after kNarrowRows rows no field can have overflowed, and the words are added to the
// wide cells:
//     cell = { sum of g; sum of h << 26 | rows }
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/trees/binning.hpp"

namespace falaj::kernels::trees {

using Word = std::uint64_t;
constexpr unsigned kRowBits = 13, kHessianBits = 23;
constexpr std::size_t kNarrowRows = std::size_t{1} << 12;
constexpr std::int64_t kGradientLevels = (1 << 15) - 1;
constexpr std::int64_t kHessianLevels = (1 << 11) - 1;
constexpr unsigned kWideRowBits = 26;
static_assert((std::int64_t{kNarrowRows} * kHessianLevels) >> kHessianBits == 0);
static_assert((std::int64_t{kNarrowRows} * kGradientLevels) >> (63 - kRowBits - kHessianBits) == 0);
static_assert(kRowsMax <= std::size_t{1} << kWideRowBits);

// What one unit of a sum is worth.
struct Scale {
  double gradient = 0, hessian = 0;
};

// The largest magnitudes become the most levels. gradients and hessians are indexed by row; hessians are not negative.
Scale fit_scale(std::span<const float> gradients, std::span<const float> hessians, std::span<const std::uint32_t> rows, Team& team);
// words[row] for the rows given.
void quantise(std::span<const float> gradients, std::span<const float> hessians, std::span<const std::uint32_t> rows, const Scale& scale,
              std::uint64_t rounding, std::vector<Word>& words, Team& team);

// Sums over rows.
struct Sums {
  std::int64_t gradient = 0;
  std::int64_t hessian = 0;
  std::int64_t rows = 0;
  Sums& operator+=(const Sums& o) noexcept {
    gradient += o.gradient;
    hessian += o.hessian;
    rows += o.rows;
    return *this;
  }
  friend Sums operator-(Sums a, const Sums& b) noexcept { return {a.gradient - b.gradient, a.hessian - b.hessian, a.rows - b.rows}; }
  bool operator==(const Sums&) const = default;
};
constexpr Sums read_cell(const std::int64_t* cell) noexcept {
  return {cell[0], cell[1] >> kWideRowBits, cell[1] & ((std::int64_t{1} << kWideRowBits) - 1)};
}

// Where the cells of each column lie in a leaf's histogram, in cells of two integers.
struct Layout {
  explicit Layout(const Bins& bins);
  std::vector<std::size_t> first;  // of each column; one more for the end
  [[nodiscard]] std::size_t integers() const noexcept { return 2 * first.back(); }
};

// Adds these rows to the cells of a group's columns. `narrow` is scratch of width x kStride words, all zero before and after.
void accumulate(const Matrix::Group& group, std::span<const std::uint32_t> rows, const Word* words, Word* narrow, const Layout& layout,
                std::int64_t* histogram);
// parent -= child, for a group's columns.
void subtract(const Matrix::Group& group, const Layout& layout, std::int64_t* parent, const std::int64_t* child);

}  // namespace falaj::kernels::trees
