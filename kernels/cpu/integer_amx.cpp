// Tiles of integer.hpp on AMX, exact in 32 bits as all others are.
#include <utility>

#include "kernels/cpu/amx.hpp"
#include "kernels/cpu/integer.hpp"
#include "kernels/cpu/integer_finish.hpp"
#include "kernels/cpu/isa.hpp"

namespace falaj::kernels::cpu {
namespace {

template <class E, int kRows, int kPanels>
void tile_amx(const std::uint8_t* const* x, const std::int64_t* offsets, std::int64_t places, std::int64_t fours, const std::int8_t* w,
              std::int64_t panel_stride, const std::int8_t*, const IntegerTarget& t) {
  alignas(64) std::int32_t sums[amx::kTileRows * kPanels * kIntegerPanel];
  amx::sum_up<E, 1, kPanels>(amx::Rows<std::uint8_t>::at(x, kRows), offsets, places, fours, w, panel_stride, sums);
  finish_integers(sums, kRows, kPanels * kIntegerPanel, t);
}

template <class E, int kPanels, std::size_t... kRow>
constexpr void fill(IntegerTile (&tiles)[kIntegerRows + 1], std::index_sequence<kRow...>) {
  ((tiles[kRow + 1] = tile_amx<E, static_cast<int>(kRow) + 1, kPanels>), ...);
}

template <class E>
constexpr IntegerTiles table(std::string_view name, void (*begin)(), void (*end)()) {
  IntegerTiles out{.name = name, .rows_max = kIntegerRows, .panels_max = 4, .tiles = {}, .begin = begin, .end = end};
  using Rows = std::make_index_sequence<kIntegerRows>;
  fill<E, 1>(out.tiles[0], Rows());
  fill<E, 2>(out.tiles[1], Rows());
  fill<E, 4>(out.tiles[2], Rows());
  return out;
}
static_assert(kIntegerRows == amx::kTileRows && kIntegerPanel == amx::kTileRows);

}  // namespace

const IntegerTiles& amx_tiles() {
  static constexpr IntegerTiles kAmx = table<amx::Engine<amx::Of::bytes>>("amx integer", amx::configure, amx::release);
  static constexpr IntegerTiles kPlain = table<amx::Loops<amx::Of::bytes>>("amx integer, by plain loops", nullptr, nullptr);
  return has_amx_int8() ? kAmx : kPlain;
}

}  // namespace falaj::kernels::cpu
