// Loops along rows that more than one kernel runs.
#pragma once
#include <cstdint>

namespace falaj::kernels::cpu {

// y = softmax(x), of n > 0 elements; they may be the same.
using SoftmaxRow = void (*)(const float* x, float* y, std::int64_t n);
SoftmaxRow softmax_row();  // the best that this CPU has; not without AVX2

}  // namespace falaj::kernels::cpu
