// Products and convolutions by known weights in bfloat16: operands are rounded to it, sums are f32. Only for who asks for it
// (bf16_backend()).
//
// AVX512_BF16 multiplies pairs (vdpbf16ps); without it pairs are widened to f32 and multiplied by AVX2's fused multiply-adds, which rounds
// sums otherwise in their last bits. On one machine a row's bits do not depend on its batch. Packed columns are laid out as those of
// integers, in pairs instead of fours.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/convert.hpp"
#include "kernels/cpu/conv_tiles.hpp"
#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/integer.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/plane.hpp"
#include "kernels/ops/channels_last.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

#define FALAJ_AVX512_BF16 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kPanel16 = 16;     // columns that lie together
constexpr std::int64_t kRowsMax = 6;      // of a tile
constexpr std::int64_t kBlockRows = 192;  // rows of tiles that share one pass over the weights
constexpr std::int64_t kTogether = 192;   // pixels of small images that are worth a pass over the weights
constexpr std::int64_t kSlack = 32;       // zeros behind each image, which may be read beyond its last row of places

using Half = std::uint16_t;

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("bf16: {}", why)}; }
std::size_t aligned(std::int64_t bytes) { return static_cast<std::size_t>((bytes + 63) / 64 * 64); }

std::int32_t pair_at(const std::byte* from) {
  std::int32_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

using Tile = void (*)(const std::byte* const* x, const std::int64_t* offsets, std::int64_t places, std::int64_t pairs, const Half* w,
                      std::int64_t panel_stride, const Half* ahead, const ConvTarget& target);

template <int kRows, int kPanels>
FALAJ_AVX512_BF16 void tile_avx512(const std::byte* const* x, const std::int64_t* offsets, std::int64_t places, std::int64_t pairs,
                                   const Half* w, std::int64_t panel_stride, const Half* ahead, const ConvTarget& t) {
  __m512 sum[kRows][kPanels];
  FALAJ_UNROLL
  for (auto& row : sum) {
    FALAJ_UNROLL
    for (auto& s : row) s = _mm512_setzero_ps();
  }
  for (std::int64_t p = 0; p < places; ++p) {
    const std::byte* from[kRows];
    FALAJ_UNROLL
    for (int r = 0; r < kRows; ++r) from[r] = x[r] + offsets[p];
    for (std::int64_t g = 0; g < pairs; ++g, w += kPanel16 * 2, ahead += kPanel16 * 2) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
      __m512bh weights[kPanels];
      FALAJ_UNROLL
      for (int c = 0; c < kPanels; ++c) weights[c] = reinterpret_cast<__m512bh>(_mm512_load_si512(w + c * panel_stride));
      FALAJ_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const auto value = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair_at(from[r] + 4 * g)));
        FALAJ_UNROLL
        for (int c = 0; c < kPanels; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], value, weights[c]);
      }
    }
  }
  if (t.activation == Activation::none || t.activation == Activation::relu) {  // nearly all of them
    const __m512 least = _mm512_set1_ps(t.activation == Activation::relu ? 0.0F : -__builtin_inff());
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c) {
      const __mmask16 mask = some_lanes(t.width - c * kPanel16);
      const __m512 bias = _mm512_loadu_ps(t.bias + c * kPanel16);
      FALAJ_UNROLL
      for (int r = 0; r < kRows; ++r) {
        __m512 value = _mm512_add_ps(sum[r][c], bias);
        if (t.addend != nullptr) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, t.addend + r * t.row + c * kPanel16));
        _mm512_mask_storeu_ps(t.y + r * t.row + c * kPanel16, mask, _mm512_max_ps(least, value));  // the second operand where that is NaN
      }
    }
    return;
  }
  alignas(64) float sums[kRows * kPanels * kPanel16];
  FALAJ_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c) _mm512_store_ps(sums + (r * kPanels + c) * kPanel16, sum[r][c]);
  }
  finish_avx512(sums, kRows, kPanels, t);
}

