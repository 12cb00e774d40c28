// The loops of conv_tiles.cpp, which includes this once for each width of vectors: see vector_math_body.hpp. For that reason it has no
// #pragma once.

constexpr std::int64_t kWidth = static_cast<std::int64_t>(sizeof(FALAJ_V) / sizeof(float));

// The larger of both, NaN before all.
FALAJ_LANES inline FALAJ_V larger(FALAJ_V a, FALAJ_V b) { return where_nan(a, a, max(a, b)); }

// The end of sums that have more to them than Relu, or that are not whole. Apart from the sums' loop, whose registers it would take. Of
// each kShare rows the largest is kept.
template <int kShare>
[[gnu::noinline]] FALAJ_LANES void finish_tile(const float* sums, int rows, int vectors, const ConvTarget& t) {
  for (int c = 0; c < vectors; ++c) {
    const std::int64_t width = t.width - c * kWidth;
    if (width <= 0) break;
    const FALAJ_V bias = t.bias == nullptr ? all(FALAJ_V{}, 0.0F) : load(FALAJ_V{}, t.bias + c * kWidth, width);
    for (int r = 0; r < rows; r += kShare) {
      const std::int64_t at = r / kShare * t.row + c * kWidth;
      FALAJ_V best = all(FALAJ_V{}, 0.0F);
      for (int k = 0; k < kShare; ++k) {
        FALAJ_V value = add(load(FALAJ_V{}, sums + ((r + k) * vectors + c) * kWidth), bias);
        if (t.addend != nullptr) value = add(value, load(FALAJ_V{}, t.addend + at, width));
        value = activate(value, t.activation, t.alpha);
        best = k == 0 ? value : larger(value, best);
      }
      store(t.y + at, best, width);
    }
  }
}

template <int kRows, int kVectors, int kShare = 1>
FALAJ_LANES void tile(const ConvInput& in, const ConvTarget& t) {
  // Eight lanes: two vectors are a panel. Sixteen: each vector is one.
  const std::int64_t step = kWidth == kMaps ? in.panel_stride : kWidth;
  FALAJ_V sum[kRows][kVectors];
  FALAJ_UNROLL
  for (auto& row : sum) {
    FALAJ_UNROLL
    for (auto& s : row) s = all(FALAJ_V{}, 0.0F);
  }
  const float* w = in.w;
  const float* ahead = in.ahead;
  const float* const* places = in.places;
  for (std::int64_t p = 0; p < in.count; ++p, places += in.place_step) {
    const float* x[kRows];
    FALAJ_UNROLL
    for (int r = 0; r < kRows; ++r) x[r] = places[r] + in.offsets[p];
    for (std::int64_t c = 0; c < in.depth; ++c, w += kMaps, ahead += kMaps) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
      FALAJ_V weights[kVectors];
      FALAJ_UNROLL
      for (int v = 0; v < kVectors; ++v) weights[v] = load(FALAJ_V{}, w + v * step);
      FALAJ_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const FALAJ_V value = all(FALAJ_V{}, x[r][c]);
        FALAJ_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[r][v] = fmadd(value, weights[v], sum[r][v]);
      }
    }
  }
  const bool bounds = t.activation == Activation::none || t.activation == Activation::relu || t.activation == Activation::clip;
  if (t.width >= kVectors * kWidth && bounds) {  // nearly all of them
    const FALAJ_V least = all(FALAJ_V{}, t.activation == Activation::none ? -__builtin_inff() : 0.0F);
    const FALAJ_V most = all(FALAJ_V{}, t.activation == Activation::clip ? t.alpha : __builtin_inff());
    FALAJ_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const FALAJ_V bias = t.bias == nullptr ? all(FALAJ_V{}, 0.0F) : load(FALAJ_V{}, t.bias + v * kWidth);
      FALAJ_UNROLL
      for (int r = 0; r < kRows; ++r) {
        FALAJ_V value = add(sum[r][v], bias);
        if (kShare == 1 && t.addend != nullptr) value = add(value, load(FALAJ_V{}, t.addend + r * t.row + v * kWidth));
        sum[r][v] = min(most, max(least, value));  // the second operand where that is NaN
      }
      FALAJ_UNROLL
      for (int r = 0; r < kRows; r += kShare) {
        FALAJ_UNROLL
        for (int k = 1; k < kShare; ++k) sum[r][v] = larger(sum[r + k][v], sum[r][v]);
        store(t.y + r / kShare * t.row + v * kWidth, sum[r][v]);
      }
    }
    return;
  }
  alignas(64) float sums[kRows * kVectors * kWidth];
  FALAJ_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FALAJ_UNROLL
    for (int v = 0; v < kVectors; ++v) store(sums + (r * kVectors + v) * kWidth, sum[r][v]);
  }
  finish_tile<kShare>(sums, kRows, kVectors, t);
}

