// How Winograd's algorithm cuts a convolution of 3 x 3 at stride 1 into tiles of kOut x kOut results, of which each reads kIn x kIn pixels:
// where those lie, and where the results go. Images are [N, H, W, C].
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "kernels/ops/channels_last.hpp"
#include "kernels/plan.hpp"

namespace falaj::kernels::cpu {

// The pixels that a tile reads: of each row those columns that lie in the image, from the first of them on. Rows outside of it are others'
// numbers, that stand for the padding.
template <class T, std::int64_t kIn>
struct WinogradSource {
  std::array<const T*, kIn> rows;
  std::int64_t first, end;  // columns of the tile that lie in the image; others are padding
};

// Where a tile's results go.
struct WinogradTarget {
  float* y;             // of its first pixel
  const float* addend;  // likewise; null: none
  const float* bias;    // null: none
  std::int64_t rows, columns, maps;
  std::int64_t row;  // floats from row to row
  bool pooled;       // rows and columns are those of y then, half as many
  Activation activation;
  float alpha;
};

template <std::int64_t kOut, std::int64_t kIn>
class WinogradTiles {
 public:
  static constexpr std::int64_t kPlaces = kIn * kIn;  // products of a tile
  struct Corner {                                     // of a tile, in output pixels
    std::int64_t image, row, column;
  };

  explicit WinogradTiles(const ConvSpec& conv) : conv_(conv), down_(along(conv.window, 0)), across_(along(conv.window, 1)) {}

  static std::int64_t along(const Window& w, std::size_t d) { return (w.out[d] + kOut - 1) / kOut; }
  [[nodiscard]] std::int64_t count() const { return conv_.batch * down_ * across_; }
  [[nodiscard]] Corner corner(std::int64_t tile) const {
    const std::int64_t of_image = down_ * across_;
    return {tile / of_image, tile % of_image / across_ * kOut, tile % across_ * kOut};
  }

  // outside: what rows of the padding hold, kIn pixels.
  template <class T>
  [[nodiscard]] WinogradSource<T, kIn> source(const T* x, const T* outside, std::int64_t tile) const {
    const Window& w = conv_.window;
    const Corner at = corner(tile);
    const std::int64_t top = at.row - w.pad_begin[0];
    const std::int64_t left = at.column - w.pad_begin[1];
    WinogradSource<T, kIn> from;
    from.first = std::clamp<std::int64_t>(-left, 0, kIn);
    from.end = std::clamp<std::int64_t>(w.in[1] - left, from.first, kIn);
    x += (at.image * w.in[0] * w.in[1] + left + from.first) * conv_.channels;
    for (std::int64_t r = 0; r < kIn; ++r) {
      const bool inside = top + r >= 0 && top + r < w.in[0];
      from.rows[static_cast<std::size_t>(r)] = inside ? x + (top + r) * w.in[1] * conv_.channels : outside;
    }
    return from;
  }

  // Of the results of `fused`, whose convolution this is.
  [[nodiscard]] WinogradTarget target(const FusedConv& fused, const Io& io, const float* bias, std::int64_t tile) const {
    const std::int64_t maps = conv_.maps;
    const Corner at = corner(tile);
    const std::int64_t side = fused.pooled ? 2 : 1;
    const std::int64_t row = at.row / side;
    const std::int64_t column = at.column / side;
    const std::int64_t first = ((at.image * fused.out(0) + row) * fused.out(1) + column) * maps;
    return {io.output<float>(0) + first,
            fused.has_addend ? io.input<float>(3) + first : nullptr,
            bias,
            std::min(kOut / side, fused.out(0) - row),
            std::min(kOut / side, fused.out(1) - column),
            maps,
            fused.out(1) * maps,
            fused.pooled,
            fused.activation,
            static_cast<float>(fused.activation_alpha)};
  }

 private:
  ConvSpec conv_;
  std::int64_t down_, across_;  // tiles of an image
};

}  // namespace falaj::kernels::cpu