// The upper half of a float is a bfloat16.
template <int kRows>
FALAJ_AVX2 void tile_avx2(const std::byte* const* x, const std::int64_t* offsets, std::int64_t places, std::int64_t pairs, const Half* w,
                          std::int64_t, const Half*, const ConvTarget& t) {
  __m256 sum[kRows][2];
  FALAJ_UNROLL
  for (auto& row : sum) row[0] = row[1] = _mm256_setzero_ps();
  const __m256i upper = _mm256_set1_epi32(static_cast<std::int32_t>(0xFFFF0000U));
  for (std::int64_t p = 0; p < places; ++p) {
    for (std::int64_t g = 0; g < pairs; ++g, w += kPanel16 * 2) {
      __m256 first[2];
      __m256 second[2];
      FALAJ_UNROLL
      for (int c = 0; c < 2; ++c) {
        const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 16 * c));
        first[c] = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
        second[c] = _mm256_castsi256_ps(_mm256_and_si256(both, upper));
      }
      FALAJ_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m256i value = _mm256_set1_epi32(pair_at(x[r] + offsets[p] + 4 * g));
        const __m256 a = _mm256_castsi256_ps(_mm256_slli_epi32(value, 16));
        const __m256 b = _mm256_castsi256_ps(_mm256_and_si256(value, upper));
        FALAJ_UNROLL
        for (int c = 0; c < 2; ++c) sum[r][c] = _mm256_fmadd_ps(b, second[c], _mm256_fmadd_ps(a, first[c], sum[r][c]));
      }
    }
  }
  alignas(32) float sums[kRows * kPanel16];
  FALAJ_UNROLL
  for (int r = 0; r < kRows; ++r) {
    _mm256_store_ps(sums + r * kPanel16, sum[r][0]);
    _mm256_store_ps(sums + r * kPanel16 + 8, sum[r][1]);
  }
  finish_avx2(sums, kRows, 2, t);
}

// f32 to bf16, to nearest even; NaN stays NaN.
Half rounded(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (value != value) return 0x7FC0;
  return static_cast<Half>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

FALAJ_AVX512_BF16 void round_row_avx512(const float* from, std::int64_t n, Half* to) {
  for (std::int64_t i = 0; i < n; i += 16) {
    const auto half = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some_lanes(n - i), from + i)));
    _mm256_mask_storeu_epi16(to + i, some_lanes(n - i), half);
  }
}
FALAJ_AVX2 void round_row_avx2(const float* from, std::int64_t n, Half* to) {
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_loadu_ps(from + i);
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_castsi256_si128(words));
  }
  for (; i < n; ++i) to[i] = rounded(from[i]);
}

struct Tiles {
  std::string_view name;
  std::int64_t rows_max, panels_max;
  void (*round)(const float* from, std::int64_t n, Half* to);
  Tile tiles[3][kRowsMax + 1];  // for 1, 2 and 4 panels
};
constexpr Tiles kAvx512 = {
    "avx512-bf16",
    6,
    4,
    round_row_avx512,
    {{nullptr, tile_avx512<1, 1>, tile_avx512<2, 1>, tile_avx512<3, 1>, tile_avx512<4, 1>, tile_avx512<5, 1>, tile_avx512<6, 1>},
     {nullptr, tile_avx512<1, 2>, tile_avx512<2, 2>, tile_avx512<3, 2>, tile_avx512<4, 2>, tile_avx512<5, 2>, tile_avx512<6, 2>},
     {nullptr, tile_avx512<1, 4>, tile_avx512<2, 4>, tile_avx512<3, 4>, tile_avx512<4, 4>, tile_avx512<5, 4>, tile_avx512<6, 4>}}};
constexpr Tiles kAvx2 = {
    "avx2 widened bf16", 4, 1, round_row_avx2, {{nullptr, tile_avx2<1>, tile_avx2<2>, tile_avx2<3>, tile_avx2<4>}, {}, {}}};

