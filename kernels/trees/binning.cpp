#include "kernels/trees/binning.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "runtime/base/format.hpp"

namespace falaj::kernels::trees {
namespace {

constexpr std::size_t kSampleRows = 200'000;  // edges are cut by so many rows at most; more would hardly move them
constexpr std::size_t kRowsEach = 1U << 14;

// Floats in the order of their values as whole numbers: negative ones turned round, positive ones above them.
std::uint32_t ordered(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}
float unordered(std::uint32_t key) noexcept { return std::bit_cast<float>((key >> 31) != 0 ? key & 0x7FFFFFFFU : ~key); }

// Radix sort by eleven bits at a time.
void sort_keys(std::vector<std::uint32_t>& keys, std::vector<std::uint32_t>& spare) {
  spare.resize(keys.size());
  for (const unsigned shift : {0U, 11U, 22U}) {
    std::array<std::uint32_t, 2048> at{};
    for (const std::uint32_t key : keys) ++at[key >> shift & 2047U];
    std::uint32_t sum = 0;
    for (std::uint32_t& place : at) sum += std::exchange(place, sum);
    for (const std::uint32_t key : keys) spare[at[key >> shift & 2047U]++] = key;
    keys.swap(spare);
  }
}

// Between a and b, so that a <= edge < b in floats.
float edge_between(float a, float b) noexcept {
  const float middle = a + (b - a) / 2;
  return middle >= a && middle < b ? middle : a;  // a where the middle is no number, or rounds to b
}

// A range is closed when it has its share of what is left: so values with many rows take nothing from the others.
std::vector<float> cut_edges(const std::vector<std::uint32_t>& keys, std::size_t bins) {
  struct Run {
    std::uint32_t key;
    std::size_t rows;
  };
  std::vector<Run> runs;
  for (const std::uint32_t key : keys) {
    if (runs.empty() || runs.back().key != key) {
      runs.push_back({key, 1});
    } else {
      ++runs.back().rows;
    }
  }
  std::vector<float> edges;
  std::size_t left = keys.size();
  std::size_t in_bin = 0;
  for (std::size_t i = 0; i + 1 < runs.size() && edges.size() + 1 < bins; ++i) {
    in_bin += runs[i].rows;
    const std::size_t bins_left = bins - edges.size();
    const bool each_its_own = runs.size() - i <= bins_left;
    const double share = static_cast<double>(left) / static_cast<double>(bins_left);
    // A heavy value that comes next begins a range of its own.
    const bool heavy_next = static_cast<double>(runs[i + 1].rows) >= share && static_cast<double>(in_bin) >= share / 2;
    if (!each_its_own && !heavy_next && static_cast<double>(in_bin) < share) continue;
    edges.push_back(edge_between(unordered(runs[i].key), unordered(runs[i + 1].key)));
    left -= in_bin;
    in_bin = 0;
  }
  return edges;
}

// The same rows for any number of threads: those with the smallest numbers drawn.
std::vector<std::uint32_t> sample(std::span<const std::uint32_t> rows, std::uint64_t seed) {
  if (rows.size() <= kSampleRows) return {rows.begin(), rows.end()};
  const std::uint64_t numbers = stream(seed, Purpose::sample, 0);
  const double share = static_cast<double>(kSampleRows) / static_cast<double>(rows.size());
  const auto below = static_cast<std::uint64_t>(share * 0x1p64);
  std::vector<std::uint32_t> out;
  for (const std::uint32_t row : rows) {
    if (draw(numbers, row) < below) out.push_back(row);
  }
  return out;
}

}  // namespace

std::uint8_t ColumnBins::bin(float value) const noexcept {
  if (std::isnan(value)) return static_cast<std::uint8_t>(missing());
  const float* at = upper.data();  // without branches that a processor would guess wrong
  for (std::size_t size = upper.size(); size > 0;) {
    const std::size_t half = size / 2;
    const bool above = value > at[half];
    at += above ? half + 1 : 0;
    size = above ? size - half - 1 : half;
  }
  return static_cast<std::uint8_t>(at - upper.data());
}

std::uint8_t ColumnBins::bin(const std::string& value) const noexcept {
  const auto found = std::ranges::lower_bound(vocabulary, value);
  if (found == vocabulary.end() || *found != value) return 0;
  return static_cast<std::uint8_t>(found - vocabulary.begin() + 1);
}

Result<Bins> fit_bins(const Table& table, const Preprocessing& fitted, std::span<const std::uint32_t> rows, const Spec& spec, Team& team) {
  FALAJ_TRY(check(spec));
  if (fitted.columns != table.columns || fitted.fits.size() != table.columns.size())
    return invalid("boosted trees: the columns are not those that were fitted");
  Bins out(table.columns.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i].name = table.columns[i].name;
    const auto* categories = std::get_if<CategoricalFit>(&fitted.fits[i]);
    out[i].categorical = categories != nullptr;
    if (categories == nullptr) continue;
    if (categories->vocabulary.size() >= kBinsMax)
      return invalid(format("column '{}' has {} categories, {} are the most: fit with vocabulary_max", out[i].name,
                            categories->vocabulary.size(), kBinsMax - 1));
    out[i].vocabulary = categories->vocabulary;
  }
  const std::vector<std::uint32_t> chosen = sample(rows, spec.seed);
  team.run(out.size(), [&](std::size_t i) {
    const auto* numbers = std::get_if<NumericColumn>(&table.values[i]);
    if (numbers == nullptr) return;
    std::vector<std::uint32_t> keys;
    std::vector<std::uint32_t> spare;
    keys.reserve(chosen.size());
    for (const std::uint32_t row : chosen) {
      const float x = (*numbers)[row];
      if (!std::isnan(x)) keys.push_back(ordered(x == 0 ? 0.0F : x));  // -0 is 0
    }
    sort_keys(keys, spare);
    out[i].upper = cut_edges(keys, spec.bins);
  });
  return out;
}

