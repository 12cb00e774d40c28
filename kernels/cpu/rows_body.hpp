// The loops along rows of rows.cpp, which includes this once for each width of vectors: see vector_math_body.hpp. For that reason it has no
// #pragma once.

constexpr std::int64_t kWidth = static_cast<std::int64_t>(sizeof(FALAJ_V) / sizeof(float));
constexpr std::int64_t kRun = 64 * kWidth;  // elements whose sum is f32, lane by lane; the sums of runs are added in f64

FALAJ_LANES void softmax_row(const float* x, float* y, std::int64_t n) {
  const FALAJ_V least = all(FALAJ_V{}, -__builtin_inff());
  FALAJ_V top = least;
  for (std::int64_t i = 0; i < n; i += kWidth) top = max(first_of_lanes(load(top, x + i, n - i), n - i, least), top);
  const FALAJ_V shift = all(top, largest(top));
  double total = 0;
  for (std::int64_t first = 0; first < n; first += kRun) {
    FALAJ_V sum = all(top, 0.0F);
    for (std::int64_t i = first; i < std::min(n, first + kRun); i += kWidth) {
      const FALAJ_V e = first_of_lanes(exp_of(sub(load(top, x + i, n - i), shift)), n - i, all(top, 0.0F));
      store(y + i, e, n - i);
      sum = add(sum, e);
    }
    total += sum_of(sum);
  }
  const FALAJ_V scale = all(top, static_cast<float>(1.0 / total));
  for (std::int64_t i = 0; i < n; i += kWidth) store(y + i, mul(load(scale, y + i, n - i), scale), n - i);
}

// Deviations are taken from the f32 nearest to the mean, which loses nothing, and what that misses is put right afterwards.
FALAJ_LANES void norm_row(const float* x, const float* scale, const float* bias, float* y, const Norm& s) {
  const auto width = static_cast<double>(s.width);
  double total = 0;
  for (std::int64_t first = 0; first < s.width; first += kRun) {
    FALAJ_V sum = all(FALAJ_V{}, 0.0F);
    for (std::int64_t i = first; i < std::min(s.width, first + kRun); i += kWidth) sum = add(sum, load(sum, x + i, s.width - i));
    total += sum_of(sum);
  }
  const FALAJ_V centre = all(FALAJ_V{}, static_cast<float>(total / width));
  double deviation = 0;
  double squares = 0;
  for (std::int64_t first = 0; first < s.width; first += kRun) {
    FALAJ_V sum = all(FALAJ_V{}, 0.0F);
    FALAJ_V square = sum;
    for (std::int64_t i = first; i < std::min(s.width, first + kRun); i += kWidth) {
      const FALAJ_V d = first_of_lanes(sub(load(sum, x + i, s.width - i), centre), s.width - i, all(sum, 0.0F));
      sum = add(sum, d);
      square = fmadd(d, d, square);
    }
    deviation += sum_of(sum);
    squares += sum_of(square);
  }
  const double missed = deviation / width;
  const double variance = std::max(squares / width - missed * missed, 0.0);
  const double factor = 1.0 / std::sqrt(variance + s.epsilon);
  const FALAJ_V by = all(centre, static_cast<float>(factor));
  const FALAJ_V shift = all(centre, static_cast<float>(-missed * factor));
  for (std::int64_t i = 0; i < s.width; i += kWidth) {
    const std::int64_t left = s.width - i;
    const FALAJ_V normal = fmadd(sub(load(by, x + i, left), centre), by, shift);
    const FALAJ_V added = bias == nullptr ? all(by, 0.0F) : load(by, bias + i, left);
    store(y + i, fmadd(normal, load(by, scale + i, left), added), left);
  }
}
