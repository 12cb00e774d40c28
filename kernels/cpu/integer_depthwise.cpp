// ai.falaj's QConv where each channel has a map of its own: sixteen channels at a time, over a copy of the image with its padding. By AVX2
// place by place; by AVX512-VNNI two places at a time, as pairs of 16 bits, for a few pixels that share the weights. The sums are whole
// numbers, and the same.
#include <algorithm>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/integer.hpp"
#include "kernels/cpu/integer_finish.hpp"
#include "kernels/cpu/integer_kernels.hpp"
#include "kernels/parallel.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kChannels = 16;  // at a time

class IntegerDepthwise final : public Kernel {
 public:
  IntegerDepthwise(const IntegerConv& spec, const Tensor& weights, const float* multiplier, const float* offset)
      : spec_(spec),
        plane_(plane_of(spec.conv, 0, 4, true)),
        vnni_(integer_isa() >= IntegerIsa::avx512_vnni),
        padded_((spec.conv.channels + kChannels - 1) / kChannels * kChannels) {
    const Window& w = spec.conv.window;
    const std::int64_t channels = spec.conv.channels;
    const std::int64_t places = w.kernel_elements();
    const auto size = static_cast<std::size_t>(padded_);
    for (std::int64_t p = 0; p < places; ++p)
      offsets_.push_back((p / w.kernel[1] * w.dilations[0] * plane_.width + p % w.kernel[1] * w.dilations[1]) * channels);
    if (places % 2 != 0) offsets_.push_back(offsets_.back());  // of the last pair; its weights are zeros
    weights_.resize(size * offsets_.size());
    pairs_.resize(weights_.size());
    start_.resize(size);
    multiplier_.resize(size);
    offset_.resize(size);
    const auto* from = weights.data<std::int8_t>().data();
    for (std::int64_t c = 0; c < channels; ++c) {
      const auto at = static_cast<std::size_t>(c);
      for (std::int64_t p = 0; p < places; ++p) {
        const std::int8_t weight = from[c * places + p];
        weights_[static_cast<std::size_t>(p * padded_ + c)] = weight;
        pairs_[static_cast<std::size_t>((p / 2 * padded_ + c) * 2 + p % 2)] = weight;
        start_[at] -= spec.x_zero * weight;
      }
      multiplier_[at] = multiplier[c];
      offset_[at] = offset[c];
    }
  }

  void run(const Io& io) const override {
    const ConvSpec& s = spec_.conv;
    const Window& w = s.window;
    auto* copy = reinterpret_cast<std::uint8_t*>(io.scratch);
    for (std::int64_t n = 0; n < s.batch; ++n) {
      copy_padded(s, plane_, spec_.x_zero, io.input<std::uint8_t>(0) + n * w.in_elements() * s.channels, copy);
      in_ranges(io, w.out[0], part_rows(w.out[1] * s.channels), [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row) {
          const auto* x = copy + row * w.strides[0] * plane_.width * s.channels;
          const std::int64_t at = (n * w.out[0] + row) * w.out[1] * s.channels;
          vnni_ ? row_vnni(io, x, at) : row_avx2(io, x, at);
        }
      });
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return static_cast<std::size_t>((plane_.elements(spec_.conv.channels) + kIntegerSlack + 63) / 64 * 64);
  }
  [[nodiscard]] std::string_view implementation() const override {
    return vnni_ ? "avx512-vnni integer depthwise convolution" : "avx2 integer depthwise convolution";
  }

 private:
  [[nodiscard]] IntegerTarget target(const Io& io, std::int64_t at, std::int64_t c) const {
    const std::size_t size = spec_.end.to_u8 ? 1 : sizeof(float);
    return {start_.data() + c,
            multiplier_.data() + c,
            offset_.data() + c,
            io.output<std::byte>(0) + static_cast<std::size_t>(at + c) * size,
            spec_.end.has_addend ? io.input<std::uint8_t>(4) + at + c : nullptr,
            spec_.conv.channels,
            std::min<std::int64_t>(spec_.conv.channels - c, kChannels),
            &spec_.end};
  }

