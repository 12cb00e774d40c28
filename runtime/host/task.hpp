// Task<T>: a coroutine of an actor. Lazy: it runs when awaited, or when it is returned from a handler. An actor's tasks run only on
// the actor's own turn, and are destroyed (with everything they hold) when the actor stops.
//
// Ways to get hurt:
//  - A capturing lambda must not be a coroutine: its captures die before it resumes. Use a member function.
//  - A reference parameter must outlive the coroutine: `Context&` and `this` do; take everything else by value.
//  - After each co_await the actor may have handled other messages: look at your state again.
#pragma once
#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

namespace falaj {

template <class T>
class Task;

namespace detail {

struct PromiseBase;

// The tasks of one actor that nobody awaits, in the order they began: intrusive lists of the running and of the finished ones.
struct TaskList {
  PromiseBase* running = nullptr;
  PromiseBase* finished = nullptr;
};
void task_finished(PromiseBase& promise) noexcept;  // moves it from running to finished

struct FinalAwaiter {
  [[nodiscard]] bool await_ready() const noexcept { return false; }
  template <class Promise>
  std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> self) noexcept {
    auto& promise = self.promise();
    if (promise.list != nullptr) task_finished(promise);
    return promise.continuation ? promise.continuation : std::noop_coroutine();
  }
  void await_resume() const noexcept {}
};

struct PromiseBase {
  std::coroutine_handle<> continuation;
  TaskList* list = nullptr;  // set by the host for a task that nobody awaits
  PromiseBase* previous = nullptr;
  PromiseBase* next = nullptr;
  std::exception_ptr failure;
  std::suspend_always initial_suspend() noexcept { return {}; }
  FinalAwaiter final_suspend() noexcept { return {}; }
  void unhandled_exception() { failure = std::current_exception(); }
};

template <class T>
struct Promise : PromiseBase {
  std::optional<T> value;
  Task<T> get_return_object();
  template <class U>
  void return_value(U&& u) {
    value.emplace(std::forward<U>(u));
  }
  T take() {
    if (failure) std::rethrow_exception(failure);
    return std::move(*value);
  }
};

template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() noexcept {}
  void take() {
    if (failure) std::rethrow_exception(failure);
  }
};

}  // namespace detail

template <class T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  explicit Task(Handle handle) noexcept : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Task& operator=(Task&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Task() {
    if (handle_) handle_.destroy();
  }

  // For the host: the handle, still owned by this Task.
  [[nodiscard]] Handle handle() const noexcept { return handle_; }
  [[nodiscard]] Handle release() noexcept { return std::exchange(handle_, {}); }
  [[nodiscard]] bool done() const noexcept { return !handle_ || handle_.done(); }

  auto operator co_await() && noexcept {
    struct Awaiter {
      Handle handle;
      [[nodiscard]] bool await_ready() const noexcept { return handle.done(); }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<> caller) noexcept {
        handle.promise().continuation = caller;
        return handle;
      }
      T await_resume() { return handle.promise().take(); }
    };
    return Awaiter{handle_};
  }

 private:
  Handle handle_;
};

namespace detail {
template <class T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise<T>>::from_promise(*this));
}
inline Task<void> Promise<void>::get_return_object() { return Task<void>(std::coroutine_handle<Promise<void>>::from_promise(*this)); }
}  // namespace detail

}  // namespace falaj
