// For actors that pass on what others send and never open it: an ask whose answer is a message of whatever type.
#pragma once
#include "runtime/host/actor.hpp"

namespace falaj {

class AskAny {
 public:
  AskAny(Context& context, ActorRef to, Message message, SendOptions options)
      : context_(&context), to_(std::move(to)), message_(std::move(message)), options_(std::move(options)) {}
  AskAny(const AskAny&) = delete;
  AskAny& operator=(const AskAny&) = delete;
  ~AskAny() = default;
  [[nodiscard]] bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> caller) {
    state_.context = context_;
    state_.waiting = caller;
    state_.begin(to_, std::move(message_), options_);
  }
  Result<Message> await_resume() { return std::move(*state_.result); }

 private:
  Context* context_;
  ActorRef to_;
  Message message_;
  SendOptions options_;
  detail::AskState state_;
};

}  // namespace falaj
