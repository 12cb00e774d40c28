// Tiles of integer.hpp on Intel's AMX: sixteen rows by sixteen columns, 64 products for each with one instruction (TDPBUSD), exact in 32
// bits as all others are. A packed panel is what the instruction takes for its right operand as it lies there. Rows may begin anywhere, so
// that 64 bytes of each are brought together first.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and the operation of TDPBUSD in volume 2.
// The work is written once for two engines: the processor's, and plain loops that do what the manual says of each instruction, for tests on
// machines that have none.
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/integer.hpp"
#include "kernels/cpu/integer_finish.hpp"
#include "kernels/cpu/isa.hpp"

#define FALAJ_AMX __attribute__((target("amx-tile,amx-int8")))

namespace falaj::kernels::cpu {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row
constexpr int kFours = kTileBytes / 4;

// Tiles 0 to 3 hold sums, 4 the rows, 5 a panel.
constexpr int kLeft = 4, kRight = 5;

struct Engine {
  template <int N>
  FALAJ_AMX static void zero() {
    if constexpr (N == 0) _tile_zero(0);
    if constexpr (N == 1) _tile_zero(1);
    if constexpr (N == 2) _tile_zero(2);
    if constexpr (N == 3) _tile_zero(3);
  }
  FALAJ_AMX static void load_left(const void* from) { _tile_loadd(4, from, kTileBytes); }
  FALAJ_AMX static void load_right(const void* from) { _tile_loadd(5, from, kTileBytes); }
  template <int N>
  FALAJ_AMX static void multiply() {
    if constexpr (N == 0) _tile_dpbusd(0, 4, 5);
    if constexpr (N == 1) _tile_dpbusd(1, 4, 5);
    if constexpr (N == 2) _tile_dpbusd(2, 4, 5);
    if constexpr (N == 3) _tile_dpbusd(3, 4, 5);
  }
  template <int N>
  FALAJ_AMX static void store(void* to, std::size_t stride) {
    if constexpr (N == 0) _tile_stored(0, to, stride);
    if constexpr (N == 1) _tile_stored(1, to, stride);
    if constexpr (N == 2) _tile_stored(2, to, stride);
    if constexpr (N == 3) _tile_stored(3, to, stride);
  }
};

// Palette 1, every tile whole.
FALAJ_AMX void configure() {
  struct alignas(64) {
    std::uint8_t palette, start_row, reserved[14];
    std::uint16_t bytes[16];
    std::uint8_t rows[16];
  } config{};
  static_assert(sizeof(config) == 64);
  config.palette = 1;
  for (int tile = 0; tile <= kRight; ++tile) {
    config.bytes[tile] = kTileBytes;
    config.rows[tile] = kTileRows;
  }
  _tile_loadconfig(&config);
}
FALAJ_AMX void release() { _tile_release(); }

struct PlainEngine {
  using Tile = std::uint8_t[kTileRows][kTileBytes];
  static thread_local Tile tiles[kRight + 1];

