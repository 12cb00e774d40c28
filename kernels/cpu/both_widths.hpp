// Loops that are written once, for both widths of vectors: FALAJ_BODY, a file that is included here with FALAJ_LANES, the attribute of an
// instruction set, and FALAJ_V, its vector, in namespaces lanes8 (AVX2) and lanes16 (AVX-512). For that reason neither has a #pragma once;
// included where the loops' types are known, in an unnamed namespace. FALAJ_WIDE: another attribute than FALAJ_AVX512.

#ifndef FALAJ_WIDE
#define FALAJ_WIDE FALAJ_AVX512
#endif

namespace lanes8 {
#define FALAJ_LANES FALAJ_AVX2
#define FALAJ_V __m256
#include FALAJ_BODY
#undef FALAJ_LANES
#undef FALAJ_V
}  // namespace lanes8
namespace lanes16 {
#define FALAJ_LANES FALAJ_WIDE
#define FALAJ_V __m512
#include FALAJ_BODY
#undef FALAJ_LANES
#undef FALAJ_V
}  // namespace lanes16
#undef FALAJ_BODY
#undef FALAJ_WIDE
