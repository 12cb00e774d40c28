// Products of u8 rows with packed s8 columns, exact in 32 bits on every instruction set, and the end of each sum as kernels/ops/integer.hpp
// states it. One packed form serves all instruction sets.
//
// vpmaddubsw is not used: it adds two products of u8 and s8 in 16 bits, saturating. AVX2 widens both operands to 16 bits and adds
// pairs in 32 (vpmaddwd); VNNI adds four products in 32 bits (vpdpbusd), AMX 64.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "kernels/ops/integer.hpp"

namespace falaj::kernels {
class PackedWeights;
}

namespace falaj::kernels::cpu {

enum class IntegerIsa : std::uint8_t { none, avx2, avx_vnni, avx512_vnni, amx };
IntegerIsa integer_isa() noexcept;  // the best that this CPU has, and that IntegerIsaLimit allows

// While this lives, kernels made on this thread use at most `most`: tests compare instruction sets with it. `plain_amx`: a processor
// without AMX has loops in its place.
class IntegerIsaLimit {
 public:
  explicit IntegerIsaLimit(IntegerIsa most, bool plain_amx = false) noexcept;
  ~IntegerIsaLimit();
  IntegerIsaLimit(const IntegerIsaLimit&) = delete;
  IntegerIsaLimit& operator=(const IntegerIsaLimit&) = delete;

 private:
  IntegerIsa before_;
  bool plain_before_;
};

constexpr std::int64_t kIntegerPanel = 16;  // columns that lie together
constexpr std::int64_t kIntegerRows = 16;   // of a tile, at most

// Where a tile's results go, and what ends its sums. The arrays begin at the tile's first column and reach to the end of its last panel.
struct IntegerTarget {
  const std::int32_t* start;  // -x_zero * sum of the column's weights
  const float* multiplier;
  const float* offset;
  void* y;                     // of the first row and column
  const std::uint8_t* addend;  // likewise; null: none
  std::int64_t row;            // elements from row to row
  std::int64_t width;          // columns that exist
  const Requantise* end;
};
// x: one pointer for each row; at each of `places` offsets from it 4 * fours bytes are read. w: panels that lie panel_stride apart, each
// [places, fours, kIntegerPanel, 4]. ahead: a panel that may be fetched meanwhile.
using IntegerTile = void (*)(const std::uint8_t* const* x, const std::int64_t* offsets, std::int64_t places, std::int64_t fours,
                             const std::int8_t* w, std::int64_t panel_stride, const std::int8_t* ahead, const IntegerTarget& target);

struct IntegerTiles {
  std::string_view name;
  std::int64_t rows_max;                   // of one tile: at most kIntegerRows
  std::int64_t panels_max;                 // likewise: 1, 2 or 4
  IntegerTile tiles[3][kIntegerRows + 1];  // for 1, 2 and 4 panels: by rows, from 1 on
  void (*begin)() = nullptr;               // around the tiles of a run, where there is something to be set up
  void (*end)() = nullptr;
};
const IntegerTiles& integer_tiles(IntegerIsa isa);  // not of none
const IntegerTiles& amx_tiles();                    // likewise; by loops where the processor has none

// Weights of a product or convolution, packed for tiles, and the ends of its columns.
class IntegerColumns {
 public:
  // w(column, place, depth) tells a weight. Columns come in `groups` of equal size, each read at its own depth of the rows.
  template <class W>
  static Tensor pack(std::int64_t columns, std::int64_t groups, std::int64_t places, std::int64_t depth, W w);

  IntegerColumns(std::shared_ptr<const Tensor> packed, std::int64_t columns, std::int64_t groups, std::vector<std::int64_t> offsets,
                 std::int64_t depth, std::int32_t x_zero, const float* multiplier, const float* offset, const Requantise& end);

  // All columns of `rows` rows; results and addends are contiguous, [rows, columns].
  void run(const std::uint8_t* const* x, std::int64_t rows, void* y, const std::uint8_t* addend) const;
  [[nodiscard]] std::string_view name() const { return tiles_->name; }

 private:
  static std::int64_t fours_of(std::int64_t depth) { return (depth + 3) / 4; }
  const IntegerTiles* tiles_;
  std::shared_ptr<const Tensor> packed_;
  std::int64_t columns_, groups_, depth_;
  std::vector<std::int64_t> offsets_;  // of places, in a row
  std::vector<std::int32_t> start_;
  std::vector<float> multiplier_, offset_;
  Requantise end_;
};

template <class W>
Tensor IntegerColumns::pack(std::int64_t columns, std::int64_t groups, std::int64_t places, std::int64_t depth, W w) {
  const std::int64_t share = columns / groups;
  const std::int64_t panels = groups * ((share + kIntegerPanel - 1) / kIntegerPanel);
  const std::int64_t fours = fours_of(depth);
  const std::int64_t size = panels * places * fours * kIntegerPanel * 4;
  Tensor packed(DType::u8, {size + panels * kIntegerPanel * static_cast<std::int64_t>(sizeof(std::int32_t))});
  auto* to = static_cast<std::int8_t*>(packed.mutable_raw());
  auto* sums = reinterpret_cast<std::int32_t*>(to + size);  // size is a multiple of 64
  for (std::int64_t first = 0; first < columns; sums += kIntegerPanel) {
    const std::int64_t width = std::min(kIntegerPanel, (first / share + 1) * share - first);
    for (std::int64_t p = 0; p < places; ++p) {
      for (std::int64_t d = 0; d < fours * 4; ++d) {
        for (std::int64_t i = 0; i < width && d < depth; ++i) {
          const std::int8_t value = w(first + i, p, d);
          to[((p * fours + d / 4) * kIntegerPanel + i) * 4 + d % 4] = value;
          sums[i] += value;
        }
      }
    }
    to += places * fours * kIntegerPanel * 4;
    first += width;
  }
  return packed;
}

}  // namespace falaj::kernels::cpu
