// What this machine's CPU can do, asked once. Code for an instruction set is compiled function by function (target attributes), so that
// one binary runs everywhere.
#pragma once

namespace falaj::kernels::cpu {

bool has_avx2() noexcept;         // AVX2 and FMA
bool has_avx512() noexcept;       // AVX-512 F, BW, VL, DQ
bool has_avx_vnni() noexcept;     // AVX2, FMA and AVX-VNNI
bool has_avx512_vnni() noexcept;  // the same as has_avx512(), and AVX512-VNNI
bool has_avx512_bf16() noexcept;  // the same as has_avx512(), and AVX512_BF16

}  // namespace falaj::kernels::cpu