// Weights, packed for tiles: for each panel [places, pairs, kPanel16, 2], zeros where there are none.
template <class W>
Tensor pack(std::int64_t columns, std::int64_t places, std::int64_t depth, W w) {
  const std::int64_t panels = (columns + kPanel16 - 1) / kPanel16;
  const std::int64_t pairs = (depth + 1) / 2;
  Tensor packed(DType::bf16, {panels * places * pairs * kPanel16 * 2});
  auto* to = static_cast<Half*>(packed.mutable_raw());
  for (std::int64_t first = 0; first < columns; first += kPanel16, to += places * pairs * kPanel16 * 2) {
    for (std::int64_t p = 0; p < places; ++p) {
      for (std::int64_t d = 0; d < depth; ++d) {
        for (std::int64_t i = 0; i < std::min(kPanel16, columns - first); ++i)
          to[((p * pairs + d / 2) * kPanel16 + i) * 2 + d % 2] = rounded(w(first + i, p, d));
      }
    }
  }
  return packed;
}

class Columns {
 public:
  Columns(std::shared_ptr<const Tensor> packed, std::int64_t columns, std::vector<std::int64_t> offsets, std::int64_t depth,
          Activation activation, double alpha)
      : tiles_(has_avx512_bf16() && integer_isa() == IntegerIsa::avx512_vnni ? &kAvx512 : &kAvx2),  // so that its limit holds here too
        packed_(std::move(packed)),
        columns_(columns),
        pairs_((depth + 1) / 2),
        offsets_(std::move(offsets)),
        bias_(static_cast<std::size_t>((columns + kPanel16 - 1) / kPanel16 * kPanel16), 0.0F),
        activation_(activation),
        alpha_(static_cast<float>(alpha)) {}
  void set_bias(const float* bias, std::int64_t step) {
    for (std::int64_t i = 0; i < columns_; ++i) bias_[static_cast<std::size_t>(i)] = bias[i * step];
  }
  // All columns of `rows` rows of bf16; results and addends are contiguous, [rows, columns].
  void run(const std::byte* const* x, std::int64_t rows, float* y, const float* addend) const {
    const auto places = static_cast<std::int64_t>(offsets_.size());
    const std::int64_t panel_stride = places * pairs_ * kPanel16 * 2;
    const std::int64_t tiles = (rows + tiles_->rows_max - 1) / tiles_->rows_max;
    const auto* w = static_cast<const Half*>(packed_->raw());
    for (std::int64_t first = 0; first < columns_;) {
      const std::int64_t left = (columns_ - first + kPanel16 - 1) / kPanel16;
      const int kind = left >= 4 && tiles_->panels_max >= 4 ? 2 : (left >= 2 && tiles_->panels_max >= 2 ? 1 : 0);
      const std::int64_t panels = std::int64_t{1} << kind;
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t from = first_of(t, tiles, rows);
        const std::int64_t at = from * columns_ + first;
        const bool more = tiles > 1 && t < panels && (panels + t) * kPanel16 < columns_ - first;  // the first tiles fetch the next panels
        const ConvTarget target{.y = y + at,
                                .addend = addend == nullptr ? nullptr : addend + at,
                                .bias = bias_.data() + first,
                                .row = columns_,
                                .width = columns_ - first,
                                .activation = activation_,
                                .alpha = alpha_};
        tiles_->tiles[kind][first_of(t + 1, tiles, rows) - from](x + from, offsets_.data(), places, pairs_, w, panel_stride,
                                                                 w + (more ? panels + t : 0) * panel_stride, target);
      }
      w += panels * panel_stride;
      first += panels * kPanel16;
    }
  }
  void round(const float* from, std::int64_t n, Half* to) const { tiles_->round(from, n, to); }
  [[nodiscard]] std::string_view name() const { return tiles_->name; }

 private:
  const Tiles* tiles_;
  std::shared_ptr<const Tensor> packed_;
  std::int64_t columns_, pairs_;
  std::vector<std::int64_t> offsets_;
  std::vector<float> bias_;
  Activation activation_;
  float alpha_;
};

