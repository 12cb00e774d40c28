// One HTTP connection, over TCP or TLS. For http.cpp only.
//
// One request at a time: the next is parsed when the previous was answered, so that answers keep their order and a client
// cannot make us hold more than one body. Everything runs on the connection's IO thread; reply() may come from elsewhere.
#pragma once
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/buffers_range.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/optional.hpp>
#include <mutex>
#include <set>

#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/net/http/inflate.hpp"
#include "runtime/net/http/message.hpp"
#include "runtime/net/tls.hpp"

namespace falaj::net {

namespace asio = boost::asio;
namespace beast = boost::beast;
using tcp = asio::ip::tcp;

// A body into Bytes, growing as it comes: what a client announces is not allocated before it is there.
struct BytesBody {
  using value_type = Bytes;
  class reader {
   public:
    template <bool IsRequest, class Fields>
    reader(beast::http::header<IsRequest, Fields>&, value_type& body) : body_(body) {}
    void init(const boost::optional<std::uint64_t>& length, beast::error_code& code) {
      code = {};
      if (length) body_.reserve(static_cast<std::size_t>(std::min<std::uint64_t>(*length, 1U << 20)));
    }
    template <class Buffers>
    std::size_t put(const Buffers& buffers, beast::error_code& code) {
      code = {};
      std::size_t total = 0;
      for (const asio::const_buffer buffer : beast::buffers_range_ref(buffers)) {
        const auto* data = static_cast<const std::uint8_t*>(buffer.data());
        body_.insert(body_.end(), data, data + buffer.size());
        total += buffer.size();
      }
      return total;
    }
    void finish(beast::error_code& code) { code = {}; }

   private:
    value_type& body_;
  };
};

constexpr std::string_view kTooManyBodies = "too many large bodies at once; send it again later";

struct HttpMetrics {
  metrics::Counter& connections;
  metrics::Gauge& open;
  metrics::Counter& refused;
  metrics::Counter& handshake_failures;
  metrics::Histogram& seconds;
  std::array<metrics::Counter*, 6> by_class;  // 1xx..5xx
};

struct HttpShared {
  HttpOptions options;
  const Clock& clock;
  HttpMetrics metrics;
  HttpHandler handler;
  std::string cluster;  // of our own identity
  std::unique_ptr<RevocationList> revocations;
  std::atomic<std::size_t> open{0};
  std::atomic<std::size_t> body_bytes{0};  // of bodies above kBodyUncounted
  std::atomic<bool> stopping{false};
};

class HttpSession : public std::enable_shared_from_this<HttpSession> {
 public:
  virtual ~HttpSession() = default;
  virtual void start() = 0;
  virtual void answer(HttpResponse response) = 0;
  virtual void close() = 0;
  virtual void close_if_idle() = 0;
  Instant deadline = Instant::max();  // checked by the worker's sweep
};

struct HttpWorker;
HttpWorker*& this_http_worker() noexcept;

// What a responder keeps of the server: it may outlive it.
struct HttpGate {
  std::mutex mutex;
  HttpWorker* worker;  // null once the server has stopped
};

// One IO thread of a server.
struct HttpWorker {
  HttpWorker() : gate(std::make_shared<HttpGate>()) { gate->worker = this; }
  std::shared_ptr<HttpGate> gate;
  asio::io_context io{1};
  std::set<std::shared_ptr<HttpSession>> sessions;
};

class HttpReply final : public HttpResponder::Reply {
 public:
  HttpReply(std::shared_ptr<HttpGate> gate, std::weak_ptr<HttpSession> session) : gate_(std::move(gate)), session_(std::move(session)) {}
  void reply(HttpResponse response) override {
    // A session is touched, and let go, on its own thread only.
    if (this_http_worker() != nullptr && this_http_worker()->gate == gate_) {
      if (const auto session = session_.lock()) session->answer(std::move(response));
      return;
    }
    const std::scoped_lock lock(gate_->mutex);
    if (gate_->worker == nullptr) return;
    asio::post(gate_->worker->io, [weak = session_, taken = std::move(response)]() mutable {
      if (const auto session = weak.lock()) session->answer(std::move(taken));
    });
  }

