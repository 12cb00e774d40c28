// falaj simulate: whole clusters in one thread, on virtual time.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <map>

#include "nodes/cli.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/guarded.hpp"
#include "runtime/base/log.hpp"
#include "runtime/base/thread.hpp"
#include "simulations/faults.hpp"
#include "simulations/members.hpp"

namespace falaj::nodes {
namespace {

using simulations::FaultPlan;
using simulations::FaultReport;

struct SimulateArguments {
  std::uint64_t seed = 1;
  std::string seeds;
  unsigned nodes = 5;
  unsigned minutes = 5;
  unsigned jobs = 1;
  std::string plant;
  bool calm = false;
  bool trace = false;
  unsigned lost = 1;
  bool power = false;
};

FaultPlan plan_of(const SimulateArguments& a, std::uint64_t seed) {
  FaultPlan plan;
  plan.seed = seed;
  plan.nodes = a.nodes;
  plan.minutes = a.minutes;
  plan.plant = a.plant;
  plan.faults = !a.calm;
  return plan;
}

std::string replay(const SimulateArguments& a, std::uint64_t seed) {
  auto line = format("falaj simulate faults --seed {} --nodes {} --minutes {}", seed, a.nodes, a.minutes);
  if (!a.plant.empty()) line += " --plant " + a.plant;
  if (a.calm) line += " --calm";
  return line + " --trace";
}

void tell_violations(const SimulateArguments& a, std::uint64_t seed, const FaultReport& report) {
  for (const auto& violation : report.violations)
    std::fprintf(stderr, "seed %llu: at %.6f s: %s\n", static_cast<unsigned long long>(seed),
                 std::chrono::duration<double>(violation.when.time_since_epoch()).count(), violation.what.c_str());
  std::fprintf(stderr, "replay: %s\n", replay(a, seed).c_str());
}

Status one(Cli& cli, const SimulateArguments& a) {
  auto plan = plan_of(a, a.seed);
  if (a.trace) {
    plan.trace = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  } else {
    log::configure({.level = log::Level::off});
  }
  const SystemClock clock;
  const auto begin = clock.now();
  const auto report = simulations::run_faults(plan);
  const auto wall = std::chrono::duration<double>(clock.now() - begin).count();
  std::fprintf(stderr, "%.0f simulated seconds in %.2f s (%.0f times real time)\n", report.simulated_seconds, wall,
               report.simulated_seconds / wall);
  print(format("seed {}  nodes {}  faults: {}", a.seed, a.nodes, report.storm));
  print(format("{} steps, {} faults, {} rows, {} training runs, {} promotions, {} predictions, {} audit entries", report.steps,
               report.faults, report.rows, report.runs, report.promotions, report.predictions, report.audit_entries));
  if (!report.good()) {
    tell_violations(a, a.seed, report);
    cli.code = 1;
  }
  print(format("digest {:016x}", report.digest));
  return {};
}

Result<std::pair<std::uint64_t, std::uint64_t>> range_of(const std::string& text) {
  const auto dots = text.find("..");
  std::pair<std::uint64_t, std::uint64_t> out;
  if (dots == std::string::npos || std::from_chars(text.data(), text.data() + dots, out.first).ptr != text.data() + dots ||
      std::from_chars(text.data() + dots + 2, text.data() + text.size(), out.second).ptr != text.data() + text.size() ||
      out.second < out.first)
    return invalid(format("--seeds '{}': write FIRST..LAST, e.g. 1..200", text));
  return out;
}

// One line for each seed, in order. Each run has a thread to itself.
Status many(Cli& cli, const SimulateArguments& a) {
  FALAJ_ASSIGN(const auto range, range_of(a.seeds));
  log::configure({.level = log::Level::off});
  const SystemClock clock;
  const auto begin = clock.now();
  struct State {
    std::uint64_t next;
    std::uint64_t printed;
    std::map<std::uint64_t, FaultReport> done;
    std::vector<std::uint64_t> bad;
    double simulated = 0;
  };
  Guarded<State> state(State{range.first, range.first, {}, {}, 0});
  const auto work = [&] {
    for (;;) {
      const auto seed = state.with([&](State& s) { return s.next <= range.second ? s.next++ : 0; });
      if (seed == 0) return;
      auto report = simulations::run_faults(plan_of(a, seed));
      state.with([&](State& s) {
        s.simulated += report.simulated_seconds;
        s.done.emplace(seed, std::move(report));
        for (auto at = s.done.find(s.printed); at != s.done.end(); at = s.done.find(++s.printed)) {
          const auto& r = at->second;
          print(format("{} seed {} digest {:016x} steps {} faults {} rows {} runs {} predictions {}", r.good() ? "ok" : "FAILED", at->first,
                       r.digest, r.steps, r.faults, r.rows, r.runs, r.predictions));
          if (!r.good()) {
            tell_violations(a, at->first, r);
            s.bad.push_back(at->first);
          }
          s.done.erase(at);
        }
      });
    }
  };
  {
    std::vector<Thread> threads;
    for (unsigned i = 0; i < std::max(1U, a.jobs); ++i) threads.emplace_back("simulate", work);
  }
  state.with([&](const State& s) {
    const auto wall = std::chrono::duration<double>(clock.now() - begin).count();
    std::fprintf(stderr, "%llu seeds, %zu failed, %.0f simulated seconds in %.1f s (%.0f times real time)\n",
                 static_cast<unsigned long long>(range.second - range.first + 1), s.bad.size(), s.simulated, wall, s.simulated / wall);
    if (!s.bad.empty()) cli.code = 1;
  });
  return {};
}

Status members(Cli& cli, const SimulateArguments& a) {
  if (a.lost >= a.nodes) return invalid(format("--lost {} of {} nodes: control must stay, so lose fewer", a.lost, a.nodes));
  log::configure({.level = log::Level::off});
  const SystemClock clock;
  const auto begin = clock.now();
  const auto report = simulations::run_members({a.seed, a.nodes, a.lost, a.power});
  const auto wall = std::chrono::duration<double>(clock.now() - begin).count();
  if (!report.trouble.empty()) {
    std::fprintf(stderr, "seed %llu: %s\n", static_cast<unsigned long long>(a.seed), report.trouble.c_str());
    cli.code = 1;
  }
  print(format("{} nodes see each other after {:.3f} s; {} are lost, and {:.3f} s later all others have the same view", a.nodes,
               report.all_here, a.lost, report.agreed));
  print(format("heartbeats before that: with {} peers at the busiest node but control", report.beats_with));
  print(format("messages meanwhile: {} to control, {} to the busiest other node; {} steps in {:.2f} s", report.by_control,
               report.by_another, report.steps, wall));
  print(format("digest {:016x}", report.digest));
  return {};
}

void add_members(CLI::App& simulate, Cli& cli) {
  const auto a = std::make_shared<SimulateArguments>();
  a->nodes = 200;
  a->lost = 40;
  auto* command = simulate.add_subcommand("members", "Membership alone, on many nodes, of which some are lost at once");
  command->add_option("--seed", a->seed, "What is drawn from")->capture_default_str();
  command->add_option("--nodes", a->nodes, "Nodes")->capture_default_str()->check(CLI::Range(2, 1000));
  command->add_option("--lost", a->lost, "How many of them are lost")->capture_default_str();
  command->add_flag("--power", a->power, "They fall silent at once; otherwise their processes end");
  command->footer("Example:\n  falaj simulate members --nodes 200 --lost 40 --power");
  cli.runs(*command, [&cli, a] { return members(cli, *a); });
}

}  // namespace

void add_simulate_commands(CLI::App& app, Cli& cli) {
  const auto a = std::make_shared<SimulateArguments>();
  auto* simulate = app.add_subcommand("simulate", "Run whole clusters in one thread, on virtual time");
  simulate->require_subcommand(1);
  auto* faults =
      simulate->add_subcommand("faults", "A cluster under the faults of a seed, checked all along; the same seed gives the same digest");
  faults->add_option("--seed", a->seed, "What is drawn from")->capture_default_str();
  faults->add_option("--seeds", a->seeds, "FIRST..LAST: one line for each instead");
  faults->add_option("--nodes", a->nodes, "Machines")->capture_default_str()->check(CLI::Range(1, 200));
  faults->add_option("--minutes", a->minutes, "Simulated time; the last two fifths are calm, and 40 seconds at least")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  faults->add_option("--jobs", a->jobs, "Seeds at a time, with --seeds")->capture_default_str()->check(CLI::Range(1, 64));
  faults->add_option("--plant", a->plant, "A deliberate defect, which the checks must find")->check(CLI::IsMember(simulations::plants()));
  faults->add_flag("--calm", a->calm, "No faults");
  faults->add_flag("--trace", a->trace, "Each message and fault to standard error");
  faults->footer(
      "The last line is `digest HEX`. Example:\n  falaj simulate faults --seed 7\n  falaj simulate faults --seeds 1..200 --jobs 2");
  add_members(*simulate, cli);
  cli.runs(*faults, [&cli, a] { return a->seeds.empty() ? one(cli, *a) : many(cli, *a); });
}

}  // namespace falaj::nodes
