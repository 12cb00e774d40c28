// What lies between convolutions in blocks of sixteen channels (see kernels/ops/blocks.hpp), by AVX-512: a pixel's sixteen channels are a
// vector, so that sums and coefficients of channels are vectors too. Statistics and sums of channels are f64. What is a part follows from
// shapes alone, and parts' sums are added in one order: the bits do not depend on the threads.
#include "kernels/ops/blocks.hpp"

#include <cmath>

#include "kernels/cpu/block_lanes.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/parallel.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx512 blocks: {}", why)}; }

// Sixteen lanes in f64.
struct Doubles {
  __m512d low, high;
};
FALAJ_AVX512_BF16 inline Doubles widened(__m512 v) {
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
}
FALAJ_AVX512_BF16 inline Doubles load_doubles(const double* from) { return {_mm512_loadu_pd(from), _mm512_loadu_pd(from + 8)}; }
FALAJ_AVX512_BF16 inline void store_doubles(double* to, Doubles v) {
  _mm512_storeu_pd(to, v.low);
  _mm512_storeu_pd(to + 8, v.high);
}
FALAJ_AVX512_BF16 inline Doubles plus(Doubles a, Doubles b) { return {_mm512_add_pd(a.low, b.low), _mm512_add_pd(a.high, b.high)}; }
FALAJ_AVX512_BF16 inline Doubles minus(Doubles a, Doubles b) { return {_mm512_sub_pd(a.low, b.low), _mm512_sub_pd(a.high, b.high)}; }
FALAJ_AVX512_BF16 inline Doubles plus_product(Doubles sum, Doubles a, Doubles b) {
  return {_mm512_fmadd_pd(a.low, b.low, sum.low), _mm512_fmadd_pd(a.high, b.high, sum.high)};
}

// --- sums of channels ----------------------------------------------------------------------------------------------------------------

// Two sums of each of a block's channels, of values less `about`.
using BlockSums = double[2][kBlockChannels];

// Of a plane: the values', and that of their squares. Two sets, so that one's additions need not wait for one another.
template <class L>
FALAJ_AVX512_BF16 void add_squares(const typename L::Element* x, std::int64_t pixels, const double* about, BlockSums& sums) {
  const Doubles from = load_doubles(about);
  Doubles first = load_doubles(sums[0]);
  Doubles second = load_doubles(sums[1]);
  Doubles first_odd{_mm512_setzero_pd(), _mm512_setzero_pd()};
  Doubles second_odd = first_odd;
  std::int64_t i = 0;
  for (; i + 2 <= pixels; i += 2, x += 2 * kBlockChannels) {
    const Doubles even = minus(widened(L::load(x)), from);
    const Doubles odd = minus(widened(L::load(x + kBlockChannels)), from);
    first = plus(first, even);
    second = plus_product(second, even, even);
    first_odd = plus(first_odd, odd);
    second_odd = plus_product(second_odd, odd, odd);
  }
  if (i < pixels) {
    const Doubles last = minus(widened(L::load(x)), from);
    first = plus(first, last);
    second = plus_product(second, last, last);
  }
  store_doubles(sums[0], plus(first, first_odd));
  store_doubles(sums[1], plus(second, second_odd));
}

template <class L>
FALAJ_AVX512_BF16 void add_values(const typename L::Element* x, std::int64_t pixels, BlockSums& sums) {
  Doubles sum = load_doubles(sums[0]);
  for (std::int64_t i = 0; i < pixels; ++i, x += kBlockChannels) sum = plus(sum, widened(L::load(x)));
  store_doubles(sums[0], sum);
}

// What is done to the channels of a block: y = (x - mean) * factor + shift, and back dx = dy * factor + (x - mean) * slope + offset.
struct Coefficients {
  float mean[kBlockChannels], factor[kBlockChannels], shift[kBlockChannels], slope[kBlockChannels], offset[kBlockChannels];
  double exact_mean[kBlockChannels];
};

// What comes back to a value before Relu: nothing where y was not positive.
template <class L, bool kRelu>
[[gnu::always_inline]] FALAJ_AVX512_BF16 inline __m512 passed(const typename L::Element* dy, __m512 centred, __m512 factor, __m512 shift) {
  if constexpr (!kRelu) return L::load(dy);
  const __mmask16 positive = _mm512_cmp_ps_mask(_mm512_fmadd_ps(centred, factor, shift), _mm512_setzero_ps(), _CMP_GT_OQ);
  return _mm512_maskz_mov_ps(positive, L::load(dy));
}

