#include "kernels/cpu/bf16_columns.hpp"

#include <cmath>
#include <cstring>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/integer.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {

FALAJ_AVX512_BF16 void round_row_avx512(const float* from, std::int64_t n, Half* to) {
  std::int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const auto halves = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16), _mm512_loadu_ps(from + i));
    _mm512_storeu_si512(to + i, reinterpret_cast<__m512i>(halves));
  }
  for (; i < n; i += 16) {
    const auto halves = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some_lanes(n - i), from + i)));
    _mm256_mask_storeu_epi16(to + i, some_lanes(n - i), halves);
  }
}

namespace {

std::int32_t pair_at(const std::byte* from) {
  std::int32_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// One step of a tile: a pair of each row times a pair of each column.
template <int kRows, int kPanels>
FALAJ_AVX512_BF16 inline void multiply(const std::byte* const (&from)[kRows], std::int64_t g, const Half* w, std::int64_t panel_stride,
                                       __m512 (&sum)[kRows][kPanels]) {
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

// Narrow tiles have two sums of each result, of even and of odd steps: one after another they would wait for each other.
template <int kRows, int kPanels>
FALAJ_AVX512_BF16 void tile_avx512(const std::byte* const* x, const std::int64_t* offsets, std::int64_t places, std::int64_t pairs,
                                   const Half* w, std::int64_t panel_stride, const Half* ahead, const ConvTarget& t) {
  constexpr int kChains = kPanels >= 4 ? 1 : 2;
  constexpr std::int64_t kStep = kHalfPanel * 2;
  __m512 chains[kChains][kRows][kPanels];
  FALAJ_UNROLL
  for (auto& chain : chains) {
    FALAJ_UNROLL
    for (auto& row : chain) {
      FALAJ_UNROLL
      for (auto& s : row) s = _mm512_setzero_ps();
    }
  }
  for (std::int64_t p = 0; p < places; ++p) {
    const std::byte* from[kRows];
    FALAJ_UNROLL
    for (int r = 0; r < kRows; ++r) from[r] = x[r] + offsets[p];
    std::int64_t g = 0;
    for (; g + kChains <= pairs; g += kChains, w += kChains * kStep, ahead += kChains * kStep) {
      FALAJ_UNROLL
      for (int i = 0; i < kChains; ++i) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead + i * kStep), _MM_HINT_T1);
        multiply(from, g + i, w + i * kStep, panel_stride, chains[i]);
      }
    }
    if (g < pairs) {
      multiply(from, g, w, panel_stride, chains[0]);
      w += kStep;
      ahead += kStep;
    }
  }
  __m512(&sum)[kRows][kPanels] = chains[0];
  if constexpr (kChains == 2) {
    FALAJ_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FALAJ_UNROLL
      for (int c = 0; c < kPanels; ++c) sum[r][c] = _mm512_add_ps(sum[r][c], chains[1][r][c]);
    }
  }
  if (t.activation == Activation::none || t.activation == Activation::relu) {  // nearly all of them
    const __m512 least = _mm512_set1_ps(t.activation == Activation::relu ? 0.0F : -__builtin_inff());
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c) {
      const __mmask16 mask = some_lanes(t.width - c * kHalfPanel);
      const __m512 bias = _mm512_loadu_ps(t.bias + c * kHalfPanel);
      FALAJ_UNROLL
      for (int r = 0; r < kRows; ++r) {
        __m512 value = _mm512_add_ps(sum[r][c], bias);
        if (t.addend != nullptr) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, t.addend + r * t.row + c * kHalfPanel));
        _mm512_mask_storeu_ps(t.y + r * t.row + c * kHalfPanel, mask, _mm512_max_ps(least, value));  // the second operand where that is NaN
      }
    }
    return;
  }
  alignas(64) float sums[kRows * kPanels * kHalfPanel];
  FALAJ_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c) _mm512_store_ps(sums + (r * kPanels + c) * kHalfPanel, sum[r][c]);
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
    for (std::int64_t g = 0; g < pairs; ++g, w += kHalfPanel * 2) {
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
  alignas(32) float sums[kRows * kHalfPanel];
  FALAJ_UNROLL
  for (int r = 0; r < kRows; ++r) {
    _mm256_store_ps(sums + r * kHalfPanel, sum[r][0]);
    _mm256_store_ps(sums + r * kHalfPanel + 8, sum[r][1]);
  }
  finish_avx2(sums, kRows, 2, t);
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

constexpr HalfTiles kAvx512 = {
    "avx512-bf16",
    6,
    4,
    round_row_avx512,
    {{nullptr, tile_avx512<1, 1>, tile_avx512<2, 1>, tile_avx512<3, 1>, tile_avx512<4, 1>, tile_avx512<5, 1>, tile_avx512<6, 1>},
     {nullptr, tile_avx512<1, 2>, tile_avx512<2, 2>, tile_avx512<3, 2>, tile_avx512<4, 2>, tile_avx512<5, 2>, tile_avx512<6, 2>},
     {nullptr, tile_avx512<1, 4>, tile_avx512<2, 4>, tile_avx512<3, 4>, tile_avx512<4, 4>, tile_avx512<5, 4>, tile_avx512<6, 4>}}};
constexpr HalfTiles kAvx2 = {
    "avx2 widened bf16", 4, 1, round_row_avx2, {{nullptr, tile_avx2<1>, tile_avx2<2>, tile_avx2<3>, tile_avx2<4>}, {}, {}}};

// By the weights alone, so that a row's bits do not depend on its batch. Few do not repay what AMX's tiles cost to set up.
const HalfTiles& tiles_for(std::int64_t weights) {
  constexpr std::int64_t kWeightsMin = std::int64_t{1} << 13;
  const HalfTiles* amx = weights >= kWeightsMin ? amx_half_tiles() : nullptr;
  if (amx != nullptr) return *amx;
  return has_avx512_bf16() && integer_isa() >= IntegerIsa::avx512_vnni ? kAvx512 : kAvx2;  // so that its limit holds here too
}

}  // namespace

