// Products of rows of bfloat16 with packed columns, sums in f32. One packed form serves all instruction sets.
//
// AVX512_BF16 multiplies pairs (vdpbf16ps); without it pairs are widened to f32 and multiplied by AVX2's fused multiply-adds, which rounds
// sums otherwise in their last bits. Packed columns are laid out as those of integers, in pairs instead of fours.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "kernels/cpu/conv_tiles.hpp"
#include "kernels/ops.hpp"
#include "kernels/plan.hpp"

namespace falaj::kernels::cpu {

using Half = std::uint16_t;

constexpr std::int64_t kHalfPanel = 16;  // columns that lie together

// f32 to bf16, to nearest even; NaN stays NaN.
inline Half rounded(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (value != value) return 0x7FC0;
  return static_cast<Half>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

// Halves that `columns` columns take, packed.
constexpr std::int64_t half_elements(std::int64_t columns, std::int64_t places, std::int64_t depth) {
  return (columns + kHalfPanel - 1) / kHalfPanel * places * ((depth + 1) / 2) * kHalfPanel * 2;
}

// Packs weights for tiles: for each panel [places, pairs, kHalfPanel, 2]. w(column, place, depth) tells a weight. What it does not write
// (odd depths, columns that do not exist) must be zero before.
template <class W>
void pack_halves(Half* to, std::int64_t columns, std::int64_t places, std::int64_t depth, W w) {
  const std::int64_t pairs = (depth + 1) / 2;
  for (std::int64_t first = 0; first < columns; first += kHalfPanel, to += places * pairs * kHalfPanel * 2) {
    for (std::int64_t p = 0; p < places; ++p) {
      for (std::int64_t d = 0; d < depth; ++d) {
        for (std::int64_t i = 0; i < std::min(kHalfPanel, columns - first); ++i)
          to[((p * pairs + d / 2) * kHalfPanel + i) * 2 + d % 2] = rounded(w(first + i, p, d));
      }
    }
  }
}

// The form of a call's weights that `make` gives, kept for other kernels of the same weights.
template <class Make>
std::shared_ptr<const Tensor> packed_form(const KernelCall& call, const std::string& layout, Make make) {
  const Tensor& weights = *call.in(1).constant;
  if (call.packed != nullptr && !weights.borrowed()) return call.packed->get(weights, layout, make);
  return std::make_shared<const Tensor>(make());
}

Status check_bf16(const KernelCall& call);  // f32, known weights and bias, something to compute

constexpr std::int64_t kHalfRows = 16;  // of a tile, at most
// Rows of bf16, one pointer each, read in `pairs` at each of `places` offsets from it; panels as pack_halves packs them, panel_stride
// apart. ahead: a panel that may be fetched meanwhile.
using HalfTile = void (*)(const std::byte* const* x, const std::int64_t* offsets, std::int64_t places, std::int64_t pairs, const Half* w,
                          std::int64_t panel_stride, const Half* ahead, const ConvTarget& target);
struct HalfTiles {
  std::string_view name;
  std::int64_t rows_max, panels_max;  // of one tile: at most kHalfRows; 1, 2 or 4
  void (*round)(const float* from, std::int64_t n, Half* to);
  HalfTile tiles[3][kHalfRows + 1];  // for 1, 2 and 4 panels: by rows, from 1 on
  void (*begin)() = nullptr;         // around the tiles of a run, where there is something to be set up
  void (*end)() = nullptr;
};
const HalfTiles* amx_half_tiles();  // null: kernels made now on this thread do not use them
void round_row_avx512(const float* from, std::int64_t n, Half* to);

// Packed weights and the ends of their columns.
class HalfColumns {
 public:
  // offsets: bytes from a row's pointer to each of the places.
  HalfColumns(std::shared_ptr<const Tensor> packed, std::int64_t columns, std::vector<std::int64_t> offsets, std::int64_t depth,
              Activation activation, double alpha);
  void set_bias(const float* bias, std::int64_t step) {
    for (std::int64_t i = 0; i < columns_; ++i) bias_[static_cast<std::size_t>(i)] = bias[i * step];
  }
  // All columns of `rows` rows of bf16; results and addends are contiguous, [rows, columns]. The weights begin `first_half` halves into
  // what was packed.
  void run(const std::byte* const* x, std::int64_t rows, float* y, const float* addend, std::int64_t first_half = 0) const;
  void round(const float* from, std::int64_t n, Half* to) const;
  [[nodiscard]] bool wide() const;  // AVX512_BF16 is there
  [[nodiscard]] std::string_view name() const;

 private:
  const HalfTiles* tiles_;
  std::shared_ptr<const Tensor> packed_;
  std::int64_t columns_, pairs_;
  std::vector<std::int64_t> offsets_;
  std::vector<float> bias_;
  Activation activation_;
  float alpha_;
};

Result<KernelPtr> make_bf16_winograd(const KernelCall& call);

}  // namespace falaj::kernels::cpu
