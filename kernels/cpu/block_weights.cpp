// The gradient of a convolution's weights from blocks of channels (BlockConvWeightGrad, kernels/ops/blocks.hpp), by AVX-512; in bfloat16 by
// AVX512_BF16.
//
// For each place of the kernel it is a product of matrices: the gradients, maps by pixels, times what they met there, pixels by channels.
// Both are packed, a few hundred vectors at a time, of some images or of some rows of one, so that a tile's sums stay in registers for
// long: the gradients once, and the values once for each column of the kernel, for its rows only move where their vectors are read. Rows
// that meet nothing but padding are left out. A part is some of the maps, or some of the images, whose sums are added then; what is a part
// follows from shapes alone: the bits do not depend on the threads.
#include <algorithm>
#include <array>

#include "kernels/cpu/half_tiles.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/ops/blocks.hpp"
#include "kernels/parallel.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kPartsMax = 4;
constexpr std::int64_t kVectorsMax = 512;                     // at a time, if an image has no more
constexpr std::int64_t kWorkOfParts = std::int64_t{1} << 24;  // products that are worth parts

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("avx512 gradient of weights: {}", why)}; }
std::int64_t aligned(std::int64_t floats) { return (floats + 15) / 16 * 16; }

// What a vector of packed pixels holds, for a panel of sixteen channels: in bfloat16 a pair of pixels, in f32 one.
struct HalfPairs {
  using Element = Half;
  static constexpr std::int64_t kPixels = 2;
  // The pixels of a row that has `size`, from `at` on, `step` apart; zeros where there are none.
  FALAJ_AVX512_BF16 static __m512i pack(const Half* row, std::int64_t at, std::int64_t step, std::int64_t size) {
    if (step == 1 && at >= 0 && at + 1 < size) return paired(_mm512_loadu_si512(row + at * kBlockChannels));
    return paired(_mm512_inserti64x4(pixel(row, at, size), _mm512_castsi512_si256(pixel(row, at + step, size)), 1));
  }
  FALAJ_AVX512_BF16 static __m512i pixel(const Half* row, std::int64_t at, std::int64_t size) {
    if (at < 0 || at >= size) return _mm512_setzero_si512();
    return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + at * kBlockChannels)));
  }
  template <int kPanels>
  [[gnu::always_inline]] FALAJ_AVX512_BF16 static void add(const Half* slopes, const Half* values, std::int64_t panel, std::int64_t count,
                                                           __m512 (&sum)[kTileRows][kPanels]) {
    add_up<kPanels>(Columns{slopes}, values, panel, count, sum);
  }
};
struct Singles {
  using Element = float;
  static constexpr std::int64_t kPixels = 1;
  FALAJ_AVX512_BF16 static __m512i pack(const float* row, std::int64_t at, std::int64_t /*step*/, std::int64_t size) {
    return at < 0 || at >= size ? _mm512_setzero_si512() : _mm512_loadu_si512(row + at * kBlockChannels);
  }
  template <int kPanels>
  [[gnu::always_inline]] FALAJ_AVX512_BF16 static void add(const float* slopes, const float* values, std::int64_t panel, std::int64_t count,
                                                           __m512 (&sum)[kTileRows][kPanels]) {
    for (std::int64_t g = 0; g < count; ++g, slopes += kBlockChannels, values += kBlockChannels) {
      __m512 right[kPanels];
      FALAJ_UNROLL
      for (int c = 0; c < kPanels; ++c) right[c] = _mm512_load_ps(values + c * panel);
      FALAJ_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        const __m512 slope = _mm512_set1_ps(slopes[r]);
        FALAJ_UNROLL
        for (int c = 0; c < kPanels; ++c) sum[r][c] = _mm512_fmadd_ps(slope, right[c], sum[r][c]);
      }
    }
  }
};
template <class P>
constexpr std::int64_t kVector = kBlockChannels * P::kPixels;  // its elements