// Of a plane: the gradients', and that of their products with x less its mean.
template <class L, bool kRelu>
FALAJ_AVX512_BF16 void add_slopes(const typename L::Element* x, const typename L::Element* dy, std::int64_t pixels, const Coefficients& c,
                                  BlockSums& sums) {
  const __m512 mean = _mm512_loadu_ps(c.mean);
  const __m512 factor = _mm512_loadu_ps(c.factor);
  const __m512 shift = _mm512_loadu_ps(c.shift);
  const Doubles exact = load_doubles(c.exact_mean);
  Doubles sum = load_doubles(sums[0]);
  Doubles dot = load_doubles(sums[1]);
  for (std::int64_t i = 0; i < pixels; ++i, x += kBlockChannels, dy += kBlockChannels) {
    const __m512 value = L::load(x);
    const Doubles d = widened(passed<L, kRelu>(dy, _mm512_sub_ps(value, mean), factor, shift));
    sum = plus(sum, d);
    dot = plus_product(dot, d, minus(widened(value), exact));
  }
  store_doubles(sums[0], sum);
  store_doubles(sums[1], dot);
}

// add(image, block, sums) in parts of some images of a block; then the sums of each block, whole, are in `totals`.
class ChannelTotals {
 public:
  explicit ChannelTotals(const Blocks& b)
      : b_(b), images_(part_rows(b.pixels * kBlockChannels)), groups_((b.batch + images_ - 1) / images_) {}
  [[nodiscard]] std::size_t scratch_bytes() const { return static_cast<std::size_t>(groups_ * b_.blocks) * sizeof(BlockSums); }
  template <class Add>
  BlockSums* run(const Io& io, std::byte* scratch, Add add) const {
    auto* sums = reinterpret_cast<BlockSums*>(scratch);
    in_parts(io, groups_ * b_.blocks, [&](std::int64_t part) {
      const std::int64_t first = part / b_.blocks * images_;
      std::fill_n(&sums[part][0][0], 2 * kBlockChannels, 0.0);
      for (std::int64_t n = first; n < std::min(b_.batch, first + images_); ++n) add(n, part % b_.blocks, sums[part]);
    });
    for (std::int64_t part = b_.blocks; part < groups_ * b_.blocks; ++part) {
      for (std::int64_t i = 0; i < 2 * kBlockChannels; ++i) (&sums[part % b_.blocks][0][0])[i] += (&sums[part][0][0])[i];
    }
    return sums;
  }

 private:
  Blocks b_;
  std::int64_t images_, groups_;
};

// The first pixels of planes in f64.
template <class L>
FALAJ_AVX512_BF16 void widen_pixels(const typename L::Element* x, std::int64_t plane, std::int64_t planes, double* to) {
  for (std::int64_t k = 0; k < planes; ++k) store_doubles(to + k * kBlockChannels, widened(L::load(x + k * plane)));
}

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

