// Gradients along rows, for AVX2: of Softmax, LayerNormalization and Gelu, cross-entropy with its gradient, and sums over leading
// dimensions (of biases). A row's bits depend on nothing but the row; sums over rows run in f64, in an order that the shape alone decides.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/lanes.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/named_kernel.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/parallel.hpp"

namespace falaj::kernels::cpu {
namespace {

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx2 gradient: {}", why)}; }

template <class F>
KernelPtr gradient(F f, std::size_t scratch = 0) {
  return named_kernel("avx2 gradient", std::move(f), scratch);
}

// --- Softmax ----------------------------------------------------------------------------------------------------------------------

FALAJ_AVX2 void softmax_back(const float* dy, const float* y, float* dx, std::int64_t n, bool log_form) {
  Double8 sums = zeros();
  for (std::int64_t i = 0; i < n; i += 8) {
    const Double8 d = widened(some8(dy + i, n - i));
    sums = log_form ? plus(sums, d) : plus_product(sums, d, widened(some8(y + i, n - i)));
  }
  const __m256 sum = _mm256_set1_ps(static_cast<float>(total(sums)));
  for (std::int64_t i = 0; i < n; i += 8) {
    const __m256 d = some8(dy + i, n - i);
    const __m256 v = some8(y + i, n - i);
    put8(dx + i, log_form ? _mm256_fnmadd_ps(exp_of(v), sum, d) : _mm256_mul_ps(v, _mm256_sub_ps(d, sum)), n - i);
  }
}

// --- cross-entropy ----------------------------------------------------------------------------------------------------------------

struct Exponents {
  float top;
  double sum;  // of exp(x - top)
};
// Keeps exp(x - top) in `e`, where that is wanted.
FALAJ_AVX2 inline Exponents exponents(const float* x, std::int64_t n, float* e) {
  const __m256 least = _mm256_set1_ps(-__builtin_inff());
  if (n <= 8) {  // the same, with each value read once
    const __m256 in = _mm256_castsi256_ps(lanes8(n));
    const __m256 v = _mm256_blendv_ps(least, some8(x, n), in);
    const float largest = largest8(v);
    const __m256 raised = _mm256_and_ps(exp_of(_mm256_sub_ps(v, _mm256_set1_ps(largest))), in);
    if (e != nullptr) put8(e, raised, n);
    return {largest, total(widened(raised))};
  }
  __m256 top = least;
  for (std::int64_t i = 0; i < n; i += 8)
    top = _mm256_max_ps(top, _mm256_blendv_ps(least, some8(x + i, n - i), _mm256_castsi256_ps(lanes8(n - i))));
  const float largest = largest8(top);
  const __m256 shift = _mm256_set1_ps(largest);
  Double8 sums = zeros();
  for (std::int64_t i = 0; i < n; i += 8) {
    const __m256 v = _mm256_and_ps(exp_of(_mm256_sub_ps(some8(x + i, n - i), shift)), _mm256_castsi256_ps(lanes8(n - i)));
    if (e != nullptr) put8(e + i, v, n - i);
    sums = plus(sums, widened(v));
  }
  return {largest, total(sums)};
}
FALAJ_AVX2 void scale_row(float* x, std::int64_t n, float factor) {
  for (std::int64_t i = 0; i < n; i += 8) put8(x + i, _mm256_mul_ps(some8(x + i, n - i), _mm256_set1_ps(factor)), n - i);
}

// logits [rows, classes] and labels, as the inputs from `first` on.
struct Classes {
  std::int64_t rows = 0, classes = 0;
  std::int64_t ignore = 0;
  bool sum = false, weighted = false;
  std::size_t first = 0;
};
Result<Classes> classes_of(const KernelCall& call, std::size_t first) {
  FALAJ_TRY(check_f32(call, "avx2 gradient"));
  FALAJ_ASSIGN(const auto reduction, attr_string(call.node, "reduction", "mean"));
  FALAJ_ASSIGN(const auto ignore, attr_int(call.node, "ignore_index", std::numeric_limits<std::int64_t>::min()));
  const Shape& logits = call.in(first).shape;
  return Classes{logits[0], logits[1], ignore, reduction == "sum", call.has(first + 2), first};
}
bool labels_fit(const Classes& c, const Io& io) {
  const auto* labels = io.input<std::int64_t>(c.first + 1);
  for (std::int64_t r = 0; r < c.rows; ++r) {
    if (labels[r] == c.ignore || (labels[r] >= 0 && labels[r] < c.classes)) continue;
    io.fail(format("label {} in row {} is outside [0, {})", labels[r], r, c.classes));
    return false;
  }
  return true;
}
// What a mean divides by: the rows that count.
double divisor(const Classes& c, const Io& io) {
  const auto* labels = io.input<std::int64_t>(c.first + 1);
  return c.sum ? 1.0 : static_cast<double>(c.rows - std::count(labels, labels + c.rows, c.ignore));
}

// Losses of rows [first, last). Without weights, sums of exponents are multiplied for as long as f64 holds the product, and one logarithm
// is taken of it.
FALAJ_AVX2 double losses(const Classes& c, const Io& io, std::int64_t first, std::int64_t last) {
  constexpr double kProductMax = 1e200;
  const auto* labels = io.input<std::int64_t>(1);
  double sum = 0;
  double product = 1;
  for (std::int64_t r = first; r < last; ++r) {
    if (labels[r] == c.ignore) continue;
    const float* x = io.input<float>(0) + r * c.classes;
    const Exponents e = exponents(x, c.classes, nullptr);
    const double lead = static_cast<double>(e.top) - static_cast<double>(x[labels[r]]);
    if (c.weighted) {
      sum += (lead + std::log(e.sum)) * static_cast<double>(io.input<float>(2)[r]);
      continue;
    }
    sum += lead;
    product *= e.sum;
    if (product < kProductMax) continue;
    sum += std::log(product);
    product = 1;
  }
  return sum + std::log(product);
}

void cross_entropy(const Classes& c, const Io& io) {
  if (!labels_fit(c, io)) return;
  auto* sums = reinterpret_cast<double*>(io.scratch);
  const std::int64_t together = part_rows(c.classes);
  const std::int64_t parts = (c.rows + together - 1) / together;
  in_parts(io, parts, [&](std::int64_t part) { sums[part] = losses(c, io, part * together, std::min(c.rows, (part + 1) * together)); });
  double sum = 0;
  for (std::int64_t part = 0; part < parts; ++part) sum += sums[part];
  *io.output<float>(0) = static_cast<float>(sum / divisor(c, io));
}

void cross_entropy_back(const Classes& c, const Io& io) {
  if (!labels_fit(c, io)) return;
  const auto* labels = io.input<std::int64_t>(2);
  const double scale = static_cast<double>(*io.input<float>(0)) / divisor(c, io);
  in_ranges(io, c.rows, part_rows(c.classes), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      float* dx = io.output<float>(0) + r * c.classes;
      if (labels[r] == c.ignore) {
        std::fill_n(dx, c.classes, 0.0F);
        continue;
      }
      const double factor = c.weighted ? scale * static_cast<double>(io.input<float>(3)[r]) : scale;
      const Exponents e = exponents(io.input<float>(1) + r * c.classes, c.classes, dx);
      scale_row(dx, c.classes, static_cast<float>(factor / e.sum));
      dx[labels[r]] -= static_cast<float>(factor);
    }
  });
}

