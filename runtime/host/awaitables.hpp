// The awaitables behind Context::ask, sleep and blocking. Included by actor.hpp only.
#pragma once
#include <memory>
#include <optional>
#include <type_traits>

namespace falaj {
namespace detail {

// How far an ask_all is. Says once that the coroutine may go on.
struct GatherState {
  std::size_t wanted = 0;  // zero: the end of each
  std::size_t left = 0;    // asks without an end
  std::size_t replies = 0;
  bool over = false;

  [[nodiscard]] bool ended(bool replied) noexcept {
    --left;
    if (replied) ++replies;
    if (over) return false;
    over = wanted == 0 ? left == 0 : replies >= wanted || replies + left < wanted;
    return over;
  }
};

// Lives in the coroutine frame while it waits. When the frame is destroyed first, the context is told to forget it.
struct AskState {
  Context* context = nullptr;
  std::coroutine_handle<> waiting;
  CorrelationId correlation;
  GatherState* gather = nullptr;          // one of many: it says when to resume
  std::optional<Result<Message>> result;  // set by the host before it resumes
  bool pending = false;

  AskState() = default;
  AskState(const AskState&) = delete;
  AskState& operator=(const AskState&) = delete;
  ~AskState() {
    if (pending) context->ask_forget(*this);
  }
  void begin(const ActorRef& to, Message message, const SendOptions& options) {
    context->ask_begin(*this, to, std::move(message), options);
  }
};

struct WaitState {
  Context* context = nullptr;
  std::coroutine_handle<> waiting;
  std::uint64_t id = 0;
  bool pending = false;

  WaitState() = default;
  WaitState(const WaitState&) = delete;
  WaitState& operator=(const WaitState&) = delete;
  ~WaitState() {
    if (pending) context->wait_forget(*this);
  }
  void begin_sleep(Duration duration) { context->sleep_begin(*this, duration); }
  bool begin_blocking(std::move_only_function<void()> work) { return context->blocking_begin(*this, std::move(work)); }
};

template <class Reply>
class AskAwaiter {
 public:
  AskAwaiter(Context& context, ActorRef to, Message message, SendOptions options)
      : context_(&context), to_(std::move(to)), message_(std::move(message)), options_(std::move(options)) {}
  // Moved only before it is awaited: nothing is pending then.
  AskAwaiter(AskAwaiter&& other) noexcept
      : context_(other.context_), to_(std::move(other.to_)), message_(std::move(other.message_)), options_(std::move(other.options_)) {}
  [[nodiscard]] bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> caller) {
    state_.context = context_;
    state_.waiting = caller;
    state_.begin(to_, std::move(message_), options_);
  }
  Result<View<Reply>> await_resume() {
    if (!state_.result->has_value()) return std::move(*state_.result).error();
    return state_.result->value().template open<Reply>();
  }

 private:
  Context* context_;
  ActorRef to_;
  Message message_;
  SendOptions options_;
  AskState state_;
};

template <class Reply>
class AskAllAwaiter {
 public:
  AskAllAwaiter(Context& context, std::vector<ActorRef> to, Message message, std::size_t quorum, SendOptions options)
      : context_(&context), to_(std::move(to)), message_(std::move(message)), options_(std::move(options)) {
    gather_.wanted = quorum;
    gather_.left = to_.size();
  }
  // Moved only before it is awaited: nothing is pending then.
  AskAllAwaiter(AskAllAwaiter&& other) noexcept
      : context_(other.context_),
        to_(std::move(other.to_)),
        message_(std::move(other.message_)),
        options_(std::move(other.options_)),
        gather_(other.gather_) {}
  [[nodiscard]] bool await_ready() const noexcept {
    return to_.size() < gather_.wanted || to_.empty();
  }  // nothing to wait for: none is sent
  void await_suspend(std::coroutine_handle<> caller) {
    states_ = std::make_unique<AskState[]>(to_.size());
    for (std::size_t i = 0; i < to_.size(); ++i) {
      states_[i].context = context_;
      states_[i].waiting = caller;
      states_[i].gather = &gather_;
      states_[i].begin(to_[i], message_, options_);
    }
  }
  Answers<Reply> await_resume() {
    Answers<Reply> out;
    out.from.resize(to_.size());
    for (std::size_t i = 0; states_ && i < to_.size(); ++i) {
      auto& result = states_[i].result;
      if (!result) continue;
      if (!result->has_value()) {
        out.from[i].emplace(std::move(*result).error());
        continue;
      }
      out.from[i].emplace(result->value().template open<Reply>());
      if (out.from[i]->has_value()) ++out.replies;
    }
    out.quorum = out.replies >= (gather_.wanted == 0 ? to_.size() : gather_.wanted);
    states_.reset();  // whoever has not answered is no longer waited for
    return out;
  }

