// What stands between integer products, for AVX2: quantisation and back by one scale, sums of two quantised tensors, pools. Each follows
// the reference bit for bit.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/integer.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/ops/integer.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx2: {}", why)}; }

// Eight values by the last step of the rule, as bytes; `flip` is 0x80 where bytes are signed.
struct Ending {
  __m256 low, high;
  __m256i zero;
  FALAJ_AVX2 explicit Ending(const Requantise& end)
      : low(_mm256_set1_ps(end.low)), high(_mm256_set1_ps(end.high)), zero(_mm256_set1_epi32(end.y_zero)) {}
  FALAJ_AVX2 __m256i whole(__m256 v) const {
    return _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, low), high)), zero);
  }
};
FALAJ_AVX2 inline __m128i bytes_of(__m256i whole) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  return _mm_packus_epi16(words, words);
}
FALAJ_AVX2 inline void store_bytes(std::uint8_t* to, __m256i whole, std::int64_t width) {
  if (width >= 8) return _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes_of(whole));
  alignas(8) std::uint8_t lane[8];
  _mm_storel_epi64(reinterpret_cast<__m128i*>(lane), bytes_of(whole));
  std::memcpy(to, lane, static_cast<std::size_t>(width));
}
FALAJ_AVX2 inline __m256i load_bytes(const std::uint8_t* from, std::int64_t width) {
  if (width >= 8) return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  alignas(8) std::uint8_t lane[8] = {};
  std::memcpy(lane, from, static_cast<std::size_t>(width));
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(lane)));
}
FALAJ_AVX2 inline __m256 load_floats(const float* from, std::int64_t width) {
  if (width >= 8) return _mm256_loadu_ps(from);
  alignas(32) float lane[8] = {};
  std::memcpy(lane, from, static_cast<std::size_t>(width) * sizeof(float));
  return _mm256_load_ps(lane);
}

// Signed bytes are unsigned ones with the highest bit turned: their zero point and range are moved by 128.
class QuantizeKernel final : public Kernel {
 public:
  QuantizeKernel(const Requantise& end, bool is_signed, bool has_zero, const Shape& in, bool channels_last)
      : end_(end), is_signed_(is_signed), has_zero_(has_zero), channels_last_(channels_last), in_(in) {}
  FALAJ_AVX2 void run(const Io& io) const override {
    const __m256 scale = _mm256_set1_ps(*io.input<float>(1));
    Requantise end = end_;
    const std::uint8_t flip = is_signed_ ? 0x80 : 0;
    if (has_zero_) {
      end.y_zero = *io.input<std::uint8_t>(2) ^ flip;
      end.low = static_cast<float>(-end.y_zero);
      end.high = static_cast<float>(255 - end.y_zero);
    } else if (is_signed_) {
      end.y_zero = 128;
      end.low = -128;
      end.high = 127;
    }
    const Ending ending(end);
    const float* x = io.input<float>(0);
    auto* y = io.output<std::uint8_t>(0);
    if (channels_last_ && in_[1] > 1) return interleave(ending, scale, x, y);
    const std::int64_t n = in_.elements();
    const __m128i turn = _mm_set1_epi8(static_cast<char>(flip));
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256i whole = ending.whole(_mm256_div_ps(_mm256_loadu_ps(x + i), scale));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(y + i), _mm_xor_si128(bytes_of(whole), turn));
    }
    if (i < n) {
      store_bytes(y + i, ending.whole(_mm256_div_ps(load_floats(x + i, n - i), scale)), n - i);
      for (std::int64_t k = i; k < n; ++k) y[k] ^= flip;
    }
  }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 quantise"; }

 private:
  FALAJ_AVX2 void interleave(const Ending& ending, __m256 scale, const float* x, std::uint8_t* y) const {
    const std::int64_t channels = in_[1];
    const std::int64_t places = in_[2] * in_[3];
    for (std::int64_t n = 0; n < in_[0]; ++n, y += channels * places) {
      const std::int64_t done = channels == 3 ? interleave_three(ending, scale, x, y) : 0;
      for (std::int64_t c = 0; c < channels; ++c, x += places) {
        for (std::int64_t p = done; p < places; p += 8) {
          const std::int64_t width = std::min<std::int64_t>(places - p, 8);
          std::uint8_t lane[8];
          store_bytes(lane, ending.whole(_mm256_div_ps(load_floats(x + p, width), scale)), 8);
          for (std::int64_t i = 0; i < width; ++i) y[(p + i) * channels + c] = lane[i];
        }
      }
    }
  }
  // Of most images. Eight places at a time, as long as sixteen bytes can be written where twelve are meant; returns how many are done.
  FALAJ_AVX2 std::int64_t interleave_three(const Ending& ending, __m256 scale, const float* x, std::uint8_t* y) const {
    const std::int64_t places = in_[2] * in_[3];
    const __m128i three = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    std::int64_t p = 0;
    for (; p + 10 <= places; p += 8) {
      const __m256i first = ending.whole(_mm256_div_ps(_mm256_loadu_ps(x + p), scale));
      const __m256i second = _mm256_slli_epi32(ending.whole(_mm256_div_ps(_mm256_loadu_ps(x + places + p), scale)), 8);
      const __m256i third = _mm256_slli_epi32(ending.whole(_mm256_div_ps(_mm256_loadu_ps(x + 2 * places + p), scale)), 16);
      const __m256i all = _mm256_or_si256(_mm256_or_si256(first, second), third);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 3 * p), _mm_shuffle_epi8(_mm256_castsi256_si128(all), three));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 3 * p + 12), _mm_shuffle_epi8(_mm256_extracti128_si256(all, 1), three));
    }
    return p;
  }
  Requantise end_;
  bool is_signed_, has_zero_, channels_last_;
  Shape in_;
};

