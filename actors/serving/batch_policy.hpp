// When to run which requests together. A pure function of what is queued, so that the capacity model plans with the very policy that
// serves; deadline-aware, in contrast to a fixed delay: a request that cannot wait makes its batch leave.
//
// The rule: take requests in order of arrival while they fit in max_batch rows. Refuse those whose deadline cannot be met even alone.
// Run at once when the batch is full, when the oldest has waited max_delay, or when waiting longer would make any of them late (its
// deadline less the estimated time of the run, less a margin of a quarter of it). Otherwise wait until the first of these instants.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <vector>

#include "runtime/base/clock.hpp"

namespace falaj::serving {

struct Waiting {
  std::int64_t rows = 1;
  Instant arrival;
  Instant deadline = Instant::max();
};

struct BatchLimits {
  std::int64_t max_batch = 64;  // rows
  Duration max_delay{0};
};

// Time that a run takes: base + per_row * rows, learnt from runs by exponential averages.
class RunTime {
 public:
  void learn(std::int64_t rows, Duration took) noexcept;
  [[nodiscard]] Duration estimate(std::int64_t rows) const noexcept;
  // Call when a request was refused on an estimate: one slow run must not make all later ones look late for ever.
  void doubt() noexcept;

 private:
  double base_ns_ = 0;  // of the smallest runs seen
  double per_row_ns_ = 0;
  bool known_ = false;
};

struct BatchDecision {
  std::size_t run = 0;                  // the first so many, less the refused: run them now
  std::vector<std::size_t> refuse;      // positions that will be too late, ascending; all below `considered`
  std::size_t considered = 0;           // how many of the queue were looked at
  Instant wait_until = Instant::max();  // run == 0: look again then, or when something arrives
};

BatchDecision decide(std::span<const Waiting> queue, const BatchLimits& limits, const RunTime& run_time, Instant now);

}  // namespace falaj::serving