// --- LayerNormalization -----------------------------------------------------------------------------------------------------------

struct Norm {
  std::int64_t rows = 0, width = 0;
  double epsilon = 0;
  std::int64_t together = 0;  // rows whose sums are added up by one part
  [[nodiscard]] std::int64_t parts() const { return (rows + together - 1) / together; }
};

// One row; adds to what its part has summed for scale and bias.
FALAJ_AVX2 void norm_back(const Norm& s, const float* dy, const float* x, const float* scale, float* dx, double* d_scale, double* d_bias) {
  const auto n = static_cast<double>(s.width);
  Double8 sums = zeros();
  for (std::int64_t i = 0; i < s.width; i += 8) sums = plus(sums, widened(some8(x + i, s.width - i)));
  const double mean = total(sums) / n;
  const __m256d centre = _mm256_set1_pd(mean);
  const __m256 centre8 = _mm256_set1_ps(static_cast<float>(mean));
  Double8 squares = zeros();
  for (std::int64_t i = 0; i < s.width; i += 8) {
    Double8 v = minus(widened(some8(x + i, s.width - i)), centre);
    if (s.width - i < 8)
      v = widened(_mm256_and_ps(_mm256_sub_ps(some8(x + i, s.width - i), centre8), _mm256_castsi256_ps(lanes8(s.width - i))));
    squares = plus_product(squares, v, v);
  }
  const double inverse = 1.0 / std::sqrt(total(squares) / n + s.epsilon);
  const __m256 factor = _mm256_set1_ps(static_cast<float>(inverse));
  Double8 sum = zeros();
  Double8 dot = zeros();
  for (std::int64_t i = 0; i < s.width; i += 8) {
    const std::int64_t left = s.width - i;
    const __m256 normal = _mm256_mul_ps(_mm256_sub_ps(some8(x + i, left), centre8), factor);
    const __m256 g = some8(dy + i, left);
    const Double8 d = widened(_mm256_mul_ps(g, some8(scale + i, left)));
    const Double8 wide = widened(normal);
    sum = plus(sum, d);
    dot = plus_product(dot, d, wide);
    add_to(d_scale + i, plus_product(zeros(), widened(g), wide), left);
    add_to(d_bias + i, widened(g), left);
  }
  if (dx == nullptr) return;
  const __m256 sum8 = _mm256_set1_ps(static_cast<float>(total(sum) / n));
  const __m256 dot8 = _mm256_set1_ps(static_cast<float>(total(dot) / n));
  for (std::int64_t i = 0; i < s.width; i += 8) {
    const std::int64_t left = s.width - i;
    const __m256 normal = _mm256_mul_ps(_mm256_sub_ps(some8(x + i, left), centre8), factor);
    const __m256 d = _mm256_fmsub_ps(some8(dy + i, left), some8(scale + i, left), sum8);
    put8(dx + i, _mm256_mul_ps(factor, _mm256_fnmadd_ps(normal, dot8, d)), left);
  }
}