class Bf16MatMul final : public Kernel {
 public:
  Bf16MatMul(const MatMulSpec& spec, Columns columns)
      : spec_(spec),
        columns_(std::move(columns)),
        stride_((spec.k + 1) / 2 * 4),
        name_(format("{} product, packed weights", columns_.name())) {}
  void run(const Io& io) const override {
    const std::int64_t block = std::min(kBlockRows, spec_.m);
    const auto** rows = reinterpret_cast<const std::byte**>(io.scratch);
    std::byte* copies = io.scratch + pointer_bytes();
    for (std::int64_t first = 0; first < spec_.m; first += block) {
      const std::int64_t count = std::min(block, spec_.m - first);
      for (std::int64_t i = 0; i < count; ++i) {
        auto* to = reinterpret_cast<Half*>(copies + i * stride_);
        columns_.round(io.input<float>(0) + (first + i) * spec_.k, spec_.k, to);
        if (spec_.k % 2 != 0) to[spec_.k] = 0;
        rows[i] = copies + i * stride_;
      }
      columns_.run(rows, count, io.output<float>(0) + first * spec_.n, nullptr);
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return pointer_bytes() + aligned(std::min(kBlockRows, spec_.m) * stride_); }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  [[nodiscard]] std::size_t pointer_bytes() const {
    return aligned(std::min(kBlockRows, spec_.m) * static_cast<std::int64_t>(sizeof(void*)));
  }
  MatMulSpec spec_;
  Columns columns_;
  std::int64_t stride_;
  std::string name_;
};

class Bf16Conv final : public Kernel {
 public:
  Bf16Conv(FusedConv fused, const Plane& plane, Columns columns)
      : fused_(std::move(fused)),
        plane_(plane),
        columns_(std::move(columns)),
        name_(format("{} convolution, packed weights", columns_.name())) {
    const std::int64_t out = std::max<std::int64_t>(fused_.conv.window.out_elements(), 1);
    images_ = std::clamp<std::int64_t>(kTogether / out, 1, std::max<std::int64_t>(fused_.conv.batch, 1));
  }
  void run(const Io& io) const override {
    const ConvSpec& s = fused_.conv;
    const Window& w = s.window;
    const std::int64_t image = plane_.elements(s.channels) + kSlack;
    const auto** rows = reinterpret_cast<const std::byte**>(io.scratch);
    auto* copies = reinterpret_cast<Half*>(io.scratch + pointer_bytes());
    for (std::int64_t n = 0; n < s.batch; n += images_) {
      const std::int64_t images = std::min(images_, s.batch - n);
      for (std::int64_t i = 0; i < images; ++i) {
        copy(io.input<float>(0) + (n + i) * w.in_elements() * s.channels, copies + i * image);
        std::fill_n(copies + (i + 1) * image - kSlack, kSlack, Half{0});
      }
      const Half* x = copies;
      const std::int64_t pixels = images * w.out_elements();
      std::int64_t column = 0;
      std::int64_t row = 0;
      for (std::int64_t first = 0; first < pixels; first += kBlockRows) {
        const std::int64_t count = std::min(kBlockRows, pixels - first);
        for (std::int64_t p = 0; p < count; ++p) {
          rows[p] = reinterpret_cast<const std::byte*>(x + (row * w.strides[0] * plane_.width + column * w.strides[1]) * s.channels);
          if (++column < w.out[1]) continue;
          column = 0;
          if (++row < w.out[0]) continue;
          row = 0;
          x += image;
        }
        const std::int64_t at = (n * w.out_elements() + first) * s.maps;
        columns_.run(rows, count, io.output<float>(0) + at, fused_.has_addend ? io.input<float>(3) + at : nullptr);
      }
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return pointer_bytes() + aligned(images_ * (plane_.elements(fused_.conv.channels) + kSlack) * 2);
  }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  static std::size_t pointer_bytes() { return aligned(kBlockRows * static_cast<std::int64_t>(sizeof(void*))); }
  void copy(const float* x, Half* to) const {
    const Window& w = fused_.conv.window;
    const std::int64_t channels = fused_.conv.channels;
    const std::int64_t row = plane_.width * channels;
    const std::int64_t kept = w.in[1] * channels;
    const std::int64_t left = w.pad_begin[1] * channels;
    for (std::int64_t h = 0; h < plane_.height; ++h, to += row) {
      const std::int64_t from = h - w.pad_begin[0];
      const bool inside = from >= 0 && from < w.in[0];
      std::fill_n(to, inside ? left : row, Half{0});
      if (!inside) continue;
      columns_.round(x + from * kept, kept, to + left);
      std::fill_n(to + left + kept, row - left - kept, Half{0});
    }
  }
  FusedConv fused_;
  Plane plane_;
  Columns columns_;
  std::int64_t images_ = 1;
  std::string name_;
};

Status check(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "bf16"));
  if (call.in(1).constant == nullptr) return refuse("the weights are not known before the run");
  if (call.has(2) && call.in(2).constant == nullptr) return refuse("the bias is not known before the run");
  if (call.outputs[0].shape.elements() == 0) return refuse("nothing to compute");
  return {};
}

