// ai.falaj's Conv with a 3 x 3 kernel at stride 1, for AVX2, by Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray, Fast
// Algorithms for Convolutional Neural Networks, CVPR 2016): sixteen results take 36 products instead of 144.
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
#include "kernels/ops/channels_last.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kOut = 4;                                  // pixels of a tile's side
constexpr std::int64_t kIn = 6;                                   // that it reads
constexpr std::int64_t kPlaces = kIn * kIn;                       // products of a tile
constexpr std::int64_t kChannelsMin = 32;                         // fewer do not repay the transformations
constexpr std::int64_t kTilesMin = 9;                             // of an image: fewer do not repay reading four times the weights
constexpr std::int64_t kBlockFloats = std::int64_t{1} << 19;      // of transformed tiles and products: about the second cache
constexpr std::int64_t kBlockTilesMin = 12, kBlockTilesMax = 96;  // multiples of the products' six rows

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("winograd convolution: {}", why)}; }

// One dimension of the input's transformation: d into B^T d.
FALAJ_AVX2 inline void into(const __m256* d, std::int64_t step, __m256* to, std::int64_t to_step) {
  const __m256 two = _mm256_set1_ps(2.0F);
  const __m256 four = _mm256_set1_ps(4.0F);
  const __m256 five = _mm256_set1_ps(5.0F);
  const __m256 d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  to[0] = _mm256_fmadd_ps(four, d0, _mm256_fnmadd_ps(five, d2, d4));
  to[to_step] = _mm256_fnmadd_ps(four, _mm256_add_ps(d1, d2), _mm256_add_ps(d3, d4));
  to[2 * to_step] = _mm256_fmadd_ps(four, _mm256_sub_ps(d1, d2), _mm256_sub_ps(d4, d3));
  to[3 * to_step] = _mm256_fmadd_ps(two, _mm256_sub_ps(d3, d1), _mm256_sub_ps(d4, d2));
  to[4 * to_step] = _mm256_fnmadd_ps(two, _mm256_sub_ps(d3, d1), _mm256_sub_ps(d4, d2));
  to[5 * to_step] = _mm256_fmadd_ps(four, d1, _mm256_fnmadd_ps(five, d3, d5));
}

// And of the results': m into A^T m.
FALAJ_AVX2 inline void out_of(const __m256* m, std::int64_t step, __m256* to, std::int64_t to_step) {
  const __m256 plus = _mm256_add_ps(m[step], m[2 * step]);
  const __m256 minus = _mm256_sub_ps(m[step], m[2 * step]);
  const __m256 plus2 = _mm256_add_ps(m[3 * step], m[4 * step]);
  const __m256 minus2 = _mm256_sub_ps(m[3 * step], m[4 * step]);
  to[0] = _mm256_add_ps(_mm256_add_ps(m[0], plus), plus2);
  to[to_step] = _mm256_fmadd_ps(_mm256_set1_ps(2.0F), minus2, minus);
  to[2 * to_step] = _mm256_fmadd_ps(_mm256_set1_ps(4.0F), plus2, plus);
  to[3 * to_step] = _mm256_add_ps(_mm256_fmadd_ps(_mm256_set1_ps(8.0F), minus2, minus), m[5 * step]);
}

class WinogradKernel final : public Kernel {
 public:
  WinogradKernel(FusedConv fused, std::shared_ptr<const Tensor> packed)
      : fused_(std::move(fused)), packed_(std::move(packed)), zeros_(static_cast<std::size_t>(fused_.conv.channels), 0.0F) {
    const ConvSpec& s = fused_.conv;
    tiles_[0] = tiles_along(s.window, 0);
    tiles_[1] = tiles_along(s.window, 1);
    const std::int64_t fit = kBlockFloats / (kPlaces * (s.channels + s.maps));
    block_ = std::min(std::clamp(fit / 6 * 6, kBlockTilesMin, kBlockTilesMax), s.batch * tiles_[0] * tiles_[1]);
  }
  static std::int64_t tiles_along(const Window& w, std::size_t d) { return (w.out[d] + kOut - 1) / kOut; }

