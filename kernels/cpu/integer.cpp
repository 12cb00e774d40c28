// ai.falaj's QMatMul and QConv by the tiles of integer.hpp, and QConv of one map for each channel by a loop of its own.
//
// A convolution's images are copied with their padding (whose bytes are the zero point) where they have any: then every pixel reads its
// kernel places at the same offsets, and those that are neighbours in a row are one run of bytes.
#include "kernels/cpu/integer.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/integer_finish.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/plane.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kBlockRows = 192;  // rows of tiles that share one pass over the weights
constexpr std::int64_t kTogether = 192;   // pixels of small images that are worth a pass over the weights
constexpr std::int64_t kSlack = 64;       // bytes beyond the last one that may be read

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("integers: {}", why)}; }

std::size_t aligned(std::int64_t bytes) { return static_cast<std::size_t>((bytes + 63) / 64 * 64); }

class IntegerMatMul final : public Kernel {
 public:
  IntegerMatMul(const IntegerProduct& spec, IntegerColumns columns)
      : spec_(spec), columns_(std::move(columns)), stride_((spec.k + 3) / 4 * 4), name_(format("{}, packed weights", columns_.name())) {}

  void run(const Io& io) const override {
    const auto* x = io.input<std::uint8_t>(0);
    const std::int64_t block = std::min(kBlockRows, spec_.m);
    const auto** rows = reinterpret_cast<const std::uint8_t**>(io.scratch);
    auto* copies = reinterpret_cast<std::uint8_t*>(io.scratch + pointer_bytes());
    for (std::int64_t first = 0; first < spec_.m; first += block) {
      const std::int64_t count = std::min(block, spec_.m - first);
      for (std::int64_t i = 0; i < count; ++i) {
        rows[i] = x + (first + i) * spec_.k;
        if (stride_ == spec_.k) continue;
        std::memcpy(copies + i * stride_, rows[i], static_cast<std::size_t>(spec_.k));  // so that whole fours can be read
        rows[i] = copies + i * stride_;
      }
      const std::int64_t at = first * spec_.n;
      columns_.run(rows, count, io.output<std::byte>(0) + at * (spec_.end.to_u8 ? 1 : static_cast<std::int64_t>(sizeof(float))),
                   spec_.end.has_addend ? io.input<std::uint8_t>(4) + at : nullptr);
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return pointer_bytes() + (stride_ == spec_.k ? 0 : aligned(std::min(kBlockRows, spec_.m) * stride_));
  }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  [[nodiscard]] std::size_t pointer_bytes() const {
    return aligned(std::min(kBlockRows, spec_.m) * static_cast<std::int64_t>(sizeof(void*)));
  }
  IntegerProduct spec_;
  IntegerColumns columns_;
  std::int64_t stride_;
  std::string name_;
};

// --- convolutions --------------------------------------------------------------------------------------------------------------

void copy_padded(const ConvSpec& s, const Plane& plane, std::int32_t x_zero, const std::uint8_t* x, std::uint8_t* to) {
  const Window& w = s.window;
  const std::int64_t row = plane.width * s.channels;
  const std::int64_t kept = w.in[1] * s.channels;
  const std::int64_t left = w.pad_begin[1] * s.channels;
  const auto fill = [&](std::uint8_t* from, std::int64_t count) {
    if (count > 0) std::memset(from, x_zero, static_cast<std::size_t>(count));
  };
  for (std::int64_t h = 0; h < plane.height; ++h, to += row) {
    const std::int64_t from = h - w.pad_begin[0];
    if (from < 0 || from >= w.in[0]) {
      fill(to, row);
      continue;
    }
    fill(to, left);
    std::memcpy(to + left, x + from * kept, static_cast<std::size_t>(kept));
    fill(to + left + kept, row - left - kept);
  }
}

class IntegerConvKernel final : public Kernel {
 public:
  IntegerConvKernel(const IntegerConv& spec, const Plane& plane, IntegerColumns columns)
      : spec_(spec), plane_(plane), columns_(std::move(columns)), name_(format("{} convolution, packed weights", columns_.name())) {
    const std::int64_t out = std::max<std::int64_t>(spec.conv.window.out_elements(), 1);
    images_ = plane.copied ? std::clamp<std::int64_t>(kTogether / out, 1, std::max<std::int64_t>(spec.conv.batch, 1)) : spec.conv.batch;
  }