  FALAJ_AVX2 void row_avx2(const Io& io, const std::uint8_t* x, std::int64_t at) const {
    const ConvSpec& s = spec_.conv;
    for (std::int64_t pixel = 0; pixel < s.window.out[1]; ++pixel, x += s.window.strides[1] * s.channels, at += s.channels) {
      for (std::int64_t c = 0; c < s.channels; c += kChannels) {
        __m256i low = _mm256_setzero_si256();
        __m256i high = _mm256_setzero_si256();
        const std::int8_t* weights = weights_.data() + c;
        for (const std::int64_t offset : offsets_) {
          const __m256i value = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + offset + c)));
          const __m256i weight = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
          const __m256i product = _mm256_mullo_epi16(value, weight);  // 255 * 128 fits 16 bits
          low = _mm256_add_epi32(low, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(product)));
          high = _mm256_add_epi32(high, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(product, 1)));
          weights += padded_;
        }
        alignas(32) std::int32_t sums[kChannels];
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums), low);
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums + 8), high);
        finish_integers(sums, 1, kChannels, target(io, at, c));
      }
    }
  }

  FALAJ_AVX512_VNNI void row_vnni(const Io& io, const std::uint8_t* x, std::int64_t at) const {
    const std::int64_t step = spec_.conv.window.strides[1] * spec_.conv.channels;
    std::int64_t left = spec_.conv.window.out[1];
    for (; left >= 4; left -= 4, x += 4 * step, at += 4 * spec_.conv.channels) pixels<4>(io, x, step, at);
    for (; left > 0; --left, x += step, at += spec_.conv.channels) pixels<1>(io, x, step, at);
  }

  template <int kMany>
  FALAJ_AVX512_VNNI void pixels(const Io& io, const std::uint8_t* x, std::int64_t step, std::int64_t at) const {
    const std::int64_t channels = spec_.conv.channels;
    const IntegerEnd512 end(spec_.end);
    for (std::int64_t c = 0; c < channels; c += kChannels) {
      const IntegerTarget t = target(io, at, c);
      __m512i sum[kMany];
      FALAJ_UNROLL
      for (auto& s : sum) s = _mm512_loadu_si512(t.start);
      const std::int16_t* pair = pairs_.data() + 2 * c;
      for (std::size_t p = 0; p < offsets_.size(); p += 2, pair += 2 * padded_) {
        const __m512i weights = _mm512_loadu_si512(pair);
        FALAJ_UNROLL
        for (int i = 0; i < kMany; ++i) {
          const std::uint8_t* from = x + i * step + c;
          const __m512i first = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + offsets_[p])));
          const __m512i second = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + offsets_[p + 1])));
          sum[i] = _mm512_dpwssd_epi32(sum[i], _mm512_or_si512(first, _mm512_slli_epi32(second, 16)), weights);
        }
      }
      const __mmask16 mask = some_lanes(t.width);
      const __m512 multiplier = _mm512_loadu_ps(t.multiplier);
      const __m512 offset = _mm512_loadu_ps(t.offset);
      FALAJ_UNROLL
      for (int i = 0; i < kMany; ++i) end.put(sum[i], multiplier, offset, mask, i * channels, t);
    }
  }

  IntegerConv spec_;
  Plane plane_;
  bool vnni_;
  std::int64_t padded_;                // channels, whole sixteens of them
  std::vector<std::int64_t> offsets_;  // of the places, an even number of them
  std::vector<std::int8_t> weights_;   // [places, padded_]
  std::vector<std::int16_t> pairs_;    // [places / 2, padded_, 2]
  std::vector<std::int32_t> start_;
  std::vector<float> multiplier_, offset_;
};

}  // namespace

KernelPtr make_integer_depthwise(const IntegerConv& spec, const Tensor& weights, const float* multiplier, const float* offset) {
  return std::make_unique<IntegerDepthwise>(spec, weights, multiplier, offset);
}

}  // namespace falaj::kernels::cpu