// Rows of planes of blocks, packed behind one another.
struct Packing {
  std::int64_t first_row, rows, rows_step;
  std::int64_t size, plane;           // pixels of a row; how far apart planes lie
  std::int64_t first, step, vectors;  // of a row: the first pixel, how far apart pixels are
};
template <class P>
FALAJ_AVX512_BF16 void pack_plane(const Packing& p, const typename P::Element* x, typename P::Element* to) {
  for (std::int64_t i = 0; i < p.rows; ++i) {
    const auto* row = x + (p.first_row + i * p.rows_step) * p.size * kBlockChannels;
    std::int64_t at = p.first;
    for (std::int64_t v = 0; v < p.vectors; ++v, at += P::kPixels * p.step, to += kVector<P>)
      _mm512_store_si512(to, P::pack(row, at, p.step, p.size));
  }
}

// What a tile is summed over: runs of vectors, one for each image.
struct Runs {
  std::int64_t images, vectors;
  std::int64_t slopes_apart, values_apart;  // elements from image to image
};
template <class P, int kPanels>
FALAJ_AVX512_BF16 void tile(const Runs& runs, const typename P::Element* slopes, const typename P::Element* values, std::int64_t panel,
                            bool more, float* to, std::int64_t apart) {
  __m512 sum[kTileRows][kPanels];
  clear(sum);
  for (std::int64_t n = 0; n < runs.images; ++n)
    P::template add<kPanels>(slopes + n * runs.slopes_apart, values + n * runs.values_apart, panel, runs.vectors, sum);
  FALAJ_UNROLL
  for (int r = 0; r < kTileRows; ++r) {
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c) {
      float* at = to + r * apart + c * kHalfPanel;
      _mm512_storeu_ps(at, more ? _mm512_add_ps(_mm512_loadu_ps(at), sum[r][c]) : sum[r][c]);
    }
  }
}
template <class P>
constexpr std::array kTiles = {tile<P, 1>, tile<P, 2>, tile<P, 3>};

template <class P>
class BlockWeightGrad final : public Kernel {
 public:
  using Element = typename P::Element;
  BlockWeightGrad(ConvSpec spec, std::size_t threads) : s_(std::move(spec)) {
    const Window& w = s_.window;
    const std::int64_t weights = s_.maps * s_.channels * w.kernel_elements();
    const bool parts = weights * s_.batch * w.out_elements() >= kWorkOfParts;
    row_vectors_ = (w.out[1] + P::kPixels - 1) / P::kPixels;
    by_images_ = weights < s_.maps * s_.batch * w.out_elements();
    while (parts && parts_ < kPartsMax && (by_images_ ? s_.batch : s_.maps / kBlockChannels) % (2 * parts_) == 0) parts_ *= 2;
    slots_ = std::min(parts_, static_cast<std::int64_t>(threads));
    part_images_ = by_images_ ? s_.batch / parts_ : s_.batch;
    part_maps_ = by_images_ ? s_.maps : s_.maps / parts_;
    images_ = std::clamp<std::int64_t>(kVectorsMax / (w.out[0] * row_vectors_), 1, part_images_);
    band_ = std::clamp<std::int64_t>(kVectorsMax / row_vectors_, 1, w.out[0]);
    // What a band meets: from row to row of the kernel it moves by the dilation.
    value_rows_ = std::min((w.in[0] + w.strides[0] - 1) / w.strides[0], band_ + (w.extent(0) - 1) / w.strides[0] + 1);
    panel_ = images_ * std::max(band_, value_rows_) * row_vectors_ * kVector<P>;
    term_ = aligned(part_maps_ * s_.channels * w.kernel_elements());
  }
  void run(const Io& io) const override {
    in_slots(io, parts_, slots_, [&](std::int64_t part, std::int64_t slot) {
      float* to = term(io, by_images_ ? part : slot);
      run_part(io, part, slot, to);
      if (!by_images_) write(to, 0, part_maps_, io.output<float>(0) + part * part_maps_ * s_.channels * s_.window.kernel_elements());
    });
    if (by_images_) in_ranges(io, s_.maps, kBlockChannels, [&](std::int64_t first, std::int64_t last) { sum_up(io, first, last); });
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    const std::int64_t terms = (by_images_ ? parts_ : slots_) * term_;
    return static_cast<std::size_t>(terms) * sizeof(float) + static_cast<std::size_t>(slots_ * panels() * panel_) * sizeof(Element);
  }
  [[nodiscard]] std::string_view implementation() const override {
    return P::kPixels == 2 ? "avx512-bf16 gradient of weights" : "avx512 gradient of weights";
  }