template <class L>
class Statistics final : public Kernel {
 public:
  Statistics(const Blocks& b, double momentum, std::size_t outputs) : b_(b), totals_(b), momentum_(momentum), outputs_(outputs) {}
  // About the first pixel, so that no digits are lost.
  void run(const Io& io) const override {
    const auto* x = io.input<typename L::Element>(0);
    auto* about = reinterpret_cast<double*>(io.scratch);
    const std::int64_t plane = b_.pixels * kBlockChannels;
    widen_pixels<L>(x, plane, b_.blocks, about);
    const BlockSums* sums = totals_.run(io, io.scratch + about_bytes(), [&](std::int64_t n, std::int64_t k, BlockSums& to) {
      add_squares<L>(x + (n * b_.blocks + k) * plane, b_.pixels, about + k * kBlockChannels, to);
    });
    const double unbiased = b_.count() > 1 ? b_.count() / (b_.count() - 1) : 1.0;
    for (std::int64_t c = 0; c < b_.channels(); ++c) {
      const BlockSums& of = sums[c / kBlockChannels];
      const double off = of[0][c % kBlockChannels] / b_.count();
      const double mean = about[c] + off;
      const double variance = std::max(of[1][c % kBlockChannels] / b_.count() - off * off, 0.0);
      io.output<double>(0)[c] = mean;
      io.output<double>(0)[b_.channels() + c] = variance;
      for (std::size_t o = 1; o < outputs_; ++o) {
        if (io.out[o] == nullptr) continue;
        const auto before = static_cast<double>(io.input<float>(o)[c]);
        io.output<float>(o)[c] = static_cast<float>(before * momentum_ + (o == 1 ? mean : variance * unbiased) * (1 - momentum_));
      }
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return about_bytes() + totals_.scratch_bytes(); }
  [[nodiscard]] std::string_view implementation() const override { return "avx512 statistics of blocks"; }

 private:
  [[nodiscard]] std::size_t about_bytes() const { return aligned(static_cast<std::size_t>(b_.channels()) * sizeof(double)); }
  Blocks b_;
  ChannelTotals totals_;
  double momentum_;
  std::size_t outputs_;
};

template <class L>
class Totals final : public Kernel {
 public:
  explicit Totals(const Blocks& b) : b_(b), totals_(b) {}
  void run(const Io& io) const override {
    const BlockSums* sums = totals_.run(io, io.scratch, [&](std::int64_t n, std::int64_t k, BlockSums& to) {
      add_values<L>(io.input<typename L::Element>(0) + (n * b_.blocks + k) * b_.pixels * kBlockChannels, b_.pixels, to);
    });
    for (std::int64_t c = 0; c < b_.channels(); ++c)
      io.output<float>(0)[c] = static_cast<float>(sums[c / kBlockChannels][0][c % kBlockChannels]);
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return totals_.scratch_bytes(); }
  [[nodiscard]] std::string_view implementation() const override { return "avx512 sums of channels"; }

 private:
  Blocks b_;
  ChannelTotals totals_;
};

// --- normalisation -------------------------------------------------------------------------------------------------------------------

// Reads a plane before it is written: y may lie where x or the addend does.
template <class L, bool kRelu, bool kAddend>
FALAJ_AVX512_BF16 void write_plane(const typename L::Element* x, const typename L::Element* addend, std::int64_t pixels,
                                   const Coefficients& c, typename L::Element* y) {
  const __m512 mean = _mm512_loadu_ps(c.mean);
  const __m512 factor = _mm512_loadu_ps(c.factor);
  const __m512 shift = _mm512_loadu_ps(c.shift);
  for (std::int64_t i = 0; i < pixels * kBlockChannels; i += kBlockChannels) {
    __m512 v = _mm512_fmadd_ps(_mm512_sub_ps(L::load(x + i), mean), factor, shift);
    if constexpr (kAddend) v = _mm512_add_ps(v, L::load(addend + i));
    if constexpr (kRelu) v = _mm512_max_ps(_mm512_setzero_ps(), v);  // the second operand where that is NaN
    L::store(y + i, v);
  }
}
template <class L, bool kRelu>
FALAJ_AVX512_BF16 void write_plane_back(const typename L::Element* x, const typename L::Element* dy, std::int64_t pixels,
                                        const Coefficients& c, typename L::Element* dx) {
  const __m512 mean = _mm512_loadu_ps(c.mean);
  const __m512 factor = _mm512_loadu_ps(c.factor);
  const __m512 shift = _mm512_loadu_ps(c.shift);
  const __m512 slope = _mm512_loadu_ps(c.slope);
  const __m512 offset = _mm512_loadu_ps(c.offset);
  for (std::int64_t i = 0; i < pixels * kBlockChannels; i += kBlockChannels) {
    const __m512 centred = _mm512_sub_ps(L::load(x + i), mean);
    const __m512 d = passed<L, kRelu>(dy + i, centred, factor, shift);
    L::store(dx + i, _mm512_fmadd_ps(d, factor, _mm512_fmadd_ps(centred, slope, offset)));
  }
}

class Normal : public Kernel {
 public:
  Normal(const Blocks& b, double epsilon) : b_(b), epsilon_(epsilon) {}

