// ai.falaj's Conv on [N, H, W, C] with weights known before the run, and pools alike, for AVX2.
//
// A convolution is a sum of products over (kernel place, channel). A tile is up to six neighbouring output pixels times sixteen maps,
// all its sums in registers; each pixel has a pointer to the input channels that meet a kernel place, those outside the image to zeros.
// Every sum is one chain in the order of the weights, whatever tile a pixel falls in: bits do not depend on the batch.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/ops/channels_last.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kMaps = 16;        // of a tile
constexpr std::int64_t kPixels = 6;       // of a tile
constexpr std::int64_t kBlockTiles = 12;  // tiles that share one pass over the weights
constexpr std::int64_t kFewChannels = 4;  // a row of kernel places is then one run of numbers, for which the image is padded first

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx2 convolution: {}", why)}; }

// Where a tile's results go.
struct Target {
  float* y;
  const float* addend;  // null: none
  const float* bias;    // null: none
  std::int64_t row;     // floats from pixel to pixel
  std::int64_t width;   // maps that exist
  Activation activation;
  float alpha;
};

FALAJ_AVX2 inline __m256 load_some(const float* from, std::int64_t width) {
  if (width >= 8) return _mm256_loadu_ps(from);
  alignas(32) float lane[8] = {};
  for (std::int64_t i = 0; i < width; ++i) lane[i] = from[i];
  return _mm256_load_ps(lane);
}
FALAJ_AVX2 inline void store_some(float* to, __m256 value, std::int64_t width) {
  if (width >= 8) return _mm256_storeu_ps(to, value);
  alignas(32) float lane[8];
  _mm256_store_ps(lane, value);
  for (std::int64_t i = 0; i < width; ++i) to[i] = lane[i];
}

// What is added to a tile's sums, and the activation. Apart from the sums' loop, whose registers it would take.
[[gnu::noinline]] FALAJ_AVX2 void finish_tile(const float* sums, int rows, const Target& t) {
  for (int half = 0; half < 2; ++half) {
    const std::int64_t width = t.width - 8 * half;
    if (width <= 0) break;
    const __m256 bias = t.bias == nullptr ? _mm256_setzero_ps() : load_some(t.bias + 8 * half, width);
    for (int r = 0; r < rows; ++r) {
      const std::int64_t at = r * t.row + 8 * half;
      __m256 value = _mm256_add_ps(_mm256_load_ps(sums + r * kMaps + 8 * half), bias);
      if (t.addend != nullptr) value = _mm256_add_ps(value, load_some(t.addend + at, width));
      store_some(t.y + at, activate(value, t.activation, t.alpha), width);
    }
  }
}

// places: for each kernel place kPixels pointers, of which kRows are used. w: for each place and channel kMaps weights.
template <int kRows>
FALAJ_AVX2 void tile(const float* const* places, std::int64_t count, std::int64_t offset, std::int64_t depth, const float* w,
                     const Target& t) {
  __m256 sum[kRows][2];
  FALAJ_UNROLL
  for (auto& row : sum) row[0] = row[1] = _mm256_setzero_ps();
  for (std::int64_t p = 0; p < count; ++p, places += kPixels) {
    const float* x[kRows];
    FALAJ_UNROLL
    for (int r = 0; r < kRows; ++r) x[r] = places[r] + offset;
    for (std::int64_t c = 0; c < depth; ++c, w += kMaps) {
      const __m256 low = _mm256_load_ps(w);
      const __m256 high = _mm256_load_ps(w + 8);
      FALAJ_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m256 value = _mm256_broadcast_ss(x[r] + c);
        sum[r][0] = _mm256_fmadd_ps(value, low, sum[r][0]);
        sum[r][1] = _mm256_fmadd_ps(value, high, sum[r][1]);
      }
    }
  }
  if (t.width >= kMaps && (t.activation == Activation::none || t.activation == Activation::relu)) {  // nearly all of them
    const __m256 low = t.bias == nullptr ? _mm256_setzero_ps() : _mm256_loadu_ps(t.bias);
    const __m256 high = t.bias == nullptr ? _mm256_setzero_ps() : _mm256_loadu_ps(t.bias + 8);
    const __m256 least = t.activation == Activation::relu ? _mm256_setzero_ps() : _mm256_set1_ps(-__builtin_inff());
    FALAJ_UNROLL
    for (int r = 0; r < kRows; ++r) {
      __m256 a = _mm256_add_ps(sum[r][0], low);
      __m256 b = _mm256_add_ps(sum[r][1], high);
      if (t.addend != nullptr) {
        a = _mm256_add_ps(a, _mm256_loadu_ps(t.addend + r * t.row));
        b = _mm256_add_ps(b, _mm256_loadu_ps(t.addend + r * t.row + 8));
      }
      _mm256_storeu_ps(t.y + r * t.row, _mm256_max_ps(least, a));  // the second operand where that is NaN
      _mm256_storeu_ps(t.y + r * t.row + 8, _mm256_max_ps(least, b));
    }
    return;
  }
  alignas(32) float sums[kRows * kMaps];
  FALAJ_UNROLL
  for (int r = 0; r < kRows; ++r) {
    _mm256_store_ps(sums + r * kMaps, sum[r][0]);
    _mm256_store_ps(sums + r * kMaps + 8, sum[r][1]);
  }
  finish_tile(sums, kRows, t);
}

