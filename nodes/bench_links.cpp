// `falaj bench links`: two real processes under TLS 1.3 with certificates made on the spot, actor to actor; and the same bytes over a bare
// blocking TLS connection between the same two processes.
#include <array>
#include <cmath>

#include "nodes/bench_open_loop.hpp"
#include "nodes/bench_pair.hpp"
#include "nodes/http_load.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/thread.hpp"

namespace falaj::nodes {
namespace {

using falaj::Lane;

// Percentiles of rounds: of each the wanted ones, then the median over rounds.
struct Waits {
  static constexpr std::array<std::pair<double, std::string_view>, 3> kWanted = {{{0.5, "p50"}, {0.99, "p99"}, {0.999, "p999"}}};
  std::array<std::vector<double>, kWanted.size()> of;

  void add(std::vector<double>& us) {
    std::ranges::sort(us);
    for (std::size_t i = 0; i < kWanted.size(); ++i) of.at(i).push_back(percentile(us, kWanted.at(i).first));
    us.clear();
  }
  void write(Figures& out, std::string_view name) const {
    for (std::size_t i = 0; i < kWanted.size(); ++i) out[format("{}_{}", name, kWanted.at(i).second)] = median(of.at(i));
  }
};

class Measured {
 public:
  Measured(const BenchPlan& plan, BenchPair& pair) : plan_(plan), pair_(pair) {}

  Status run(Figures& out) {
    FALAJ_TRY(waits(out));
    FALAJ_TRY(open_loop(out));
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
    links.write(out, "link_rtt");
    bare.write(out, "bare_tls_rtt");
    say(format("link_rtt: p50 {:.1f} us, p99 {:.1f} us; bare TLS: p50 {:.1f} us, p99 {:.1f} us", out["link_rtt_p50"], out["link_rtt_p99"],
               out["bare_tls_rtt_p50"], out["bare_tls_rtt_p99"]));
    return {};
  }

  // A thousand questions a second, whether those before are answered or not.
  Status open_loop(Figures& out) {
    const OpenLoop load{.to = kEcho, .per_second = 1000};
    Waits waits;
    for (unsigned round = 0; round < plan_.rounds; ++round) {
      Ends ends(static_cast<std::size_t>(std::max(load.per_second * plan_.seconds, 100.0)));
      const auto name = format("open{}", round);
      pair_.spawn(name, [load, &ends] { return make_asker(load, ends); });
      FALAJ_TRY(pair_.drive(name, ends.us.size()));
      if (ends.answered < ends.asked) return failed(format("{} of {} questions were not answered", ends.asked - ends.answered, ends.asked));
      waits.add(ends.us);
    }
    waits.write(out, "link_open");
    say(format("link_open: p50 {:.1f} us, p99 {:.1f} us, p99.9 {:.1f} us", out["link_open_p50"], out["link_open_p99"],
               out["link_open_p999"]));
    return {};
  }

  const BenchPlan& plan_;
  BenchPair& pair_;
};

}  // namespace

Status bench_links(const BenchPlan& plan) {
  Figures ours;
  std::vector<Peer> peers;
  if (plan.pin) FALAJ_TRY(keep_to_processor(0));
  {
    BenchPair pair(plan);
    FALAJ_TRY(pair.start());
    FALAJ_TRY(Measured(plan, pair).run(ours));
    peers = run_peers(plan, "links", pair.dir().string());
  }
  print_figures(plan,
                {{"link_rtt_p50", "us"},
                 {"link_rtt_p99", "us"},
                 {"link_rtt_p999", "us"},
                 {"link_open_p50", "us"},
                 {"link_open_p99", "us"},
                 {"link_open_p999", "us"},
                 {"link_pipelined", "round trips/s"},
                 {"link_one_way", "messages/s"},
                 {"link_large", "bytes/s"},
                 {"bare_tls_rtt_p50", "us"},
                 {"bare_tls_rtt_p99", "us"},
                 {"bare_tls_rtt_p999", "us"},
                 {"bare_tls_large", "bytes/s"}},
                ours, peers);
  return {};
}

}  // namespace falaj::nodes