 private:
  std::shared_ptr<HttpGate> gate_;
  std::weak_ptr<HttpSession> session_;
};

using TcpStream = tcp::socket;
using TlsStream = asio::ssl::stream<tcp::socket>;

template <class Stream>
class StreamSession final : public HttpSession {
 public:
  StreamSession(Stream stream, HttpShared& shared, HttpWorker& worker) : shared_(shared), worker_(worker), stream_(std::move(stream)) {}

  void start() override {
    beast::error_code code;
    auto& socket = beast_socket();
    socket.non_blocking(true, code);
    socket.set_option(tcp::no_delay(true), code);
    const auto remote = socket.remote_endpoint(code);
    if (code) return close();
    remote_ = remote.address().is_v6() ? format("[{}]:{}", remote.address().to_string(), remote.port())
                                       : format("{}:{}", remote.address().to_string(), remote.port());
    loopback_ = remote.address().is_loopback();
    extend_deadline();
    if constexpr (kTls) {
      X509_VERIFY_PARAM_set_time(SSL_get0_param(stream_.native_handle()),
                                 static_cast<std::time_t>(shared_.clock.wall().unix_ns / 1'000'000'000));
      stream_.async_handshake(asio::ssl::stream_base::server, [self = self()](const beast::error_code& failure) {
        if (failure || !self->take_principal()) {
          self->shared_.metrics.handshake_failures.add();
          return self->close();
        }
        self->work();
      });
    } else {
      work();
    }
  }

  void close() override {
    if (closed_) return;
    closed_ = true;
    beast::error_code code;
    beast_socket().close(code);
    shared_.metrics.open.add(-1);
    release_body();
    worker_.sessions.erase(std::static_pointer_cast<HttpSession>(this->shared_from_this()));
    --shared_.open;
  }

  void close_if_idle() override {
    if (!handling_ && !writing_ && !parsing() && !last_) close();
  }

  void answer(HttpResponse response) override {
    if (closed_ || !handling_) return;
    shared_.metrics.by_class[std::min<std::size_t>(response.status / 100, 5)]->add();
    if (parser_) {  // refused before it was whole: the rest of it is not read
      parser_.reset();
    } else {
      shared_.metrics.seconds.record(shared_.clock.now() - started_);
    }
    auto head = response_head(response, shared_.options.server, keep_alive_, http_1_0_, shared_.clock.wall());
    const bool bodiless = head_only_ || response.status == 204 || response.status == 304;
    last_ = !keep_alive_;
    handling_ = false;
    release_body();
    extend_deadline();
    write(std::move(head), bodiless ? Bytes() : std::move(response.body), true);
    work();
  }

 private:
  using Parser = beast::http::request_parser<BytesBody>;
  static constexpr bool kTls = std::is_same_v<Stream, TlsStream>;
  static constexpr std::size_t kReadMin = 4096;
  static constexpr std::size_t kReadMax = 64U << 10;
  static constexpr std::size_t kBodyUncounted = 64U << 10;  // as many as there may be connections are no danger
  static constexpr auto kDrainTime = std::chrono::seconds(5);

  std::shared_ptr<StreamSession> self() { return std::static_pointer_cast<StreamSession>(this->shared_from_this()); }
  tcp::socket& beast_socket() {
    if constexpr (kTls) {
      return stream_.next_layer();
    } else {
      return stream_;
    }
  }
  void extend_deadline() { deadline = shared_.clock.now() + shared_.options.idle; }
  [[nodiscard]] bool parsing() const { return parser_ && parser_->got_some(); }

  bool take_principal() {
    if constexpr (kTls) {
      const tls::Certificate certificate(SSL_get1_peer_certificate(stream_.native_handle()));
      if (!certificate) return !shared_.options.require_client_certificate;
      auto info = tls::certificate_info(certificate.get());
      if (!info.has_value() || info->principal.cluster() != shared_.cluster || revoked(*info)) return false;
      certificate_ = std::move(info).value();
    }
    return true;
  }

  [[nodiscard]] bool revoked(const CertificateInfo& info) const {
    static_cast<void>(shared_.revocations->reload_if_changed());  // a line that cannot be read hides no other; the links complain of it
    return shared_.revocations->revoked(info);
  }

  // Parses what is there, hands over a request that is whole, and goes on with the next when that was answered at once.
  void work() {
    if (working_) return;  // called from answer() inside the handler: the loop below goes on
    working_ = true;
    while (!closed_ && !handling_ && !writing_ && step()) {
    }
    working_ = false;
  }

  // false: waits for bytes, or nothing more will come.
  bool step() {
    if (!parser_) {
      if (last_) {
        drain();
        return false;
      }
      parser_.emplace(shared_.options);
    }
    beast::error_code code;
    if (buffer_.size() != 0) {
      const auto used = parser_->put(buffer_.data(), code);
      buffer_.consume(used);
      if (code == beast::http::error::need_more) code = {};
    }
    if (code) {
      reject(code);
      return true;
    }
    if (!hold_body(parser_->parser.get().body().size())) {
      refuse_early(503, kTooManyBodies);
      return true;
    }
    if (parser_->parser.is_done()) {
      hand_over();
      return true;
    }
    if (parser_->parser.is_header_done() && !parser_->continued) {
      parser_->continued = true;
      const bool asked = beast::iequals(parser_->parser.get()[beast::http::field::expect], "100-continue");
      if (asked && parser_->parser.content_length_remaining().value_or(1) != 0) {
        write("HTTP/1.1 100 Continue\r\n\r\n", {}, false);
        return true;
      }
    }
    read();
    return false;
  }

  void read() {
    // A header has one deadline from its first byte; a body must go on coming.
    if (!parsing() || parser_->parser.is_header_done()) extend_deadline();
    const bool body = parser_->parser.is_header_done();
    stream_.async_read_some(buffer_.prepare(body ? kReadMax : kReadMin), [self = self()](const beast::error_code& code, std::size_t bytes) {
      if (self->closed_) return;
      if (code) return self->close();
      self->buffer_.commit(bytes);
      self->work();
    });
  }

  void reject(const beast::error_code& code) {
    using beast::http::error;
    if (code == error::body_limit)
      return refuse_early(413, format("request: a body of more than {} bytes; send it in parts", shared_.options.body_bytes_max));
    refuse_early(code == error::header_limit ? 431 : 400, format("request: {}", code.message()));
  }

  // Before the request is whole.
  void refuse_early(unsigned status, std::string_view why) {
    head_only_ = http_1_0_ = false;
    begin_answer(false);
    refuse(status, why);
  }

  // Counts what this session holds; false: all sessions together would hold too much.
  bool hold_body(std::size_t bytes) {
    if (bytes <= kBodyUncounted || bytes <= held_) return true;
    const auto more = bytes - held_;
    if (shared_.body_bytes.fetch_add(more, std::memory_order_relaxed) + more > shared_.options.bodies_bytes_max) {
      shared_.body_bytes.fetch_sub(more, std::memory_order_relaxed);
      return false;
    }
    held_ = bytes;
    return true;
  }
  void release_body() { shared_.body_bytes.fetch_sub(std::exchange(held_, 0), std::memory_order_relaxed); }

  void begin_answer(bool keep_alive) {
    handling_ = true;
    keep_alive_ = keep_alive && !shared_.stopping.load(std::memory_order_relaxed);
    deadline = Instant::max();  // what the handler takes is the handler's business
  }

  void hand_over() {
    auto message = parser_->parser.release();
    parser_.reset();
    head_only_ = message.method() == beast::http::verb::head;
    http_1_0_ = message.version() < 11;
    begin_answer(message.keep_alive());
    HttpRequest request;
    request.method = message.method_string();
    request.target = message.target();
    request.headers.reserve(8);
    for (const auto& field : message) request.headers.emplace_back(field.name_string(), field.value());
    request.received = started_ = shared_.clock.now();
    request.remote = remote_;
    request.is_loopback = loopback_;
    if (certificate_) {
      // Connections live long: it may have been revoked since the handshake.
      if (revoked(*certificate_)) return refuse(401, "the certificate was revoked");
      request.principal = certificate_->principal;
    }
    if (const auto split = split_target(request); !split.has_value()) return refuse(400, split.error().message);
    if (!http_1_0_ && message.find(beast::http::field::host) == message.end()) return refuse(400, "header Host is missing");
    auto body = decode_content(message[beast::http::field::content_encoding], std::move(message.body()), shared_.options.body_bytes_max);
    if (!body.has_value()) {
      const auto kind = body.error().code;
      return refuse(kind == ErrorCode::overloaded ? 413 : kind == ErrorCode::unimplemented ? 415 : 400, body.error().message);
    }
    request.body = std::move(body).value();
    if (!hold_body(request.body.size())) return refuse(503, kTooManyBodies);
    HttpResponder responder(std::make_shared<HttpReply>(worker_.gate, this->weak_from_this()));
    try {
      shared_.handler(std::move(request), std::move(responder));
    } catch (const std::exception& e) {  // the responder answers 500 by being dropped
      log::error("http", "handler threw", {{"server", shared_.options.name}, {"what", e.what()}});
    }
  }

  void refuse(unsigned status, std::string_view why) {
    std::string text = "{\"error\":\"";
    for (const char c : why) text += c == '"' || c == '\\' || static_cast<unsigned char>(c) < 0x20 ? '\'' : c;
    answer(HttpResponse::json(status, text + "\"}"));
  }

  void write(std::string head, Bytes body, bool small_is_direct) {
    head_ = std::move(head);
    body_ = std::move(body);
    std::array<asio::const_buffer, 2> buffers{asio::buffer(head_), asio::buffer(body_)};
    std::size_t done = 0;
    if constexpr (!kTls) {
      if (small_is_direct) {
        beast::error_code code;
        done = stream_.write_some(buffers, code);
        if (code && code != asio::error::would_block && code != asio::error::try_again) return close();
        if (done == head_.size() + body_.size()) return;
      }
    }
    writing_ = true;
    const auto skipped = std::min(done, head_.size());
    buffers[0] += skipped;
    buffers[1] += done - skipped;
    asio::async_write(stream_, buffers, [self = self()](const beast::error_code& code, std::size_t) {
      self->writing_ = false;
      if (self->closed_) return;
      if (code) return self->close();
      self->extend_deadline();
      self->work();
    });
  }

  // After the last answer: closing with unread bytes would reset the connection, and the client, which may read only when it has sent
  // everything, would never see the answer.
  void drain() {
    if (drained_ == 0) deadline = shared_.clock.now() + std::min<Duration>(shared_.options.idle, kDrainTime);
    beast::error_code code;
    if (drained_ == 0) beast_socket().shutdown(tcp::socket::shutdown_send, code);
    buffer_.consume(buffer_.size());
    if (drained_ > 4 * shared_.options.body_bytes_max + (1U << 20)) return close();
    beast_socket().async_read_some(buffer_.prepare(kReadMax), [self = self()](const beast::error_code& failure, std::size_t bytes) {
      if (self->closed_) return;
      self->drained_ += bytes + 1;
      if (failure) return self->close();
      self->drain();
    });
  }

  struct Request {
    explicit Request(const HttpOptions& options) {
      parser.header_limit(static_cast<std::uint32_t>(options.header_bytes_max));
      parser.body_limit(options.body_bytes_max);
      parser.eager(true);
    }
    template <class Buffers>
    std::size_t put(const Buffers& buffers, beast::error_code& code) {
      some = true;
      return parser.put(buffers, code);
    }
    [[nodiscard]] bool got_some() const { return some; }
    Parser parser;
    bool some = false;
    bool continued = false;
  };

  HttpShared& shared_;
  HttpWorker& worker_;
  Stream stream_;
  beast::flat_buffer buffer_;
  std::optional<Request> parser_;
  std::string remote_;
  bool loopback_ = false;
  std::optional<CertificateInfo> certificate_;  // of the client
  std::string head_;
  Bytes body_;
  Instant started_;
  bool closed_ = false;
  bool working_ = false;   // inside work()
  bool handling_ = false;  // a request is with the handler
  bool writing_ = false;   // an asynchronous write is under way
  bool keep_alive_ = true;
  bool last_ = false;  // no request is read any more
  bool head_only_ = false;
  bool http_1_0_ = false;
  std::size_t drained_ = 0;
  std::size_t held_ = 0;  // bytes of the body, as counted in shared_.body_bytes
};

}  // namespace falaj::net
