// How long an ask may have to wait in a queue that is served in order of arrival, before it is refused at once instead.
//
// A queue longer than the deadlines of its asks would answer each of them just too late: all work, no use. Who is refused can still go
// elsewhere, and who is let in is answered. A burst may fill two thirds of its asks' time. A queue that has been long for all of an
// ask's time will not get shorter: there waiting serves nobody, a third of the time keeps the actor just as busy, and the rest is left
// for a stall of the machine. Controlled delay: Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 2012; as servers do it: Maurer,
// "Fail at Scale", ACM Queue 2015.
//
// Called by all senders, without a lock: two that race differ by one ask's judgement.
#pragma once
#include <atomic>

#include "runtime/base/clock.hpp"

namespace falaj {

class QueueDelay {
 public:
  void is_short() noexcept {
    if (long_since_.load(std::memory_order_relaxed) != Instant::max()) long_since_.store(Instant::max(), std::memory_order_relaxed);
  }
  // Of a queue that is not short. `expected`: until what waits there now is done.
  bool too_long(Instant now, Instant deadline, Duration expected) noexcept {
    Instant since = long_since_.load(std::memory_order_relaxed);
    if (since == Instant::max()) long_since_.store(since = now, std::memory_order_relaxed);
    const Duration left = deadline - now;
    const bool stands = now - since > left;
    return expected * 3 > (stands ? left : left * 2);
  }

 private:
  std::atomic<Instant> long_since_{Instant::max()};  // max: it was short when last looked at
};

}  // namespace falaj
