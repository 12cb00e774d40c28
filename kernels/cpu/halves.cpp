// HalfMatMul and HalfWeightGrad by AVX512_BF16 (see kernels/ops/halves.hpp): a tile is eight rows times up to three panels, 24 sums in
// registers; or by AMX: 32 rows times up to two panels, four of its tiles. What is a part follows from shapes alone, and a part's sums have
// one order: the bits do not depend on the threads.
#include "kernels/ops/halves.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/cpu/amx.hpp"
#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/half_tiles.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/makers.hpp"
#include "kernels/ops/matmul.hpp"
#include "kernels/parallel.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr int kAmxRows = 2 * amx::kTileRows;
constexpr std::int64_t kPartRows = 64;  // of a result: what a thread takes at a time
constexpr std::int64_t kHalfBytes = sizeof(Half);
constexpr std::int64_t kPackWork = std::int64_t{1} << 14;

Error refuse(std::string_view why) { return Error{ErrorCode::unimplemented, format("bf16 in halves: {}", why)}; }
constexpr std::int64_t even(std::int64_t n) { return n + n % 2; }
constexpr std::int64_t panels_of(std::int64_t n) { return (n + kHalfPanel - 1) / kHalfPanel; }
std::size_t aligned(std::int64_t bytes) { return static_cast<std::size_t>((bytes + 63) / 64 * 64); }

// --- operands rounded and arranged ---------------------------------------------------------------------------------------------------

// The panels of `width` columns and `rows` rows, which lie `apart`; panels lie `panel` apart.
FALAJ_AVX512_BF16 void pack_panels(const float* x, std::int64_t apart, std::int64_t rows, std::int64_t width, Half* to,
                                   std::int64_t panel) {
  for (std::int64_t r = 0; r < rows; r += 2, to += kPair, x += 2 * apart) {
    const float* below = r + 1 < rows ? x + apart : x;
    const std::int64_t width_below = r + 1 < rows ? width : 0;
    Half* at = to;
    for (std::int64_t j = 0; j < width; j += kHalfPanel, at += panel) {
      const __m512 first = _mm512_maskz_loadu_ps(some_lanes(width - j), x + j);
      const __m512 second = _mm512_maskz_loadu_ps(some_lanes(width_below - j), below + j);
      _mm512_store_si512(at, paired(halves_of(first, second)));
    }
  }
}

// Sixteen rows of sixteen 32-bit elements, turned.
FALAJ_AVX512_BF16 inline void turn16(__m512i (&r)[16]) {
  __m512i t[16];
  FALAJ_UNROLL
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  FALAJ_UNROLL
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  FALAJ_UNROLL
  for (int q = 0; q < 4; ++q) {
    const __m512i a = _mm512_shuffle_i32x4(r[q], r[4 + q], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(r[q], r[4 + q], 0xDD);
    const __m512i c = _mm512_shuffle_i32x4(r[8 + q], r[12 + q], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(r[8 + q], r[12 + q], 0xDD);
    t[q] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[4 + q] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[8 + q] = _mm512_shuffle_i32x4(a, c, 0xDD);
    t[12 + q] = _mm512_shuffle_i32x4(b, d, 0xDD);
  }
  std::copy_n(t, 16, r);
}

// One panel of at most 16 columns, of a matrix whose columns are the runs, `apart` from one another.
FALAJ_AVX512_BF16 void pack_panel_turned(const float* x, std::int64_t apart, std::int64_t rows, std::int64_t width, Half* to) {
  for (std::int64_t r = 0; r < rows; r += kPair) {
    __m512i line[16];
    FALAJ_UNROLL
    for (std::int64_t c = 0; c < kHalfPanel; ++c) {
      const float* from = x + (c < width ? c : 0) * apart + r;
      for (std::int64_t ahead = 2 * kPair; ahead < 3 * kPair; ahead += 16)
        _mm_prefetch(reinterpret_cast<const char*>(from + ahead), _MM_HINT_T0);
      const std::int64_t left = c < width ? rows - r : 0;
      const __m512 first = _mm512_maskz_loadu_ps(some_lanes(left), from);
      const __m512 second = _mm512_maskz_loadu_ps(some_lanes(std::max<std::int64_t>(left - 16, 0)), from + 16);
      line[c] = halves_of(first, second);
    }
    turn16(line);
    const std::int64_t pairs = std::min<std::int64_t>((rows - r + 1) / 2, 16);
    for (std::int64_t i = 0; i < pairs; ++i, to += kPair) _mm512_store_si512(to, line[i]);
  }
}

// All panels of a matrix [rows, width], read through strides of which one is 1.
void pack_pairs(const Io& io, const float* x, std::int64_t row, std::int64_t col, std::int64_t rows, std::int64_t width, Half* to) {
  const std::int64_t panel = (rows + 1) / 2 * kPair;
  if (col == 1) {
    // By rows, for these are the runs.
    const std::int64_t together = std::max<std::int64_t>(kPackWork / width / 2 * 2, 2);
    in_ranges(io, rows, together, [&](std::int64_t first, std::int64_t last) {
      pack_panels(x + first * row, row, last - first, width, to + first / 2 * kPair, panel);
    });
    return;
  }
  in_ranges(io, panels_of(width), std::max<std::int64_t>(kPackWork / (rows * kHalfPanel), 1), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t p = first; p < last; ++p)
      pack_panel_turned(x + p * kHalfPanel * col, col, rows, std::min(kHalfPanel, width - p * kHalfPanel), to + p * panel);
  });
}

