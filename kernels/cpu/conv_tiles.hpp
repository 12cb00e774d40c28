// The inner loops of convolutions and pools over [N, H, W, C], on eight lanes and on sixteen; the bits are the same. A tile is some
// neighbouring output pixels times one or two panels of sixteen maps, all its sums in registers; every sum is one chain in the order of
// the weights. Where results are pooled, four pixels in a row of a tile are the two by two of which the largest is kept.
#pragma once
#include <cstdint>
#include <string_view>

#include "kernels/ops/matmul.hpp"

namespace falaj::kernels::cpu {

constexpr std::int64_t kMaps = 16;  // of a panel

// Where a tile's results go, and what ends its sums.
struct ConvTarget {
  float* y;
  const float* addend;  // null: none
  const float* bias;    // null: none
  std::int64_t row;     // floats from pixel to pixel
  std::int64_t width;   // maps that exist
  Activation activation;
  float alpha;
};

// The end of `rows` times `vectors` whole vectors of sums (aligned): bias, addend, activation.
void finish_avx2(const float* sums, int rows, int vectors, const ConvTarget& t);
void finish_avx512(const float* sums, int rows, int vectors, const ConvTarget& t);

struct ConvInput {
  const float* const* places;   // ConvLoops::pixels pointers: one for each pixel
  std::int64_t place_step;      // to those of the next kernel place: 0 where the same are meant
  const std::int64_t* offsets;  // floats from them, for each kernel place
  std::int64_t count;           // of places
  std::int64_t depth;           // channels of a place
  const float* w;               // for each place and channel sixteen weights, aligned
  std::int64_t panel_stride;    // to those of the next sixteen maps
  const float* ahead;           // as many floats that will be wanted: the next panel
};
using ConvTile = void (*)(const ConvInput& in, const ConvTarget& target);

// A window's part that meets the input, for `pixels` output pixels in a row.
struct PoolRun {
  const float* x;  // the first pixel's first place
  std::int64_t rows, columns;
  std::int64_t row_step, column_step;  // floats
  std::int64_t channels;
  std::int64_t pixels, pixel_step;  // floats in x; y is contiguous
};

// Neighbouring results of a 3 x 3 kernel at stride 1 over one channel, for one panel or what exists of it: `pixels` in a row, or as many
// twos by twos.
struct OneChannelRun {
  const float* x;  // the first pixel's first place
  std::int64_t row;
  const float* w;  // [9, kMaps]
  std::int64_t pixels;
};

struct ConvLoops {
  std::string_view name;
  std::int64_t pixels;                                                 // of a tile, at most: kConvPixels or fewer
  std::int64_t panels_max;                                             // of a tile
  ConvTile tiles[2][13];                                               // for one and two panels: by pixels, from 1 on
  ConvTile pooled[2][4];                                               // likewise: by fours of pixels
  void (*max)(const PoolRun& run, float* y);                           // NaN is the largest
  void (*one_channel)(const OneChannelRun& run, const ConvTarget& t);  // without an addend; no activation or Relu
  void (*one_channel_pooled)(const OneChannelRun& run, const ConvTarget& t);
};
constexpr std::int64_t kConvPixels = 12;
const ConvLoops& conv_loops();  // the best that this CPU has; not without AVX2

}  // namespace falaj::kernels::cpu
