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

// Where a tile's results go.
struct WinogradTarget {
  float* y;             // of its first pixel
  const float* addend;  // likewise; null: none
  const float* bias;    // null: none
  std::int64_t rows, columns, maps;
  std::int64_t row;  // floats from row to row
  Activation activation;
  float alpha;
};

template <std::int64_t kOut, std::int64_t kIn>
class WinogradTiles {
 public:
  static constexpr std::int64_t kPlaces = kIn * kIn;  // products of a tile

  explicit WinogradTiles(FusedConv fused)
      : fused_(std::move(fused)),
        zeros_(static_cast<std::size_t>(fused_.conv.channels), 0.0F),
        down_(along(fused_.conv.window, 0)),
        across_(along(fused_.conv.window, 1)) {}

  static std::int64_t along(const Window& w, std::size_t d) { return (w.out[d] + kOut - 1) / kOut; }
  [[nodiscard]] const FusedConv& fused() const { return fused_; }
  [[nodiscard]] std::int64_t count() const { return fused_.conv.batch * down_ * across_; }

  // The pixels that a tile reads, row by row; outside of the image: zeros.
  [[nodiscard]] std::array<const float*, kPlaces> sources(const float* x, std::int64_t tile) const {
    const Window& w = fused_.conv.window;
    const Corner at = corner(tile);
    const float* image = x + at.image * w.in[0] * w.in[1] * fused_.conv.channels;
    std::array<const float*, kPlaces> from{};
    for (std::int64_t i = 0; i < kPlaces; ++i) {
      const std::int64_t row = at.row - w.pad_begin[0] + i / kIn;
      const std::int64_t column = at.column - w.pad_begin[1] + i % kIn;
      const bool inside = row >= 0 && row < w.in[0] && column >= 0 && column < w.in[1];
      from[static_cast<std::size_t>(i)] = inside ? image + (row * w.in[1] + column) * fused_.conv.channels : zeros_.data();
    }
    return from;
  }

  [[nodiscard]] WinogradTarget target(const Io& io, const float* bias, std::int64_t tile) const {
    const Window& w = fused_.conv.window;
    const std::int64_t maps = fused_.conv.maps;
    const Corner at = corner(tile);
    const std::int64_t first = ((at.image * w.out[0] + at.row) * w.out[1] + at.column) * maps;
    return {io.output<float>(0) + first,
            fused_.has_addend ? io.input<float>(3) + first : nullptr,
            bias,
            std::min(kOut, w.out[0] - at.row),
            std::min(kOut, w.out[1] - at.column),
            maps,
            w.out[1] * maps,
            fused_.activation,
            static_cast<float>(fused_.activation_alpha)};
  }

 private:
  struct Corner {  // of a tile, in output pixels
    std::int64_t image, row, column;
  };
  [[nodiscard]] Corner corner(std::int64_t tile) const {
    const std::int64_t of_image = down_ * across_;
    return {tile / of_image, tile % of_image / across_ * kOut, tile % across_ * kOut};
  }

  FusedConv fused_;
  std::vector<float> zeros_;
  std::int64_t down_, across_;  // tiles of an image
};

}  // namespace falaj::kernels::cpu
