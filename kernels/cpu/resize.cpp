// Resize in f32 along one dimension or two neighbours: rows of an image, and what lies along a row. Each row that is read is resized along
// itself once, and kept while rows of the result are combined of it.
#include "kernels/ops/resize.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/parallel.hpp"

namespace falaj::kernels::cpu {
namespace {

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx2 resize: {}", why)}; }

constexpr std::int64_t kTapsMax = 16;
constexpr std::int64_t kLanesMax = 16;
constexpr std::int64_t kRowsOfPart = 16;  // at least, for a part resizes its first rows anew

// Where an axis's elements come from: those of position i are at[k * padded + i], for each k of `many`.
struct Taps {
  std::int64_t size = 1, padded = 1, many = 0;  // many = 0: the axis stays as it is
  std::vector<std::int32_t> at;
  std::vector<float> weight;
};

Taps taps_of(const ResizedAxis& axis) {
  Taps t;
  t.size = static_cast<std::int64_t>(axis.taps.size());
  t.padded = (t.size + kLanesMax - 1) / kLanesMax * kLanesMax;
  t.many = static_cast<std::int64_t>(axis.taps[0].size());
  t.at.assign(static_cast<std::size_t>(t.many * t.padded), 0);
  t.weight.assign(t.at.size(), 0);
  for (std::int64_t i = 0; i < t.size; ++i) {
    for (std::int64_t k = 0; k < t.many; ++k) {
      const Tap& tap = axis.taps[static_cast<std::size_t>(i)][static_cast<std::size_t>(k)];
      t.at[static_cast<std::size_t>(k * t.padded + i)] = static_cast<std::int32_t>(tap.at);
      t.weight[static_cast<std::size_t>(k * t.padded + i)] = static_cast<float>(tap.weight);
    }
  }
  return t;
}

FALAJ_AVX2 inline __m256 gather(__m256, const float* from, const std::int32_t* at) {
  return _mm256_i32gather_ps(from, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)), 4);
}
FALAJ_AVX512 inline __m512 gather(__m512, const float* from, const std::int32_t* at) {
  return _mm512_i32gather_ps(_mm512_loadu_si512(at), from, 4);
}

#define FALAJ_BODY "kernels/cpu/resize_body.hpp"
#include "kernels/cpu/both_widths.hpp"

