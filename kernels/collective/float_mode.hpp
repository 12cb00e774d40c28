// Denormal numbers make float loops several times slower, and they are the one case in which the same additions give other
// bits on another thread, because the mode belongs to the thread. Whoever computes holds one of these: then the thread does not matter.
#pragma once
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace falaj::kernels {

class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero); }
  ~FlushDenormals() { _mm_setcsr(saved_); }
#else
  FlushDenormals() noexcept = default;
  ~FlushDenormals() {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__SSE__)
  static constexpr unsigned kFlushToZero = 0x8000;
  static constexpr unsigned kDenormalsAreZero = 0x0040;
  unsigned saved_;
#endif
};

}  // namespace falaj::kernels
