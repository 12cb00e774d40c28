// The end of integer sums, for kernels with loops of their own.
#pragma once
#include "kernels/cpu/integer.hpp"
#include "kernels/cpu/vector_math.hpp"

#define FALAJ_AVX512_VNNI __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

namespace falaj::kernels::cpu {

// Rows of `columns` sums each (a multiple of 8; 32-byte aligned), by the rule of kernels/ops/integer.hpp. Needs AVX2.
void finish_integers(const std::int32_t* sums, int rows, int columns, const IntegerTarget& target);

// The same of sixteen sums in a register.
class IntegerEnd512 {
 public:
  FALAJ_AVX512_VNNI explicit IntegerEnd512(const Requantise& end)
      : low_(_mm512_set1_ps(end.low)),
        high_(_mm512_set1_ps(end.high)),
        addend_scale_(_mm512_set1_ps(end.addend_scale)),
        zero_(_mm512_set1_epi32(end.y_zero)),
        addend_zero_(_mm512_set1_epi32(end.addend_zero)) {}

  // To the elements of the target's y from `at` on that `mask` names; likewise the addend. The sum is complete.
  FALAJ_AVX512_VNNI void put(__m512i sum, __m512 multiplier, __m512 first, __mmask16 mask, std::int64_t at, const IntegerTarget& t) const {
    if (t.addend != nullptr) {
      const __m512i addend = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, t.addend + at));
      first = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(mask, _mm512_sub_epi32(addend, addend_zero_)), addend_scale_, first);
    }
    __m512 v = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(mask, sum), multiplier, first);
    if (t.end->to_u8) {
      v = _mm512_min_ps(_mm512_max_ps(v, low_), high_);
      const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(v), zero_);
      _mm512_mask_cvtepi32_storeu_epi8(static_cast<std::uint8_t*>(t.y) + at, mask, whole);
    } else {
      if (t.end->relu) v = _mm512_max_ps(v, _mm512_setzero_ps());
      _mm512_mask_storeu_ps(static_cast<float*>(t.y) + at, mask, v);
    }
  }

 private:
  __m512 low_, high_, addend_scale_;
  __m512i zero_, addend_zero_;
};

}  // namespace falaj::kernels::cpu
