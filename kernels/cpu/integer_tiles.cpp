// The tiles of integer.hpp, for AVX2, AVX-VNNI and AVX512-VNNI.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/integer.hpp"
#include "kernels/cpu/integer_finish.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/plane.hpp"
#include "kernels/cpu/vector_math.hpp"

#define FALAJ_AVX_VNNI __attribute__((target("avx2,fma,avxvnni")))

namespace falaj::kernels::cpu {
namespace {

constinit thread_local IntegerIsa g_most = IntegerIsa::amx;
constinit thread_local bool g_plain_amx = false;

std::int32_t four_bytes(const std::uint8_t* from) {
  std::int32_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// --- the end of sums ---------------------------------------------------------------------------------------------------------

FALAJ_AVX2 inline __m256i load_bytes8(const std::uint8_t* from, std::int64_t width) {
  if (width >= 8) return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  alignas(8) std::uint8_t lane[8] = {};
  std::memcpy(lane, from, static_cast<std::size_t>(std::min<std::int64_t>(width, 8)));
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(lane)));
}

// Rows of `columns` sums each.
[[gnu::noinline]] FALAJ_AVX2 void finish_avx2(const std::int32_t* sums, int rows, int columns, const IntegerTarget& t) {
  const Requantise& end = *t.end;
  const __m256 low = _mm256_set1_ps(end.low);
  const __m256 high = _mm256_set1_ps(end.high);
  for (int c = 0; c < columns && c < t.width; c += 8) {
    const std::int64_t width = std::min<std::int64_t>(t.width - c, 8);
    const __m256i start = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(t.start + c));
    const __m256 multiplier = _mm256_loadu_ps(t.multiplier + c);
    for (int r = 0; r < rows; ++r) {
      const __m256i sum = _mm256_add_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(sums + r * columns + c)), start);
      __m256 first = _mm256_loadu_ps(t.offset + c);
      if (t.addend != nullptr) {
        const __m256i addend = _mm256_sub_epi32(load_bytes8(t.addend + r * t.row + c, width), _mm256_set1_epi32(end.addend_zero));
        first = _mm256_fmadd_ps(_mm256_cvtepi32_ps(addend), _mm256_set1_ps(end.addend_scale), first);
      }
      __m256 v = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), multiplier, first);
      if (end.to_u8) {
        v = _mm256_min_ps(_mm256_max_ps(v, low), high);
        const __m256i whole = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(end.y_zero));
        const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        auto* to = static_cast<std::uint8_t*>(t.y) + r * t.row + c;
        if (width == 8) {
          _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
        } else {
          alignas(8) std::uint8_t lane[8];
          _mm_storel_epi64(reinterpret_cast<__m128i*>(lane), _mm_packus_epi16(words, words));
          std::memcpy(to, lane, static_cast<std::size_t>(width));
        }
      } else {
        if (end.relu) v = _mm256_max_ps(v, _mm256_setzero_ps());
        auto* to = static_cast<float*>(t.y) + r * t.row + c;
        if (width == 8) {
          _mm256_storeu_ps(to, v);
        } else {
          alignas(32) float lane[8];
          _mm256_store_ps(lane, v);
          std::memcpy(to, lane, static_cast<std::size_t>(width) * sizeof(float));
        }
      }
    }
  }
}

// The same, while the sums are in registers.
template <int kRows, int kPanels>
FALAJ_AVX512_VNNI inline void finish_avx512(const __m512i (&sum)[kRows][kPanels], const IntegerTarget& t) {
  const IntegerEnd512 end(*t.end);
  FALAJ_UNROLL
  for (int p = 0; p < kPanels; ++p) {
    const std::int64_t c = p * kIntegerPanel;
    const __mmask16 mask = some_lanes(t.width - c);
    const __m512i start = _mm512_loadu_si512(t.start + c);
    const __m512 multiplier = _mm512_loadu_ps(t.multiplier + c);
    const __m512 offset = _mm512_loadu_ps(t.offset + c);
    FALAJ_UNROLL
    for (int r = 0; r < kRows; ++r) end.put(_mm512_add_epi32(sum[r][p], start), multiplier, offset, mask, r * t.row + c, t);
  }
}