template <class Make>
std::shared_ptr<const Tensor> packed_form(const KernelCall& call, const std::string& layout, Make make) {
  const Tensor& weights = *call.in(1).constant;
  if (call.packed != nullptr && !weights.borrowed()) return call.packed->get(weights, layout, make);
  return std::make_shared<const Tensor>(make());
}

Result<KernelPtr> make_matmul(const KernelCall& call) {
  FALAJ_TRY(check(call));
  FALAJ_ASSIGN(const auto spec, matmul_spec(call));
  if (spec.batches() != 1 || spec.a_col != 1 || spec.a_row != spec.k) return refuse("the left operand is transposed, or there are several");
  if (spec.alpha != 1.0 || spec.beta != 1.0 || (spec.has_bias && spec.bias_row != 0))
    return refuse("alpha or beta is not 1, or the bias no row");
  const float* w = call.in(1).constant->data<float>().data();
  auto packed = packed_form(call, format("bf16/{}/{}", spec.b_row, spec.b_col), [&] {
    return pack(spec.n, 1, spec.k, [&](std::int64_t n, std::int64_t, std::int64_t k) { return w[k * spec.b_row + n * spec.b_col]; });
  });
  Columns columns(std::move(packed), spec.n, {0}, spec.k, spec.activation, spec.activation_alpha);
  if (spec.has_bias) columns.set_bias(call.in(2).constant->data<float>().data(), spec.bias_col);
  return std::make_unique<Bf16MatMul>(spec, std::move(columns));
}

Result<KernelPtr> make_conv(const KernelCall& call) {
  FALAJ_TRY(check(call));
  FALAJ_ASSIGN(auto fused, fused_conv(call));
  const ConvSpec& s = fused.conv;
  if (s.window.rank() != 2) return refuse("only two spatial dimensions");
  if (s.groups != 1) return refuse("several groups");
  const bool along = runs_along_rows(s);
  const std::int64_t width = s.window.kernel[1];
  const std::int64_t depth = s.channels * (along ? width : 1);
  const std::int64_t places = s.window.kernel[0] * (along ? 1 : width);
  const Plane plane = plane_of(s, depth, 2, true);
  const float* w = call.in(1).constant->data<float>().data();
  auto packed = packed_form(call, format("bf16 channels last/{}", along), [&] {
    return pack(s.maps, places, depth, [&](std::int64_t m, std::int64_t p, std::int64_t d) {
      return w[(m * s.channels + d % s.channels) * s.window.kernel_elements() + (along ? p * width + d / s.channels : p)];
    });
  });
  Columns columns(std::move(packed), s.maps, place_offsets(s, plane, 2), depth, fused.activation, fused.activation_alpha);
  if (fused.has_bias) columns.set_bias(call.in(2).constant->data<float>().data(), 1);
  return std::make_unique<Bf16Conv>(std::move(fused), plane, std::move(columns));
}

Result<KernelPtr> make(const OpDef& op, const KernelCall& call) {
  if (op.type == "Conv" && op.domain == kFalaj) return make_conv(call);
  if (op.type == "MatMul" || (op.type == "Gemm" && op.domain == kOnnx)) return make_matmul(call);
  return refuse("only products and convolutions by known weights");
}

}  // namespace
}  // namespace falaj::kernels::cpu

namespace falaj::kernels {

const Backend& bf16_backend() {
  static const Backend kBf16{"bf16", cpu::make};
  return kBf16;
}

}  // namespace falaj::kernels
