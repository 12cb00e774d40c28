// The sessions of a Shard (shard.hpp): up and down, heartbeats, rest, revocation.
#include <algorithm>
#include <boost/asio/post.hpp>

#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/net/shard.hpp"

namespace falaj::net {
namespace {

constexpr std::size_t kControl = static_cast<std::size_t>(Lane::CONTROL);

PhiDetector::Options detector_options(const LinkOptions& options) {
  // A punctual machine that is suddenly busy must not be taken for dead: phi alone speaks near the upper bound.
  return {options.heartbeat_every, options.silence_max / 9, options.silence_max, 10.0};
}

}  // namespace

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

// Called while the last connection reads: what moves to the other thread does so when that has returned.
void Shard::session_whole(const PeerPtr& peer) {
  for (const auto& lane : peer->session->lanes) lane->established();
  asio::post(io_, [this, peer, session = peer->session] {
    if (peer->session == session) session_up(peer);
  });
}

void Shard::session_up(const PeerPtr& peer) {
  const auto session = peer->session;
  const auto& control = session->lanes[kControl];
  // Before anybody can send: a connection that is written to stays where it is.
  for (std::size_t i = 0; i < kLanes; ++i) {
    const auto& lane = session->lanes[i];
    if (i != kControl && (lane != control || i == kControl + 1)) lane->migrate(data_io_);
  }
  {
    const std::scoped_lock lock(session->delivery);
    session->up = true;
  }
  session->ticked = session->quiet_since = common_.clock.now();
  peer->failures = 0;
  common_.metrics.peers.add(1);
  log::info("link", "peer up",
            {{"peer", session->info.name}, {"incarnation", session->info.incarnation.value()}, {"address", control->remote()}});
  common_.routes.put(session);  // first: on_peer_up may send
  common_.events.on_peer_up(session->info);
  tick(peer);
  for (const auto& lane : session->lanes) lane->post_to_io(&Connection::resume);
}

void Shard::session_down(const PeerPtr& peer, const Error& reason) {
  const auto session = std::exchange(peer->session, nullptr);
  if (!session) return;
  peer->tick.cancel();
  common_.routes.remove(*session);
  bool was_up = false;
  {
    const std::scoped_lock lock(session->delivery);
    was_up = std::exchange(session->up, false);
  }
  close_lanes(*session);
  if (was_up) {
    common_.metrics.peers.add(-1);
    common_.metrics.peer_downs.add();
    log::info("link", "peer down",
              {{"peer", session->info.name}, {"incarnation", session->info.incarnation.value()}, {"reason", reason.message}});
    common_.events.on_peer_down(session->info, reason);
  }
  redial_later(peer);
  drop_if_idle(peer);
}

void Shard::close_lanes(Session& session) {
  for (const auto& lane : session.lanes) {
    if (!lane) continue;
    if (lane->on_io_thread()) {
      lane->leave();
    } else {
      lane->post_to_io(&Connection::leave);
    }
  }
}

// One of its connections is.
void Shard::session_lost(const std::shared_ptr<Session>& session, const Error& reason) {
  const auto peer = find_peer(session->info.name);
  if (peer && peer->session == session) session_down(peer, reason);
}

void Shard::heard(const std::shared_ptr<Session>& session, messages::Kind kind, std::uint64_t correlation) {
  const auto now = common_.clock.now();
  ++session->beats;
  session->detector.heartbeat(now);
  if (kind == messages::Kind::HEARTBEAT)  // the peer may cease to send its own at any time: it answers ours
    return beat(*session, heartbeat_envelope(messages::Kind::HEARTBEAT_REPLY, correlation));
  session->answered = now;
  const auto rtt = now.time_since_epoch() - Duration(static_cast<std::int64_t>(correlation));
  if (rtt < Duration::zero() || rtt > std::chrono::minutes(1)) return;
  session->rtt.record(rtt);
  common_.metrics.rtt.record(rtt);
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
  std::uint64_t carried = 0;
  const auto& lanes = session.lanes;
  for (std::size_t i = 0; i < kLanes; ++i) {
    if (i != 0 && lanes[i] == lanes[0]) continue;
    const auto status = lanes[i]->status();
    carried += status.sent_messages + status.received_messages;
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
    handshake_failed("revocation list", {"revocations", Error{ErrorCode::failed, read.error().message}});
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