FALAJ_AVX512_BF16 void round_row(const float* x, std::int64_t n, Half* to) {
  for (std::int64_t i = 0; i < n; i += 16)
    _mm256_mask_storeu_epi16(to + i, some_lanes(even(n) - i),
                             reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some_lanes(n - i), x + i))));
}

// --- tiles ----------------------------------------------------------------------------------------------------------------------------

// What becomes of a product's sums.
struct Ends {
  std::int64_t m, n;
  std::int64_t rows_apart;  // of the form `rows`
  std::int64_t panel;       // elements of a panel of pairs
  const float* bias;
  const Half* mask;
  bool relu;
  float* y;
  Half* rows;
  Half* pairs;
  float* sums;  // of the part's columns, whole panels of them
};

// Whole tiles, which nearly all of them are, have no ends to look at. What is masked has neither bias nor Relu.
template <int kPanels, bool kWhole, bool kMasked>
[[gnu::always_inline]] FALAJ_AVX512_BF16 inline void finish_tile(const __m512 (&sum)[kTileRows][kPanels], std::int64_t row,
                                                                 std::int64_t column, const Ends& e) {
  const __m512 least = _mm512_set1_ps(e.relu ? 0.0F : -__builtin_inff());
  FALAJ_UNROLL
  for (int c = 0; c < kPanels; ++c) {
    const std::int64_t first = column + c * kHalfPanel;
    const __mmask16 lanes = kWhole ? __mmask16{0xFFFF} : some_lanes(e.n - first);
    const __mmask16 lanes_even = kWhole ? __mmask16{0xFFFF} : some_lanes(even(e.n) - first);
    const __m512 bias = kMasked || e.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(lanes, e.bias + first);
    const std::int64_t at = first / kHalfPanel * e.panel + row / 2 * kPair;
    __m512 down = _mm512_setzero_ps();
    FALAJ_UNROLL
    for (int r = 0; r < kTileRows; r += 2) {
      if (!kWhole && row + r >= e.m) continue;
      const bool both = kWhole || row + r + 1 < e.m;
      __m512 upper;
      __m512 lower;
      if constexpr (kMasked) {
        // A positive bfloat16 is a positive integer; of a pair, the second one is the upper half.
        const __m512i shown = _mm512_load_si512(e.mask + at + r / 2 * kPair);
        upper = _mm512_maskz_mov_ps(_mm512_cmpgt_epi32_mask(_mm512_slli_epi32(shown, 16), _mm512_setzero_si512()), sum[r][c]);
        lower = _mm512_maskz_mov_ps(_mm512_cmpgt_epi32_mask(shown, _mm512_set1_epi32(0xFFFF)), sum[r + 1][c]);
        down = _mm512_add_ps(down, _mm512_add_ps(upper, lower));
      } else {
        upper = _mm512_max_ps(least, _mm512_add_ps(sum[r][c], bias));  // the second operand where that is NaN
        lower = _mm512_max_ps(least, _mm512_add_ps(sum[r + 1][c], bias));
        if (!both) lower = _mm512_setzero_ps();
        down = _mm512_add_ps(down, _mm512_add_ps(upper, lower));
      }
      if (e.y != nullptr) {
        float* to = e.y + (row + r) * e.n + first;
        _mm512_mask_storeu_ps(to, lanes, upper);
        if (both) _mm512_mask_storeu_ps(to + e.n, lanes, lower);
      }
      const __m512i halves = halves_of(upper, lower);
      if (e.rows != nullptr) {
        Half* to = e.rows + (row + r) * e.rows_apart + first;
        _mm256_mask_storeu_epi16(to, lanes_even, _mm512_castsi512_si256(halves));
        if (both) _mm256_mask_storeu_epi16(to + e.rows_apart, lanes_even, _mm512_extracti64x4_epi64(halves, 1));
      }
      if (e.pairs != nullptr) _mm512_store_si512(e.pairs + at + r / 2 * kPair, paired(halves));
    }
    if (e.sums != nullptr) _mm512_store_ps(e.sums + first, _mm512_add_ps(_mm512_load_ps(e.sums + first), down));
  }
}

