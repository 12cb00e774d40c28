#include "runtime/net/connection.hpp"

#include <netinet/tcp.h>
#include <openssl/err.h>
#include <sys/socket.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <cstring>

#include "runtime/base/format.hpp"

namespace falaj::net {
namespace {

constexpr std::size_t kCoalesced = 64U << 10;               // small messages go in one write of so much
constexpr std::size_t kRunKept = 256U << 10;                // memory of an outbox that is kept for the next
constexpr std::size_t kRecordFull = 15U << 10;              // a TLS record holds 16 KiB: with so much there is no use in waiting for more
constexpr std::size_t kSmallBody = 16U << 10;               // larger ones are encrypted from where they lie
constexpr std::size_t kLargePiece = 128U << 10;             // and in pieces of this, each one system call
constexpr std::size_t kReadPerBatch = 32U << 10;            // then those who were sent something may have a turn on this thread
constexpr std::size_t kReadPerTurn = 256U << 10;            // then other connections of this thread have their turn
constexpr std::size_t kWritePerTurn = 256U << 10;           // the same
constexpr auto kTurnTime = std::chrono::microseconds(250);  // so, too, when those who were sent something take long
constexpr int kRoundsAsGuest = 4;                           // writes in a row that a sender does for others
constexpr int kRoundsPerTurn = 16;                          // and on the thread of the connection, before others have their turn
constexpr int kDirectAfterRead = 2;

Connection::Closed closed(std::string_view label, ErrorCode code, std::string message) { return {label, Error{code, std::move(message)}}; }

std::string describe(const tcp::socket& socket) {
  boost::system::error_code code;
  const auto end = socket.remote_endpoint(code);
  if (code) return "?";
  return end.address().is_v6() ? format("[{}]:{}", end.address().to_string(), end.port())
                               : format("{}:{}", end.address().to_string(), end.port());
}

// A link may rest for long: what lies between the two must not forget it, and a peer that is gone for good is noticed some time.
void keep_alive(int fd) {
  constexpr int kOn = 1;
  constexpr int kIdle = 60;  // seconds
  constexpr int kEvery = 10;
  constexpr int kTimes = 3;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &kOn, sizeof(kOn));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &kIdle, sizeof(kIdle));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &kEvery, sizeof(kEvery));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &kTimes, sizeof(kTimes));
}

}  // namespace

asio::io_context*& this_io() noexcept {
  thread_local asio::io_context* mine = nullptr;
  return mine;
}

Bytes refusal_hello(const Error& why) {
  const auto message = Message::build<messages::Hello>([&](messages::Hello::Builder hello) {
    hello.setWireVersion(messages::WIRE_VERSION);
    auto refusal = hello.initRefusal();
    refusal.setCode(static_cast<messages::ErrorCode>(why.code));
    refusal.setMessage(why.message);
  });
  return {message.bytes().begin(), message.bytes().end()};
}

// --- OpenSSL's view of the socket ---

BIO_METHOD* Connection::bio_method() {
  static BIO_METHOD* method = [] {
    BIO_METHOD* m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "falaj link");
    BIO_meth_set_read(m, &Connection::bio_read);
    BIO_meth_set_write(m, &Connection::bio_write);
    BIO_meth_set_ctrl(m, &Connection::bio_control);
    return m;
  }();
  return method;
}

int Connection::bio_read(BIO* bio, char* to, int size) {
  auto& self = *static_cast<Connection*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  auto want = static_cast<std::size_t>(size);
  if (self.stage_ == Stage::tls) {
    if (self.bytes_read_ >= limits::kUnauthenticatedBytesMax) {
      self.system_error_ = EMSGSIZE;
      return -1;
    }
    want = std::min<std::size_t>(want, limits::kUnauthenticatedBytesMax - self.bytes_read_);
  }
  for (;;) {
    const auto count = ::recv(self.fd_, to, want, 0);
    if (count > 0) {
      self.bytes_read_ += static_cast<std::uint64_t>(count);
      return static_cast<int>(count);
    }
    if (count == 0) return 0;
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      BIO_set_retry_read(bio);
    } else {
      self.system_error_ = errno;
    }
    return -1;
  }
}

// Takes everything: push_cipher() gives it to the kernel, many records in one call.
int Connection::bio_write(BIO* bio, const char* from, int size) {
  auto& self = *static_cast<Connection*>(BIO_get_data(bio));
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(from);  // of the vector's own type: then this is one memcpy
  self.cipher_.insert(self.cipher_.end(), bytes, bytes + size);
  return size;
}

