// The dialling half of Shard (shard.hpp).
#include <algorithm>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/post.hpp>

#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/net/shard.hpp"

namespace falaj::net {
namespace {

constexpr std::size_t kControl = static_cast<std::size_t>(Lane::CONTROL);
constexpr std::size_t kTicketsMax = 2 * kLanes;

Connection::Closed unreachable(std::string message) { return {"unreachable", Error{ErrorCode::unreachable, std::move(message)}}; }

}  // namespace

void Shard::dial(const PeerPtr& peer) {
  const auto attempt = std::make_shared<Dial>(random_.next() | 1U, io_);
  attempt->address = *peer->wanted;
  attempt->context = common_.context.get();
  if (peer->tickets_of != attempt->context) peer->tickets.clear();
  peer->tickets_of = attempt->context;
  peer->dial = attempt;
  attempt->timer.expires_after(common_.options.handshake_timeout);
  attempt->timer.async_wait([this, peer, attempt](const boost::system::error_code& code) {
    if (!code && peer->dial == attempt)
      dial_failed(peer, unreachable(format("{}:{}: no connection in time", attempt->address.host, attempt->address.port)));
  });
  boost::system::error_code code;
  const auto address = asio::ip::make_address(attempt->address.host, code);
  if (!code) {
    attempt->endpoint = tcp::endpoint(address, attempt->address.port);
    return dial_lane(peer, attempt, Lane::CONTROL);
  }
  attempt->resolver.async_resolve(
      attempt->address.host, std::to_string(attempt->address.port),
      [this, peer, attempt](const boost::system::error_code& failure, const tcp::resolver::results_type& found) {
        if (peer->dial != attempt) return;
        if (failure || found.empty()) return dial_failed(peer, unreachable(format("{}: {}", attempt->address.host, failure.message())));
        attempt->endpoint = found.begin()->endpoint();
        dial_lane(peer, attempt, Lane::CONTROL);
      });
}

void Shard::dial_lane(const PeerPtr& peer, const std::shared_ptr<Dial>& attempt, Lane lane) {
  const auto slot = static_cast<std::size_t>(lane);
  attempt->sockets[slot] = std::make_shared<tcp::socket>(io_);
  attempt->sockets[slot]->async_connect(attempt->endpoint, [this, peer, attempt, lane](const boost::system::error_code& code) {
    if (peer->dial != attempt) return;
    if (code) return dial_failed(peer, unreachable(format("{}:{}: {}", attempt->address.host, attempt->address.port, code.message())));
    connected(peer, attempt, lane);
  });
}

void Shard::connected(const PeerPtr& peer, const std::shared_ptr<Dial>& attempt, Lane lane) {
  const auto slot = static_cast<std::size_t>(lane);
  const auto socket = std::exchange(attempt->sockets[slot], nullptr);
  const auto connection = std::make_shared<Connection>(std::move(*socket), tls::Side::client, lane, common_.setting, *this);
  connection->expected_name = peer->name;
  attempt->lanes[slot] = connection;
  tls::Ticket ticket;  // each is used once, so that nobody on the way can tell that both connections are of one peer
  if (!peer->tickets.empty()) {
    ticket = std::move(peer->tickets.back());
    peer->tickets.pop_back();
  }
  connection->start(attempt->context.get(), std::move(ticket));
}

// They have come before the peer's Hello, which is when this is called.
void Shard::keep_tickets(Peer& peer, const Dial& dial, Connection& connection) {
  if (peer.tickets_of != dial.context) return;
  for (auto& ticket : connection.take_tickets()) peer.tickets.push_back(std::move(ticket));
  if (peer.tickets.size() > kTicketsMax)
    peer.tickets.erase(peer.tickets.begin(), peer.tickets.end() - static_cast<std::ptrdiff_t>(kTicketsMax));
}

void Shard::dial_answered(const ConnectionPtr& connection, messages::Hello::Reader hello) {
  const auto peer = find_peer(connection->expected_name);
  const auto slot = static_cast<std::size_t>(connection->lane);
  if (!peer || !peer->dial || peer->dial->lanes[slot] != connection) return connection->close();
  const auto attempt = peer->dial;
  if (hello.hasRefusal()) {
    const auto refusal = hello.getRefusal();
    // Both dialled, and the smaller name's dial goes on: it will reach us.
    const bool met = refusal.getCode() == messages::ErrorCode::CONFLICT && peer->name < common_.options.name;
    if (met) return dial_failed(peer, {"simultaneous", Error{ErrorCode::conflict, "both dialled"}});
    return dial_failed(peer, {"refused", Error{static_cast<ErrorCode>(refusal.getCode()),
                                               format("refused by '{}': {}", peer->name, text(refusal.getMessage()))}});
  }
  if (const auto no = judge(*connection, hello)) return dial_failed(peer, *no);
  if (text(hello.getNode()) != peer->name) {
    return dial_failed(peer,
                       {"wrong_name", Error{ErrorCode::denied, format("expected '{}', found '{}'", peer->name, text(hello.getNode()))}});
  }
  keep_tickets(*peer, *attempt, *connection);
  if (slot == kControl) {
    attempt->session = make_session(*connection, hello, attempt->id);
    dial_lane(peer, attempt, Lane::NORMAL);
    dial_lane(peer, attempt, Lane::BULK);
  } else if (attempt->session->info.incarnation.value() != hello.getIncarnation()) {
    return dial_failed(peer, {"restarted", Error{ErrorCode::gone, format("'{}' was started again meanwhile", peer->name)}});
  }
  attempt->session->lanes[slot] = connection;
  if (++attempt->accepted < kLanes) return;
  peer->dial.reset();
  attempt->timer.cancel();
  peer->session = attempt->session;
  for (const auto& lane : peer->session->lanes) lane->session = peer->session;
  session_whole(peer);
}

void Shard::abandon(const std::shared_ptr<Dial>& attempt) {
  attempt->timer.cancel();
  attempt->resolver.cancel();
  boost::system::error_code code;
  for (const auto& socket : attempt->sockets) {
    if (socket) socket->close(code);
  }
  for (const auto& lane : attempt->lanes) {
    if (lane) lane->close();
  }
}

void Shard::dial_failed(const PeerPtr& peer, const Connection::Closed& why) {
  const auto attempt = std::exchange(peer->dial, nullptr);
  if (!attempt) return;
  abandon(attempt);
  peer->tickets.clear();  // in case they are why
  ++peer->failures;
  handshake_failed(peer->name, why);
  if (why.label != "simultaneous") common_.events.on_dial_failed(attempt->address, why.error);
  redial_later(peer);
  drop_if_idle(peer);
}

void Shard::redial_later(const PeerPtr& peer) {
  if (!peer->wanted.has_value() || peer->session || peer->dial) return;
  const auto& options = common_.options;
  const auto doubled = options.reconnect_min * (1LL << std::min(peer->failures, 16));
  const auto longest = std::min<Duration>(doubled, options.reconnect_max);
  const auto pause = Duration(static_cast<std::int64_t>(static_cast<double>(longest.count()) * (0.5 + 0.5 * random_.uniform())));
  peer->retry.expires_after(pause);
  peer->retry.async_wait([this, peer](const boost::system::error_code& code) {
    if (!code && peer->wanted.has_value() && !peer->session && !peer->dial) dial(peer);
  });
}

}  // namespace falaj::net