 protected:
  [[nodiscard]] std::size_t coefficient_bytes() const { return aligned(static_cast<std::size_t>(b_.blocks) * sizeof(Coefficients)); }
  // Those of the forward pass, of the inputs from the statistics on.
  Coefficients* coefficients(const Io& io, std::size_t statistics, bool shifted) const {
    auto* all = reinterpret_cast<Coefficients*>(io.scratch);
    const auto* of = io.input<double>(statistics);
    for (std::int64_t c = 0; c < b_.channels(); ++c) {
      Coefficients& to = all[c / kBlockChannels];
      const std::int64_t lane = c % kBlockChannels;
      const double inverse = 1.0 / std::sqrt(of[b_.channels() + c] + epsilon_);
      to.exact_mean[lane] = of[c];
      to.mean[lane] = static_cast<float>(of[c]);
      to.factor[lane] = static_cast<float>(static_cast<double>(io.input<float>(statistics + 1)[c]) * inverse);
      to.shift[lane] = shifted ? io.input<float>(statistics + 2)[c] : 0.0F;
    }
    return all;
  }
  // each(offset of the plane, its block) for all planes.
  template <class Plane>
  void each_plane(const Io& io, Plane each) const {
    const std::int64_t plane = b_.pixels * kBlockChannels;
    in_ranges(io, b_.batch * b_.blocks, part_rows(plane), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t p = first; p < last; ++p) each(p * plane, p % b_.blocks);
    });
  }
  Blocks b_;
  double epsilon_;
};

template <class L, bool kRelu, bool kAddend>
class Norm final : public Normal {
 public:
  using Normal::Normal;
  using Element = typename L::Element;
  void run(const Io& io) const override {
    const Coefficients* c = coefficients(io, 1, true);
    each_plane(io, [&](std::int64_t at, std::int64_t block) {
      const Element* addend = kAddend ? io.input<Element>(4) + at : nullptr;
      write_plane<L, kRelu, kAddend>(io.input<Element>(0) + at, addend, b_.pixels, c[block], io.output<Element>(0) + at);
    });
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return coefficient_bytes(); }
  [[nodiscard]] std::string_view implementation() const override { return "avx512 norm of blocks"; }
};

template <class L, bool kRelu>
class NormGrad final : public Normal {
 public:
  using Element = typename L::Element;
  NormGrad(const Blocks& b, double epsilon, bool fixed, std::size_t outputs)
      : Normal(b, epsilon), totals_(b), fixed_(fixed), outputs_(outputs) {}
  void run(const Io& io) const override {
    Coefficients* c = coefficients(io, 2, kRelu);
    const auto* dy = io.input<Element>(0);
    const auto* x = io.input<Element>(1);
    const std::int64_t plane = b_.pixels * kBlockChannels;
    const BlockSums* sums = totals_.run(io, io.scratch + coefficient_bytes(), [&](std::int64_t n, std::int64_t k, BlockSums& to) {
      const std::int64_t at = (n * b_.blocks + k) * plane;
      add_slopes<L, kRelu>(x + at, dy + at, b_.pixels, c[k], to);
    });
    for (std::int64_t k = 0; k < b_.channels(); ++k) {
      const std::int64_t lane = k % kBlockChannels;
      Coefficients& of = c[k / kBlockChannels];
      const double inverse = 1.0 / std::sqrt(io.input<double>(2)[b_.channels() + k] + epsilon_);
      const double factor = static_cast<double>(io.input<float>(3)[k]) * inverse;
      const double sum = sums[k / kBlockChannels][0][lane];
      const double dot = sums[k / kBlockChannels][1][lane];
      of.slope[lane] = fixed_ ? 0.0F : static_cast<float>(-factor * inverse * inverse * dot / b_.count());
      of.offset[lane] = fixed_ ? 0.0F : static_cast<float>(-factor * sum / b_.count());
      if (outputs_ > 1 && io.out[1] != nullptr) io.output<float>(1)[k] = static_cast<float>(dot * inverse);
      if (outputs_ > 2 && io.out[2] != nullptr) io.output<float>(2)[k] = static_cast<float>(sum);
    }
    if (io.out[0] == nullptr) return;
    each_plane(io, [&](std::int64_t at, std::int64_t block) {
      write_plane_back<L, kRelu>(x + at, dy + at, b_.pixels, c[block], io.output<Element>(0) + at);
    });
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return coefficient_bytes() + totals_.scratch_bytes(); }
  [[nodiscard]] std::string_view implementation() const override { return "avx512 norm of blocks, back"; }