long Connection::bio_control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

// --- life ---

Connection::Connection(tcp::socket socket, tls::Side side, Lane which, const Setting& setting, Owner& owner)
    : lane(which), side_(side), setting_(setting), owner_(owner), socket_(std::move(socket)) {
  io_ = static_cast<asio::io_context*>(&socket_.get_executor().target<asio::io_context::executor_type>()->context());
  remote_ = describe(socket_);
}

Connection::~Connection() = default;

bool Connection::on_io_thread() const noexcept { return this_io() == io_.load(std::memory_order_relaxed); }

void Connection::post_to_io(void (Connection::*step)()) {
  asio::post(*io_.load(std::memory_order_relaxed), [self = shared_from_this(), step] { (self.get()->*step)(); });
}

void Connection::start(SSL_CTX* context, tls::Ticket ticket) {
  boost::system::error_code code;
  socket_.non_blocking(true, code);
  socket_.set_option(tcp::no_delay(true), code);
  keep_alive(socket_.native_handle());
  restart_timer();
  auto made = tls::make_session(context, side_, setting_.clock.wall());
  if (!made.has_value()) return fail({"internal", std::move(made).error()});
  tls_ = std::move(made).value();
  if (dialled()) tls::keep_tickets(tls_.get(), tickets_);
  if (ticket) SSL_set_session(tls_.get(), ticket.get());
  fd_ = socket_.native_handle();
  BIO* bio = BIO_new(bio_method());
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  SSL_set_bio(tls_.get(), bio, bio);
  SSL_set_read_ahead(tls_.get(), 1);
  SSL_set_default_read_buffer_len(tls_.get(), 32U << 10);
  handshake();
}

void Connection::restart_timer() {
  timer_ = std::make_unique<asio::steady_timer>(*io_.load(), setting_.handshake_timeout);
  timer_->async_wait([weak = weak_from_this()](const boost::system::error_code& code) {
    const auto self = weak.lock();
    if (!code && self) self->timed_out();
  });
}

void Connection::timed_out() { fail(closed("timeout", ErrorCode::deadline, format("{}: no handshake in time", remote_))); }

void Connection::established() { timer_.reset(); }

void Connection::leave() {
  session.reset();
  close();
}

void Connection::migrate(asio::io_context& to) {
  timer_.reset();
  boost::system::error_code code;
  const auto protocol = socket_.local_endpoint(code).protocol();
  if (code) return;
  const int fd = socket_.release(code);
  if (code) return;
  socket_ = tcp::socket(to, protocol, fd);
  socket_.non_blocking(true, code);
  io_ = &to;
  if (blocked_) post_to_io(&Connection::wait_writable);  // the wait ended with the old socket
}

void Connection::close() {
  if (stage_ == Stage::closed) return;
  stage_ = Stage::closed;
  timer_.reset();
  {
    const std::scoped_lock lock(tls_mutex_);
    if (!dead_ && tls_ && SSL_is_init_finished(tls_.get()) == 1) {
      ERR_clear_error();
      SSL_shutdown(tls_.get());
      static_cast<void>(push_cipher());  // what fits; nobody waits for the rest
    }
    dead_ = true;
  }
  Outbox dropped;
  {
    const std::scoped_lock lock(queue_mutex_);
    shut_ = true;
    std::swap(dropped, queue_);
  }
  boost::system::error_code code;
  socket_.close(code);
}

void Connection::fail(Closed why) {
  if (stage_ == Stage::closed) return;
  close();
  owner_.on_closed(shared_from_this(), why);
}

void Connection::refuse(const Closed& why) {
  if (stage_ == Stage::closed) return;
  static_cast<void>(send(refusal_hello(why.error), Message()));
  flush_now();
  fail(why);
}

// --- handshake ---

void Connection::wait_readable() {
  if (reading_ || stage_ == Stage::closed) return;
  reading_ = true;
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](const boost::system::error_code& code) {
    self->reading_ = false;
    if (!code) self->on_readable();
  });
}

void Connection::wait_writable() {
  if (stage_ == Stage::closed) return;
  blocked_ = true;
  socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](const boost::system::error_code& code) {
    if (code || !self->on_io_thread()) return;  // it has moved meanwhile, and waits there
    self->blocked_ = false;
    self->flush();
  });
}

void Connection::on_readable() {
  if (stage_ == Stage::closed || stage_ == Stage::paused) return;
  if (stage_ == Stage::tls) {
    handshake();
  } else {
    read_some();
  }
}

