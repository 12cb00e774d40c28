// An HTTP/1.1 server. In clear only when bound to loopback; on any other address TLS 1.3, where a client certificate is asked
// for but not demanded: what a request without one may do is decided above, from its bearer token.
//
// Requests of one connection are handled and answered one after the other, in order. Bounded: header, body (413), inflated
// body, connections, idle time.
//
// Ways to get hurt:
//  - The handler runs on an IO thread: answer at once or hand the HttpResponder on; it may be answered from any thread.
//  - A request's views point into the request: keep it as long as you use them.
//  - A responder that is dropped answers 500.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/base/bytes.hpp"
#include "runtime/base/clock.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/metrics.hpp"
#include "runtime/base/result.hpp"
#include "runtime/net/identity.hpp"

namespace falaj::net {

// "GET", "POST"... as sent. Header names are compared without case.
class HttpRequest {
 public:
  std::string method;
  std::string target;  // as sent
  std::string path;    // percent-decoded part before '?'; always begins with '/'
  std::string query;   // raw part after '?'
  std::vector<std::pair<std::string, std::string>> headers;
  Bytes body;          // decoded when Content-Encoding was gzip or deflate
  std::string remote;  // host:port
  bool is_loopback = false;
  std::optional<SpiffeId> principal;  // of a client certificate of this cluster
  Instant received;                   // when its last byte was there

  [[nodiscard]] std::string_view header(std::string_view name) const noexcept;        // "" when absent; the first of several
  [[nodiscard]] std::optional<std::string> query_value(std::string_view name) const;  // percent-decoded, '+' is a blank
  [[nodiscard]] std::string_view bearer_token() const noexcept;                       // "" when there is none
};

struct HttpResponse {
  unsigned status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;  // not Content-Length, Content-Type, Connection, Date
  Bytes body;

  static HttpResponse json(unsigned status, std::string_view text);
  static HttpResponse text(unsigned status, std::string_view text);
};

// Answers one request, once. Movable, any thread, also after the connection or the server has gone (then nothing happens).
class HttpResponder {
 public:
  HttpResponder() = default;
  HttpResponder(HttpResponder&&) noexcept = default;
  HttpResponder& operator=(HttpResponder&& other) noexcept;
  ~HttpResponder();
  void respond(HttpResponse response);
  [[nodiscard]] explicit operator bool() const noexcept { return reply_ != nullptr; }

  class Reply {  // the connection behind it
   public:
    virtual ~Reply() = default;
    virtual void reply(HttpResponse response) = 0;
  };
  explicit HttpResponder(std::shared_ptr<Reply> reply) : reply_(std::move(reply)) {}

 private:
  std::shared_ptr<Reply> reply_;
};

using HttpHandler = std::move_only_function<void(HttpRequest request, HttpResponder responder)>;

struct HttpOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;            // 0: a free one
  std::optional<Identity> identity;  // given: TLS. `invalid` without one unless host is loopback
  bool require_client_certificate = false;
  unsigned io_threads = 1;
  std::string server = "falaj";  // Server header; empty: none
  std::size_t header_bytes_max = limits::kHttpHeaderBytesMax;
  std::size_t body_bytes_max = limits::kHttpBodyBytesMax;        // also after inflating
  std::size_t bodies_bytes_max = 4 * limits::kHttpBodyBytesMax;  // held for all connections together, until they are answered
  std::size_t connections_max = limits::kHttpConnectionsMax;
  Duration idle = limits::kHttpIdle;  // between bytes of a request, or waiting for the next
  std::string name = "http";          // label of its metrics
};

class HttpServer {
 public:
  // Binds and serves. The handler may be called from io_threads threads at once.
  static Result<std::unique_ptr<HttpServer>> create(HttpOptions options, const Clock& clock, metrics::Registry& registry,
                                                    HttpHandler handler);
  ~HttpServer();  // stop()
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  [[nodiscard]] std::uint16_t port() const noexcept;
  Status reload_identity(const Identity& identity);
  // Accepts no more, lets requests in progress finish for at most `grace`, closes, joins. Idempotent; not from a handler.
  void stop(Duration grace = std::chrono::seconds(2));

 private:
  class State;
  explicit HttpServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace falaj::net
