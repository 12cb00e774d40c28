#include "runtime/net/http.hpp"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/steady_timer.hpp>

#include "runtime/base/thread.hpp"
#include "runtime/net/http/session.hpp"

namespace falaj::net {

HttpWorker*& this_http_worker() noexcept {
  thread_local HttpWorker* mine = nullptr;
  return mine;
}

namespace {

constexpr auto kSweep = std::chrono::milliseconds(250);

HttpMetrics http_metrics(metrics::Registry& r, const std::string& name) {
  const metrics::Labels labels{{"server", name}};
  HttpMetrics m{r.counter("falaj_http_connections_total", "HTTP connections accepted.", labels),
                r.gauge("falaj_http_connections", "HTTP connections that are open.", labels),
                r.counter("falaj_http_connections_refused_total", "HTTP connections closed at once because there were too many.", labels),
                r.counter("falaj_http_handshake_failures_total", "HTTPS connections whose handshake or certificate failed.", labels),
                r.histogram("falaj_http_request_seconds", "From the last byte of a request to its answer.", labels),
                {}};
  for (std::size_t i = 0; i < m.by_class.size(); ++i) {
    m.by_class[i] = &r.counter("falaj_http_responses_total", "HTTP responses.", {{"server", name}, {"class", format("{}xx", i)}});
  }
  return m;
}

struct RunningWorker : HttpWorker {
  asio::executor_work_guard<asio::io_context::executor_type> work{io.get_executor()};
  asio::steady_timer sweep{io};
  Thread thread;
};

}  // namespace

class HttpServer::State {
 public:
  State(HttpOptions options, const Clock& clock, metrics::Registry& registry, HttpHandler handler)
      : shared{options, clock, http_metrics(registry, options.name), std::move(handler), {}, nullptr, {}, {}} {}

  HttpShared shared;
  std::vector<std::unique_ptr<RunningWorker>> workers;
  std::unique_ptr<tcp::acceptor> acceptor;
  std::unique_ptr<asio::steady_timer> pause;
  std::mutex context_mutex;
  std::shared_ptr<asio::ssl::context> context;  // null: in clear
  std::uint16_t port = 0;
  std::size_t next = 0;
  bool stopped = false;

