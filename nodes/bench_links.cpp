// `falaj bench links`: two real processes under TLS 1.3 with certificates made on the spot, actor to actor; and the same bytes over a bare
// blocking TLS connection between the same two processes.
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <sstream>

#include "messages/bench.capnp.h"
#include "nodes/bench.hpp"
#include "nodes/http_load.hpp"
#include "nodes/linked_host.hpp"
#include "nodes/setup.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/process.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/net/bare_tls.hpp"

namespace falaj::nodes {
namespace {

using falaj::Lane;
using messages::Ball;
using messages::Parcel;
using messages::Tally;

constexpr std::string_view kCluster = "bench";
constexpr std::size_t kSmall = 100;
constexpr std::size_t kLarge = 1U << 20;

// Counts parcels; gives one back that wants to be.
class Echo final : public ActorOf<Echo> {
 public:
  static constexpr std::string_view kType = "bench/echo";
  static void handlers(Handlers<Echo>& on) { on.message<Parcel>(&Echo::parcel); }
  void parcel(Context&, Msg<Parcel> m) {
    ++messages_;
    bytes_ += m->getData().size();
    if (!m.wants_reply()) return;
    if (m->getEcho()) {
      m.reply(m.message());
    } else {
      m.reply(Message::build<Tally>(
          [this](Tally::Builder b) {
            b.setMessages(messages_);
            b.setBytes(bytes_);
          },
          4));
    }
  }

 private:
  std::uint64_t messages_ = 0;
  std::uint64_t bytes_ = 0;
};

struct Drive {
  std::size_t width = 1;    // coroutines at once
  std::uint64_t burst = 1;  // messages of each before one of them is waited for
  Lane lane = Lane::normal;
  bool echo = true;  // the payload comes back; otherwise its count
  std::size_t bytes = kSmall;
  std::vector<double>* us = nullptr;  // of each wait
};

// Sends what a Ball says to the echo of the other process.
class Driver final : public ActorOf<Driver> {
 public:
  static constexpr std::string_view kType = "bench/driver";
  static void handlers(Handlers<Driver>& on) { on.message<Ball>(&Driver::drive); }
  explicit Driver(const Drive& plan) : plan_(plan) {
    const std::vector<std::uint8_t> data(plan.bytes, 'x');
    parcel_ = Message::build<Parcel>(
        [&](Parcel::Builder b) {
          b.setEcho(plan.echo);
          b.setData({data.data(), data.size()});
        },
        plan.bytes / 8 + 8);
  }
  void drive(Context& ctx, Msg<Ball> m) {
    const auto total = m->getLeft();
    const auto shared = std::make_shared<Under>(Under{plan_.width, {}, std::move(m)});
    for (std::size_t i = 0; i < plan_.width; ++i) ctx.start(send(ctx, total / plan_.width + (i < total % plan_.width ? 1 : 0), shared));
  }

 private:
  struct Under {
    std::size_t open;
    std::optional<Error> why;
    Msg<Ball> from;
  };

  Task<> send(Context& ctx, std::uint64_t left, std::shared_ptr<Under> under) {
    const auto to = ctx.at(ActorAddress{node_id("b"), {}, {}, "echo"});
    SendOptions options;
    options.lane = plan_.lane;
    SendOptions patient = options;
    patient.timeout = std::chrono::seconds(30);
    while (left > 0 && !under->why) {
      const auto burst = std::min(left, plan_.burst);
      for (std::uint64_t i = 1; i < burst; ++i) ctx.tell(to, parcel_, options);
      const auto begin = ctx.now();
      if (plan_.echo) {
        auto back = co_await ctx.ask<Parcel>(to, parcel_, patient);
        if (!back.has_value()) under->why = std::move(back).error();
      } else {
        auto counted = co_await ctx.ask<Tally>(to, parcel_, patient);
        if (!counted.has_value()) under->why = std::move(counted).error();
      }
      if (plan_.us != nullptr) plan_.us->push_back(static_cast<double>((ctx.now() - begin).count()) * 1e-3);
      left -= burst;
    }
    if (--under->open > 0) co_return;
    if (under->why) co_return under->from.refuse(*under->why);
    under->from.reply(Message::build<Tally>());
  }