// --- tiles ---------------------------------------------------------------------------------------------------------------------

// Each lane of 32 bits has the sum of two of the four products of a step; four columns to a vector.
template <int kRows>
FALAJ_AVX2 void tile_avx2(const std::uint8_t* const* x, const std::int64_t* offsets, std::int64_t places, std::int64_t fours,
                          const std::int8_t* w, std::int64_t, const std::int8_t*, const IntegerTarget& t) {
  __m256i sum[kRows][4];
  FALAJ_UNROLL
  for (auto& row : sum) {
    FALAJ_UNROLL
    for (auto& s : row) s = _mm256_setzero_si256();
  }
  for (std::int64_t p = 0; p < places; ++p) {
    const std::uint8_t* from[kRows];
    FALAJ_UNROLL
    for (int r = 0; r < kRows; ++r) from[r] = x[r] + offsets[p];
    for (std::int64_t g = 0; g < fours; ++g, w += kIntegerPanel * 4) {
      __m256i values[kRows];
      FALAJ_UNROLL
      for (int r = 0; r < kRows; ++r) values[r] = _mm256_cvtepu8_epi16(_mm_set1_epi32(four_bytes(from[r] + 4 * g)));
      FALAJ_UNROLL
      for (int c = 0; c < 4; ++c) {
        const __m256i weights = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(w + c * 16)));
        FALAJ_UNROLL
        for (int r = 0; r < kRows; ++r) sum[r][c] = _mm256_add_epi32(sum[r][c], _mm256_madd_epi16(values[r], weights));
      }
    }
  }
  alignas(32) std::int32_t sums[kRows * kIntegerPanel];
  FALAJ_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FALAJ_UNROLL
    for (int c = 0; c < 2; ++c) {
      const __m256i pairs = _mm256_hadd_epi32(sum[r][2 * c], sum[r][2 * c + 1]);
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums + r * kIntegerPanel + 8 * c), _mm256_permute4x64_epi64(pairs, 0xD8));
    }
  }
  finish_avx2(sums, kRows, kIntegerPanel, t);
}

template <int kRows>
FALAJ_AVX_VNNI void tile_avx_vnni(const std::uint8_t* const* x, const std::int64_t* offsets, std::int64_t places, std::int64_t fours,
                                  const std::int8_t* w, std::int64_t, const std::int8_t*, const IntegerTarget& t) {
  __m256i sum[kRows][2];
  FALAJ_UNROLL
  for (auto& row : sum) row[0] = row[1] = _mm256_setzero_si256();
  for (std::int64_t p = 0; p < places; ++p) {
    const std::uint8_t* from[kRows];
    FALAJ_UNROLL
    for (int r = 0; r < kRows; ++r) from[r] = x[r] + offsets[p];
    for (std::int64_t g = 0; g < fours; ++g, w += kIntegerPanel * 4) {
      const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
      const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32));
      FALAJ_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m256i value = _mm256_set1_epi32(four_bytes(from[r] + 4 * g));
        sum[r][0] = _mm256_dpbusd_avx_epi32(sum[r][0], value, low);
        sum[r][1] = _mm256_dpbusd_avx_epi32(sum[r][1], value, high);
      }
    }
  }
  alignas(32) std::int32_t sums[kRows * kIntegerPanel];
  FALAJ_UNROLL
  for (int r = 0; r < kRows; ++r) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums + r * kIntegerPanel), sum[r][0]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums + r * kIntegerPanel + 8), sum[r][1]);
  }
  finish_avx2(sums, kRows, kIntegerPanel, t);
}

