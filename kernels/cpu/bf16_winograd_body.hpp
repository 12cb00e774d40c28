// The transformations of bf16_winograd.cpp, which includes this once for each width of vectors: see vector_math_body.hpp. For that reason
// it has no #pragma once.

constexpr std::int64_t kWidth = static_cast<std::int64_t>(sizeof(FALAJ_V) / sizeof(float));

// One dimension of the input's transformation: d into B^T d.
FALAJ_LANES inline void into(const FALAJ_V* d, FALAJ_V* to, std::int64_t step) {
  to[0] = sub(d[0], d[2]);
  to[step] = add(d[1], d[2]);
  to[2 * step] = sub(d[2], d[1]);
  to[3 * step] = sub(d[1], d[3]);
}

// The results of a place are `stride` from those of the one before.
FALAJ_LANES void transform_in(const WinogradSource<float, kIn>& from, std::int64_t channels, Half* to, std::int64_t stride) {
  for (std::int64_t c = 0; c < channels; c += kWidth) {
    FALAJ_V half[kPlaces];
    FALAJ_UNROLL
    for (std::int64_t i = 0; i < kIn; ++i) {
      FALAJ_V line[kIn];
      const bool inside = i >= from.first && i < from.end;
      const std::int64_t at = (i - from.first) * channels + c;
      FALAJ_UNROLL
      for (std::size_t r = 0; r < kIn; ++r) line[r] = inside ? load(FALAJ_V{}, from.rows[r] + at, kWidth) : all(FALAJ_V{}, 0.0F);
      into(line, half + i, kIn);
    }
    FALAJ_UNROLL
    for (std::int64_t r = 0; r < kIn; ++r) {
      FALAJ_V line[kIn];
      into(half + r * kIn, line, 1);
      FALAJ_UNROLL
      for (std::int64_t i = 0; i < kIn; ++i) store_half(to + (r * kIn + i) * stride + c, line[i]);
    }
  }
}

// The results' transformation, A^T m A, and what follows it.
FALAJ_LANES void transform_out(const float* products, std::int64_t stride, const WinogradTarget& t) {
  const bool simple = t.activation == Activation::none || t.activation == Activation::relu;
  const FALAJ_V least = all(FALAJ_V{}, t.activation == Activation::relu ? 0.0F : -__builtin_inff());
  for (std::int64_t m = 0; m < t.maps; m += kWidth) {
    FALAJ_V half[kOut][kIn];
    FALAJ_UNROLL
    for (std::int64_t i = 0; i < kIn; ++i) {
      FALAJ_V line[kIn];
      FALAJ_UNROLL
      for (std::int64_t r = 0; r < kIn; ++r) line[r] = load(FALAJ_V{}, products + (r * kIn + i) * stride + m, kWidth);
      half[0][i] = add(add(line[0], line[1]), line[2]);
      half[1][i] = sub(sub(line[1], line[2]), line[3]);
    }
    const FALAJ_V bias = load(FALAJ_V{}, t.bias + m, kWidth);
    FALAJ_UNROLL
    for (std::int64_t r = 0; r < kOut; ++r) {
      if (r >= t.rows) break;
      const FALAJ_V line[kOut] = {add(add(half[r][0], half[r][1]), half[r][2]), sub(sub(half[r][1], half[r][2]), half[r][3])};
      FALAJ_UNROLL
      for (std::int64_t c = 0; c < kOut; ++c) {
        if (c >= t.columns) break;
        const std::int64_t at = r * t.row + c * t.maps + m;
        FALAJ_V value = add(line[c], bias);
        if (t.addend != nullptr) value = add(value, load(FALAJ_V{}, t.addend + at, kWidth));
        store(t.y + at, simple ? max(least, value) : activate(value, t.activation, t.alpha), kWidth);
      }
    }
  }
}
