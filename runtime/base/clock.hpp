// Time is an argument. Production passes SystemClock, the simulator its own; nothing else in the project reads a clock
// (tests/tidy.py enforces it). Instant is monotonic, WallTime may jump: deadlines use the first, records the second.
#pragma once
#include <chrono>
#include <cstdint>

namespace falaj {

using Duration = std::chrono::nanoseconds;
struct MonotonicTag {  // names the time line; std::chrono::time_point asks a clock only for these
  using duration = Duration;
  using rep = Duration::rep;
  using period = Duration::period;
};
// A point on a clock that never goes back; its zero has no meaning outside this process.
using Instant = std::chrono::time_point<MonotonicTag, Duration>;

struct WallTime {
  std::int64_t unix_ns = 0;
  auto operator<=>(const WallTime&) const = default;
};

class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual Instant now() const = 0;
  [[nodiscard]] virtual WallTime wall() const = 0;
};

class SystemClock final : public Clock {
 public:
  [[nodiscard]] Instant now() const override;
  [[nodiscard]] WallTime wall() const override;
};

class ManualClock final : public Clock {
 public:
  [[nodiscard]] Instant now() const override { return now_; }
  [[nodiscard]] WallTime wall() const override { return WallTime{epoch_ns_ + now_.time_since_epoch().count()}; }
  void advance(Duration by) { now_ += by; }

 private:
  Instant now_{};
  std::int64_t epoch_ns_ = 1'700'000'000'000'000'000;
};

}  // namespace falaj
