#include "runtime/net/http.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>
#include <zlib.h>

#include <latch>

#include "runtime/base/thread.hpp"
#include "runtime/net/http_client.hpp"
#include "tests/net/harness.hpp"

namespace falaj::net::testing {
namespace {

// A blocking client that writes what it is told and reads one response at a time.
class RawClient {
 public:
  explicit RawClient(std::uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval limit{20, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  }
  ~RawClient() { ::close(fd_); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  void write(std::string_view text) const {
    while (!text.empty()) {
      const auto count = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
      if (count <= 0) return;
      text.remove_prefix(static_cast<std::size_t>(count));
    }
  }
  // Head and body of the next response; "" when the connection ended before it.
  std::string read(bool no_body = false) {
    std::size_t end = 0;
    while ((end = pending_.find("\r\n\r\n")) == std::string::npos) {
      if (!more()) return {};
    }
    std::size_t length = 0;
    const auto field = pending_.find("Content-Length: ");
    if (field < end && !no_body) length = std::stoul(pending_.substr(field + 16));
    while (pending_.size() < end + 4 + length) {
      if (!more()) return {};
    }
    auto response = pending_.substr(0, end + 4 + length);
    pending_.erase(0, response.size());
    return response;
  }
  bool ended() {
    while (more()) {
    }
    return over_;
  }

 private:
  bool more() {
    char buffer[16384];
    const auto count = ::recv(fd_, buffer, sizeof buffer, 0);
    if (count > 0) pending_.append(buffer, static_cast<std::size_t>(count));
    if (count == 0 || (count < 0 && errno == ECONNRESET)) over_ = true;
    return count > 0;
  }
  int fd_;
  std::string pending_;
  bool over_ = false;
};

struct Server {
  explicit Server(const std::function<void(HttpOptions&)>& change = {}, HttpHandler handler = {}) {
    HttpOptions options;
    if (change) change(options);
    if (!handler) {
      handler = [](HttpRequest request, HttpResponder responder) {
        responder.respond(
            HttpResponse::text(200, format("{} {} {}|{}", request.method, request.path, request.query, as_text(request.body))));
      };
    }
    server = HttpServer::create(std::move(options), clock, registry, std::move(handler)).value();
  }
  SystemClock clock;
  metrics::Registry registry;
  std::unique_ptr<HttpServer> server;
};

std::string get(std::string_view target) { return format("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", target); }
std::string post(std::string_view target, std::string_view body, std::string_view headers = "") {
  return format("POST {} HTTP/1.1\r\nHost: x\r\n{}Content-Length: {}\r\n\r\n{}", target, headers, body.size(), body);
}
std::string body_of(const std::string& response) { return response.substr(std::min(response.size(), response.find("\r\n\r\n") + 4)); }
std::string status_of(const std::string& response) { return response.substr(0, 12); }

std::string deflated(std::string_view text, int window) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, window, 8, Z_DEFAULT_STRATEGY);
  std::string out(compressBound(text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(out.size() - stream.avail_out);
  deflateEnd(&stream);
  return out;
}

TEST(Http, KeepsConnectionsAliveAndAnswersPipelinedRequestsInOrder) {
  const Server s;
  RawClient client(s.server->port());
  for (int i = 0; i < 3; ++i) {
    client.write(get(format("/a%20b/{}?x=1", i)));
    const auto response = client.read();
    EXPECT_EQ(status_of(response), "HTTP/1.1 200");
    EXPECT_EQ(body_of(response), format("GET /a b/{} x=1|", i));
  }
  std::string many;
  for (int i = 0; i < 500; ++i) many += i % 2 == 0 ? get(format("/{}", i)) : post(format("/{}", i), format("body {}", i));
  client.write(many);
  for (int i = 0; i < 500; ++i) EXPECT_EQ(body_of(client.read()), i % 2 == 0 ? format("GET /{} |", i) : format("POST /{} |body {}", i, i));
}

TEST(Http, AnswersLaterFromAnotherThreadInOrder) {
  BlockingPool pool("answers", 2, 64);
  const Server s({}, [&](HttpRequest request, HttpResponder responder) {
    auto later = [path = request.path, r = std::move(responder)]() mutable { r.respond(HttpResponse::text(200, path)); };
    ASSERT_TRUE(pool.submit(std::move(later)));
  });
  RawClient client(s.server->port());
  std::string many;
  for (int i = 0; i < 50; ++i) many += get(format("/{}", i));
  client.write(many);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(body_of(client.read()), format("/{}", i));
}

TEST(Http, ADroppedResponderAnswers500AndALateOneIsHarmless) {
  HttpResponder kept;
  std::latch taken(1);
  {
    const Server s({}, [&](HttpRequest request, HttpResponder responder) {
      if (request.path == "/keep") {
        kept = std::move(responder);
        taken.count_down();
      }
    });
    RawClient client(s.server->port());
    client.write(get("/drop"));
    EXPECT_EQ(status_of(client.read()), "HTTP/1.1 500");
    client.write(get("/keep"));
    taken.wait();
    s.server->stop(10ms);
    EXPECT_TRUE(client.ended());
  }
  kept.respond(HttpResponse::text(200, "too late"));
}

TEST(Http, BoundsHeadersAndBodies) {
  const Server s([](HttpOptions& o) {
    o.header_bytes_max = 1000;
    o.body_bytes_max = 2000;
  });
  const auto port = s.server->port();
  {
    RawClient client(port);
    client.write(post("/", std::string(2000, 'x')));
    EXPECT_EQ(status_of(client.read()), "HTTP/1.1 200");
    client.write("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2001\r\n\r\n");
    EXPECT_EQ(status_of(client.read()), "HTTP/1.1 413");
    EXPECT_TRUE(client.ended());
  }
  {
    RawClient client(port);
    client.write("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 3; ++i) client.write("3e8\r\n" + std::string(1000, 'x') + "\r\n");
    EXPECT_EQ(status_of(client.read()), "HTTP/1.1 413");
    EXPECT_TRUE(client.ended());
  }
  {
    RawClient client(port);
    client.write("GET / HTTP/1.1\r\nHost: x\r\nLong: " + std::string(2000, 'y') + "\r\n\r\n");
    EXPECT_EQ(status_of(client.read()), "HTTP/1.1 431");
    EXPECT_TRUE(client.ended());
  }
  {
    RawClient client(port);
    client.write("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000000\r\n\r\n");
    EXPECT_EQ(status_of(client.read()), "HTTP/1.1 413");
  }
}

TEST(Http, BoundsTheBodiesOfAllConnectionsTogether) {
  std::latch held(1);
  std::latch enough(1);
  Thread answers;
  const Server s(
      [](HttpOptions& o) {
        o.body_bytes_max = 1U << 20;
        o.bodies_bytes_max = 1500U << 10;
      },
      [&](HttpRequest request, HttpResponder responder) {
        if (request.path != "/held") return responder.respond(HttpResponse::text(200, std::to_string(request.body.size())));
        answers = Thread("answers", [&, kept = std::move(responder)]() mutable {
          enough.wait();
          kept.respond(HttpResponse::text(200, "at last"));
        });
        held.count_down();
      });
  const auto port = s.server->port();
  RawClient first(port);
  first.write(post("/held", std::string(1U << 20, 'x')));
  held.wait();
  {
    RawClient other(port);
    other.write(post("/", std::string(900U << 10, 'y')));
    const auto answer = other.read();
    EXPECT_EQ(status_of(answer), "HTTP/1.1 503");
    EXPECT_NE(body_of(answer).find("send it again later"), std::string::npos) << answer;
    EXPECT_TRUE(other.ended());
  }
  RawClient small(port);
  small.write(post("/", "still served"));
  EXPECT_EQ(body_of(small.read()), "12");
  enough.count_down();
  EXPECT_EQ(body_of(first.read()), "at last");
  RawClient again(port);  // what was answered is held no more
  again.write(post("/", std::string(1U << 20, 'z')));
  EXPECT_EQ(status_of(again.read()), "HTTP/1.1 200");
  answers.join();
}

TEST(Http, AClientThatReadsOnlyAfterSendingAllSeesWhyItWasRefused) {
  const Server s([](HttpOptions& o) { o.body_bytes_max = 1U << 20; });
  RawClient client(s.server->port());
  client.write("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n" + std::string(4'000'000, 'x'));
  const auto answer = client.read();
  EXPECT_EQ(status_of(answer), "HTTP/1.1 413");
  EXPECT_NE(body_of(answer).find("more than 1048576 bytes; send it in parts"), std::string::npos) << answer;
  EXPECT_TRUE(client.ended());
}

TEST(Http, RefusesWhatIsNoRequest) {
  const Server s;
  for (const std::string& bad :
       {std::string("nonsense\r\n\r\n"), std::string("GET /\r\n\r\n"), std::string("GET / HTTP/9.9\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\n\r\n"), std::string("GET x HTTP/1.1\r\nHost: x\r\n\r\n"),
        std::string("GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n"), std::string("GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n"),
        std::string("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        std::string("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n"),
        std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11)}) {
    RawClient client(s.server->port());
    client.write(bad);
    const auto response = client.read();
    EXPECT_EQ(status_of(response), "HTTP/1.1 400") << bad;
  }
  RawClient client(s.server->port());
  client.write(get("/still/here"));
  EXPECT_EQ(status_of(client.read()), "HTTP/1.1 200");
}

TEST(Http, InflatesWithinTheBound) {
  const Server s([](HttpOptions& o) { o.body_bytes_max = 100'000; });
  const std::string text(50'000, 'z');
  RawClient client(s.server->port());
  for (const auto& [encoding, window] :
       {std::pair("gzip", 31), std::pair("deflate", 15), std::pair("deflate", -15), std::pair("GZIP", 31)}) {
    client.write(post("/", deflated(text, window), format("Content-Encoding: {}\r\n", encoding)));
    EXPECT_EQ(body_of(client.read()), "POST / |" + text) << encoding << window;
  }
  client.write(post("/", deflated(std::string(1'000'000, 'b'), 31), "Content-Encoding: gzip\r\n"));
  EXPECT_EQ(status_of(client.read()), "HTTP/1.1 413");
  client.write(post("/", deflated(text, 31).substr(0, 40), "Content-Encoding: gzip\r\n"));
  EXPECT_EQ(status_of(client.read()), "HTTP/1.1 400");
  client.write(post("/", "not gzip", "Content-Encoding: gzip\r\n"));
  EXPECT_EQ(status_of(client.read()), "HTTP/1.1 400");
  client.write(post("/", "x", "Content-Encoding: br\r\n"));
  EXPECT_EQ(status_of(client.read()), "HTTP/1.1 415");
}

TEST(Http, SaysContinueAndHonoursConnectionAndHead) {
  const Server s;
  {
    RawClient client(s.server->port());
    client.write("POST /e HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    EXPECT_EQ(status_of(client.read()), "HTTP/1.1 100");
    client.write("abcd");
    EXPECT_EQ(body_of(client.read()), "POST /e |abcd");
    client.write("HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n");
    const auto head = client.read(true);
    EXPECT_NE(head.find("Content-Length: 9"), std::string::npos) << head;
    client.write("GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    EXPECT_NE(client.read().find("Connection: close"), std::string::npos);
    EXPECT_TRUE(client.ended());
  }
  RawClient old(s.server->port());
  old.write("GET /old HTTP/1.0\r\n\r\n");
  EXPECT_EQ(body_of(old.read()), "GET /old |");
  EXPECT_TRUE(old.ended());
}

TEST(Http, ClosesIdleSlowAndSurplusConnections) {
  const Server s([](HttpOptions& o) {
    o.idle = 300ms;
    o.connections_max = 3;
  });
  {
    RawClient idle(s.server->port());
    RawClient slow(s.server->port());
    slow.write("GET / HTT");
    RawClient good(s.server->port());
    good.write(get("/"));
    EXPECT_EQ(status_of(good.read()), "HTTP/1.1 200");
    RawClient surplus(s.server->port());
    EXPECT_TRUE(surplus.ended());
    EXPECT_TRUE(idle.ended());
    EXPECT_TRUE(slow.ended());
  }
  RawClient again(s.server->port());
  again.write(get("/"));
  EXPECT_EQ(status_of(again.read()), "HTTP/1.1 200");
}

TEST(Http, LargeBodiesBothWays) {
  const Server s([](HttpOptions& o) { o.io_threads = 2; });
  std::string large(20 << 20, '.');
  for (std::size_t i = 0; i < large.size(); i += 1013) large[i] = static_cast<char>('a' + i % 26);
  RawClient client(s.server->port());
  Thread writer("writer", [&] { client.write(post("/l", large)); });
  const auto body = body_of(client.read());
  EXPECT_TRUE(body == "POST /l |" + large);
}

TEST(Http, FinishesWhatIsInProgressWhenStopped) {
  std::latch asked(1);
  HttpResponder kept;
  const Server s({}, [&](HttpRequest, HttpResponder responder) {
    kept = std::move(responder);
    asked.count_down();
  });
  RawClient client(s.server->port());
  client.write(get("/"));
  asked.wait();
  Thread stopper("stopper", [&] { s.server->stop(10s); });
  kept.respond(HttpResponse::text(200, "done"));
  EXPECT_EQ(body_of(client.read()), "done");
  EXPECT_TRUE(client.ended());
}

TEST(Http, IsInClearOnLoopbackOnly) {
  SystemClock clock;
  metrics::Registry registry;
  HttpOptions options;
  options.host = "0.0.0.0";
  const auto refused = HttpServer::create(options, clock, registry, [](HttpRequest, HttpResponder) {});
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::invalid);
  const Server s;
  options.host = "127.0.0.1";
  options.port = s.server->port();
  EXPECT_EQ(HttpServer::create(options, clock, registry, [](HttpRequest, HttpResponder) {}).error().code, ErrorCode::conflict);
}

TEST(Http, KnowsTheCallerByCertificateOrToken) {
  const TestCluster cluster;
  const Server s([&](HttpOptions& o) { o.identity = cluster.node("gateway"); },
                 [](HttpRequest request, HttpResponder responder) {
                   responder.respond(HttpResponse::text(
                       200, format("{}|{}", request.principal ? request.principal->uri() : "nobody", request.bearer_token())));
                 });
  const auto ask = [&](RawPeer& peer) {
    peer.write(as_bytes("GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer  abc.def \r\nConnection: close\r\n\r\n"));
    return body_of(peer.read_all());
  };
  RawPeer person(s.server->port(), cluster.identity(SpiffeId::person("oasis", "aisha").value()));
  EXPECT_EQ(ask(person), "spiffe://oasis/person/aisha|abc.def");
  RawPeer anonymous(s.server->port(), Identity{});
  ASSERT_TRUE(anonymous.connected());
  EXPECT_EQ(ask(anonymous), "nobody|abc.def");
  RawPeer foreign(s.server->port(), TestCluster("oasis").node("x"));
  EXPECT_EQ(ask(foreign), "");
  RawClient clear(s.server->port());
  clear.write(get("/"));
  EXPECT_TRUE(clear.ended());
}

TEST(HttpClient, KnowsTheServerByItsAuthority) {
  const TestCluster cluster;
  const Server clear;
  const Server s([&](HttpOptions& o) { o.identity = cluster.node("gateway"); },
                 [](HttpRequest request, HttpResponder responder) {
                   responder.respond(HttpResponse::text(
                       201, format("{} {} {}", request.method, request.principal ? request.principal->path() : "", as_text(request.body))));
                 });
  SystemClock clock;
  HttpCall call;
  call.host = "127.0.0.1";
  call.port = clear.server->port();
  EXPECT_EQ(as_text(http_call(call, clock)->body), "GET / |");
  call.port = s.server->port();
  call.method = "POST";
  call.body = to_bytes("hello");
  call.trust = HttpTrust{"oasis", {}, cluster.authority.fingerprint(), {}};
  const auto answer = http_call(call, clock);
  ASSERT_TRUE(answer.has_value()) << answer.error().message;
  EXPECT_EQ(answer->status, 201U);
  EXPECT_EQ(as_text(answer->body), "POST  hello");
  const auto own = cluster.identity(SpiffeId::person("oasis", "aisha").value());
  call.trust = HttpTrust{"oasis", cluster.authority.certificate_pem(), {}, Credentials{own.certificate_pem, own.key_pem}};
  EXPECT_EQ(as_text(http_call(call, clock)->body), "POST person/aisha hello");
  const TestCluster foreign("oasis");
  call.trust = HttpTrust{"oasis", {}, foreign.authority.fingerprint(), {}};
  EXPECT_EQ(http_call(call, clock).error().code, ErrorCode::denied);
  call.trust = HttpTrust{"oasis", foreign.authority.certificate_pem(), {}, {}};
  EXPECT_EQ(http_call(call, clock).error().code, ErrorCode::denied);
  call.trust = HttpTrust{"mirage", cluster.authority.certificate_pem(), {}, {}};
  EXPECT_EQ(http_call(call, clock).error().code, ErrorCode::denied);
  call.port = 1;
  EXPECT_EQ(http_call(call, clock).error().code, ErrorCode::unreachable);
}

TEST(HttpClient, DoesNotWaitForEver) {
  const Server s(
      {}, [kept = std::vector<HttpResponder>()](HttpRequest, HttpResponder responder) mutable { kept.push_back(std::move(responder)); });
  HttpCall call;
  call.host = "127.0.0.1";
  call.port = s.server->port();
  call.timeout = 50ms;
  EXPECT_EQ(http_call(call, s.clock).error().code, ErrorCode::deadline);
  s.server->stop(10ms);
}

TEST(HttpRequest, ReadsQueriesAndTokens) {
  HttpRequest request;
  request.query = "a=1&b=x%20y+z&c&a=2&%64=4";
  EXPECT_EQ(request.query_value("a"), "1");
  EXPECT_EQ(request.query_value("b"), "x y z");
  EXPECT_EQ(request.query_value("c"), "");
  EXPECT_EQ(request.query_value("d"), "4");
  EXPECT_EQ(request.query_value("e"), std::nullopt);
  request.headers = {{"authorization", "Basic abc"}};
  EXPECT_EQ(request.bearer_token(), "");
  request.headers = {{"AUTHORIZATION", "bearer t0k"}};
  EXPECT_EQ(request.bearer_token(), "t0k");
}

}  // namespace
}  // namespace falaj::net::testing
