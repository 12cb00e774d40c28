#include "runtime/host/run_queues.hpp"

#include <algorithm>
#include <thread>

namespace falaj {

namespace {
constexpr unsigned kQuickLooks = 50;  // in vain, before a parked worker looks around less often
// A worker that has just had work looks for more so many times before it parks, some tens of microseconds in all: to be woken costs nearly
// that much, and to wake it costs another one as much. Not while that is in vain, and whoever else wants the processor has it.
constexpr unsigned kSpins = 1000;
constexpr unsigned kSpinsToYield = 64;
constexpr unsigned kVainMax = 8;    // in a row, then none for a while
constexpr unsigned kVainRest = 64;  // times of nothing to do

void pause_thread() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}
}  // namespace

// --- a queue ---

std::size_t RunQueues::Queue::add(Job job, bool front) {
  const std::scoped_lock lock(mutex);
  if (front) {
    jobs.push_front(job);
  } else {
    jobs.push_back(job);
  }
  count.store(jobs.size(), std::memory_order_seq_cst);
  return jobs.size();
}

RunQueues::Job RunQueues::Queue::take(bool front) {
  if (empty()) return nullptr;
  const std::scoped_lock lock(mutex);
  if (jobs.empty()) return nullptr;
  const Job job = front ? jobs.front() : jobs.back();
  if (front) {
    jobs.pop_front();
  } else {
    jobs.pop_back();
  }
  count.store(jobs.size(), std::memory_order_seq_cst);
  return job;
}

// --- pushing ---

void RunQueues::open(std::size_t workers, bool express) {
  if (!workers_.empty()) return;  // each worker of the scheduler says it
  while (workers_.size() < workers) workers_.push_back(std::make_unique<Worker>());
  ordinary_ = express ? workers - 1 : workers;
}

bool RunQueues::claim(std::size_t worker) noexcept {
  auto& parked = workers_[worker]->parked;
  if (!parked.load(std::memory_order_relaxed) || !parked.exchange(false, std::memory_order_seq_cst)) return false;
  if (!is_express(worker)) parked_.fetch_sub(1, std::memory_order_seq_cst);
  return true;
}

void RunQueues::wake(std::size_t worker) {
  auto& sleeper = *workers_[worker];
  {
    const std::scoped_lock lock(sleeper.park_mutex);
    sleeper.call = true;
  }
  sleeper.called.notify_one();
}

void RunQueues::wake_one() {
  if (parked_.load(std::memory_order_seq_cst) == 0) return;
  for (std::size_t worker = 0; worker < ordinary_; ++worker) {
    if (claim(worker)) return wake(worker);
  }
}

void RunQueues::push_urgent(Job job) {
  urgent_.add(job, false);
  if (ordinary_ < workers_.size() && claim(ordinary_)) {
    wake(ordinary_);
  } else {
    wake_one();
  }
}

void RunQueues::push(Job job, bool urgent) {
  if (urgent) return push_urgent(job);
  if (parked_.load(std::memory_order_seq_cst) != 0) {
    for (std::size_t worker = 0; worker < ordinary_; ++worker) {
      if (!claim(worker)) continue;
      workers_[worker]->own.add(job, false);
      return wake(worker);
    }
  }
  workers_[next_.fetch_add(1, std::memory_order_relaxed) % ordinary_]->own.add(job, false);
  wake_one();
}

void RunQueues::push_to(std::size_t worker, Job job, bool urgent) {
  if (urgent) return push_urgent(job);
  workers_[worker]->own.add(job, false);
  if (claim(worker)) {
    wake(worker);
  } else {
    wake_one();
  }
}

void RunQueues::push_front(std::size_t worker, Job job, bool urgent) {
  if (urgent) return push_urgent(job);
  if (is_express(worker)) return push(job);
  auto& self = *workers_[worker];
  const Job before = self.next.exchange(job, std::memory_order_seq_cst);
  if (before != nullptr) self.own.add(before, true);
  if (!self.own.empty()) wake_one();
}

void RunQueues::push_back(std::size_t worker, Job job) {
  if (is_express(worker)) return push(job);
  auto& self = *workers_[worker];
  if (self.own.add(job, false) > 1 || self.next.load(std::memory_order_relaxed) != nullptr) wake_one();
}

// --- taking ---

RunQueues::Job RunQueues::take_own(std::size_t worker) {
  auto& self = *workers_[worker];
  const bool others = !is_express(worker) && (self.next.load(std::memory_order_relaxed) != nullptr || !self.own.empty());
  if (!others || self.urgent_in_row < kUrgentInRow) {
    if (const Job job = urgent_.take(true)) {
      self.urgent_in_row = others ? self.urgent_in_row + 1 : 0;
      return job;
    }
  }
  self.urgent_in_row = 0;
  if (const Job job = take_next(self)) return job;
  return self.own.take(true);
}

RunQueues::Job RunQueues::take_next(Worker& of) noexcept {
  return of.next.load(std::memory_order_relaxed) == nullptr ? nullptr : of.next.exchange(nullptr, std::memory_order_seq_cst);
}

RunQueues::Job RunQueues::steal(std::size_t thief, bool next_too) {
  for (std::size_t i = 1; i < ordinary_; ++i) {
    auto& other = *workers_[(thief + i) % ordinary_];
    if (const Job job = other.own.take(false)) return job;
    if (!next_too) continue;
    if (const Job job = take_next(other)) return job;
  }
  return nullptr;
}

RunQueues::Job RunQueues::park(std::size_t self, Duration at_most) {
  auto& own = *workers_[self];
  own.parked.store(true, std::memory_order_seq_cst);
  if (!is_express(self)) parked_.fetch_add(1, std::memory_order_seq_cst);
  Job job = take_own(self);
  if (job == nullptr && !is_express(self)) job = steal(self, false);
  if (job == nullptr) {
    std::unique_lock lock(own.park_mutex);
    own.called.wait_for(lock, at_most, [&] { return own.call; });
    own.call = false;
  }
  if (!claim(self)) {  // somebody did, and calls: later than this look, perhaps, and then the next park ends at once
    {
      const std::scoped_lock lock(own.park_mutex);
      own.call = false;
    }
    if (job != nullptr && !(own.own.empty() && urgent_.empty())) wake_one();  // we have another job to do than the one we were called for
  }
  return job;
}

RunQueues::Job RunQueues::spin(std::size_t worker) {
  auto& vain = workers_[worker]->vain;
  if (vain >= kVainMax && ++vain < kVainMax + kVainRest) return steal(worker, false);
  for (unsigned spins = 1; spins <= kSpins; ++spins) {
    Job job = steal(worker, false);
    if (job == nullptr) {
      if (spins % kSpinsToYield == 0) {
        std::this_thread::yield();
      } else {
        pause_thread();
      }
      job = take_own(worker);
    }
    if (job == nullptr) continue;
    vain = 0;
    return job;
  }
  vain = std::min(vain + 1, kVainMax);
  return nullptr;
}

RunQueues::Job RunQueues::take(std::size_t worker) {
  if (const Job job = take_own(worker)) return job;
  const bool express = is_express(worker);
  if (!express) {
    if (const Job job = spin(worker)) return job;
  }
  for (unsigned looks = 0;; ++looks) {
    const auto rest = express ? kLookAroundExpress : looks < kQuickLooks ? kLookAround : kLookAroundIdle;
    if (const Job job = park(worker, rest)) return job;
    if (const Job job = take_own(worker)) return job;
    if (express) continue;
    if (const Job job = steal(worker, true)) return job;
  }
}

}  // namespace falaj
