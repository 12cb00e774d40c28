// ai.falaj's QConv with a 3 x 3 kernel at stride 1, for AVX512-VNNI, by Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray, Fast
// Algorithms for Convolutional Neural Networks, CVPR 2016) in whole numbers: sixteen results take 36 products of 16 bits instead of 144 of
// eight, of which an instruction does twice as many.
//
// The sums are exact, the same as the plain ones to the last bit. Transformed pixels, less their zero point, are at most 100 * 255 and fit
// 16 bits; so do the weights' transforms, at most 49 * 128, for which the transformation's fractions are left out: 1/4, 1/6 and 1/24 are
// made up for after the products by 6, 4 and 1, and the results come out times 24, 12, 6 and 6 in each dimension. All that is counted
// modulo 2^32. Three times three is divided out by its inverse, the powers of two by a shift, for which the plain sum must fit 26 bits:
// what the weights allow at most is known when the kernel is made.
#include <algorithm>
#include <array>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/integer.hpp"
#include "kernels/cpu/integer_finish.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/cpu/winograd_tiles.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kOut = 4;  // pixels of a tile's side
constexpr std::int64_t kIn = 6;   // that it reads
using Tiles = WinogradTiles<kOut, kIn>;
using Source = WinogradSource<std::uint8_t, kIn>;
constexpr std::int64_t kPlaces = Tiles::kPlaces;                  // products of a tile
constexpr std::int64_t kVector = 32;                              // channels
constexpr std::int64_t kGroup = 4 * kIntegerPanel;                // maps whose products are there at a time
constexpr std::int64_t kApart = 64;                               // bytes between places, whose rows would fall on one cache set
constexpr std::int64_t kTilesMin = 36;                            // fewer do not repay reading eight times the weights
constexpr std::int64_t kWeightsMax = 256 * 256;                   // channels times maps: likewise
constexpr std::int64_t kBlockBytes = std::int64_t{640} << 10;     // of transformed tiles and products: what the second cache holds well
constexpr std::int64_t kBlockTilesMin = 48, kBlockTilesMax = 96;  // multiples of the products' rows
constexpr int kRows = 6;                                          // of products that are summed together
constexpr std::int64_t kSumMax = std::int64_t{1} << 25;

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("integer winograd convolution: {}", why)}; }

// --- transformations -----------------------------------------------------------------------------------------------------------

FALAJ_AVX512_VNNI inline __m512i four_times16(__m512i v) { return _mm512_slli_epi16(v, 2); }
// The masked form, for the plain one starts from a register that is undefined, of which compilers warn.
FALAJ_AVX512_VNNI inline __m512i times_two_to(unsigned n, __m512i v) { return _mm512_maskz_slli_epi32(0xFFFF, v, n); }

// One dimension of the input's transformation: d into B^T d.
FALAJ_AVX512_VNNI inline void into(const __m512i* d, __m512i* to, std::int64_t step) {
  const __m512i even = _mm512_sub_epi16(d[4], four_times16(d[2]));
  const __m512i odd = _mm512_sub_epi16(d[3], four_times16(d[1]));
  const __m512i even2 = _mm512_sub_epi16(d[4], d[2]);
  const __m512i odd2 = _mm512_slli_epi16(_mm512_sub_epi16(d[3], d[1]), 1);
  to[0] = _mm512_add_epi16(four_times16(_mm512_sub_epi16(d[0], d[2])), even2);
  to[step] = _mm512_add_epi16(even, odd);
  to[2 * step] = _mm512_sub_epi16(even, odd);
  to[3 * step] = _mm512_add_epi16(even2, odd2);
  to[4 * step] = _mm512_sub_epi16(even2, odd2);
  to[5 * step] = _mm512_add_epi16(four_times16(_mm512_sub_epi16(d[1], d[3])), _mm512_sub_epi16(d[5], d[3]));
}

