// The product of gemm.hpp on sixteen lanes: the same chain for each element as in gemm.cpp, so the same bits.
//
// A tile is up to twelve rows times two panels, or six times four: 24 sums in registers, two or four vectors of the right operand, one
// number of the left one. Few rows take four panels at once, so that there are chains enough to hide the latency of an addition.
#include <algorithm>
#include <array>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/gemm.hpp"

namespace falaj::kernels::cpu {
namespace {

constexpr std::int64_t kRows = 12, kRowsWide = 6;  // of a tile of two panels, and of four
constexpr std::int64_t kLeftFloats = std::int64_t{1}
                                     << 16;  // of rows that share a pass over the right operand: in the second cache beside a panel

// Where a tile's results go, and what it is made of.
struct Place {
  const float* a;  // of the first row
  std::int64_t a_row, a_col;
  const float* packed;
  std::int64_t panel_stride;
  float* y;  // of the first row and column
  std::int64_t y_row, k;
  std::int64_t row, column, width;  // of the result: the tile's first, and how many columns of it exist
  const float* ahead;               // k x 16 floats that will be wanted: of the next panels
};

// beta * bias of one row of a panel.
FALAJ_AVX512 inline __m512 bias_of(const Finish& f, std::int64_t row, std::int64_t column, __mmask16 mask) {
  if (f.bias == nullptr) return _mm512_setzero_ps();
  const float* at = f.bias + row * f.bias_row + column * f.bias_col;
  __m512 bias;
  if (f.bias_col == 0) {
    bias = _mm512_set1_ps(*at);
  } else if (f.bias_col == 1) {
    bias = _mm512_maskz_loadu_ps(mask, at);
  } else {
    alignas(64) float lane[kPanel] = {};
    for (std::int64_t c = 0; c < kPanel; ++c) lane[c] = (mask >> c & 1) != 0 ? at[c * f.bias_col] : 0.0F;
    bias = _mm512_load_ps(lane);
  }
  return f.beta == 1.0F ? bias : _mm512_mul_ps(bias, _mm512_set1_ps(f.beta));
}

// The end of sums that have more to them than a bias for all rows and Relu. Apart from the sums' loop, whose registers it would take.
[[gnu::noinline]] FALAJ_AVX512 void finish_tile(const float* sums, int rows, int panels, const Place& p, const Finish& f) {
  const __m512 alpha = _mm512_set1_ps(f.alpha);
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < panels; ++c, sums += kPanel) {
      const __mmask16 mask = some_lanes(p.width - c * kPanel);
      const __m512 bias = bias_of(f, p.row + r, p.column + c * kPanel, mask);
      const __m512 sum = _mm512_fmadd_ps(_mm512_load_ps(sums), alpha, bias);
      _mm512_mask_storeu_ps(p.y + r * p.y_row + c * kPanel, mask, activate(sum, f.activation, f.activation_alpha));
    }
  }
}

template <int kTileRows, int kPanels>
FALAJ_AVX512 void tile(const Place& p, const Finish& f) {
  __m512 sum[kTileRows][kPanels];
  FALAJ_UNROLL
  for (auto& row : sum) {
    FALAJ_UNROLL
    for (auto& s : row) s = _mm512_setzero_ps();
  }
  const float* x[kTileRows];
  FALAJ_UNROLL
  for (int r = 0; r < kTileRows; ++r) x[r] = p.a + r * p.a_row;
  const float* w = p.packed;
  for (std::int64_t t = 0, at = 0; t < p.k; ++t, at += p.a_col, w += kPanel) {
    _mm_prefetch(reinterpret_cast<const char*>(p.ahead + t * kPanel), _MM_HINT_T1);
    __m512 b[kPanels];
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c) b[c] = _mm512_load_ps(w + c * p.panel_stride);
    FALAJ_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      const __m512 value = _mm512_set1_ps(x[r][at]);
      FALAJ_UNROLL
      for (int c = 0; c < kPanels; ++c) sum[r][c] = _mm512_fmadd_ps(value, b[c], sum[r][c]);
    }
  }
  if (f.is_simple()) {
    const __m512 alpha = _mm512_set1_ps(f.alpha);
    const __m512 least = f.activation == Activation::relu ? _mm512_setzero_ps() : _mm512_set1_ps(-__builtin_inff());
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c) {
      const __mmask16 mask = some_lanes(p.width - c * kPanel);
      const __m512 bias = f.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, f.bias + p.column + c * kPanel);
      FALAJ_UNROLL
      for (int r = 0; r < kTileRows; ++r)  // the larger one is the second operand where that is NaN
        _mm512_mask_storeu_ps(p.y + r * p.y_row + c * kPanel, mask, _mm512_max_ps(least, _mm512_fmadd_ps(sum[r][c], alpha, bias)));
    }
    return;
  }
  alignas(64) float sums[kTileRows * kPanels * kPanel];
  FALAJ_UNROLL
  for (int r = 0; r < kTileRows; ++r) {
    FALAJ_UNROLL
    for (int c = 0; c < kPanels; ++c) _mm512_store_ps(sums + (r * kPanels + c) * kPanel, sum[r][c]);
  }
  finish_tile(sums, kTileRows, kPanels, p, f);
}

