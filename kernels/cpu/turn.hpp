// Matrices turned through registers.
#pragma once
#include <cstdint>

#include "kernels/cpu/finish.hpp"

namespace falaj::kernels::cpu {

// Eight rows of eight, `read` apart, to eight rows that are `write` apart: y[j][i] = x[i][j].
FALAJ_AVX2 inline void turn8(const float* x, std::int64_t read, float* y, std::int64_t write) {
  __m256 r[8];
  FALAJ_UNROLL
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(x + i * read);
  __m256 t[8];
  FALAJ_UNROLL
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  FALAJ_UNROLL
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  FALAJ_UNROLL
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(y + i * write, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(y + (i + 4) * write, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

// The first eight of three rows, side by side: y[3 * j + i] = x[i * x_row + j].
FALAJ_AVX2 inline void turn3(const float* x, std::int64_t x_row, float* y) {
  const __m256 a = _mm256_loadu_ps(x);
  const __m256 b = _mm256_loadu_ps(x + x_row);
  const __m256 c = _mm256_loadu_ps(x + 2 * x_row);
  // Each number where it goes in 24, wherever that is in a vector of eight.
  const __m256i first = _mm256_setr_epi32(0, 0, 0, 1, 1, 1, 2, 2);
  const __m256i second = _mm256_setr_epi32(2, 3, 3, 3, 4, 4, 4, 5);
  const __m256i third = _mm256_setr_epi32(5, 5, 6, 6, 6, 7, 7, 7);
  FALAJ_UNROLL
  for (int i = 0; i < 3; ++i) {
    const __m256i from = i == 0 ? first : i == 1 ? second : third;
    const __m256 p = _mm256_permutevar8x32_ps(i == 0 ? a : i == 1 ? c : b, from);
    const __m256 q = _mm256_permutevar8x32_ps(i == 0 ? b : i == 1 ? a : c, from);
    const __m256 r = _mm256_permutevar8x32_ps(i == 0 ? c : i == 1 ? b : a, from);
    _mm256_storeu_ps(y + 8 * i, _mm256_blend_ps(_mm256_blend_ps(p, q, 0b10010010), r, 0b00100100));  // p q r p q r p q
  }
}

}  // namespace falaj::kernels::cpu