void layer_norm_back(const Norm& s, std::size_t outputs, const Io& io) {
  auto* sums = reinterpret_cast<double*>(io.scratch);
  in_parts(io, s.parts(), [&](std::int64_t part) {
    double* d_scale = sums + part * 2 * s.width;
    std::fill_n(d_scale, 2 * s.width, 0.0);
    for (std::int64_t r = part * s.together; r < std::min(s.rows, (part + 1) * s.together); ++r) {
      float* dx = io.output<float>(0);
      norm_back(s, io.input<float>(0) + r * s.width, io.input<float>(1) + r * s.width, io.input<float>(2),
                dx == nullptr ? nullptr : dx + r * s.width, d_scale, d_scale + s.width);
    }
  });
  for (std::int64_t part = 1; part < s.parts(); ++part) {
    for (std::int64_t i = 0; i < 2 * s.width; ++i) sums[i] += sums[part * 2 * s.width + i];
  }
  for (std::size_t k = 1; k < outputs; ++k) {
    if (io.out[k] != nullptr) std::copy_n(sums + (static_cast<std::int64_t>(k) - 1) * s.width, s.width, io.output<float>(k));
  }
}

// --- Gelu -------------------------------------------------------------------------------------------------------------------------

FALAJ_AVX2 void gelu_back(const float* dy, const float* x, float* dx, std::int64_t n) {
  const __m256 half = _mm256_set1_ps(0.5F);
  for (std::int64_t i = 0; i < n; i += 8) {
    const __m256 v = some8(x + i, n - i);
    const __m256 below = _mm256_fmadd_ps(half, erf_of(_mm256_mul_ps(v, _mm256_set1_ps(0.70710678F))), half);
    const __m256 density = _mm256_mul_ps(exp_of(_mm256_mul_ps(_mm256_mul_ps(v, v), _mm256_set1_ps(-0.5F))), _mm256_set1_ps(0.39894228F));
    put8(dx + i, _mm256_mul_ps(some8(dy + i, n - i), _mm256_fmadd_ps(v, density, below)), n - i);
  }
}