template <int kPanels, bool kMasked>
FALAJ_AVX512_BF16 void product_tile(const Half* a, std::int64_t apart, const Half* w, std::int64_t panel, std::int64_t pairs,
                                    std::int64_t row, std::int64_t column, const Ends& e) {
  Rows x;
  for (int r = 0; r < kTileRows; ++r) x.at[r] = a + (std::min<std::int64_t>(row + r, e.m - 1) - row) * apart;
  if constexpr (kMasked) {  // by the time that it is read, it is there
    for (int c = 0; c < kPanels; ++c) {
      for (int r = 0; r < kTileRows; r += 2)
        _mm_prefetch(reinterpret_cast<const char*>(e.mask + (column / kHalfPanel + c) * e.panel + (row + r) / 2 * kPair), _MM_HINT_T0);
    }
  }
  __m512 sum[kTileRows][kPanels];
  clear(sum);
  add_up<kPanels>(x, w, panel, pairs, sum);
  if (row + kTileRows <= e.m && column + kPanels * kHalfPanel <= e.n) {
    finish_tile<kPanels, true, kMasked>(sum, row, column, e);
  } else {
    finish_tile<kPanels, false, kMasked>(sum, row, column, e);
  }
}
// As many rows as AMX takes, or what is left of them.
template <class E, int kPanels>
void sum_up(const Half* left, std::int64_t apart, std::int64_t rows, const Half* w, std::int64_t panel, std::int64_t pairs, float* sums) {
  const amx::Rows<std::byte> x{nullptr, reinterpret_cast<const std::byte*>(left), apart * kHalfBytes, static_cast<int>(rows)};
  constexpr std::int64_t kNoOffset = 0;
  if (rows > amx::kTileRows) {
    amx::sum_up<E, 2, kPanels>(x, &kNoOffset, 1, pairs, w, panel * kHalfBytes, sums);
  } else {
    amx::sum_up<E, 1, kPanels>(x, &kNoOffset, 1, pairs, w, panel * kHalfBytes, sums);
  }
}
template <class E, int kPanels, bool kMasked>
FALAJ_AVX512_BF16 void product_tile_amx(const Half* a, std::int64_t apart, const Half* w, std::int64_t panel, std::int64_t pairs,
                                        std::int64_t row, std::int64_t column, const Ends& e) {
  const std::int64_t rows = std::min<std::int64_t>(kAmxRows, e.m - row);
  alignas(64) float sums[kAmxRows * kPanels * kHalfPanel];
  sum_up<E, kPanels>(a, apart, rows, w, panel, pairs, sums);
  for (std::int64_t first = 0; first < rows; first += kTileRows) {
    __m512 sum[kTileRows][kPanels];
    FALAJ_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      FALAJ_UNROLL
      for (int c = 0; c < kPanels; ++c) sum[r][c] = _mm512_load_ps(sums + ((first + r) * kPanels + c) * kHalfPanel);
    }
    finish_tile<kPanels, false, kMasked>(sum, row + first, column, e);
  }
}