// The results of a place are `stride` from those of the one before.
FALAJ_AVX512_VNNI void transform_in(const Source& from, std::int64_t channels, std::int32_t zero, std::int16_t* to, std::int64_t stride) {
  const __m512i zeros = _mm512_set1_epi16(static_cast<std::int16_t>(zero));
  for (std::int64_t c = 0; c < channels; c += kVector) {
    __m512i half[kPlaces];
    for (std::int64_t i = 0; i < kIn; ++i) {
      if (i < from.first || i >= from.end) {
        FALAJ_UNROLL
        for (std::int64_t r = 0; r < kIn; ++r) half[r * kIn + i] = _mm512_setzero_si512();
        continue;
      }
      const std::int64_t at = (i - from.first) * channels + c;
      __m512i line[kIn];
      FALAJ_UNROLL
      for (std::size_t r = 0; r < kIn; ++r) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from.rows[r] + at));
        line[r] = _mm512_sub_epi16(_mm512_cvtepu8_epi16(bytes), zeros);
      }
      into(line, half + i, kIn);
    }
    for (std::int64_t r = 0; r < kIn; ++r) {
      __m512i line[kIn];
      into(half + r * kIn, line, 1);
      FALAJ_UNROLL
      for (std::int64_t i = 0; i < kIn; ++i) _mm512_storeu_si512(to + (r * kIn + i) * stride + c, line[i]);
    }
  }
}

FALAJ_AVX512_VNNI inline __m512i six_times(__m512i v) { return _mm512_add_epi32(times_two_to(2, v), times_two_to(1, v)); }

// And of the results': products m into what is 24, 12, 6 and 6 times them.
FALAJ_AVX512_VNNI inline void out_of(const __m512i* m, __m512i* to, std::int64_t step) {
  const __m512i plus = _mm512_add_epi32(m[1], m[2]);
  const __m512i minus = _mm512_sub_epi32(m[1], m[2]);
  const __m512i plus2 = _mm512_add_epi32(m[3], m[4]);
  const __m512i minus2 = _mm512_sub_epi32(m[3], m[4]);
  to[0] = _mm512_add_epi32(_mm512_add_epi32(six_times(m[0]), times_two_to(2, plus)), plus2);
  to[step] = _mm512_add_epi32(times_two_to(1, minus), minus2);
  to[2 * step] = _mm512_add_epi32(plus, plus2);
  to[3 * step] = _mm512_add_epi32(_mm512_add_epi32(minus, times_two_to(1, minus2)), six_times(m[5]));
}
constexpr std::array<unsigned, kOut> kTwos = {3, 2, 1, 1};  // of which powers, and three times, the results are
constexpr std::int32_t kInverseOfNine = 954437177;
static_assert(static_cast<std::uint32_t>(kInverseOfNine) * 9U == 1);

// Where a tile's results go: elements of y and of the addend.
struct Target {
  std::int64_t first, row;  // of its first pixel; from row to row
  std::int64_t rows, columns, maps;
};

// Sixteen maps of a tile.
FALAJ_AVX512_VNNI void transform_out(const std::int32_t* products, std::int64_t stride, const Target& t, const IntegerTarget& end) {
  __m512i half[kOut * kIn];
  for (std::int64_t i = 0; i < kIn; ++i) {
    __m512i line[kIn];
    FALAJ_UNROLL
    for (std::int64_t r = 0; r < kIn; ++r) line[r] = _mm512_loadu_si512(products + (r * kIn + i) * stride);
    out_of(line, half + i, kIn);
  }
  const IntegerEnd512 finish(*end.end);
  const __m512 multiplier = _mm512_loadu_ps(end.multiplier);
  const __m512 offset = _mm512_loadu_ps(end.offset);
  const __m512i inverse = _mm512_set1_epi32(kInverseOfNine);
  for (std::int64_t r = 0; r < t.rows; ++r) {
    __m512i line[kOut];
    out_of(half + r * kIn, line, 1);
    FALAJ_UNROLL
    for (std::int64_t c = 0; c < kOut; ++c) {
      if (c >= t.columns) break;
      const unsigned twos = kTwos[static_cast<std::size_t>(r)] + kTwos[static_cast<std::size_t>(c)];
      const __m512i sum = _mm512_maskz_sra_epi32(0xFFFF, _mm512_mullo_epi32(line[c], inverse), _mm_cvtsi32_si128(static_cast<int>(twos)));
      finish.put(sum, multiplier, offset, 0xFFFF, t.first + r * t.row + c * t.maps, end);
    }
  }
}

