// Links: this process's connections to its peers. TLS 1.3 with both sides authenticated by the cluster's authority, one
// connection for each lane, standard Cap'n Proto frames (messages/envelope.capnp says what goes over them).
//
// What it does: listen, dial and redial, authenticate, carry (envelope, body) pairs in order on a lane, heartbeat, and say who
// is up and who is down. What it does not: send anything twice, keep anything for a peer that is away, know about actors.
//
// Invariants:
//  - For a peer, events come as: on_peer_up, messages, on_peer_down, and so on; one at a time, but that messages of its control lane come
//    from one IO thread, and those of its other lanes from another.
//  - When one of a peer's three connections breaks, all three close and the peer is down: what was sent is unknown.
//  - A pair that send() took is either written in its lane's order or lost with the connection.
//  - A peer that falls silent is noticed within `silence_max` while something goes to and fro or somebody waits for it
//    (LinkEvents::waits_for); a link between nodes that is needed by nobody rests: no heartbeat goes over it until the next send(). So what
//    a node spends on heartbeats does not grow with the cluster.
//
// Ways to get hurt:
//  - LinkEvents are called on the IO thread: do not block there. What they send is written together, at the end of the read they are in.
//  - Destroy Links before what LinkEvents points to. stop() returns when no event will come any more; do not call it from one.
#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "messages/header.hpp"
#include "runtime/base/clock.hpp"
#include "runtime/base/ids.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/metrics.hpp"
#include "runtime/base/result.hpp"
#include "runtime/net/identity.hpp"

namespace falaj::net {

using messages::Lane;
constexpr std::size_t kLanes = 3;
std::string_view to_string(Lane lane) noexcept;

struct PeerAddress {
  std::string name;  // SpiffeId::link_name() of who must answer there: "n1"
  std::string host;
  std::uint16_t port = 0;
};
Result<PeerAddress> parse_peer_address(std::string_view name, std::string_view host_port);  // also "[::1]:7400"

struct PeerInfo {
  NodeId node;
  std::string name;
  Incarnation incarnation;
  SpiffeId principal;
  std::string address;  // where it listens, host:port; empty when it does not
  std::string uri;      // of the principal
};

class LinkEvents {
 public:
  virtual ~LinkEvents() = default;
  virtual void on_peer_up(const PeerInfo& peer) = 0;
  // The texts of `header` are there until this returns.
  virtual void on_message(const PeerInfo& peer, Lane lane, const Header& header, Message body) = 0;
  // Whether somebody here must learn soon when this peer is lost. Asked of links between nodes, while nothing goes over them.
  virtual bool waits_for(const PeerInfo& /*peer*/) { return true; }
  // Around the messages that one read has brought.
  virtual void on_batch_begin() {}
  virtual void on_batch_end() {}
  virtual void on_peer_down(const PeerInfo& peer, const Error& reason) = 0;
  // A dial did not succeed (each time; it goes on with back-off). For `falaj join` and the CLI, which give up.
  virtual void on_dial_failed(const PeerAddress& /*peer*/, const Error& /*reason*/) {}
};

struct LinkOptions {
  std::string cluster;
  std::string name;  // own link name; for people and services may end in "#<suffix>"
  Incarnation incarnation;
  Identity identity;
  std::string advertise;    // host:port told to peers; empty: the address listened on
  unsigned io_threads = 1;  // pairs of them; a peer is served by one pair
  std::uint64_t seed = 0;   // of the jitter of reconnects and of session numbers
  std::size_t peers_max = 1024;
  Duration look = limits::kLookBeforeSleep;  // of an IO thread that expects more soon; zero: it sleeps at once
  // Shorter in tests only.
  Duration handshake_timeout = limits::kHandshakeTimeout;
  Duration heartbeat_every = limits::kHeartbeatEvery;
  Duration silence_max = limits::kPeerSilenceMax;
  Duration rest_after = limits::kLinkRest;
  Duration reconnect_min = limits::kReconnectMin;
  Duration reconnect_max = limits::kReconnectMax;
  std::size_t send_window = limits::kSendWindowBytes;
};

struct LaneStatus {
  std::uint64_t queued_bytes = 0;  // taken by send(), not yet given to the kernel
  std::uint64_t sent_messages = 0;
  std::uint64_t received_messages = 0;
};
struct LinkStatus {
  PeerInfo peer;
  double rtt_p50_us = 0;
  double phi = 0;
  bool resting = false;  // no heartbeats: see above
  std::array<LaneStatus, kLanes> lanes;
};

class Links {
 public:
  // `invalid` when the identity does not fit: key and certificate, cluster, name.
  static Result<std::unique_ptr<Links>> create(LinkOptions options, const Clock& clock, metrics::Registry& registry, LinkEvents& events);
  ~Links();
  Links(const Links&) = delete;
  Links& operator=(const Links&) = delete;

  // Binds and accepts; port 0 takes a free one. Returns the port.
  Result<std::uint16_t> listen(const std::string& host, std::uint16_t port);
  // Keeps a connection to this peer until forget(); a second call for the same name changes the address.
  void connect(const PeerAddress& peer);
  void forget(std::string_view name);                 // stops dialling; a live connection stays
  void disconnect(NodeId peer, const Error& reason);  // closes now; redials if it is to be kept

  // `envelope`: one framed Cap'n Proto message, at most limits::kEnvelopeBytesMax; `body`: at most limits::kMessageBytesMax.
  // overloaded: the lane's window is full. unreachable: not connected. invalid: too large. Never blocks; any thread.
  Status send(NodeId peer, Lane lane, ByteView envelope, const Message& body);

  [[nodiscard]] bool connected(NodeId peer) const;
  [[nodiscard]] std::vector<LinkStatus> status() const;  // by name

  // New handshakes use it; live connections stay.
  Status reload_identity(const Identity& identity);

  void stop();  // closes all connections without on_peer_down, joins the IO threads; idempotent

 private:
  class State;
  explicit Links(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace falaj::net