template <int kPanels>
FALAJ_AVX512_BF16 void grad_tile(const Half* p, const Half* q, std::int64_t panel, std::int64_t pairs, float* y, std::int64_t apart,
                                 std::int64_t rows, std::int64_t width) {
  __m512 sum[kTileRows][kPanels];
  clear(sum);
  add_up<kPanels>(Columns{p}, q, panel, pairs, sum);
  FALAJ_UNROLL
  for (int r = 0; r < kTileRows; ++r) {
    if (r >= rows) continue;
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c) _mm512_mask_storeu_ps(y + r * apart + c * kHalfPanel, some_lanes(width - c * kHalfPanel), sum[r][c]);
  }
}

// Sixteen columns' rows in pairs become rows of pairs, which lie `apart`; what there is not of the last sixteen pairs is zeros.
FALAJ_AVX512_BF16 void turn_panel(const Half* panel, std::int64_t pairs, Half* to, std::int64_t apart) {
  for (std::int64_t g = 0; g < pairs; g += 16) {
    __m512i line[16];
    FALAJ_UNROLL
    for (std::int64_t i = 0; i < 16; ++i) line[i] = g + i < pairs ? _mm512_load_si512(panel + (g + i) * kPair) : _mm512_setzero_si512();
    turn16(line);
    FALAJ_UNROLL
    for (std::int64_t i = 0; i < 16; ++i) _mm512_store_si512(to + i * apart + 2 * g, line[i]);
  }
}
template <class E, int kPanels>
FALAJ_AVX512_BF16 void grad_tile_amx(const Half* rows, std::int64_t row_apart, const Half* q, std::int64_t panel, std::int64_t pairs,
                                     float* y, std::int64_t apart, std::int64_t count, std::int64_t width) {
  alignas(64) float sums[kAmxRows * kPanels * kHalfPanel];
  sum_up<E, kPanels>(rows, row_apart, count, q, panel, pairs, sums);
  for (std::int64_t r = 0; r < count; ++r) {
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c)
      _mm512_mask_storeu_ps(y + r * apart + c * kHalfPanel, some_lanes(width - c * kHalfPanel),
                            _mm512_load_ps(sums + (r * kPanels + c) * kHalfPanel));
  }
}

// The tiles of one instruction set. Gradients read eight columns of pairs, or on AMX rows that turn_panel made of them.
struct Tiles {
  std::string_view name;
  std::int64_t rows, panels;  // of a tile, at most
  std::array<decltype(&product_tile<1, false>), 3> plain, masked;
  std::array<decltype(&grad_tile<1>), 3> grad;
  std::array<decltype(&grad_tile_amx<amx::Engine<amx::Of::halves>, 1>), 2> grad_of_rows;
  void (*begin)() = nullptr;  // around the tiles of a part
  void (*end)() = nullptr;
};
constexpr Tiles kAvx512 = {.name = "avx512-bf16",
                           .rows = kTileRows,
                           .panels = kTilePanels,
                           .plain = {product_tile<1, false>, product_tile<2, false>, product_tile<3, false>},
                           .masked = {product_tile<1, true>, product_tile<2, true>, product_tile<3, true>},
                           .grad = {grad_tile<1>, grad_tile<2>, grad_tile<3>},
                           .grad_of_rows = {}};
template <class E>
constexpr Tiles kAmx = {.name = std::is_same_v<E, amx::Engine<amx::Of::halves>> ? "amx-bf16" : "amx-bf16 by plain loops",
                        .rows = kAmxRows,
                        .panels = 2,
                        .plain = {product_tile_amx<E, 1, false>, product_tile_amx<E, 2, false>, nullptr},
                        .masked = {product_tile_amx<E, 1, true>, product_tile_amx<E, 2, true>, nullptr},
                        .grad = {},
                        .grad_of_rows = {grad_tile_amx<E, 1>, grad_tile_amx<E, 2>},
                        .begin = std::is_same_v<E, amx::Engine<amx::Of::halves>> ? amx::configure : nullptr,
                        .end = std::is_same_v<E, amx::Engine<amx::Of::halves>> ? amx::release : nullptr};

