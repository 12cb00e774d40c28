// ai.falaj's Conv on [N, H, W, C] with weights known before the run, and pools alike, for AVX2 and AVX-512.
//
// A convolution is a sum of products over (kernel place, channel), computed by the tiles of conv_tiles.hpp; each pixel has a pointer to
// the input channels that meet a kernel place, those outside the image to zeros. Every sum is one chain in the order of the weights,
// whatever tile a pixel falls in: bits do not depend on the batch.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/conv_kernels.hpp"
#include "kernels/cpu/conv_tiles.hpp"
#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/windows.hpp"
#include "kernels/ops/channels_last.hpp"
#include "kernels/parallel.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kBlockPixels = 72;  // in tiles that share one pass over the weights
constexpr std::int64_t kFewChannels = 4;   // a row of kernel places is then one run of numbers, for which the image is padded first

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx2 convolution: {}", why)}; }

class ConvKernel final : public Kernel {
 public:
  ConvKernel(FusedConv fused, std::shared_ptr<const Tensor> packed, std::size_t threads)
      : fused_(std::move(fused)),
        packed_(std::move(packed)),
        slots_(is_small(fused_) ? 1 : static_cast<std::int64_t>(threads)),
        rows_run_(runs_along_rows(fused_.conv)),
        inside_(rows_run_ || never_outside(fused_.conv.window)),
        unit_(fused_.pooled ? 4 : 1),
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
    for (std::int64_t g = 0; g < s.groups; ++g) {
      for (const std::int64_t offset : offsets_) group_offsets_.push_back(g * (s.channels / s.groups) + (inside_ ? offset : 0));
    }
  }

  // With few channels, places that are neighbours in a row are neighbours in memory.
  static bool runs_along_rows(const ConvSpec& s) { return s.groups == 1 && s.channels <= kFewChannels && s.window.dilations[1] == 1; }

  static bool is_small(const FusedConv& fused) {
    const ConvSpec& s = fused.conv;
    return s.batch * s.window.out_elements() * s.window.kernel_elements() * s.channels / s.groups * s.maps < kSharedWork;
  }

  static bool never_outside(const Window& w) {
    for (std::size_t d = 0; d < 2; ++d) {
      if (w.pad_begin[d] > 0 || (w.out[d] - 1) * w.strides[d] + w.extent(d) > w.in[d]) return false;
    }
    return true;
  }

  void run(const Io& io) const override {
    const ConvSpec& s = fused_.conv;
    const std::int64_t images = rows_run_ ? 1 : s.batch;  // in one go
    const std::int64_t out = fused_.out(0) * fused_.out(1) * unit_;
    const std::int64_t of_tile = loops_.pixels / unit_ * unit_;
    for (std::int64_t n = 0; n < s.batch; n += images) {
      const float* x = io.input<float>(0) + n * s.window.in_elements() * s.channels;
      if (rows_run_) x = pad(x, reinterpret_cast<float*>(io.scratch));
      const std::int64_t pixels = images * out;
      const std::int64_t tiles = (pixels + of_tile - 1) / of_tile;
      const std::int64_t blocks = blocks_of(tiles);
      in_slots(io, blocks, slots_, [&](std::int64_t b, std::int64_t slot) {
        run_block(io, slot, x, n * out, pixels, tiles, first_of(b, blocks, tiles), first_of(b + 1, blocks, tiles));
      });
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return pad_bytes() + static_cast<std::size_t>(slots_ * kBlockPixels * places_) * sizeof(float*);
  }
  [[nodiscard]] std::string_view implementation() const override {
    return loops_.panels_max == 2 ? "avx512 convolution, packed weights" : "avx2 convolution, packed weights";
  }

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
    const std::int64_t side = fused_.pooled ? 2 : 1;
    const std::int64_t unit = pixel / unit_;
    const std::int64_t row = unit / fused_.out(1);
    return {row / fused_.out(0), row % fused_.out(0) * side, unit % fused_.out(1) * side};
  }
  // To the next one in the order of tiles: the two by two that are pooled follow one another.
  void advance(Pixel& pixel) const {
    const std::int64_t side = fused_.pooled ? 2 : 1;
    if (fused_.pooled && pixel.column % 2 == 0) {
      ++pixel.column;
      return;
    }
    if (fused_.pooled && pixel.row % 2 == 0) {
      ++pixel.row;
      --pixel.column;
      return;
    }
    pixel.row -= side - 1;
    if (++pixel.column < side * fused_.out(1)) return;
    pixel.column = 0;
    pixel.row += side;
    if (pixel.row < side * fused_.out(0)) return;
    pixel.row = 0;
    ++pixel.image;
  }
  // The first pixel of tile t.
  [[nodiscard]] std::int64_t first_pixel(std::int64_t t, std::int64_t tiles, std::int64_t pixels) const {
    return first_of(t, tiles, pixels / unit_) * unit_;
  }

  // Where every place lies in the image: the first place of neighbouring pixels.
  void point_all(const float* x, std::int64_t first, std::int64_t count, const float** to) const {
    const Window& w = fused_.conv.window;
    const std::int64_t step = w.strides[1] * fused_.conv.channels;
    const std::int64_t row = w.strides[0] * (rows_run_ ? padded_[1] : w.in[1]) * fused_.conv.channels;
    const std::int64_t image = w.in_elements() * fused_.conv.channels;
    for (Pixel at = pixel_at(first); count > 0;) {
      if (fused_.pooled) {
        *to++ = x + at.image * image + at.row * row + at.column * step;
        --count;
        advance(at);
        continue;
      }
      const std::int64_t run = std::min(count, w.out[1] - at.column);
      const float* from = x + at.image * image + at.row * row + at.column * step;
      for (std::int64_t i = 0; i < run; ++i) to[i] = from + i * step;
      to += run;
      count -= run;
      at.column += run - 1;
      advance(at);
    }
  }

  // Pointers of one pixel, as far apart as a tile has pixels.
  void point(const float* x, const Pixel& pixel, const float** to) const {
    const Window& w = fused_.conv.window;
    const std::int64_t step = loops_.pixels;
    const std::int64_t channels = fused_.conv.channels;
    const std::int64_t row = pixel.row * w.strides[0];
    const std::int64_t column = pixel.column * w.strides[1];
    x += pixel.image * w.in[0] * w.in[1] * channels;
    const std::int64_t top = row - w.pad_begin[0];
    const std::int64_t left = column - w.pad_begin[1];
    if (top >= 0 && left >= 0 && top + w.extent(0) <= w.in[0] && left + w.extent(1) <= w.in[1]) {  // nothing of it in the padding
      x += (top * w.in[1] + left) * channels;
      for (const std::int64_t offset : offsets_) {
        *to = x + offset;
        to += step;
      }
      return;
    }
    for (std::int64_t k = 0; k < w.kernel[0]; ++k) {
      const std::int64_t h = row - w.pad_begin[0] + k * w.dilations[0];
      for (std::int64_t l = 0; l < w.kernel[1]; ++l, to += step) {
        const std::int64_t v = column - w.pad_begin[1] + l * w.dilations[1];
        const bool inside = h >= 0 && h < w.in[0] && v >= 0 && v < w.in[1];
        *to = inside ? x + (h * w.in[1] + v) * channels : zeros_.data();
      }
    }
  }

  [[nodiscard]] std::int64_t blocks_of(std::int64_t tiles) const { return (tiles * loops_.pixels + kBlockPixels - 1) / kBlockPixels; }

  void run_block(const Io& io, std::int64_t slot, const float* x, std::int64_t done, std::int64_t pixels, std::int64_t tiles,
                 std::int64_t first, std::int64_t end) const {
    const ConvSpec& s = fused_.conv;
    const auto** places = reinterpret_cast<const float**>(io.scratch + pad_bytes()) + slot * kBlockPixels * places_;
    const std::int64_t begin = first_pixel(first, tiles, pixels);
    if (inside_) point_all(x, begin, first_pixel(end, tiles, pixels) - begin, places);
    Pixel pixel = pixel_at(begin);
    for (std::int64_t t = first; t < end && !inside_; ++t) {
      const std::int64_t from = first_pixel(t, tiles, pixels);
      const std::int64_t to = first_pixel(t + 1, tiles, pixels);
      for (std::int64_t p = from; p < to; ++p, advance(pixel)) point(x, pixel, places + (t - first) * loops_.pixels * places_ + (p - from));
    }
    const std::int64_t share = s.maps / s.groups;
    const std::int64_t panel = places_ * depth_ * kMaps;
    const auto* w = static_cast<const float*>(packed_->raw());
    for (std::int64_t m = 0; m < s.maps;) {
      const std::int64_t group = m / share;
      const std::int64_t left = (group + 1) * share - m;
      const std::int64_t panels = left > kMaps ? loops_.panels_max : 1;
      const std::int64_t width = std::min(panels * kMaps, left);
      for (std::int64_t t = first; t < end; ++t) {
        const std::int64_t from = first_pixel(t, tiles, pixels);
        const std::int64_t count = first_pixel(t + 1, tiles, pixels) - from;
        const std::int64_t at = (done + from) / unit_ * s.maps + m;
        const bool more = t - first < panels && m + width + (t - first) * kMaps < s.maps;  // the first tiles fetch the next panels
        const ConvInput in{.places = places + (inside_ ? from - begin : (t - first) * loops_.pixels * places_),
                           .place_step = inside_ ? 0 : loops_.pixels,
                           .offsets = group_offsets_.data() + group * places_,
                           .count = places_,
                           .depth = depth_,
                           .w = w,
                           .panel_stride = panel,
                           .ahead = w + (more ? panels + t - first : 0) * panel};
        const ConvTarget target{io.output<float>(0) + at,
                                fused_.has_addend ? io.input<float>(3) + at : nullptr,
                                fused_.has_bias ? io.input<float>(2) + m : nullptr,
                                s.maps,
                                width,
                                fused_.activation,
                                static_cast<float>(fused_.activation_alpha)};
        (fused_.pooled ? loops_.pooled[panels - 1][count / unit_] : loops_.tiles[panels - 1][count])(in, target);
      }
      w += panels * panel;
      m += width;
    }
  }

  const ConvLoops& loops_ = conv_loops();
  FusedConv fused_;
  std::shared_ptr<const Tensor> packed_;
  std::int64_t slots_;
  bool rows_run_;
  bool inside_;        // one pointer for each pixel does
  std::int64_t unit_;  // pixels that must be of one tile
  std::vector<float> zeros_;
  std::int64_t depth_ = 0, places_ = 0;
  std::int64_t padded_[2] = {0, 0};
  std::vector<std::int64_t> offsets_;        // of the kernel places that pointers are for, from the first one
  std::vector<std::int64_t> group_offsets_;  // for each group and place: from the pixel's pointer
};

