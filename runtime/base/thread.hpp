// The one file with threads. Everything else gets its parallelism from an executor, a BlockingPool or a TimerThread.
//
// Ways to get hurt: a task that blocks for ever keeps stop() waiting; give every wait inside it a deadline.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/result.hpp"

namespace falaj {

std::size_t hardware_threads();  // at least 1

// For a thread that others wait for, and that never computes for long. Of processors that are all busy it is given its share in many short
// turns, and soon after it wakes: a thread that takes shorter turns than the one that has the processor is given it at once, as long as it
// has had less than its share. Where the kernel knows no such wish (Linux before 6.12) this has no effect.
enum class Turns : unsigned char {
  brief,     // of threads that may be busy all the time: 200 us
  briefest,  // of those that sleep most of it, and for which the others should make way: 100 us, the least that the kernel grants
};
void take_turns(Turns turns) noexcept;

// The calling thread, and the threads and processes that it starts from then on, run on this processor alone (numbers begin at 0, and start
// again where there are no more). For measurements. `failed` where the system forbids it.
Status keep_to_processor(std::size_t number);

// A named thread that joins when destroyed. Signals are blocked in it (the main thread handles them).
class Thread {
 public:
  Thread() = default;
  Thread(std::string name, std::move_only_function<void()> body);
  Thread(Thread&&) = default;
  Thread& operator=(Thread&&) = default;
  ~Thread();
  void join();
  [[nodiscard]] bool joinable() const { return thread_.joinable(); }

 private:
  std::thread thread_;
};

// A fixed number of threads and a bounded queue for work that may block (disk commits, kernel runs).
class BlockingPool {
 public:
  BlockingPool(std::string name, std::size_t threads, std::size_t queue_max);
  ~BlockingPool();  // runs what is queued, then joins
  BlockingPool(const BlockingPool&) = delete;
  BlockingPool& operator=(const BlockingPool&) = delete;
  // false: the queue is full or the pool is stopping; the task was not taken.
  bool submit(std::move_only_function<void()> task);
  void stop();

 private:
  void run();
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::move_only_function<void()>> queue_;
  std::size_t queue_max_;
  bool stopping_ = false;
  std::vector<Thread> threads_;
};

// Calls functions at monotonic instants, on its own thread: they must be short and must not block.
class TimerThread {
 public:
  explicit TimerThread(const Clock& clock);
  ~TimerThread();
  TimerThread(const TimerThread&) = delete;
  TimerThread& operator=(const TimerThread&) = delete;
  std::uint64_t at(Instant when, std::move_only_function<void()> call);
  void cancel(std::uint64_t id);  // no effect when it already ran; does not wait for a call in progress
  void stop();

 private:
  using Key = std::pair<Instant, std::uint64_t>;
  void run();
  const Clock& clock_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::map<Key, std::move_only_function<void()>> due_;
  std::map<std::uint64_t, Instant> when_;
  std::uint64_t next_ = 1;
  Instant asleep_until_ = Instant::min();  // min: awake, and looks again before it sleeps
  bool stopping_ = false;
  Thread thread_;
};

}  // namespace falaj