  template <int N>
  static void zero() {
    std::memset(tiles[N], 0, sizeof(Tile));
  }
  static void load_left(const void* from) { std::memcpy(tiles[kLeft], from, sizeof(Tile)); }
  static void load_right(const void* from) { std::memcpy(tiles[kRight], from, sizeof(Tile)); }
  template <int N>
  static void multiply() {
    for (int m = 0; m < kTileRows; ++m) {
      for (int k = 0; k < kFours; ++k) {
        for (int n = 0; n < kTileRows; ++n) {
          std::int32_t sum;
          std::memcpy(&sum, tiles[N][m] + 4 * n, sizeof sum);
          for (int i = 0; i < 4; ++i)
            sum += static_cast<std::int32_t>(tiles[kLeft][m][4 * k + i]) * static_cast<std::int8_t>(tiles[kRight][k][4 * n + i]);
          std::memcpy(tiles[N][m] + 4 * n, &sum, sizeof sum);
        }
      }
    }
  }
  template <int N>
  static void store(void* to, std::size_t stride) {
    for (int m = 0; m < kTileRows; ++m)
      std::memcpy(static_cast<std::byte*>(to) + static_cast<std::size_t>(m) * stride, tiles[N][m], kTileBytes);
  }
};
thread_local PlainEngine::Tile PlainEngine::tiles[kRight + 1] = {};

// `count` fours of a panel, behind them zeros.
void part_of_panel(const std::int8_t* w, std::int64_t count, std::uint8_t* to) {
  std::memcpy(to, w, static_cast<std::size_t>(count) * kTileBytes);
  std::memset(to + count * kTileBytes, 0, static_cast<std::size_t>(kFours - count) * kTileBytes);
}

template <class E, int kPanels>
void sum_up(const std::uint8_t* const* x, int rows, const std::int64_t* offsets, std::int64_t places, std::int64_t fours,
            const std::int8_t* w, std::int64_t panel_stride, std::int32_t* sums) {
  alignas(64) std::uint8_t left[kTileRows * kTileBytes] = {};  // rows that are not there stay zero
  alignas(64) std::uint8_t right[kTileRows * kTileBytes];
  const auto each = [](auto what) {
    what.template operator()<0>();
    if constexpr (kPanels > 1) what.template operator()<1>();
    if constexpr (kPanels > 2) {
      what.template operator()<2>();
      what.template operator()<3>();
    }
  };
  each([]<int N>() { E::template zero<N>(); });
  for (std::int64_t p = 0; p < places; ++p) {
    for (std::int64_t g = 0; g < fours; g += kFours) {
      const std::int64_t count = std::min<std::int64_t>(fours - g, kFours);
      for (int r = 0; r < rows; ++r) {
        std::uint8_t* row = left + r * kTileBytes;
        const std::uint8_t* from = x[r] + offsets[p] + 4 * g;
        if (count == kFours) {
          std::memcpy(row, from, kTileBytes);
        } else {
          std::memcpy(row, from, static_cast<std::size_t>(4 * count));
          std::memset(row + 4 * count, 0, static_cast<std::size_t>(kTileBytes - 4 * count));
        }
      }
      E::load_left(left);
      const std::int8_t* panel = w + (p * fours + g) * kTileBytes;
      each([&]<int N>() {
        const std::int8_t* from = panel + N * panel_stride;
        if (count < kFours) part_of_panel(from, count, right);
        E::load_right(count < kFours ? static_cast<const void*>(right) : from);
        E::template multiply<N>();
      });
    }
  }
  each([&]<int N>() { E::template store<N>(sums + N * kIntegerPanel, kPanels * kIntegerPanel * sizeof(std::int32_t)); });
}

template <class E, int kRows, int kPanels>
void tile_amx(const std::uint8_t* const* x, const std::int64_t* offsets, std::int64_t places, std::int64_t fours, const std::int8_t* w,
              std::int64_t panel_stride, const std::int8_t*, const IntegerTarget& t) {
  alignas(64) std::int32_t sums[kTileRows * kPanels * kIntegerPanel];
  sum_up<E, kPanels>(x, kRows, offsets, places, fours, w, panel_stride, sums);
  finish_integers(sums, kRows, kPanels * kIntegerPanel, t);
}

template <class E, int kPanels, std::size_t... kRow>
constexpr void fill(IntegerTile (&tiles)[kIntegerRows + 1], std::index_sequence<kRow...>) {
  ((tiles[kRow + 1] = tile_amx<E, static_cast<int>(kRow) + 1, kPanels>), ...);
}

template <class E>
constexpr IntegerTiles table(std::string_view name, void (*begin)(), void (*end)()) {
  IntegerTiles out{.name = name, .rows_max = kTileRows, .panels_max = 4, .tiles = {}, .begin = begin, .end = end};
  using Rows = std::make_index_sequence<kIntegerRows>;
  fill<E, 1>(out.tiles[0], Rows());
  fill<E, 2>(out.tiles[1], Rows());
  fill<E, 4>(out.tiles[2], Rows());
  return out;
}
static_assert(kIntegerRows == kTileRows && kIntegerPanel == kTileRows);

bool ask_for_tiles() noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kTile = 1U << 24, kInt8 = 1U << 25;
  if ((d & kTile) == 0 || (d & kInt8) == 0) return false;
  // Linux has a process ask before it may use the tiles' 8 KiB of state.
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

// One tile by the processor and by the loops. What the tests could not run on the machine that built this is not taken on trust.
bool agrees_with_loops() {
  constexpr std::int64_t kPlaces = 2, kSteps = 19;  // a whole tile of fours and three more
  std::uint8_t rows[kTileRows][8 * kSteps];
  alignas(64) std::int8_t panels[4 * kPlaces * kSteps * kTileBytes];
  std::uint32_t state = 1;
  const auto byte = [&state] { return static_cast<std::uint8_t>((state = state * 1664525U + 1013904223U) >> 24); };
  for (auto& row : rows) {
    for (auto& x : row) x = byte();
  }
  for (auto& w : panels) w = static_cast<std::int8_t>(byte());
  const std::uint8_t* x[kTileRows];
  for (int r = 0; r < kTileRows; ++r) x[r] = rows[r];
  const std::int64_t offsets[kPlaces] = {4 * kSteps, 0};
  alignas(64) std::int32_t real[kTileRows * 4 * kIntegerPanel];
  alignas(64) std::int32_t plain[kTileRows * 4 * kIntegerPanel];
  configure();
  sum_up<Engine, 4>(x, kTileRows, offsets, kPlaces, kSteps, panels, kPlaces * kSteps * kTileBytes, real);
  release();
  sum_up<PlainEngine, 4>(x, kTileRows, offsets, kPlaces, kSteps, panels, kPlaces * kSteps * kTileBytes, plain);
  return std::memcmp(real, plain, sizeof(real)) == 0;
}

}  // namespace

bool has_amx_int8() noexcept {
  static const bool kHas = ask_for_tiles() && agrees_with_loops();
  return kHas && has_avx512_vnni();
}

const IntegerTiles& amx_tiles() {
  static constexpr IntegerTiles kAmx = table<Engine>("amx integer", configure, release);
  static constexpr IntegerTiles kPlain = table<PlainEngine>("amx integer, by plain loops", nullptr, nullptr);
  return has_amx_int8() ? kAmx : kPlain;
}

}  // namespace falaj::kernels::cpu