// --- products --------------------------------------------------------------------------------------------------------------------

// Rows of x, `pairs` pairs each, times panels of packed weights [pairs, 16, 2].
template <int kTileRows, int kPanels>
FALAJ_AVX512_VNNI void tile(const std::int16_t* x, std::int64_t x_row, const std::int16_t* w, std::int64_t panel_stride, std::int64_t pairs,
                            std::int32_t* y) {
  __m512i sum[kTileRows][kPanels];
  FALAJ_UNROLL
  for (auto& row : sum) {
    FALAJ_UNROLL
    for (auto& s : row) s = _mm512_setzero_si512();
  }
  const auto* from = reinterpret_cast<const std::int32_t*>(x);
  const std::int64_t row = x_row / 2;
  for (std::int64_t g = 0; g < pairs; ++g, w += kVector) {
    __m512i weights[kPanels];
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c) weights[c] = _mm512_load_si512(w + c * panel_stride);
    FALAJ_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      const __m512i value = _mm512_set1_epi32(from[r * row + g]);
      FALAJ_UNROLL
      for (int c = 0; c < kPanels; ++c) sum[r][c] = _mm512_dpwssd_epi32(sum[r][c], value, weights[c]);
    }
  }
  FALAJ_UNROLL
  for (int r = 0; r < kTileRows; ++r) {
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c) _mm512_store_si512(y + r * kGroup + c * kIntegerPanel, sum[r][c]);
  }
}
using Tile = void (*)(const std::int16_t*, std::int64_t, const std::int16_t*, std::int64_t, std::int64_t, std::int32_t*);
template <int kPanels>
constexpr std::array<Tile, kRows + 1> kTiles = {nullptr,          tile<1, kPanels>, tile<2, kPanels>, tile<3, kPanels>,
                                                tile<4, kPanels>, tile<5, kPanels>, tile<6, kPanels>};

void multiply(const std::int16_t* x, std::int64_t x_row, std::int64_t rows, const std::int16_t* w, std::int64_t panels, std::int64_t pairs,
              std::int32_t* y) {
  const std::int64_t tiles = (rows + kRows - 1) / kRows;
  const Shares shares(tiles, rows);
  const std::int64_t panel = pairs * kVector;
  for (std::int64_t done = 0; done < panels;) {
    const std::int64_t together = panels - done >= 4 ? 4 : (panels - done >= 2 ? 2 : 1);
    const auto& kind = together == 4 ? kTiles<4> : (together == 2 ? kTiles<2> : kTiles<1>);
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t from = shares.first(t);
      kind[static_cast<std::size_t>(shares.first(t + 1) - from)](x + from * x_row, x_row, w + done * panel, panel, pairs,
                                                                 y + from * kGroup + done * kIntegerPanel);
    }
    done += together;
  }
}

// --- the kernel --------------------------------------------------------------------------------------------------------------------

class IntegerWinograd final : public Kernel {
 public:
  IntegerWinograd(const IntegerConv& spec, std::shared_ptr<const Tensor> packed, const float* multiplier, const float* offset)
      : spec_(spec),
        tiles_(spec.conv),
        packed_(std::move(packed)),
        outside_(static_cast<std::size_t>(kIn * spec.conv.channels), static_cast<std::uint8_t>(spec.x_zero)),
        multiplier_(multiplier, multiplier + spec.conv.maps),
        offset_(offset, offset + spec.conv.maps) {
    const std::int64_t fit = kBlockBytes / (kPlaces * (2 * spec.conv.channels + 4 * kGroup));
    block_ = std::min(std::clamp(fit / kRows * kRows, kBlockTilesMin, kBlockTilesMax), tiles_.count());
  }

