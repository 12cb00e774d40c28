// Node::relay: a program that is linked to one node reaches the actors of all.
#include "messages/catalog.hpp"
#include "runtime/base/format.hpp"
#include "runtime/host/actor.hpp"
#include "runtime/host/node.hpp"

namespace falaj {

namespace {

constexpr std::size_t kRelaysMax = 8192;

// Of a name that programs host: there each message takes a verb (actors/control/foreign.cpp).
constexpr std::string_view kHosted = "foreign/";

// What a node passes on counts as its own word where a message has no verb: such a one must not come from somebody else.
Status passable(const HostOptions& options, const Delivery& d, std::string_view name) {
  if (name.starts_with(kHosted)) return {};
  const auto schema = find_message(d.body.type());
  if (schema && !verb_of(*schema).empty()) return {};
  const auto what = message_label(d.body.type());
  if (options.authorizer != nullptr) FALAJ_TRY(options.authorizer->allow(*d.scope, {}, name, what));
  return error(ErrorCode::denied, format("{} may be sent by the cluster's own nodes only", what));
}

}  // namespace

bool Node::relay(std::unique_ptr<Delivery>& d, const std::string& name) {
  if (name.empty() || !d->scope || (d->kind != Kind::ask && d->kind != Kind::tell)) return false;
  const auto to = find(name);
  if (!to) return false;
  auto may = passable(options, *d, name);
  if (may.has_value() && d->kind == Kind::ask && relaying_.load(std::memory_order_relaxed) >= kRelaysMax)
    may = error(ErrorCode::overloaded, format("this node passes on {} questions already", kRelaysMax));
  if (!may.has_value()) {
    undeliverable(std::move(d), *to.get(), may.error());
    return true;
  }
  const bool is_ask = d->kind == Kind::ask;
  auto body = std::move(d->body);
  Inbound token(std::move(d));
  token.set_now(now());
  const auto send = token.options();
  if (!is_ask) {
    tell(to, std::move(body), send);
    return true;
  }
  relaying_.fetch_add(1, std::memory_order_relaxed);
  ask(to, std::move(body), send, [self = shared_from_this(), token = std::move(token)](Result<Message> answer) mutable {
    self->relaying_.fetch_sub(1, std::memory_order_relaxed);
    if (answer.has_value()) {
      token.reply(std::move(answer).value());
    } else {
      token.refuse(std::move(answer).error());
    }
  });
  return true;
}

}  // namespace falaj
