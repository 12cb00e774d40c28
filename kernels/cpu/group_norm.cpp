// Normalisations of runs of numbers, for AVX2: InstanceNormalization GroupNormalization MeanVarianceNormalization LpNormalization
// RMSNormalization, and BatchNormalization by fixed statistics. A run is read once for its sums, in f64, so that no digits are lost, and
// once to be written; its bits depend on nothing but the run.
#include <cmath>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/lanes.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/named_kernel.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/parallel.hpp"

namespace falaj::kernels::cpu {
namespace {

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx2 norm: {}", why)}; }

template <class F>
KernelPtr norms(F f) {
  return named_kernel("avx2 norm", std::move(f));
}

constexpr int kChains = 4;  // of sums that wait for nothing but themselves

// Of x less `about`: the sum, and that of the squares.
struct Sums {
  double first, second;
};
FALAJ_AVX2 Sums sums_of(const float* x, std::int64_t n, float about) {
  Double8 first[kChains];
  Double8 second[kChains];
  for (int k = 0; k < kChains; ++k) first[k] = second[k] = zeros();
  const __m256d shift = _mm256_set1_pd(static_cast<double>(about));
  std::int64_t i = 0;
  for (; i + 8 * kChains <= n; i += 8 * kChains) {
    FALAJ_UNROLL
    for (int k = 0; k < kChains; ++k) {
      const Double8 v = minus(widened(_mm256_loadu_ps(x + i + 8 * k)), shift);
      first[k] = plus(first[k], v);
      second[k] = plus_product(second[k], v, v);
    }
  }
  for (; i + 8 <= n; i += 8) {
    const Double8 v = minus(widened(_mm256_loadu_ps(x + i)), shift);
    first[0] = plus(first[0], v);
    second[0] = plus_product(second[0], v, v);
  }
  Sums sums{total(plus(plus(first[0], first[1]), plus(first[2], first[3]))),
            total(plus(plus(second[0], second[1]), plus(second[2], second[3])))};
  for (; i < n; ++i) {
    const double v = static_cast<double>(x[i]) - static_cast<double>(about);
    sums.first += v;
    sums.second += v * v;
  }
  return sums;
}
FALAJ_AVX2 double magnitudes_of(const float* x, std::int64_t n) {
  Double8 sum = zeros();
  const __m256 sign = _mm256_set1_ps(-0.0F);
  for (std::int64_t i = 0; i < n; i += 8) sum = plus(sum, widened(_mm256_andnot_ps(sign, some8(x + i, n - i))));
  return total(sum);
}

struct Moments {
  double mean, variance;
};
Moments moments_of(const float* x, std::int64_t n) {
  const Sums sums = sums_of(x, n, x[0]);
  const auto count = static_cast<double>(n);
  const double off = sums.first / count;
  const double variance = sums.second / count - off * off;
  return {static_cast<double>(x[0]) + off, variance < 0 ? 0 : variance};  // NaN stays
}

// y = (x - centre) * factor + shift
FALAJ_AVX2 void move(const float* x, float* y, std::int64_t n, float centre, float factor, float shift) {
  const __m256 c = _mm256_set1_ps(centre);
  const __m256 f = _mm256_set1_ps(factor);
  const __m256 s = _mm256_set1_ps(shift);
  for (std::int64_t i = 0; i < n; i += 8) put8(y + i, _mm256_fmadd_ps(_mm256_sub_ps(some8(x + i, n - i), c), f, s), n - i);
}
// The centre is the f32 nearest to the mean; what that misses goes into the shift.
void move_by(const Moments& m, double factor, double shift, const float* x, float* y, std::int64_t n) {
  const auto centre = static_cast<float>(m.mean);
  const double missed = m.mean - static_cast<double>(centre);
  move(x, y, n, centre, static_cast<float>(factor), static_cast<float>(shift - missed * factor));
}
// y = x * factor * scale; a scale of null is 1.
FALAJ_AVX2 void stretch(const float* x, float* y, std::int64_t n, float factor, const float* scale) {
  const __m256 f = _mm256_set1_ps(factor);
  for (std::int64_t i = 0; i < n; i += 8) {
    const __m256 v = _mm256_mul_ps(some8(x + i, n - i), f);
    put8(y + i, scale == nullptr ? v : _mm256_mul_ps(v, some8(scale + i, n - i)), n - i);
  }
}

// row(x, y, i) for each of `rows` rows of n numbers, shared out among threads.
template <class Row>
void each_row(const Io& io, std::int64_t rows, std::int64_t n, Row&& row) {
  in_ranges(io, rows, part_rows(n), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) row(io.input<float>(0) + i * n, io.output<float>(0) + i * n, i);
  });
}

}  // namespace