const Tiles& tiles_now() {
  const amx::Use use = amx::use_for_halves();
  if (use == amx::Use::none) return kAvx512;
  return use == amx::Use::tiles ? kAmx<amx::Engine<amx::Of::halves>> : kAmx<amx::Loops<amx::Of::halves>>;
}

// --- kernels --------------------------------------------------------------------------------------------------------------------------

class Product final : public Kernel {
 public:
  Product(const HalfProductSpec& spec, std::size_t outputs, std::size_t threads)
      : s_(spec),
        tiles_(tiles_now()),
        name_(format("{} product in halves", tiles_.name)),
        outputs_(outputs),
        parts_((spec.m + kPartRows - 1) / kPartRows),
        slots_(std::min(parts_, static_cast<std::int64_t>(threads))),
        packed_bytes_(aligned(panels_of(spec.n) * even(spec.k) * kHalfPanel * 2)),
        left_bytes_(spec.rounded ? 0 : aligned(std::min(kPartRows, spec.m) * even(spec.k) * 2)),
        sums_bytes_(outputs > 3 ? static_cast<std::size_t>(panels_of(spec.n) * kHalfPanel) * sizeof(float) : 0) {}

  void run(const Io& io) const override {
    pack_pairs(io, io.input<float>(1), s_.b_row, s_.b_col, s_.k, s_.n, reinterpret_cast<Half*>(io.scratch));
    in_slots(io, parts_, slots_, [&](std::int64_t part, std::int64_t slot) { run_part(io, part, slot); });
    if (out(io, 3) != nullptr) fold_sums(io);
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return packed_bytes_ + static_cast<std::size_t>(slots_) * left_bytes_ + static_cast<std::size_t>(parts_) * sums_bytes_;
  }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  [[nodiscard]] void* out(const Io& io, std::size_t i) const { return i < outputs_ ? io.out[i] : nullptr; }
  [[nodiscard]] float* sums_of(const Io& io, std::int64_t part) const {
    return reinterpret_cast<float*>(io.scratch + packed_bytes_ + static_cast<std::size_t>(slots_) * left_bytes_ +
                                    static_cast<std::size_t>(part) * sums_bytes_);
  }

  void run_part(const Io& io, std::int64_t part, std::int64_t slot) const {
    const std::int64_t first = part * kPartRows;
    const std::int64_t last = std::min(s_.m, first + kPartRows);
    const std::int64_t apart = even(s_.k);
    const Half* a = io.input<Half>(0) + first * apart;
    if (!s_.rounded) {
      auto* rounded = reinterpret_cast<Half*>(io.scratch + packed_bytes_ + static_cast<std::size_t>(slot) * left_bytes_);
      for (std::int64_t i = first; i < last; ++i) round_row(io.input<float>(0) + i * s_.k, s_.k, rounded + (i - first) * apart);
      a = rounded;
    }
    const Ends ends{.m = s_.m,
                    .n = s_.n,
                    .rows_apart = even(s_.n),
                    .panel = (s_.m + 1) / 2 * kPair,
                    .bias = s_.has_bias ? io.input<float>(2) : nullptr,
                    .mask = s_.has_mask ? io.input<Half>(3) : nullptr,
                    .relu = s_.relu,
                    .y = static_cast<float*>(out(io, 0)),
                    .rows = static_cast<Half*>(out(io, 1)),
                    .pairs = static_cast<Half*>(out(io, 2)),
                    .sums = out(io, 3) == nullptr ? nullptr : sums_of(io, part)};
    if (ends.sums != nullptr) std::memset(ends.sums, 0, sums_bytes_);
    const auto* w = reinterpret_cast<const Half*>(io.scratch);
    const std::int64_t pairs = apart / 2;
    const std::int64_t panel = pairs * kPair;
    const auto& tiles = s_.has_mask ? tiles_.masked : tiles_.plain;
    if (tiles_.begin != nullptr) tiles_.begin();
    for (std::int64_t j = 0; j < panels_of(s_.n);) {
      const std::int64_t panels = panels_at_once(panels_of(s_.n) - j, tiles_.panels);
      const auto tile = tiles[static_cast<std::size_t>(panels) - 1];
      for (std::int64_t i = first; i < last; i += tiles_.rows)
        tile(a + (i - first) * apart, apart, w + j * panel, panel, pairs, i, j * kHalfPanel, ends);
      j += panels;
    }
    if (tiles_.end != nullptr) tiles_.end();
  }