using Tile = void (*)(const float* const*, std::int64_t, std::int64_t, std::int64_t, const float*, const Target&);
constexpr Tile kTiles[] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

class ConvKernel final : public Kernel {
 public:
  ConvKernel(FusedConv fused, std::shared_ptr<const Tensor> packed)
      : fused_(std::move(fused)),
        packed_(std::move(packed)),
        rows_run_(runs_along_rows(fused_.conv)),
        zeros_(static_cast<std::size_t>(fused_.conv.channels), 0.0F) {
    const ConvSpec& s = fused_.conv;
    const Window& w = s.window;
    depth_ = s.channels / s.groups * (rows_run_ ? w.kernel[1] : 1);
    places_ = rows_run_ ? w.kernel[0] : w.kernel_elements();
    if (rows_run_) {
      padded_[0] =
          w.in[0] + w.pad_begin[0] + std::max<std::int64_t>((w.out[0] - 1) * w.strides[0] + w.extent(0) - w.in[0] - w.pad_begin[0], 0);
      padded_[1] =
          w.in[1] + w.pad_begin[1] + std::max<std::int64_t>((w.out[1] - 1) * w.strides[1] + w.extent(1) - w.in[1] - w.pad_begin[1], 0);
    }
    const std::int64_t width = rows_run_ ? padded_[1] : w.in[1];
    for (std::int64_t p = 0; p < places_; ++p) {
      const std::int64_t k = rows_run_ ? p : p / w.kernel[1];
      const std::int64_t l = rows_run_ ? 0 : p % w.kernel[1];
      offsets_.push_back((k * w.dilations[0] * width + l * w.dilations[1]) * s.channels);
    }
  }

  // With few channels, places that are neighbours in a row are neighbours in memory.
  static bool runs_along_rows(const ConvSpec& s) { return s.groups == 1 && s.channels <= kFewChannels && s.window.dilations[1] == 1; }

