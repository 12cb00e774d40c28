// Eight lanes of f32: rounded to bfloat16, and what they add up to in f64, whatever part of them exists.
#pragma once
#include <cstdint>

#include "kernels/cpu/vector_math.hpp"

namespace falaj::kernels::cpu {

// The first `n` of eight lanes.
FALAJ_AVX2 inline __m256i lanes8(std::int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 8 ? static_cast<int>(n) : 8), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// The first `left` floats at p; zeros beyond them.
FALAJ_AVX2 inline __m256 some8(const float* p, std::int64_t left) {
  return left >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes8(left));
}
FALAJ_AVX2 inline void put8(float* p, __m256 v, std::int64_t left) {
  if (left >= 8) return _mm256_storeu_ps(p, v);
  _mm256_maskstore_ps(p, lanes8(left), v);
}

// Eight values in f64.
struct Double8 {
  __m256d low, high;
};
FALAJ_AVX2 inline Double8 zeros() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
FALAJ_AVX2 inline Double8 widened(__m256 v) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
}
FALAJ_AVX2 inline Double8 plus(Double8 a, Double8 b) { return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)}; }
FALAJ_AVX2 inline Double8 minus(Double8 a, __m256d b) { return {_mm256_sub_pd(a.low, b), _mm256_sub_pd(a.high, b)}; }
FALAJ_AVX2 inline Double8 plus_product(Double8 sum, Double8 a, Double8 b) {
  return {_mm256_fmadd_pd(a.low, b.low, sum.low), _mm256_fmadd_pd(a.high, b.high, sum.high)};
}
FALAJ_AVX2 inline double total(Double8 v) {
  const __m256d both = _mm256_add_pd(v.low, v.high);
  const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(both), _mm256_extractf128_pd(both, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}
// f64 memory, eight values of which `left` exist.
FALAJ_AVX2 inline void add_to(double* p, Double8 v, std::int64_t left) {
  if (left >= 8) {
    _mm256_storeu_pd(p, _mm256_add_pd(_mm256_loadu_pd(p), v.low));
    _mm256_storeu_pd(p + 4, _mm256_add_pd(_mm256_loadu_pd(p + 4), v.high));
    return;
  }
  alignas(32) double lane[8];
  _mm256_store_pd(lane, v.low);
  _mm256_store_pd(lane + 4, v.high);
  for (std::int64_t i = 0; i < left; ++i) p[i] += lane[i];
}
// Of each column from `from` to `to` the sum of its `rows` elements, `width` apart, divided by `divisor`. A sum is one chain in f64, in the
// order of rows, whichever columns go with it.
FALAJ_AVX2 inline void sum_columns(const float* x, std::int64_t rows, std::int64_t width, std::int64_t from, std::int64_t to,
                                   double divisor, float* y) {
  constexpr int kVectors = 4;
  for (std::int64_t j = from; j < to; j += 8 * kVectors) {
    Double8 sums[kVectors] = {zeros(), zeros(), zeros(), zeros()};
    if (to - j >= 8 * kVectors) {
      for (std::int64_t r = 0; r < rows; ++r) {
        const float* row = x + r * width + j;
        for (int v = 0; v < kVectors; ++v) sums[v] = plus(sums[v], widened(_mm256_loadu_ps(row + 8 * v)));
      }
    } else {
      for (std::int64_t r = 0; r < rows; ++r) {
        for (int v = 0; v < kVectors && j + 8 * v < to; ++v)
          sums[v] = plus(sums[v], widened(some8(x + r * width + j + 8 * v, to - j - 8 * v)));
      }
    }
    for (int v = 0; v < kVectors && j + 8 * v < to; ++v) {
      const __m128 low = _mm256_cvtpd_ps(_mm256_div_pd(sums[v].low, _mm256_set1_pd(divisor)));
      const __m128 high = _mm256_cvtpd_ps(_mm256_div_pd(sums[v].high, _mm256_set1_pd(divisor)));
      put8(y + j + 8 * v, _mm256_set_m128(high, low), to - j - 8 * v);
    }
  }
}
FALAJ_AVX2 inline float largest8(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

// The nearest bfloat16, ties to even; NaN stays.
FALAJ_AVX2 inline __m256 bf16_rounded8(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i cut = _mm256_and_si256(up, _mm256_set1_epi32(static_cast<int>(0xFFFF0000U)));
  return _mm256_blendv_ps(_mm256_castsi256_ps(cut), x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

}  // namespace falaj::kernels::cpu
