#include "kernels/trees/histogram.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace falaj::kernels::trees {
namespace {

constexpr std::size_t kRowsEach = 1U << 13;
constexpr std::size_t kAhead = 24;  // rows fetched ahead: a leaf's rows lie apart

template <std::size_t... kColumn>
inline void add_row(std::index_sequence<kColumn...>, const std::uint8_t* __restrict bins, Word word, Word* __restrict narrow) {
  ((narrow[kColumn * kStride + bins[kColumn]] += word), ...);
}

template <std::size_t kWidth>
void add_rows(const std::uint8_t* packed, const std::uint32_t* rows, std::size_t count, const Word* words, Word* narrow) {
  std::size_t i = 0;
  for (; i + kAhead < count; ++i) {
    const std::size_t next = rows[i + kAhead];
    __builtin_prefetch(packed + next * kWidth);
    __builtin_prefetch(words + next);
    const std::size_t row = rows[i];
    add_row(std::make_index_sequence<kWidth>{}, packed + row * kWidth, words[row], narrow);
  }
  for (; i < count; ++i) {
    const std::size_t row = rows[i];
    add_row(std::make_index_sequence<kWidth>{}, packed + row * kWidth, words[row], narrow);
  }
}

using AddRows = void (*)(const std::uint8_t*, const std::uint32_t*, std::size_t, const Word*, Word*);
constexpr auto kAddRows = []<std::size_t... kWidth>(std::index_sequence<kWidth...>) {
  return std::array<AddRows, sizeof...(kWidth)>{&add_rows<kWidth + 1>...};
}(std::make_index_sequence<kGroupWidth>{});

// Takes the words of one column into its cells and leaves zeros.
void widen(Word* narrow, std::size_t bins, std::int64_t* cells) {
  constexpr Word kRowMask = (Word{1} << kRowBits) - 1;
  constexpr Word kHessianMask = (Word{1} << kHessianBits) - 1;
  for (std::size_t b = 0; b < bins; ++b) {
    const Word word = narrow[b];
    narrow[b] = 0;
    cells[2 * b] += static_cast<std::int64_t>(word) >> (kRowBits + kHessianBits);
    cells[2 * b + 1] += static_cast<std::int64_t>((word >> kRowBits & kHessianMask) << kWideRowBits | (word & kRowMask));
  }
}

// std::floor without a call.
std::int64_t floor_of(float x) {
  const auto cut = static_cast<std::int32_t>(x);
  return cut - (x < static_cast<float>(cut) ? 1 : 0);
}

// 0 where a unit is so small that nothing is left to learn.
float units_in_one(double unit) { return unit > 1e-35 ? static_cast<float>(1 / unit) : 0.0F; }

}  // namespace

Scale fit_scale(std::span<const float> gradients, std::span<const float> hessians, std::span<const std::uint32_t> rows, Team& team) {
  struct Largest {
    float gradient = 0, hessian = 0;
  };
  std::vector<Largest> parts((rows.size() + kRowsEach - 1) / kRowsEach);
  team.run(parts.size(), [&](std::size_t part) {
    Largest largest;
    for (const std::uint32_t row : rows.subspan(part * kRowsEach, std::min(kRowsEach, rows.size() - part * kRowsEach))) {
      largest.gradient = std::max(largest.gradient, std::abs(gradients[row]));
      largest.hessian = std::max(largest.hessian, hessians[row]);
    }
    parts[part] = largest;
  });
  Largest all;
  for (const Largest& part : parts) {
    all.gradient = std::max(all.gradient, part.gradient);
    all.hessian = std::max(all.hessian, part.hessian);
  }
  return {static_cast<double>(all.gradient) / static_cast<double>(kGradientLevels),
          static_cast<double>(all.hessian) / static_cast<double>(kHessianLevels)};
}

void quantise(std::span<const float> gradients, std::span<const float> hessians, std::span<const std::uint32_t> rows, const Scale& scale,
              std::uint64_t rounding, std::vector<Word>& words, Team& team) {
  words.resize(gradients.size());
  const float per_gradient = units_in_one(scale.gradient);
  const float per_hessian = units_in_one(scale.hessian);
  team.ranges(rows.size(), kRowsEach, [&](std::size_t begin, std::size_t end) {
    for (const std::uint32_t row : rows.subspan(begin, end - begin)) {
      const std::uint64_t bits = draw(rounding, row);
      const float up = static_cast<float>(static_cast<std::int32_t>(bits >> 44)) * 0x1p-20F;
      const float up_too = static_cast<float>(static_cast<std::int32_t>(bits & 0xFFFFF)) * 0x1p-20F;
      const std::int64_t g = std::clamp(floor_of(gradients[row] * per_gradient + up), -kGradientLevels, kGradientLevels);
      const std::int64_t h = std::clamp(floor_of(hessians[row] * per_hessian + up_too), std::int64_t{0}, kHessianLevels);
      words[row] = (static_cast<Word>(g) << (kRowBits + kHessianBits)) + (static_cast<Word>(h) << kRowBits) + 1;
    }
  });
}

Layout::Layout(const Bins& bins) : first(1, 0) {
  for (const ColumnBins& column : bins) first.push_back(first.back() + column.bins());
}

void accumulate(const Matrix::Group& group, std::span<const std::uint32_t> rows, const Word* words, Word* narrow, const Layout& layout,
                std::int64_t* histogram) {
  for (std::size_t begin = 0; begin < rows.size(); begin += kNarrowRows) {
    const std::size_t count = std::min(kNarrowRows, rows.size() - begin);
    kAddRows[group.width - 1](group.packed.data(), rows.data() + begin, count, words, narrow);
    for (std::size_t c = 0; c < group.width; ++c) {
      const std::size_t cell = layout.first[group.first + c];
      widen(narrow + c * kStride, layout.first[group.first + c + 1] - cell, histogram + 2 * cell);
    }
  }
}

void subtract(const Matrix::Group& group, const Layout& layout, std::int64_t* parent, const std::int64_t* child) {
  const std::size_t last = 2 * layout.first[group.first + group.width];
  for (std::size_t i = 2 * layout.first[group.first]; i < last; ++i) parent[i] -= child[i];
}

}  // namespace falaj::kernels::trees
