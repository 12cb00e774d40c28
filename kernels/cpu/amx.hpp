// Products by Intel's AMX: tiles of sixteen rows of 64 bytes, and one instruction that adds the products of two of them to a third. What a
// packed panel of integers (integer.hpp) or bfloat16 (bf16_columns.hpp) is, is what the instruction takes for its right operand as it lies
// there: for each group of four bytes (four integers, or a pair of bfloat16) sixteen columns. Rows may begin anywhere.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and the operations of TDPBUSD and TDPBF16PS
// in volume 2. The work is written once for two engines: the processor's, and plain loops that do what the manual says of each instruction,
// for tests on machines that have none. Before the processor's are first used, both must agree on one product.
#pragma once
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace falaj::kernels::cpu::amx {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row
constexpr int kGroups = kTileBytes / 4;
constexpr int kTiles = 8;
using Tile = std::uint8_t[kTileRows][kTileBytes];

enum class Of : std::uint8_t { bytes, halves };  // u8 by s8, sums in s32, or bfloat16, sums in f32

// Around all work of the processor's tiles: palette 1, every tile whole. Tiles belong to the thread.
void configure();
void release();

// The processor's instructions, whose operands are part of their names.
template <Of kOf>
struct Engine {
  template <int N>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(N));
  }
  template <int N>
  static void load(const void* from, std::int64_t apart) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(apart), "i"(N) : "memory");
  }
  template <int N>
  static void store(void* to, std::int64_t apart) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(apart), "i"(N) : "memory");
  }
  template <int N, int kLeft, int kRight>
  static void multiply() {
    if constexpr (kOf == Of::bytes) {
      asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(N), "i"(kLeft), "i"(kRight));
    } else {
      asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(N), "i"(kLeft), "i"(kRight));
    }
  }
};

template <Of kOf>
struct Loops {
  static inline thread_local Tile tiles[kTiles] = {};

  template <int N>
  static void zero() {
    std::memset(tiles[N], 0, sizeof(Tile));
  }
  template <int N>
  static void load(const void* from, std::int64_t apart) {
    for (int m = 0; m < kTileRows; ++m) std::memcpy(tiles[N][m], static_cast<const std::byte*>(from) + m * apart, kTileBytes);
  }
  template <int N>
  static void store(void* to, std::int64_t apart) {
    for (int m = 0; m < kTileRows; ++m) std::memcpy(static_cast<std::byte*>(to) + m * apart, tiles[N][m], kTileBytes);
  }
  template <int N, int kLeft, int kRight>
  static void multiply() {
    for (int m = 0; m < kTileRows; ++m) {
      for (int n = 0; n < kTileRows; ++n) add(tiles[N][m] + 4 * n, tiles[kLeft][m], &tiles[kRight][0][0] + 4 * n);
    }
  }

 private:
  // A row of the left tile by a column of the right one.
  static void add(std::uint8_t* sum, const std::uint8_t* left, const std::uint8_t* right) {
    if constexpr (kOf == Of::bytes) {
      std::int32_t total;
      std::memcpy(&total, sum, sizeof total);
      for (int k = 0; k < kTileBytes; ++k)
        total += static_cast<std::int32_t>(left[k]) * static_cast<std::int8_t>(right[k / 4 * kTileBytes + k % 4]);
      std::memcpy(sum, &total, sizeof total);
    } else {
      // Sums of the first ones of pairs, and of the second ones, are added to each other at the end.
      float of[2] = {};
      for (int k = 0; k < 2 * kGroups; ++k) of[k % 2] += half(left + 2 * k) * half(right + k / 2 * kTileBytes + k % 2 * 2);
      float total;
      std::memcpy(&total, sum, sizeof total);
      total += of[0] + of[1];
      std::memcpy(sum, &total, sizeof total);
    }
  }
  static float half(const std::uint8_t* at) {
    std::uint16_t bits;
    std::memcpy(&bits, at, sizeof bits);
    return std::bit_cast<float>(std::uint32_t{bits} << 16);
  }
};

// Rows of a left operand.
template <class Byte>
struct Rows {
  const Byte* const* each;  // null: they lie `apart` bytes from the first
  const Byte* first;
  std::int64_t apart;
  int count;

  static Rows at(const Byte* const* each, int count) {
    const std::int64_t apart = count > 1 ? each[1] - each[0] : 0;
    bool even = true;
    for (int r = 2; r < count; ++r) even = even && each[r] - each[r - 1] == apart;
    return {even ? nullptr : each, each[0], apart, count};
  }
  [[nodiscard]] const Byte* row(int r) const { return each != nullptr ? each[r] : first + r * apart; }
};

