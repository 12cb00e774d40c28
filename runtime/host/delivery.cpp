#include "runtime/host/delivery.hpp"

#include "messages/envelope.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/host/node.hpp"
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

Inbound& Inbound::operator=(Inbound&& other) noexcept {
  if (this == &other) return *this;
  this->~Inbound();
  return *new (this) Inbound(std::move(other));
}

void Inbound::unanswered() noexcept { refuse(t_unanswered != nullptr ? *t_unanswered : failed("the handler ended without answering")); }

void Inbound::find_teller() const {
  const auto teller = std::exchange(delivery_->teller, ActorId{});
  if (node_ != nullptr) delivery_->from = node_->at({node_->id, node_->options.incarnation, teller, {}});
}

void Inbound::answer(Kind kind, Message body) {
  if (!std::exchange(open_, false) || !delivery_->from) return;
  // The handler may still ask this token from whom and why it was asked.
  auto delivery = std::make_unique<Delivery>();
  delivery->kind = kind;
  delivery->lane = delivery_->lane;
  delivery->body = std::move(body);
  delivery->correlation = delivery_->correlation;
  delivery->trace = delivery_->trace;
  Target& asker = *delivery_->from.get();
  if (fault::planted("reply-twice")) {
    auto again = std::make_unique<Delivery>();
    again->kind = kind;
    again->lane = delivery->lane;
    again->body = delivery->body;
    again->correlation = delivery->correlation;
    asker.deliver(std::move(again));
  }
  asker.deliver(std::move(delivery));
}

void Inbound::reply(Message answer_body) { answer(Kind::reply, std::move(answer_body)); }

void Inbound::refuse(Error why) {
  if (open_) answer(Kind::refusal, refusal_message(why));
}

SendOptions Inbound::options() const {
  SendOptions out;
  out.lane = delivery_->lane;
  out.scope = delivery_->scope;
  out.trace = delivery_->trace;
  // Never zero, which would mean the default: a deadline that has passed stays passed.
  if (deadline() != Instant::max()) out.timeout = std::max(deadline() - received_, Duration(1));
  return out;
}

}  // namespace falaj
