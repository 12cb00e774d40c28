#include "runtime/net/io_loop.hpp"

#include <sched.h>

#include <algorithm>

namespace falaj::net {
namespace {

using namespace std::chrono_literals;

constexpr Duration kBusyPeriod = 300us;
constexpr Duration kPeriodMax = 1ms;  // longer ones count as this, so that a few events after a rest are enough
constexpr Duration kAway = 50us;      // a look takes about one; so long a one was another thread's turn
constexpr unsigned kAwaysMax = 3;     // in a row: one alone is an interrupt, or the host of a virtual machine
constexpr unsigned kMissesMax = 8;
constexpr Duration kMissesPause = 100ms;
constexpr Duration kPauseMin = 20ms;
constexpr Duration kPauseMax = 1s;

}  // namespace

void IoLoop::run() {
  Instant before = clock_.now();
  while (!io_.stopped()) {
    if (io_.poll() > 0) continue;
    const auto idle = clock_.now();
    period_ += (std::min(idle - before, kPeriodMax) - period_) / 8;
    before = idle;
    if (look_ > Duration::zero() && period_ < kBusyPeriod && idle >= not_before_ && look(idle)) continue;
    io_.run_one();
  }
}

bool IoLoop::look(Instant begin) {
  for (auto last = begin; last - begin < look_;) {
    sched_yield();
    const auto now = clock_.now();
    away_ = now - last > kAway ? away_ + 1 : 0;
    if (away_ >= kAwaysMax) {
      pause(now);
      return io_.poll() > 0;
    }
    if (io_.poll() > 0) {
      misses_ = 0;
      return true;
    }
    last = now;
  }
  if (++misses_ >= kMissesMax) {
    misses_ = 0;
    not_before_ = begin + kMissesPause;
  }
  return false;
}

// Twice as long as the last time, unless that is long ago.
void IoLoop::pause(Instant now) {
  const bool again = not_before_ != Instant::min() && now - not_before_ < kPauseMax;
  away_ = 0;
  pause_ = again ? std::clamp(pause_ * 2, kPauseMin, kPauseMax) : kPauseMin;
  not_before_ = now + pause_;
}

}  // namespace falaj::net