// Puts sixteen rows' next `groups` groups into tile N; rows and groups that are not there are zeros.
template <class E, int N, class Byte>
void load_left(const Rows<Byte>& x, int first, std::int64_t offset, std::int64_t groups, Tile& copy) {
  const int rows = std::min(x.count - first, kTileRows);
  if (x.each == nullptr && rows == kTileRows && groups == kGroups) {
    E::template load<N>(x.first + first * x.apart + offset, x.apart);
    return;
  }
  for (int r = 0; r < kTileRows; ++r) {
    const std::size_t kept = r < rows ? static_cast<std::size_t>(4 * groups) : 0;
    if (kept > 0) std::memcpy(copy[r], x.row(first + r) + offset, kept);
    std::memset(copy[r] + kept, 0, kTileBytes - kept);
  }
  E::template load<N>(copy, kTileBytes);
}

// Rows by panels: sums [kRowTiles * 16, kPanels * 16] of four bytes each. Rows are read at `places` offsets, `groups` groups at each;
// panels lie `panel` bytes apart, and are [places, groups, 16, 4] bytes each, aligned to 64. Panels are read to their ends, and no further.
template <class E, int kRowTiles, int kPanels, class Byte>
void sum_up(const Rows<Byte>& x, const std::int64_t* offsets, std::int64_t places, std::int64_t groups, const void* panels,
            std::int64_t panel, void* sums) {
  static_assert(kRowTiles <= 2 && kRowTiles * kPanels <= 4);
  constexpr int kLeft = 4, kRight = 6;  // and one more of each; sums before them
  alignas(64) Tile left;
  alignas(64) Tile right;
  const auto each_panel = [](auto what) {
    what.template operator()<0>();
    if constexpr (kPanels > 1) what.template operator()<1>();
    if constexpr (kPanels > 2) what.template operator()<2>();
    if constexpr (kPanels > 3) what.template operator()<3>();
  };
  each_panel([]<int P>() {
    E::template zero<P>();
    if constexpr (kRowTiles > 1) E::template zero<kPanels + P>();
  });
  for (std::int64_t p = 0; p < places; ++p) {
    for (std::int64_t g = 0; g < groups; g += kGroups) {
      const std::int64_t count = std::min<std::int64_t>(groups - g, kGroups);
      load_left<E, kLeft>(x, 0, offsets[p] + 4 * g, count, left);
      if constexpr (kRowTiles > 1) load_left<E, kLeft + 1>(x, kTileRows, offsets[p] + 4 * g, count, left);
      each_panel([&]<int P>() {
        const auto* from = static_cast<const std::byte*>(panels) + P * panel + (p * groups + g) * kTileBytes;
        if (count < kGroups) {
          std::memcpy(right, from, static_cast<std::size_t>(count) * kTileBytes);
          std::memset(right + count, 0, static_cast<std::size_t>(kGroups - count) * kTileBytes);
          E::template load<kRight + P % 2>(right, kTileBytes);
        } else {
          E::template load<kRight + P % 2>(from, kTileBytes);
        }
        E::template multiply<P, kLeft, kRight + P % 2>();
        if constexpr (kRowTiles > 1) E::template multiply<kPanels + P, kLeft + 1, kRight + P % 2>();
      });
    }
  }
  constexpr std::int64_t kRow = kPanels * kTileBytes;
  each_panel([&]<int P>() {
    auto* to = static_cast<std::byte*>(sums) + P * kTileBytes;
    E::template store<P>(to, kRow);
    if constexpr (kRowTiles > 1) E::template store<kPanels + P>(to + kTileRows * kRow, kRow);
  });
}

// A table of tiles for 1, 2 and 4 panels, by rows from 1 to 16: of each the function that `tile.template operator()<kRows, kPanels>()`
// tells.
template <class Tile, class Make>
constexpr void fill(Tile (&tiles)[3][kTileRows + 1], Make tile) {
  const auto of = [&]<int kPanels, int... kRow>(Tile(&to)[kTileRows + 1], std::integer_sequence<int, kRow...>) {
    ((to[kRow + 1] = tile.template operator()<kRow + 1, kPanels>()), ...);
  };
  using Rows = std::make_integer_sequence<int, kTileRows>;
  of.template operator()<1>(tiles[0], Rows());
  of.template operator()<2>(tiles[1], Rows());
  of.template operator()<4>(tiles[2], Rows());
}

// Whether kernels made now on this thread use tiles for bfloat16: the processor's, or loops where tests ask for them (IntegerIsaLimit).
enum class Use : std::uint8_t { none, tiles, loops };
Use use_for_halves() noexcept;

}  // namespace falaj::kernels::cpu::amx