  Drive plan_;
  Message parcel_;
};

Result<std::unique_ptr<LinkedHost>> make_side(const ClusterDir& dir, std::string_view name, const Clock& clock) {
  FALAJ_ASSIGN(auto identity, node_identity(dir.node(name)));
  HostOptions options;
  options.node_name = name;
  options.threads = 1;
  return LinkedHost::make(std::string(kCluster), std::move(identity), options, clock);
}

struct Ports {
  std::uint16_t links = 0;
  std::uint16_t bare = 0;
};

// Percentiles of rounds: of each the wanted ones, then the median over rounds.
struct Waits {
  std::vector<double> p50;
  std::vector<double> p99;
  void add(std::vector<double>& us) {
    std::ranges::sort(us);
    p50.push_back(percentile(us, 0.5));
    p99.push_back(percentile(us, 0.99));
    us.clear();
  }
};

class Pair {
 public:
  explicit Pair(const BenchPlan& plan) : plan_(plan) {}
  ~Pair() {
    side_.reset();
    processes_.stop_all(plan_.clock, std::chrono::seconds(2));
    std::error_code none;
    if (!dir_.root.empty()) fs::remove_all(dir_.root, none);
  }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;
  [[nodiscard]] const fs::path& dir() const { return dir_.root; }

  Status start() {
    std::string name = (fs::temp_directory_path() / "falaj-bench.XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) return failed("cannot make a temporary directory");
    dir_.root = name;
    FALAJ_TRY(init_cluster(dir_, std::string(kCluster), plan_.clock));
    for (const auto* node : {"a", "b"}) {
      NodePlan node_plan;
      node_plan.name = node;
      FALAJ_TRY(add_node(dir_, node_plan, plan_.clock));
    }
    ProcessSpec other;
    other.arguments = {self_executable(), "bench", "other-side", "--dir", name};
    FALAJ_TRY(processes_.start(other, [this](ProcessExit) { ended_.open(); }));
    FALAJ_ASSIGN(const auto ports, wait_ports());
    FALAJ_ASSIGN(side_, make_side(dir_, "a", plan_.clock));
    const auto met = std::make_shared<Gate>();
    side_->transport().on_up([met](const net::PeerInfo&) { met->open(); });
    FALAJ_ASSIGN(const auto peer, net::parse_peer_address("b", format("127.0.0.1:{}", ports.links)));
    side_->links().connect(peer);
    if (!met->wait(std::chrono::seconds(30))) return error(ErrorCode::unreachable, "the two processes have not met");
    FALAJ_ASSIGN(const auto identity, node_identity(dir_.node("a")));
    FALAJ_ASSIGN(bare_, net::BareTlsClient::connect(ports.bare, identity, plan_.clock));
    return {};
  }

  Status run(Figures& out) {
    FALAJ_TRY(waits(out));
    FALAJ_ASSIGN(out["link_pipelined"], rated("link_pipelined", {.width = 256}));
    FALAJ_ASSIGN(out["link_one_way"], rated("link_one_way", {.width = 4, .burst = 256, .echo = false}));
    FALAJ_ASSIGN(const auto parcels, rated("link_large (1 MiB parcels)", {.width = 4, .lane = Lane::bulk, .echo = false, .bytes = kLarge}));
    out["link_large"] = parcels * static_cast<double>(kLarge);
    FALAJ_ASSIGN(const auto bare, rate(plan_, "bare TLS (1 MiB parcels)", [this](std::uint64_t n) { return bare_->haul(kLarge, n); }));
    out["bare_tls_large"] = bare * static_cast<double>(kLarge);
    return {};
  }

 private:
  Result<Ports> wait_ports() {
    for (int look = 0; look < 600; ++look) {
      std::ifstream file(dir_.root / "ready");
      Ports ports;
      if (file >> ports.links >> ports.bare) return ports;
      if (ended_.wait(std::chrono::milliseconds(50))) return failed("the other process has ended");
    }
    return error(ErrorCode::deadline, "the other process is not ready");
  }

  Status drive(std::string_view driver, std::uint64_t messages) {
    Gate done;
    Status how;
    SendOptions patient;
    patient.timeout = std::chrono::minutes(5);
    side_->host().ask(side_->host().find(driver), Message::build<Ball>([&](Ball::Builder b) { b.setLeft(messages); }), patient,
                      [&](Result<Message> answer) {
                        if (!answer) how = std::move(answer).error();
                        done.open();
                      });
    return done.wait(std::chrono::minutes(6)) ? how : failed("no answer");
  }

  void spawn(const std::string& name, const Drive& how) {
    ChildSpec spec;
    spec.id = spec.name = name;
    spec.make = [how] { return std::make_unique<Driver>(how); };
    side_->host().spawn(std::move(spec));
  }

  Result<double> rated(const std::string& name, const Drive& how) {
    spawn(name, how);
    return rate(plan_, name, [&](std::uint64_t n) { return drive(name, n); });
  }

  // One in flight. Rounds of ours and of the bare loop take turns, so that both meet the same machine.
  Status waits(Figures& out) {
    std::vector<double> us;
    spawn("link_rtt", {.us = &us});
    auto once = plan_;
    once.rounds = 1;
    FALAJ_ASSIGN(const auto per_second, rate(once, "link_rtt, warming up", [&](std::uint64_t n) { return drive("link_rtt", n); }));
    const auto count = static_cast<std::uint64_t>(std::max(per_second * plan_.seconds, 100.0));
    us.clear();
    Waits links;
    Waits bare;
    for (unsigned round = 0; round < plan_.rounds; ++round) {
      FALAJ_TRY(drive("link_rtt", count));
      links.add(us);
      FALAJ_TRY(bare_->echo(kSmall, count, us));
      bare.add(us);
    }
    out["link_rtt_p50"] = median(links.p50);
    out["link_rtt_p99"] = median(links.p99);
    out["bare_tls_rtt_p50"] = median(bare.p50);
    out["bare_tls_rtt_p99"] = median(bare.p99);
    say(format("link_rtt: p50 {:.1f} us, p99 {:.1f} us; bare TLS: p50 {:.1f} us, p99 {:.1f} us", out["link_rtt_p50"], out["link_rtt_p99"],
               out["bare_tls_rtt_p50"], out["bare_tls_rtt_p99"]));
    return {};
  }

  const BenchPlan& plan_;
  ClusterDir dir_;
  ProcessTable processes_;
  Gate ended_;
  std::unique_ptr<LinkedHost> side_;
  std::unique_ptr<net::BareTlsClient> bare_;
};

}  // namespace

Status serve_bench_links(const std::string& dir) {
  const ClusterDir cluster{dir};
  SystemClock clock;
  FALAJ_ASSIGN(const auto side, make_side(cluster, "b", clock));
  ChildSpec echo;
  echo.id = echo.name = "echo";
  echo.make = [] { return std::make_unique<Echo>(); };
  echo.mailbox.normal = 8192;
  side->host().spawn(std::move(echo));
  FALAJ_ASSIGN(const auto port, side->links().listen("127.0.0.1", 0));
  FALAJ_ASSIGN(const auto identity, node_identity(cluster.node("b")));
  FALAJ_ASSIGN(const auto bare, net::BareTlsServer::start(identity, clock));
  FALAJ_TRY(net::write_private_file(cluster.root / "ready", format("{} {}\n", port, bare->port())));
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT}) sigaddset(&set, number);
  int number = 0;
  sigwait(&set, &number);
  return {};
}

Status bench_links(const BenchPlan& plan) {
  Figures ours;
  Figures erlang;
  Figures caf;
  {
    Pair pair(plan);
    FALAJ_TRY(pair.start());
    FALAJ_TRY(pair.run(ours));
    const auto seconds = format("{}", plan.seconds);
    const auto rounds = std::to_string(plan.rounds);
    const auto keys = pair.dir().string();
    if (plan.beside("erlang")) erlang = run_peer("erlang", {"/bin/sh", peer_program("erlang.sh"), "links", seconds, rounds, keys});
    if (plan.beside("caf")) caf = run_peer("caf", {peer_program("bench_caf"), "links", seconds, rounds, keys});
  }
  print_figures(plan,
                {{"link_rtt_p50", "us"},
                 {"link_rtt_p99", "us"},
                 {"link_pipelined", "round trips/s"},
                 {"link_one_way", "messages/s"},
                 {"link_large", "bytes/s"},
                 {"bare_tls_rtt_p50", "us"},
                 {"bare_tls_rtt_p99", "us"},
                 {"bare_tls_large", "bytes/s"}},
                ours, erlang, caf);
  return {};
}

}  // namespace falaj::nodes
