// The transformations of winograd.cpp, which includes this once for each width of vectors: see vector_math_body.hpp. For that reason it has
// no #pragma once.

constexpr std::int64_t kWidth = static_cast<std::int64_t>(sizeof(FALAJ_V) / sizeof(float));

// One dimension of the input's transformation: d into B^T d.
FALAJ_LANES inline void into(const FALAJ_V* d, FALAJ_V* to, std::int64_t step) {
  const FALAJ_V two = all(FALAJ_V{}, 2.0F);
  const FALAJ_V four = all(FALAJ_V{}, 4.0F);
  const FALAJ_V five = all(FALAJ_V{}, 5.0F);
  to[0] = fmadd(four, d[0], fnmadd(five, d[2], d[4]));
  to[step] = fnmadd(four, add(d[1], d[2]), add(d[3], d[4]));
  to[2 * step] = fmadd(four, sub(d[1], d[2]), sub(d[4], d[3]));
  to[3 * step] = fmadd(two, sub(d[3], d[1]), sub(d[4], d[2]));
  to[4 * step] = fnmadd(two, sub(d[3], d[1]), sub(d[4], d[2]));
  to[5 * step] = fmadd(four, d[1], fnmadd(five, d[3], d[5]));
}

// And of the results': m into A^T m.
FALAJ_LANES inline void out_of(const FALAJ_V* m, FALAJ_V* to, std::int64_t step) {
  const FALAJ_V plus = add(m[1], m[2]);
  const FALAJ_V minus = sub(m[1], m[2]);
  const FALAJ_V plus2 = add(m[3], m[4]);
  const FALAJ_V minus2 = sub(m[3], m[4]);
  to[0] = add(add(m[0], plus), plus2);
  to[step] = fmadd(all(minus, 2.0F), minus2, minus);
  to[2 * step] = fmadd(all(plus, 4.0F), plus2, plus);
  to[3 * step] = add(fmadd(all(minus, 8.0F), minus2, minus), m[5]);
}

// The results of a place are `stride` from those of the one before.
FALAJ_LANES void transform_in(const WinogradSource<float, kIn>& from, std::int64_t channels, float* to, std::int64_t stride) {
  for (std::int64_t c = 0; c < channels; c += kWidth) {
    FALAJ_V half[kPlaces];
    for (std::int64_t i = 0; i < kIn; ++i) {
      FALAJ_V line[kIn];
      const bool inside = i >= from.first && i < from.end;
      const std::int64_t at = (i - from.first) * channels + c;
      FALAJ_UNROLL
      for (std::size_t r = 0; r < kIn; ++r) line[r] = inside ? load(FALAJ_V{}, from.rows[r] + at, channels - c) : all(FALAJ_V{}, 0.0F);
      into(line, half + i, kIn);
    }
    for (std::int64_t r = 0; r < kIn; ++r) {
      FALAJ_V line[kIn];
      into(half + r * kIn, line, 1);
      FALAJ_UNROLL
      for (std::int64_t i = 0; i < kIn; ++i) store(to + (r * kIn + i) * stride + c, line[i], channels - c);
    }
  }
}

// The larger of both, NaN before all.
FALAJ_LANES inline FALAJ_V larger(FALAJ_V a, FALAJ_V b) { return where_nan(a, a, max(a, b)); }

FALAJ_LANES inline FALAJ_V ended(FALAJ_V sum, FALAJ_V bias, bool simple, FALAJ_V least, const WinogradTarget& t) {
  const FALAJ_V value = add(sum, bias);
  return simple ? max(least, value) : activate(value, t.activation, t.alpha);
}

FALAJ_LANES void transform_out(const float* products, std::int64_t stride, const WinogradTarget& t) {
  const bool simple = t.activation == Activation::none || t.activation == Activation::relu;
  const FALAJ_V least = all(FALAJ_V{}, t.activation == Activation::relu ? 0.0F : -__builtin_inff());
  for (std::int64_t m = 0; m < t.maps; m += kWidth) {
    const std::int64_t width = t.maps - m;
    FALAJ_V half[kOut * kIn];
    for (std::int64_t i = 0; i < kIn; ++i) {
      FALAJ_V line[kIn];
      FALAJ_UNROLL
      for (std::int64_t r = 0; r < kIn; ++r) line[r] = load(FALAJ_V{}, products + (r * kIn + i) * stride + m, width);
      out_of(line, half + i, kIn);
    }
    const FALAJ_V bias = t.bias == nullptr ? all(FALAJ_V{}, 0.0F) : load(FALAJ_V{}, t.bias + m, width);
    for (std::int64_t r = 0; r < t.rows && t.pooled; ++r) {
      FALAJ_V upper[kOut];
      FALAJ_V lower[kOut];
      out_of(half + 2 * r * kIn, upper, 1);
      out_of(half + (2 * r + 1) * kIn, lower, 1);
      FALAJ_UNROLL
      for (std::int64_t c = 0; c < kOut; ++c)
        upper[c] = larger(ended(upper[c], bias, simple, least, t), ended(lower[c], bias, simple, least, t));
      FALAJ_UNROLL
      for (std::int64_t c = 0; c < kOut / 2; ++c) {
        if (c < t.columns) store(t.y + r * t.row + c * t.maps + m, larger(upper[2 * c], upper[2 * c + 1]), width);
      }
    }
    for (std::int64_t r = 0; r < t.rows && !t.pooled; ++r) {
      FALAJ_V line[kOut];
      out_of(half + r * kIn, line, 1);
      FALAJ_UNROLL
      for (std::int64_t c = 0; c < kOut; ++c) {
        if (c >= t.columns) break;
        const std::int64_t at = r * t.row + c * t.maps + m;
        FALAJ_V value = add(line[c], bias);
        if (t.addend != nullptr) value = add(value, load(FALAJ_V{}, t.addend + at, width));
        store(t.y + at, simple ? max(least, value) : activate(value, t.activation, t.alpha), width);
      }
    }
  }
}