  void fold_sums(const Io& io) const {
    auto* to = static_cast<float*>(out(io, 3));
    for (std::int64_t j = 0; j < s_.n; ++j) {
      double sum = 0;
      for (std::int64_t part = 0; part < parts_; ++part) sum += static_cast<double>(sums_of(io, part)[j]);
      to[j] = static_cast<float>(sum);
    }
  }

  HalfProductSpec s_;
  const Tiles& tiles_;
  std::string name_;
  std::size_t outputs_;
  std::int64_t parts_, slots_;
  std::size_t packed_bytes_, left_bytes_, sums_bytes_;
};

class WeightGrad final : public Kernel {
 public:
  WeightGrad(const HalfGradSpec& spec, std::size_t threads)
      : s_(spec),
        tiles_(tiles_now()),
        name_(format("{} gradient in halves", tiles_.name)),
        parts_((spec.m + kPartRows - 1) / kPartRows),
        slots_(std::min(parts_, static_cast<std::int64_t>(threads))),
        turned_apart_((even(spec.k) / 2 + amx::kGroups - 1) / amx::kGroups * amx::kGroups * 2),
        turned_bytes_(tiles_.rows == kAmxRows ? aligned(kAmxRows * turned_apart_ * kHalfBytes) : 0),
        p_bytes_(spec.p_rounded ? 0 : aligned(panels_of(spec.m) * even(spec.k) * kHalfPanel * 2)),
        q_bytes_(spec.q_rounded ? 0 : aligned(panels_of(spec.n) * even(spec.k) * kHalfPanel * 2)) {}

  void run(const Io& io) const override {
    const auto operand = [&](std::size_t i, bool rounded, std::int64_t width, std::byte* scratch) {
      if (rounded) return io.input<Half>(i);
      pack_pairs(io, io.input<float>(i), width, 1, s_.k, width, reinterpret_cast<Half*>(scratch));
      return reinterpret_cast<const Half*>(scratch);
    };
    const Half* p = operand(0, s_.p_rounded, s_.m, io.scratch);
    const Half* q = operand(1, s_.q_rounded, s_.n, io.scratch + p_bytes_);
    const std::int64_t pairs = even(s_.k) / 2;
    in_slots(io, parts_, slots_, [&](std::int64_t part, std::int64_t slot) {
      const std::int64_t first = part * kPartRows;
      const std::int64_t last = std::min(s_.m, first + kPartRows);
      if (turned_bytes_ == 0) {
        run_part(p, q, pairs, first, last, io.output<float>(0));
      } else {
        auto* turned = reinterpret_cast<Half*>(io.scratch + p_bytes_ + q_bytes_ + static_cast<std::size_t>(slot) * turned_bytes_);
        run_part_turned(p, q, pairs, first, last, turned, io.output<float>(0));
      }
    });
  }
  [[nodiscard]] std::size_t scratch_bytes() const override {
    return p_bytes_ + q_bytes_ + static_cast<std::size_t>(slots_) * turned_bytes_;
  }
  [[nodiscard]] std::string_view implementation() const override { return name_; }