 private:
  struct Range {
    std::int64_t first, count;
  };
  // Of a row of the kernel: the rows of a band of the result that meet the input there, which follow one another, as do the rows that they
  // meet, every stride-th of the input's: from which of its first ones on, and how many lie before.
  struct Rows {
    std::int64_t first = 0, count = 0, start = 0, before = 0;
  };
  [[nodiscard]] Rows rows_met(std::int64_t k, Range band) const {
    const Window& w = s_.window;
    Rows rows;
    for (std::int64_t o = band.first; o < band.first + band.count; ++o) {
      const std::int64_t at = o * w.strides[0] + k * w.dilations[0] - w.pad_begin[0];
      if (at < 0 || at >= w.in[0]) continue;
      if (rows.count++ == 0) rows = {o - band.first, 1, at % w.strides[0], at / w.strides[0]};
    }
    return rows;
  }
  // Of all rows of the kernel that start there: what they meet together.
  [[nodiscard]] Range values_met(std::int64_t start, Range band) const {
    std::int64_t first = s_.window.in[0];
    std::int64_t last = 0;
    for (std::int64_t k = 0; k < s_.window.kernel[0]; ++k) {
      const Rows rows = rows_met(k, band);
      if (rows.start != start || rows.count == 0) continue;
      first = std::min(first, rows.before);
      last = std::max(last, rows.before + rows.count);
    }
    return {first, std::max<std::int64_t>(last - first, 0)};
  }
  [[nodiscard]] std::int64_t panels() const { return part_maps_ / kBlockChannels + s_.channels / kBlockChannels; }
  [[nodiscard]] float* term(const Io& io, std::int64_t i) const { return reinterpret_cast<float*>(io.scratch) + i * term_; }

