// How long to wait before the next attempt: twice as long each time up to a bound, and up to a quarter more at random, so that many who
// were refused together do not come back together. It does not wait and does not count: the caller sleeps on its own clock.
#pragma once
#include <algorithm>

#include "runtime/base/clock.hpp"
#include "runtime/base/random.hpp"

namespace falaj {

class RetryDelay {
 public:
  RetryDelay(Duration min, Duration max) : min_(min), max_(max), next_(min) {}
  Duration next(Random& random) {
    const auto delay = next_;
    next_ = std::min(next_ * 2, max_);
    return delay + Duration(random.below(static_cast<std::uint64_t>(delay.count()) / 4 + 1));
  }
  void reset() { next_ = min_; }

 private:
  Duration min_;
  Duration max_;
  Duration next_;
};

}  // namespace falaj