 private:
  Context* context_;
  std::vector<ActorRef> to_;
  Message message_;
  SendOptions options_;
  GatherState gather_;
  std::unique_ptr<AskState[]> states_;
};

class SleepAwaiter {
 public:
  SleepAwaiter(Context& context, Duration duration) : context_(&context), duration_(duration) {}
  SleepAwaiter(SleepAwaiter&& other) noexcept : context_(other.context_), duration_(other.duration_) {}
  [[nodiscard]] bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> caller) {
    state_.context = context_;
    state_.waiting = caller;
    state_.begin_sleep(duration_);
  }
  void await_resume() const noexcept {}

 private:
  Context* context_;
  Duration duration_;
  WaitState state_;
};

template <class T>
struct Flatten {
  using type = Result<T>;
};
template <class T>
struct Flatten<Result<T>> {
  using type = Result<T>;
};

template <class F>
class BlockingAwaiter {
  using Value = std::invoke_result_t<F&>;
  using Out = typename Flatten<Value>::type;
  // Outlives the coroutine if that is destroyed while the pool still runs the work.
  struct Shared {
    F f;
    std::optional<Out> out;
    std::exception_ptr failure;
  };

 public:
  BlockingAwaiter(Context& context, F f)
      : context_(&context), shared_(std::make_shared<Shared>(Shared{std::move(f), std::nullopt, nullptr})) {}
  BlockingAwaiter(BlockingAwaiter&& other) noexcept : context_(other.context_), shared_(std::move(other.shared_)) {}
  [[nodiscard]] bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> caller) {
    state_.context = context_;
    state_.waiting = caller;
    return state_.begin_blocking([shared = shared_] {
      try {
        if constexpr (std::is_void_v<Value>) {
          shared->f();
          shared->out.emplace();
        } else {
          shared->out.emplace(shared->f());
        }
      } catch (...) {
        shared->failure = std::current_exception();
      }
    });
  }
  Out await_resume() {
    if (shared_->failure) std::rethrow_exception(shared_->failure);
    if (!shared_->out) return Error{ErrorCode::overloaded, "the blocking pool's queue is full"};
    return std::move(*shared_->out);
  }

 private:
  Context* context_;
  std::shared_ptr<Shared> shared_;
  WaitState state_;
};

}  // namespace detail

template <class Reply>
auto Context::ask(const ActorRef& to, Message message, const SendOptions& options) {
  return detail::AskAwaiter<Reply>(*this, to, std::move(message), options);
}

template <class Reply>
auto Context::ask_all(std::vector<ActorRef> to, Message message, std::size_t quorum, const SendOptions& options) {
  return detail::AskAllAwaiter<Reply>(*this, std::move(to), std::move(message), quorum, options);
}

inline auto Context::sleep(Duration duration) { return detail::SleepAwaiter(*this, duration); }

template <class F>
auto Context::blocking(F f) {
  return detail::BlockingAwaiter<F>(*this, std::move(f));
}

}  // namespace falaj
