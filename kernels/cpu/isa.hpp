// What this machine's CPU can do, asked once. Code for an instruction set is compiled function by function (target attributes), so that
// one binary runs everywhere.
#pragma once

namespace falaj::kernels::cpu {

bool has_avx2() noexcept;         // AVX2 and FMA
bool has_avx512() noexcept;       // AVX-512 F, BW, VL, DQ
bool has_avx_vnni() noexcept;     // AVX2, FMA and AVX-VNNI
bool has_avx512_vnni() noexcept;  // the same as has_avx512(), and AVX512-VNNI
bool has_amx_int8() noexcept;     // the same as has_avx512_vnni(), and AMX-TILE and AMX-INT8, which the system lets this process use
bool has_avx512_bf16() noexcept;  // the same as has_avx512(), and AVX512_BF16
bool has_amx_bf16() noexcept;     // the same as has_avx512_bf16(), and AMX-TILE and AMX-BF16, likewise

// While this lives, has_avx512() and what builds on it say no on this thread: tests compare the kernels made then with the others.
class WithoutAvx512 {
 public:
  WithoutAvx512() noexcept;
  ~WithoutAvx512();
  WithoutAvx512(const WithoutAvx512&) = delete;
  WithoutAvx512& operator=(const WithoutAvx512&) = delete;

 private:
  bool before_;
};

}  // namespace falaj::kernels::cpu
