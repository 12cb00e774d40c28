// The queues of a work-stealing scheduler, and its sleep: a worker that finds nothing parks until it is called.
//
// A worker takes the oldest job of its own queue, else steals the youngest of another's. Urgent jobs (whom a message of the control lane or
// a timer has woken) go before all others, but not more than kUrgentInRow at a time while others wait. A job from outside goes to a parked
// worker, if there is one, and wakes it; else to the workers in turn. A job that a worker puts in front of its own queue wakes nobody while
// it is the only one there: of two actors that answer each other the pair stays on one thread. Should the worker then be busy for long, a
// parked one finds the job when it looks around, within kLookAround.
//
// No wake-up is lost: who parks says so and then looks at all queues; who pushes makes the push visible and then looks for the parked
// (both sequentially consistent, so one sees the other). Holds plain pointers, so that the host's one CAF file need not be big.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/base/clock.hpp"

namespace falaj {

class RunQueues {
 public:
  using Job = void*;
  static constexpr Duration kLookAround = std::chrono::milliseconds(1);
  static constexpr unsigned kUrgentInRow = 8;
  static constexpr Duration kLookAroundIdle = std::chrono::milliseconds(20);  // after a while of finding nothing

  void open(std::size_t workers);  // once, before anything else
  [[nodiscard]] std::size_t workers() const noexcept { return workers_.size(); }

  void push(Job job, bool urgent = false);                         // from any thread
  void push_to(std::size_t worker, Job job, bool urgent = false);  // the same, into one worker's queue
  // By the worker itself.
  void push_front(std::size_t worker, Job job, bool urgent = false);
  void push_back(std::size_t worker, Job job);
  [[nodiscard]] Job take(std::size_t worker);  // waits until there is one

  [[nodiscard]] Job take_own(std::size_t worker);  // null: its queue is empty

 private:
  struct alignas(64) Worker {
    std::mutex mutex;
    std::deque<Job> jobs;  // guarded by mutex, as the next two
    std::deque<Job> urgent;
    unsigned urgent_in_row = 0;         // that were taken while others waited
    std::atomic<std::size_t> count{0};  // of both
    std::atomic<bool> parked{false};
    std::mutex park_mutex;
    std::condition_variable called;
    bool call = false;  // guarded by park_mutex
  };
  enum class Place : unsigned char { front, back, urgent };
  static std::size_t add(Worker& worker, Job job, Place place);
  Job steal(std::size_t thief);
  bool claim(Worker& worker) noexcept;
  static void wake(Worker& worker);
  void wake_one();
  Job park(std::size_t self, Duration at_most);

  std::vector<std::unique_ptr<Worker>> workers_;
  std::atomic<std::size_t> parked_{0};
  std::atomic<std::size_t> next_{0};
};

}  // namespace falaj
