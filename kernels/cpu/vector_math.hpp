// f32 functions on eight lanes (AVX2, FMA) and on sixteen (AVX-512): the same operations in the same order, so that the bits are the same.
// Range reduction and polynomials after Cephes' single precision forms (Moshier); errors are below 2 ulp in the ranges that models use,
// and checked against the reference kernels by the parity test.
//
// The primitives have one name for both widths, chosen by the vector given.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "kernels/ops/matmul.hpp"

#define FALAJ_AVX2 __attribute__((target("avx2,fma")))
#define FALAJ_AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")))
#define FALAJ_AVX512_BF16 __attribute__((target("avx2,fma,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

namespace falaj::kernels::cpu {

FALAJ_AVX2 inline __m256 all(__m256, float value) { return _mm256_set1_ps(value); }
FALAJ_AVX2 inline __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
FALAJ_AVX2 inline __m256 sub(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
FALAJ_AVX2 inline __m256 mul(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
FALAJ_AVX2 inline __m256 div(__m256 a, __m256 b) { return _mm256_div_ps(a, b); }
FALAJ_AVX2 inline __m256 min(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }  // b where one of them is NaN
FALAJ_AVX2 inline __m256 max(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }  // likewise
FALAJ_AVX2 inline __m256 fmadd(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
FALAJ_AVX2 inline __m256 fnmadd(__m256 a, __m256 b, __m256 c) { return _mm256_fnmadd_ps(a, b, c); }
FALAJ_AVX2 inline __m256 and_bits(__m256 a, __m256 b) { return _mm256_and_ps(a, b); }
FALAJ_AVX2 inline __m256 and_not_bits(__m256 a, __m256 b) { return _mm256_andnot_ps(a, b); }
FALAJ_AVX2 inline __m256 or_bits(__m256 a, __m256 b) { return _mm256_or_ps(a, b); }
FALAJ_AVX2 inline __m256 nearest(__m256 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FALAJ_AVX2 inline __m256 down(__m256 x) { return _mm256_floor_ps(x); }
FALAJ_AVX2 inline __m256 up(__m256 x) { return _mm256_ceil_ps(x); }
FALAJ_AVX2 inline __m256 root(__m256 x) { return _mm256_sqrt_ps(x); }
FALAJ_AVX2 inline __m256 where_less(__m256 a, __m256 b, __m256 then, __m256 otherwise) {  // otherwise where one of them is NaN
  return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
FALAJ_AVX2 inline __m256 where_nan(__m256 a, __m256 then, __m256 otherwise) {
  return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
FALAJ_AVX2 inline __m256 where_negative(__m256 a, __m256 then, __m256 otherwise) { return _mm256_blendv_ps(otherwise, then, a); }
// y times 2^n in two halves: n may be 128, which is no float's exponent by itself.
FALAJ_AVX2 inline __m256 times_power_of_two(__m256 y, __m256 n) {
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  y = _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
  return _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23)));
}
// x = m 2^n with m around 1, between the square roots of 1/2 and 2; x is positive, and a normal number.
FALAJ_AVX2 inline __m256 without_exponent(__m256 x, __m256& n) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i whole = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3F3504F3)), 23);
  n = _mm256_cvtepi32_ps(whole);
  return _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(whole, 23)));
}

// Of memory: a whole vector, or its first n lanes (n may be more than there are), zeros beyond.
FALAJ_AVX2 inline __m256i first_lanes(std::int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(std::min<std::int64_t>(n, 8))), lane);
}
FALAJ_AVX2 inline __m256 load(__m256, const float* from) { return _mm256_loadu_ps(from); }
FALAJ_AVX2 inline __m256 load(__m256, const float* from, std::int64_t n) {
  return n >= 8 ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first_lanes(n));
}
FALAJ_AVX2 inline void store(float* to, __m256 v) { _mm256_storeu_ps(to, v); }
FALAJ_AVX2 inline void store(float* to, __m256 v, std::int64_t n) {
  if (n >= 8) return _mm256_storeu_ps(to, v);
  _mm256_maskstore_ps(to, first_lanes(n), v);
}

FALAJ_AVX2 inline __m256 first_of_lanes(__m256 v, std::int64_t n, __m256 rest) {
  return _mm256_blendv_ps(rest, v, _mm256_castsi256_ps(first_lanes(n)));
}
// Of all lanes together.
FALAJ_AVX2 inline float largest(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}
FALAJ_AVX2 inline double sum_of(__m256 v) {
  const __m256d s = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
  const __m128d t = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd(s, 1));
  return _mm_cvtsd_f64(_mm_add_sd(t, _mm_unpackhi_pd(t, t)));
}

