#include "runtime/host/remote.hpp"

#include "messages/envelope.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/log.hpp"

namespace falaj {

void Remote::set_transport(Transport* transport) { transport_.store(transport, std::memory_order_release); }

ActorRef Remote::proxy(const ActorAddress& address) {
  const std::scoped_lock lock(mutex_);
  auto& cached = proxies_[ProxyKey{address.node, address.incarnation, address.actor, address.name}];
  // A cached proxy whose last count is going away is not there any more: its forget() waits for our lock.
  if (cached != nullptr && cached->try_retain()) return ActorRef::adopt(cached);
  ActorRef fresh(cached = new Proxy(node_.shared_from_this(), address));
  recent_[next_recent_++ % recent_.size()] = fresh;
  return fresh;
}

void Remote::forget(Proxy& proxy) noexcept {
  const std::scoped_lock lock(mutex_);
  const auto& a = proxy.where();
  const auto found = proxies_.find(ProxyKey{a.node, a.incarnation, a.actor, a.name});
  if (found != proxies_.end() && found->second == &proxy) proxies_.erase(found);
}

// ---- out ------------------------------------------------------------------------------------------------------------------------

namespace {

void write(messages::Address::Builder to, const ActorAddress& address) {
  to.setNode(address.node.value());
  to.setIncarnation(address.incarnation.value());
  to.setActor(address.actor.value());
  // An id is enough; a name is for those that have none.
  if (address.actor.value() == 0 && !address.name.empty()) to.setName(address.name);
}

Message empty_body() {
  static const Message kEmpty = Message::build<messages::Empty>();
  return kEmpty;
}

}  // namespace

Message Remote::envelope(const Proxy& proxy, const Delivery& d, std::uint64_t wire) const {
  return Message::build<messages::Envelope>([&](messages::Envelope::Builder b) {
    write(b.initTo(), proxy.where());
    if (d.from) {
      auto from = d.from.address();
      if (node_.own(from.node)) {
        from.node = node_.id;
        from.incarnation = node_.options.incarnation;
        write(b.initFrom(), from);
      }
    }
    b.setKind(static_cast<messages::Kind>(d.kind));
    b.setTypeId(d.body.type().value());
    b.setCorrelation(wire);
    if (d.deadline != Instant::max()) {
      const auto left = std::chrono::duration_cast<std::chrono::microseconds>(d.deadline - node_.now()).count();
      b.setBudgetUs(left > 0 ? static_cast<std::uint64_t>(left) : 1);
    }
    b.setTraceHigh(d.trace.trace_high);
    b.setTraceLow(d.trace.trace_low);
    b.setSpan(d.trace.span);
    b.setSampled(d.trace.sampled);
    if (d.scope) {
      auto scope = b.initScope();
      scope.setPrincipal(d.scope->principal);
      scope.setTenant(d.scope->tenant);
      scope.setPurpose(d.scope->purpose);
      scope.setResidency(d.scope->residency);
      scope.setIdempotencyKey(d.scope->idempotency_key);
    }
  });
}

// Remembers who waits before the message leaves, so that a fast answer finds them. Gives the correlation for the wire.
std::uint64_t Remote::note(Proxy& proxy, const Delivery& d) {
  const std::uint64_t plain = d.correlation.value();
  if (d.kind != Kind::ask && d.kind != Kind::watch && d.kind != Kind::unwatch && d.kind != Kind::down) return plain;
  const auto& to = proxy.where();
  const std::scoped_lock lock(mutex_);
  auto& peer = peers_[to.node];
  if (d.kind == Kind::down) {
    peer.watched.erase(plain);
    return plain;
  }
  const auto incarnation = to.incarnation.value() != 0 ? to.incarnation : peer.incarnation;
  if (d.kind == Kind::ask) {
    if (peer.asks.size() >= peer.sweep_at) {
      const auto now = node_.now();  // an asker whose deadline has passed has answered itself
      std::erase_if(peer.asks, [&](const auto& entry) { return entry.second.deadline < now; });
      peer.sweep_at = std::max<std::size_t>(1024, peer.asks.size() * 2);
    }
    peer.asks.insert_or_assign(AskKey{d.from.address().actor.value(), plain}, Waiting{d.from, d.lane, d.deadline, incarnation});
    return plain;
  }
  const std::pair<Target*, std::uint64_t> key{d.from.get(), plain};
  if (d.kind == Kind::watch) {
    const auto token = next_watch_++;
    peer.watches.emplace(token, Watch{d.from, d.correlation, ActorRef(&proxy), incarnation});
    peer.watch_tokens[key] = token;
    return token;
  }
  const auto found = peer.watch_tokens.find(key);
  if (found == peer.watch_tokens.end()) return 0;
  const auto token = found->second;
  peer.watches.erase(token);
  peer.watch_tokens.erase(found);
  return token;
}

void Remote::forget_note(Proxy& proxy, const Delivery& d, std::uint64_t wire) {
  const std::scoped_lock lock(mutex_);
  auto& peer = peers_[proxy.where().node];
  if (d.kind == Kind::ask) peer.asks.erase(AskKey{d.from.address().actor.value(), wire});
  if (d.kind == Kind::watch) {
    peer.watches.erase(wire);
    peer.watch_tokens.erase({d.from.get(), d.correlation.value()});
  }
}

void Remote::send(Proxy& proxy, std::unique_ptr<Delivery> d) {
  const auto& to = proxy.where();
  Status sent;
  std::uint64_t wire = d->correlation.value();
  auto* transport = transport_.load(std::memory_order_acquire);
  {
    const std::scoped_lock lock(mutex_);
    const auto& peer = peers_[to.node];
    if (to.incarnation.value() != 0 && to.incarnation < peer.incarnation)
      sent = error(ErrorCode::gone, "that incarnation of the node has ended; look the name up again");
    if (transport == nullptr) sent = error(ErrorCode::unreachable, "this node has no links to others");
    if (sent.has_value()) wire = note(proxy, *d);
  }
  if (sent.has_value()) {
    if (d->kind == Kind::unwatch && wire == 0) return;
    sent = transport->send(to.node, d->lane, envelope(proxy, *d, wire), d->body ? d->body : empty_body());
    if (!sent.has_value()) forget_note(proxy, *d, wire);
  }
  if (!sent.has_value()) node_.undeliverable(std::move(d), proxy, sent.error());
}

// ---- in -------------------------------------------------------------------------------------------------------------------------

struct Remote::Parsed {
  messages::Kind kind;
  ActorAddress to;
  ActorAddress from;
  CorrelationId correlation;
  Instant deadline = Instant::max();
  TraceContext trace;
  ScopeRef scope;
};

namespace {

ActorAddress read(messages::Address::Reader from) {
  return {NodeId(from.getNode()), Incarnation(from.getIncarnation()), ActorId(from.getActor()), std::string(text(from.getName()))};
}

}  // namespace

void Remote::on_message(const Host::Peer& sender, Lane lane, const Message& envelope, Message body) {
  auto view = envelope.open<messages::Envelope>();
  if (!view.has_value()) {
    node_.dead_letter({}, envelope.type(), "an envelope that cannot be read: " + view.error().message);
    return;
  }
  const auto& e = **view;
  Parsed p{.kind = e.getKind(), .to = read(e.getTo()), .from = read(e.getFrom()), .correlation = CorrelationId(e.getCorrelation())};
  // Whatever it claims, a message comes from the peer that was authenticated.
  p.from.node = sender.node;
  p.from.incarnation = sender.incarnation;
  constexpr std::uint64_t kLongest = 1'000'000ULL * 3600 * 24;
  if (e.getBudgetUs() != 0) p.deadline = node_.now() + std::chrono::microseconds(std::min(e.getBudgetUs(), kLongest));
  p.trace = {e.getTraceHigh(), e.getTraceLow(), e.getSpan(), e.getSampled()};
  if (e.hasScope() || !sender.is_node) {
    const auto s = e.getScope();
    auto scope = std::make_shared<Scope>(Scope{std::string(text(s.getPrincipal())), std::string(text(s.getTenant())),
                                               std::string(text(s.getPurpose())), std::string(text(s.getResidency())),
                                               std::string(text(s.getIdempotencyKey()))});
    if (!sender.is_node) scope->principal = sender.principal;  // speaks only for itself
    p.scope = std::move(scope);
  }
  // The first word of a restarted node may be the answer to an ask that was fenced with its old incarnation: that answer counts,
  // and only then are the asks to the old one failed.
  const bool answer = p.kind == messages::Kind::REPLY || p.kind == messages::Kind::REFUSAL;
  if (answer) inbound_answer(sender, p, body);
  const bool current = heard_of(sender.node, sender.incarnation);
  if (answer) return;
  if (!current) {
    node_.dead_letter(p.to, body.type(), "gone: from an incarnation of a node that has ended");
    return;
  }
  switch (p.kind) {
    case messages::Kind::TELL:
    case messages::Kind::ASK:
    case messages::Kind::WATCH:
    case messages::Kind::UNWATCH:
      inbound_request(sender, lane, p, std::move(body));
      return;
    case messages::Kind::DOWN:
      inbound_down(sender, p, std::move(body));
      return;
    default:
      node_.dead_letter(p.to, body.type(), "an envelope of a kind that belongs to the links");
  }
}

void Remote::inbound_request(const Host::Peer& sender, Lane lane, const Parsed& p, Message body) {
  auto d = std::make_unique<Delivery>();
  d->kind = static_cast<Kind>(p.kind);
  d->lane = lane;
  d->body = std::move(body);
  d->correlation = p.correlation;
  d->deadline = p.deadline;
  if (d->kind == Kind::ask && d->deadline == Instant::max()) d->deadline = node_.now() + limits::kAskDefault;
  d->trace = p.trace;
  d->scope = p.scope;
  d->from_outside = true;
  d->from_node = sender.is_node;
  if (p.from.actor.value() != 0 || !p.from.name.empty()) d->from = proxy(p.from);

  const auto to = receiver(sender, p);
  if (to.has_value()) {
    note_watched(sender, *d, *to);
    to->get()->deliver(std::move(d));
  } else if (sender.is_node || to.error().code != ErrorCode::not_found || !node_.own(p.to.node) || !node_.relay(d, p.to.name)) {
    const auto nobody = node_.nobody(p.to, to.error());
    nobody.get()->deliver(std::move(d));
  }
}

Result<ActorRef> Remote::receiver(const Host::Peer& sender, const Parsed& p) {
  if (p.to.node.value() != 0 && p.to.node != node_.id) return error(ErrorCode::not_found, "the message is addressed to another node");
  if (p.to.incarnation.value() != 0 && p.to.incarnation != node_.options.incarnation && !fault::planted("incarnation-unchecked"))
    return error(ErrorCode::gone, "that incarnation of the node has ended; look the name up again");
  if (!sender.is_node && (p.kind == messages::Kind::WATCH || p.kind == messages::Kind::UNWATCH))
    return error(ErrorCode::denied, "only nodes may watch actors");
  if (p.to.actor.value() != 0) {
    auto to = node_.local(p.to.actor);
    if (!to) return error(ErrorCode::gone, "the actor has ended; look its name up again");
    return to;
  }
  auto to = node_.find_local(p.to.name);
  if (!to) return error(ErrorCode::not_found, format("no actor named {} on this node", p.to.name));
  return to;
}

// So that an actor which lives long does not remember the watchers of nodes that have died.
void Remote::note_watched(const Host::Peer& sender, const Delivery& d, const ActorRef& to) {
  if (d.kind != Kind::watch && d.kind != Kind::unwatch) return;
  const std::scoped_lock lock(mutex_);
  auto& watched = peers_[sender.node].watched;
  if (d.kind == Kind::watch) {
    watched.insert_or_assign(d.correlation.value(), Watched{to, d.from, sender.incarnation});
  } else {
    watched.erase(d.correlation.value());
  }
}

void Remote::inbound_answer(const Host::Peer& sender, const Parsed& p, const Message& body) {
  Waiting waiting;
  {
    const std::scoped_lock lock(mutex_);
    auto& peer = peers_[sender.node];
    const auto found = peer.asks.find(AskKey{p.to.actor.value(), p.correlation.value()});
    if (found != peer.asks.end()) {
      waiting = std::move(found->second);
      peer.asks.erase(found);
    }
  }
  if (!waiting.asker) {
    node_.late_answer();
    return;
  }
  auto d = std::make_unique<Delivery>();
  d->kind = static_cast<Kind>(p.kind);
  d->lane = waiting.lane;
  d->body = body;
  d->correlation = p.correlation;
  waiting.asker.get()->deliver(std::move(d));
}

void Remote::inbound_down(const Host::Peer& sender, const Parsed& p, Message body) {
  Watch watch;
  {
    const std::scoped_lock lock(mutex_);
    auto& peer = peers_[sender.node];
    const auto found = peer.watches.find(p.correlation.value());
    if (found == peer.watches.end()) return;
    watch = std::move(found->second);
    peer.watches.erase(found);
    peer.watch_tokens.erase({watch.watcher.get(), watch.token.value()});
  }
  auto d = std::make_unique<Delivery>();
  d->kind = Kind::down;
  d->body = std::move(body);
  d->correlation = watch.token;
  d->from = watch.watched;
  watch.watcher.get()->deliver(std::move(d));
}

// ---- peers come and go ---------------------------------------------------------------------------------------------------------------

// False: the peer has restarted since, what it sent before is from the dead.
bool Remote::heard_of(NodeId peer, Incarnation incarnation) {
  Incarnation old;
  {
    const std::scoped_lock lock(mutex_);
    auto& known = peers_[peer];
    if (incarnation <= known.incarnation) return incarnation == known.incarnation;
    old = std::exchange(known.incarnation, incarnation);
  }
  if (old.value() != 0) fail_peer(peer, old, error(ErrorCode::unreachable, "the node has restarted"));
  return true;
}

void Remote::on_peer_down(NodeId peer, Incarnation incarnation, const Error& why) {
  const auto message = why.message.empty() ? std::string("its node is lost") : "its node is lost: " + why.message;
  fail_peer(peer, incarnation, error(ErrorCode::unreachable, message));
}

void Remote::fail_peer(NodeId id, Incarnation incarnation, const Error& why) {
  std::vector<std::pair<CorrelationId, Waiting>> asks;
  std::vector<Watch> watches;
  std::vector<std::pair<std::uint64_t, Watched>> watched;
  {
    const std::scoped_lock lock(mutex_);
    auto& peer = peers_[id];
    for (auto at = peer.asks.begin(); at != peer.asks.end();) {
      if (at->second.incarnation <= incarnation) {
        asks.emplace_back(CorrelationId(at->first.correlation), std::move(at->second));
        at = peer.asks.erase(at);
      } else {
        ++at;
      }
    }
    for (auto at = peer.watched.begin(); at != peer.watched.end();) {
      if (at->second.incarnation <= incarnation) {
        watched.emplace_back(at->first, std::move(at->second));
        at = peer.watched.erase(at);
      } else {
        ++at;
      }
    }
    for (auto at = peer.watches.begin(); at != peer.watches.end();) {
      if (at->second.incarnation <= incarnation) {
        peer.watch_tokens.erase({at->second.watcher.get(), at->second.token.value()});
        watches.push_back(std::move(at->second));
        at = peer.watches.erase(at);
      } else {
        ++at;
      }
    }
  }
  for (auto& [token, w] : watched) {
    auto d = std::make_unique<Delivery>();
    d->kind = Kind::unwatch;
    d->correlation = CorrelationId(token);
    d->from = w.watcher;
    w.actor.get()->deliver(std::move(d));
  }
  const auto body = refusal_message(why);
  for (auto& [correlation, waiting] : asks) {
    auto d = std::make_unique<Delivery>();
    d->kind = Kind::refusal;
    d->lane = waiting.lane;
    d->body = body;
    d->correlation = correlation;
    waiting.asker.get()->deliver(std::move(d));
  }
  if (fault::planted("down-lost")) watches.clear();
  for (auto& watch : watches) {
    auto d = std::make_unique<Delivery>();
    d->kind = Kind::down;
    d->body = body;
    d->correlation = watch.token;
    d->from = watch.watched;
    watch.watcher.get()->deliver(std::move(d));
  }
}

// What waits holds proxies and askers, and these hold the node: without this the node would hold itself.
void Remote::close() {
  transport_.store(nullptr, std::memory_order_release);
  std::map<NodeId, Peer> peers;
  decltype(recent_) recent;
  {
    const std::scoped_lock lock(mutex_);
    peers.swap(peers_);
    recent.swap(recent_);
  }
  const auto body = refusal_message(error(ErrorCode::gone, "the host has stopped"));
  for (auto& [id, peer] : peers) {
    for (auto& [key, waiting] : peer.asks) {
      auto d = std::make_unique<Delivery>();
      d->kind = Kind::refusal;
      d->lane = waiting.lane;
      d->body = body;
      d->correlation = CorrelationId(key.correlation);
      waiting.asker.get()->deliver(std::move(d));
    }
  }
}

}  // namespace falaj
