// Softmax and LayerNormalization along rows, and Transpose, for AVX2. A row's bits depend on nothing but the row.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/lanes.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/parallel.hpp"

namespace falaj::kernels::cpu {
namespace {

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx2 rows: {}", why)}; }

template <class F>
class Rows final : public Kernel {
 public:
  explicit Rows(F f) : f_(std::move(f)) {}
  void run(const Io& io) const override { f_(io); }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 rows"; }

 private:
  F f_;
};
template <class F>
KernelPtr rows(F f) {
  return std::make_unique<Rows<F>>(std::move(f));
}

// The first `n` of eight lanes.
FALAJ_AVX2 inline __m256i mask8(std::int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(std::min<std::int64_t>(n, 8))), lane);
}
FALAJ_AVX2 inline float largest(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}
FALAJ_AVX2 inline double sum(__m256d v) {
  const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}
FALAJ_AVX2 inline __m256d low(__m256 v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
FALAJ_AVX2 inline __m256d high(__m256 v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }

FALAJ_AVX2 void softmax_row(const float* x, float* y, std::int64_t n) {
  const __m256 least = _mm256_set1_ps(-__builtin_inff());
  __m256 top = least;
  for (std::int64_t i = 0; i < n; i += 8) {
    const __m256i in = mask8(n - i);
    top = _mm256_max_ps(top, _mm256_blendv_ps(least, _mm256_maskload_ps(x + i, in), _mm256_castsi256_ps(in)));
  }
  const __m256 shift = _mm256_set1_ps(largest(top));
  __m256d total = _mm256_setzero_pd();
  for (std::int64_t i = 0; i < n; i += 8) {
    const __m256i in = mask8(n - i);
    const __m256 e = _mm256_and_ps(exp_of(_mm256_sub_ps(_mm256_maskload_ps(x + i, in), shift)), _mm256_castsi256_ps(in));
    _mm256_maskstore_ps(y + i, in, e);
    total = _mm256_add_pd(total, _mm256_add_pd(low(e), high(e)));
  }
  const __m256 scale = _mm256_set1_ps(static_cast<float>(1.0 / sum(total)));
  for (std::int64_t i = 0; i < n; i += 8) {
    const __m256i in = mask8(n - i);
    _mm256_maskstore_ps(y + i, in, _mm256_mul_ps(_mm256_maskload_ps(y + i, in), scale));
  }
}

struct Norm {
  std::int64_t rows, width;
  double epsilon;
};
FALAJ_AVX2 void norm_row(const float* x, const float* scale, const float* bias, float* y, const Norm& s) {
  __m256d total = _mm256_setzero_pd();
  for (std::int64_t i = 0; i < s.width; i += 8) {
    const __m256 v = _mm256_maskload_ps(x + i, mask8(s.width - i));
    total = _mm256_add_pd(total, _mm256_add_pd(low(v), high(v)));
  }
  const double mean = sum(total) / static_cast<double>(s.width);
  const __m256d centre = _mm256_set1_pd(mean);
  __m256d low_square = _mm256_setzero_pd();
  __m256d high_square = _mm256_setzero_pd();
  for (std::int64_t i = 0; i < s.width; i += 8) {
    const __m256i in = mask8(s.width - i);
    // Lanes beyond the row count as the mean.
    const __m256 v = _mm256_blendv_ps(_mm256_set1_ps(static_cast<float>(mean)), _mm256_maskload_ps(x + i, in), _mm256_castsi256_ps(in));
    const __m256d a = _mm256_sub_pd(low(v), centre);
    const __m256d b = _mm256_sub_pd(high(v), centre);
    low_square = _mm256_fmadd_pd(a, a, low_square);
    high_square = _mm256_fmadd_pd(b, b, high_square);
  }
  const double variance = sum(_mm256_add_pd(low_square, high_square)) / static_cast<double>(s.width);
  const __m256d factor = _mm256_set1_pd(1.0 / std::sqrt(variance + s.epsilon));
  for (std::int64_t i = 0; i < s.width; i += 8) {
    const __m256i in = mask8(s.width - i);
    const __m256 v = _mm256_maskload_ps(x + i, in);
    const __m128 a = _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_sub_pd(low(v), centre), factor));
    const __m128 b = _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_sub_pd(high(v), centre), factor));
    const __m256 added = bias == nullptr ? _mm256_setzero_ps() : _mm256_maskload_ps(bias + i, in);
    _mm256_maskstore_ps(y + i, in, _mm256_fmadd_ps(_mm256_set_m128(b, a), _mm256_maskload_ps(scale + i, in), added));
  }
}

Status check(const KernelCall& call) {
  if (!has_avx2()) return refuse("this CPU has no AVX2");
  if (call.in(0).dtype != DType::f32) return refuse(format("only float32, not {}", to_string(call.in(0).dtype)));
  return {};
}

// --- Transpose ----------------------------------------------------------------------------------------------------------------

// A dimension of the result: its size, and how far apart its elements are in what is read and in what is written.
struct Loop {
  std::int64_t size, read, write;
};