// [M, depth, places] -> for each panel of kMaps maps of a group: [places, depth, kMaps], zeros for maps that do not exist.
Tensor pack_weights(const Tensor& weights, const ConvSpec& s) {
  const std::int64_t share = s.maps / s.groups;
  const std::int64_t depth = s.channels / s.groups;
  const std::int64_t places = s.window.kernel_elements();
  const std::int64_t panels = s.groups * ((share + kMaps - 1) / kMaps);
  Tensor packed = Tensor::uninitialised(DType::f32, {panels * places * depth * kMaps});
  float* to = packed.mutable_data<float>().data();
  const float* from = weights.data<float>().data();
  for (std::int64_t m = 0; m < s.maps; to += places * depth * kMaps) {
    const std::int64_t width = std::min(kMaps, (m / share + 1) * share - m);
    if (width < kMaps) std::fill_n(to, places * depth * kMaps, 0.0F);
    // What lies together is read together: a line of sixteen maps is complete before the next ones are begun.
    for (std::int64_t c = 0; c < depth; ++c) {
      for (std::int64_t i = 0; i < width; ++i) {
        const float* w = from + ((m + i) * depth + c) * places;
        for (std::int64_t p = 0; p < places; ++p) to[(p * depth + c) * kMaps + i] = w[p];
      }
    }
    m += width;
  }
  return packed;
}