Result<KernelPtr> make_group_norm(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 norm"));
  const Shape& in = call.in(0).shape;
  if (in.elements() == 0) return refuse("nothing to compute");
  const bool grouped = call.node.op == "GroupNormalization";
  std::int64_t groups = in[1];
  if (grouped) {
    FALAJ_ASSIGN(groups, attr_int(call.node, "num_groups"));
  }
  FALAJ_ASSIGN(const double epsilon, attr_float(call.node, "epsilon", static_cast<double>(1e-5F)));
  const std::int64_t channels = in[1] / groups;
  const std::int64_t inner = in.elements(2, in.rank());
  const bool per_group = grouped && call.opset < 21;  // scale and bias
  return norms([rows = in[0] * groups, groups, channels, inner, per_group, epsilon](const Io& io) {
    each_row(io, rows, channels * inner, [&](const float* x, float* y, std::int64_t row) {
      const Moments m = moments_of(x, channels * inner);
      const double inverse = 1 / std::sqrt(m.variance + epsilon);
      const std::int64_t group = row % groups;
      for (std::int64_t c = 0; c < channels; ++c) {
        const std::int64_t at = per_group ? group : group * channels + c;
        move_by(m, inverse * static_cast<double>(io.input<float>(1)[at]), static_cast<double>(io.input<float>(2)[at]), x + c * inner,
                y + c * inner, inner);
      }
    });
  });
}

Result<KernelPtr> make_mean_variance(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 norm"));
  const Shape& in = call.in(0).shape;
  if (in.elements() == 0) return refuse("nothing to compute");
  FALAJ_ASSIGN(const auto axes, attr_ints(call.node, "axes", std::vector<std::int64_t>{0, 2, 3}));
  std::vector<bool> reduced(in.rank(), false);
  for (const std::int64_t axis : axes) {
    FALAJ_ASSIGN(const auto normal, normal_axis(axis, in.rank()));
    reduced[static_cast<std::size_t>(normal)] = true;
  }
  std::int64_t n = 1;
  bool kept = false;
  for (std::size_t d = in.rank(); d-- > 0;) {
    if (in[d] == 1) continue;
    if (reduced[d] && kept) return refuse("only over the last dimensions");
    kept = !reduced[d];
    if (!kept) n *= in[d];
  }
  return norms([rows = in.elements() / n, n](const Io& io) {
    each_row(io, rows, n, [&](const float* x, float* y, std::int64_t /*row*/) {
      const Moments m = moments_of(x, n);
      move_by(m, 1 / (std::sqrt(m.variance) + 1e-9), 0, x, y, n);
    });
  });
}

Result<KernelPtr> make_lp_norm(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 norm"));
  const Shape& in = call.in(0).shape;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
  FALAJ_ASSIGN(const auto p, attr_int(call.node, "p", 2));
  const AxisSplit split = split_at(in, axis);
  if (split.inner != 1 || in.elements() == 0) return refuse("only along the last dimension");
  return norms([split, p](const Io& io) {
    each_row(io, split.outer, split.size, [&](const float* x, float* y, std::int64_t /*row*/) {
      const double norm = p == 1 ? magnitudes_of(x, split.size) : std::sqrt(sums_of(x, split.size, 0).second);
      stretch(x, y, split.size, norm == 0 ? 0.0F : static_cast<float>(1 / norm), nullptr);
    });
  });
}

Result<KernelPtr> make_rms_norm(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 norm"));
  const Shape& in = call.in(0).shape;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
  FALAJ_ASSIGN(const double epsilon, attr_float(call.node, "epsilon", static_cast<double>(1e-5F)));
  const std::int64_t n = in.elements(static_cast<std::size_t>(axis), in.rank());
  if (in.elements() == 0) return refuse("nothing to compute");
  const Shape& scale = call.in(1).shape;
  bool whole = scale.elements() == n;
  for (std::size_t d = 1; d <= scale.rank(); ++d) {
    const bool within = d <= in.rank() - static_cast<std::size_t>(axis);
    whole = whole && scale[scale.rank() - d] == (within ? in[in.rank() - d] : 1);
  }
  if (!whole) return refuse("the scale is not one for each number of a row");
  return norms([rows = in.elements() / n, n, epsilon](const Io& io) {
    each_row(io, rows, n, [&](const float* x, float* y, std::int64_t /*row*/) {
      const double mean = sums_of(x, n, 0).second / static_cast<double>(n);
      stretch(x, y, n, static_cast<float>(1 / std::sqrt(mean + epsilon)), io.input<float>(1));
    });
  });
}

Result<KernelPtr> make_fixed_norm(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 norm"));
  FALAJ_ASSIGN(const double epsilon, attr_float(call.node, "epsilon", static_cast<double>(1e-5F)));
  FALAJ_ASSIGN(const auto trains, attr_int(call.node, "training_mode", 0));
  if (trains != 0 || call.opset < 7 || call.node.outputs.size() > 1) return refuse("only by fixed statistics, of opset 7 and newer");
  return norms([split = split_at(call.in(0).shape, 1), epsilon](const Io& io) {
    each_row(io, split.outer * split.size, split.inner, [&](const float* x, float* y, std::int64_t row) {
      const std::int64_t c = row % split.size;
      const float factor = io.input<float>(1)[c] / std::sqrt(io.input<float>(4)[c] + static_cast<float>(epsilon));
      move(x, y, split.inner, io.input<float>(3)[c], factor, io.input<float>(2)[c]);
    });
  });
}

}  // namespace falaj::kernels::cpu
