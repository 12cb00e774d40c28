// Tiles of integer.hpp on AMX, exact in 32 bits as all others are.
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

template <class E>
constexpr IntegerTiles table(std::string_view name, void (*begin)(), void (*end)()) {
  IntegerTiles out{.name = name, .rows_max = kIntegerRows, .panels_max = 4, .tiles = {}, .begin = begin, .end = end};
  amx::fill(out.tiles, []<int kRows, int kPanels>() { return tile_amx<E, kRows, kPanels>; });
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