  void run(const Io& io) const override {
    const ConvSpec& s = fused_.conv;
    auto* in = reinterpret_cast<float*>(io.scratch);  // [places, tiles, channels]
    float* products = in + kPlaces * block_ * s.channels;
    const std::int64_t total = s.batch * tiles_[0] * tiles_[1];
    const auto* w = static_cast<const float*>(packed_->raw());
    const auto panel_floats = static_cast<std::int64_t>(packed_elements(s.channels, s.maps));
    for (std::int64_t first = 0; first < total; first += block_) {
      const std::int64_t count = std::min(block_, total - first);
      for (std::int64_t t = 0; t < count; ++t) transform_in(io.input<float>(0), first + t, in + t * s.channels, count * s.channels);
      for (std::int64_t p = 0; p < kPlaces; ++p)
        multiply_(in + p * count * s.channels, s.channels, 1, w + p * panel_floats, products + p * count * s.maps, count, s.maps,
                  s.channels, Finish{});
      for (std::int64_t t = 0; t < count; ++t) transform_out(io, products + t * s.maps, count * s.maps, first + t);
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return static_cast<std::size_t>(kPlaces * block_ * (fused_.conv.channels + fused_.conv.maps)) * sizeof(float);
  }
  [[nodiscard]] std::string_view implementation() const override { return "winograd 4x4 convolution, transformed weights"; }

 private:
  struct Corner {  // of a tile, in output pixels
    std::int64_t image, row, column;
  };
  [[nodiscard]] Corner corner(std::int64_t tile) const {
    const std::int64_t of_image = tiles_[0] * tiles_[1];
    return {tile / of_image, tile % of_image / tiles_[1] * kOut, tile % tiles_[1] * kOut};
  }

  // The tile's places are `stride` apart.
  FALAJ_AVX2 void transform_in(const float* x, std::int64_t tile, float* to, std::int64_t stride) const {
    const Window& w = fused_.conv.window;
    const std::int64_t channels = fused_.conv.channels;
    const Corner at = corner(tile);
    std::array<const float*, kPlaces> from{};
    for (std::int64_t i = 0; i < kPlaces; ++i) {
      const std::int64_t row = at.row - w.pad_begin[0] + i / kIn;
      const std::int64_t column = at.column - w.pad_begin[1] + i % kIn;
      const bool inside = row >= 0 && row < w.in[0] && column >= 0 && column < w.in[1];
      from[static_cast<std::size_t>(i)] = inside ? x + ((at.image * w.in[0] + row) * w.in[1] + column) * channels : zeros_.data();
    }
    for (std::int64_t c = 0; c < channels; c += 8) {
      __m256 d[kPlaces];
      __m256 half[kPlaces];
      for (std::size_t i = 0; i < kPlaces; ++i) d[i] = _mm256_loadu_ps(from[i] + c);
      for (std::int64_t i = 0; i < kIn; ++i) into(d + i, kIn, half + i, kIn);
      for (std::int64_t i = 0; i < kIn; ++i) into(half + i * kIn, 1, d + i * kIn, 1);
      for (std::int64_t i = 0; i < kPlaces; ++i) _mm256_storeu_ps(to + i * stride + c, d[i]);
    }
  }

  FALAJ_AVX2 void transform_out(const Io& io, const float* products, std::int64_t stride, std::int64_t tile) const {
    const Window& w = fused_.conv.window;
    const std::int64_t maps = fused_.conv.maps;
    const auto alpha = static_cast<float>(fused_.activation_alpha);
    const Corner at = corner(tile);
    const std::int64_t rows = std::min(kOut, w.out[0] - at.row);
    const std::int64_t columns = std::min(kOut, w.out[1] - at.column);
    const std::int64_t first = ((at.image * w.out[0] + at.row) * w.out[1] + at.column) * maps;
    for (std::int64_t m = 0; m < maps; m += 8) {
      __m256 p[kPlaces];
      __m256 half[kOut * kIn];
      __m256 y[kOut * kOut];
      for (std::int64_t i = 0; i < kPlaces; ++i) p[i] = _mm256_loadu_ps(products + i * stride + m);
      for (std::int64_t i = 0; i < kIn; ++i) out_of(p + i, kIn, half + i, kIn);
      for (std::int64_t i = 0; i < kOut; ++i) out_of(half + i * kIn, 1, y + i * kOut, 1);
      const __m256 bias = fused_.has_bias ? _mm256_loadu_ps(io.input<float>(2) + m) : _mm256_setzero_ps();
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < columns; ++c) {
          const std::int64_t to = first + (r * w.out[1] + c) * maps + m;
          __m256 value = _mm256_add_ps(y[r * kOut + c], bias);
          if (fused_.has_addend) value = _mm256_add_ps(value, _mm256_loadu_ps(io.input<float>(3) + to));
          _mm256_storeu_ps(io.output<float>(0) + to, activate(value, fused_.activation, alpha));
        }
      }
    }
  }

  FusedConv fused_;
  std::shared_ptr<const Tensor> packed_;
  std::vector<float> zeros_;
  std::array<std::int64_t, 2> tiles_{};
  Multiply multiply_ = multiply_packed();
  std::int64_t block_ = 0;  // tiles at a time
};

