#include "kernels/plan.hpp"

namespace falaj::kernels {

const Backend& cpu_backend() {
  static const Backend kCpu{"cpu", [](const OpDef&, const KernelCall&) -> Result<KernelPtr> {
                              return Error{ErrorCode::unimplemented, "no fast kernel for this op"};
                            }};
  return kCpu;
}

void set_flush_denormals() {
#if defined(__SSE2__)
  __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040U);
#endif
}

}  // namespace falaj::kernels
