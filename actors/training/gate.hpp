// Where coroutines of one actor wait for another turn of the same actor: a Gate has no state, it only wakes who waits. Whoever
// waits looks at the condition again, because others may have run since:  while (busy_) co_await gate_.wait();
#pragma once
#include <algorithm>
#include <coroutine>
#include <utility>
#include <vector>

namespace falaj::training {

class Gate {
 public:
  class [[nodiscard]] Waiter {
   public:
    explicit Waiter(Gate& gate) : gate_(&gate) {}
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
    // A frame that is destroyed while it waits must not be woken.
    ~Waiter() {
      if (handle_) std::erase(gate_->waiting_, this);
    }
    [[nodiscard]] bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) {
      handle_ = handle;
      gate_->waiting_.push_back(this);
    }
    void await_resume() noexcept {}

   private:
    friend class Gate;
    Gate* gate_;
    std::coroutine_handle<> handle_;
  };

  Gate() = default;
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  auto wait() { return Waiter(*this); }
  // Wakes all that wait now, in the order in which they came; they run before this returns.
  void open() {
    for (auto left = waiting_.size(); left > 0 && !waiting_.empty(); --left) {
      Waiter* first = waiting_.front();
      waiting_.erase(waiting_.begin());
      std::exchange(first->handle_, {}).resume();
    }
  }

 private:
  std::vector<Waiter*> waiting_;
};

}  // namespace falaj::training
