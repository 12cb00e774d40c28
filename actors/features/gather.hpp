// Several coroutines of one actor at once: start them with add(), then co_await all().
//
// Ways to get hurt: what the tasks refer to must live until all() is done; keep the Gather and its subjects in one coroutine.
#pragma once
#include <memory>
#include <utility>

#include "runtime/host/actor.hpp"

namespace falaj::features {

class Gather {
 public:
  explicit Gather(Context& ctx) : ctx_(ctx) {}
  // Runs it until it first waits.
  void add(Task<> task) {
    ++state_->open;
    ctx_.start(run(state_, std::move(task)));
  }
  [[nodiscard]] auto all() {
    struct Awaiter {
      std::shared_ptr<State> state;
      [[nodiscard]] bool await_ready() const noexcept { return state->open == 0; }
      void await_suspend(std::coroutine_handle<> caller) noexcept { state->waiting = caller; }
      void await_resume() const noexcept {}
    };
    return Awaiter{state_};
  }

 private:
  struct State {
    std::size_t open = 0;
    std::coroutine_handle<> waiting;
  };
  // The last one resumes whoever waits, on the same turn. When the actor ends, all are destroyed and nobody is resumed.
  static Task<> run(std::shared_ptr<State> state, Task<> task) {
    co_await std::move(task);
    if (--state->open == 0 && state->waiting) std::exchange(state->waiting, {}).resume();
  }
  Context& ctx_;
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace falaj::features
