#include "kernels/cpu/adam.hpp"

#include <immintrin.h>

#include <cmath>

#include "kernels/cpu/isa.hpp"

namespace falaj::kernels::cpu {
namespace {

void one(const AdamStep& s, bool decays, float gradient, float& first, float& second, float& parameter) {
  const float given = gradient * s.scale;
  const float g = decays && s.added != 0.0F ? given + s.added * parameter : given;
  first += (g - first) * s.beta1_rest;
  second = second * s.beta2 + g * g * s.beta2_rest;
  const float kept = decays ? parameter * s.keep : parameter;
  parameter = kept - s.rate * (first / (std::sqrt(second) * s.root_scale + s.epsilon));
}

// AVX2 without FMA: the compiler must not contract what one() rounds twice.
__attribute__((target("avx2"))) std::size_t eights(const AdamStep& s, const std::uint8_t* decay, const float* gradients, float* first,
                                                   float* second, float* parameters, std::size_t count) {
  const __m256 keep = _mm256_set1_ps(s.keep);
  const __m256 added = _mm256_set1_ps(s.added);
  const __m256 beta1_rest = _mm256_set1_ps(s.beta1_rest);
  const __m256 beta2 = _mm256_set1_ps(s.beta2);
  const __m256 beta2_rest = _mm256_set1_ps(s.beta2_rest);
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 spared = _mm256_setzero_ps();
    if (decay != nullptr) {
      const __m128i flags = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(decay + i));
      spared = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(flags), _mm256_setzero_si256()));
    }
    const __m256 p = _mm256_loadu_ps(parameters + i);
    __m256 g = _mm256_mul_ps(_mm256_loadu_ps(gradients + i), _mm256_set1_ps(s.scale));
    if (s.added != 0.0F) g = _mm256_blendv_ps(_mm256_add_ps(g, _mm256_mul_ps(added, p)), g, spared);
    __m256 m = _mm256_loadu_ps(first + i);
    m = _mm256_add_ps(m, _mm256_mul_ps(_mm256_sub_ps(g, m), beta1_rest));
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(second + i), beta2);
    v = _mm256_add_ps(v, _mm256_mul_ps(_mm256_mul_ps(g, g), beta2_rest));
    const __m256 kept = _mm256_blendv_ps(_mm256_mul_ps(p, keep), p, spared);
    const __m256 root = _mm256_add_ps(_mm256_mul_ps(_mm256_sqrt_ps(v), _mm256_set1_ps(s.root_scale)), _mm256_set1_ps(s.epsilon));
    _mm256_storeu_ps(first + i, m);
    _mm256_storeu_ps(second + i, v);
    _mm256_storeu_ps(parameters + i, _mm256_sub_ps(kept, _mm256_mul_ps(_mm256_set1_ps(s.rate), _mm256_div_ps(m, root))));
  }
  return i;
}

// The same on sixteen lanes.
__attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512dq"))) std::size_t sixteens(const AdamStep& s, const std::uint8_t* decay,
                                                                                        const float* gradients, float* first, float* second,
                                                                                        float* parameters, std::size_t count) {
  const __m512 keep = _mm512_set1_ps(s.keep);
  const __m512 added = _mm512_set1_ps(s.added);
  const __m512 beta1_rest = _mm512_set1_ps(s.beta1_rest);
  const __m512 beta2 = _mm512_set1_ps(s.beta2);
  const __m512 beta2_rest = _mm512_set1_ps(s.beta2_rest);
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    __mmask16 decays = 0xFFFF;
    if (decay != nullptr) {
      const __m128i flags = _mm_loadu_si128(reinterpret_cast<const __m128i*>(decay + i));
      decays = _mm_test_epi8_mask(flags, flags);
    }
    const __m512 p = _mm512_loadu_ps(parameters + i);
    __m512 g = _mm512_mul_ps(_mm512_loadu_ps(gradients + i), _mm512_set1_ps(s.scale));
    if (s.added != 0.0F) g = _mm512_mask_add_ps(g, decays, g, _mm512_mul_ps(added, p));
    __m512 m = _mm512_loadu_ps(first + i);
    m = _mm512_add_ps(m, _mm512_mul_ps(_mm512_sub_ps(g, m), beta1_rest));
    __m512 v = _mm512_mul_ps(_mm512_loadu_ps(second + i), beta2);
    v = _mm512_add_ps(v, _mm512_mul_ps(_mm512_mul_ps(g, g), beta2_rest));
    const __m512 kept = _mm512_mask_mul_ps(p, decays, p, keep);
    const __m512 root = _mm512_add_ps(_mm512_mul_ps(_mm512_sqrt_ps(v), _mm512_set1_ps(s.root_scale)), _mm512_set1_ps(s.epsilon));
    _mm512_storeu_ps(first + i, m);
    _mm512_storeu_ps(second + i, v);
    _mm512_storeu_ps(parameters + i, _mm512_sub_ps(kept, _mm512_mul_ps(_mm512_set1_ps(s.rate), _mm512_div_ps(m, root))));
  }
  return i;
}

__attribute__((target("avx2"))) std::size_t squares(const float* values, std::size_t count, float scale, double* sums) {
  const __m128 factor = _mm_set1_ps(scale);
  __m256d low = _mm256_setzero_pd();
  __m256d high = _mm256_setzero_pd();
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256d a = _mm256_cvtps_pd(_mm_mul_ps(_mm_loadu_ps(values + i), factor));
    const __m256d b = _mm256_cvtps_pd(_mm_mul_ps(_mm_loadu_ps(values + i + 4), factor));
    low = _mm256_add_pd(low, _mm256_mul_pd(a, a));
    high = _mm256_add_pd(high, _mm256_mul_pd(b, b));
  }
  _mm256_storeu_pd(sums, low);
  _mm256_storeu_pd(sums + 4, high);
  return i;
}

}  // namespace

double sum_of_squares(std::span<const float> values, float scale) noexcept {
  double sums[8] = {};
  std::size_t i = has_avx2() ? squares(values.data(), values.size(), scale, sums) : 0;
  for (; i < values.size(); ++i) {
    const auto value = static_cast<double>(values[i] * scale);
    sums[i % 8] += value * value;
  }
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

void adam(const AdamStep& step, const std::uint8_t* decay, const float* gradients, float* first, float* second, float* parameters,
          std::size_t count) {
  std::size_t i = has_avx512() ? sixteens(step, decay, gradients, first, second, parameters, count)
                  : has_avx2() ? eights(step, decay, gradients, first, second, parameters, count)
                               : 0;
  for (; i < count; ++i) one(step, decay == nullptr || decay[i] != 0, gradients[i], first[i], second[i], parameters[i]);
}

}  // namespace falaj::kernels::cpu
