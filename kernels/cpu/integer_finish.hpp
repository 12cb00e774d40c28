// The end of integer sums, for kernels with loops of their own.
#pragma once
#include "kernels/cpu/integer.hpp"

namespace falaj::kernels::cpu {

// Rows of `columns` sums each (a multiple of 8; 32-byte aligned), by the rule of kernels/ops/integer.hpp. Needs AVX2.
void finish_integers(const std::int32_t* sums, int rows, int columns, const IntegerTarget& target);

}  // namespace falaj::kernels::cpu