Result<Matrix> Matrix::of(const Bins& bins, const Table& table, Team& team) {
  FALAJ_TRY(kernels::check(table));
  std::vector<const Column*> columns;
  for (const ColumnBins& column : bins) {
    const auto found = std::ranges::find(table.columns, column.name, &ColumnSpec::name);
    if (found == table.columns.end()) return invalid(format("the trees read column '{}', which the data do not have", column.name));
    if ((found->kind == ColumnKind::categorical) != column.categorical)
      return invalid(format("the trees read column '{}' as {}, it is {}", column.name, column.categorical ? "categories" : "numbers",
                            to_string(found->kind)));
    columns.push_back(&table.values[static_cast<std::size_t>(found - table.columns.begin())]);
  }
  Matrix out;
  out.rows_ = table.rows();
  out.columns_ = bins.size();
  out.by_column_.resize(out.rows_ * out.columns_);
  team.run(out.columns_, [&](std::size_t i) {
    std::uint8_t* to = out.by_column_.data() + i * out.rows_;
    std::visit([&](const auto& values) { std::ranges::transform(values, to, [&](const auto& value) { return bins[i].bin(value); }); },
               *columns[i]);
  });
  return out;
}

void Matrix::pack(Team& team) {
  const std::size_t least = (columns_ + kGroupWidth - 1) / kGroupWidth;
  const std::size_t count = std::max(least, std::min(team.threads(), (columns_ + 3) / 4));
  groups_.assign(count, {});
  std::size_t first = 0;
  for (std::size_t g = 0; g < count; ++g) {
    groups_[g].first = first;
    groups_[g].width = columns_ / count + (g < columns_ % count ? 1 : 0);
    groups_[g].packed.resize(rows_ * groups_[g].width);
    first += groups_[g].width;
  }
  team.ranges(rows_, kRowsEach, [&](std::size_t begin, std::size_t end) {
    for (Group& group : groups_) {
      for (std::size_t c = 0; c < group.width; ++c) {
        const std::uint8_t* from = column(group.first + c);
        for (std::size_t row = begin; row < end; ++row) group.packed[row * group.width + c] = from[row];
      }
    }
  });
}

}  // namespace falaj::kernels::trees