  Status use_identity(const Identity& identity);
  void accept_next();
  void adopt(tcp::socket socket, RunningWorker& worker);
  void sweep(RunningWorker& worker);
  void stop(Duration grace);
};

Status HttpServer::State::use_identity(const Identity& identity) {
  FALAJ_ASSIGN(const auto own, parse_certificate(identity.certificate_pem));
  FALAJ_ASSIGN(const auto made, tls::make_context(identity, tls::PeerCertificate::optional));
  if (shared.options.require_client_certificate) SSL_CTX_set_verify(made.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_up_ref(made.get());  // Asio's context takes one
  auto taken = std::make_shared<asio::ssl::context>(made.get());
  const std::scoped_lock lock(context_mutex);
  if (shared.cluster.empty()) {
    shared.cluster = own.principal.cluster();
    shared.revocations = std::make_unique<RevocationList>(identity.revocations);
  } else if (shared.cluster != own.principal.cluster()) {
    return invalid(format("certificate of '{}' does not belong to cluster '{}'", own.principal.uri(), shared.cluster));
  }
  context = std::move(taken);
  return {};
}

void HttpServer::State::accept_next() {
  auto& worker = *workers[next++ % workers.size()];
  acceptor->async_accept(worker.io, [this, &worker](const beast::error_code& code, tcp::socket socket) {
    if (code == asio::error::operation_aborted || !acceptor->is_open()) return;
    if (!code) {
      if (&worker == workers.front().get()) {
        adopt(std::move(socket), worker);
      } else {
        asio::post(worker.io, [this, &worker, taken = std::move(socket)]() mutable { adopt(std::move(taken), worker); });
      }
      return accept_next();
    }
    pause->expires_after(std::chrono::milliseconds(100));  // out of descriptors or the like
    pause->async_wait([this](const beast::error_code& cancelled) {
      if (!cancelled && acceptor->is_open()) accept_next();
    });
  });
}

void HttpServer::State::adopt(tcp::socket socket, RunningWorker& worker) {
  if (shared.stopping.load(std::memory_order_relaxed)) return;
  if (shared.open.fetch_add(1) >= shared.options.connections_max) {
    --shared.open;
    shared.metrics.refused.add();
    return;
  }
  shared.metrics.connections.add();
  shared.metrics.open.add(1);
  std::shared_ptr<asio::ssl::context> tls;
  {
    const std::scoped_lock lock(context_mutex);
    tls = context;
  }
  std::shared_ptr<HttpSession> session;
  if (tls) {
    session = std::make_shared<StreamSession<TlsStream>>(TlsStream(std::move(socket), *tls), shared, worker);
  } else {
    session = std::make_shared<StreamSession<TcpStream>>(std::move(socket), shared, worker);
  }
  worker.sessions.insert(session);
  session->start();
}

void HttpServer::State::sweep(RunningWorker& worker) {
  const auto now = shared.clock.now();
  const auto sessions = worker.sessions;  // closing changes it
  for (const auto& session : sessions) {
    if (session->deadline < now) {
      session->close();
    } else if (shared.stopping.load(std::memory_order_relaxed)) {
      session->close_if_idle();
    }
  }
  worker.sweep.expires_after(shared.stopping.load(std::memory_order_relaxed) ? std::chrono::milliseconds(10) : kSweep);
  worker.sweep.async_wait([this, &worker](const beast::error_code& code) {
    if (!code) sweep(worker);
  });
}

void HttpServer::State::stop(Duration grace) {
  if (stopped) return;
  stopped = true;
  shared.stopping = true;
  const auto end = shared.clock.now() + grace;
  for (const auto& worker : workers) {
    asio::post(worker->io, [this, end, w = worker.get()] {
      if (w == workers.front().get()) {
        beast::error_code code;
        if (acceptor) acceptor->close(code);
        if (pause) pause->cancel();
      }
      // Looks every few milliseconds whether the last request is done; the thread ends with it, or with the grace.
      const auto look = std::make_shared<std::function<void()>>();
      const auto timer = std::make_shared<asio::steady_timer>(w->io);
      *look = [this, w, end, timer, weak = std::weak_ptr(look)] {
        const auto sessions = w->sessions;
        for (const auto& session : sessions) session->close_if_idle();
        if (!w->sessions.empty() && shared.clock.now() < end) {
          timer->expires_after(std::chrono::milliseconds(5));
          timer->async_wait([again = weak.lock()](const beast::error_code&) {
            if (again) (*again)();
          });
          return;
        }
        const auto rest = w->sessions;
        for (const auto& session : rest) session->close();
        w->io.stop();
      };
      (*look)();
    });
  }
  for (const auto& worker : workers) {
    worker->thread.join();
    const std::scoped_lock lock(worker->gate->mutex);
    worker->gate->worker = nullptr;
  }
}

HttpServer::HttpServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
HttpServer::~HttpServer() { stop(); }
std::uint16_t HttpServer::port() const noexcept { return state_->port; }
Status HttpServer::reload_identity(const Identity& identity) {
  if (!state_->shared.options.identity.has_value()) return invalid("this server speaks in clear, on loopback");
  return state_->use_identity(identity);
}
void HttpServer::stop(Duration grace) { state_->stop(grace); }

Result<std::unique_ptr<HttpServer>> HttpServer::create(HttpOptions options, const Clock& clock, metrics::Registry& registry,
                                                       HttpHandler handler) {
  beast::error_code code;
  const auto address = asio::ip::make_address(options.host, code);
  if (code) return invalid(format("'{}' is no address to listen on; give an IP address", options.host));
  if (!options.identity.has_value() && !address.is_loopback()) {
    return invalid(format("HTTP in clear is served on loopback only, not on {}: give a certificate, or listen on 127.0.0.1", options.host));
  }
  auto state = std::make_unique<State>(std::move(options), clock, registry, std::move(handler));
  auto& shared = state->shared;
  if (shared.options.identity.has_value()) FALAJ_TRY(state->use_identity(*shared.options.identity));
  for (unsigned i = 0; i < std::max(1U, shared.options.io_threads); ++i) state->workers.push_back(std::make_unique<RunningWorker>());
  state->acceptor = std::make_unique<tcp::acceptor>(state->workers.front()->io);
  state->pause = std::make_unique<asio::steady_timer>(state->workers.front()->io);
  auto& acceptor = *state->acceptor;
  const tcp::endpoint endpoint(address, shared.options.port);
  acceptor.open(endpoint.protocol(), code);
  if (!code) acceptor.set_option(tcp::acceptor::reuse_address(true), code);
  if (!code) acceptor.bind(endpoint, code);
  if (!code) acceptor.listen(asio::socket_base::max_listen_connections, code);
  if (code == asio::error::address_in_use) {
    return error(ErrorCode::conflict,
                 format("{}:{} is in use; choose another port, or 0 for a free one", shared.options.host, shared.options.port));
  }
  if (code) return failed(format("cannot listen on {}:{}: {}", shared.options.host, shared.options.port, code.message()));
  state->port = acceptor.local_endpoint().port();
  state->accept_next();
  for (std::size_t i = 0; i < state->workers.size(); ++i) {
    auto* worker = state->workers[i].get();
    state->sweep(*worker);
    worker->thread = Thread(format("{}-{}", shared.options.name, i), [worker] {
      this_http_worker() = worker;
      worker->io.run();
    });
  }
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(state)));
}

}  // namespace falaj::net
