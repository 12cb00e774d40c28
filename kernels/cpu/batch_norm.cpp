// BatchNormalization by the batch's own statistics, and its gradient, for AVX2: training. A channel is summed up in one pass over its
// values, in f64 and about its first one, so that no digits are lost; a second pass writes. Channels are shared among threads.
#include <cmath>

#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/lanes.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/parallel.hpp"

namespace falaj::kernels::cpu {
namespace {

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx2 batch norm: {}", why)}; }

struct Channels {
  AxisSplit split;
  double epsilon = 0, momentum = 0;
  std::size_t outputs = 1;
  bool wide = false;  // by AVX-512
  [[nodiscard]] double count() const { return static_cast<double>(split.outer * split.inner); }
  [[nodiscard]] std::int64_t at(std::int64_t row, std::int64_t channel) const { return (row * split.size + channel) * split.inner; }
  [[nodiscard]] std::int64_t channels_of_a_part() const { return part_rows(split.outer * split.inner); }
};

// Of a channel: mean and variance of x; with dy, its sum, and that of dy times x less the mean.
struct Sums {
  double mean = 0, variance = 0, sum = 0, dot = 0;
};
struct Lanes {
  Double8 first = zeros(), second = zeros(), slope = zeros(), both = zeros();
};
template <bool kBack>
FALAJ_AVX2 inline void add_up(Lanes& to, __m256 value, double about, __m256 dy) {
  const Double8 v = minus(widened(value), _mm256_set1_pd(about));
  to.first = plus(to.first, v);
  to.second = plus_product(to.second, v, v);
  if constexpr (kBack) {
    const Double8 d = widened(dy);
    to.slope = plus(to.slope, d);
    to.both = plus_product(to.both, d, v);
  }
}
FALAJ_AVX2 inline void store(const Lanes& from, double (&to)[4][8]) {
  const Double8 all[4] = {from.first, from.second, from.slope, from.both};
  for (int k = 0; k < 4; ++k) {
    _mm256_storeu_pd(to[k], all[k].low);
    _mm256_storeu_pd(to[k] + 4, all[k].high);
  }
}
// The same eight lanes in one vector: the same bits.
struct WideLanes {
  __m512d first, second, slope, both;
};
template <bool kBack>
FALAJ_AVX512 inline void add_up(WideLanes& to, __m256 value, double about, __m256 dy) {
  const __m512d v = _mm512_sub_pd(_mm512_cvtps_pd(value), _mm512_set1_pd(about));
  to.first = _mm512_add_pd(to.first, v);
  to.second = _mm512_fmadd_pd(v, v, to.second);
  if constexpr (kBack) {
    const __m512d d = _mm512_cvtps_pd(dy);
    to.slope = _mm512_add_pd(to.slope, d);
    to.both = _mm512_fmadd_pd(d, v, to.both);
  }
}
FALAJ_AVX512 inline void store(const WideLanes& from, double (&to)[4][8]) {
  _mm512_storeu_pd(to[0], from.first);
  _mm512_storeu_pd(to[1], from.second);
  _mm512_storeu_pd(to[2], from.slope);
  _mm512_storeu_pd(to[3], from.both);
}

// Two sets of sums, so that one's additions need not wait for one another.
using TwoSets = double[2][4][8];
#define FALAJ_ADD_CHANNEL(name, isa, lanes)                                                                      \
  template <bool kBack>                                                                                          \
  isa void name(const Channels& c, std::int64_t channel, const float* x, const float* dy, TwoSets& sums) {       \
    const float about = x[c.at(0, channel)];                                                                     \
    lanes even{};                                                                                                \
    lanes odd{};                                                                                                 \
    for (std::int64_t r = 0; r < c.split.outer; ++r) {                                                           \
      const std::int64_t at = c.at(r, channel);                                                                  \
      std::int64_t i = 0;                                                                                        \
      for (; i + 16 <= c.split.inner; i += 16) {                                                                 \
        const float* v = x + at + i;                                                                             \
        const float* d = kBack ? dy + at + i : v;                                                                \
        add_up<kBack>(even, _mm256_loadu_ps(v), static_cast<double>(about), _mm256_loadu_ps(d));                 \
        add_up<kBack>(odd, _mm256_loadu_ps(v + 8), static_cast<double>(about), _mm256_loadu_ps(d + 8));          \
      }                                                                                                          \
      for (; i < c.split.inner; i += 8) {                                                                        \
        const std::int64_t left = c.split.inner - i;                                                             \
        __m256 value = some8(x + at + i, left);                                                                  \
        if (left < 8) value = _mm256_blendv_ps(_mm256_set1_ps(about), value, _mm256_castsi256_ps(lanes8(left))); \
        add_up<kBack>(even, value, static_cast<double>(about), kBack ? some8(dy + at + i, left) : value);        \
      }                                                                                                          \
    }                                                                                                            \
    store(even, sums[0]);                                                                                        \
    store(odd, sums[1]);                                                                                         \
  }
FALAJ_ADD_CHANNEL(add_channel_avx2, FALAJ_AVX2, Lanes)
FALAJ_ADD_CHANNEL(add_channel_avx512, FALAJ_AVX512, WideLanes)
#undef FALAJ_ADD_CHANNEL

template <bool kBack>
FALAJ_AVX2 Sums sums_of(const Channels& c, std::int64_t channel, const float* x, const float* dy) {
  TwoSets sums;
  (c.wide ? add_channel_avx512<kBack> : add_channel_avx2<kBack>)(c, channel, x, dy, sums);
  const auto whole = [&](int k) {
    double lanes[8];
    for (int i = 0; i < 8; ++i) lanes[i] = sums[0][k][i] + sums[1][k][i];
    return (lanes[0] + lanes[4]) + (lanes[2] + lanes[6]) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  };
  const double off = whole(0) / c.count();
  Sums out{static_cast<double>(x[c.at(0, channel)]) + off, std::max(whole(1) / c.count() - off * off, 0.0), 0, 0};
  if constexpr (kBack) {
    out.sum = whole(2);
    out.dot = whole(3) - off * out.sum;
  }
  return out;
}

// y = (x - mean) * factor + shift, and with dy: dx = dy * scale + (x - mean) * factor + shift.
template <bool kBack>
FALAJ_AVX2 void write_channel(const Channels& c, std::int64_t channel, const float* x, const float* dy, float* y, const float (&with)[4]) {
  const __m256 mean = _mm256_set1_ps(with[0]);
  const __m256 factor = _mm256_set1_ps(with[1]);
  const __m256 shift = _mm256_set1_ps(with[2]);
  const __m256 scale = _mm256_set1_ps(with[3]);
  for (std::int64_t r = 0; r < c.split.outer; ++r) {
    const std::int64_t at = c.at(r, channel);
    for (std::int64_t i = 0; i < c.split.inner; i += 8) {
      const std::int64_t left = c.split.inner - i;
      __m256 v = _mm256_fmadd_ps(_mm256_sub_ps(some8(x + at + i, left), mean), factor, shift);
      if constexpr (kBack) v = _mm256_fmadd_ps(some8(dy + at + i, left), scale, v);
      put8(y + at + i, v, left);
    }
  }
}

void forward(const Channels& c, std::int64_t channel, const Io& io) {
  const Sums s = sums_of<false>(c, channel, io.input<float>(0), nullptr);
  const double factor = static_cast<double>(io.input<float>(1)[channel]) / std::sqrt(s.variance + c.epsilon);
  write_channel<false>(c, channel, io.input<float>(0), nullptr, io.output<float>(0),
                       {static_cast<float>(s.mean), static_cast<float>(factor), io.input<float>(2)[channel], 0.0F});
  // The running variance moves towards the unbiased one.
  const double unbiased = c.count() > 1 ? s.variance * c.count() / (c.count() - 1) : s.variance;
  for (std::size_t k = 1; k < c.outputs; ++k) {
    if (io.out[k] == nullptr) continue;
    const auto before = static_cast<double>(io.input<float>(k + 2)[channel]);
    io.output<float>(k)[channel] = static_cast<float>(before * c.momentum + (k == 1 ? s.mean : unbiased) * (1 - c.momentum));
  }
}

void backward(const Channels& c, std::int64_t channel, const Io& io) {
  const float* dy = io.input<float>(0);
  const float* x = io.input<float>(1);
  const Sums s = sums_of<true>(c, channel, x, dy);
  const double inverse = 1.0 / std::sqrt(s.variance + c.epsilon);
  const double factor = static_cast<double>(io.input<float>(2)[channel]) * inverse;
  if (io.out[0] != nullptr) {
    const double slope = -factor * inverse * inverse * s.dot / c.count();
    write_channel<true>(c, channel, x, dy, io.output<float>(0),
                        {static_cast<float>(s.mean), static_cast<float>(slope), static_cast<float>(-factor * s.sum / c.count()),
                         static_cast<float>(factor)});
  }
  if (c.outputs > 1 && io.out[1] != nullptr) io.output<float>(1)[channel] = static_cast<float>(s.dot * inverse);
  if (c.outputs > 2 && io.out[2] != nullptr) io.output<float>(2)[channel] = static_cast<float>(s.sum);
}

using Step = void (*)(const Channels&, std::int64_t channel, const Io&);

class BatchNorm final : public Kernel {
 public:
  BatchNorm(const Channels& channels, Step step) : channels_(channels), step_(step) {}
  void run(const Io& io) const override {
    in_ranges(io, channels_.split.size, channels_.channels_of_a_part(), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t k = first; k < last; ++k) step_(channels_, k, io);
    });
  }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 channels"; }

 private:
  Channels channels_;
  Step step_;
};

}  // namespace

Result<KernelPtr> make_batch_norm(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 batch norm"));
  const bool back = call.node.op == "BatchNormalizationTrainingGrad";
  Channels c{split_at(call.in(back ? 1 : 0).shape, 1), 0, 0, call.outputs.size(), has_avx512()};
  FALAJ_ASSIGN(c.epsilon, attr_float(call.node, "epsilon", static_cast<double>(1e-5F)));
  FALAJ_ASSIGN(c.momentum, attr_float(call.node, "momentum", static_cast<double>(0.9F)));
  if (c.split.outer * c.split.inner * c.split.size == 0) return refuse("nothing to compute");
  return std::make_unique<BatchNorm>(c, back ? backward : forward);
}

}  // namespace falaj::kernels::cpu