Status check_bf16(const KernelCall& call) {
  const auto refuse = [](std::string_view why) { return Error{ErrorCode::unimplemented, format("bf16: {}", why)}; };
  FALAJ_TRY(check_f32(call, "bf16"));
  if (call.in(1).constant == nullptr) return refuse("the weights are not known before the run");
  if (call.has(2) && call.in(2).constant == nullptr) return refuse("the bias is not known before the run");
  if (call.outputs[0].shape.elements() == 0) return refuse("nothing to compute");
  return {};
}

HalfColumns::HalfColumns(std::shared_ptr<const Tensor> packed, std::int64_t columns, std::vector<std::int64_t> offsets, std::int64_t depth,
                         Activation activation, double alpha)
    : tiles_(&tiles_for(columns * depth * static_cast<std::int64_t>(offsets.size()))),
      packed_(std::move(packed)),
      columns_(columns),
      pairs_((depth + 1) / 2),
      offsets_(std::move(offsets)),
      bias_(static_cast<std::size_t>((columns + kHalfPanel - 1) / kHalfPanel * kHalfPanel), 0.0F),
      activation_(activation),
      alpha_(static_cast<float>(alpha)) {}

void HalfColumns::run(const std::byte* const* x, std::int64_t rows, float* y, const float* addend, std::int64_t first_half) const {
  const auto places = static_cast<std::int64_t>(offsets_.size());
  const std::int64_t panel_stride = places * pairs_ * kHalfPanel * 2;
  const std::int64_t tiles = (rows + tiles_->rows_max - 1) / tiles_->rows_max;
  const Shares shares(tiles, rows);
  const auto* w = static_cast<const Half*>(packed_->raw()) + first_half;
  if (tiles_->begin != nullptr) tiles_->begin();
  for (std::int64_t first = 0; first < columns_;) {
    const std::int64_t left = (columns_ - first + kHalfPanel - 1) / kHalfPanel;
    const int kind = left >= 4 && tiles_->panels_max >= 4 ? 2 : (left >= 2 && tiles_->panels_max >= 2 ? 1 : 0);
    const std::int64_t panels = std::int64_t{1} << kind;
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t from = shares.first(t);
      const std::int64_t at = from * columns_ + first;
      const bool more = tiles > 1 && t < panels && (panels + t) * kHalfPanel < columns_ - first;  // the first tiles fetch the next panels
      const ConvTarget target{.y = y + at,
                              .addend = addend == nullptr ? nullptr : addend + at,
                              .bias = bias_.data() + first,
                              .row = columns_,
                              .width = columns_ - first,
                              .activation = activation_,
                              .alpha = alpha_};
      tiles_->tiles[kind][shares.first(t + 1) - from](x + from, offsets_.data(), places, pairs_, w, panel_stride,
                                                      w + (more ? panels + t : 0) * panel_stride, target);
    }
    w += panels * panel_stride;
    first += panels * kHalfPanel;
  }
  if (tiles_->end != nullptr) tiles_->end();
}

void HalfColumns::round(const float* from, std::int64_t n, Half* to) const { tiles_->round(from, n, to); }
bool HalfColumns::wide() const { return tiles_ != &kAvx2; }
std::string_view HalfColumns::name() const { return tiles_->name; }

}  // namespace falaj::kernels::cpu
