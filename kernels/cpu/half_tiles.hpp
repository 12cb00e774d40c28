// Tiles of products in bfloat16 by AVX512_BF16: eight rows times up to three panels of sixteen columns, 24 sums in registers. Operands come
// in pairs along what is summed over (kernels/ops/halves.hpp).
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/finish.hpp"
#include "kernels/ops/halves.hpp"

namespace falaj::kernels::cpu {

using Half = std::uint16_t;

constexpr int kTileRows = 8;
constexpr std::int64_t kTilePanels = 3;
constexpr std::int64_t kPair = kHalfPanel * 2;  // elements of a panel's pair of rows

// Two rows of sixteen lanes in bfloat16, one behind the other, and as pairs.
FALAJ_AVX512_BF16 inline __m512i halves_of(__m512 first, __m512 second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}
FALAJ_AVX512_BF16 inline __m512i paired(__m512i both) {
  alignas(64) static constexpr std::array<Half, 32> kFrom = [] {
    std::array<Half, 32> from{};
    for (std::size_t i = 0; i < 32; ++i) from[i] = static_cast<Half>(i / 2 + i % 2 * 16);
    return from;
  }();
  return _mm512_permutexvar_epi16(_mm512_load_si512(kFrom.data()), both);
}

FALAJ_AVX512_BF16 inline __m512bh pair_at(const Half* at) {
  std::int32_t both;
  std::memcpy(&both, at, sizeof both);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
}

// Eight rows of the left operand: each a run of pairs, or next to one another in a panel.
struct Rows {
  const Half* at[kTileRows];
};
struct Columns {
  const Half* at;
};

template <int kPanels>
[[gnu::always_inline]] FALAJ_AVX512_BF16 inline void clear(__m512 (&sum)[kTileRows][kPanels]) {
  FALAJ_UNROLL
  for (auto& row : sum) {
    FALAJ_UNROLL
    for (auto& s : row) s = _mm512_setzero_ps();
  }
}
template <int kPanels, class Left>
[[gnu::always_inline]] FALAJ_AVX512_BF16 inline void add_up(const Left& left, const Half* w, std::int64_t panel, std::int64_t pairs,
                                                            __m512 (&sum)[kTileRows][kPanels]) {
  const Left x = left;
  for (std::int64_t g = 0; g < pairs; ++g, w += kPair) {
    __m512bh right[kPanels];
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c) right[c] = reinterpret_cast<__m512bh>(_mm512_load_si512(w + c * panel));
    FALAJ_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      __m512bh value;
      if constexpr (std::is_same_v<Left, Rows>) {
        value = pair_at(x.at[r] + 2 * g);
      } else {
        value = pair_at(x.at + g * kPair + 2 * r);
      }
      FALAJ_UNROLL
      for (int c = 0; c < kPanels; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], value, right[c]);
    }
  }
}

// How many panels the next tile takes: as many as it can, without leaving one of four alone at the end.
inline std::int64_t panels_at_once(std::int64_t left, std::int64_t most = kTilePanels) {
  return left == 4 || left == 2 ? 2 : std::min(left, most);
}

}  // namespace falaj::kernels::cpu
