#include "runtime/net/phi.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace falaj::net {
namespace {

double seconds(Duration d) { return std::chrono::duration<double>(d).count(); }

}  // namespace

PhiDetector::PhiDetector(const Options& options, Instant now) : options_(options), last_(now) {}

void PhiDetector::heartbeat(Instant now) {
  const double interval = std::max(0.0, seconds(now - last_));
  last_ = std::max(now, last_);
  if (count_ == kWindow) {
    sum_ -= intervals_[next_];
    squares_ -= intervals_[next_] * intervals_[next_];
  } else {
    ++count_;
  }
  intervals_[next_] = interval;
  next_ = (next_ + 1) % kWindow;
  sum_ += interval;
  squares_ += interval * interval;
}

void PhiDetector::forgive(Duration by) { last_ += by; }

double PhiDetector::phi(Instant now) const {
  // A few intervals say little about the next one: the expected one counts as if it had been seen four times.
  const double prior = seconds(options_.expected);
  const double weight = static_cast<double>(count_) + 4.0;
  const double mean = (sum_ + 4.0 * prior) / weight;
  const double variance = std::max(0.0, (squares_ + 4.0 * prior * prior) / weight - mean * mean);
  const double deviation = std::max(std::sqrt(variance), seconds(options_.deviation_min));
  const double late = (seconds(now - last_) - mean) / deviation;
  const double tail = 0.5 * std::erfc(late / std::sqrt(2.0));  // probability that the heartbeat comes later still
  if (tail <= std::numeric_limits<double>::min()) return 300.0;
  return -std::log10(tail);
}

bool PhiDetector::suspect(Instant now) const { return silence(now) >= options_.silence_max || phi(now) >= options_.threshold; }

}  // namespace falaj::net
