#include "runtime/host/tracer.hpp"

#include <algorithm>

namespace falaj {

void Tracer::start(Instant now, Duration duration, std::size_t spans) {
  const std::lock_guard lock(mutex_);
  spans_.clear();
  taken_ = 0;
  dropped_ = 0;
  most_ = std::min(spans, kMost);
  until_ = now + std::min(duration, kLongest);
  on_.store(true, std::memory_order_relaxed);
}

void Tracer::stop() { on_.store(false, std::memory_order_relaxed); }

void Tracer::record(TracedSpan span) {
  const std::lock_guard lock(mutex_);
  if (!on()) return;
  if (span.begin >= until_) {
    stop();
  } else if (spans_.size() >= most_) {
    ++dropped_;
  } else {
    spans_.push_back(std::move(span));
  }
}

std::vector<TracedSpan> Tracer::take(std::size_t count) {
  const std::lock_guard lock(mutex_);
  const auto n = std::min(count, spans_.size() - taken_);
  const auto from = spans_.begin() + static_cast<std::ptrdiff_t>(taken_);
  std::vector<TracedSpan> out(std::make_move_iterator(from), std::make_move_iterator(from + static_cast<std::ptrdiff_t>(n)));
  taken_ += n;
  if (taken_ == spans_.size() && !on()) {  // nothing is kept of what nobody asks for again
    spans_ = {};
    taken_ = 0;
  }
  return out;
}

std::size_t Tracer::left() const {
  const std::lock_guard lock(mutex_);
  return spans_.size() - taken_;
}

std::uint64_t Tracer::dropped() const {
  const std::lock_guard lock(mutex_);
  return dropped_;
}

}  // namespace falaj