// A 3 x 3 kernel at stride 1 over one channel, as over the pixels of a picture in grey: a panel's weights stay in registers along a row.
class OneChannelKernel final : public Kernel {
 public:
  OneChannelKernel(FusedConv fused, std::shared_ptr<const Tensor> packed)
      : fused_(std::move(fused)),
        packed_(std::move(packed)),
        name_(format("{} convolution of one channel, packed weights", loops_.name)),
        height_(fused_.conv.window.out[0] + 2),
        width_(fused_.conv.window.out[1] + 2) {}

  static bool fits(const FusedConv& fused) {
    const Window& w = fused.conv.window;
    for (std::size_t d = 0; d < 2; ++d) {
      if (w.kernel[d] != 3 || w.strides[d] != 1 || w.dilations[d] != 1 || w.pad_begin[d] + w.in[d] > w.out[d] + 2) return false;
    }
    return fused.conv.channels == 1 && !fused.has_addend && (fused.activation == Activation::none || fused.activation == Activation::relu);
  }

  void run(const Io& io) const override {
    const ConvSpec& s = fused_.conv;
    auto* padded = reinterpret_cast<float*>(io.scratch);
    std::fill_n(padded, height_ * width_, 0.0F);
    const auto* w = static_cast<const float*>(packed_->raw());
    const std::int64_t side = fused_.pooled ? 2 : 1;
    const std::int64_t row = fused_.out(1) * s.maps;
    float* y = io.output<float>(0);
    for (std::int64_t n = 0; n < s.batch; ++n) {
      fill(io.input<float>(0) + n * s.window.in_elements(), padded);
      for (std::int64_t r = 0; r < fused_.out(0); ++r, y += row) {
        for (std::int64_t m = 0; m < s.maps; m += kMaps) {
          const ConvTarget target{y + m, nullptr, fused_.has_bias ? io.input<float>(2) + m : nullptr, s.maps, s.maps - m, fused_.activation,
                                  0.0F};
          const OneChannelRun run{padded + r * side * width_, width_, w + m * 9, fused_.out(1)};
          (fused_.pooled ? loops_.one_channel_pooled : loops_.one_channel)(run, target);
        }
      }
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return static_cast<std::size_t>(height_ * width_) * sizeof(float); }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  // The image into its place; the padding around stays zeros.
  void fill(const float* x, float* padded) const {
    const Window& w = fused_.conv.window;
    for (std::int64_t h = 0; h < w.in[0]; ++h)
      std::copy_n(x + h * w.in[1], w.in[1], padded + (h + w.pad_begin[0]) * width_ + w.pad_begin[1]);
  }

  const ConvLoops& loops_ = conv_loops();
  FusedConv fused_;
  std::shared_ptr<const Tensor> packed_;
  std::string name_;
  std::int64_t height_, width_;  // with the padding
};

// --- pools ------------------------------------------------------------------------------------------------------------------

enum class Pool : std::uint8_t { max, mean };

class PoolKernel final : public Kernel {
 public:
  PoolKernel(Pool kind, bool padded, Window window, std::int64_t batch, std::int64_t channels)
      : kind_(kind),
        padded_(padded),
        window_(std::move(window)),
        batch_(batch),
        channels_(channels),
        rows_(all_meets(window_, 0)),
        columns_(all_meets(window_, 1)) {}
  void run(const Io& io) const override {
    const Window& w = window_;
    const auto* x = io.input<float>(0);
    auto* y = io.output<float>(0);
    for (std::int64_t n = 0; n < batch_; ++n, x += w.in_elements() * channels_) {
      for (std::size_t row = 0; row < rows_.size(); ++row) {
        for (std::size_t column = 0; column < columns_.size();) {
          // Neighbours whose windows are whole go together.
          std::size_t end = column + 1;
          while (columns_[column].count == w.kernel[1] && end < columns_.size() && columns_[end].count == w.kernel[1]) ++end;
          PoolRun part{x + (rows_[row].first * w.in[1] + columns_[column].first) * channels_,
                       rows_[row].count,
                       columns_[column].count,
                       w.dilations[0] * w.in[1] * channels_,
                       w.dilations[1] * channels_,
                       channels_,
                       static_cast<std::int64_t>(end - column),
                       w.strides[1] * channels_};
          if (kind_ == Pool::max) {
            loops_.max(part, y);
          } else {
            mean(part, static_cast<std::int64_t>(row * columns_.size() + column), y);
          }
          y += part.pixels * channels_;
          column = end;
        }
      }
    }
  }
  [[nodiscard]] std::string_view implementation() const override {
    return kind_ == Pool::max && loops_.panels_max == 2 ? "avx512 pool" : "avx2 pool";
  }

