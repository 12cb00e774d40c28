// The loops along rows of rows.cpp, which includes this once for each width of vectors: see vector_math_body.hpp. For that reason it has no
// #pragma once.
//
// A few rows go side by side: each waits for its own sums, one after another, and what is done to a row is the same in any company.

constexpr std::int64_t kWidth = static_cast<std::int64_t>(sizeof(FALAJ_V) / sizeof(float));
constexpr std::int64_t kRun = 64 * kWidth;  // elements whose sum is f32, lane by lane; the sums of runs are added in f64

template <int kMany>
FALAJ_LANES void softmax_some(const float* x, float* y, std::int64_t n) {
  const FALAJ_V least = all(FALAJ_V{}, -__builtin_inff());
  FALAJ_V shift[kMany];
  FALAJ_UNROLL
  for (auto& top : shift) top = least;
  for (std::int64_t i = 0; i < n; i += kWidth) {
    FALAJ_UNROLL
    for (int r = 0; r < kMany; ++r) shift[r] = max(first_of_lanes(load(least, x + r * n + i, n - i), n - i, least), shift[r]);
  }
  FALAJ_UNROLL
  for (auto& top : shift) top = all(least, largest(top));
  double total[kMany] = {};
  for (std::int64_t first = 0; first < n; first += kRun) {
    FALAJ_V sum[kMany];
    FALAJ_UNROLL
    for (auto& s : sum) s = all(least, 0.0F);
    for (std::int64_t i = first; i < std::min(n, first + kRun); i += kWidth) {
      FALAJ_UNROLL
      for (int r = 0; r < kMany; ++r) {
        const FALAJ_V e = first_of_lanes(exp_of(sub(load(least, x + r * n + i, n - i), shift[r])), n - i, all(least, 0.0F));
        store(y + r * n + i, e, n - i);
        sum[r] = add(sum[r], e);
      }
    }
    FALAJ_UNROLL
    for (int r = 0; r < kMany; ++r) total[r] += sum_of(sum[r]);
  }
  FALAJ_V scale[kMany];
  FALAJ_UNROLL
  for (int r = 0; r < kMany; ++r) scale[r] = all(least, static_cast<float>(1.0 / total[r]));
  for (std::int64_t i = 0; i < n; i += kWidth) {
    FALAJ_UNROLL
    for (int r = 0; r < kMany; ++r) store(y + r * n + i, mul(load(least, y + r * n + i, n - i), scale[r]), n - i);
  }
}

// Deviations are taken from the f32 nearest to the mean, which loses nothing, and what that misses is put right afterwards.
template <int kMany>
FALAJ_LANES void norm_some(const float* x, const float* scale, const float* bias, float* y, const Norm& s) {
  const auto width = static_cast<double>(s.width);
  const FALAJ_V zero = all(FALAJ_V{}, 0.0F);
  double total[kMany] = {};
  for (std::int64_t first = 0; first < s.width; first += kRun) {
    FALAJ_V sum[kMany];
    FALAJ_UNROLL
    for (auto& each : sum) each = zero;
    for (std::int64_t i = first; i < std::min(s.width, first + kRun); i += kWidth) {
      FALAJ_UNROLL
      for (int r = 0; r < kMany; ++r) sum[r] = add(sum[r], load(zero, x + r * s.width + i, s.width - i));
    }
    FALAJ_UNROLL
    for (int r = 0; r < kMany; ++r) total[r] += sum_of(sum[r]);
  }
  FALAJ_V centre[kMany];
  FALAJ_UNROLL
  for (int r = 0; r < kMany; ++r) centre[r] = all(zero, static_cast<float>(total[r] / width));
  double deviation[kMany] = {};
  double squares[kMany] = {};
  for (std::int64_t first = 0; first < s.width; first += kRun) {
    FALAJ_V sum[kMany];
    FALAJ_V square[kMany];
    FALAJ_UNROLL
    for (int r = 0; r < kMany; ++r) sum[r] = square[r] = zero;
    for (std::int64_t i = first; i < std::min(s.width, first + kRun); i += kWidth) {
      const std::int64_t left = s.width - i;
      FALAJ_UNROLL
      for (int r = 0; r < kMany; ++r) {
        const FALAJ_V d = first_of_lanes(sub(load(zero, x + r * s.width + i, left), centre[r]), left, zero);
        sum[r] = add(sum[r], d);
        square[r] = fmadd(d, d, square[r]);
      }
    }
    FALAJ_UNROLL
    for (int r = 0; r < kMany; ++r) {
      deviation[r] += sum_of(sum[r]);
      squares[r] += sum_of(square[r]);
    }
  }
  FALAJ_V by[kMany];
  FALAJ_V shift[kMany];
  FALAJ_UNROLL
  for (int r = 0; r < kMany; ++r) {
    const double missed = deviation[r] / width;
    const double variance = std::max(squares[r] / width - missed * missed, 0.0);
    const double factor = 1.0 / std::sqrt(variance + s.epsilon);
    by[r] = all(zero, static_cast<float>(factor));
    shift[r] = all(zero, static_cast<float>(-missed * factor));
  }
  for (std::int64_t i = 0; i < s.width; i += kWidth) {
    const std::int64_t left = s.width - i;
    const FALAJ_V added = bias == nullptr ? zero : load(zero, bias + i, left);
    const FALAJ_V factor = load(zero, scale + i, left);
    FALAJ_UNROLL
    for (int r = 0; r < kMany; ++r) {
      const FALAJ_V normal = fmadd(sub(load(zero, x + r * s.width + i, left), centre[r]), by[r], shift[r]);
      store(y + r * s.width + i, fmadd(normal, factor, added), left);
    }
  }
}

constexpr int kTogether = 4;

FALAJ_LANES void softmax_rows(const float* x, float* y, std::int64_t rows, std::int64_t n) {
  std::int64_t r = 0;
  for (; r + kTogether <= rows; r += kTogether) softmax_some<kTogether>(x + r * n, y + r * n, n);
  for (; r < rows; ++r) softmax_some<1>(x + r * n, y + r * n, n);
}
FALAJ_LANES void norm_rows(const float* x, const float* scale, const float* bias, float* y, std::int64_t rows, const Norm& s) {
  std::int64_t r = 0;
  for (; r + kTogether <= rows; r += kTogether) norm_some<kTogether>(x + r * s.width, scale, bias, y + r * s.width, s);
  for (; r < rows; ++r) norm_some<1>(x + r * s.width, scale, bias, y + r * s.width, s);
}