// Each of n numbers twice.
FALAJ_AVX2 void twice(const float* x, float* y, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    const __m256 low = _mm256_unpacklo_ps(v, v);
    const __m256 high = _mm256_unpackhi_ps(v, v);
    _mm256_storeu_ps(y + 2 * i, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(y + 2 * i + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }
  for (; i < n; ++i) y[2 * i] = y[2 * i + 1] = x[i];
}

// Images of `rows` rows, a row being so many pixels of `inner` numbers that lie together.
struct Images {
  std::int64_t images, rows, pixels, inner;
};

class ResizeKernel final : public Kernel {
 public:
  ResizeKernel(const Images& in, Taps rows, Taps pixels, bool nearest, std::size_t threads)
      : in_(in), rows_(std::move(rows)), pixels_(std::move(pixels)), nearest_(nearest) {
    if (rows_.many == 0) rows_.size = in.rows;
    if (pixels_.many == 0) pixels_.size = in.pixels;
    width_ = pixels_.size * in.inner;
    twice_ = nearest && in.inner == 1 && pixels_.many == 1 && pixels_.size == 2 * in.pixels;
    for (std::int64_t i = 0; twice_ && i < pixels_.size; ++i) twice_ = pixels_.at[static_cast<std::size_t>(i)] == i / 2;
    length_ = std::max(part_rows(width_), kRowsOfPart);
    parts_ = (in.images * rows_.size + length_ - 1) / length_;
    slots_ = std::min(parts_, static_cast<std::int64_t>(threads));
    kept_ = nearest || rows_.many == 0 || pixels_.many == 0 ? 0 : (width_ + kLanesMax - 1) / kLanesMax * kLanesMax;
  }

  void run(const Io& io) const override {
    const std::int64_t all = in_.images * rows_.size;
    in_slots(io, parts_, slots_, [&](std::int64_t part, std::int64_t slot) {
      const std::int64_t first = part * length_;
      const std::int64_t last = std::min(all, first + length_);
      if (nearest_) {
        repeat(io.input<float>(0), io.output<float>(0), first, last);
      } else {
        blend(io.input<float>(0), io.output<float>(0), first, last, reinterpret_cast<float*>(io.scratch) + slot * rows_.many * kept_);
      }
    });
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return static_cast<std::size_t>(slots_ * rows_.many * kept_) * sizeof(float); }
  [[nodiscard]] std::string_view implementation() const override {
    return nearest_ ? "avx2 repeats" : (wide_ ? "avx512 resize" : "avx2 resize");
  }

 private:
  [[nodiscard]] const float* row(const float* x, std::int64_t image, std::int64_t at) const {
    return x + (image * in_.rows + at) * in_.pixels * in_.inner;
  }

  // The nearest: rows of the result that come from one row are the same.
  void repeat(const float* x, float* y, std::int64_t first, std::int64_t last) const {
    const float* before = nullptr;
    for (std::int64_t r = first; r < last; ++r) {
      const std::int64_t at = r % rows_.size;
      const float* from = row(x, r / rows_.size, rows_.many == 0 ? at : rows_.at[static_cast<std::size_t>(at)]);
      float* to = y + r * width_;
      if (from == before) {
        std::memcpy(to, to - width_, static_cast<std::size_t>(width_) * sizeof(float));
      } else {
        repeat_pixels(from, to);
      }
      before = from;
    }
  }
  void repeat_pixels(const float* x, float* y) const {
    if (twice_) return twice(x, y, in_.pixels);
    if (pixels_.many == 0) {
      std::memcpy(y, x, static_cast<std::size_t>(width_) * sizeof(float));
    } else if (in_.inner == 1) {
      for (std::int64_t i = 0; i < pixels_.size; ++i) y[i] = x[pixels_.at[static_cast<std::size_t>(i)]];
    } else {
      for (std::int64_t i = 0; i < pixels_.size; ++i)
        std::memcpy(y + i * in_.inner, x + pixels_.at[static_cast<std::size_t>(i)] * in_.inner,
                    static_cast<std::size_t>(in_.inner) * sizeof(float));
    }
  }

  void blend(const float* x, float* y, std::int64_t first, std::int64_t last, float* scratch) const {
    std::array<std::int64_t, kTapsMax> held{};  // which row each place of the scratch holds
    std::array<const float*, kTapsMax> from{};
    std::array<float, kTapsMax> weights{};
    std::int64_t before = -1;
    for (std::int64_t r = first; r < last; ++r) {
      const std::int64_t image = r / rows_.size;
      const std::int64_t at = r % rows_.size;
      float* to = y + r * width_;
      if (rows_.many == 0) {
        blend_pixels(row(x, image, at), to);
        continue;
      }
      if (std::exchange(before, image) != image) held.fill(-1);
      for (std::int64_t k = 0; k < rows_.many; ++k) {
        const auto tap = static_cast<std::size_t>(k * rows_.padded + at);
        const std::int64_t wanted = rows_.at[tap];
        weights[static_cast<std::size_t>(k)] = rows_.weight[tap];
        from[static_cast<std::size_t>(k)] = row(x, image, wanted);
        if (pixels_.many == 0) continue;
        const std::int64_t place = wanted % rows_.many;  // of so many neighbours, each has its own
        if (std::exchange(held[static_cast<std::size_t>(place)], wanted) != wanted)
          blend_pixels(from[static_cast<std::size_t>(k)], scratch + place * kept_);
        from[static_cast<std::size_t>(k)] = scratch + place * kept_;
      }
      combine_(from.data(), weights.data(), rows_.many, to, width_);
    }
  }
  void blend_pixels(const float* x, float* y) const {
    if (in_.inner == 1) return along_(x, pixels_, y);
    std::array<const float*, kTapsMax> from{};
    std::array<float, kTapsMax> weights{};
    for (std::int64_t i = 0; i < pixels_.size; ++i) {
      for (std::int64_t k = 0; k < pixels_.many; ++k) {
        const auto tap = static_cast<std::size_t>(k * pixels_.padded + i);
        from[static_cast<std::size_t>(k)] = x + pixels_.at[tap] * in_.inner;
        weights[static_cast<std::size_t>(k)] = pixels_.weight[tap];
      }
      combine_(from.data(), weights.data(), pixels_.many, y + i * in_.inner, in_.inner);
    }
  }

  Images in_;
  Taps rows_, pixels_;
  bool nearest_, twice_ = false, wide_ = has_avx512();
  std::int64_t width_, length_, parts_, slots_, kept_;
  decltype(&lanes8::combine) combine_ = wide_ ? lanes16::combine : lanes8::combine;
  decltype(&lanes8::along) along_ = wide_ ? lanes16::along : lanes8::along;
};

}  // namespace

Result<KernelPtr> make_resize(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 resize"));
  FALAJ_ASSIGN(const Resizing r, resizing(call));
  const Shape& in = call.in(0).shape;
  if (r.crops()) return refuse("no regions");
  if (r.out.elements() == 0 || in.elements() >= (std::int64_t{1} << 31)) return refuse("nothing to resize, or too much");
  const std::vector<ResizedAxis> axes = resized_axes(r, in);
  if (axes.empty() || axes.size() > 2) return refuse("only along one dimension or two");
  if (std::ranges::any_of(axes, [](const ResizedAxis& axis) { return axis.taps[0].size() > kTapsMax; })) return refuse("too many taps");
  const std::size_t last = axes.back().axis;
  const bool rows_only = axes.size() == 1 && last + 1 < in.rank();  // its pixels are all that lies behind
  if (axes.size() == 2 && in.elements(axes[0].axis + 1, last) != 1) return refuse("only along neighbours");
  const std::int64_t inner = in.elements(last + 1, in.rank());
  const auto image = [&](std::size_t first) { return in.elements(0, first); };
  const bool nearest = r.mode == "nearest";
  if (rows_only) {
    return std::make_unique<ResizeKernel>(Images{image(last), in[last], 1, inner}, taps_of(axes[0]), Taps{}, nearest, call.threads);
  }
  if (axes.size() == 1)
    return std::make_unique<ResizeKernel>(Images{1, image(last), in[last], inner}, Taps{}, taps_of(axes[0]), nearest, call.threads);
  return std::make_unique<ResizeKernel>(Images{image(axes[0].axis), in[axes[0].axis], in[last], inner}, taps_of(axes[0]), taps_of(axes[1]),
                                        nearest, call.threads);
}

}  // namespace falaj::kernels::cpu
