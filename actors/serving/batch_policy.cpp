#include "actors/serving/batch_policy.hpp"

#include <algorithm>

namespace falaj::serving {

void RunTime::learn(std::int64_t rows, Duration took) noexcept {
  constexpr double kWeight = 0.1;
  const auto ns = static_cast<double>(took.count());
  if (!known_) {
    known_ = true;
    base_ns_ = ns;
    return;
  }
  if (rows <= 1) {
    base_ns_ += kWeight * (ns - base_ns_);
  } else {
    const auto per_row = std::max(0.0, (ns - base_ns_) / static_cast<double>(rows - 1));
    per_row_ns_ += kWeight * (per_row - per_row_ns_);
    base_ns_ = std::min(base_ns_, ns);
  }
}

Duration RunTime::estimate(std::int64_t rows) const noexcept {
  return Duration(static_cast<Duration::rep>(base_ns_ + per_row_ns_ * static_cast<double>(std::max<std::int64_t>(rows - 1, 0))));
}

void RunTime::doubt() noexcept {
  base_ns_ *= 0.9;
  per_row_ns_ *= 0.9;
}

BatchDecision decide(std::span<const Waiting> queue, const BatchLimits& limits, const RunTime& run_time, Instant now) {
  BatchDecision decision;
  std::int64_t rows = 0;
  std::size_t chosen = 0;
  bool full = false;
  Instant latest_start = Instant::max();  // when the tightest of the chosen must begin
  Instant oldest = Instant::max();
  for (std::size_t i = 0; i < queue.size(); ++i) {
    const auto& waiting = queue[i];
    if (waiting.deadline != Instant::max() && now + run_time.estimate(waiting.rows) > waiting.deadline) {
      decision.refuse.push_back(i);
      decision.considered = i + 1;
      continue;
    }
    if (chosen > 0 && rows + waiting.rows > limits.max_batch) {
      full = true;
      break;
    }
    rows += waiting.rows;
    ++chosen;
    decision.considered = i + 1;
    oldest = std::min(oldest, waiting.arrival);
    if (waiting.deadline != Instant::max()) {
      const auto need = run_time.estimate(std::max(rows, limits.max_batch));
      latest_start = std::min(latest_start, waiting.deadline - need - need / 4);
    }
  }
  if (chosen == 0) return decision;
  const auto leave = std::min(oldest + limits.max_delay, latest_start);
  if (full || rows >= limits.max_batch || leave <= now) {
    decision.run = chosen;
  } else {
    decision.wait_until = leave;
  }
  return decision;
}

}  // namespace falaj::serving
