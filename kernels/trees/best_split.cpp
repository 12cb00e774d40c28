#include "kernels/trees/best_split.hpp"

#include <algorithm>
#include <utility>

namespace falaj::kernels::trees {
namespace {

constexpr std::size_t kFew = 4;  // so many categories are taken at their word

// What is the same for all cuts of one column.
struct Search {
  const Sums& leaf;
  const Scale& scale;
  double l2;
  std::int64_t rows_min;
  double hessian_min;
  double unsplit;  // what the leaf as it is counts for, and gain_min

  Search(const Sums& sums, const Scale& units, const Spec& spec, double more_l2)
      : leaf(sums), scale(units), l2(spec.l2 + more_l2), rows_min(spec.rows_min), hessian_min(spec.hessian_min) {
    const double g = static_cast<double>(leaf.gradient) * scale.gradient;
    const double h = static_cast<double>(leaf.hessian) * scale.hessian + spec.l2;
    unsplit = (h > 0 ? g * g / h : 0) + spec.gain_min;
  }

  // 0: not allowed, or nothing gained.
  [[nodiscard]] double gain(const Sums& left) const noexcept {
    const Sums right = leaf - left;
    if (left.rows < rows_min || right.rows < rows_min) return 0;
    const double gl = static_cast<double>(left.gradient) * scale.gradient;
    const double gr = static_cast<double>(right.gradient) * scale.gradient;
    const double hl = static_cast<double>(left.hessian) * scale.hessian;
    const double hr = static_cast<double>(right.hessian) * scale.hessian;
    if (hl < hessian_min || hr < hessian_min) return 0;
    const double dl = hl + l2;
    const double dr = hr + l2;
    if (!(dl > 0 && dr > 0)) return 0;
    const double both = (gl * gl * dr + gr * gr * dl) / (dl * dr);  // one division for both sides
    return std::max(both - unsplit, 0.0);
  }
};

struct Best {
  double gain = 0;
  std::size_t at = 0;
  bool missing_left = false;
  Sums left;
};

// Cuts behind bins 0, 1, ..., with `start` already on the left.
void scan(const Search& search, const std::int64_t* cells, std::size_t count, const Sums& start, bool missing_left, Best& best) {
  Sums left = start;
  for (std::size_t b = 0; b < count; ++b) {
    const Sums cell = read_cell(cells + 2 * b);
    if (cell.rows == 0) continue;
    left += cell;
    if (left.rows < search.rows_min) continue;
    if (search.leaf.rows - left.rows < search.rows_min) break;
    const double gain = search.gain(left);
    if (gain > best.gain) best = {gain, b, missing_left, left};
  }
}

Split numeric(const ColumnBins& bins, const std::int64_t* cells, const Sums& leaf, const Scale& scale, const Spec& spec) {
  const Search search(leaf, scale, spec, 0);
  const std::size_t values = bins.values();
  const Sums missing = read_cell(cells + 2 * bins.missing());
  Best best;
  // The last edge cuts what is missing from what is not.
  scan(search, cells, missing.rows > 0 ? values : values - 1, {}, false, best);
  if (missing.rows > 0) scan(search, cells, values - 1, missing, true, best);
  Split split;
  if (best.gain <= 0) return split;
  split.gain = best.gain;
  split.edge = static_cast<std::uint32_t>(best.at);
  split.left_sums = best.left;
  split.right_sums = leaf - best.left;
  split.missing_left = missing.rows > 0 ? best.missing_left : best.left.rows > split.right_sums.rows;
  for (std::size_t b = 0; b <= best.at; ++b) split.left.add(b);
  if (split.missing_left) split.left.add(bins.missing());
  return split;
}

struct Category {
  std::size_t bin;
  Sums sums;
  double order;
};

Split finish(const ColumnBins& bins, std::span<const Category> left, const Best& best, const Sums& leaf, std::span<const Category> seen) {
  Split split;
  split.gain = best.gain;
  split.left_sums = best.left;
  split.right_sums = leaf - best.left;
  if (split.left_sums.rows > split.right_sums.rows) {
    BinSet known;
    for (const Category& category : seen) known.add(category.bin);
    for (std::size_t b = 0; b < bins.bins(); ++b) {
      if (!known.has(b)) split.left.add(b);
    }
  }
  for (const Category& category : left) split.left.add(category.bin);
  return split;
}

Split categorical(const ColumnBins& bins, const std::int64_t* cells, const Sums& leaf, const Scale& scale, const Spec& spec) {
  std::vector<Category> seen;
  for (std::size_t b = 0; b < bins.bins(); ++b) {
    const Sums sums = read_cell(cells + 2 * b);
    if (sums.rows > 0) seen.push_back({b, sums, 0});
  }
  if (seen.size() < 2) return {};
  const bool few = seen.size() <= kFew;
  const Search search(leaf, scale, spec, few ? 0 : spec.category_l2);
  for (Category& category : seen) {
    const double h = static_cast<double>(category.sums.hessian) * scale.hessian + (few ? 0 : spec.category_smoothing);
    category.order = h > 0 ? static_cast<double>(category.sums.gradient) * scale.gradient / h : 0;
  }
  std::ranges::sort(seen, {}, [](const Category& category) { return std::pair(category.order, category.bin); });
  Best best;
  Sums left;
  for (std::size_t i = 0; i + 1 < seen.size(); ++i) {
    left += seen[i].sums;
    const double gain = search.gain(left);
    if (gain > best.gain) best = {gain, i, false, left};
  }
  return best.gain > 0 ? finish(bins, std::span(seen).first(best.at + 1), best, leaf, seen) : Split{};
}

}  // namespace

Split best_split(const ColumnBins& bins, std::uint32_t column, const std::int64_t* cells, const Sums& leaf, const Scale& scale,
                 const Spec& spec) {
  Split split = bins.categorical ? categorical(bins, cells, leaf, scale, spec) : numeric(bins, cells, leaf, scale, spec);
  split.column = column;
  return split;
}

bool can_split(const Sums& leaf, const Scale& scale, const Spec& spec) noexcept {
  return leaf.rows >= 2 * std::int64_t{spec.rows_min} && static_cast<double>(leaf.hessian) * scale.hessian >= 2 * spec.hessian_min;
}

}  // namespace falaj::kernels::trees
