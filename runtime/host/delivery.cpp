#include "runtime/host/delivery.hpp"

#include "messages/envelope.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/host/unanswered.hpp"

namespace falaj {

namespace {
thread_local const Error* t_unanswered = nullptr;
}

UnansweredScope::UnansweredScope(const Error& why) noexcept : before_(t_unanswered) { t_unanswered = &why; }
UnansweredScope::~UnansweredScope() { t_unanswered = before_; }

std::string to_string(const ActorAddress& address) {
  const auto who = address.name.empty() ? format("#{}", address.actor.value()) : address.name;
  return address.node.value() == 0 ? who : format("{}@{:x}/{}", who, address.node.value(), address.incarnation.value());
}

Message refusal_message(const Error& error) {
  return Message::build<messages::ErrorInfo>(
      [&](messages::ErrorInfo::Builder b) {
        b.setCode(static_cast<messages::ErrorCode>(error.code));
        b.setMessage(error.message);
      },
      error.message.size() / 8 + 6);
}

Error refusal_error(const Message& message) {
  auto view = message.open<messages::ErrorInfo>();
  if (!view.has_value()) return std::move(view).error();
  const auto code = static_cast<unsigned>((*view)->getCode());
  // A newer peer may know more codes than we do.
  return Error{code > static_cast<unsigned>(ErrorCode::no_space) ? ErrorCode::failed : static_cast<ErrorCode>(code),
               std::string(text((*view)->getMessage()))};
}

Inbound::Inbound(Inbound&& other) noexcept
    : from_(std::move(other.from_)),
      correlation_(other.correlation_),
      open_(std::exchange(other.open_, false)),
      lane_(other.lane_),
      deadline_(other.deadline_),
      received_(other.received_),
      trace_(other.trace_),
      scope_(std::move(other.scope_)) {}

Inbound& Inbound::operator=(Inbound&& other) noexcept {
  if (this == &other) return *this;
  this->~Inbound();
  return *new (this) Inbound(std::move(other));
}

Inbound::~Inbound() {
  if (!open_) return;
  refuse(t_unanswered != nullptr ? *t_unanswered : failed("the handler ended without answering"));
}

void Inbound::answer(Kind kind, Message body) {
  if (!std::exchange(open_, false) || !from_) return;
  auto delivery = std::make_unique<Delivery>();
  delivery->kind = kind;
  delivery->lane = lane_;
  delivery->body = std::move(body);
  delivery->correlation = correlation_;
  delivery->trace = trace_;
  if (fault::planted("reply-twice")) {
    auto again = std::make_unique<Delivery>();
    again->kind = kind;
    again->lane = lane_;
    again->body = delivery->body;
    again->correlation = correlation_;
    from_.get()->deliver(std::move(again));
  }
  from_.get()->deliver(std::move(delivery));
}

void Inbound::reply(Message answer_body) { answer(Kind::reply, std::move(answer_body)); }

void Inbound::refuse(Error why) {
  if (open_) answer(Kind::refusal, refusal_message(why));
}

SendOptions Inbound::options() const {
  SendOptions out;
  out.lane = lane_;
  out.scope = scope_;
  out.trace = trace_;
  // Never zero, which would mean the default: a deadline that has passed stays passed.
  if (deadline_ != Instant::max()) out.timeout = std::max(deadline_ - received_, Duration(1));
  return out;
}

}  // namespace falaj