// A matrix whose rows are read together and whose columns are written together.
FALAJ_AVX2 void turn(const float* x, float* y, const Loop& rows_read, const Loop& columns_read) {
  const std::int64_t m = rows_read.size;     // written together
  const std::int64_t n = columns_read.size;  // read together
  for (std::int64_t i = 0; i < m; i += 8) {
    for (std::int64_t j = 0; j < n; j += 8) {
      if (i + 8 <= m && j + 8 <= n) {
        turn8(x + i * rows_read.read + j, rows_read.read, y + j * columns_read.write + i, columns_read.write);
        continue;
      }
      for (std::int64_t b = j; b < std::min(j + 8, n); ++b) {
        for (std::int64_t a = i; a < std::min(i + 8, m); ++a) y[b * columns_read.write + a] = x[a * rows_read.read + b];
      }
    }
  }
}

class TransposeKernel final : public Kernel {
 public:
  explicit TransposeKernel(std::vector<Loop> loops) : loops_(std::move(loops)) {
    // The loop within all others moves runs of elements, or turns a matrix.
    straight_ = loops_.back().read == 1;
    inner_.push_back(loops_.back());
    loops_.pop_back();
    if (straight_) return;
    const auto together = std::ranges::find(loops_, 1, &Loop::read);
    if (together == loops_.end()) return;
    inner_.push_back(*together);
    loops_.erase(together);
  }
  void run(const Io& io) const override { walk(io.input<float>(0), io.output<float>(0), 0); }
  [[nodiscard]] std::string_view implementation() const override { return straight_ ? "runs" : "avx2 turns"; }

 private:
  void walk(const float* x, float* y, std::size_t depth) const {
    if (depth < loops_.size()) {
      const Loop& loop = loops_[depth];
      for (std::int64_t i = 0; i < loop.size; ++i) walk(x + i * loop.read, y + i * loop.write, depth + 1);
      return;
    }
    const Loop& last = inner_[0];
    if (straight_) {
      std::memcpy(y, x, static_cast<std::size_t>(last.size) * sizeof(float));
    } else if (inner_.size() == 2) {
      turn(x, y, last, inner_[1]);
    } else {
      for (std::int64_t i = 0; i < last.size; ++i) y[i] = x[i * last.read];
    }
  }

  std::vector<Loop> loops_, inner_;
  bool straight_ = false;
};

}  // namespace

Result<KernelPtr> make_softmax(const KernelCall& call) {
  FALAJ_TRY(check(call));
  const Shape& in = call.in(0).shape;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
  const auto split = split_at(in, axis);
  if (call.opset < 13 || split.inner != 1 || split.size == 0) return refuse("only along the last dimension, of opset 13 and newer");
  return rows([split](const Io& io) {
    in_ranges(io, split.outer, part_rows(split.size), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t r = first; r < last; ++r)
        softmax_row(io.input<float>(0) + r * split.size, io.output<float>(0) + r * split.size, split.size);
    });
  });
}

Result<KernelPtr> make_layer_norm(const KernelCall& call) {
  FALAJ_TRY(check(call));
  const Shape& in = call.in(0).shape;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
  FALAJ_ASSIGN(const double epsilon, attr_float(call.node, "epsilon", static_cast<double>(1e-5F)));
  const Norm norm{in.elements(0, static_cast<std::size_t>(axis)), in.elements(static_cast<std::size_t>(axis), in.rank()), epsilon};
  for (std::size_t i = 1; i < call.node.outputs.size(); ++i) {
    if (!call.node.outputs[i].empty()) return refuse("mean and deviation are wanted too");
  }
  if (norm.width == 0) return refuse("rows of nothing");
  return rows([norm, bias = call.has(2)](const Io& io) {
    in_ranges(io, norm.rows, part_rows(norm.width), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t r = first; r < last; ++r)
        norm_row(io.input<float>(0) + r * norm.width, io.input<float>(1), bias ? io.input<float>(2) : nullptr,
                 io.output<float>(0) + r * norm.width, norm);
    });
  });
}

Result<KernelPtr> make_transpose(const KernelCall& call) {
  if (!has_avx2()) return refuse("this CPU has no AVX2");
  const Shape& in = call.in(0).shape;
  const Shape& out = call.outputs[0].shape;
  if (size_of(call.in(0).dtype) != sizeof(float) || out.elements() == 0) return refuse("only elements of four bytes");
  std::vector<std::int64_t> perm;
  for (std::size_t i = in.rank(); i-- > 0;) perm.push_back(static_cast<std::int64_t>(i));
  FALAJ_ASSIGN(perm, attr_ints(call.node, "perm", perm));
  const Strides read = row_major(in);
  const Strides write = row_major(out);
  std::vector<Loop> loops;
  for (std::size_t d = 0; d < out.rank(); ++d) {
    const Loop loop{out[d], read[static_cast<std::size_t>(perm[d])], write[d]};
    if (loop.size == 1) continue;
    const bool joins = !loops.empty() && loops.back().read == loop.size * loop.read;  // the result's own steps always do
    if (joins) {
      loops.back() = {loops.back().size * loop.size, loop.read, loop.write};
    } else {
      loops.push_back(loop);
    }
  }
  if (loops.empty()) loops.push_back({1, 1, 1});
  return std::make_unique<TransposeKernel>(std::move(loops));
}

}  // namespace falaj::kernels::cpu
