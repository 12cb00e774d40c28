#include "kernels/cpu/gemm.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/turn.hpp"

namespace falaj::kernels::cpu {

std::size_t packed_elements(std::int64_t k, std::int64_t n) { return static_cast<std::size_t>((n + kPanel - 1) / kPanel * kPanel * k); }

namespace {

// Sixteen columns (or fewer) of k elements, which follow one another: turned, eight by eight.
FALAJ_AVX2 void pack_turned(const float* b, std::int64_t col_stride, std::int64_t k, std::int64_t width, float* packed) {
  for (std::int64_t c = 0; c < kPanel; c += 8) {
    std::int64_t i = 0;
    for (; c + 8 <= width && i + 8 <= k; i += 8) turn8(b + c * col_stride + i, col_stride, packed + i * kPanel + c, kPanel);
    for (; i < k; ++i) {
      for (std::int64_t l = c; l < c + 8; ++l) packed[i * kPanel + l] = l < width ? b[l * col_stride + i] : 0.0F;
    }
  }
}

}  // namespace

void pack(const float* b, std::int64_t row_stride, std::int64_t col_stride, std::int64_t k, std::int64_t n, float* packed) {
  for (std::int64_t j = 0; j < n; j += kPanel, packed += k * kPanel) {
    std::int64_t width = std::min(kPanel, n - j);
    if (row_stride == 1 && col_stride != 1) {
      pack_turned(b + j * col_stride, col_stride, k, width, packed);
      continue;
    }
    for (std::int64_t i = 0; i < k; ++i) {
      const float* from = b + i * row_stride + j * col_stride;
      float* to = packed + i * kPanel;
      if (col_stride == 1 && width == kPanel) {
        std::memcpy(to, from, kPanel * sizeof(float));
        continue;
      }
      for (std::int64_t c = 0; c < width; ++c) to[c] = from[c * col_stride];
      for (std::int64_t c = width; c < kPanel; ++c) to[c] = 0.0F;
    }
  }
}

namespace {

std::int64_t row_of(const Finish& f, std::int64_t n) { return f.y_row == 0 ? n : f.y_row; }

struct Left {
  const float* data;
  std::int64_t row, col;
};

FALAJ_AVX2 inline __m256 finish8(__m256 sum, const Finish& f, __m256 bias) {
  sum = _mm256_fmadd_ps(sum, _mm256_set1_ps(f.alpha), bias);  // spelt out, so that no caller's copy is contracted otherwise
  return activate(sum, f.activation, f.activation_alpha);
}

// beta * bias for eight columns from j on, of which `width` exist.
FALAJ_AVX2 inline __m256 bias8(const Finish& f, std::int64_t i, std::int64_t j, std::int64_t width) {
  if (f.bias == nullptr || width <= 0) return _mm256_setzero_ps();
  const float* at = f.bias + i * f.bias_row + j * f.bias_col;
  __m256 bias;
  if (f.bias_col == 0) {
    bias = _mm256_set1_ps(*at);
  } else if (width >= 8 && f.bias_col == 1) {
    bias = _mm256_loadu_ps(at);
  } else {
    alignas(32) float lane[8] = {};
    for (std::int64_t c = 0; c < std::min<std::int64_t>(width, 8); ++c) lane[c] = at[c * f.bias_col];
    bias = _mm256_load_ps(lane);
  }
  return f.beta == 1.0F ? bias : _mm256_mul_ps(bias, _mm256_set1_ps(f.beta));
}

FALAJ_AVX2 inline void store8(float* to, __m256 value, std::int64_t width) {
  if (width >= 8) {
    _mm256_storeu_ps(to, value);
  } else if (width > 0) {
    alignas(32) float lane[8];
    _mm256_store_ps(lane, value);
    for (std::int64_t c = 0; c < width; ++c) to[c] = lane[c];
  }
}

// Bias, scale and activation of a tile's sums: rows of `vectors` times eight. Apart from the sums' loop, whose registers it would take.
[[gnu::noinline]] FALAJ_AVX2 void finish_tile(const float* sums, int rows, int vectors, float* y, std::int64_t y_row, std::int64_t i,
                                              std::int64_t j, std::int64_t n, const Finish& f) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < vectors; ++c, sums += 8) {
      std::int64_t column = j + 8 * c;
      std::int64_t width = n - column;
      if (width <= 0) continue;
      store8(y + (i + r) * y_row + column, finish8(_mm256_load_ps(sums), f, bias8(f, i + r, column, width)), width);
    }
  }
}