template <int kRows, int kPanels>
FALAJ_AVX512_VNNI void tile_avx512(const std::uint8_t* const* x, const std::int64_t* offsets, std::int64_t places, std::int64_t fours,
                                   const std::int8_t* w, std::int64_t panel_stride, const std::int8_t* ahead, const IntegerTarget& t) {
  __m512i sum[kRows][kPanels];
  FALAJ_UNROLL
  for (auto& row : sum) {
    FALAJ_UNROLL
    for (auto& s : row) s = _mm512_setzero_si512();
  }
  for (std::int64_t p = 0; p < places; ++p) {
    const std::uint8_t* from[kRows];
    FALAJ_UNROLL
    for (int r = 0; r < kRows; ++r) from[r] = x[r] + offsets[p];
    for (std::int64_t g = 0; g < fours; ++g, w += kIntegerPanel * 4, ahead += kIntegerPanel * 4) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
      __m512i weights[kPanels];
      FALAJ_UNROLL
      for (int c = 0; c < kPanels; ++c) weights[c] = _mm512_load_si512(w + c * panel_stride);
      FALAJ_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m512i value = _mm512_set1_epi32(four_bytes(from[r] + 4 * g));
        FALAJ_UNROLL
        for (int c = 0; c < kPanels; ++c) sum[r][c] = _mm512_dpbusd_epi32(sum[r][c], value, weights[c]);
      }
    }
  }
  finish_avx512(sum, t);
}

constexpr IntegerTiles kAvx2 = {"avx2 integer", 3, 1, {{nullptr, tile_avx2<1>, tile_avx2<2>, tile_avx2<3>}, {}, {}}};
constexpr IntegerTiles kAvxVnni = {
    "avx-vnni integer",
    6,
    1,
    {{nullptr, tile_avx_vnni<1>, tile_avx_vnni<2>, tile_avx_vnni<3>, tile_avx_vnni<4>, tile_avx_vnni<5>, tile_avx_vnni<6>}, {}, {}}};
constexpr IntegerTiles kAvx512Vnni = {
    "avx512-vnni integer",
    6,
    4,
    {{nullptr, tile_avx512<1, 1>, tile_avx512<2, 1>, tile_avx512<3, 1>, tile_avx512<4, 1>, tile_avx512<5, 1>, tile_avx512<6, 1>},
     {nullptr, tile_avx512<1, 2>, tile_avx512<2, 2>, tile_avx512<3, 2>, tile_avx512<4, 2>, tile_avx512<5, 2>, tile_avx512<6, 2>},
     {nullptr, tile_avx512<1, 4>, tile_avx512<2, 4>, tile_avx512<3, 4>, tile_avx512<4, 4>, tile_avx512<5, 4>, tile_avx512<6, 4>}}};

}  // namespace

void finish_integers(const std::int32_t* sums, int rows, int columns, const IntegerTarget& target) {
  finish_avx2(sums, rows, columns, target);
}

IntegerIsaLimit::IntegerIsaLimit(IntegerIsa most, bool plain_amx) noexcept
    : before_(std::exchange(g_most, most)), plain_before_(std::exchange(g_plain_amx, plain_amx)) {}
IntegerIsaLimit::~IntegerIsaLimit() {
  g_most = before_;
  g_plain_amx = plain_before_;
}

IntegerIsa integer_isa() noexcept {
  const auto allowed = [](IntegerIsa isa) { return static_cast<int>(g_most) >= static_cast<int>(isa); };
  if ((has_amx_int8() || (g_plain_amx && has_avx2())) && allowed(IntegerIsa::amx)) return IntegerIsa::amx;
  if (has_avx512_vnni() && allowed(IntegerIsa::avx512_vnni)) return IntegerIsa::avx512_vnni;
  if (has_avx_vnni() && allowed(IntegerIsa::avx_vnni)) return IntegerIsa::avx_vnni;
  return has_avx2() && allowed(IntegerIsa::avx2) ? IntegerIsa::avx2 : IntegerIsa::none;
}

const IntegerTiles& integer_tiles(IntegerIsa isa) {
  if (isa == IntegerIsa::amx) return amx_tiles();
  if (isa == IntegerIsa::avx512_vnni) return kAvx512Vnni;
  return isa == IntegerIsa::avx_vnni ? kAvxVnni : kAvx2;
}

