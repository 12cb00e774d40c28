// What this machine's CPU can do, asked once. Code for an instruction set is compiled function by function (target attributes), so that
// one binary runs everywhere.
#pragma once

namespace falaj::kernels::cpu {

bool has_avx2() noexcept;    // AVX2 and FMA
bool has_avx512() noexcept;  // AVX-512 F, BW, VL, DQ

}  // namespace falaj::kernels::cpu