FALAJ_AVX512 inline __m512 all(__m512, float value) { return _mm512_set1_ps(value); }
FALAJ_AVX512 inline __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
FALAJ_AVX512 inline __m512 sub(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
FALAJ_AVX512 inline __m512 mul(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
FALAJ_AVX512 inline __m512 div(__m512 a, __m512 b) { return _mm512_div_ps(a, b); }
FALAJ_AVX512 inline __m512 min(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
FALAJ_AVX512 inline __m512 max(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
FALAJ_AVX512 inline __m512 fmadd(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
FALAJ_AVX512 inline __m512 fnmadd(__m512 a, __m512 b, __m512 c) { return _mm512_fnmadd_ps(a, b, c); }
FALAJ_AVX512 inline __m512 and_bits(__m512 a, __m512 b) { return _mm512_and_ps(a, b); }
FALAJ_AVX512 inline __m512 and_not_bits(__m512 a, __m512 b) { return _mm512_andnot_ps(a, b); }
FALAJ_AVX512 inline __m512 or_bits(__m512 a, __m512 b) { return _mm512_or_ps(a, b); }
FALAJ_AVX512 inline __m512 nearest(__m512 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FALAJ_AVX512 inline __m512 down(__m512 x) { return _mm512_floor_ps(x); }
FALAJ_AVX512 inline __m512 up(__m512 x) { return _mm512_ceil_ps(x); }
FALAJ_AVX512 inline __m512 root(__m512 x) { return _mm512_sqrt_ps(x); }
FALAJ_AVX512 inline __m512 where_less(__m512 a, __m512 b, __m512 then, __m512 otherwise) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), otherwise, then);
}
FALAJ_AVX512 inline __m512 where_nan(__m512 a, __m512 then, __m512 otherwise) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), otherwise, then);
}
FALAJ_AVX512 inline __m512 where_negative(__m512 a, __m512 then, __m512 otherwise) {
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(a)), otherwise, then);
}
FALAJ_AVX512 inline __m512 times_power_of_two(__m512 y, __m512 n) { return _mm512_scalef_ps(y, n); }
FALAJ_AVX512 inline __m512 without_exponent(__m512 x, __m512& n) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i whole = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3F3504F3)), 23);
  n = _mm512_cvtepi32_ps(whole);
  return _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(whole, 23)));
}

FALAJ_AVX512 inline __mmask16 some_lanes(std::int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xFFFFU : (1U << std::max<std::int64_t>(n, 0)) - 1U);
}
FALAJ_AVX512 inline __m512 load(__m512, const float* from) { return _mm512_loadu_ps(from); }
FALAJ_AVX512 inline __m512 load(__m512, const float* from, std::int64_t n) { return _mm512_maskz_loadu_ps(some_lanes(n), from); }
FALAJ_AVX512 inline void store(float* to, __m512 v) { _mm512_storeu_ps(to, v); }
FALAJ_AVX512 inline void store(float* to, __m512 v, std::int64_t n) { _mm512_mask_storeu_ps(to, some_lanes(n), v); }

FALAJ_AVX512 inline __m512 first_of_lanes(__m512 v, std::int64_t n, __m512 rest) { return _mm512_mask_blend_ps(some_lanes(n), rest, v); }
FALAJ_AVX512 inline float largest(__m512 v) { return largest(_mm256_max_ps(_mm512_extractf32x8_ps(v, 0), _mm512_extractf32x8_ps(v, 1))); }
FALAJ_AVX512 inline double sum_of(__m512 v) { return sum_of(_mm512_castps512_ps256(v)) + sum_of(_mm512_extractf32x8_ps(v, 1)); }

#define FALAJ_LANES FALAJ_AVX2
#define FALAJ_V __m256
#include "kernels/cpu/vector_math_body.hpp"
#undef FALAJ_LANES
#undef FALAJ_V
#define FALAJ_LANES FALAJ_AVX512
#define FALAJ_V __m512
#include "kernels/cpu/vector_math_body.hpp"
#undef FALAJ_LANES
#undef FALAJ_V

}  // namespace falaj::kernels::cpu