  void run(const Io& io) const override {
    const ConvSpec& s = spec_.conv;
    auto* in = reinterpret_cast<std::int16_t*>(io.scratch);  // [places, tiles, channels]
    auto* products = reinterpret_cast<std::int32_t*>(io.scratch + in_bytes());
    const auto* w = static_cast<const std::int16_t*>(packed_->raw());
    for (std::int64_t first = 0; first < tiles_.count(); first += block_) {
      const std::int64_t count = std::min(block_, tiles_.count() - first);
      const std::int64_t in_stride = count * s.channels + kApart / 2;
      const std::int64_t out_stride = count * kGroup + kApart / 4;
      for (std::int64_t t = 0; t < count; ++t)
        transform_in(tiles_.source(io.input<std::uint8_t>(0), outside_.data(), first + t), s.channels, spec_.x_zero, in + t * s.channels,
                     in_stride);
      for (std::int64_t m = 0; m < s.maps; m += kGroup) {
        const std::int64_t maps = std::min(kGroup, s.maps - m);
        for (std::int64_t p = 0; p < kPlaces; ++p)
          multiply(in + p * in_stride, s.channels, count, w + (p * s.maps + m) * s.channels, maps / kIntegerPanel, s.channels / 2,
                   products + p * out_stride);
        for (std::int64_t t = 0; t < count; ++t) finish(io, products + t * kGroup, out_stride, first + t, m, maps);
      }
    }
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return in_bytes() + static_cast<std::size_t>(kPlaces * (block_ * kGroup * 4 + kApart));
  }
  [[nodiscard]] std::string_view implementation() const override {
    return "avx512-vnni integer winograd 4x4 convolution, transformed weights";
  }

 private:
  [[nodiscard]] std::size_t in_bytes() const {
    return static_cast<std::size_t>(kPlaces * (block_ * spec_.conv.channels * 2 + kApart));  // whole sixty-fours
  }
  void finish(const Io& io, const std::int32_t* products, std::int64_t stride, std::int64_t tile, std::int64_t first_map,
              std::int64_t maps) const {
    const ConvSpec& s = spec_.conv;
    const Window& w = s.window;
    const Tiles::Corner at = tiles_.corner(tile);
    Target target{((at.image * w.out[0] + at.row) * w.out[1] + at.column) * s.maps + first_map, w.out[1] * s.maps,
                  std::min(kOut, w.out[0] - at.row), std::min(kOut, w.out[1] - at.column), s.maps};
    for (std::int64_t m = 0; m < maps; m += kIntegerPanel, target.first += kIntegerPanel) {
      const IntegerTarget end{nullptr,
                              multiplier_.data() + first_map + m,
                              offset_.data() + first_map + m,
                              io.output<std::byte>(0),
                              spec_.end.has_addend ? io.input<std::uint8_t>(4) : nullptr,
                              s.maps,
                              kIntegerPanel,
                              &spec_.end};
      transform_out(products + m, stride, target, end);
    }
  }

  IntegerConv spec_;
  Tiles tiles_;
  std::shared_ptr<const Tensor> packed_;
  std::vector<std::uint8_t> outside_;
  std::vector<float> multiplier_, offset_;
  std::int64_t block_ = 0;  // tiles at a time
};

