// Runs of elements that only change places.
#pragma once
#include <algorithm>
#include <cstdint>

namespace falaj::kernels {

// y[i * y_step] = x[i * x_step]: long runs of neighbours as a block; for short ones a call would take longer than they do.
template <class T>
void move_run(const T* x, std::int64_t x_step, T* y, std::int64_t y_step, std::int64_t n) {
  constexpr std::int64_t kLong = 8;
  if (n >= kLong && x_step == 1 && y_step == 1) {
    std::copy_n(x, n, y);
  } else if (n >= kLong && x_step == 0 && y_step == 1) {
    // Copies of twice as much each are faster than single elements.
    std::int64_t done = std::min<std::int64_t>(n, 2 * kLong);
    for (std::int64_t i = 0; i < done; ++i) y[i] = *x;
    for (std::int64_t more = 0; done < n; done += more) {
      more = std::min(done, n - done);
      std::copy_n(y, more, y + done);
    }
  } else {
    for (std::int64_t i = 0; i < n; ++i) y[i * y_step] = x[i * x_step];
  }
}

}  // namespace falaj::kernels