  void run(const Io& io) const override {
    const ConvSpec& s = fused_.conv;
    const std::int64_t images = rows_run_ ? 1 : s.batch;  // in one go
    const std::int64_t out = s.window.out_elements();
    for (std::int64_t n = 0; n < s.batch; n += images) {
      const float* x = io.input<float>(0) + n * s.window.in_elements() * s.channels;
      if (rows_run_) x = pad(x, reinterpret_cast<float*>(io.scratch));
      const std::int64_t pixels = images * out;
      const std::int64_t tiles = (pixels + kPixels - 1) / kPixels;
      const std::int64_t blocks = (tiles + kBlockTiles - 1) / kBlockTiles;
      for (std::int64_t b = 0; b < blocks; ++b)
        run_block(io, x, n * out, pixels, tiles, first_of(b, blocks, tiles), first_of(b + 1, blocks, tiles));
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return pad_bytes() + static_cast<std::size_t>(kBlockTiles * kPixels * places_) * sizeof(float*);
  }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 convolution, packed weights"; }

 private:
  [[nodiscard]] std::size_t pad_bytes() const {
    return (static_cast<std::size_t>(padded_[0] * padded_[1] * fused_.conv.channels) * sizeof(float) + 63) / 64 * 64;
  }

  const float* pad(const float* x, float* to) const {
    const Window& w = fused_.conv.window;
    const std::int64_t channels = fused_.conv.channels;
    const std::int64_t row = padded_[1] * channels;
    const std::int64_t kept = w.in[1] * channels;
    std::memset(to, 0, static_cast<std::size_t>(padded_[0] * row) * sizeof(float));
    for (std::int64_t h = 0; h < w.in[0]; ++h)
      std::memcpy(to + (h + w.pad_begin[0]) * row + w.pad_begin[1] * channels, x + h * kept,
                  static_cast<std::size_t>(kept) * sizeof(float));
    return to;
  }

  // A pixel, counted over the images in one go.
  struct Pixel {
    std::int64_t image, row, column;
  };
  [[nodiscard]] Pixel pixel_at(std::int64_t pixel) const {
    const Window& w = fused_.conv.window;
    return {pixel / (w.out[0] * w.out[1]), pixel / w.out[1] % w.out[0], pixel % w.out[1]};
  }
  void advance(Pixel& pixel) const {
    const Window& w = fused_.conv.window;
    if (++pixel.column < w.out[1]) return;
    pixel.column = 0;
    if (++pixel.row < w.out[0]) return;
    pixel.row = 0;
    ++pixel.image;
  }

  // Pointers of one pixel, kPixels apart.
  void point(const float* x, const Pixel& pixel, const float** to) const {
    const Window& w = fused_.conv.window;
    const std::int64_t channels = fused_.conv.channels;
    const std::int64_t row = pixel.row * w.strides[0];
    const std::int64_t column = pixel.column * w.strides[1];
    if (rows_run_) {
      x += (row * padded_[1] + column) * channels;
      for (const std::int64_t offset : offsets_) {
        *to = x + offset;
        to += kPixels;
      }
      return;
    }
    x += pixel.image * w.in[0] * w.in[1] * channels;
    const std::int64_t top = row - w.pad_begin[0];
    const std::int64_t left = column - w.pad_begin[1];
    if (top >= 0 && left >= 0 && top + w.extent(0) <= w.in[0] && left + w.extent(1) <= w.in[1]) {  // nothing of it in the padding
      x += (top * w.in[1] + left) * channels;
      for (const std::int64_t offset : offsets_) {
        *to = x + offset;
        to += kPixels;
      }
      return;
    }
    for (std::int64_t k = 0; k < w.kernel[0]; ++k) {
      const std::int64_t h = row - w.pad_begin[0] + k * w.dilations[0];
      for (std::int64_t l = 0; l < w.kernel[1]; ++l, to += kPixels) {
        const std::int64_t v = column - w.pad_begin[1] + l * w.dilations[1];
        const bool inside = h >= 0 && h < w.in[0] && v >= 0 && v < w.in[1];
        *to = inside ? x + (h * w.in[1] + v) * channels : zeros_.data();
      }
    }
  }

  void run_block(const Io& io, const float* x, std::int64_t done, std::int64_t pixels, std::int64_t tiles, std::int64_t first,
                 std::int64_t end) const {
    const ConvSpec& s = fused_.conv;
    const auto** places = reinterpret_cast<const float**>(io.scratch + pad_bytes());
    Pixel pixel = pixel_at(first_of(first, tiles, pixels));
    for (std::int64_t t = first; t < end; ++t) {
      const std::int64_t from = first_of(t, tiles, pixels);
      const std::int64_t to = first_of(t + 1, tiles, pixels);
      for (std::int64_t p = from; p < to; ++p, advance(pixel)) point(x, pixel, places + (t - first) * kPixels * places_ + (p - from));
    }
    const std::int64_t share = s.maps / s.groups;
    const auto* w = static_cast<const float*>(packed_->raw());
    for (std::int64_t m = 0; m < s.maps;) {
      const std::int64_t group = m / share;
      const std::int64_t width = std::min(kMaps, (group + 1) * share - m);
      for (std::int64_t t = first; t < end; ++t) {
        const std::int64_t from = first_of(t, tiles, pixels);
        const std::int64_t at = (done + from) * s.maps + m;
        const Target target{io.output<float>(0) + at,
                            fused_.has_addend ? io.input<float>(3) + at : nullptr,
                            fused_.has_bias ? io.input<float>(2) + m : nullptr,
                            s.maps,
                            width,
                            fused_.activation,
                            static_cast<float>(fused_.activation_alpha)};
        kTiles[first_of(t + 1, tiles, pixels) - from](places + (t - first) * kPixels * places_, places_, group * (s.channels / s.groups),
                                                      depth_, w, target);
      }
      w += places_ * depth_ * kMaps;
      m += width;
    }
  }

  FusedConv fused_;
  std::shared_ptr<const Tensor> packed_;
  bool rows_run_;
  std::vector<float> zeros_;
  std::int64_t depth_ = 0, places_ = 0;
  std::int64_t padded_[2] = {0, 0};
  std::vector<std::int64_t> offsets_;  // of the kernel places that pointers are for, from the first one
};

// [M, depth, places] -> for each panel of kMaps maps of a group: [places, depth, kMaps], zeros for maps that do not exist.
Tensor pack_weights(const Tensor& weights, const ConvSpec& s) {
  const std::int64_t share = s.maps / s.groups;
  const std::int64_t depth = s.channels / s.groups;
  const std::int64_t places = s.window.kernel_elements();
  const std::int64_t panels = s.groups * ((share + kMaps - 1) / kMaps);
  Tensor packed(DType::f32, {panels * places * depth * kMaps});
  float* to = packed.mutable_data<float>().data();
  const float* from = weights.data<float>().data();
  for (std::int64_t m = 0; m < s.maps;) {
    const std::int64_t width = std::min(kMaps, (m / share + 1) * share - m);
    for (std::int64_t p = 0; p < places; ++p) {
      for (std::int64_t c = 0; c < depth; ++c, to += kMaps) {
        for (std::int64_t i = 0; i < width; ++i) to[i] = from[((m + i) * depth + c) * places + p];
      }
    }
    m += width;
  }
  return packed;
}

// One map for each channel: eight channels at a time.
class DepthwiseKernel final : public Kernel {
 public:
  DepthwiseKernel(FusedConv fused, std::shared_ptr<const Tensor> packed) : fused_(std::move(fused)), packed_(std::move(packed)) {}
  FALAJ_AVX2 void run(const Io& io) const override {
    const Window& w = fused_.conv.window;
    const std::int64_t channels = fused_.conv.channels;
    const auto* weights = static_cast<const float*>(packed_->raw());
    const auto alpha = static_cast<float>(fused_.activation_alpha);
    for (std::int64_t pixel = 0; pixel < fused_.conv.batch * w.out_elements(); ++pixel) {
      const std::int64_t column = pixel % w.out[1] * w.strides[1] - w.pad_begin[1];
      const std::int64_t row = pixel / w.out[1] % w.out[0] * w.strides[0] - w.pad_begin[0];
      const float* x = io.input<float>(0) + pixel / w.out_elements() * w.in_elements() * channels;
      for (std::int64_t c = 0; c < channels; c += 8) {
        const std::int64_t width = channels - c;
        __m256 sum = _mm256_setzero_ps();
        for (std::int64_t k = 0; k < w.kernel_elements(); ++k) {
          const std::int64_t h = row + k / w.kernel[1] * w.dilations[0];
          const std::int64_t v = column + k % w.kernel[1] * w.dilations[1];
          if (h < 0 || h >= w.in[0] || v < 0 || v >= w.in[1]) continue;
          sum = _mm256_fmadd_ps(load_some(x + (h * w.in[1] + v) * channels + c, width), load_some(weights + k * channels + c, width), sum);
        }
        if (fused_.has_bias) sum = _mm256_add_ps(sum, load_some(io.input<float>(2) + c, width));
        if (fused_.has_addend) sum = _mm256_add_ps(sum, load_some(io.input<float>(3) + pixel * channels + c, width));
        store_some(io.output<float>(0) + pixel * channels + c, activate(sum, fused_.activation, alpha), width);
      }
    }
  }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 depthwise convolution"; }

