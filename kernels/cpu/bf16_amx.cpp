// Tiles of bf16_columns.hpp on AMX. They add pairs in another order than AVX512_BF16: the last bits of sums differ from its.
#include "kernels/cpu/amx.hpp"
#include "kernels/cpu/bf16_columns.hpp"

namespace falaj::kernels::cpu {
namespace {

template <class E, int kRows, int kPanels>
void tile_amx(const std::byte* const* x, const std::int64_t* offsets, std::int64_t places, std::int64_t pairs, const Half* w,
              std::int64_t panel_stride, const Half*, const ConvTarget& t) {
  alignas(64) float sums[amx::kTileRows * kPanels * kHalfPanel];
  constexpr auto kHalf = static_cast<std::int64_t>(sizeof(Half));
  amx::sum_up<E, 1, kPanels>(amx::Rows<std::byte>::at(x, kRows), offsets, places, pairs, w, panel_stride * kHalf, sums);
  finish_avx512(sums, kRows, kPanels, t);
}

template <class E>
constexpr HalfTiles table(std::string_view name, void (*begin)(), void (*end)()) {
  HalfTiles out{.name = name, .rows_max = kHalfRows, .panels_max = 4, .round = round_row_avx512, .tiles = {}, .begin = begin, .end = end};
  amx::fill(out.tiles, []<int kRows, int kPanels>() { return tile_amx<E, kRows, kPanels>; });
  return out;
}
static_assert(kHalfRows == amx::kTileRows && kHalfPanel == amx::kTileRows);

}  // namespace

const HalfTiles* amx_half_tiles() {
  static constexpr HalfTiles kAmx = table<amx::Engine<amx::Of::halves>>("amx-bf16", amx::configure, amx::release);
  static constexpr HalfTiles kLoops = table<amx::Loops<amx::Of::halves>>("amx-bf16, by plain loops", nullptr, nullptr);
  const amx::Use use = amx::use_for_halves();
  return use == amx::Use::none ? nullptr : (use == amx::Use::tiles ? &kAmx : &kLoops);
}

}  // namespace falaj::kernels::cpu