 private:
  // Sums in f64; o is the first pixel's number.
  FALAJ_AVX2 void mean(const PoolRun& part, std::int64_t o, float* y) const {
    for (std::int64_t p = 0; p < part.pixels; ++p, y += channels_) {
      std::int64_t count = padded_ ? padded_count(window_, o + p) : part.rows * part.columns;
      const __m256d divisor = _mm256_set1_pd(count == 0 ? 1.0 : static_cast<double>(count));
      for (std::int64_t c = 0; c < channels_; c += 8) {
        __m256d low = _mm256_setzero_pd();
        __m256d high = _mm256_setzero_pd();
        for (std::int64_t k = 0; k < part.rows; ++k) {
          const float* at = part.x + p * part.pixel_step + k * part.row_step + c;
          for (std::int64_t l = 0; l < part.columns; ++l, at += part.column_step) {
            const __m256 value = load(__m256{}, at, channels_ - c);
            low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(value)));
            high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)));
          }
        }
        store(y + c, _mm256_set_m128(_mm256_cvtpd_ps(_mm256_div_pd(high, divisor)), _mm256_cvtpd_ps(_mm256_div_pd(low, divisor))),
              channels_ - c);
      }
    }
  }

  const ConvLoops& loops_ = conv_loops();
  Pool kind_;
  bool padded_;
  Window window_;
  std::int64_t batch_, channels_;
  std::vector<Meet> rows_, columns_;
};

