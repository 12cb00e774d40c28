// The sixteen channels of a pixel of blocks (kernels/ops/blocks.hpp) as a vector, whatever their type.
#pragma once
#include <cstdint>

#include "kernels/cpu/vector_math.hpp"

namespace falaj::kernels::cpu {

// Code for f32 is the same without AVX512_BF16: it has none of the instructions that round.
struct Floats {
  using Element = float;
  FALAJ_AVX512_BF16 static __m512 load(const float* from) { return _mm512_loadu_ps(from); }
  FALAJ_AVX512_BF16 static void store(float* to, __m512 v) { _mm512_storeu_ps(to, v); }
};
struct Halves {
  using Element = std::uint16_t;
  FALAJ_AVX512_BF16 static __m512 load(const Element* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  FALAJ_AVX512_BF16 static void store(Element* to, __m512 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
  }
};

}  // namespace falaj::kernels::cpu