using Tile = void (*)(const Place&, const Finish&);
constexpr std::array<Tile, kRows + 1> kOne = {nullptr,    tile<1, 1>, tile<2, 1>, tile<3, 1>,  tile<4, 1>,  tile<5, 1>, tile<6, 1>,
                                              tile<7, 1>, tile<8, 1>, tile<9, 1>, tile<10, 1>, tile<11, 1>, tile<12, 1>};
constexpr std::array<Tile, kRows + 1> kTwo = {nullptr,    tile<1, 2>, tile<2, 2>, tile<3, 2>,  tile<4, 2>,  tile<5, 2>, tile<6, 2>,
                                              tile<7, 2>, tile<8, 2>, tile<9, 2>, tile<10, 2>, tile<11, 2>, tile<12, 2>};
constexpr std::array<Tile, kRowsWide + 1> kFour = {nullptr, tile<1, 4>, tile<2, 4>, tile<3, 4>, tile<4, 4>, tile<5, 4>, tile<6, 4>};

// Rows that share one pass over the right operand.
void multiply_rows(const float* a, std::int64_t a_row, std::int64_t a_col, const float* packed, float* y, std::int64_t first,
                   std::int64_t end, std::int64_t n, std::int64_t k, const Finish& finish) {
  const std::int64_t stride = k * kPanel;
  const std::int64_t m = end - first;
  const std::int64_t tiles = (m + kRows - 1) / kRows;
  const Shares shares(tiles, m);
  const bool wide = m <= kRowsWide;
  const std::int64_t y_row = finish.y_row == 0 ? n : finish.y_row;
  for (std::int64_t j = 0; j < n;) {
    const std::int64_t left = (n - j + kPanel - 1) / kPanel;
    const std::int64_t panels = wide && left >= 4 ? 4 : (left >= 2 ? 2 : 1);
    const auto* kind = panels == 4 ? kFour.data() : (panels == 2 ? kTwo.data() : kOne.data());
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t row = first + shares.first(t);
      const std::int64_t rows = shares.first(t + 1) - shares.first(t);
      // Each of the first tiles fetches one of the next panels. A tile that is alone waits for memory as it is.
      const bool more = tiles > 1 && t < panels && (panels + t) * kPanel < n - j;
      kind[rows](Place{a + row * a_row, a_row, a_col, packed, stride, y + row * y_row + j, y_row, k, row, j, n - j,
                       packed + (more ? panels + t : 0) * stride},
                 finish);
    }
    packed += panels * stride;
    j += panels * kPanel;
  }
}

}  // namespace

void multiply_avx512(const float* a, std::int64_t a_row, std::int64_t a_col, const float* packed, float* y, std::int64_t m, std::int64_t n,
                     std::int64_t k, const Finish& finish) {
  const std::int64_t together = std::max<std::int64_t>(kLeftFloats / std::max<std::int64_t>(k, 1) / kRows, 4) * kRows;
  const std::int64_t blocks = (m + together - 1) / together;
  for (std::int64_t b = 0; b < blocks; ++b)
    multiply_rows(a, a_row, a_col, packed, y, first_of(b, blocks, m), first_of(b + 1, blocks, m), n, k, finish);
}

}  // namespace falaj::kernels::cpu
