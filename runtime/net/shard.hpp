// The peers that one pair of IO threads serves: dialling, admitting, sessions, heartbeats. For links.cpp only.
//
// The first thread has the control lanes, and whatever is not yet a session. It sleeps most of the time, and so it is given a processor as
// soon as something comes, however busy the other lanes are: once a session is up, these are the second thread's, and so is the one
// connection of a program that has just one.
//
// A session is the three connections of a pair of peers. The side that dials opens the control lane first, and the other two
// once that was accepted; all three carry the session number that the dialler drew. Both sides may dial at once: of two dials
// that have both come as far as Hello, the one of the smaller name goes on, the other is refused and its dialler waits.
//
// Everything in a Shard runs on the first thread, except the constructor, post_*(), listen(), start() and stop(), and what says so.
#pragma once
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <unordered_map>

#include "runtime/base/random.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/net/connection.hpp"
#include "runtime/net/phi.hpp"

namespace falaj::net {

struct Session {
  Session(std::uint64_t number, PeerInfo who, const PhiDetector::Options& options, Instant now)
      : id(number), info(std::move(who)), detector(options, now) {}
  const std::uint64_t id;
  const PeerInfo info;
  std::array<std::shared_ptr<Connection>, kLanes> lanes;  // not changed any more once it is up
  // Held by the second thread while it hands on what a read has brought: after the session's end nothing of it is handed on.
  std::mutex delivery;
  bool up = false;  // written by the first thread with `delivery` held
  PhiDetector detector;
  Instant ticked;
  std::uint64_t beats = 0;    // heartbeats and answers to them, sent and received
  std::uint64_t carried = 0;  // messages to and fro, when they were counted last
  Instant quiet_since;
  Instant answered;  // a heartbeat
  std::atomic<bool> resting{false};
  metrics::Histogram rtt;
  std::atomic<double> phi{0};
};

// Sessions that are up, for senders on any thread. Each thread remembers the one that it found last.
class Routes {
 public:
  Routes() { changed(); }
  [[nodiscard]] std::shared_ptr<Session> find(NodeId node) const;
  void put(std::shared_ptr<Session> session);
  void remove(const Session& session);
  [[nodiscard]] std::vector<std::shared_ptr<Session>> all() const;

 private:
  void changed() noexcept;
  mutable std::shared_mutex mutex_;
  std::unordered_map<NodeId, std::shared_ptr<Session>> map_;
  std::atomic<std::uint64_t> version_{0};  // unlike that of any other Routes
};

// A value that is replaced as a whole, from any thread.
template <class T>
class Published {
 public:
  [[nodiscard]] T get() const {
    const std::scoped_lock lock(mutex_);
    return value_;
  }
  void set(T value) {
    const std::scoped_lock lock(mutex_);
    value_ = std::move(value);
  }

 private:
  mutable std::mutex mutex_;
  T value_{};
};

class Shard;

// What all shards of one Links share.
struct LinkCommon {
  LinkCommon(LinkOptions o, const Clock& c, metrics::Registry& registry, LinkEvents& e);
  ~LinkCommon();
  const LinkOptions options;
  const Clock& clock;
  LinkEvents& events;
  LinkMetrics metrics;
  RevocationList revocations;
  Connection::Setting setting;
  Routes routes;
  Published<std::shared_ptr<SSL_CTX>> context;
  Published<std::string> advertise;
  std::vector<std::unique_ptr<Shard>> shards;

  [[nodiscard]] Shard& shard_of(std::string_view peer) const { return *shards[stable_hash(peer) % shards.size()]; }
};

class Shard final : public Connection::Owner {
 public:
  Shard(LinkCommon& common, unsigned index);
  ~Shard() override;

  void start();
  void stop();
  Result<std::uint16_t> listen(const std::string& host, std::uint16_t port);
  void post_want(PeerAddress address);
  void post_forget(std::string name);
  void post_disconnect(std::string name, Error reason);
  void post_adopt(tcp::socket socket);
  void post_wake(const std::shared_ptr<Session>& session);  // it rests, and somebody has something to say
  [[nodiscard]] asio::io_context& io() noexcept { return io_; }

