#include "runtime/host/watchdog.hpp"

namespace falaj {

thread_local constinit TurnMark* t_turn_mark = nullptr;

TurnMark& Watchdog::mark() {
  const std::scoped_lock lock(mutex_);
  return watched_.emplace_back(std::make_unique<Watched>())->mark;
}

void Watchdog::look(Instant now) {
  const std::scoped_lock lock(mutex_);
  for (const auto& one : watched_) {
    const std::uint64_t turn = one->mark.turn_.load(std::memory_order_acquire);
    if (turn != one->turn) {
      if (one->told) {
        one->stall.held = now - one->since;
        one->stall.over = true;
        report_(one->stall);
      }
      one->turn = turn;
      one->since = now;
      one->told = false;
    } else if (turn % 2 == 1 && !one->told && now - one->since >= kStall) {
      one->stall = Stall{ActorId(one->mark.actor_.load(std::memory_order_relaxed)), one->mark.handler_.load(std::memory_order_relaxed),
                         now - one->since, false};
      one->told = one->mark.turn_.load(std::memory_order_acquire) == turn;  // else it has just ended, and the rest is another's
      if (one->told) report_(one->stall);
    }
  }
}

}  // namespace falaj
