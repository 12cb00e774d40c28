// What products and convolutions share: the activation of eight sums, and loops that must be unrolled.
#pragma once
#include "kernels/cpu/vector_math.hpp"
#include "kernels/ops/matmul.hpp"

// The sums of a tile must live in registers, so its loops over rows and columns must be gone at -O2 too.
#if defined(__clang__)
#define FALAJ_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FALAJ_UNROLL _Pragma("GCC unroll 16")
#endif

namespace falaj::kernels::cpu {

FALAJ_AVX2 inline __m256 activate8(__m256 x, Activation activation, float alpha) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return _mm256_blendv_ps(x, _mm256_setzero_ps(), _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));  // keeps NaN
    case Activation::leaky_relu:
      return _mm256_blendv_ps(x, _mm256_mul_ps(x, _mm256_set1_ps(alpha)), _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
    case Activation::sigmoid:
      return sigmoid8(x);
    case Activation::tanh:
      return tanh8(x);
    case Activation::gelu:
      return gelu8(x);
  }
  return x;
}

}  // namespace falaj::kernels::cpu
