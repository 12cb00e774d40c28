// The loops of resize.cpp, which includes this once for each width of vectors: see vector_math_body.hpp. For that reason it has no
// #pragma once.

constexpr std::int64_t kWidth = static_cast<std::int64_t>(sizeof(FALAJ_V) / sizeof(float));

// y = sum of weights[k] rows[k]
template <int kTaps>
FALAJ_LANES void combine_some(const float* const* rows, const float* weights, float* y, std::int64_t n) {
  FALAJ_V w[kTaps];
  FALAJ_UNROLL
  for (int k = 0; k < kTaps; ++k) w[k] = all(FALAJ_V{}, weights[k]);
  for (std::int64_t i = 0; i < n; i += kWidth) {
    FALAJ_V sum = mul(load(FALAJ_V{}, rows[0] + i, n - i), w[0]);
    FALAJ_UNROLL
    for (int k = 1; k < kTaps; ++k) sum = fmadd(load(FALAJ_V{}, rows[k] + i, n - i), w[k], sum);
    store(y + i, sum, n - i);
  }
}
FALAJ_LANES void combine(const float* const* rows, const float* weights, std::int64_t taps, float* y, std::int64_t n) {
  if (taps == 2) return combine_some<2>(rows, weights, y, n);
  if (taps == 4) return combine_some<4>(rows, weights, y, n);
  for (std::int64_t i = 0; i < n; i += kWidth) {
    FALAJ_V sum = mul(load(FALAJ_V{}, rows[0] + i, n - i), all(FALAJ_V{}, weights[0]));
    for (std::int64_t k = 1; k < taps; ++k) sum = fmadd(load(FALAJ_V{}, rows[k] + i, n - i), all(FALAJ_V{}, weights[k]), sum);
    store(y + i, sum, n - i);
  }
}

// One row along itself, single numbers: neighbours of the result are one vector.
FALAJ_LANES void along(const float* x, const Taps& t, float* y) {
  for (std::int64_t i = 0; i < t.size; i += kWidth) {
    FALAJ_V sum = all(FALAJ_V{}, 0.0F);
    for (std::int64_t k = 0; k < t.many; ++k) {
      const FALAJ_V from = gather(FALAJ_V{}, x, t.at.data() + k * t.padded + i);
      const FALAJ_V weight = load(sum, t.weight.data() + k * t.padded + i);
      sum = k == 0 ? mul(from, weight) : fmadd(from, weight, sum);
    }
    store(y + i, sum, t.size - i);
  }
}
