// ai.falaj's Conv with a 3 x 3 kernel at stride 1, for AVX2 and AVX-512, by Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray,
// Fast Algorithms for Convolutional Neural Networks, CVPR 2016): sixteen results take 36 products instead of 144.
//
// A tile is 4 x 4 neighbouring output pixels; it reads 6 x 6 input pixels. Transformed, the 36 places of tiles are 36 matrix products
// [tiles, channels] x [channels, maps], and these transformed back are the results. The weights are transformed once, in f64. Results
// differ from the plain sum's by a few units in the sixth digit of the largest; an infinite or NaN pixel spreads over the tiles that
// read it. Which shapes come here depends on one image alone, and every product is one chain over the channels: bits do not depend on
// the batch.
#include <algorithm>
#include <array>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/gemm.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/winograd_tiles.hpp"
#include "kernels/ops/channels_last.hpp"
#include "kernels/parallel.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kOut = 4;  // pixels of a tile's side
constexpr std::int64_t kIn = 6;   // that it reads
using Tiles = WinogradTiles<kOut, kIn>;
constexpr std::int64_t kPlaces = Tiles::kPlaces;                  // products of a tile
constexpr std::int64_t kApart = 16;                               // floats between places, whose rows would fall on one cache set
constexpr std::int64_t kChannelsMin = 16;                         // fewer do not repay the transformations
constexpr std::int64_t kTilesMin = 9;                             // of an image: fewer do not repay reading four times the weights
constexpr std::int64_t kBlockFloats = std::int64_t{1} << 19;      // of transformed tiles and products: about the second cache
constexpr std::int64_t kBlockTilesMin = 12, kBlockTilesMax = 96;  // multiples of the products' six rows

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("winograd convolution: {}", why)}; }

#define FALAJ_BODY "kernels/cpu/winograd_body.hpp"
#include "kernels/cpu/both_widths.hpp"

class WinogradKernel final : public Kernel {
 public:
  WinogradKernel(FusedConv fused, std::shared_ptr<const Tensor> packed)
      : fused_(std::move(fused)),
        tiles_(fused_.conv),
        zeros_(static_cast<std::size_t>(kIn * fused_.conv.channels), 0.0F),
        packed_(std::move(packed)) {
    const ConvSpec& s = fused_.conv;
    const std::int64_t fit = kBlockFloats / (kPlaces * (s.channels + s.maps));
    block_ = std::min(std::clamp(fit / 6 * 6, kBlockTilesMin, kBlockTilesMax), tiles_.count());
  }

  void run(const Io& launch) const override {
    const ConvSpec& s = fused_.conv;
    const Io io = alone_if_small(launch, tiles_.count() * kPlaces * s.channels * s.maps);
    auto* in = reinterpret_cast<float*>(io.scratch);  // [places, tiles, channels]
    float* products = in + kPlaces * (block_ * s.channels + kApart);
    const auto* w = static_cast<const float*>(packed_->raw());
    const auto panel_floats = static_cast<std::int64_t>(packed_elements(s.channels, s.maps));
    for (std::int64_t first = 0; first < tiles_.count(); first += block_) {
      const std::int64_t count = std::min(block_, tiles_.count() - first);
      const std::int64_t in_stride = count * s.channels + kApart;
      const std::int64_t out_stride = count * s.maps + kApart;
      in_ranges(io, count, part_rows(kPlaces * s.channels), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t t = from; t < to; ++t) transform_in(io, first + t, in + t * s.channels, in_stride);
      });
      in_parts(io, kPlaces, [&](std::int64_t p) {
        multiply_(in + p * in_stride, s.channels, 1, w + p * panel_floats, products + p * out_stride, count, s.maps, s.channels, Finish{});
      });
      in_ranges(io, count, part_rows(kPlaces * s.maps), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t t = from; t < to; ++t) transform_out(io, products + t * s.maps, out_stride, first + t);
      });
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    const ConvSpec& s = fused_.conv;
    return static_cast<std::size_t>(kPlaces * (block_ * (s.channels + s.maps) + 2 * kApart)) * sizeof(float);
  }
  [[nodiscard]] std::string_view implementation() const override { return "winograd 4x4 convolution, transformed weights"; }

 private:
  void transform_in(const Io& io, std::int64_t tile, float* to, std::int64_t stride) const {
    const auto from = tiles_.source(io.input<float>(0), zeros_.data(), tile);
    (wide_ ? lanes16::transform_in : lanes8::transform_in)(from, fused_.conv.channels, to, stride);
  }
  void transform_out(const Io& io, const float* products, std::int64_t stride, std::int64_t tile) const {
    const auto target = tiles_.target(fused_, io, fused_.has_bias ? io.input<float>(2) : nullptr, tile);
    (wide_ ? lanes16::transform_out : lanes8::transform_out)(products, stride, target);
  }

  FusedConv fused_;
  Tiles tiles_;
  std::vector<float> zeros_;
  std::shared_ptr<const Tensor> packed_;
  bool wide_ = has_avx512();
  Multiply multiply_ = multiply_packed();
  std::int64_t block_ = 0;  // tiles at a time
};