IntegerColumns::IntegerColumns(std::shared_ptr<const Tensor> packed, std::int64_t columns, std::int64_t groups,
                               std::vector<std::int64_t> offsets, std::int64_t depth, std::int32_t x_zero, const float* multiplier,
                               const float* offset, const Requantise& end)
    : tiles_(&integer_tiles(integer_isa())),
      packed_(std::move(packed)),
      columns_(columns),
      groups_(groups),
      depth_(depth),
      offsets_(std::move(offsets)),
      end_(end) {
  const std::int64_t share = columns / groups;
  const std::int64_t panels = groups * ((share + kIntegerPanel - 1) / kIntegerPanel);
  const auto padded = static_cast<std::size_t>(panels * kIntegerPanel);
  start_.resize(padded);
  multiplier_.resize(padded);
  offset_.resize(padded);
  const auto* sums =
      reinterpret_cast<const std::int32_t*>(static_cast<const std::int8_t*>(packed_->raw()) +
                                            panels * static_cast<std::int64_t>(offsets_.size()) * fours_of(depth_) * kIntegerPanel * 4);
  std::size_t at = 0;
  for (std::int64_t first = 0; first < columns; at += kIntegerPanel) {
    const std::int64_t width = std::min(kIntegerPanel, (first / share + 1) * share - first);
    for (std::int64_t i = 0; i < width; ++i) {
      const std::size_t to = at + static_cast<std::size_t>(i);
      start_[to] = -x_zero * sums[to];
      multiplier_[to] = multiplier[first + i];
      offset_[to] = offset[first + i];
    }
    first += width;
  }
}

void IntegerColumns::run(const std::uint8_t* const* x, std::int64_t rows, void* y, const std::uint8_t* addend) const {
  const std::int64_t share = columns_ / groups_;
  const auto places = static_cast<std::int64_t>(offsets_.size());
  const std::int64_t fours = fours_of(depth_);
  const std::int64_t panel_stride = places * fours * kIntegerPanel * 4;
  const std::int64_t tiles = (rows + tiles_->rows_max - 1) / tiles_->rows_max;
  const Shares shares(tiles, rows);
  const std::size_t size = end_.to_u8 ? 1 : sizeof(float);
  const auto* w = static_cast<const std::int8_t*>(packed_->raw());
  std::size_t padded = 0;
  if (tiles_->begin != nullptr) tiles_->begin();
  for (std::int64_t first = 0; first < columns_;) {
    const std::int64_t group = first / share;
    const std::int64_t left = (group + 1) * share - first;
    const std::int64_t panels_left = (left + kIntegerPanel - 1) / kIntegerPanel;
    const int kind = panels_left >= 4 && tiles_->panels_max >= 4 ? 2 : (panels_left >= 2 && tiles_->panels_max >= 2 ? 1 : 0);
    const std::int64_t panels = std::int64_t{1} << kind;
    const std::int64_t width = std::min(left, panels * kIntegerPanel);
    const std::uint8_t* moved[kIntegerRows];
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t from = shares.first(t);
      const std::int64_t count = shares.first(t + 1) - from;
      for (std::int64_t r = 0; r < count; ++r) moved[r] = x[from + r] + group * depth_;
      const std::int64_t at = from * columns_ + first;
      const IntegerTarget target{start_.data() + padded,
                                 multiplier_.data() + padded,
                                 offset_.data() + padded,
                                 static_cast<std::byte*>(y) + static_cast<std::size_t>(at) * size,
                                 addend == nullptr ? nullptr : addend + at,
                                 columns_,
                                 width,
                                 &end_};
      const bool more = tiles > 1 && t < panels && panels + t < panels_left;  // the first tiles fetch the next panels
      tiles_->tiles[kind][count](moved, offsets_.data(), places, fours, w, panel_stride, w + (more ? panels + t : 0) * panel_stride,
                                 target);
    }
    w += panels * panel_stride;
    padded += static_cast<std::size_t>(panels * kIntegerPanel);
    first += width;
  }
  if (tiles_->end != nullptr) tiles_->end();
}

}  // namespace falaj::kernels::cpu
