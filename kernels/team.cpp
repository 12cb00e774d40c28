#include "kernels/team.hpp"

#include <immintrin.h>

#include <algorithm>
#include <string>

namespace falaj::kernels {
namespace {

constexpr int kLooks = 4000;  // before a thread sleeps: some 50 us, longer than most gaps between two pieces of work

void relax() noexcept { _mm_pause(); }

// Until `value` is no longer `old`.
void wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) noexcept {
  for (int look = 0; look < kLooks; ++look) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

Team::Team(std::size_t threads, std::string_view name) {
  for (std::size_t i = 1; i < threads; ++i) helpers_.emplace_back(std::string(name) + "-" + std::to_string(i), [this] { help(); });
}

Team::~Team() {
  stop_ = true;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  helpers_.clear();  // joins, while there is still something to look at
}

void Team::share(std::size_t parts, void* work, Call call) {
  call_ = call;
  work_ = work;
  parts_ = parts;
  float_mode_ = _mm_getcsr();
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<std::uint32_t>(helpers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  take_parts();
  for (std::uint32_t busy = busy_.load(std::memory_order_acquire); busy != 0; busy = busy_.load(std::memory_order_acquire))
    wait_for_change(busy_, busy);
}

void Team::take_parts() {
  for (std::size_t part = next_.fetch_add(1, std::memory_order_relaxed); part < parts_;
       part = next_.fetch_add(1, std::memory_order_relaxed))
    call_(work_, part);
}

void Team::help() {
  for (std::uint32_t seen = 0;;) {
    wait_for_change(round_, seen);
    seen = round_.load(std::memory_order_acquire);
    if (stop_) return;
    _mm_setcsr(float_mode_);
    take_parts();
    busy_.fetch_sub(1, std::memory_order_acq_rel);
    busy_.notify_one();
  }
}

std::size_t threads_for(std::size_t cells, std::size_t most) noexcept {
  constexpr std::size_t kCellsEach = std::size_t{1} << 18;  // below this a round is over before a second thread is awake
  return std::clamp<std::size_t>(cells / kCellsEach, 1, std::max<std::size_t>(most, 1));
}

}  // namespace falaj::kernels
