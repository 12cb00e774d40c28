// The queues of a work-stealing scheduler, and its sleep: a worker that finds nothing parks until it is called.
//
// A worker takes the oldest job of its own queue, else steals the youngest of another's. Urgent jobs (whom a message of the control lane or
// a timer has woken) lie in a queue of their own. They go before all others, but not more than kUrgentInRow at a time while others wait.
// One worker, the express, takes nothing but urgent jobs and what is pushed to it by name: so it sleeps most of the time, and an urgent job
// waits neither for a turn of another actor nor, where the kernel lets a thread that has slept go first, for a busy processor. A job from
// outside goes to a parked worker, if there is one, and wakes it; else to the workers in turn. A job that a worker puts in front of its own
// queue has a place of its own there, without a lock, and wakes nobody while it is the only one: of two actors that answer each other the
// pair stays on one thread. Should the worker then be busy for long, a parked one finds the job when it looks around, within kLookAround.
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
  static constexpr Duration kLookAroundIdle = std::chrono::milliseconds(20);  // after a while of finding nothing
  static constexpr Duration kLookAroundExpress = std::chrono::seconds(1);     // it is always called
  static constexpr unsigned kUrgentInRow = 8;

  // Once, before anything else. With an express it is the last of them; there must be another then.
  void open(std::size_t workers, bool express = false);
  [[nodiscard]] bool is_express(std::size_t worker) const noexcept { return worker == ordinary_; }

  void push(Job job, bool urgent = false);                         // from any thread
  void push_to(std::size_t worker, Job job, bool urgent = false);  // the same, into one worker's queue
  // By the worker itself. The express keeps nothing of these for itself.
  void push_front(std::size_t worker, Job job, bool urgent = false);
  void push_back(std::size_t worker, Job job);
  [[nodiscard]] Job take(std::size_t worker);  // waits until there is one

  [[nodiscard]] Job take_own(std::size_t worker);  // null: neither its queue nor the urgent one has any

 private:
  struct Queue {
    std::mutex mutex;
    std::deque<Job> jobs;  // guarded by mutex
    std::atomic<std::size_t> count{0};
    std::size_t add(Job job, bool front);
    Job take(bool front);  // null: empty
    [[nodiscard]] bool empty() const noexcept { return count.load(std::memory_order_seq_cst) == 0; }
  };
  struct alignas(64) Worker {
    std::atomic<Job> next{nullptr};  // before all of its own queue: what it pushed in front last
    Queue own;
    unsigned urgent_in_row = 0;  // that were taken while others waited; the worker's own
    unsigned vain = 0;           // looks for more before it parked that found nothing, in a row; the worker's own
    std::atomic<bool> parked{false};
    std::mutex park_mutex;
    std::condition_variable called;
    bool call = false;  // guarded by park_mutex
  };
  void push_urgent(Job job);
  Job steal(std::size_t thief, bool next_too);
  [[nodiscard]] static Job take_next(Worker& of) noexcept;
  bool claim(std::size_t worker) noexcept;
  void wake(std::size_t worker);
  void wake_one();
  Job spin(std::size_t worker);
  Job park(std::size_t self, Duration at_most);

  std::vector<std::unique_ptr<Worker>> workers_;
  std::size_t ordinary_ = 0;  // workers; the express, if there is one, comes after them
  Queue urgent_;
  std::atomic<std::size_t> parked_{0};  // of the ordinary ones
  std::atomic<std::size_t> next_{0};
};

}  // namespace falaj
