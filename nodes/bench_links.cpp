// `falaj bench links`: two real processes under TLS 1.3 with certificates made on the spot, actor to actor; and the same bytes over a bare
// blocking TLS connection between the same two processes.
#include <cmath>

#include "nodes/bench_pair.hpp"
#include "nodes/http_load.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

using falaj::Lane;

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
  Result<double> rated(const std::string& name, const Drive& how) {
    pair_.spawn(name, how);
    return rate(plan_, name, [&](std::uint64_t n) { return pair_.drive(name, n); });
  }

  // One in flight. Rounds of ours and of the bare loop take turns, so that both meet the same machine.
  Status waits(Figures& out) {
    std::vector<double> us;
    pair_.spawn("link_rtt", {.us = &us});
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
