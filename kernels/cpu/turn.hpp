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

}  // namespace falaj::kernels::cpu