 private:
  FusedConv fused_;
  std::shared_ptr<const Tensor> packed_;  // [places, channels]
};

// --- pools ------------------------------------------------------------------------------------------------------------------

enum class Pool : std::uint8_t { max, mean };

class PoolKernel final : public Kernel {
 public:
  PoolKernel(Pool kind, bool padded, Window window, std::int64_t batch, std::int64_t channels)
      : kind_(kind), padded_(padded), window_(std::move(window)), batch_(batch), channels_(channels) {}
  FALAJ_AVX2 void run(const Io& io) const override {
    const Window& w = window_;
    for (std::int64_t pixel = 0; pixel < batch_ * w.out_elements(); ++pixel) {
      const std::int64_t o = pixel % w.out_elements();
      const std::int64_t row = o / w.out[1] * w.strides[0] - w.pad_begin[0];
      const std::int64_t column = o % w.out[1] * w.strides[1] - w.pad_begin[1];
      const float* x = io.input<float>(0) + pixel / w.out_elements() * w.in_elements() * channels_;
      float* y = io.output<float>(0) + pixel * channels_;
      for (std::int64_t c = 0; c < channels_; c += 8) pool(x + c, row, column, o, channels_ - c, y + c);
    }
  }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 pool"; }

 private:
  FALAJ_AVX2 void pool(const float* x, std::int64_t row, std::int64_t column, std::int64_t o, std::int64_t width, float* y) const {
    const Window& w = window_;
    __m256 best = _mm256_set1_ps(-__builtin_inff());
    __m256d low = _mm256_setzero_pd();
    __m256d high = _mm256_setzero_pd();
    std::int64_t count = 0;
    for (std::int64_t k = 0; k < w.kernel[0]; ++k) {
      const std::int64_t h = row + k * w.dilations[0];
      if (h < 0 || h >= w.in[0]) continue;
      for (std::int64_t l = 0; l < w.kernel[1]; ++l) {
        const std::int64_t v = column + l * w.dilations[1];
        if (v < 0 || v >= w.in[1]) continue;
        const __m256 value = load_some(x + (h * w.in[1] + v) * channels_, width);
        ++count;
        if (kind_ == Pool::max) {
          best = _mm256_blendv_ps(_mm256_max_ps(value, best), value, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));  // NaN is the largest
        } else {
          low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(value)));
          high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)));
        }
      }
    }
    if (kind_ == Pool::mean) {
      if (padded_) count = padded_count(w, o);
      const __m256d divisor = _mm256_set1_pd(count == 0 ? 1.0 : static_cast<double>(count));
      best = _mm256_set_m128(_mm256_cvtpd_ps(_mm256_div_pd(high, divisor)), _mm256_cvtpd_ps(_mm256_div_pd(low, divisor)));
    }
    store_some(y, best, width);
  }

  Pool kind_;
  bool padded_;
  Window window_;
  std::int64_t batch_, channels_;
};