  void run(const Io& io) const override {
    const ConvSpec& s = spec_.conv;
    const Window& w = s.window;
    const std::int64_t in = w.in_elements() * s.channels;
    const std::int64_t image = plane_.elements(s.channels);
    const std::int64_t size = spec_.end.to_u8 ? 1 : static_cast<std::int64_t>(sizeof(float));
    const auto** rows = reinterpret_cast<const std::uint8_t**>(io.scratch);
    for (std::int64_t n = 0; n < s.batch; n += images_) {
      const std::int64_t images = std::min(images_, s.batch - n);
      const auto* x = io.input<std::uint8_t>(0) + n * in;
      if (plane_.copied) {
        auto* copies = reinterpret_cast<std::uint8_t*>(io.scratch + pointer_bytes());
        for (std::int64_t i = 0; i < images; ++i) copy_padded(s, plane_, spec_.x_zero, x + i * in, copies + i * image);
        x = copies;
      }
      const std::int64_t pixels = images * w.out_elements();
      std::int64_t column = 0;
      std::int64_t row = 0;
      for (std::int64_t first = 0; first < pixels; first += kBlockRows) {
        const std::int64_t count = std::min(kBlockRows, pixels - first);
        for (std::int64_t p = 0; p < count; ++p) {
          rows[p] = x + (row * w.strides[0] * plane_.width + column * w.strides[1]) * s.channels;
          if (++column < w.out[1]) continue;
          column = 0;
          if (++row < w.out[0]) continue;
          row = 0;
          x += image;
        }
        const std::int64_t at = (n * w.out_elements() + first) * s.maps;
        columns_.run(rows, count, io.output<std::byte>(0) + at * size, spec_.end.has_addend ? io.input<std::uint8_t>(4) + at : nullptr);
      }
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return pointer_bytes() + (plane_.copied ? aligned(images_ * plane_.elements(spec_.conv.channels) + kSlack) : 0);
  }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  static std::size_t pointer_bytes() { return aligned(kBlockRows * static_cast<std::int64_t>(sizeof(void*))); }
  IntegerConv spec_;
  Plane plane_;
  IntegerColumns columns_;
  std::int64_t images_ = 1;
  std::string name_;
};

// One map for each channel.
class IntegerDepthwise final : public Kernel {
 public:
  IntegerDepthwise(const IntegerConv& spec, const Plane& plane, const Tensor& weights, const float* multiplier, const float* offset)
      : spec_(spec), plane_(plane), padded_((spec.conv.channels + 15) / 16 * 16) {
    const std::int64_t places = spec.conv.window.kernel_elements();
    const auto size = static_cast<std::size_t>(padded_);
    weights_.resize(size * static_cast<std::size_t>(places));
    start_.resize(size);
    multiplier_.resize(size);
    offset_.resize(size);
    const auto* from = weights.data<std::int8_t>().data();
    for (std::int64_t c = 0; c < spec.conv.channels; ++c) {
      const auto at = static_cast<std::size_t>(c);
      for (std::int64_t p = 0; p < places; ++p) {
        weights_[static_cast<std::size_t>(p * padded_ + c)] = from[c * places + p];
        start_[at] -= spec.x_zero * from[c * places + p];
      }
      multiplier_[at] = multiplier[c];
      offset_[at] = offset[c];
    }
  }
  FALAJ_AVX2 void run(const Io& io) const override {
    const ConvSpec& s = spec_.conv;
    const Window& w = s.window;
    auto* copy = reinterpret_cast<std::uint8_t*>(io.scratch);
    for (std::int64_t n = 0; n < s.batch; ++n) {
      copy_padded(s, plane_, spec_.x_zero, io.input<std::uint8_t>(0) + n * w.in_elements() * s.channels, copy);
      for (std::int64_t pixel = 0; pixel < w.out_elements(); ++pixel) {
        const auto* x = copy + (pixel / w.out[1] * w.strides[0] * plane_.width + pixel % w.out[1] * w.strides[1]) * s.channels;
        run_pixel(io, x, (n * w.out_elements() + pixel) * s.channels);
      }
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override { return aligned(plane_.elements(spec_.conv.channels) + kSlack); }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 integer depthwise convolution"; }

 private:
  FALAJ_AVX2 void run_pixel(const Io& io, const std::uint8_t* x, std::int64_t at) const {
    const ConvSpec& s = spec_.conv;
    const Window& w = s.window;
    for (std::int64_t c = 0; c < s.channels; c += 16) {
      __m256i low = _mm256_setzero_si256();
      __m256i high = _mm256_setzero_si256();
      const std::int8_t* weights = weights_.data() + c;
      for (std::int64_t k = 0; k < w.kernel[0]; ++k) {
        for (std::int64_t l = 0; l < w.kernel[1]; ++l, weights += padded_) {
          const auto* from = x + (k * w.dilations[0] * plane_.width + l * w.dilations[1]) * s.channels + c;
          const __m256i value = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
          const __m256i weight = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
          const __m256i product = _mm256_mullo_epi16(value, weight);  // 255 * 128 fits 16 bits
          low = _mm256_add_epi32(low, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(product)));
          high = _mm256_add_epi32(high, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(product, 1)));
        }
      }
      alignas(32) std::int32_t sums[16];
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums), low);
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums + 8), high);
      const std::size_t size = spec_.end.to_u8 ? 1 : sizeof(float);
      const IntegerTarget target{start_.data() + c,
                                 multiplier_.data() + c,
                                 offset_.data() + c,
                                 io.output<std::byte>(0) + static_cast<std::size_t>(at + c) * size,
                                 spec_.end.has_addend ? io.input<std::uint8_t>(4) + at + c : nullptr,
                                 0,
                                 std::min<std::int64_t>(s.channels - c, 16),
                                 &spec_.end};
      finish_integers(sums, 1, 16, target);
    }
  }
  IntegerConv spec_;
  Plane plane_;
  std::int64_t padded_;
  std::vector<std::int8_t> weights_;  // [places, padded_]
  std::vector<std::int32_t> start_;
  std::vector<float> multiplier_, offset_;
};

