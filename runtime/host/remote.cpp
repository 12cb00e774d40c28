#include "runtime/host/remote.hpp"

#include "messages/header.hpp"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/log.hpp"
#include "runtime/host/cell.hpp"
#include "runtime/host/remote_peer.hpp"

namespace falaj {

namespace {

// The peer whose messages this thread brings.
struct Batch {
  const Remote* remote = nullptr;
  std::shared_ptr<Remote::Peer> peer;
};
thread_local Batch t_batch;

}  // namespace

// ---- who is there ------------------------------------------------------------------------------------------------------------------

void Remote::set_transport(Transport* transport) { transport_.store(transport, std::memory_order_release); }

ActorRef Remote::proxy(const ActorAddress& address) {
  const std::scoped_lock lock(mutex_);
  auto& cached = proxies_[ProxyKey{address.node, address.incarnation, address.actor, address.name}];
  // A cached proxy whose last count is going away is not there any more: its forget() waits for our lock.
  if (cached != nullptr && cached->try_retain()) return ActorRef::adopt(cached);
  ActorRef fresh(cached = new Proxy(node_.shared_from_this(), address, peer(address.node)));
  recent_[next_recent_++ % recent_.size()] = fresh;
  return fresh;
}

void Remote::forget(Proxy& proxy) noexcept {
  const std::scoped_lock lock(mutex_);
  const auto& a = proxy.where();
  const auto found = proxies_.find(ProxyKey{a.node, a.incarnation, a.actor, a.name});
  if (found != proxies_.end() && found->second == &proxy) proxies_.erase(found);
}

std::shared_ptr<Remote::Peer> Remote::peer(NodeId node) {
  {
    const std::shared_lock lock(peers_mutex_);
    if (const auto found = peers_.find(node); found != peers_.end()) return found->second;
  }
  const std::unique_lock lock(peers_mutex_);
  if (peers_.size() >= forget_at_) forget_programs();
  auto& made = peers_[node];
  if (!made) made = std::make_shared<Peer>(node, closed_);
  node_.options.metrics->gauge("falaj_host_peers", "Nodes and programs of which something is remembered")
      .set(static_cast<double>(peers_.size()));
  return made;
}

// Each connection of a person or a program has a name of its own. Nodes are remembered: for the incarnations that have ended.
void Remote::forget_programs() {
  std::erase_if(peers_, [](const auto& entry) {
    auto& known = *entry.second;
    if (!known.program || entry.second.use_count() != 1) return false;  // proxies, and who just sends, hold it too
    const std::unique_lock lock(known.mutex, std::try_to_lock);         // nobody else can have it: what they did is seen after this
    return lock.owns_lock() && known.open_asks() == 0 && known.watches.empty() && known.watched.empty() && !known.known;
  });
  forget_at_ = std::max(kForgetPeers, peers_.size() * 2);
}

std::shared_ptr<Remote::Peer> Remote::sending_peer(NodeId node) {
  if (t_batch.remote != this) return peer(node);
  if (!t_batch.peer || t_batch.peer->node != node) t_batch.peer = peer(node);
  return t_batch.peer;
}

void Remote::batch_begin() noexcept { t_batch.remote = this; }

void Remote::batch_end() noexcept { t_batch = {}; }

// ---- out ------------------------------------------------------------------------------------------------------------------------

namespace {

// An id is enough; a name is for those that have none.
Header::Address written(const ActorAddress& a) {
  return {a.node.value(), a.incarnation.value(), a.actor.value(), a.actor.value() == 0 ? std::string_view(a.name) : std::string_view()};
}

const Message& empty_body() {
  static const Message kEmpty = Message::build<messages::Empty>();
  return kEmpty;
}

}  // namespace

Status Remote::post(Transport& transport, const Proxy& proxy, const Delivery& d, const ActorAddress& from, std::uint64_t wire) const {
  Header h;
  h.to = written(proxy.where());
  if (d.from && node_.own(from.node)) {
    h.from = written(from);
    h.from.node = node_.id.value();
    h.from.incarnation = node_.options.incarnation.value();
  }
  h.kind = static_cast<messages::Kind>(d.kind);
  h.type = d.body ? d.body.type() : TypeId();
  h.correlation = wire;
  if (d.deadline != Instant::max()) {
    const auto left = std::chrono::duration_cast<std::chrono::microseconds>(d.deadline - node_.now()).count();
    h.budget_us = left > 0 ? static_cast<std::uint64_t>(left) : 1;
  }
  h.trace_high = d.trace.trace_high;
  h.trace_low = d.trace.trace_low;
  h.span = d.trace.span;
  h.sampled = d.trace.sampled;
  if (d.scope) {
    h.has_scope = true;
    h.scope = {d.scope->principal, d.scope->tenant, d.scope->purpose, d.scope->residency, d.scope->idempotency_key};
  }
  HeaderBytes space;
  const auto envelope = write_header(h, space);
  if (envelope.empty())
    return invalid(format("the names and scope of a message take more than the {} bytes of an envelope", limits::kEnvelopeBytesMax));
  return transport.send(proxy.where().node, d.lane, envelope, d.body ? d.body : empty_body());
}

// Remembers who waits before the message leaves, so that a fast answer finds them. Gives the correlation for the wire.
Result<std::uint64_t> Remote::note(Peer& peer, Proxy& proxy, const Delivery& d, ActorId from) {
  const std::uint64_t plain = d.correlation.value();
  const auto& to = proxy.where();
  if (peer.closed) return error(ErrorCode::unreachable, "this node has stopped");
  if (d.kind == Kind::down) {
    peer.watched.erase(plain);
    return plain;
  }
  const auto incarnation = to.incarnation.value() != 0 ? to.incarnation : Incarnation(peer.incarnation.load(std::memory_order_relaxed));
  if (d.kind == Kind::ask) {
    const bool many = peer.open_asks() >= peer.sweep_at;
    return peer.add_ask({d.from, from, d.correlation, d.lane, d.deadline, incarnation}, many ? node_.now() : Instant{});
  }
  const std::pair<Target*, std::uint64_t> key{d.from.get(), plain};
  if (d.kind == Kind::watch) {
    const auto token = next_watch_.fetch_add(1, std::memory_order_relaxed);
    peer.watches.emplace(token, Peer::Watch{d.from, d.correlation, ActorRef(&proxy), incarnation});
    peer.watch_tokens[key] = token;
    return token;
  }
  const auto found = peer.watch_tokens.find(key);
  if (found == peer.watch_tokens.end()) return std::uint64_t{0};
  const auto token = found->second;
  peer.watches.erase(token);
  peer.watch_tokens.erase(found);
  return token;
}

void Remote::forget_note(Peer& peer, const Delivery& d, std::uint64_t wire) {
  if (d.kind != Kind::ask && d.kind != Kind::watch) return;
  const std::scoped_lock lock(peer.mutex);
  if (d.kind == Kind::ask) {
    static_cast<void>(peer.take_ask(wire, d.from.address().actor));
  } else {
    peer.watches.erase(wire);
    peer.watch_tokens.erase({d.from.get(), d.correlation.value()});
  }
}

void Remote::send(Proxy& proxy, std::unique_ptr<Delivery> d) {
  auto& peer = proxy.peer();
  const auto& to = proxy.where();
  const auto from = d->from ? d->from.address() : ActorAddress{};
  const auto ended = [&] {
    return to.incarnation.value() != 0 && to.incarnation.value() < peer.incarnation.load(std::memory_order_acquire);
  };
  const bool noted = d->kind == Kind::ask || d->kind == Kind::watch || d->kind == Kind::unwatch || d->kind == Kind::down;
  auto* transport = transport_.load(std::memory_order_acquire);
  Result<std::uint64_t> wire = d->correlation.value();
  if (transport == nullptr) {
    wire = error(ErrorCode::unreachable, "this node has no links to others");
  } else if (noted) {
    // Under one lock with heard_of(): what is noted for an incarnation is there when that one's end is told.
    const std::scoped_lock lock(peer.mutex);
    if (!ended()) {
      wire = note(peer, proxy, *d, from.actor);
    } else {
      wire = error(ErrorCode::gone, "that incarnation of the node has ended; look the name up again");
    }
  } else if (ended()) {
    wire = error(ErrorCode::gone, "that incarnation of the node has ended; look the name up again");
  }
  if (!wire.has_value()) return node_.undeliverable(std::move(d), proxy, wire.error());
  if (d->kind == Kind::unwatch && *wire == 0) return;
  const auto sent = post(*transport, proxy, *d, from, *wire);
  if (sent.has_value()) return;
  forget_note(peer, *d, *wire);
  node_.undeliverable(std::move(d), proxy, sent.error());
}

// ---- in -------------------------------------------------------------------------------------------------------------------------

namespace {

ActorAddress address_of(const Header::Address& a) {
  return {NodeId(a.node), Incarnation(a.incarnation), ActorId(a.actor), std::string(a.name)};
}

}  // namespace

void Remote::on_message(const Host::Peer& sender, Lane lane, ByteView envelope, Message body) {
  Header header;
  if (const auto read = read_header(envelope, header); !read.has_value()) {
    node_.dead_letter({}, TypeId(capnp::typeId<messages::Envelope>()), "an envelope that cannot be read: " + read.error().message);
    return;
  }
  on_message(sender, lane, header, std::move(body));
}

void Remote::on_message(const Host::Peer& sender, Lane lane, const Header& h, Message body) {
  const auto peer = sending_peer(sender.node);
  if (!sender.is_node && !peer->program.load(std::memory_order_relaxed)) peer->program.store(true, std::memory_order_relaxed);
  // The first word of a restarted node may be the answer to an ask that was fenced with its old incarnation: that answer counts,
  // and only then are the asks to the old one failed.
  if (h.kind == messages::Kind::REPLY || h.kind == messages::Kind::REFUSAL) {
    inbound_answer(*peer, h, std::move(body));
    heard_of(*peer, sender.incarnation);
    return;
  }
  if (!heard_of(*peer, sender.incarnation)) {
    node_.dead_letter(address_of(h.to), body.type(), "gone: from an incarnation of a node that has ended");
    return;
  }
  switch (h.kind) {
    case messages::Kind::TELL:
    case messages::Kind::ASK:
    case messages::Kind::WATCH:
    case messages::Kind::UNWATCH:
      inbound_request(*peer, sender, lane, h, std::move(body));
      return;
    case messages::Kind::DOWN:
      inbound_down(*peer, h, std::move(body));
      return;
    default:
      node_.dead_letter(address_of(h.to), body.type(), "an envelope of a kind that belongs to the links");
  }
}

void Remote::inbound_request(Peer& peer, const Host::Peer& sender, Lane lane, const Header& h, Message body) {
  auto d = std::make_unique<Delivery>();
  d->kind = static_cast<Kind>(h.kind);
  d->lane = lane;
  d->body = std::move(body);
  d->correlation = CorrelationId(h.correlation);
  constexpr std::uint64_t kLongest = 1'000'000ULL * 3600 * 24;
  if (h.budget_us != 0) {
    d->deadline = node_.now() + std::chrono::microseconds(std::min(h.budget_us, kLongest));
  } else if (d->kind == Kind::ask) {
    d->deadline = node_.now() + limits::kAskDefault;
  }
  d->trace = {h.trace_high, h.trace_low, h.span, h.sampled};
  if (h.has_scope || !sender.is_node) {
    const auto& s = h.scope;
    auto scope = std::make_shared<Scope>(Scope{std::string(s.principal), std::string(s.tenant), std::string(s.purpose),
                                               std::string(s.residency), std::string(s.idempotency_key)});
    if (!sender.is_node) scope->principal = sender.principal;  // speaks only for itself
    d->scope = std::move(scope);
  }
  d->from_outside = true;
  d->from_node = sender.is_node;

  auto wrong = misdirected(sender, h);
  Ends ends;
  if (wrong.has_value()) {
    ends.from = sender_of(sender, h);
  } else {
    ends = ends_of(peer, sender, h);
    if (!ends.to && h.to.actor == 0) ends.to = node_.here(h.to.name);  // an actor with a key: made for this message, not remembered
  }
  d->from = std::move(ends.from);
  if (ends.to) {
    note_watched(peer, sender, *d, ends.to);
    ends.to.get()->deliver(std::move(d));
    return;
  }
  if (!wrong.has_value()) {
    if (h.to.actor != 0) {
      wrong = error(ErrorCode::gone, "the actor has ended; look its name up again");
    } else {
      const std::string name(h.to.name);
      if (!sender.is_node && node_.relay(d, name)) return;
      wrong = error(ErrorCode::not_found, format("no actor named {} on this node", name));
    }
  }
  const auto nobody = node_.nobody(address_of(h.to), std::move(*wrong));
  nobody.get()->deliver(std::move(d));
}

std::optional<Error> Remote::misdirected(const Host::Peer& sender, const Header& h) const {
  if (h.to.node != 0 && h.to.node != node_.id.value()) return error(ErrorCode::not_found, "the message is addressed to another node");
  if (h.to.incarnation != 0 && h.to.incarnation != node_.options.incarnation.value() && !fault::planted("incarnation-unchecked"))
    return error(ErrorCode::gone, "that incarnation of the node has ended; look the name up again");
  if (!sender.is_node && (h.kind == messages::Kind::WATCH || h.kind == messages::Kind::UNWATCH))
    return error(ErrorCode::denied, "only nodes may watch actors");
  return std::nullopt;
}

// Whatever it claims, a message comes from the peer that was authenticated.
ActorRef Remote::sender_of(const Host::Peer& sender, const Header& h) {
  if (h.from.actor == 0 && h.from.name.empty()) return {};
  return proxy({sender.node, sender.incarnation, ActorId(h.from.actor), std::string(h.from.name)});
}

// Most messages are of a pair that has just exchanged others: it is looked up once.
Remote::Ends Remote::ends_of(Peer& peer, const Host::Peer& sender, const Header& h) {
  const auto names = node_.names_version();  // read first: a name that changes while we look makes what we remember stale
  const auto look_up = [&] {
    return Ends{h.to.actor != 0 ? node_.local(ActorId(h.to.actor)) : node_.find_local(h.to.name), sender_of(sender, h)};
  };
  if (h.from.actor == 0) return look_up();
  const auto receiver = h.to.actor != 0 ? h.to.actor : std::hash<std::string_view>{}(h.to.name);
  const std::size_t slot = ((receiver * 0x9E3779B97F4A7C15ULL ^ h.from.actor) * 0x9E3779B97F4A7C15ULL >> 32) % Peer::kKnown;
  {
    const std::scoped_lock lock(peer.mutex);
    if (peer.known) {
      const auto& k = (*peer.known)[slot];
      if (k.ends.to && k.from_actor == h.from.actor && k.to_actor == h.to.actor && k.incarnation == sender.incarnation &&
          (h.to.actor != 0 || (k.names == names && k.to_name == h.to.name)) && !static_cast<Cell*>(k.ends.to.get())->dead())
        return k.ends;
    }
  }
  Peer::Known fresh{h.to.actor, h.to.actor != 0 ? std::string() : std::string(h.to.name), h.from.actor, sender.incarnation, names,
                    look_up()};
  const auto found = fresh.ends;
  const std::scoped_lock lock(peer.mutex);
  if (found.to && !peer.closed) {
    if (!peer.known) peer.known = std::make_unique<std::array<Peer::Known, Peer::kKnown>>();
    std::swap((*peer.known)[slot], fresh);
  }
  return found;
}

// So that an actor which lives long does not remember the watchers of nodes that have died.
void Remote::note_watched(Peer& peer, const Host::Peer& sender, const Delivery& d, const ActorRef& to) {
  if (d.kind != Kind::watch && d.kind != Kind::unwatch) return;
  const std::scoped_lock lock(peer.mutex);
  if (d.kind == Kind::unwatch) {
    peer.watched.erase(d.correlation.value());
  } else if (!peer.closed) {
    peer.watched.insert_or_assign(d.correlation.value(), Peer::Watched{to, d.from, sender.incarnation});
  }
}

void Remote::inbound_answer(Peer& peer, const Header& h, Message body) {
  std::optional<Peer::Ask> ask;
  {
    const std::scoped_lock lock(peer.mutex);
    ask = peer.take_ask(h.correlation, ActorId(h.to.actor));
  }
  if (!ask) {
    node_.late_answer();
    return;
  }
  auto d = std::make_unique<Delivery>();
  d->kind = static_cast<Kind>(h.kind);
  d->lane = ask->lane;
  d->body = std::move(body);
  d->correlation = ask->token;
  ask->asker.get()->deliver(std::move(d));
}

void Remote::inbound_down(Peer& peer, const Header& h, Message body) {
  Peer::Watch watch;
  {
    const std::scoped_lock lock(peer.mutex);
    const auto found = peer.watches.find(h.correlation);
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
bool Remote::heard_of(Peer& peer, Incarnation incarnation) {
  if (peer.incarnation.load(std::memory_order_acquire) == incarnation.value()) return true;
  Incarnation old;
  {
    const std::scoped_lock lock(peer.mutex);
    old = Incarnation(peer.incarnation.load(std::memory_order_relaxed));
    if (incarnation <= old) return incarnation == old;
    peer.incarnation.store(incarnation.value(), std::memory_order_release);
  }
  if (old.value() != 0) fail_peer(peer, old, error(ErrorCode::unreachable, "the node has restarted"));
  return true;
}

void Remote::on_peer_down(NodeId node, Incarnation incarnation, const Error& why) {
  const auto message = why.message.empty() ? std::string("its node is lost") : "its node is lost: " + why.message;
  fail_peer(*peer(node), incarnation, error(ErrorCode::unreachable, message));
}

bool Remote::waits_for(NodeId node) {
  const auto known = peer(node);
  const std::scoped_lock lock(known->mutex);
  if (!known->watches.empty()) return true;
  known->sweep(node_.now());
  return known->open_asks() != 0;
}

namespace {

void refuse(const ActorRef& asker, Lane lane, CorrelationId token, const Message& body) {
  auto d = std::make_unique<Delivery>();
  d->kind = Kind::refusal;
  d->lane = lane;
  d->body = body;
  d->correlation = token;
  asker.get()->deliver(std::move(d));
}

}  // namespace

void Remote::fail_peer(Peer& peer, Incarnation incarnation, const Error& why) {
  std::vector<Peer::Ask> asks;
  std::vector<Peer::Watch> watches;
  std::vector<std::pair<std::uint64_t, Peer::Watched>> watched;
  decltype(peer.known) known;  // let go of after the lock: a program that does not come back leaves nothing large behind
  {
    const std::scoped_lock lock(peer.mutex);
    known.swap(peer.known);
    for (std::size_t i = 0; i < peer.asks.size(); ++i) {
      auto& ask = peer.asks[i];
      if (!ask.asker || ask.incarnation > incarnation) continue;
      asks.push_back(std::move(ask));
      peer.free_ask(i);
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
  for (const auto& ask : asks) refuse(ask.asker, ask.lane, ask.token, body);
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
  std::vector<std::shared_ptr<Peer>> peers;
  {
    const std::unique_lock lock(peers_mutex_);
    closed_ = true;
    for (const auto& [node, peer] : peers_) peers.push_back(peer);
  }
  decltype(recent_) recent;
  {
    const std::scoped_lock lock(mutex_);
    recent.swap(recent_);
  }
  const auto body = refusal_message(error(ErrorCode::gone, "the host has stopped"));
  for (const auto& peer : peers) {
    decltype(peer->asks) asks;
    decltype(peer->watches) watches;
    decltype(peer->watched) watched;
    decltype(peer->known) known;
    {
      const std::scoped_lock lock(peer->mutex);
      peer->closed = true;
      asks.swap(peer->asks);
      peer->free_asks.clear();
      watches.swap(peer->watches);
      peer->watch_tokens.clear();
      watched.swap(peer->watched);
      known.swap(peer->known);
    }
    for (const auto& ask : asks) {
      if (ask.asker) refuse(ask.asker, ask.lane, ask.token, body);
    }
  }
}

}  // namespace falaj