void Connection::handshake() {
  int result = 0;
  int reason = SSL_ERROR_NONE;
  Closed why;
  {
    const std::scoped_lock lock(tls_mutex_);
    ERR_clear_error();
    result = SSL_do_handshake(tls_.get());
    if (result != 1) {
      reason = SSL_get_error(tls_.get(), result);
      if (reason != SSL_ERROR_WANT_READ) why = tls_failure(result);
    }
  }
  kick();  // what the handshake has to say, an alert too
  if (stage_ == Stage::closed) return;
  if (result == 1) return authenticate();
  if (reason == SSL_ERROR_WANT_READ) return wait_readable();
  fail(std::move(why));
}

Connection::Closed Connection::tls_failure(int result) {
  const int reason = SSL_get_error(tls_.get(), result);
  if (system_error_ == EMSGSIZE && stage_ == Stage::tls) {
    return closed("oversized", ErrorCode::invalid,
                  format("{}: more than {} bytes before its certificate was checked", remote_, limits::kUnauthenticatedBytesMax));
  }
  if (system_error_ != 0) return closed("closed", ErrorCode::unreachable, format("{}: {}", remote_, std::strerror(system_error_)));
  const bool end = reason == SSL_ERROR_ZERO_RETURN ||
                   (reason == SSL_ERROR_SSL && ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING);
  if (end || (reason == SSL_ERROR_SYSCALL && ERR_peek_error() == 0)) {
    ERR_clear_error();
    return closed("closed", ErrorCode::unreachable, format("{}: closed by the peer", remote_));
  }
  auto failure = tls::handshake_failure(tls_.get());
  const bool own = failure.label.starts_with("own_");
  return closed(failure.label, ErrorCode::denied,
                own ? format("{}: the peer does not accept our certificate ({}); renew it, or check that both belong to one cluster",
                             remote_, failure.detail)
                    : format("{}: TLS: {}", remote_, failure.detail));
}

void Connection::authenticate() {
  Closed why;
  {
    const std::scoped_lock lock(tls_mutex_);
    (SSL_session_reused(tls_.get()) == 1 ? setting_.metrics.resumptions : setting_.metrics.handshakes).add();
    const tls::Certificate certificate(SSL_get1_peer_certificate(tls_.get()));
    auto info = certificate ? tls::certificate_info(certificate.get()) : Result<CertificateInfo>(ErrorCode::denied, "no certificate");
    if (!info.has_value()) {
      why = closed("bad_certificate", ErrorCode::denied, format("{}: {}", remote_, info.error().message));
    } else {
      certificate_ = std::move(info).value();
    }
  }
  const auto& who = certificate_.principal;
  const auto now = setting_.clock.wall();
  if (why.label.empty() && (now < certificate_.validity.not_before || certificate_.validity.not_after <= now)) {
    // Of a resumed session only: a whole handshake has checked it.
    why = closed("expired", ErrorCode::denied, format("{}: the certificate of '{}' has expired; renew it", remote_, who.uri()));
  }
  if (why.label.empty() && who.cluster() != setting_.cluster) {
    why = closed("wrong_cluster", ErrorCode::denied, format("{}: '{}' is not of cluster '{}'", remote_, who.uri(), setting_.cluster));
  }
  if (why.label.empty() && setting_.revocations.revoked(certificate_)) {
    why = closed("revoked", ErrorCode::denied,
                 format("{}: certificate {} of '{}' was revoked; join again for a new one", remote_, certificate_.serial, who.uri()));
  }
  if (why.label.empty() && dialled() && who.link_name() != expected_name.substr(0, expected_name.find('#'))) {
    why = closed("wrong_name", ErrorCode::denied,
                 format("{}: expected '{}' there, found '{}'; correct the address", remote_, expected_name, who.link_name()));
  }
  stage_ = Stage::hello;
  if (!why.label.empty()) return refuse(why);
  owner_.on_authenticated(shared_from_this());
  read_some();  // its Hello may have come with the end of the handshake
}

// --- reading ---

void Connection::resume() {
  if (stage_ != Stage::paused) return;
  stage_ = Stage::open;
  if (!busy_) read_some();
}