Status check(const KernelCall& call) {
  if (integer_isa() == IntegerIsa::none) return refuse("this CPU has no AVX2");
  if (call.in(1).constant == nullptr || call.in(2).constant == nullptr || call.in(3).constant == nullptr)
    return refuse("the weights or their scales are not known before the run");
  if (call.outputs[0].shape.elements() == 0) return refuse("nothing to compute");
  return {};
}

template <class Make>
std::shared_ptr<const Tensor> packed_form(const KernelCall& call, const std::string& layout, Make make) {
  const Tensor& weights = *call.in(1).constant;
  if (call.packed != nullptr && !weights.borrowed()) return call.packed->get(weights, layout, make);
  return std::make_shared<const Tensor>(make());
}

}  // namespace

Result<KernelPtr> make_integer_matmul(const KernelCall& call) {
  FALAJ_TRY(check(call));
  FALAJ_ASSIGN(const auto spec, integer_product(call));
  const auto* w = call.in(1).constant->data<std::int8_t>().data();
  auto packed = packed_form(call, format("integers/{}/{}", spec.w_row, spec.w_col), [&] {
    return IntegerColumns::pack(spec.n, 1, 1, spec.k,
                                [&](std::int64_t n, std::int64_t, std::int64_t k) { return w[k * spec.w_row + n * spec.w_col]; });
  });
  IntegerColumns columns(std::move(packed), spec.n, 1, {0}, spec.k, spec.x_zero, call.in(2).constant->data<float>().data(),
                         call.in(3).constant->data<float>().data(), spec.end);
  return std::make_unique<IntegerMatMul>(spec, std::move(columns));
}

Result<KernelPtr> make_integer_conv(const KernelCall& call) {
  FALAJ_TRY(check(call));
  FALAJ_ASSIGN(const auto spec, integer_conv(call));
  const ConvSpec& s = spec.conv;
  const Tensor& weights = *call.in(1).constant;
  const float* multiplier = call.in(2).constant->data<float>().data();
  const float* offset = call.in(3).constant->data<float>().data();
  if (s.groups == s.channels && s.maps == s.channels && s.groups > 1)
    return std::make_unique<IntegerDepthwise>(spec, plane_of(s, 0, 4, true), weights, multiplier, offset);
  const bool along = runs_along_rows(s);
  const std::int64_t width = s.window.kernel[1];
  const std::int64_t each = s.channels / s.groups;
  const std::int64_t depth = each * (along ? width : 1);
  const std::int64_t places = s.window.kernel[0] * (along ? 1 : width);
  const Plane plane = plane_of(s, depth, 4, false);
  const auto* w = weights.data<std::int8_t>().data();
  auto packed = packed_form(call, format("integers/{}/{}", s.groups, along), [&] {
    return IntegerColumns::pack(s.maps, s.groups, places, depth, [&](std::int64_t m, std::int64_t p, std::int64_t d) {
      const std::int64_t place = along ? p * width + d / each : p;
      return w[(m * each + d % each) * places * (along ? width : 1) + place];
    });
  });
  // Groups begin each(channels) apart in a pixel.
  IntegerColumns columns(std::move(packed), s.maps, s.groups, place_offsets(s, plane, 1), depth, spec.x_zero, multiplier, offset, spec.end);
  return std::make_unique<IntegerConvKernel>(spec, plane, std::move(columns));
}

}  // namespace falaj::kernels::cpu