class DequantizeKernel final : public Kernel {
 public:
  DequantizeKernel(std::int64_t n, bool is_signed, bool has_zero) : n_(n), is_signed_(is_signed), has_zero_(has_zero) {}
  FALAJ_AVX2 void run(const Io& io) const override {
    const __m256 scale = _mm256_set1_ps(*io.input<float>(1));
    const std::uint8_t flip = is_signed_ ? 0x80 : 0;
    const __m256i zero = _mm256_set1_epi32((has_zero_ ? *io.input<std::uint8_t>(2) : std::uint8_t{0}) ^ flip);
    const __m256i turn = _mm256_set1_epi32(flip);
    const auto* x = io.input<std::uint8_t>(0);
    auto* y = io.output<float>(0);
    for (std::int64_t i = 0; i < n_; i += 8) {
      const std::int64_t width = std::min<std::int64_t>(n_ - i, 8);
      const __m256i whole = _mm256_sub_epi32(_mm256_xor_si256(load_bytes(x + i, width), turn), zero);
      const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(whole), scale);
      if (width == 8) {
        _mm256_storeu_ps(y + i, value);
      } else {
        alignas(32) float lane[8];
        _mm256_store_ps(lane, value);
        std::memcpy(y + i, lane, static_cast<std::size_t>(width) * sizeof(float));
      }
    }
  }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 dequantise"; }

 private:
  std::int64_t n_;
  bool is_signed_, has_zero_;
};

class AddKernel final : public Kernel {
 public:
  AddKernel(const IntegerAdd& spec, std::int64_t n) : spec_(spec), n_(n) {}
  FALAJ_AVX2 void run(const Io& io) const override {
    const auto* a = io.input<std::uint8_t>(0);
    const auto* b = io.input<std::uint8_t>(1);
    auto* y = io.output<std::uint8_t>(0);
    const Ending ending(spec_.end);
    const __m256 a_scale = _mm256_set1_ps(spec_.a_scale);
    const __m256 b_scale = _mm256_set1_ps(spec_.b_scale);
    const __m256i a_zero = _mm256_set1_epi32(spec_.a_zero);
    const __m256i b_zero = _mm256_set1_epi32(spec_.b_zero);
    for (std::int64_t i = 0; i < n_; i += 8) {
      const std::int64_t width = std::min<std::int64_t>(n_ - i, 8);
      const __m256 first = _mm256_cvtepi32_ps(_mm256_sub_epi32(load_bytes(a + i, width), a_zero));
      const __m256 second = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(load_bytes(b + i, width), b_zero)), b_scale);
      store_bytes(y + i, ending.whole(_mm256_fmadd_ps(first, a_scale, second)), width);
    }
  }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 integer sum"; }

 private:
  IntegerAdd spec_;
  std::int64_t n_;
};

class MaxPoolKernel final : public Kernel {
 public:
  MaxPoolKernel(const Window& w, std::int64_t batch, std::int64_t channels)
      : image_(w.in_elements() * channels),
        batch_(batch),
        channels_(channels),
        rows_(all_runs(w, 0, w.in[1] * channels)),
        columns_(all_runs(w, 1, channels)) {}
  void run(const Io& io) const override {
    auto* y = io.output<std::uint8_t>(0);
    for (std::int64_t n = 0; n < batch_; ++n) {
      const auto* x = io.input<std::uint8_t>(0) + n * image_;
      for (const Run& row : rows_) {
        for (const Run& column : columns_) {
          largest(x + row.first + column.first, row, column, y);
          y += channels_;
        }
      }
    }
  }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 integer pool"; }

