// f32 functions on eight lanes (AVX2, FMA). Range reduction and polynomials after Cephes' single precision forms (Moshier); errors
// are below 2 ulp in the ranges that models use, and checked against the reference kernels by the parity test.
#pragma once
#include <immintrin.h>

#define FALAJ_AVX2 __attribute__((target("avx2,fma")))

namespace falaj::kernels::cpu {

FALAJ_AVX2 inline __m256 exp8(__m256 x) {
  __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  __m256 in = x;
  x = _mm256_min_ps(x, _mm256_set1_ps(88.7228F));
  x = _mm256_max_ps(x, _mm256_set1_ps(-87.33654F));
  // x = n ln 2 + r, with ln 2 in two parts so that r keeps its digits.
  __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504F)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375F), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4F), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4F);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1F));
  __m256 y = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0F));
  // 2^n in two halves: n may be 128, which is no float's exponent by itself.
  __m256i whole = _mm256_cvtps_epi32(n);
  __m256i half = _mm256_srai_epi32(whole, 1);
  __m256i rest = _mm256_sub_epi32(whole, half);
  __m256i bias = _mm256_set1_epi32(127);
  y = _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
  y = _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
  y = _mm256_blendv_ps(y, _mm256_set1_ps(__builtin_inff()), _mm256_cmp_ps(in, _mm256_set1_ps(88.7228F), _CMP_GT_OQ));
  y = _mm256_blendv_ps(y, _mm256_setzero_ps(), _mm256_cmp_ps(in, _mm256_set1_ps(-87.33654F), _CMP_LT_OQ));
  return _mm256_blendv_ps(y, in, nan);
}

FALAJ_AVX2 inline __m256 sigmoid8(__m256 x) {
  // exp of -|x| never overflows; the other half by symmetry.
  __m256 sign = _mm256_set1_ps(-0.0F);
  __m256 e = exp8(_mm256_or_ps(x, sign));
  __m256 one = _mm256_set1_ps(1.0F);
  __m256 small = _mm256_div_ps(e, _mm256_add_ps(one, e));
  __m256 large = _mm256_div_ps(one, _mm256_add_ps(one, e));
  return _mm256_blendv_ps(large, small, x);
}

FALAJ_AVX2 inline __m256 tanh8(__m256 x) {
  __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0F));
  __m256 a = _mm256_andnot_ps(_mm256_set1_ps(-0.0F), x);
  // Near zero the quotient loses digits: an odd polynomial there.
  __m256 z = _mm256_mul_ps(x, x);
  __m256 p = _mm256_set1_ps(-5.70498872745e-3F);
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(2.06390887954e-2F));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(-5.37397155531e-2F));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(1.33314422036e-1F));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(-3.33332819422e-1F));
  __m256 near = _mm256_fmadd_ps(_mm256_mul_ps(p, z), x, x);
  __m256 e = exp8(_mm256_add_ps(a, a));
  __m256 one = _mm256_set1_ps(1.0F);
  __m256 far = _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2.0F), _mm256_add_ps(e, one)));
  return _mm256_blendv_ps(_mm256_or_ps(far, sign), near, _mm256_cmp_ps(a, _mm256_set1_ps(0.625F), _CMP_LT_OQ));
}

// A rational function of x^2, fitted for the least relative error up to where erf is 1 in f32.
FALAJ_AVX2 inline __m256 erf8(__m256 x) {
  constexpr float kEnd = 3.92F;
  __m256 sign = _mm256_set1_ps(-0.0F);
  __m256 a = _mm256_min_ps(_mm256_set1_ps(kEnd), _mm256_max_ps(_mm256_set1_ps(-kEnd), x));  // NaN stays
  __m256 z = _mm256_mul_ps(a, a);
  __m256 p = _mm256_set1_ps(1.99248387e-8F);
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(-1.95772350e-6F));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(1.41821452e-4F));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(3.70041281e-3F));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(5.05695306e-2F));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(1.99896574e-1F));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(1.12837911F));
  __m256 q = _mm256_set1_ps(9.55748488e-4F);
  q = _mm256_fmadd_ps(q, z, _mm256_set1_ps(1.43507728e-2F));
  q = _mm256_fmadd_ps(q, z, _mm256_set1_ps(1.14986777e-1F));
  q = _mm256_fmadd_ps(q, z, _mm256_set1_ps(5.10485411e-1F));
  q = _mm256_fmadd_ps(q, z, _mm256_set1_ps(1.0F));
  __m256 y = _mm256_div_ps(_mm256_mul_ps(a, p), q);
  __m256 one = _mm256_or_ps(_mm256_and_ps(x, sign), _mm256_set1_ps(1.0F));
  __m256 far = _mm256_cmp_ps(_mm256_andnot_ps(sign, x), _mm256_set1_ps(kEnd), _CMP_GE_OQ);
  return _mm256_blendv_ps(y, one, far);
}

FALAJ_AVX2 inline __m256 gelu8(__m256 x) {
  __m256 half = _mm256_mul_ps(_mm256_set1_ps(0.5F), x);
  return _mm256_fmadd_ps(half, erf8(_mm256_mul_ps(x, _mm256_set1_ps(0.70710678F))), half);
}

}  // namespace falaj::kernels::cpu
