#include "runtime/net/bare_tls.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <cstring>

#include "runtime/base/thread.hpp"
#include "runtime/net/descriptor.hpp"
#include "runtime/net/tls.hpp"

namespace falaj::net {
namespace {

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// What a client asks for, before its bytes.
struct Order {
  std::uint64_t echo = 0;
  std::uint64_t bytes = 0;
  std::uint64_t count = 0;
};

Status write_all(SSL* session, const void* from, std::size_t size) {
  const auto* at = static_cast<const char*>(from);
  while (size > 0) {
    std::size_t done = 0;
    if (SSL_write_ex(session, at, size, &done) != 1) return tls::error_of(ErrorCode::unreachable, "TLS: cannot write");
    at += done;
    size -= done;
  }
  return {};
}

Status read_all(SSL* session, void* into, std::size_t size) {
  auto* at = static_cast<char*>(into);
  while (size > 0) {
    std::size_t done = 0;
    if (SSL_read_ex(session, at, size, &done) != 1) return tls::error_of(ErrorCode::unreachable, "TLS: cannot read");
    at += done;
    size -= done;
  }
  return {};
}

Result<tls::Session> shake_hands(SSL_CTX* context, tls::Side side, int fd, WallTime now) {
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  FALAJ_ASSIGN(auto session, tls::make_session(context, side, now));
  SSL_set_fd(session.get(), fd);
  if (SSL_do_handshake(session.get()) != 1) return error(ErrorCode::denied, "TLS: " + tls::handshake_failure(session.get()).detail);
  return session;
}

}  // namespace

// ---- the server ------------------------------------------------------------------------------------------------------------------

struct BareTlsServer::State {
  const Clock& clock;
  Descriptor listener;
  std::uint16_t port = 0;
  std::shared_ptr<SSL_CTX> context;
  Thread thread;

  State(const Clock& c, int fd) : clock(c), listener(fd) {}

  void run() const {
    for (;;) {
      const Descriptor peer(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (peer.get() < 0) return;  // the listener was shut down
      static_cast<void>(serve(peer.get()));
    }
  }

  Status serve(int fd) const {
    FALAJ_ASSIGN(const auto session, shake_hands(context.get(), tls::Side::server, fd, clock.wall()));
    std::vector<char> buffer;
    for (;;) {
      Order order;
      FALAJ_TRY(read_all(session.get(), &order, sizeof order));
      buffer.resize(order.bytes);
      for (std::uint64_t i = 0; i < order.count; ++i) {
        FALAJ_TRY(read_all(session.get(), buffer.data(), buffer.size()));
        if (order.echo != 0) FALAJ_TRY(write_all(session.get(), buffer.data(), buffer.size()));
      }
      if (order.echo == 0) FALAJ_TRY(write_all(session.get(), &order.count, sizeof order.count));
    }
  }
};

BareTlsServer::BareTlsServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

BareTlsServer::~BareTlsServer() {
  ::shutdown(state_->listener.get(), SHUT_RDWR);
  state_->thread.join();
}

Result<std::unique_ptr<BareTlsServer>> BareTlsServer::start(const Identity& identity, const Clock& clock) {
  auto state = std::make_unique<State>(clock, ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  FALAJ_ASSIGN(state->context, tls::make_context(identity, tls::PeerCertificate::required));
  auto address = loopback(0);
  socklen_t size = sizeof address;
  if (::bind(state->listener.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(state->listener.get(), 4) != 0 ||
      ::getsockname(state->listener.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return failed("TLS: no free port on 127.0.0.1");
  state->port = ntohs(address.sin_port);
  state->thread = Thread("bare-tls", [s = state.get()] { s->run(); });
  return std::unique_ptr<BareTlsServer>(new BareTlsServer(std::move(state)));
}

std::uint16_t BareTlsServer::port() const { return state_->port; }

// ---- the client ------------------------------------------------------------------------------------------------------------------

struct BareTlsClient::State {
  const Clock& clock;
  Descriptor socket;
  std::shared_ptr<SSL_CTX> context;
  tls::Session session;

  State(const Clock& c, int fd) : clock(c), socket(fd) {}
};

BareTlsClient::BareTlsClient(std::unique_ptr<State> state) : state_(std::move(state)) {}
BareTlsClient::~BareTlsClient() = default;

Result<std::unique_ptr<BareTlsClient>> BareTlsClient::connect(std::uint16_t port, const Identity& identity, const Clock& clock) {
  auto state = std::make_unique<State>(clock, ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  FALAJ_ASSIGN(state->context, tls::make_context(identity, tls::PeerCertificate::required));
  auto address = loopback(port);
  if (::connect(state->socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return error(ErrorCode::unreachable, "TLS: nobody listens there");
  FALAJ_ASSIGN(state->session, shake_hands(state->context.get(), tls::Side::client, state->socket.get(), clock.wall()));
  return std::unique_ptr<BareTlsClient>(new BareTlsClient(std::move(state)));
}

Status BareTlsClient::echo(std::size_t bytes, std::uint64_t count, std::vector<double>& us) {
  const Order order{1, bytes, count};
  FALAJ_TRY(write_all(state_->session.get(), &order, sizeof order));
  std::vector<char> buffer(bytes, 'x');
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto begin = state_->clock.now();
    FALAJ_TRY(write_all(state_->session.get(), buffer.data(), buffer.size()));
    FALAJ_TRY(read_all(state_->session.get(), buffer.data(), buffer.size()));
    us.push_back(static_cast<double>((state_->clock.now() - begin).count()) * 1e-3);
  }
  return {};
}

Status BareTlsClient::haul(std::size_t bytes, std::uint64_t count) {
  const Order order{0, bytes, count};
  FALAJ_TRY(write_all(state_->session.get(), &order, sizeof order));
  const std::vector<char> buffer(bytes, 'x');
  for (std::uint64_t i = 0; i < count; ++i) FALAJ_TRY(write_all(state_->session.get(), buffer.data(), buffer.size()));
  std::uint64_t read = 0;
  return read_all(state_->session.get(), &read, sizeof read);
}

}  // namespace falaj::net
