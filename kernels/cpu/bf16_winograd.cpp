// ai.falaj's Conv with a 3 x 3 kernel at stride 1 in bfloat16, by Winograd's minimal filtering F(2 x 2, 3 x 3) (Lavin and Gray, Fast
// Algorithms for Convolutional Neural Networks, CVPR 2016): four results take 16 products instead of 36.
//
// A tile is 2 x 2 neighbouring output pixels; it reads 4 x 4 input pixels. Transformed in f32 and rounded to bfloat16, the 16 places of
// tiles are 16 products [tiles, channels] x [channels, maps] with sums in f32, and these transformed back are the results. The weights are
// transformed once, in f64, before they are rounded. What is rounded are sums of four pixels and of nine weights instead of pixels and
// weights: errors are 1.7 times those of the plain sum by their mean square, and less than a bit at that. An infinite or NaN pixel spreads
// over the tiles that read it. Larger tiles would be faster and too coarse.
//
// Which shapes come here depends on one image alone, and every product is one chain over the channels: bits do not depend on the batch.
#include <algorithm>
#include <array>

#include "kernels/cpu/bf16_columns.hpp"
#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/cpu/winograd_tiles.hpp"
#include "kernels/ops/channels_last.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kOut = 2;  // pixels of a tile's side
constexpr std::int64_t kIn = 4;   // that it reads
using Tiles = WinogradTiles<kOut, kIn>;
constexpr std::int64_t kPlaces = Tiles::kPlaces;               // products of a tile
constexpr std::int64_t kApart = 32;                            // elements between places, whose rows would fall on one cache set
constexpr std::int64_t kChannelsMin = 32;                      // fewer do not repay the transformations
constexpr std::int64_t kTilesMin = 36;                         // of an image: fewer do not repay reading twice the weights
constexpr std::int64_t kBlockBytes = std::int64_t{512} << 10;  // of transformed tiles and products: what the second cache holds well
constexpr std::int64_t kBlockTilesMin = 48, kBlockTilesMax = 96;

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("bf16 winograd convolution: {}", why)}; }