Status check(const KernelCall& call) {
  if (!has_avx2()) return refuse("this CPU has no AVX2");
  if (call.in(0).dtype != DType::f32) return refuse(format("only float32, not {}", to_string(call.in(0).dtype)));
  if (call.in(0).shape.rank() != 4) return refuse("only two spatial dimensions");
  return {};
}

}  // namespace

Result<KernelPtr> make_conv(const KernelCall& call) {
  FALAJ_TRY(check(call));
  FALAJ_ASSIGN(auto fused, fused_conv(call));
  const Tensor* weights = call.in(1).constant;
  if (weights == nullptr) return refuse("the weights are not known before the run");
  const ConvSpec& s = fused.conv;
  const bool depthwise = s.groups == s.channels && s.maps == s.channels && s.groups > 1;
  const auto make = [&] {
    if (!depthwise) return pack_weights(*weights, s);
    const std::int64_t places = s.window.kernel_elements();
    Tensor packed(DType::f32, {places, s.channels});
    for (std::int64_t i = 0; i < s.channels * places; ++i)
      packed.mutable_data<float>()[static_cast<std::size_t>(i % places * s.channels + i / places)] =
          weights->data<float>()[static_cast<std::size_t>(i)];
    return packed;
  };
  const bool kept = call.packed != nullptr && !weights->borrowed();
  auto packed = kept ? call.packed->get(*weights, format("channels last/{}", s.groups), make) : std::make_shared<const Tensor>(make());
  if (depthwise) return std::make_unique<DepthwiseKernel>(std::move(fused), std::move(packed));
  return std::make_unique<ConvKernel>(std::move(fused), std::move(packed));
}

Result<KernelPtr> make_pool(const KernelCall& call) {
  FALAJ_TRY(check(call));
  FALAJ_ASSIGN(auto window, channels_last_window(call));
  FALAJ_ASSIGN(const auto padded, attr_int(call.node, "count_include_pad", 0));
  const Pool kind = call.node.op.ends_with("MaxPool") ? Pool::max : Pool::mean;
  for (std::size_t d = 0; padded != 0 && d < 2; ++d) {
    const bool beyond = (window.out[d] - 1) * window.strides[d] + window.extent(d) > window.in[d] + window.pad_begin[d] + window.pad_end[d];
    if (beyond && window.dilations[d] > 1) return refuse("count_include_pad where a window reaches beyond the padding");
  }
  return std::make_unique<PoolKernel>(kind, padded != 0 && kind == Pool::mean, std::move(window), call.in(0).shape[0],
                                      call.in(0).shape.back());
}

}  // namespace falaj::kernels::cpu