 private:
  using ConnectionPtr = std::shared_ptr<Connection>;
  struct Dial {
    explicit Dial(std::uint64_t number, asio::io_context& io) : id(number), resolver(io), timer(io) {}
    const std::uint64_t id;
    PeerAddress address;
    std::shared_ptr<SSL_CTX> context;  // of all its connections
    tcp::resolver resolver;
    asio::steady_timer timer;  // until TCP is connected; then the connection's own
    tcp::endpoint endpoint;
    std::array<std::shared_ptr<tcp::socket>, kLanes> sockets;
    std::array<ConnectionPtr, kLanes> lanes;
    std::shared_ptr<Session> session;  // once the control lane was accepted
    bool hello_sent = false;
    std::size_t accepted = 0;
  };
  struct Peer {
    Peer(std::string n, asio::io_context& io) : name(std::move(n)), retry(io), tick(io) {}
    const std::string name;
    std::optional<PeerAddress> wanted;
    std::shared_ptr<Dial> dial;
    std::shared_ptr<Session> session;
    int failures = 0;                  // dials in a row
    std::vector<tls::Ticket> tickets;  // for the next connections, with this context
    std::shared_ptr<SSL_CTX> tickets_of;
    asio::steady_timer retry;
    asio::steady_timer tick;
  };
  using PeerPtr = std::shared_ptr<Peer>;

  void on_authenticated(const ConnectionPtr& connection) override;
  void on_hello(const ConnectionPtr& connection, Message hello) override;
  // Of the lane's thread.
  void on_frame(Connection& connection, Frame& frame) override;
  void on_batch_begin(Connection& connection) override;
  void on_batch_end(Connection& connection) override;
  void on_closed(const ConnectionPtr& connection, const Connection::Closed& why) override;
  [[nodiscard]] bool on_second_thread() const noexcept;

  PeerPtr peer_named(const std::string& name);
  PeerPtr find_peer(const std::string& name) const;
  void drop_if_idle(const PeerPtr& peer);

  // dialling
  void dial(const PeerPtr& peer);
  void dial_lane(const PeerPtr& peer, const std::shared_ptr<Dial>& dial, Lane lane);
  void connected(const PeerPtr& peer, const std::shared_ptr<Dial>& dial, Lane lane);
  void dial_answered(const ConnectionPtr& connection, messages::Hello::Reader hello);
  static void keep_tickets(Peer& peer, const Dial& dial, Connection& connection);
  void abandon(const std::shared_ptr<Dial>& dial);
  void dial_failed(const PeerPtr& peer, const Connection::Closed& why);
  void redial_later(const PeerPtr& peer);

  // admitting
  void accept_next(std::size_t acceptor);
  void adopt(tcp::socket socket);
  void admit(const ConnectionPtr& connection, const Message& hello);
  std::optional<Connection::Closed> admit_control(const ConnectionPtr& connection, messages::Hello::Reader hello, std::string name);
  static bool is_whole(const Connection& connection, messages::Hello::Reader hello);
  std::optional<Connection::Closed> admit_other(const ConnectionPtr& connection, messages::Hello::Reader hello, const std::string& name);
  [[nodiscard]] std::optional<Connection::Closed> judge(const Connection& connection, messages::Hello::Reader hello) const;
  Bytes own_hello(Lane lane, std::uint64_t session) const;

  // sessions
  std::shared_ptr<Session> make_session(const Connection& connection, messages::Hello::Reader hello, std::uint64_t id) const;
  void session_whole(const PeerPtr& peer);  // all its connections are there: it is up soon
  void session_up(const PeerPtr& peer);
  void session_down(const PeerPtr& peer, const Error& reason);
  void session_lost(const std::shared_ptr<Session>& session, const Error& reason);
  static void close_lanes(Session& session);
  void heard(const std::shared_ptr<Session>& session, messages::Kind kind, std::uint64_t correlation);
  void tick(const PeerPtr& peer);
  static void beat(Session& session, ByteView envelope);
  static bool quiet(Session& session, Instant now);
  [[nodiscard]] bool may_rest(Session& session, Instant now) const;
  void tick_later(const PeerPtr& peer);
  void every_second();
  void check_revocations();
  void handshake_failed(const std::string& whose, const Connection::Closed& why);

  LinkCommon& common_;
  const unsigned index_;
  Random random_;
  // First, to be destroyed last: what io_ never came to do may hold connections of both.
  asio::io_context data_io_;  // the second thread's
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> data_work_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  asio::steady_timer every_second_;
  std::vector<std::unique_ptr<tcp::acceptor>> acceptors_;
  std::map<std::string, PeerPtr, std::less<>> peers_;
  std::set<ConnectionPtr> strangers_;  // accepted, not yet part of a session
  std::map<std::string, Instant> complained_;
  std::uint64_t revocations_seen_ = 0;
  std::uint64_t next_shard_ = 0;
  bool stopped_ = false;
  Thread data_thread_;
  Thread thread_;
};

}  // namespace falaj::net