// G g G^T of sixteen maps at one channel; g: for each place of the kernel their weights. Results of a place are `stride` apart.
FALAJ_AVX2 void transform_sixteen(const double (&g)[9][kPanel], float* to, std::size_t stride) {
  constexpr double kG[kIn][3] = {{0.25, 0, 0},
                                 {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                                 {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                 {1.0 / 24, 1.0 / 12, 1.0 / 6},
                                 {1.0 / 24, -1.0 / 12, 1.0 / 6},
                                 {0, 0, 1}};
  double half[3][kPanel];
  for (std::size_t i = 0; i < kIn; ++i) {
    for (std::size_t j = 0; j < 3; ++j) {
      for (std::size_t m = 0; m < kPanel; ++m) half[j][m] = kG[i][0] * g[j][m] + kG[i][1] * g[3 + j][m] + kG[i][2] * g[6 + j][m];
    }
    for (std::size_t j = 0; j < kIn; ++j, to += stride) {
      for (std::size_t m = 0; m < kPanel; ++m)
        to[m] = static_cast<float>(half[0][m] * kG[j][0] + half[1][m] * kG[j][1] + half[2][m] * kG[j][2]);
    }
  }
}

// [M, C, 3, 3] -> for each place packed [C, M]: G g G^T.
Tensor transform_weights(const Tensor& weights, const ConvSpec& s) {
  const std::size_t panel_floats = packed_elements(s.channels, s.maps);
  Tensor packed = Tensor::uninitialised(DType::f32, {static_cast<std::int64_t>(kPlaces * panel_floats)});
  float* to = packed.mutable_data<float>().data();
  const float* from = weights.data<float>().data();
  for (std::int64_t first = 0; first < s.maps; first += kPanel) {
    for (std::int64_t c = 0; c < s.channels; ++c, to += kPanel) {
      double g[9][kPanel] = {};
      for (std::int64_t m = 0; m < std::min(kPanel, s.maps - first); ++m) {
        for (std::int64_t p = 0; p < 9; ++p) g[p][m] = static_cast<double>(from[((first + m) * s.channels + c) * 9 + p]);
      }
      transform_sixteen(g, to, panel_floats);
    }
  }
  return packed;
}

}  // namespace

Result<KernelPtr> make_winograd(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "winograd convolution"));
  if (call.in(0).shape.rank() != 4) return refuse("only two spatial dimensions");
  FALAJ_ASSIGN(auto fused, fused_conv(call));
  const Tensor* weights = call.in(1).constant;
  if (weights == nullptr) return refuse("the weights are not known before the run");
  const ConvSpec& s = fused.conv;
  const Window& w = s.window;
  for (std::size_t d = 0; d < 2; ++d) {
    if (w.kernel[d] != 3 || w.strides[d] != 1 || w.dilations[d] != 1) return refuse("only 3 x 3 kernels at stride 1");
  }
  if (s.groups != 1) return refuse("only one group");
  if (s.channels % 8 != 0 || s.maps % 8 != 0 || s.channels < kChannelsMin || s.maps < kChannelsMin)
    return refuse(format("{} channels and {} maps: whole eights, from {} on", s.channels, s.maps, kChannelsMin));
  if (Tiles::along(w, 0) * Tiles::along(w, 1) < kTilesMin) return refuse("the image is too small");
  const auto make = [&] { return transform_weights(*weights, s); };
  const bool kept = call.packed != nullptr && !weights->borrowed();
  auto packed = kept ? call.packed->get(*weights, "winograd", make) : std::make_shared<const Tensor>(make());
  return std::make_unique<WinogradKernel>(std::move(fused), std::move(packed));
}

}  // namespace falaj::kernels::cpu