// kSide by kSide neighbouring pixels, the largest of which is kept.
template <int kSide>
FALAJ_LANES inline FALAJ_V one_channel_pixel(const float* x, std::int64_t row, const FALAJ_V (&weights)[9], FALAJ_V bias, FALAJ_V least) {
  FALAJ_V sum[kSide * kSide];
  FALAJ_UNROLL
  for (auto& s : sum) s = all(FALAJ_V{}, 0.0F);
  FALAJ_UNROLL
  for (int p = 0; p < 9; ++p) {
    FALAJ_UNROLL
    for (int s = 0; s < kSide * kSide; ++s)
      sum[s] = fmadd(all(FALAJ_V{}, x[(p / 3 + s / kSide) * row + p % 3 + s % kSide]), weights[p], sum[s]);
  }
  FALAJ_UNROLL
  for (int s = 0; s < kSide * kSide; ++s) {
    sum[s] = max(least, add(sum[s], bias));
    if (s > 0) sum[0] = larger(sum[s], sum[0]);
  }
  return sum[0];
}

template <int kSide>
FALAJ_LANES void one_channel(const OneChannelRun& run, const ConvTarget& t) {
  const FALAJ_V least = all(FALAJ_V{}, t.activation == Activation::relu ? 0.0F : -__builtin_inff());
  for (std::int64_t m = 0; m < kMaps && m < t.width; m += kWidth) {
    FALAJ_V weights[9];
    FALAJ_UNROLL
    for (int p = 0; p < 9; ++p) weights[p] = load(FALAJ_V{}, run.w + p * kMaps + m);
    const FALAJ_V bias = t.bias == nullptr ? all(FALAJ_V{}, 0.0F) : load(FALAJ_V{}, t.bias + m, t.width - m);
    const float* x = run.x;
    float* y = t.y + m;
    for (std::int64_t i = 0; i < run.pixels; ++i, x += kSide, y += t.row)
      store(y, one_channel_pixel<kSide>(x, run.row, weights, bias, least), t.width - m);
  }
}

template <bool kWhole>
FALAJ_LANES inline FALAJ_V max_of(const PoolRun& run, const float* row, std::int64_t width) {
  FALAJ_V best = all(FALAJ_V{}, -__builtin_inff());
  for (std::int64_t k = 0; k < run.rows; ++k, row += run.row_step) {
    for (std::int64_t l = 0; l < run.columns; ++l) {
      const FALAJ_V value = kWhole ? load(best, row + l * run.column_step) : load(best, row + l * run.column_step, width);
      best = where_nan(value, value, max(value, best));
    }
  }
  return best;
}

FALAJ_LANES void max_pool(const PoolRun& run, float* y) {
  const float* x = run.x;
  for (std::int64_t p = 0; p < run.pixels; ++p, x += run.pixel_step, y += run.channels) {
    std::int64_t c = 0;
    for (; c + kWidth <= run.channels; c += kWidth) store(y + c, max_of<true>(run, x + c, kWidth));
    if (c < run.channels) store(y + c, max_of<false>(run, x + c, run.channels - c), run.channels - c);
  }
}