// The rows and columns of a kernel that meet the image at all: of a wide dilation over a small image, few do.
struct Met {
  std::int64_t first[2] = {0, 0}, count[2] = {0, 0};
};
Met places_met(const Window& w) {
  Met met;
  for (std::size_t d = 0; d < 2; ++d) {
    std::int64_t first = w.kernel[d] - 1;
    std::int64_t end = 1;
    for (const Meet& meet : all_meets(w, d)) {
      if (meet.count == 0) continue;
      first = std::min(first, meet.place);
      end = std::max(end, meet.place + meet.count);
    }
    // What is left begins in the padding, or where the image does.
    met.first[d] = std::max<std::int64_t>(std::min({first, end - 1, w.pad_begin[d] / w.dilations[d]}), 0);
    met.count[d] = end - met.first[d];
  }
  return met;
}

Tensor cut_kernel(const Tensor& weights, const Met& met) {
  const Shape& from = weights.shape();
  Tensor cut(DType::f32, {from[0], from[1], met.count[0], met.count[1]});
  float* to = cut.mutable_data<float>().data();
  const float* at = weights.data<float>().data() + met.first[0] * from[3] + met.first[1];
  for (std::int64_t i = 0; i < from[0] * from[1]; ++i, at += from[2] * from[3]) {
    for (std::int64_t k = 0; k < met.count[0]; ++k, to += met.count[1]) std::copy_n(at + k * from[3], met.count[1], to);
  }
  return cut;
}
void cut_window(const Met& met, Window& w) {
  for (std::size_t d = 0; d < 2; ++d) {
    w.kernel[d] = met.count[d];
    w.pad_begin[d] -= met.first[d] * w.dilations[d];
    w.pad_end[d] = std::max<std::int64_t>((w.out[d] - 1) * w.strides[d] + w.extent(d) - w.in[d] - w.pad_begin[d], 0);
  }
}

Status check(const KernelCall& call) {
  FALAJ_TRY(check_f32(call, "avx2 convolution"));
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
  const Met met = places_met(s.window);
  const bool whole = depthwise || (met.count[0] == s.window.kernel[0] && met.count[1] == s.window.kernel[1]);
  if (!whole) cut_window(met, fused.conv.window);
  const auto make = [&] {
    if (depthwise) return pack_depthwise(*weights, s);
    return whole ? pack_weights(*weights, s) : pack_weights(cut_kernel(*weights, met), s);
  };
  const bool kept = call.packed != nullptr && !weights->borrowed();
  const std::string places = whole ? "" : format("/{}+{}/{}+{}", met.first[0], met.count[0], met.first[1], met.count[1]);
  auto packed =
      kept ? call.packed->get(*weights, format("channels last/{}{}", s.groups, places), make) : std::make_shared<const Tensor>(make());
  if (depthwise && fused.pooled) return refuse("a depthwise convolution is not pooled");
  if (OneChannelKernel::fits(fused)) return std::make_unique<OneChannelKernel>(std::move(fused), std::move(packed));
  if (depthwise) return make_depthwise(std::move(fused), std::move(packed));
  return std::make_unique<ConvKernel>(std::move(fused), std::move(packed), call.threads);
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
