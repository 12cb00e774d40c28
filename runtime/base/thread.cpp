#include "runtime/base/thread.hpp"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "runtime/base/format.hpp"

namespace falaj {

std::size_t hardware_threads() {
  const auto count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : count;
}

void take_turns(Turns turns) noexcept {
  struct {  // sched_attr of linux/sched/types.h, as far as all kernels know it
    std::uint32_t size;
    std::uint32_t policy;
    std::uint64_t flags;
    std::int32_t nice;
    std::uint32_t priority;
    std::uint64_t runtime;  // ns; of ordinary threads: the length of a turn
    std::uint64_t deadline;
    std::uint64_t period;
  } wish{};
  if (syscall(SYS_sched_getattr, 0, &wish, sizeof(wish), 0U) != 0 || wish.policy != SCHED_OTHER) return;
  wish.runtime = turns == Turns::brief ? 200'000 : 100'000;
  static_cast<void>(syscall(SYS_sched_setattr, 0, &wish, 0U));
}

Status keep_to_processor(std::size_t number) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(number % hardware_threads() % CPU_SETSIZE, &set);
  if (sched_setaffinity(0, sizeof(set), &set) != 0) return failed(format("cannot keep to one processor: {}", std::strerror(errno)));
  return {};
}

Thread::Thread(std::string name, std::move_only_function<void()> body)
    : thread_([name = std::move(name), body = std::move(body)]() mutable {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, nullptr);
        pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
        body();
      }) {}

Thread::~Thread() { join(); }

void Thread::join() {
  if (thread_.joinable()) thread_.join();
}

BlockingPool::BlockingPool(std::string name, std::size_t threads, std::size_t queue_max) : queue_max_(queue_max) {
  for (std::size_t i = 0; i < threads; ++i) threads_.emplace_back(name + "-" + std::to_string(i), [this] { run(); });
}

BlockingPool::~BlockingPool() { stop(); }

bool BlockingPool::submit(std::move_only_function<void()> task) {
  {
    const std::scoped_lock lock(mutex_);
    if (stopping_ || queue_.size() >= queue_max_) return false;
    queue_.push_back(std::move(task));
  }
  wake_.notify_one();
  return true;
}

void BlockingPool::stop() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void BlockingPool::run() {
  for (;;) {
    std::move_only_function<void()> task;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
  }
}

TimerThread::TimerThread(const Clock& clock)
    : clock_(clock), thread_("timer", [this] {
        take_turns(Turns::briefest);
        run();
      }) {}

TimerThread::~TimerThread() { stop(); }

std::uint64_t TimerThread::at(Instant when, std::move_only_function<void()> call) {
  bool first = false;
  std::uint64_t id = 0;
  {
    const std::scoped_lock lock(mutex_);
    if (stopping_) return 0;
    id = next_++;
    due_.emplace(Key{when, id}, std::move(call));
    when_.emplace(id, when);
    // Most timers are cancelled: the thread sleeps on to the instant of one that was, and need not be woken for a later one.
    first = when < asleep_until_;
  }
  if (first) wake_.notify_one();
  return id;
}

void TimerThread::cancel(std::uint64_t id) {
  std::move_only_function<void()> dropped;  // destroyed after the lock is released
  const std::scoped_lock lock(mutex_);
  const auto found = when_.find(id);
  if (found == when_.end()) return;
  const auto entry = due_.find(Key{found->second, id});
  dropped = std::move(entry->second);
  due_.erase(entry);
  when_.erase(found);
}

void TimerThread::stop() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void TimerThread::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (due_.empty()) {
      asleep_until_ = Instant::max();
      wake_.wait(lock);
      asleep_until_ = Instant::min();
      continue;
    }
    const auto now = clock_.now();
    const auto entry = due_.begin();
    if (entry->first.first > now) {
      asleep_until_ = entry->first.first;
      wake_.wait_for(lock, entry->first.first - now);
      asleep_until_ = Instant::min();
      continue;
    }
    when_.erase(entry->first.second);
    auto call = std::move(entry->second);
    due_.erase(entry);
    lock.unlock();
    call();
    call = nullptr;
    lock.lock();
  }
}

}  // namespace falaj