 private:
  ChannelTotals totals_;
  bool fixed_;
  std::size_t outputs_;
};

// --- sums of values -----------------------------------------------------------------------------------------------------------------

template <class L, bool kTwo, bool kMasked, bool kRelu>
FALAJ_AVX512_BF16 void sum_up(const typename L::Element* a, const typename L::Element* b, const typename L::Element* mask, std::int64_t n,
                              typename L::Element* y) {
  for (std::int64_t i = 0; i < n; i += kBlockChannels) {
    __m512 v = L::load(a + i);
    if constexpr (kTwo) v = _mm512_add_ps(v, L::load(b + i));
    if constexpr (kRelu) v = _mm512_max_ps(_mm512_setzero_ps(), v);
    if constexpr (kMasked) v = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(L::load(mask + i), _mm512_setzero_ps(), _CMP_GT_OQ), v);
    L::store(y + i, v);
  }
}

template <class L>
class Sum final : public Kernel {
 public:
  using Element = typename L::Element;
  Sum(const Blocks& b, bool two, bool masked, bool relu)
      : n_(b.elements()), two_(two), masked_(masked), body_(kBodies[(two ? 4 : 0) + (masked ? 2 : 0) + (relu ? 1 : 0)]) {}
  void run(const Io& io) const override {
    in_ranges(io, n_, kPartWork, [&](std::int64_t first, std::int64_t last) {
      body_(io.input<Element>(0) + first, two_ ? io.input<Element>(1) + first : nullptr, masked_ ? io.input<Element>(2) + first : nullptr,
            last - first, io.output<Element>(0) + first);
    });
  }
  [[nodiscard]] std::string_view implementation() const override { return "avx512 sum of blocks"; }

 private:
  using Body = void (*)(const Element*, const Element*, const Element*, std::int64_t, Element*);
  static constexpr Body kBodies[] = {sum_up<L, false, false, false>, sum_up<L, false, false, true>, sum_up<L, false, true, false>,
                                     sum_up<L, false, true, true>,   sum_up<L, true, false, false>, sum_up<L, true, false, true>,
                                     sum_up<L, true, true, false>,   sum_up<L, true, true, true>};
  std::int64_t n_;
  bool two_, masked_;
  Body body_;
};

template <class L>
Result<KernelPtr> make(const KernelCall& call, const Blocks& b) {
  FALAJ_ASSIGN(const double epsilon, attr_float(call.node, "epsilon", static_cast<double>(1e-5F)));
  FALAJ_ASSIGN(const double momentum, attr_float(call.node, "momentum", static_cast<double>(0.9F)));
  FALAJ_ASSIGN(const auto relu, attr_int(call.node, "relu", 0));
  const std::string& op = call.node.op;
  if (op == "BlockStatistics") return std::make_unique<Statistics<L>>(b, momentum, call.outputs.size());
  if (op == "ChannelSums") return std::make_unique<Totals<L>>(b);
  if (op == "BlockSum") return std::make_unique<Sum<L>>(b, call.has(1), call.has(2), relu != 0);
  if (op == "BlockNormGrad") {
    FALAJ_ASSIGN(const auto fixed, attr_int(call.node, "fixed", 0));
    if (relu != 0) return std::make_unique<NormGrad<L, true>>(b, epsilon, fixed != 0, call.outputs.size());
    return std::make_unique<NormGrad<L, false>>(b, epsilon, fixed != 0, call.outputs.size());
  }
  if (relu != 0) {
    if (call.has(4)) return std::make_unique<Norm<L, true, true>>(b, epsilon);
    return std::make_unique<Norm<L, true, false>>(b, epsilon);
  }
  if (call.has(4)) return std::make_unique<Norm<L, false, true>>(b, epsilon);
  return std::make_unique<Norm<L, false, false>>(b, epsilon);
}

}  // namespace

Result<KernelPtr> make_blocks(const KernelCall& call) {
  if (!has_avx512()) return refuse("this CPU has no AVX-512");
  FALAJ_ASSIGN(const Blocks b, blocks_in(call, 0));
  if (b.elements() == 0) return refuse("nothing to compute");
  if (!b.half) return make<Floats>(call, b);
  if (!has_avx512_bf16()) return refuse("this CPU has no AVX512_BF16");
  return make<Halves>(call, b);
}

}  // namespace falaj::kernels::cpu