// [M, C, 3, 3] -> for each place panels of sixteen maps, [C / 2, 16, 2]: G g G^T without its fractions.
Tensor transform_weights(const Tensor& weights, const ConvSpec& s) {
  constexpr int kG[kIn][3] = {{1, 0, 0}, {-1, -1, -1}, {-1, 1, -1}, {1, 2, 4}, {1, -2, 4}, {0, 0, 1}};
  Tensor packed = Tensor::uninitialised(DType::i16, {kPlaces * s.maps * s.channels});
  auto* to = packed.mutable_data<std::int16_t>().data();
  const auto* from = weights.data<std::int8_t>().data();
  for (std::int64_t m = 0; m < s.maps; ++m) {
    for (std::int64_t c = 0; c < s.channels; ++c) {
      const std::int8_t* g = from + (m * s.channels + c) * 9;
      int half[kIn][3];
      for (std::size_t i = 0; i < kIn; ++i) {
        for (std::size_t j = 0; j < 3; ++j) half[i][j] = kG[i][0] * g[j] + kG[i][1] * g[3 + j] + kG[i][2] * g[6 + j];
      }
      std::int16_t* at = to + m / kIntegerPanel * s.channels * kIntegerPanel + c / 2 * kVector + m % kIntegerPanel * 2 + c % 2;
      for (std::size_t p = 0; p < kPlaces; ++p, at += s.maps * s.channels) {
        const int* row = half[p / kIn];
        *at = static_cast<std::int16_t>(row[0] * kG[p % kIn][0] + row[1] * kG[p % kIn][1] + row[2] * kG[p % kIn][2]);
      }
    }
  }
  return packed;
}

// No sum of any image can leave the range in which it is told modulo 2^32 after the shift.
bool sums_fit(const Tensor& weights, const IntegerConv& spec) {
  const auto* w = weights.data<std::int8_t>().data();
  const std::int64_t each = spec.conv.channels * 9;
  for (std::int64_t m = 0; m < spec.conv.maps; ++m) {
    std::int64_t up = 0;    // of the largest sum
    std::int64_t down = 0;  // and the least
    for (std::int64_t i = 0; i < each; ++i) {
      const std::int64_t value = w[m * each + i];
      up += value * (value > 0 ? 255 - spec.x_zero : -spec.x_zero);
      down += value * (value > 0 ? -spec.x_zero : 255 - spec.x_zero);
    }
    if (up >= kSumMax || down < -kSumMax) return false;
  }
  return true;
}

}  // namespace

Result<KernelPtr> make_integer_winograd(const KernelCall& call) {
  if (integer_isa() != IntegerIsa::avx512_vnni) return refuse("for AVX512-VNNI alone");
  if (call.in(1).constant == nullptr || call.in(2).constant == nullptr || call.in(3).constant == nullptr)
    return refuse("the weights or their scales are not known before the run");
  FALAJ_ASSIGN(const auto spec, integer_conv(call));
  const ConvSpec& s = spec.conv;
  const Window& w = s.window;
  if (w.rank() != 2) return refuse("only two spatial dimensions");
  for (std::size_t d = 0; d < 2; ++d) {
    if (w.kernel[d] != 3 || w.strides[d] != 1 || w.dilations[d] != 1) return refuse("only 3 x 3 kernels at stride 1");
  }
  if (s.groups != 1) return refuse("only one group");
  if (s.channels % kVector != 0 || s.maps % kIntegerPanel != 0 || s.channels * s.maps > kWeightsMax)
    return refuse(format("{} channels and {} maps: whole thirty-twos and sixteens, together at most {}", s.channels, s.maps, kWeightsMax));
  const std::int64_t tiles = Tiles::along(w, 0) * Tiles::along(w, 1);
  if (tiles * s.batch < kTilesMin || 3 * tiles * kOut * kOut > 4 * w.out_elements()) return refuse("the images are too small");
  const Tensor& weights = *call.in(1).constant;
  if (!sums_fit(weights, spec)) return refuse("a sum could need more than 26 bits");
  const auto make = [&] { return transform_weights(weights, s); };
  const bool kept = call.packed != nullptr && !weights.borrowed();
  auto packed = kept ? call.packed->get(weights, "integer winograd", make) : std::make_shared<const Tensor>(make());
  return std::make_unique<IntegerWinograd>(spec, std::move(packed), call.in(2).constant->data<float>().data(),
                                           call.in(3).constant->data<float>().data());
}

}  // namespace falaj::kernels::cpu
