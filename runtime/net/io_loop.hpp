// Runs an io_context on the calling thread, and looks for more work for a while before it lets the thread sleep.
//
// To wake a thread takes longer than all the rest of a small round trip: on virtual machines several times as long. So a thread that
// expects the next event soon asks the kernel again and again instead of sleeping. It does so only while that pays:
//  - events have lately come less than kBusyPeriod apart;
//  - looking finds something: after kMissesMax times in vain it sleeps at once for a while;
//  - nobody else wants the processor: each look yields it, and looks that were long away end this for a while, for longer each time.
#pragma once
#include <boost/asio/io_context.hpp>

#include "runtime/base/clock.hpp"

namespace falaj::net {

class IoLoop {
 public:
  // `look`: the most time spent before a sleep; zero: none.
  IoLoop(boost::asio::io_context& io, const Clock& clock, Duration look) : io_(io), clock_(clock), look_(look) {}
  void run();  // until the context is stopped

 private:
  bool look(Instant begin);  // true: something was found, and done
  void pause(Instant now);

  boost::asio::io_context& io_;
  const Clock& clock_;
  const Duration look_;
  Duration period_ = std::chrono::milliseconds(1);  // from one time of nothing to do to the next: a moving average
  unsigned misses_ = 0;                             // in a row
  unsigned away_ = 0;                               // looks in a row that took long
  Instant not_before_ = Instant::min();
  Duration pause_{};
};

}  // namespace falaj::net