 private:
  void run_part(const Half* p, const Half* q, std::int64_t pairs, std::int64_t first, std::int64_t last, float* y) const {
    const std::int64_t panel = pairs * kPair;
    for (std::int64_t j = 0; j < panels_of(s_.n);) {
      const std::int64_t panels = panels_at_once(panels_of(s_.n) - j, tiles_.panels);
      const auto tile = tiles_.grad[static_cast<std::size_t>(panels) - 1];
      for (std::int64_t i = first; i < last; i += kTileRows) {
        tile(p + i / kHalfPanel * panel + i % kHalfPanel * 2, q + j * panel, panel, pairs, y + i * s_.n + j * kHalfPanel, s_.n, last - i,
             s_.n - j * kHalfPanel);
      }
      j += panels;
    }
  }
  void run_part_turned(const Half* p, const Half* q, std::int64_t pairs, std::int64_t first, std::int64_t last, Half* turned,
                       float* y) const {
    const std::int64_t panel = pairs * kPair;
    if (tiles_.begin != nullptr) tiles_.begin();
    for (std::int64_t i = first; i < last; i += kAmxRows) {
      const std::int64_t rows = std::min<std::int64_t>(kAmxRows, last - i);
      for (std::int64_t r = 0; r < rows; r += kHalfPanel)
        turn_panel(p + (i + r) / kHalfPanel * panel, pairs, turned + r * turned_apart_, turned_apart_);
      for (std::int64_t j = 0; j < panels_of(s_.n);) {
        const std::int64_t panels = panels_at_once(panels_of(s_.n) - j, tiles_.panels);
        tiles_.grad_of_rows[static_cast<std::size_t>(panels) - 1](turned, turned_apart_, q + j * panel, panel, pairs,
                                                                  y + i * s_.n + j * kHalfPanel, s_.n, rows, s_.n - j * kHalfPanel);
        j += panels;
      }
    }
    if (tiles_.end != nullptr) tiles_.end();
  }

  HalfGradSpec s_;
  const Tiles& tiles_;
  std::string name_;
  std::int64_t parts_, slots_;
  std::int64_t turned_apart_;  // of rows that are turned panels, elements
  std::size_t turned_bytes_;   // of a slot
  std::size_t p_bytes_, q_bytes_;
};

}  // namespace

Result<KernelPtr> make_rounded_product(const KernelCall& call) {
  if (!has_avx512_bf16()) return refuse("this CPU has no AVX512_BF16");
  if (call.batch_invariant) return refuse("only for training");
  FALAJ_TRY(check_f32(call, "bf16 in halves"));
  FALAJ_ASSIGN(const auto s, matmul_spec(call));
  constexpr std::int64_t kWorkMin = std::int64_t{1} << 21;  // less does not repay the packing
  if (s.batches() != 1 || s.m * s.n * s.k < kWorkMin) return refuse("several products, or a small one");
  if (s.alpha != 1.0 || (s.b_row != 1 && s.b_col != 1)) return refuse("alpha is not 1, or the right operand has no runs");
  if (s.a_col == 1 && s.a_row == s.k) {
    const bool plain = s.activation == Activation::none || s.activation == Activation::relu;
    if (!plain || (s.has_bias && (s.beta != 1.0 || s.bias_row != 0 || s.bias_col != 1)))
      return refuse("another activation, or the bias is no row");
    const HalfProductSpec product{
        .m = s.m, .n = s.n, .k = s.k, .b_row = s.b_row, .b_col = s.b_col, .has_bias = s.has_bias, .relu = s.activation == Activation::relu};
    return std::make_unique<Product>(product, 1, call.threads);
  }
  const bool grad = s.a_row == 1 && s.a_col == s.m && s.b_col == 1 && s.b_row == s.n && !s.has_bias && s.activation == Activation::none;
  if (!grad) return refuse("operands do not lie as they do in training");
  return std::make_unique<WeightGrad>(HalfGradSpec{s.m, s.n, s.k}, call.threads);
}

Result<KernelPtr> make_half_product(const KernelCall& call) {
  if (!has_avx512_bf16()) return refuse("this CPU has no AVX512_BF16");
  if (call.node.op == "HalfWeightGrad") {
    FALAJ_ASSIGN(const auto spec, half_grad_spec(call));
    if (spec.m == 0 || spec.n == 0 || spec.k == 0) return refuse("nothing to compute");
    return std::make_unique<WeightGrad>(spec, call.threads);
  }
  FALAJ_ASSIGN(const auto spec, half_product_spec(call));
  if (spec.m == 0 || spec.n == 0 || spec.k == 0) return refuse("nothing to compute");
  return std::make_unique<Product>(spec, call.outputs.size(), call.threads);
}

}  // namespace falaj::kernels::cpu