 private:
  // The places of a window that lie in the image, in one dimension: bytes to the first one, and from one to the next.
  struct Run {
    std::int64_t first = 0, count = 0, step = 0;
  };
  static std::vector<Run> all_runs(const Window& w, std::size_t d, std::int64_t bytes) {
    std::vector<Run> runs;
    for (std::int64_t o = 0; o < w.out[d]; ++o) {
      Run run{0, 0, w.dilations[d] * bytes};
      for (std::int64_t k = 0; k < w.kernel[d]; ++k) {
        const std::int64_t at = o * w.strides[d] - w.pad_begin[d] + k * w.dilations[d];
        if (at < 0 || at >= w.in[d]) continue;
        if (run.count++ == 0) run.first = at * bytes;
      }
      runs.push_back(run);
    }
    return runs;
  }
  FALAJ_AVX2 void largest(const std::uint8_t* x, const Run& rows, const Run& columns, std::uint8_t* y) const {
    std::int64_t c = 0;
    for (; c + 32 <= channels_; c += 32) {
      __m256i most = _mm256_setzero_si256();
      for (std::int64_t k = 0; k < rows.count; ++k) {
        for (std::int64_t l = 0; l < columns.count; ++l) {
          const std::uint8_t* from = x + k * rows.step + l * columns.step + c;
          most = _mm256_max_epu8(most, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
        }
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + c), most);
    }
    for (; c + 16 <= channels_; c += 16) {
      __m128i most = _mm_setzero_si128();
      for (std::int64_t k = 0; k < rows.count; ++k) {
        for (std::int64_t l = 0; l < columns.count; ++l) {
          const std::uint8_t* from = x + k * rows.step + l * columns.step + c;
          most = _mm_max_epu8(most, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        }
      }
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y + c), most);
    }
    for (; c < channels_; ++c) {
      y[c] = 0;
      for (std::int64_t k = 0; k < rows.count; ++k) {
        for (std::int64_t l = 0; l < columns.count; ++l) y[c] = std::max(y[c], x[k * rows.step + l * columns.step + c]);
      }
    }
  }
  std::int64_t image_, batch_, channels_;
  std::vector<Run> rows_, columns_;
};

class AverageKernel final : public Kernel {
 public:
  AverageKernel(const Requantise& end, std::int32_t x_zero, float scale, const Shape& in)
      : end_(end), x_zero_(x_zero), scale_(scale), in_(in) {}
  FALAJ_AVX2 void run(const Io& io) const override {
    const std::int64_t places = in_[1] * in_[2];
    const std::int64_t channels = in_[3];
    const Ending ending(end_);
    const __m256i start = _mm256_set1_epi32(-x_zero_ * static_cast<std::int32_t>(places));
    for (std::int64_t n = 0; n < in_[0]; ++n) {
      const auto* x = io.input<std::uint8_t>(0) + n * places * channels;
      for (std::int64_t c = 0; c < channels; c += 8) {
        const std::int64_t width = std::min<std::int64_t>(channels - c, 8);
        __m256i sum = start;
        for (std::int64_t p = 0; p < places; ++p) sum = _mm256_add_epi32(sum, load_bytes(x + p * channels + c, width));
        store_bytes(io.output<std::uint8_t>(0) + n * channels + c,
                    ending.whole(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(scale_))), width);
      }
    }
  }
  [[nodiscard]] std::string_view implementation() const override { return "avx2 integer pool"; }

 private:
  Requantise end_;
  std::int32_t x_zero_;
  float scale_;
  Shape in_;
};

bool is_byte(DType dtype) { return dtype == DType::u8 || dtype == DType::i8; }

}  // namespace

Result<KernelPtr> make_quantize(const KernelCall& call) {
  if (!has_avx2()) return refuse("this CPU has no AVX2");
  const DType to = call.outputs[0].dtype;
  if (call.in(0).dtype != DType::f32 || call.in(1).dtype != DType::f32 || !is_byte(to)) return refuse("only float32 to uint8 or int8");
  if (call.in(1).shape.elements() != 1) return refuse("only one scale for all");
  if (call.node.domain == kFalaj) {
    FALAJ_ASSIGN(const auto end, requantise_of(call, 2));
    return std::make_unique<QuantizeKernel>(end, false, false, call.in(0).shape, true);
  }
  return std::make_unique<QuantizeKernel>(Requantise{}, to == DType::i8, call.has(2), call.in(0).shape, false);
}

Result<KernelPtr> make_dequantize(const KernelCall& call) {
  if (!has_avx2()) return refuse("this CPU has no AVX2");
  const DType from = call.in(0).dtype;
  if (!is_byte(from) || call.in(1).dtype != DType::f32) return refuse("only uint8 or int8 to float32");
  if (call.in(1).shape.elements() != 1) return refuse("only one scale for all");
  return std::make_unique<DequantizeKernel>(call.in(0).shape.elements(), from == DType::i8, call.has(2));
}

Result<KernelPtr> make_integer_add(const KernelCall& call) {
  if (!has_avx2()) return refuse("this CPU has no AVX2");
  FALAJ_ASSIGN(const auto spec, integer_add(call));
  return std::make_unique<AddKernel>(spec, call.in(0).shape.elements());
}

Result<KernelPtr> make_integer_pool(const KernelCall& call) {
  if (!has_avx2()) return refuse("this CPU has no AVX2");
  const Shape& in = call.in(0).shape;
  if (call.node.op == "QMaxPool") {
    FALAJ_ASSIGN(const auto window, integer_window(call));
    return std::make_unique<MaxPoolKernel>(window, in[0], in[3]);
  }
  FALAJ_ASSIGN(const auto end, requantise_of(call, 1));
  FALAJ_ASSIGN(const auto zero, attr_int(call.node, "x_zero", 0));
  FALAJ_ASSIGN(const auto scale, attr_float(call.node, "scale"));
  return std::make_unique<AverageKernel>(end, static_cast<std::int32_t>(zero), static_cast<float>(scale), in);
}

}  // namespace falaj::kernels::cpu
