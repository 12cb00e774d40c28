#include "runtime/net/http_client.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include "runtime/base/format.hpp"
#include "runtime/net/tls.hpp"

namespace falaj::net {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using Body = http::vector_body<std::uint8_t>;

// Who answered: the leaf must be signed by the authority, be valid now, and belong to a node of the cluster.
Status check_server(SSL* session, const HttpTrust& trust, WallTime now) {
  const tls::Certificate leaf(SSL_get1_peer_certificate(session));
  if (!leaf) return error(ErrorCode::denied, "the server showed no certificate");
  tls::Certificate authority;
  if (!trust.authority_pem.empty()) {
    FALAJ_ASSIGN(authority, tls::read_certificate(trust.authority_pem));
  } else {
    const auto* chain = SSL_get_peer_cert_chain(session);
    for (int i = 0; chain != nullptr && i < sk_X509_num(chain); ++i) {
      X509* candidate = sk_X509_value(chain, i);
      if (tls::fingerprint(candidate) != trust.authority_fingerprint) continue;
      X509_up_ref(candidate);
      authority.reset(candidate);
    }
  }
  if (!authority) return error(ErrorCode::denied, "the server's authority is not the one in the token; is this the right cluster?");
  const tls::Key key(X509_get_pubkey(authority.get()));
  if (!key || X509_check_ca(authority.get()) == 0 || X509_verify(leaf.get(), key.get()) != 1) {
    return error(ErrorCode::denied, "the server's certificate is not from the cluster's authority");
  }
  FALAJ_ASSIGN(const auto info, tls::certificate_info(leaf.get()));
  if (now < info.validity.not_before || now > info.validity.not_after)
    return error(ErrorCode::denied, format("the certificate of '{}' is not valid now", info.principal.uri()));
  if (info.principal.cluster() != trust.cluster || info.principal.kind() != PrincipalKind::node) {
    return error(ErrorCode::denied, format("'{}' answered where a node of cluster '{}' was expected", info.principal.uri(), trust.cluster));
  }
  return {};
}

Result<tls::Context> client_context(const HttpTrust& trust) {
  tls::Context context(SSL_CTX_new(TLS_client_method()));
  if (!context) return tls::error_of(ErrorCode::failed, "TLS: no context");
  SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_NONE, nullptr);  // check_server() judges, before a byte of the request leaves
  if (trust.own.has_value()) {
    FALAJ_ASSIGN(const auto certificate, tls::read_certificate(trust.own->certificate_pem));
    FALAJ_ASSIGN(const auto key, tls::read_private_key(trust.own->key_pem));
    if (SSL_CTX_use_certificate(context.get(), certificate.get()) != 1 || SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1) {
      return tls::error_of(ErrorCode::invalid, "own certificate and key");
    }
  }
  return context;
}

// Runs one asynchronous step to its end or the deadline.
class Steps {
 public:
  Steps(asio::io_context& io, const HttpCall& call) : io_(io), where_(format("{}:{}", call.host, call.port)), left_(call.timeout) {}
  template <class Start>
  Status operator()(std::string_view what, Start&& start) {
    std::optional<beast::error_code> result;
    std::forward<Start>(start)([&](const beast::error_code& code, auto&&...) { result = code; });
    io_.restart();
    asio::steady_timer late(io_, left_);  // one span for all steps: what a step leaves over is the next one's
    late.async_wait([](const beast::error_code&) {});
    while (!result.has_value() && late.expiry() > asio::steady_timer::clock_type::now()) io_.run_one();
    left_ = late.expiry() - asio::steady_timer::clock_type::now();
    if (!result.has_value()) return error(ErrorCode::deadline, format("{}: {} took too long", where_, what));
    if (*result) return error(ErrorCode::unreachable, format("{}: {}: {}", where_, what, result->message()));
    return {};
  }

 private:
  asio::io_context& io_;
  std::string where_;
  asio::steady_timer::duration left_;
};

template <class Stream>
Result<HttpAnswer> exchange(Stream& stream, const HttpCall& call, Steps& step) {
  http::request<Body> request;
  request.method_string(call.method);
  request.target(call.target);
  request.version(11);
  request.set(http::field::host, format("{}:{}", call.host, call.port));
  request.set(http::field::connection, "close");
  for (const auto& [name, value] : call.headers) request.set(name, value);
  if (!call.body.empty()) request.set(http::field::content_type, call.content_type);
  request.body() = call.body;
  request.prepare_payload();
  FALAJ_TRY(step("sending", [&](auto&& done) { http::async_write(stream, request, done); }));
  beast::flat_buffer buffer;
  http::response_parser<Body> parser;
  parser.body_limit(call.body_bytes_max);
  parser.skip(call.method == "HEAD");
  FALAJ_TRY(step("the answer", [&](auto&& done) { http::async_read(stream, buffer, parser, done); }));
  auto response = parser.release();
  HttpAnswer answer;
  answer.status = response.result_int();
  for (const auto& field : response) answer.headers.emplace_back(field.name_string(), field.value());
  answer.body = std::move(response.body());
  return answer;
}

}  // namespace

Result<HttpAnswer> http_call(const HttpCall& call, const Clock& clock) {
  asio::io_context io(1);
  Steps step(io, call);
  tcp::resolver resolver(io);
  tcp::resolver::results_type found;
  FALAJ_TRY(step("looking up the host", [&](auto&& done) {
    resolver.async_resolve(call.host, std::to_string(call.port),
                           [&found, done](const beast::error_code& code, tcp::resolver::results_type results) {
                             found = std::move(results);
                             done(code);
                           });
  }));
  tcp::socket socket(io);
  FALAJ_TRY(step("connecting", [&](auto&& done) { socket.async_connect(found.begin()->endpoint(), done); }));
  if (!call.trust.has_value()) return exchange(socket, call, step);
  FALAJ_ASSIGN(auto made, client_context(*call.trust));
  asio::ssl::context context(made.release());
  asio::ssl::stream<tcp::socket> stream(std::move(socket), context);
  FALAJ_TRY(step("TLS", [&](auto&& done) { stream.async_handshake(asio::ssl::stream_base::client, done); }));
  FALAJ_TRY(check_server(stream.native_handle(), *call.trust, clock.wall()));
  return exchange(stream, call, step);
}

}  // namespace falaj::net
