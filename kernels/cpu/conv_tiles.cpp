#include "kernels/cpu/conv_tiles.hpp"

#include "kernels/cpu/finish.hpp"
#include "kernels/cpu/isa.hpp"

namespace falaj::kernels::cpu {
namespace {

namespace lanes8 {
constexpr std::int64_t kTilePixels = 6;
#define FALAJ_LANES FALAJ_AVX2
#define FALAJ_V __m256
#include "kernels/cpu/conv_tiles_body.hpp"
#undef FALAJ_LANES
#undef FALAJ_V
constexpr ConvLoops kLoops = {"avx2",
                              kTilePixels,
                              1,
                              {{nullptr, tile<1, 2>, tile<2, 2>, tile<3, 2>, tile<4, 2>, tile<5, 2>, tile<6, 2>}, {}},
                              {{nullptr, tile<4, 2, 4>}, {}},
                              max_pool,
                              one_channel<1>,
                              one_channel<2>};
}  // namespace lanes8

namespace lanes16 {
constexpr std::int64_t kTilePixels = kConvPixels;
#define FALAJ_LANES FALAJ_AVX512
#define FALAJ_V __m512
#include "kernels/cpu/conv_tiles_body.hpp"
#undef FALAJ_LANES
#undef FALAJ_V
constexpr ConvLoops kLoops = {
    "avx512",
    kTilePixels,
    2,
    {{nullptr, tile<1, 1>, tile<2, 1>, tile<3, 1>, tile<4, 1>, tile<5, 1>, tile<6, 1>, tile<7, 1>, tile<8, 1>, tile<9, 1>, tile<10, 1>,
      tile<11, 1>, tile<12, 1>},
     {nullptr, tile<1, 2>, tile<2, 2>, tile<3, 2>, tile<4, 2>, tile<5, 2>, tile<6, 2>, tile<7, 2>, tile<8, 2>, tile<9, 2>, tile<10, 2>,
      tile<11, 2>, tile<12, 2>}},
    {{nullptr, tile<4, 1, 4>, tile<8, 1, 4>, tile<12, 1, 4>}, {nullptr, tile<4, 2, 4>, tile<8, 2, 4>, tile<12, 2, 4>}},
    max_pool,
    one_channel<1>,
    one_channel<2>};
}  // namespace lanes16

}  // namespace

void finish_avx2(const float* sums, int rows, int vectors, const ConvTarget& t) { lanes8::finish_tile<1>(sums, rows, vectors, t); }
void finish_avx512(const float* sums, int rows, int vectors, const ConvTarget& t) { lanes16::finish_tile<1>(sums, rows, vectors, t); }

const ConvLoops& conv_loops() { return has_avx512() ? lanes16::kLoops : lanes8::kLoops; }

}  // namespace falaj::kernels::cpu