// --- sums over rows ---------------------------------------------------------------------------------------------------------------

}  // namespace

Result<KernelPtr> make_softmax_grad(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 gradient"));
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, call.in(0).shape.rank()));
  const auto split = split_at(call.in(0).shape, axis);
  if (call.opset < 13 && call.node.domain.empty()) return refuse("only of opset 13 and newer");
  if (split.inner != 1 || split.size == 0) return refuse("only along the last dimension");
  return gradient([split, log_form = call.node.op == "LogSoftmaxGrad"](const Io& io) {
    in_ranges(io, split.outer, part_rows(split.size), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t at = first * split.size; at < last * split.size; at += split.size)
        softmax_back(io.input<float>(0) + at, io.input<float>(1) + at, io.output<float>(0) + at, split.size, log_form);
    });
  });
}

Result<KernelPtr> make_cross_entropy(const KernelCall& call) {
  const bool back = call.node.op == "SoftmaxCrossEntropyGrad";
  FALAJ_ASSIGN(const Classes c, classes_of(call, back ? 1 : 0));
  if (back) return gradient([c](const Io& io) { cross_entropy_back(c, io); });
  return gradient([c](const Io& io) { cross_entropy(c, io); },
                  static_cast<std::size_t>(c.rows / part_rows(c.classes) + 1) * sizeof(double));
}

Result<KernelPtr> make_layer_norm_grad(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 gradient"));
  const Shape& in = call.in(1).shape;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
  FALAJ_ASSIGN(const double epsilon, attr_float(call.node, "epsilon", static_cast<double>(1e-5F)));
  Norm s{in.elements(0, static_cast<std::size_t>(axis)), in.elements(static_cast<std::size_t>(axis), in.rank()), epsilon, 1};
  if (s.rows == 0 || s.width == 0) return refuse("nothing to compute");
  constexpr std::int64_t kPartsMax = 16;
  s.together = std::max(part_rows(s.width), (s.rows + kPartsMax - 1) / kPartsMax);
  return gradient([s, outputs = call.outputs.size()](const Io& io) { layer_norm_back(s, outputs, io); },
                  static_cast<std::size_t>(s.parts() * 2 * s.width) * sizeof(double));
}

Result<KernelPtr> make_gelu_grad(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 gradient"));
  FALAJ_ASSIGN(const auto form, attr_string(call.node, "approximate", "none"));
  if (form != "none") return refuse("only the exact Gelu");
  return gradient([n = call.in(0).shape.elements()](const Io& io) {
    in_ranges(io, n, kPartWork, [&](std::int64_t first, std::int64_t last) {
      gelu_back(io.input<float>(0) + first, io.input<float>(1) + first, io.output<float>(0) + first, last - first);
    });
  });
}

Result<KernelPtr> make_reduce_like(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 gradient"));
  const Shape& in = call.in(0).shape;
  const Shape& out = call.outputs[0].shape;
  std::int64_t width = out.elements();
  // Only a trailing block that is kept as it is, after leading dimensions that all go: a bias's gradient.
  std::int64_t kept = 1;
  std::size_t d = in.rank();
  while (d > 0 && kept < width) kept *= in[--d];
  Strides strides = broadcast_strides(out, in);
  bool leading = kept == width && width > 0;
  for (std::size_t i = 0; i < d; ++i) leading = leading && (strides[i] == 0 || in[i] == 1);
  for (std::size_t i = d; i < in.rank(); ++i) leading = leading && (in[i] == 1 || strides[i] != 0);
  if (!leading) return refuse("only sums over leading dimensions");
  return gradient([rows = in.elements() / width, width](const Io& io) {
    const std::int64_t columns = (part_rows(rows) + 63) / 64 * 64;
    in_ranges(io, width, columns, [&](std::int64_t first, std::int64_t last) {
      sum_columns(io.input<float>(0), rows, width, first, last, 1.0, io.output<float>(0));
    });
  });
}

}  // namespace falaj::kernels::cpu
