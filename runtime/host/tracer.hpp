// What the actors of a node did for a while: one span for each message handled. Off, it costs one load a message; on, a lock and a copy of
// two names. Bounded by a count and by a time, whichever comes first, so that nobody can leave it on.
//
// Thread-safe.
#pragma once
#include <atomic>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/ids.hpp"
#include "runtime/base/trace.hpp"

namespace falaj {

struct TracedSpan {
  Instant begin{};     // of the handling
  Duration waited{};   // in the mailbox before
  Duration handled{};  // on the thread; what a coroutine does after a wait is a span of its own
  ActorId actor;
  std::string name;          // of the actor; its type where it has none
  std::string_view kind;     // message, answer, work, ...; lives as long as the program
  std::string_view message;  // type of a message; the same
  std::string from;          // who sent it; empty: no actor
  TraceContext trace;
};

class Tracer {
 public:
  static constexpr Duration kLongest = std::chrono::seconds(60);
  static constexpr std::size_t kMost = 200'000;

  // Forgets what was there. Longer or more than allowed is cut.
  void start(Instant now, Duration duration, std::size_t spans);
  void stop();
  [[nodiscard]] bool on() const noexcept { return on_.load(std::memory_order_relaxed); }
  void record(TracedSpan span);  // ignored when it is over, counted when there is no room
  // The oldest that are left, at most `count`.
  [[nodiscard]] std::vector<TracedSpan> take(std::size_t count);
  [[nodiscard]] std::size_t left() const;
  [[nodiscard]] std::uint64_t dropped() const;

 private:
  std::atomic<bool> on_{false};
  mutable std::mutex mutex_;
  Instant until_{};
  std::size_t most_ = 0;
  std::size_t taken_ = 0;
  std::uint64_t dropped_ = 0;
  std::vector<TracedSpan> spans_;
};

}  // namespace falaj
