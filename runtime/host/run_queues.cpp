#include "runtime/host/run_queues.hpp"

namespace falaj {

namespace {
constexpr unsigned kQuickLooks = 50;  // in vain, before a parked worker looks around less often
}

void RunQueues::open(std::size_t workers) {
  while (workers_.size() < workers) workers_.push_back(std::make_unique<Worker>());
}

std::size_t RunQueues::add(Worker& worker, Job job, Place place) {
  const std::scoped_lock lock(worker.mutex);
  switch (place) {
    case Place::front:
      worker.jobs.push_front(job);
      break;
    case Place::back:
      worker.jobs.push_back(job);
      break;
    case Place::urgent:
      worker.urgent.push_back(job);
  }
  const auto count = worker.jobs.size() + worker.urgent.size();
  worker.count.store(count, std::memory_order_seq_cst);
  return count;
}

bool RunQueues::claim(Worker& worker) noexcept {
  if (!worker.parked.load(std::memory_order_relaxed) || !worker.parked.exchange(false, std::memory_order_seq_cst)) return false;
  parked_.fetch_sub(1, std::memory_order_seq_cst);
  return true;
}

void RunQueues::wake(Worker& worker) {
  {
    const std::scoped_lock lock(worker.park_mutex);
    worker.call = true;
  }
  worker.called.notify_one();
}

void RunQueues::wake_one() {
  if (parked_.load(std::memory_order_seq_cst) == 0) return;
  for (const auto& worker : workers_) {
    if (claim(*worker)) return wake(*worker);
  }
}

void RunQueues::push(Job job, bool urgent) {
  const auto place = urgent ? Place::urgent : Place::back;
  if (parked_.load(std::memory_order_seq_cst) != 0) {
    for (const auto& worker : workers_) {
      if (!claim(*worker)) continue;
      add(*worker, job, place);
      return wake(*worker);
    }
  }
  add(*workers_[next_.fetch_add(1, std::memory_order_relaxed) % workers_.size()], job, place);
  wake_one();
}

void RunQueues::push_to(std::size_t worker, Job job, bool urgent) {
  auto& to = *workers_[worker];
  add(to, job, urgent ? Place::urgent : Place::back);
  if (claim(to)) {
    wake(to);
  } else {
    wake_one();
  }
}

void RunQueues::push_front(std::size_t worker, Job job, bool urgent) {
  if (add(*workers_[worker], job, urgent ? Place::urgent : Place::front) > 1) wake_one();
}

void RunQueues::push_back(std::size_t worker, Job job) {
  if (add(*workers_[worker], job, Place::back) > 1) wake_one();
}

RunQueues::Job RunQueues::take_own(std::size_t worker) {
  auto& own = *workers_[worker];
  if (own.count.load(std::memory_order_seq_cst) == 0) return nullptr;
  const std::scoped_lock lock(own.mutex);
  const bool ordinary = own.urgent.empty() || (!own.jobs.empty() && own.urgent_in_row >= kUrgentInRow);
  auto& from = ordinary ? own.jobs : own.urgent;
  if (from.empty()) return nullptr;
  own.urgent_in_row = ordinary || own.jobs.empty() ? 0 : own.urgent_in_row + 1;
  const Job job = from.front();
  from.pop_front();
  own.count.store(own.jobs.size() + own.urgent.size(), std::memory_order_seq_cst);
  return job;
}

RunQueues::Job RunQueues::steal(std::size_t thief) {
  for (std::size_t i = 1; i < workers_.size(); ++i) {
    auto& victim = *workers_[(thief + i) % workers_.size()];
    if (victim.count.load(std::memory_order_seq_cst) == 0) continue;
    const std::scoped_lock lock(victim.mutex);
    Job job = nullptr;
    if (!victim.urgent.empty()) {
      job = victim.urgent.front();
      victim.urgent.pop_front();
    } else if (!victim.jobs.empty()) {
      job = victim.jobs.back();
      victim.jobs.pop_back();
    } else {
      continue;
    }
    victim.count.store(victim.jobs.size() + victim.urgent.size(), std::memory_order_seq_cst);
    return job;
  }
  return nullptr;
}

RunQueues::Job RunQueues::park(std::size_t self, Duration at_most) {
  auto& own = *workers_[self];
  own.parked.store(true, std::memory_order_seq_cst);
  parked_.fetch_add(1, std::memory_order_seq_cst);
  Job job = take_own(self);
  if (job == nullptr) job = steal(self);
  if (job == nullptr) {
    std::unique_lock lock(own.park_mutex);
    own.called.wait_for(lock, at_most, [&] { return own.call; });
    own.call = false;
  }
  if (!claim(own)) {  // somebody did, and calls: later than this look, perhaps, and then the next park ends at once
    {
      const std::scoped_lock lock(own.park_mutex);
      own.call = false;
    }
    if (job != nullptr && own.count.load(std::memory_order_seq_cst) != 0)
      wake_one();  // we have another job to do than the one we were called for
  }
  return job;
}

RunQueues::Job RunQueues::take(std::size_t worker) {
  for (unsigned looks = 0;; ++looks) {
    if (const Job job = take_own(worker)) return job;
    if (const Job job = steal(worker)) return job;
    if (const Job job = park(worker, looks < kQuickLooks ? kLookAround : kLookAroundIdle)) return job;
  }
}

}  // namespace falaj
