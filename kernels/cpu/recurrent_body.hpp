// The loops along a row of recurrent.cpp, which includes this once for each width of vectors: see vector_math_body.hpp. For that reason it
// has no #pragma once.

constexpr std::int64_t kWidth = static_cast<std::int64_t>(sizeof(FALAJ_V) / sizeof(float));

FALAJ_LANES inline FALAJ_V one_less(FALAJ_V x) { return sub(all(x, 1.0F), x); }
// How much of a gradient a gate lets through, by what it gave.
FALAJ_LANES inline FALAJ_V sigmoid_slope(FALAJ_V y) { return mul(y, one_less(y)); }
FALAJ_LANES inline FALAJ_V tanh_slope(FALAJ_V y) { return fnmadd(y, y, all(y, 1.0F)); }

FALAJ_LANES void step_lstm(const float* z, const float* ahead, const float* q, std::int64_t n, float* h, float* c, float* gates) {
  const FALAJ_V v{};
  for (std::int64_t j = 0; j < n; j += kWidth) {
    const std::int64_t left = n - j;
    fetch(ahead + j, n, 4);
    const auto sum = [&](std::int64_t k) FALAJ_LANES { return add(load(v, z + k * n + j, left), load(v, q + k * n + j, left)); };
    const FALAJ_V in = sigmoid_of(sum(0));
    const FALAJ_V out = sigmoid_of(sum(1));
    const FALAJ_V forget = sigmoid_of(sum(2));
    const FALAJ_V fresh = tanh_of(sum(3));
    const FALAJ_V cell = fmadd(forget, load(v, c + j, left), mul(in, fresh));
    store(c + j, cell, left);
    store(h + j, mul(out, tanh_of(cell)), left);
    if (gates == nullptr) continue;
    store(gates + j, in, left);
    store(gates + n + j, out, left);
    store(gates + 2 * n + j, forget, left);
    store(gates + 3 * n + j, fresh, left);
  }
}

FALAJ_LANES void step_gru(const float* z, const float* ahead, const float* q, std::int64_t n, float* h, float* /*c*/, float* gates) {
  const FALAJ_V v{};
  for (std::int64_t j = 0; j < n; j += kWidth) {
    const std::int64_t left = n - j;
    fetch(ahead + j, n, 3);
    const FALAJ_V update = sigmoid_of(add(load(v, z + j, left), load(v, q + j, left)));
    const FALAJ_V reset = sigmoid_of(add(load(v, z + n + j, left), load(v, q + n + j, left)));
    const FALAJ_V fresh = tanh_of(fmadd(reset, load(v, q + 2 * n + j, left), load(v, z + 2 * n + j, left)));
    store(h + j, fmadd(update, sub(load(v, h + j, left), fresh), fresh), left);
    if (gates == nullptr) continue;
    store(gates + j, update, left);
    store(gates + n + j, reset, left);
    store(gates + 2 * n + j, fresh, left);
  }
}

template <bool kRelu>
FALAJ_LANES void step_rnn(const float* z, const float* ahead, const float* q, std::int64_t n, float* h, float* /*c*/, float* gates) {
  const FALAJ_V v{};
  for (std::int64_t j = 0; j < n; j += kWidth) {
    const std::int64_t left = n - j;
    fetch(ahead + j, n, 1);
    const FALAJ_V sum = add(load(v, z + j, left), load(v, q + j, left));
    const FALAJ_V y = kRelu ? relu_of(sum) : tanh_of(sum);
    store(h + j, y, left);
    if (gates != nullptr) store(gates + j, y, left);
  }
}

FALAJ_LANES void back_lstm(float* gates, const float* before, const float* /*q*/, std::int64_t n, float* dh, float* dc, float* dq) {
  const FALAJ_V v{};
  for (std::int64_t j = 0; j < n; j += kWidth) {
    const std::int64_t left = n - j;
    const FALAJ_V in = load(v, gates + j, left);
    const FALAJ_V out = load(v, gates + n + j, left);
    const FALAJ_V forget = load(v, gates + 2 * n + j, left);
    const FALAJ_V fresh = load(v, gates + 3 * n + j, left);
    const FALAJ_V was = load(v, before + j, left);
    const FALAJ_V shown = tanh_of(fmadd(forget, was, mul(in, fresh)));
    const FALAJ_V d = load(v, dh + j, left);
    const FALAJ_V cell = fmadd(mul(d, out), tanh_slope(shown), load(v, dc + j, left));
    const auto put = [&](std::int64_t k, FALAJ_V value) FALAJ_LANES {
      store(gates + k * n + j, value, left);
      store(dq + k * n + j, value, left);
    };
    put(0, mul(mul(cell, fresh), sigmoid_slope(in)));
    put(1, mul(mul(d, shown), sigmoid_slope(out)));
    put(2, mul(mul(cell, was), sigmoid_slope(forget)));
    put(3, mul(mul(cell, in), tanh_slope(fresh)));
    store(dc + j, mul(cell, forget), left);
    store(dh + j, all(v, 0.0F), left);
  }
}

FALAJ_LANES void back_gru(float* gates, const float* before, const float* q, std::int64_t n, float* dh, float* /*dc*/, float* dq) {
  const FALAJ_V v{};
  for (std::int64_t j = 0; j < n; j += kWidth) {
    const std::int64_t left = n - j;
    const FALAJ_V update = load(v, gates + j, left);
    const FALAJ_V reset = load(v, gates + n + j, left);
    const FALAJ_V fresh = load(v, gates + 2 * n + j, left);
    const FALAJ_V d = load(v, dh + j, left);
    const FALAJ_V sum = mul(mul(d, one_less(update)), tanh_slope(fresh));
    const FALAJ_V dupdate = mul(mul(d, sub(load(v, before + j, left), fresh)), sigmoid_slope(update));
    const FALAJ_V dreset = mul(mul(sum, load(v, q + j, left)), sigmoid_slope(reset));
    store(gates + j, dupdate, left);
    store(gates + n + j, dreset, left);
    store(gates + 2 * n + j, sum, left);
    store(dq + j, dupdate, left);
    store(dq + n + j, dreset, left);
    store(dq + 2 * n + j, mul(sum, reset), left);
    store(dh + j, mul(d, update), left);
  }
}

template <bool kRelu>
FALAJ_LANES void back_rnn(float* gates, const float* /*before*/, const float* /*q*/, std::int64_t n, float* dh, float* /*dc*/, float* dq) {
  const FALAJ_V v{};
  for (std::int64_t j = 0; j < n; j += kWidth) {
    const std::int64_t left = n - j;
    const FALAJ_V y = load(v, gates + j, left);
    const FALAJ_V d = load(v, dh + j, left);
    const FALAJ_V sum = kRelu ? where_less(all(v, 0.0F), y, d, all(v, 0.0F)) : mul(d, tanh_slope(y));
    store(gates + j, sum, left);
    store(dq + j, sum, left);
    store(dh + j, all(v, 0.0F), left);
  }
}

constexpr std::array<Loops, kLayers> kLoops = {
    {{step_rnn<false>, back_rnn<false>}, {step_rnn<true>, back_rnn<true>}, {step_gru, back_gru}, {step_lstm, back_lstm}}};
