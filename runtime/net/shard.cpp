#include "runtime/net/shard.hpp"

#include <algorithm>
#include <boost/asio/post.hpp>

#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/net/io_loop.hpp"

namespace falaj::net {
namespace {

constexpr std::size_t kStrangersMax = 256;
constexpr std::size_t kComplaintsMax = 1024;
constexpr auto kComplainEvery = std::chrono::minutes(1);
constexpr std::size_t kControl = static_cast<std::size_t>(Lane::CONTROL);

Connection::Closed refusal(std::string_view label, ErrorCode code, std::string message) { return {label, Error{code, std::move(message)}}; }

PhiDetector::Options detector_options(const LinkOptions& options) {
  // A punctual machine that is suddenly busy must not be taken for dead: phi alone speaks near the upper bound.
  return {options.heartbeat_every, options.silence_max / 9, options.silence_max, 10.0};
}

}  // namespace

// --- routes ---

void Routes::changed() noexcept {
  static std::atomic<std::uint64_t> versions{0};
  version_.store(versions.fetch_add(1, std::memory_order_relaxed) + 1, std::memory_order_release);
}

std::shared_ptr<Session> Routes::find(NodeId node) const {
  struct Last {
    std::uint64_t version = 0;
    NodeId node;
    std::weak_ptr<Session> session;  // a thread may outlive the links
  };
  thread_local Last last;
  // Read first: what changes while we look makes the entry stale.
  const auto version = version_.load(std::memory_order_acquire);
  if (last.version == version && last.node == node) {
    if (auto session = last.session.lock()) return session;
  }
  const std::shared_lock lock(mutex_);
  const auto found = map_.find(node);
  if (found == map_.end()) return nullptr;
  last = {version, node, found->second};
  return found->second;
}

void Routes::put(std::shared_ptr<Session> session) {
  const std::unique_lock lock(mutex_);
  const auto node = session->info.node;
  map_[node] = std::move(session);
  changed();
}

void Routes::remove(const Session& session) {
  const std::unique_lock lock(mutex_);
  const auto found = map_.find(session.info.node);
  if (found == map_.end() || found->second.get() != &session) return;
  map_.erase(found);
  changed();
}

std::vector<std::shared_ptr<Session>> Routes::all() const {
  std::vector<std::shared_ptr<Session>> sessions;
  const std::shared_lock lock(mutex_);
  sessions.reserve(map_.size());
  for (const auto& [node, session] : map_) sessions.push_back(session);
  return sessions;
}

// --- life ---

LinkCommon::LinkCommon(LinkOptions o, const Clock& c, metrics::Registry& registry, LinkEvents& e)
    : options(std::move(o)),
      clock(c),
      events(e),
      metrics(registry),
      revocations(options.identity.revocations),
      setting{clock, revocations, metrics, options.cluster, options.send_window, options.handshake_timeout} {}
LinkCommon::~LinkCommon() = default;

Shard::Shard(LinkCommon& common, unsigned index)
    : common_(common),
      index_(index),
      random_(Random(common.options.seed).split(format("links-{}-{}", common.options.name, index))),
      io_(1),
      work_(io_.get_executor()),
      every_second_(io_) {}

Shard::~Shard() { stop(); }

void Shard::start() {
  asio::post(io_, [this] { every_second(); });
  thread_ = Thread(format("link-{}", index_), [this] {
    this_io() = &io_;
    take_short_turns();
    IoLoop(io_, common_.clock, hardware_threads() > 1 ? common_.options.look : Duration::zero()).run();
  });
}

void Shard::stop() {
  if (stopped_) return;
  stopped_ = true;
  asio::post(io_, [this] {
    acceptors_.clear();
    for (const auto& [name, peer] : peers_) {
      if (peer->dial) abandon(peer->dial);
      peer->dial.reset();
      if (!peer->session) continue;
      common_.routes.remove(*peer->session);
      for (const auto& lane : peer->session->lanes) {
        if (!lane) continue;
        lane->close();
        lane->session.reset();
      }
      peer->session.reset();
    }
    for (const auto& stranger : strangers_) stranger->close();
    strangers_.clear();
    peers_.clear();
    every_second_.cancel();
    io_.stop();
  });
  thread_.join();
}

void Shard::post_want(PeerAddress address) {
  asio::post(io_, [this, address = std::move(address)] {
    const auto peer = peer_named(address.name);
    const bool moved = !peer->wanted.has_value() || peer->wanted->host != address.host || peer->wanted->port != address.port;
    peer->wanted = address;
    if (peer->session || (peer->dial && !moved)) return;
    if (peer->dial) abandon(std::exchange(peer->dial, nullptr));
    peer->failures = 0;
    peer->retry.cancel();
    dial(peer);
  });
}

void Shard::post_forget(std::string name) {
  asio::post(io_, [this, name = std::move(name)] {
    const auto peer = find_peer(name);
    if (!peer) return;
    peer->wanted.reset();
    peer->retry.cancel();
    if (peer->dial) abandon(std::exchange(peer->dial, nullptr));
    drop_if_idle(peer);
  });
}

void Shard::post_disconnect(std::string name, Error reason) {
  asio::post(io_, [this, name = std::move(name), reason = std::move(reason)] {
    if (const auto peer = find_peer(name)) session_down(peer, reason);
  });
}

Shard::PeerPtr Shard::find_peer(const std::string& name) const {
  const auto found = peers_.find(name);
  return found == peers_.end() ? nullptr : found->second;
}

Shard::PeerPtr Shard::peer_named(const std::string& name) {
  auto& peer = peers_[name];
  if (!peer) peer = std::make_shared<Peer>(name, io_);
  return peer;
}

void Shard::drop_if_idle(const PeerPtr& peer) {
  if (!peer->wanted.has_value() && !peer->dial && !peer->session) peers_.erase(peer->name);
}

// --- connections ---

void Shard::on_authenticated(const ConnectionPtr& connection) {
  if (!connection->dialled()) return;
  const auto peer = find_peer(connection->expected_name);
  if (!peer || !peer->dial || peer->dial->lanes[static_cast<std::size_t>(connection->lane)] != connection) return connection->close();
  peer->dial->hello_sent = true;
  static_cast<void>(connection->send(own_hello(connection->lane, peer->dial->id), Message()));
}

void Shard::on_hello(const ConnectionPtr& connection, Message hello) {
  const auto opened = hello.open<messages::Hello>();
  if (!opened.has_value()) return connection->refuse({"malformed", opened.error()});
  if (connection->dialled()) return dial_answered(connection, **opened);
  auto& target = common_.shard_of(text((*opened)->getNode()));
  if (&target == this) return admit(connection, hello);
  // Not from inside this callback: the connection still reads on this thread.
  asio::post(io_, [this, connection, hello, &target] {
    strangers_.erase(connection);
    if (connection->is_closed()) return;
    connection->migrate(target.io_);
    asio::post(target.io_, [connection, hello, &target] {
      target.strangers_.insert(connection);
      connection->restart_timer();
      target.admit(connection, hello);
    });
  });
}

void Shard::on_frame(Connection& connection, Frame& frame) {
  const auto& session = connection.session;  // nothing below lets go of it: connections end in handlers of their own
  if (!session || !session->up) return;
  switch (frame.header.kind) {
    case messages::Kind::HEARTBEAT:  // the peer may cease to send its own at any time: it answers ours
      session->detector.heartbeat(common_.clock.now());
      beat(*session, heartbeat_envelope(messages::Kind::HEARTBEAT_REPLY, frame.header.correlation));
      return;
    case messages::Kind::HEARTBEAT_REPLY: {
      const auto now = common_.clock.now();
      session->detector.heartbeat(now);
      session->answered = now;
      const auto rtt = now.time_since_epoch() - Duration(static_cast<std::int64_t>(frame.header.correlation));
      if (rtt < Duration::zero() || rtt > std::chrono::minutes(1)) return;
      session->rtt.record(rtt);
      common_.metrics.rtt.record(rtt);
      return;
    }
    default:
      break;
  }
  ++session->received;
  common_.events.on_message(session->info, connection.lane, frame.header, std::move(frame.body));
}

void Shard::on_closed(const ConnectionPtr& connection, const Connection::Closed& why) {
  strangers_.erase(connection);
  const auto session = connection->session;
  if (session) {
    const auto peer = find_peer(session->info.name);
    if (peer && peer->session == session) session_down(peer, why.error);
    return;
  }
  if (!connection->dialled()) return handshake_failed(connection->remote().substr(0, connection->remote().rfind(':')), why);
  const auto peer = find_peer(connection->expected_name);
  if (peer && peer->dial && peer->dial->lanes[static_cast<std::size_t>(connection->lane)] == connection) dial_failed(peer, why);
}

void Shard::handshake_failed(const std::string& whose, const Connection::Closed& why) {
  common_.metrics.registry
      .counter("falaj_link_handshake_failures_total", "Connections that did not become links.", {{"reason", std::string(why.label)}})
      .add();
  if (why.label == "closed" || why.label == "simultaneous") return;  // port scans, health checks, two dials that met
  const auto now = common_.clock.now();
  if (complained_.size() >= kComplaintsMax) complained_.clear();
  const auto [entry, fresh] = complained_.try_emplace(whose, now);
  if (!fresh && now - entry->second < kComplainEvery) return;
  entry->second = now;
  log::warn("link", "handshake failed", {{"peer", whose}, {"reason", why.label}, {"detail", why.error.message}});
}

// --- admitting ---

Result<std::uint16_t> Shard::listen(const std::string& host, std::uint16_t port) {
  boost::system::error_code code;
  const auto address = asio::ip::make_address(host, code);
  if (code) return invalid(format("'{}' is no address to listen on; give an IP address", host));
  auto acceptor = std::make_unique<tcp::acceptor>(io_);
  const tcp::endpoint endpoint(address, port);
  acceptor->open(endpoint.protocol(), code);
  if (!code) acceptor->set_option(tcp::acceptor::reuse_address(true), code);
  if (!code) acceptor->bind(endpoint, code);
  if (!code) acceptor->listen(asio::socket_base::max_listen_connections, code);
  if (code == asio::error::address_in_use)
    return error(ErrorCode::conflict, format("{}:{} is in use; choose another port, or 0 for a free one", host, port));
  if (code) return failed(format("cannot listen on {}:{}: {}", host, port, code.message()));
  const auto bound = acceptor->local_endpoint().port();
  asio::post(io_, [this, taken = std::move(acceptor)]() mutable {
    acceptors_.push_back(std::move(taken));
    accept_next(acceptors_.size() - 1);
  });
  return bound;
}

void Shard::accept_next(std::size_t index) {
  auto& target = *common_.shards[next_shard_++ % common_.shards.size()];
  acceptors_[index]->async_accept(target.io_, [this, index, &target](const boost::system::error_code& code, tcp::socket socket) {
    if (index >= acceptors_.size()) return;  // stopping
    if (!code) {
      if (&target == this) {
        adopt(std::move(socket));
      } else {
        target.post_adopt(std::move(socket));
      }
      return accept_next(index);
    }
    if (code == asio::error::operation_aborted) return;
    // Out of descriptors or the like: the world needs a moment.
    const auto pause = std::make_shared<asio::steady_timer>(io_, std::chrono::milliseconds(100));
    pause->async_wait([this, index, pause](const boost::system::error_code& cancelled) {
      if (!cancelled && index < acceptors_.size()) accept_next(index);
    });
  });
}

void Shard::post_adopt(tcp::socket socket) {
  asio::post(io_, [this, taken = std::move(socket)]() mutable { adopt(std::move(taken)); });
}

void Shard::adopt(tcp::socket socket) {
  if (strangers_.size() >= kStrangersMax) {
    return handshake_failed(
        "everybody", refusal("crowded", ErrorCode::overloaded, format("more than {} connections wait for their handshake", kStrangersMax)));
  }
  const auto connection = std::make_shared<Connection>(std::move(socket), tls::Side::server, Lane::CONTROL, common_.setting, *this);
  strangers_.insert(connection);
  const auto context = common_.context.get();
  connection->start(context.get());
}

Bytes Shard::own_hello(Lane lane, std::uint64_t session) const {
  const auto advertised = common_.advertise.get();
  const auto message = Message::build<messages::Hello>([&](messages::Hello::Builder hello) {
    hello.setWireVersion(messages::WIRE_VERSION);
    hello.setCluster(common_.options.cluster);
    hello.setNode(common_.options.name);
    hello.setIncarnation(common_.options.incarnation.value());
    hello.setLane(lane);
    hello.setListen(advertised);
    hello.setSession(session);
  });
  return {message.bytes().begin(), message.bytes().end()};
}

// What holds for the Hello of either side.
std::optional<Connection::Closed> Shard::judge(const Connection& connection, messages::Hello::Reader hello) const {
  const auto name = text(hello.getNode());
  const auto& who = connection.certificate().principal;
  const bool several = who.kind() == PrincipalKind::person || who.kind() == PrincipalKind::service;
  if (hello.getWireVersion() > messages::WIRE_VERSION) {
    return refusal("version", ErrorCode::unimplemented,
                   format("'{}' speaks wire version {}, '{}' only up to {}: update the older one first", name, hello.getWireVersion(),
                          common_.options.name, messages::WIRE_VERSION));
  }
  if (text(hello.getCluster()) != common_.options.cluster) {
    return refusal("wrong_cluster", ErrorCode::denied,
                   format("'{}' is of cluster '{}', not '{}'", name, text(hello.getCluster()), common_.options.cluster));
  }
  if (name.substr(0, several ? name.find('#') : std::string_view::npos) != who.link_name() || name.size() > 200) {
    return refusal("wrong_name", ErrorCode::denied, format("certificate of '{}' used by '{}'", who.link_name(), name.substr(0, 200)));
  }
  if (static_cast<std::size_t>(hello.getLane()) >= kLanes) return refusal("malformed", ErrorCode::invalid, "unknown lane");
  if (hello.getIncarnation() == 0) return refusal("malformed", ErrorCode::invalid, "incarnation 0");
  return std::nullopt;
}

// A program that is no node may have one connection for all lanes. What comes over it is of the normal lane.
bool Shard::is_whole(const Connection& connection, messages::Hello::Reader hello) {
  const auto kind = connection.certificate().principal.kind();
  return hello.getSession() == 0 && (kind == PrincipalKind::person || kind == PrincipalKind::service);
}

void Shard::admit(const ConnectionPtr& connection, const Message& message) {
  if (connection->is_closed()) return;
  const auto opened = message.open<messages::Hello>();
  if (!opened.has_value()) return;
  const auto hello = **opened;
  auto no = judge(*connection, hello);
  const std::string name(text(hello.getNode()));
  if (!no.has_value()) {
    const bool whole = is_whole(*connection, hello);
    connection->lane = whole ? Lane::NORMAL : hello.getLane();
    no = whole || hello.getLane() == Lane::CONTROL ? admit_control(connection, hello, name) : admit_other(connection, hello, name);
  }
  if (no.has_value()) return connection->refuse(*no);
  strangers_.erase(connection);
  static_cast<void>(connection->send(own_hello(connection->lane, hello.getSession()), Message()));
  const auto peer = find_peer(name);
  const auto& lanes = peer->session->lanes;
  if (std::all_of(lanes.begin(), lanes.end(), [](const auto& lane) { return lane != nullptr; })) session_up(peer);
}

std::optional<Connection::Closed> Shard::admit_control(const ConnectionPtr& connection, messages::Hello::Reader hello, std::string name) {
  if (name == common_.options.name)
    return refusal("own_name", ErrorCode::conflict, format("'{}' is this node's own name; names must be unique", name));
  if (peers_.size() >= common_.options.peers_max && !peers_.contains(name)) {
    return refusal("crowded", ErrorCode::overloaded, format("'{}' serves {} peers already", common_.options.name, peers_.size()));
  }
  const auto peer = peer_named(name);
  if (peer->session) {
    const auto known = peer->session->info.incarnation.value();
    if (hello.getIncarnation() < known) {
      return refusal("old_incarnation", ErrorCode::gone,
                     format("'{}' has run since as incarnation {}; is another process using its name?", name, known));
    }
    // The peer dials only when it has no connection: ours is a remnant.
    session_down(peer, hello.getIncarnation() > known ? error(ErrorCode::gone, format("'{}' was started again", name))
                                                      : error(ErrorCode::unreachable, format("'{}' connected anew", name)));
  }
  if (peer->dial) {
    if (peer->dial->hello_sent && common_.options.name < name) {
      return refusal("simultaneous", ErrorCode::conflict, format("'{}' is dialling '{}' already", common_.options.name, name));
    }
    abandon(std::exchange(peer->dial, nullptr));
  }
  peers_[name] = peer;  // session_down() may have dropped it
  peer->retry.cancel();
  peer->session = make_session(*connection, hello, hello.getSession());
  peer->session->lanes[kControl] = connection;
  if (is_whole(*connection, hello)) peer->session->lanes.fill(connection);
  connection->session = peer->session;
  return std::nullopt;
}

std::optional<Connection::Closed> Shard::admit_other(const ConnectionPtr& connection, messages::Hello::Reader hello,
                                                     const std::string& name) {
  const auto peer = find_peer(name);
  const auto slot = static_cast<std::size_t>(hello.getLane());
  const bool fits = peer && peer->session && !peer->session->up && peer->session->id == hello.getSession() &&
                    peer->session->info.incarnation.value() == hello.getIncarnation() && !peer->session->lanes[slot];
  if (!fits)
    return refusal("no_session", ErrorCode::gone, format("no session of '{}' waits for its {} lane", name, to_string(hello.getLane())));
  peer->session->lanes[slot] = connection;
  connection->session = peer->session;
  return std::nullopt;
}

// --- sessions ---

std::shared_ptr<Session> Shard::make_session(const Connection& connection, messages::Hello::Reader hello, std::uint64_t id) const {
  const std::string name(text(hello.getNode()));
  PeerInfo info{node_id(name),
                name,
                Incarnation(hello.getIncarnation()),
                connection.certificate().principal,
                std::string(text(hello.getListen())),
                connection.certificate().principal.uri()};
  return std::make_shared<Session>(id, std::move(info), detector_options(common_.options), common_.clock.now());
}

void Shard::session_up(const PeerPtr& peer) {
  const auto session = peer->session;
  session->up = true;
  session->ticked = session->quiet_since = common_.clock.now();
  peer->failures = 0;
  for (const auto& lane : session->lanes) lane->established();
  common_.metrics.peers.add(1);
  log::info(
      "link", "peer up",
      {{"peer", session->info.name}, {"incarnation", session->info.incarnation.value()}, {"address", session->lanes[kControl]->remote()}});
  common_.routes.put(session);  // first: on_peer_up may send
  common_.events.on_peer_up(session->info);
  tick(peer);
  for (const auto& lane : session->lanes) {
    asio::post(io_, [lane] { lane->resume(); });
  }
}

void Shard::session_down(const PeerPtr& peer, const Error& reason) {
  const auto session = std::exchange(peer->session, nullptr);
  if (!session) return;
  peer->tick.cancel();
  common_.routes.remove(*session);
  for (const auto& lane : session->lanes) {
    if (!lane) continue;
    lane->session.reset();
    lane->close();
  }
  if (session->up) {
    common_.metrics.peers.add(-1);
    common_.metrics.peer_downs.add();
    log::info("link", "peer down",
              {{"peer", session->info.name}, {"incarnation", session->info.incarnation.value()}, {"reason", reason.message}});
    common_.events.on_peer_down(session->info, reason);
  }
  redial_later(peer);
  drop_if_idle(peer);
}

void Shard::tick_later(const PeerPtr& peer) {
  peer->tick.expires_after(common_.options.heartbeat_every);
  peer->tick.async_wait([this, peer, session = peer->session](const boost::system::error_code& code) {
    if (!code && peer->session == session) tick(peer);
  });
}

void Shard::tick(const PeerPtr& peer) {
  auto& session = *peer->session;
  const auto now = common_.clock.now();
  const auto late = now - session.ticked - common_.options.heartbeat_every;
  session.ticked = now;
  // This process stood still: heartbeats lie unread in the socket, and the peer is not to blame.
  if (late > common_.options.heartbeat_every * 2) session.detector.forgive(late);
  session.phi.store(session.detector.phi(now), std::memory_order_relaxed);
  if (session.detector.suspect(now)) {
    const auto silence = std::chrono::duration_cast<std::chrono::milliseconds>(session.detector.silence(now)).count();
    return session_down(peer, error(ErrorCode::unreachable,
                                    format("'{}' has been silent for {} ms (phi {:.1f})", session.info.name, silence, session.phi.load())));
  }
  if (may_rest(session, now)) {
    session.resting = true;
    return;
  }
  beat(session, heartbeat_envelope(messages::Kind::HEARTBEAT, static_cast<std::uint64_t>(now.time_since_epoch().count())));
  if (peer->session) tick_later(peer);
}

// A full window is no reason to worry: what is in it reaches the peer before this would.
void Shard::beat(Session& session, ByteView envelope) {
  if (session.lanes[kControl]->send(envelope, Message()).has_value()) ++session.beats;
}

// Nothing but heartbeats since it was last asked.
bool Shard::quiet(Session& session, Instant now) {
  std::uint64_t carried = session.received;
  const auto& lanes = session.lanes;
  for (std::size_t i = 0; i < kLanes; ++i) {
    if (i == 0 || lanes[i] != lanes[0]) carried += lanes[i]->status().sent_messages;
  }
  carried -= session.beats;
  if (std::exchange(session.carried, carried) == carried) return true;
  session.quiet_since = now;
  return false;
}

// Only nodes know one another's loss from elsewhere too. A peer that was spoken to must have shown since that it lives.
bool Shard::may_rest(Session& session, Instant now) const {
  const auto kind = session.info.principal.kind();
  if (kind != PrincipalKind::node && kind != PrincipalKind::worker) return false;
  return quiet(session, now) && now - session.quiet_since >= common_.options.rest_after && session.answered > session.quiet_since &&
         !common_.events.waits_for(session.info);
}

void Shard::post_wake(const std::shared_ptr<Session>& session) {
  if (!session->resting.exchange(false)) return;
  asio::post(io_, [this, session] {
    const auto peer = find_peer(session->info.name);
    if (!peer || peer->session != session) return;
    const auto now = common_.clock.now();
    session->ticked = session->quiet_since = now;
    session->detector.forgive(session->detector.silence(now));  // nobody has asked it for a sign of life
    tick(peer);
  });
}

void Shard::every_second() {
  check_revocations();
  const auto now = common_.clock.now();
  for (const auto& [name, peer] : peers_) {
    const auto& session = peer->session;
    if (session && session->resting && (!quiet(*session, now) || common_.events.waits_for(session->info))) post_wake(session);
  }
  every_second_.expires_after(std::chrono::seconds(1));
  every_second_.async_wait([this](const boost::system::error_code& code) {
    if (!code) every_second();
  });
}

void Shard::check_revocations() {
  if (const auto read = common_.revocations.reload_if_changed(); !read.has_value()) {
    handshake_failed("revocation list", refusal("revocations", ErrorCode::failed, read.error().message));
  }
  const auto generation = common_.revocations.generation();
  if (generation != revocations_seen_) {
    revocations_seen_ = generation;
    const auto peers = peers_;  // session_down() changes it
    for (const auto& [name, peer] : peers) {
      if (!peer->session) continue;
      const auto& lanes = peer->session->lanes;
      const bool revoked = std::any_of(lanes.begin(), lanes.end(),
                                       [&](const auto& lane) { return lane && common_.revocations.revoked(lane->certificate()); });
      if (revoked) session_down(peer, error(ErrorCode::denied, format("the certificate of '{}' was revoked", name)));
    }
  }
}

}  // namespace falaj::net
