// The phi-accrual failure detector (Hayashibara, Défago, Yared, Katayama: "The phi accrual failure detector", SRDS 2004):
// from the times at which heartbeats arrived it says how surprising the present silence is. phi = -log10 of the probability
// that a heartbeat would still come later than now. Pure: time is an argument.
#pragma once
#include <array>
#include <cstddef>

#include "runtime/base/clock.hpp"

namespace falaj::net {

class PhiDetector {
 public:
  struct Options {
    Duration expected;       // interval assumed before enough heartbeats were seen
    Duration deviation_min;  // a machine that was punctual so far may still be late by this much
    Duration silence_max;    // dead at the latest after this, whatever phi says
    double threshold = 10.0;
  };

  PhiDetector(const Options& options, Instant now);

  void heartbeat(Instant now);
  // This process itself stood still (stopped, starved) for `by`: the silence in that time says nothing about the peer.
  void forgive(Duration by);
  [[nodiscard]] double phi(Instant now) const;
  [[nodiscard]] bool suspect(Instant now) const;
  [[nodiscard]] Duration silence(Instant now) const { return now - last_; }

 private:
  static constexpr std::size_t kWindow = 64;
  Options options_;
  Instant last_;
  std::array<double, kWindow> intervals_{};  // seconds
  std::size_t count_ = 0;
  std::size_t next_ = 0;
  double sum_ = 0;
  double squares_ = 0;
};

}  // namespace falaj::net
