// One TLS connection of one lane: handshake, Hello, frames in, coalesced writes out. For links.cpp only.
//
// Threads: everything runs on the connection's IO thread, except what says that any thread may call it. OpenSSL's session is
// touched under tls_mutex_; the queue under queue_mutex_. Whoever sets writing_ is the writer until it is cleared: the IO
// thread, or a sender that found the lane quiet and writes at once, which saves a thread hop in each direction of an ask.
// A sender that is faster than that hands its queue to the IO thread, which then writes many messages at once.
#pragma once
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/net/frames.hpp"
#include "runtime/net/links.hpp"
#include "runtime/net/tls.hpp"

namespace falaj::net {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;

struct LinkMetrics {
  explicit LinkMetrics(metrics::Registry& registry);
  metrics::Registry& registry;
  metrics::Counter& bytes_in;
  metrics::Counter& bytes_out;
  std::array<metrics::Counter*, kLanes> messages_in;
  std::array<metrics::Counter*, kLanes> messages_out;
  std::array<metrics::Counter*, kLanes> window_full;
  metrics::Counter& writes;
  metrics::Counter& handshakes;  // that were done in full
  metrics::Counter& resumptions;
  metrics::Histogram& rtt;
  metrics::Gauge& peers;
  metrics::Counter& peer_downs;
};

struct Session;

// The context that this thread runs; null on a thread that is not ours.
asio::io_context*& this_io() noexcept;

Bytes refusal_hello(const Error& why);

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  struct Closed {
    std::string_view label;  // of a metric: "expired", "timeout", "closed"...
    Error error;
  };
  class Owner {
   public:
    virtual ~Owner() = default;
    virtual void on_authenticated(const std::shared_ptr<Connection>& connection) = 0;
    virtual void on_hello(const std::shared_ptr<Connection>& connection, Message hello) = 0;
    virtual void on_frame(Connection& connection, Frame& frame) = 0;  // takes the body
    virtual void on_batch_begin(Connection& connection) = 0;          // around the frames of one read
    virtual void on_batch_end(Connection& connection) = 0;
    virtual void on_closed(const std::shared_ptr<Connection>& connection, const Closed& why) = 0;  // once, not after close()
  };
  struct Setting {
    const Clock& clock;
    const RevocationList& revocations;
    LinkMetrics& metrics;
    const std::string& cluster;
    std::size_t send_window;
    Duration handshake_timeout;
  };

  Connection(tcp::socket socket, tls::Side side, Lane lane, const Setting& setting, Owner& owner);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // --- IO thread ---
  // TLS handshake, then on_authenticated, then on_hello; bounded in bytes and time. With a ticket that came with this context the peer is
  // known again, if it still knows the ticket.
  void start(SSL_CTX* context, tls::Ticket ticket = {});
  std::vector<tls::Ticket> take_tickets() { return std::exchange(tickets_, {}); }
  void resume();                   // after on_hello the connection reads nothing until this
  void established();              // ends the time limit of the handshake
  void close();                    // silent: on_closed is not called
  void leave();                    // the session too
  void refuse(const Closed& why);  // says so in a Hello, then on_closed and close()
  // Only between on_hello and resume(), and not from a callback: the rest then runs on `to`.
  void migrate(asio::io_context& to);
  // Runs the step on the IO thread. From any thread.
  void post_to_io(void (Connection::*step)());
  void restart_timer();

  // --- any thread ---
  Status send(ByteView envelope, const Message& body);
  [[nodiscard]] LaneStatus status() const;

  [[nodiscard]] bool dialled() const noexcept { return side_ == tls::Side::client; }
  [[nodiscard]] const CertificateInfo& certificate() const noexcept { return certificate_; }
  [[nodiscard]] const std::string& remote() const noexcept { return remote_; }
  [[nodiscard]] bool is_closed() const noexcept { return stage_ == Stage::closed; }
  [[nodiscard]] bool on_io_thread() const noexcept;

  Lane lane;                         // of an accepted one: known from its Hello
  std::shared_ptr<Session> session;  // set by the owner once it belongs to one
  std::string expected_name;         // of a dialled one

 private:
  enum class Stage : unsigned char { tls, hello, paused, open, closed };
  enum class Wrote : unsigned char { all, turn, blocked, broken };
  // What waits to be written: everything small in one run of bytes, so that a message costs one copy and no memory of its own.
  struct Outbox {
    struct Large {     // a body that is encrypted from where it lies
      std::size_t at;  // after so many bytes of the run
      Message body;
    };
    Bytes run;
    std::vector<Large> large;
    std::size_t messages = 0;
    void add(ByteView envelope, const Message& body);
    void clear();
  };

  static BIO_METHOD* bio_method();
  static int bio_read(BIO* bio, char* to, int size);
  static int bio_write(BIO* bio, const char* from, int size);
  static long bio_control(BIO* bio, int command, long number, void* pointer);

  void timed_out();
  void on_broken();
  void wait_readable();
  void wait_writable();
  void on_readable();
  void handshake();
  void authenticate();
  void read_some();
  bool deliver();  // false: stopped reading (paused, closed)
  void fail(Closed why);
  void kick();   // takes the writer's role if it is free
  void flush();  // with the writer's role
  void flush_now();
  Wrote write_batch();
  Wrote push_cipher();
  bool encrypt(ByteView bytes);
  [[nodiscard]] bool batch_done() const noexcept { return run_done_ == batch_.run.size() && large_done_ == batch_.large.size(); }
  void drop_batch();
  [[nodiscard]] Closed tls_failure(int result);

  const tls::Side side_;
  const Setting& setting_;
  Owner& owner_;
  tcp::socket socket_;
  std::unique_ptr<asio::steady_timer> timer_;
  std::atomic<asio::io_context*> io_;
  Stage stage_ = Stage::tls;
  bool reading_ = false;         // a wait for readability is under way
  bool blocked_ = false;         // the same for the writer
  bool busy_ = false;            // inside read_some(): what callbacks send is written once, at its end
  bool flush_deferred_ = false;  // the IO thread holds the writer's role and has not begun
  FrameReader frames_;
  Frame frame_;                     // the one that was read last
  std::uint64_t received_now_ = 0;  // frames, by the present read_some()
  CertificateInfo certificate_;
  std::string remote_;
  std::atomic<std::uint64_t> received_{0};
  std::atomic<std::uint64_t> sent_{0};  // written under queue_mutex_
  std::atomic<int> direct_{0};          // how many more times a foreign thread may write at once

  // Guarded by tls_mutex_.
  std::mutex tls_mutex_;
  std::vector<tls::Ticket> tickets_;  // the IO thread's; before the session, which knows where they are
  tls::Session tls_;
  int fd_ = -1;
  bool dead_ = false;
  std::uint64_t bytes_read_ = 0;
  int system_error_ = 0;
  std::vector<std::uint8_t> cipher_;  // encrypted, not yet taken by the kernel
  std::size_t cipher_begin_ = 0;

  // The writer's.
  Outbox batch_;
  std::size_t run_done_ = 0;    // bytes
  std::size_t large_done_ = 0;  // bodies
  std::size_t body_done_ = 0;   // bytes of the next one

  // Guarded by queue_mutex_.
  std::mutex queue_mutex_;
  Outbox queue_;
  bool writing_ = false;
  bool shut_ = false;
  std::atomic<std::size_t> queued_bytes_{0};
};

}  // namespace falaj::net
