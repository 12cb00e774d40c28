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
      data_io_(1),
      io_(1),
      data_work_(data_io_.get_executor()),
      work_(io_.get_executor()),
      every_second_(io_) {}

Shard::~Shard() { stop(); }

void Shard::start() {
  asio::post(io_, [this] { every_second(); });
  const auto serve = [this](std::string_view name, asio::io_context& io, Turns turns) {
    return Thread(format("{}-{}", name, index_), [this, &io, turns] {
      this_io() = &io;
      take_turns(turns);
      IoLoop(io, common_.clock, hardware_threads() > 1 ? common_.options.look : Duration::zero()).run();
    });
  };
  data_thread_ = serve("link-data", data_io_, Turns::brief);
  thread_ = serve("link", io_, Turns::briefest);
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
      close_lanes(*std::exchange(peer->session, nullptr));
    }
    for (const auto& stranger : strangers_) stranger->close();
    strangers_.clear();
    peers_.clear();
    every_second_.cancel();
    asio::post(data_io_, [this] { data_io_.stop(); });  // after the lanes that were closed just now
    io_.stop();
  });
  thread_.join();
  data_thread_.join();
  data_io_.restart();  // nothing is left there that holds a connection of io_
  data_io_.poll();
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

bool Shard::on_second_thread() const noexcept { return this_io() == &data_io_; }

void Shard::on_batch_begin(Connection& connection) {
  if (on_second_thread() && connection.session) connection.session->delivery.lock();
  common_.events.on_batch_begin();
}

void Shard::on_batch_end(Connection& connection) {
  if (on_second_thread() && connection.session) connection.session->delivery.unlock();
  common_.events.on_batch_end();  // may run actors
}

void Shard::on_frame(Connection& connection, Frame& frame) {
  const auto& session = connection.session;  // nothing below lets go of it: connections end in handlers of their own
  if (!session || !session->up) return;
  const auto kind = frame.header.kind;
  if (kind != messages::Kind::HEARTBEAT && kind != messages::Kind::HEARTBEAT_REPLY)
    return common_.events.on_message(session->info, connection.lane, frame.header, std::move(frame.body));
  if (!on_second_thread()) return heard(session, kind, frame.header.correlation);
  asio::post(io_, [this, session, kind, correlation = frame.header.correlation] {
    if (session->up) heard(session, kind, correlation);
  });
}

void Shard::on_closed(const ConnectionPtr& connection, const Connection::Closed& why) {
  if (on_second_thread()) {
    asio::post(io_, [this, session = connection->session, reason = why.error] { session_lost(session, reason); });
    return;
  }
  strangers_.erase(connection);
  if (connection->session) return session_lost(connection->session, why.error);
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
  if (std::all_of(lanes.begin(), lanes.end(), [](const auto& lane) { return lane != nullptr; })) session_whole(peer);
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

}  // namespace falaj::net