  void run_part(const Io& io, std::int64_t part, std::int64_t slot, float* to) const {
    const std::int64_t first_map = by_images_ ? 0 : part * part_maps_;
    const std::int64_t begin = by_images_ ? part * part_images_ : 0;
    auto* dy = reinterpret_cast<Element*>(term(io, by_images_ ? parts_ : slots_)) + slot * panels() * panel_;
    Element* x = dy + part_maps_ / kBlockChannels * panel_;
    for (std::int64_t n = begin; n < begin + part_images_; n += images_) {
      const Range images{n, std::min(images_, begin + part_images_ - n)};
      for (std::int64_t o = 0; o < s_.window.out[0]; o += band_) {
        const Range band{o, std::min(band_, s_.window.out[0] - o)};
        run_band(io, images, band, {first_map, part_maps_}, dy, x, n > begin || o > 0, to);
      }
    }
  }
  void run_band(const Io& io, Range images, Range band, Range maps, Element* dy, Element* x, bool more, float* to) const {
    const Window& w = s_.window;
    const std::int64_t row = row_vectors_ * kVector<P>;
    const std::int64_t plane = w.in_elements() * kBlockChannels;
    pack({band.first, band.count, 1, w.out[1], w.out_elements() * kBlockChannels, 0, 1, row_vectors_}, io.input<Element>(0), s_.maps,
         images, maps, band.count, dy);
    for (std::int64_t l = 0; l < w.kernel[1]; ++l) {
      for (std::int64_t start = 0; start < w.strides[0]; ++start) {
        const Range values = values_met(start, band);
        const std::int64_t first = l * w.dilations[1] - w.pad_begin[1];
        pack({start + values.first * w.strides[0], values.count, w.strides[0], w.in[1], plane, first, w.strides[1], row_vectors_},
             io.input<Element>(1), s_.channels, images, {0, s_.channels}, value_rows_, x);
        for (std::int64_t k = 0; k < w.kernel[0]; ++k) {
          const Rows rows = rows_met(k, band);
          if (rows.start != start) continue;
          const Runs runs{images.count, rows.count * row_vectors_, band.count * row, value_rows_ * row};
          const std::int64_t skipped = rows.count == 0 ? 0 : rows.before - values.first;
          multiply(runs, dy + rows.first * row, x + skipped * row, more, to + (k * w.kernel[1] + l) * part_maps_ * s_.channels);
        }
      }
    }
  }
  // Some channels of some images, each image's rows with room for `rows`.
  void pack(const Packing& p, const Element* from, std::int64_t channels, Range images, Range range, std::int64_t rows, Element* to) const {
    for (std::int64_t b = 0; b < range.count / kBlockChannels; ++b) {
      for (std::int64_t i = 0; i < images.count; ++i) {
        const std::int64_t plane = (images.first + i) * (channels / kBlockChannels) + range.first / kBlockChannels + b;
        pack_plane<P>(p, from + plane * p.plane, to + b * panel_ + i * rows * row_vectors_ * kVector<P>);
      }
    }
  }
  // For one place of the kernel: [maps, channels].
  void multiply(const Runs& runs, const Element* dy, const Element* x, bool more, float* to) const {
    const std::int64_t all = s_.channels / kBlockChannels;
    for (std::int64_t c = 0; c < all;) {
      const std::int64_t panels = panels_at_once(all - c);
      const auto run = kTiles<P>[static_cast<std::size_t>(panels - 1)];
      for (std::int64_t m = 0; m < part_maps_; m += kTileRows) {
        const Element* rows = dy + m / kBlockChannels * panel_ + m % kBlockChannels * P::kPixels;
        run(runs, rows, x + c * panel_, panel_, more, to + m * s_.channels + c * kBlockChannels, s_.channels);
      }
      c += panels;
    }
  }
  // Some maps of a term as ONNX has weights.
  void write(const float* from, std::int64_t first, std::int64_t last, float* to) const {
    const std::int64_t places = s_.window.kernel_elements();
    const std::int64_t apart = part_maps_ * s_.channels;
    for (std::int64_t m = first; m < last; ++m) {
      const float* row = from + m * s_.channels;
      float* at = to + m * s_.channels * places;
      for (std::int64_t c = 0; c < s_.channels; ++c) {
        for (std::int64_t p = 0; p < places; ++p) *at++ = row[p * apart + c];
      }
    }
  }
  void sum_up(const Io& io, std::int64_t first, std::int64_t last) const {
    for (std::int64_t part = 1; part < parts_; ++part) {
      for (std::int64_t p = 0; p < s_.window.kernel_elements(); ++p) {
        float* sum = term(io, 0) + p * s_.maps * s_.channels;
        const float* more = term(io, part) + p * s_.maps * s_.channels;
        for (std::int64_t i = first * s_.channels; i < last * s_.channels; ++i) sum[i] += more[i];
      }
    }
    write(term(io, 0), first, last, io.output<float>(0));
  }

  ConvSpec s_;
  bool by_images_ = false;
  std::int64_t parts_ = 1, slots_ = 1;
  std::int64_t part_images_ = 0, part_maps_ = 0;
  std::int64_t images_ = 1;       // packed at a time
  std::int64_t band_ = 1;         // of rows of the result, likewise
  std::int64_t row_vectors_ = 0;  // of a row of the result
  std::int64_t value_rows_ = 0;   // of an image's packed values
  std::int64_t panel_ = 0;        // elements of a packed panel
  std::int64_t term_ = 0;         // floats of a part's sums: [places, maps, channels]
};

}  // namespace

Result<KernelPtr> make_block_weight_grad(const KernelCall& call) {
  if (!has_avx512()) return refuse("this CPU has no AVX-512");
  if (!is_blocks(call.in(1).shape) || call.in(0).dtype != call.in(1).dtype) return refuse("only blocks of one type");
  FALAJ_ASSIGN(auto spec, block_conv_spec(call));
  if (call.in(0).shape.elements() == 0 || call.in(1).shape.elements() == 0) return refuse("nothing to compute");
  if (call.in(0).dtype == DType::f32) return std::make_unique<BlockWeightGrad<Singles>>(std::move(spec), call.threads);
  if (!has_avx512_bf16()) return refuse("this CPU has no AVX512_BF16");
  if (has_amx_bf16()) return refuse("oneDNN uses AMX's tiles for bfloat16");
  return std::make_unique<BlockWeightGrad<HalfPairs>>(std::move(spec), call.threads);
}

}  // namespace falaj::kernels::cpu