bool Connection::deliver() {
  for (;;) {
    if (stage_ == Stage::hello) {
      auto hello = frames_.next_hello();
      if (!hello.has_value()) {
        fail(closed("malformed", ErrorCode::corrupt, format("{}: {}", remote_, hello.error().message)));
        return false;
      }
      if (!hello.value().has_value()) return true;
      stage_ = Stage::paused;
      owner_.on_hello(shared_from_this(), std::move(*hello.value()));
    } else if (stage_ == Stage::open) {
      const auto whole = frames_.next(frame_);
      if (!whole.has_value()) {
        fail(closed("malformed", ErrorCode::corrupt, format("{}: {}", remote_, whole.error().message)));
        return false;
      }
      if (!whole.value()) return true;
      ++received_now_;
      owner_.on_frame(*this, frame_);
    } else {
      return false;
    }
  }
}

void Connection::read_some() {
  if (busy_ || stage_ == Stage::closed) return;
  const auto keep = shared_from_this();
  busy_ = true;
  owner_.on_batch_begin(*this);
  received_now_ = 0;
  std::size_t total = 0;
  std::size_t batch_end = kReadPerBatch;
  Instant turn_end = Instant::max();
  bool wait = false;
  while (deliver()) {
    if (total >= batch_end) {
      batch_end = total + kReadPerBatch;
      if (turn_end == Instant::max()) turn_end = setting_.clock.now() + kTurnTime;
      owner_.on_batch_end(*this);
      owner_.on_batch_begin(*this);
      if (total >= kReadPerTurn || setting_.clock.now() >= turn_end) {
        post_to_io(&Connection::on_readable);
        break;
      }
    }
    const auto space = frames_.space();
    int count = 0;
    bool more = false;
    Closed why;
    {
      const std::scoped_lock lock(tls_mutex_);
      ERR_clear_error();
      count = SSL_read(tls_.get(), space.data(), static_cast<int>(std::min<std::size_t>(space.size(), 1U << 30)));
      if (count > 0) {
        more = SSL_has_pending(tls_.get()) == 1 || static_cast<std::size_t>(count) == space.size();
      } else {
        wait = SSL_get_error(tls_.get(), count) == SSL_ERROR_WANT_READ;
        if (!wait) why = tls_failure(count);
      }
    }
    if (count <= 0) {
      if (!wait) fail(std::move(why));
      break;
    }
    frames_.commit(static_cast<std::size_t>(count));
    total += static_cast<std::size_t>(count);
    if (!more) {
      wait = deliver();
      break;
    }
  }
  if (received_now_ != 0) {
    received_.fetch_add(received_now_, std::memory_order_relaxed);
    setting_.metrics.messages_in[static_cast<std::size_t>(lane)]->add(received_now_);
    direct_.store(kDirectAfterRead, std::memory_order_relaxed);
  }
  if (total != 0) setting_.metrics.bytes_in.add(total);
  owner_.on_batch_end(*this);
  busy_ = false;
  flush_now();
  if (wait) wait_readable();  // last, for it is a system call too; the kernel may hold more: then the wait ends at once
}

// --- writing ---

void Connection::Outbox::add(ByteView envelope, const Message& body) {
  const auto bytes = body.bytes();
  run.insert(run.end(), envelope.begin(), envelope.end());
  if (bytes.size() > kSmallBody) {
    large.push_back({run.size(), body});
  } else {
    run.insert(run.end(), bytes.begin(), bytes.end());
  }
  ++messages;
}

void Connection::Outbox::clear() {
  run.clear();
  if (run.capacity() > kRunKept) run.shrink_to_fit();
  large.clear();
  messages = 0;
}

