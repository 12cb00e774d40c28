// Loops along rows that more than one kernel runs.
#pragma once
#include <cstdint>

namespace falaj::kernels::cpu {

// y = softmax(x) of each of `rows` rows of n > 0 elements that follow each other; x and y may be the same.
using SoftmaxRows = void (*)(const float* x, float* y, std::int64_t rows, std::int64_t n);
SoftmaxRows softmax_rows();  // the best that this CPU has; not without AVX2

}  // namespace falaj::kernels::cpu
