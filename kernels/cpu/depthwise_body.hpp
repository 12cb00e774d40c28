// The loops of depthwise.cpp, which includes this once for each width of vectors: see vector_math_body.hpp. For that reason it has no
// #pragma once.

constexpr std::int64_t kWidth = static_cast<std::int64_t>(sizeof(FALAJ_V) / sizeof(float));

// `kMany` neighbouring pixels of all channels. A sum is one chain in the order of the places, in any company.
template <int kMany>
FALAJ_LANES void pixels(const Run& r, const float* x, float* y, const float* addend) {
  const FALAJ_V v{};
  for (std::int64_t c = 0; c < r.channels; c += kWidth) {
    const std::int64_t left = r.channels - c;
    FALAJ_V sum[kMany];
    FALAJ_UNROLL
    for (auto& s : sum) s = all(v, 0.0F);
    const float* w = r.w + c;
    const float* from = x + c;
    for (std::int64_t k = 0; k < r.rows; ++k, w += r.w_row, from += r.row_step) {
      const float* wk = w;
      const float* at = from;
      for (std::int64_t l = 0; l < r.columns; ++l, wk += r.channels, at += r.column_step) {
        const FALAJ_V weight = load(v, wk, left);
        FALAJ_UNROLL
        for (int p = 0; p < kMany; ++p) sum[p] = fmadd(load(v, at + p * r.pixel_step, left), weight, sum[p]);
      }
    }
    const FALAJ_V bias = r.bias == nullptr ? all(v, 0.0F) : load(v, r.bias + c, left);
    FALAJ_UNROLL
    for (int p = 0; p < kMany; ++p) {
      FALAJ_V value = add(sum[p], bias);
      if (addend != nullptr) value = add(value, load(v, addend + p * r.channels + c, left));
      store(y + p * r.channels + c, activate(value, r.activation, r.alpha), left);
    }
  }
}

// The pixels from `done` on, as many times kMany as there are; how many are done then.
template <int kMany>
FALAJ_LANES std::int64_t some_pixels(const Run& r, std::int64_t done) {
  for (; r.pixels - done >= kMany; done += kMany) {
    const std::int64_t at = done * r.channels;
    pixels<kMany>(r, r.x + done * r.pixel_step, r.y + at, r.addend == nullptr ? nullptr : r.addend + at);
  }
  return done;
}

FALAJ_LANES void run_pixels(const Run& r) { some_pixels<1>(r, some_pixels<2>(r, some_pixels<4>(r, some_pixels<8>(r, 0)))); }