// kRows rows times kWide vectors of columns (kWide / 2 panels that lie `panel_stride` apart).
template <int kRows, int kPanels>
FALAJ_AVX2 inline void tile(const Left& a, const float* packed, std::int64_t panel_stride, float* y, std::int64_t y_row, std::int64_t k,
                            std::int64_t i, std::int64_t j, std::int64_t n, const Finish& f) {
  __m256 sum[kRows][2 * kPanels];
  FALAJ_UNROLL
  for (auto& row : sum) {
    FALAJ_UNROLL
    for (auto& s : row) s = _mm256_setzero_ps();
  }
  const float* x[kRows];
  FALAJ_UNROLL
  for (int r = 0; r < kRows; ++r) x[r] = a.data + (i + r) * a.row;
  for (std::int64_t t = 0, at = 0; t < k; ++t, at += a.col) {
    __m256 b[2 * kPanels];
    FALAJ_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      b[2 * p] = _mm256_load_ps(packed + p * panel_stride + t * kPanel);
      b[2 * p + 1] = _mm256_load_ps(packed + p * panel_stride + t * kPanel + 8);
    }
    FALAJ_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m256 value = _mm256_broadcast_ss(x[r] + at);
      FALAJ_UNROLL
      for (int c = 0; c < 2 * kPanels; ++c) sum[r][c] = _mm256_fmadd_ps(value, b[c], sum[r][c]);
    }
  }
  if (n - j >= kPanels * kPanel && f.is_simple()) {
    const __m256 alpha = _mm256_set1_ps(f.alpha);
    const __m256 least = f.activation == Activation::relu ? _mm256_setzero_ps() : _mm256_set1_ps(-__builtin_inff());
    FALAJ_UNROLL
    for (int c = 0; c < 2 * kPanels; ++c) {
      const __m256 bias = f.bias == nullptr ? _mm256_setzero_ps() : _mm256_loadu_ps(f.bias + j + 8 * c);
      FALAJ_UNROLL
      for (int r = 0; r < kRows; ++r)  // the larger one is the second operand where that is NaN
        _mm256_storeu_ps(y + (i + r) * y_row + j + 8 * c, _mm256_max_ps(least, _mm256_fmadd_ps(sum[r][c], alpha, bias)));
    }
    return;
  }
  alignas(32) float sums[kRows * 2 * kPanels * 8];
  FALAJ_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FALAJ_UNROLL
    for (int c = 0; c < 2 * kPanels; ++c) _mm256_store_ps(sums + (r * 2 * kPanels + c) * 8, sum[r][c]);
  }
  finish_tile(sums, kRows, 2 * kPanels, y, y_row, i, j, n, f);
}

// One row reads each panel once: four panels at a time keep eight chains of additions going.
FALAJ_AVX2 void one_row(const Left& a, const float* packed, float* y, std::int64_t n, std::int64_t k, std::int64_t i, const Finish& f) {
  const std::int64_t y_row = row_of(f, n);
  std::int64_t stride = k * kPanel;
  std::int64_t j = 0;
  for (; j + 3 * kPanel < n; j += 4 * kPanel, packed += 4 * stride) tile<1, 4>(a, packed, stride, y, y_row, k, i, j, n, f);
  for (; j + kPanel < n; j += 2 * kPanel, packed += 2 * stride) tile<1, 2>(a, packed, stride, y, y_row, k, i, j, n, f);
  if (j < n) tile<1, 1>(a, packed, stride, y, y_row, k, i, j, n, f);
}

template <int kRows>
FALAJ_AVX2 void some_rows(const Left& a, const float* packed, float* y, std::int64_t n, std::int64_t k, std::int64_t i, const Finish& f) {
  const std::int64_t y_row = row_of(f, n);
  for (std::int64_t j = 0; j < n; j += kPanel, packed += k * kPanel) tile<kRows, 1>(a, packed, 0, y, y_row, k, i, j, n, f);
}

}  // namespace

namespace {

// Rows that share one pass over the right operand: as many as the second cache holds beside a panel.
constexpr std::int64_t kLeftFloats = std::int64_t{1} << 16;

FALAJ_AVX2 void multiply_rows(const Left& left, const float* packed, float* y, std::int64_t m, std::int64_t n, std::int64_t k,
                              const Finish& finish, std::int64_t i) {
  if (m - i >= 6) {
    // Panel by panel, so that one panel stays in the nearest cache while all rows pass it.
    const std::int64_t y_row = row_of(finish, n);
    const std::int64_t first = i;
    const float* panel = packed;
    for (std::int64_t j = 0; j < n; j += kPanel, panel += k * kPanel) {
      for (i = first; i + 6 <= m; i += 6) tile<6, 1>(left, panel, 0, y, y_row, k, i, j, n, finish);
    }
  }
  switch (m - i) {
    case 5:
      some_rows<5>(left, packed, y, n, k, i, finish);
      break;
    case 4:
      some_rows<4>(left, packed, y, n, k, i, finish);
      break;
    case 3:
      some_rows<3>(left, packed, y, n, k, i, finish);
      break;
    case 2:
      some_rows<2>(left, packed, y, n, k, i, finish);
      break;
    case 1:
      one_row(left, packed, y, n, k, i, finish);
      break;
    default:
      break;
  }
}

}  // namespace

FALAJ_AVX2 void multiply_avx2(const float* a, std::int64_t a_row, std::int64_t a_col, const float* packed, float* y, std::int64_t m,
                              std::int64_t n, std::int64_t k, const Finish& finish) {
  const std::int64_t together = std::max<std::int64_t>(kLeftFloats / std::max<std::int64_t>(k, 1) / 6, 8) * 6;
  for (std::int64_t i = 0; i < m; i += together)
    multiply_rows(Left{a, a_row, a_col}, packed, y, std::min(m, i + together), n, k, finish, i);
}

}  // namespace falaj::kernels::cpu
