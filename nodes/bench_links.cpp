// `falaj bench links`: two real processes under TLS 1.3 with certificates made on the spot, actor to actor; and the same bytes over a bare
// blocking TLS connection between the same two processes.
#include <cmath>

#include "nodes/bench_pair.hpp"
#include "nodes/http_load.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

using falaj::Lane;
using messages::Ball;
using messages::Parcel;
using messages::Tally;

constexpr std::size_t kSmall = 100;
constexpr std::size_t kLarge = 1U << 20;

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
  explicit Driver(const Drive& plan) : plan_(plan), parcel_(parcel(plan.bytes, plan.echo)) {}
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
    const auto to = ctx.at(BenchPair::at(kEcho));
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

class Measured {
 public:
  Measured(const BenchPlan& plan, BenchPair& pair) : plan_(plan), pair_(pair) {}

  Status run(Figures& out) {
    FALAJ_TRY(waits(out));
    FALAJ_ASSIGN(out["link_pipelined"], rated("link_pipelined", {.width = 256}));
    FALAJ_ASSIGN(out["link_one_way"], rated("link_one_way", {.width = 4, .burst = 256, .echo = false}));
    FALAJ_ASSIGN(const auto parcels, rated("link_large (1 MiB parcels)", {.width = 4, .lane = Lane::bulk, .echo = false, .bytes = kLarge}));
    out["link_large"] = parcels * static_cast<double>(kLarge);
    FALAJ_ASSIGN(const auto bare,
                 rate(plan_, "bare TLS (1 MiB parcels)", [this](std::uint64_t n) { return pair_.bare().haul(kLarge, n); }));
    out["bare_tls_large"] = bare * static_cast<double>(kLarge);
    return {};
  }

 private:
  void spawn(const std::string& name, const Drive& how) {
    ChildSpec spec;
    spec.id = spec.name = name;
    spec.make = [how] { return std::make_unique<Driver>(how); };
    pair_.host().spawn(std::move(spec));
  }

  Result<double> rated(const std::string& name, const Drive& how) {
    spawn(name, how);
    return rate(plan_, name, [&](std::uint64_t n) { return pair_.drive(name, n); });
  }

  // One in flight. Rounds of ours and of the bare loop take turns, so that both meet the same machine.
  Status waits(Figures& out) {
    std::vector<double> us;
    spawn("link_rtt", {.us = &us});
    auto once = plan_;
    once.rounds = 1;
    FALAJ_ASSIGN(const auto per_second, rate(once, "link_rtt, warming up", [&](std::uint64_t n) { return pair_.drive("link_rtt", n); }));
    const auto count = static_cast<std::uint64_t>(std::max(per_second * plan_.seconds, 100.0));
    us.clear();
    Waits links;
    Waits bare;
    for (unsigned round = 0; round < plan_.rounds; ++round) {
      FALAJ_TRY(pair_.drive("link_rtt", count));
      links.add(us);
      FALAJ_TRY(pair_.bare().echo(kSmall, count, us));
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
  BenchPair& pair_;
};

}  // namespace

Status bench_links(const BenchPlan& plan) {
  Figures ours;
  std::vector<Peer> peers;
  {
    BenchPair pair(plan);
    FALAJ_TRY(pair.start());
    FALAJ_TRY(Measured(plan, pair).run(ours));
    peers = run_peers(plan, "links", pair.dir().string());
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
                ours, peers);
  return {};
}

}  // namespace falaj::nodes