// [M, C, 3, 3] -> for each place packed [C, M]: G g G^T.
Tensor transform_weights(const Tensor& weights, const ConvSpec& s) {
  constexpr double kG[kIn][3] = {{0.25, 0, 0},
                                 {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                                 {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                 {1.0 / 24, 1.0 / 12, 1.0 / 6},
                                 {1.0 / 24, -1.0 / 12, 1.0 / 6},
                                 {0, 0, 1}};
  const auto matrix = static_cast<std::size_t>(s.channels * s.maps);
  std::vector<float> plain(kPlaces * matrix);  // [places, C, M]
  const float* g = weights.data<float>().data();
  for (std::int64_t m = 0; m < s.maps; ++m) {
    for (std::int64_t c = 0; c < s.channels; ++c, g += 9) {
      double half[kIn][3];
      for (std::size_t i = 0; i < kIn; ++i) {
        for (std::size_t j = 0; j < 3; ++j)
          half[i][j] =
              kG[i][0] * static_cast<double>(g[j]) + kG[i][1] * static_cast<double>(g[3 + j]) + kG[i][2] * static_cast<double>(g[6 + j]);
      }
      for (std::size_t i = 0; i < kIn; ++i) {
        for (std::size_t j = 0; j < kIn; ++j)
          plain[(i * kIn + j) * matrix + static_cast<std::size_t>(c * s.maps + m)] =
              static_cast<float>(half[i][0] * kG[j][0] + half[i][1] * kG[j][1] + half[i][2] * kG[j][2]);
      }
    }
  }
  const std::size_t panel_floats = packed_elements(s.channels, s.maps);
  Tensor packed(DType::f32, {static_cast<std::int64_t>(kPlaces * panel_floats)});
  for (std::size_t p = 0; p < kPlaces; ++p)
    pack(plain.data() + p * matrix, s.maps, 1, s.channels, s.maps, packed.mutable_data<float>().data() + p * panel_floats);
  return packed;
}

}  // namespace

Result<KernelPtr> make_winograd(const KernelCall& call) {
  if (!has_avx2()) return refuse("this CPU has no AVX2");
  if (call.in(0).dtype != DType::f32) return refuse(format("only float32, not {}", to_string(call.in(0).dtype)));
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
  if (WinogradKernel::tiles_along(w, 0) * WinogradKernel::tiles_along(w, 1) < kTilesMin) return refuse("the image is too small");
  const auto make = [&] { return transform_weights(*weights, s); };
  const bool kept = call.packed != nullptr && !weights->borrowed();
  auto packed = kept ? call.packed->get(*weights, "winograd", make) : std::make_shared<const Tensor>(make());
  return std::make_unique<WinogradKernel>(std::move(fused), std::move(packed));
}

}  // namespace falaj::kernels::cpu