Status Connection::send(ByteView envelope, const Message& body) {
  const std::size_t size = envelope.size() + body.bytes().size();
  bool writer = false;
  bool record_full = false;
  {
    const std::scoped_lock lock(queue_mutex_);
    if (shut_) return error(ErrorCode::unreachable, format("{}: connection is closed", remote_));
    const std::size_t queued = queued_bytes_.load(std::memory_order_relaxed);
    if (queued != 0 && queued + size > setting_.send_window) {
      setting_.metrics.window_full[static_cast<std::size_t>(lane)]->add();
      return error(ErrorCode::overloaded, format("{}: {} bytes wait on the {} lane", remote_, queued, to_string(lane)));
    }
    queued_bytes_.fetch_add(size, std::memory_order_relaxed);
    queue_.add(envelope, body);
    record_full = queue_.run.size() >= kRecordFull || !queue_.large.empty();
    sent_.store(sent_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    if (!writing_) writing_ = writer = true;
  }
  if (on_io_thread()) {
    // What callbacks send waits for the end of read_some(), but not longer than until it fills a record: the peer may work meanwhile.
    if (writer) flush_deferred_ = true;
    if (!busy_ || record_full) flush_now();
  } else if (writer) {
    if (direct_.fetch_sub(1, std::memory_order_relaxed) > 0) {
      flush();
    } else {
      post_to_io(&Connection::flush);
    }
  }
  return {};
}

void Connection::flush_now() {
  if (std::exchange(flush_deferred_, false)) flush();
}

void Connection::kick() {
  {
    const std::scoped_lock lock(queue_mutex_);
    if (writing_ || shut_) return;
    writing_ = true;
  }
  flush();
}

void Connection::flush() {
  const bool guest = !on_io_thread();
  for (int round = 0;; ++round) {
    if (batch_done()) {
      drop_batch();
      const std::scoped_lock lock(queue_mutex_);
      if (queue_.messages == 0 && round > 0) {
        writing_ = false;
        return;
      }
      std::swap(batch_, queue_);
      setting_.metrics.messages_out[static_cast<std::size_t>(lane)]->add(batch_.messages);
    }
    if (round == (guest ? kRoundsAsGuest : kRoundsPerTurn)) return post_to_io(&Connection::flush);
    // One message at a time and nobody faster: the next sender may as well write by itself.
    if (!guest && batch_.messages == 1 && direct_.load(std::memory_order_relaxed) < 1) direct_.store(1, std::memory_order_relaxed);
    switch (write_batch()) {
      case Wrote::all:
        break;
      case Wrote::turn:
        return post_to_io(&Connection::flush);
      case Wrote::blocked:
        if (guest) return post_to_io(&Connection::wait_writable);
        return wait_writable();
      case Wrote::broken:
        drop_batch();
        // The reader notices the broken socket too, unless it is paused: say it there. The role is kept: nothing is written any more.
        return post_to_io(&Connection::on_broken);
    }
  }
}

void Connection::on_broken() { fail(closed("closed", ErrorCode::unreachable, format("{}: connection lost while writing", remote_))); }

Connection::Wrote Connection::push_cipher() {
  while (cipher_begin_ < cipher_.size()) {
    const auto count = ::send(fd_, cipher_.data() + cipher_begin_, cipher_.size() - cipher_begin_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno == EAGAIN || errno == EWOULDBLOCK ? Wrote::blocked : Wrote::broken;
    setting_.metrics.writes.add();
    cipher_begin_ += static_cast<std::size_t>(count);
  }
  cipher_.clear();
  cipher_begin_ = 0;
  return Wrote::all;
}

bool Connection::encrypt(ByteView bytes) {
  while (!bytes.empty()) {
    ERR_clear_error();
    const int count = SSL_write(tls_.get(), bytes.data(), static_cast<int>(std::min<std::size_t>(bytes.size(), 1U << 30)));
    if (count <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return true;
}

void Connection::drop_batch() {
  batch_.clear();
  run_done_ = large_done_ = body_done_ = 0;
}

Connection::Wrote Connection::write_batch() {
  const std::scoped_lock lock(tls_mutex_);
  for (std::size_t total = 0;;) {
    if (dead_) return Wrote::broken;
    if (const auto wrote = push_cipher(); wrote != Wrote::all) return wrote;
    if (batch_done()) return Wrote::all;
    if (total >= kWritePerTurn) return Wrote::turn;
    const bool body_waits = large_done_ < batch_.large.size();
    const std::size_t until = body_waits ? batch_.large[large_done_].at : batch_.run.size();
    const auto run = ByteView(batch_.run).subspan(run_done_, std::min(until - run_done_, kCoalesced));
    if (!encrypt(run)) return Wrote::broken;
    run_done_ += run.size();
    std::size_t bytes = run.size();
    if (body_waits && run_done_ == until) {
      auto& body = batch_.large[large_done_].body;
      const auto rest = body.bytes().subspan(body_done_);
      const auto piece = rest.first(std::min(rest.size(), kLargePiece));
      if (!encrypt(piece)) return Wrote::broken;
      bytes += piece.size();
      body_done_ += piece.size();
      if (piece.size() == rest.size()) {
        body = Message();
        body_done_ = 0;
        ++large_done_;
      }
    }
    total += bytes;
    queued_bytes_.fetch_sub(bytes, std::memory_order_relaxed);
    setting_.metrics.bytes_out.add(bytes);
  }
}

LaneStatus Connection::status() const {
  return {queued_bytes_.load(std::memory_order_relaxed), sent_.load(std::memory_order_relaxed), received_.load(std::memory_order_relaxed)};
}

}  // namespace falaj::net
