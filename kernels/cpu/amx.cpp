#include "kernels/cpu/amx.hpp"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cpu/integer.hpp"
#include "kernels/cpu/isa.hpp"

namespace falaj::kernels::cpu {
namespace amx {
namespace {

enum Feature : unsigned { kBf16 = 1U << 22, kTile = 1U << 24, kInt8 = 1U << 25 };

bool has(Feature feature) noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kTile) != 0 && (d & feature) != 0;
}

// Linux has a process ask before it may use the tiles' 8 KiB of state.
bool may_use_tiles() noexcept {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool kMay = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return kMay;
}

// Two products, of rows that lie evenly and of others, by the processor and by the loops. What could not be run on the machine that this
// was written on is not taken on trust. Values are small whole numbers, whose sums are exact in f32 too.
template <Of kOf>
bool agrees_with_loops() {
  constexpr std::int64_t kPlaces = 2, kSteps = 19;  // a whole tile of groups and three more
  constexpr int kRows = 2 * kTileRows - 1;
  constexpr std::int64_t kRowBytes = 4 * kPlaces * kSteps;
  alignas(64) std::uint8_t rows[kRows][kRowBytes];
  alignas(64) std::uint8_t panels[4 * kPlaces * kSteps * kTileBytes];
  std::uint32_t state = 1;
  const auto fill = [&state](std::uint8_t* to, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; i += kOf == Of::bytes ? 1 : 2) {
      state = state * 1664525U + 1013904223U;
      if constexpr (kOf == Of::bytes) {
        to[i] = static_cast<std::uint8_t>(state >> 24);
      } else {
        const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<int>(state >> 28) - 8));
        const auto half = static_cast<std::uint16_t>(bits >> 16);
        std::memcpy(to + i, &half, sizeof half);
      }
    }
  };
  fill(&rows[0][0], sizeof rows);
  fill(panels, sizeof panels);
  const std::uint8_t* shuffled[kTileRows];
  for (int r = 0; r < kTileRows; ++r) shuffled[r] = rows[r * 7 % kRows];
  const std::int64_t offsets[kPlaces] = {4 * kSteps, 0};
  alignas(64) std::uint8_t real[2][4 * sizeof(Tile)];
  alignas(64) std::uint8_t plain[2][4 * sizeof(Tile)];
  const auto both = [&]<class E>(E, std::uint8_t(&sums)[2][4 * sizeof(Tile)]) {
    const Rows<std::uint8_t> even{nullptr, rows[0], kRowBytes, kRows};
    sum_up<E, 2, 2>(even, offsets, kPlaces, kSteps, panels, kPlaces * kSteps * kTileBytes, sums[0]);
    sum_up<E, 1, 4>(Rows<std::uint8_t>::at(shuffled, kTileRows), offsets, kPlaces, kSteps, panels, kPlaces * kSteps * kTileBytes, sums[1]);
  };
  configure();
  both(Engine<kOf>{}, real);
  release();
  both(Loops<kOf>{}, plain);
  return std::memcmp(real, plain, sizeof real) == 0;
}

}  // namespace

void configure() {
  struct alignas(64) {
    std::uint8_t palette, start_row, reserved[14];
    std::uint16_t bytes[16];
    std::uint8_t rows[16];
  } config{};
  static_assert(sizeof config == 64);
  config.palette = 1;
  for (int tile = 0; tile < kTiles; ++tile) {
    config.bytes[tile] = kTileBytes;
    config.rows[tile] = kTileRows;
  }
  asm volatile("ldtilecfg %0" : : "m"(config));
}
void release() { asm volatile("tilerelease"); }

Use use_for_halves() noexcept {
  if (!has_avx512_bf16() || integer_isa() != IntegerIsa::amx) return Use::none;
  if (has_amx_bf16()) return Use::tiles;
  return has_amx_int8() ? Use::none : Use::loops;
}

}  // namespace amx

bool has_amx_int8() noexcept {
  static const bool kHas = amx::has(amx::kInt8) && amx::may_use_tiles() && amx::agrees_with_loops<amx::Of::bytes>();
  return kHas && has_avx512_vnni();
}

bool has_amx_bf16() noexcept {
  static const bool kHas = amx::has(amx::kBf16) && amx::may_use_tiles() && amx::agrees_with_loops<amx::Of::halves>();
  return kHas && has_avx512_bf16();
}

}  // namespace falaj::kernels::cpu