// To nearest even; NaN stays NaN.
FALAJ_AVX512_BF16 inline void store_half(Half* to, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
FALAJ_AVX2 inline void store_half(Half* to, __m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i half = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
  half = _mm256_blendv_epi8(half, _mm256_set1_epi32(0x7FC0), _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(half, half), 0xD8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(words));
}

#define FALAJ_BODY "kernels/cpu/bf16_winograd_body.hpp"
#define FALAJ_WIDE FALAJ_AVX512_BF16
#include "kernels/cpu/both_widths.hpp"

class Bf16Winograd final : public Kernel {
 public:
  Bf16Winograd(FusedConv fused, HalfColumns columns, const float* bias)
      : fused_(std::move(fused)),
        tiles_(fused_.conv),
        zeros_(static_cast<std::size_t>(kIn * fused_.conv.channels), 0.0F),
        columns_(std::move(columns)),
        bias_(static_cast<std::size_t>(fused_.conv.maps), 0.0F),
        name_(format("{} winograd 2x2 convolution, transformed weights", columns_.name())) {
    const ConvSpec& s = fused_.conv;
    if (bias != nullptr) std::copy_n(bias, s.maps, bias_.begin());
    const std::int64_t fit = kBlockBytes / (kPlaces * (2 * s.channels + 4 * s.maps));
    block_ = std::min(std::clamp(fit / 6 * 6, kBlockTilesMin, kBlockTilesMax), tiles_.count());
  }

  void run(const Io& io) const override {
    const ConvSpec& s = fused_.conv;
    const auto** rows = reinterpret_cast<const std::byte**>(io.scratch);
    auto* products = reinterpret_cast<float*>(io.scratch + pointer_bytes());
    auto* in = reinterpret_cast<Half*>(products + kPlaces * (block_ * s.maps + kApart));  // [places, tiles, channels]
    const std::int64_t weights = half_elements(s.maps, 1, s.channels);
    for (std::int64_t first = 0; first < tiles_.count(); first += block_) {
      const std::int64_t count = std::min(block_, tiles_.count() - first);
      const std::int64_t in_stride = count * s.channels + kApart;
      const std::int64_t out_stride = count * s.maps + kApart;
      for (std::int64_t t = 0; t < count; ++t) transform_in(io, first + t, in + t * s.channels, in_stride);
      for (std::int64_t p = 0; p < kPlaces; ++p) {
        for (std::int64_t t = 0; t < count; ++t) rows[t] = reinterpret_cast<const std::byte*>(in + p * in_stride + t * s.channels);
        columns_.run(rows, count, products + p * out_stride, nullptr, p * weights);
      }
      for (std::int64_t t = 0; t < count; ++t) transform_out(io, products + t * s.maps, out_stride, first + t);
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    const ConvSpec& s = fused_.conv;
    const std::int64_t products = kPlaces * (block_ * s.maps + kApart) * 4;
    const std::int64_t in = kPlaces * (block_ * s.channels + kApart) * 2;
    return pointer_bytes() + static_cast<std::size_t>(products + in);
  }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  static std::size_t pointer_bytes() { return kBlockTilesMax * sizeof(void*); }

  void transform_in(const Io& io, std::int64_t tile, Half* to, std::int64_t stride) const {
    const auto from = tiles_.source(io.input<float>(0), zeros_.data(), tile);
    (columns_.wide() ? lanes16::transform_in : lanes8::transform_in)(from, fused_.conv.channels, to, stride);
  }
  void transform_out(const Io& io, const float* products, std::int64_t stride, std::int64_t tile) const {
    (columns_.wide() ? lanes16::transform_out : lanes8::transform_out)(products, stride, tiles_.target(fused_, io, bias_.data(), tile));
  }

  FusedConv fused_;
  Tiles tiles_;
  std::vector<float> zeros_;
  HalfColumns columns_;
  std::vector<float> bias_;
  std::string name_;
  std::int64_t block_ = 0;  // tiles at a time
};

// [M, C, 3, 3] -> for each place packed [C, M]: G g G^T.
Tensor transform_weights(const Tensor& weights, const ConvSpec& s) {
  constexpr double kG[kIn][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  const std::int64_t each = half_elements(s.maps, 1, s.channels);
  Tensor packed(DType::bf16, {kPlaces * each});
  const float* from = weights.data<float>().data();
  for (std::int64_t p = 0; p < kPlaces; ++p) {
    const double* row = kG[p / kIn];
    const double* column = kG[p % kIn];
    pack_halves(static_cast<Half*>(packed.mutable_raw()) + p * each, s.maps, 1, s.channels,
                [&](std::int64_t m, std::int64_t, std::int64_t c) {
                  const float* g = from + (m * s.channels + c) * 9;
                  double sum = 0;
                  for (std::size_t i = 0; i < 3; ++i) {
                    for (std::size_t j = 0; j < 3; ++j) sum += row[i] * column[j] * static_cast<double>(g[i * 3 + j]);
                  }
                  return static_cast<float>(sum);
                });
  }
  return packed;
}

}  // namespace

Result<KernelPtr> make_bf16_winograd(const KernelCall& call) {
  FALAJ_TRY(check_bf16(call));
  if (call.in(0).shape.rank() != 4) return refuse("only two spatial dimensions");
  FALAJ_ASSIGN(auto fused, fused_conv(call));
  if (fused.pooled) return refuse("the results are pooled");
  const ConvSpec& s = fused.conv;
  const Window& w = s.window;
  for (std::size_t d = 0; d < 2; ++d) {
    if (w.kernel[d] != 3 || w.strides[d] != 1 || w.dilations[d] != 1) return refuse("only 3 x 3 kernels at stride 1");
  }
  if (s.groups != 1) return refuse("only one group");
  if (s.channels % 16 != 0 || s.maps % 16 != 0 || s.channels < kChannelsMin || s.maps < kChannelsMin)
    return refuse(format("{} channels and {} maps: whole sixteens, from {} on", s.channels, s.maps, kChannelsMin));
  if (Tiles::along(w, 0) * Tiles::along(w, 1) < kTilesMin) return refuse("the image is too small");
  const Tensor& weights = *call.in(1).constant;
  HalfColumns columns(packed_form(call, "bf16 winograd", [&] { return transform_weights(weights, s); }), s.maps, {0}, s.channels,
                      Activation::none, 0);
  const float* bias = fused.has_bias ? call.in(2).constant->data<float>().data() : nullptr;
  return std::make_unique<Bf16Winograd>(std::move(fused), std::move(columns), bias);
}

}  // namespace falaj::kernels::cpu
