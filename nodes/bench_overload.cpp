// `falaj bench overload`: ten times the requests that an actor of another process can answer, for a minute, each with a deadline.
// `falaj bench lanes`: what a question on the control lane waits while bulk fills the link and a flood fills an actor, asked of another
// actor and of that one. Loads are open-loop: a question is due when its time has come, whatever became of those before, and waits count
// from then.
#include <algorithm>
#include <array>
#include <limits>
#include <map>

#include "nodes/bench_open_loop.hpp"
#include "nodes/bench_pair.hpp"
#include "nodes/http_load.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

using falaj::Lane;
using messages::Ball;
using messages::Tally;

// Keeps a load under way beside what `meanwhile` does; gives its messages a second.
Result<double> beside(const BenchPlan& plan, BenchPair& pair, const std::string& name, Drive load,
                      const std::function<Status()>& meanwhile) {
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> messages{0};
  load.stop = &stop;
  load.messages = &messages;
  pair.spawn(name, load);
  const auto begin = plan.clock.now();
  const auto run = pair.begin(name, std::numeric_limits<std::uint64_t>::max());
  auto how = meanwhile();
  const auto seconds = std::chrono::duration<double>(plan.clock.now() - begin).count();
  const auto sent = static_cast<double>(messages.load());
  stop = true;
  if (!run->ended_within(std::chrono::minutes(2))) return failed("the load does not end");
  FALAJ_TRY(how);
  FALAJ_TRY(run->how());
  return sent / seconds;
}

void wait_for(Duration time) {
  Gate never;
  static_cast<void>(never.wait(time));
}

// Memory of both processes together, once a second until stopped.
struct Memory {
  std::uint64_t first_half = 0;  // the most in it
  std::uint64_t second_half = 0;
};

Result<Memory> overload(const BenchPlan& plan, BenchPair& pair, const OpenLoop& load, Ends& ends) {
  const auto questions = static_cast<std::uint64_t>(ends.us.size());
  pair.spawn("asker", [load, &ends] { return make_asker(load, ends); });
  Memory memory;
  const auto run = pair.begin("asker", questions);
  const auto begin = plan.clock.now();
  const auto half = std::chrono::duration<double>(static_cast<double>(questions) / load.per_second / 2);
  const auto step = std::chrono::duration_cast<Duration>(std::min(std::chrono::duration<double>(1), half / 10));
  do {
    auto& most = plan.clock.now() - begin < half ? memory.first_half : memory.second_half;
    most = std::max(most, resident_bytes() + pair.other_resident_bytes());
  } while (!run->ended_within(step) && plan.clock.now() - begin < std::chrono::minutes(14));
  FALAJ_TRY(run->how());
  return memory;
}

}  // namespace

Status bench_overload(const BenchPlan& plan) {
  Figures ours;
  BenchPair pair(plan);
  FALAJ_TRY(pair.start());
  // The peak: as much as it can do when nobody asks for more than it answers.
  const auto round = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(std::clamp(plan.seconds, 0.5, 5.0)));
  FALAJ_ASSIGN(const auto peak, beside(plan, pair, "peak", {.to = kService, .width = 16, .echo = false}, [&]() -> Status {
                 wait_for(round);
                 return {};
               }));
  if (peak <= 0) return error(ErrorCode::deadline, "not one request was answered while nothing else was asked: is the machine busy?");
  say(format("peak: {:.4g} requests a second", peak));
  const OpenLoop load{.to = kService, .per_second = peak * plan.times, .deadline = std::chrono::milliseconds(plan.deadline_ms)};
  const auto questions = static_cast<std::uint64_t>(load.per_second * plan.seconds);
  Ends ends(questions);
  const auto begin = plan.clock.now();
  FALAJ_ASSIGN(const auto memory, overload(plan, pair, load, ends));
  const auto seconds = std::chrono::duration<double>(plan.clock.now() - begin).count();
  ends.us.resize(ends.answered);
  std::ranges::sort(ends.us);
  ours["overload_peak"] = peak;
  ours["overload_offered"] = static_cast<double>(ends.asked) / seconds;
  ours["overload_goodput"] = static_cast<double>(ends.answered) / seconds;
  ours["overload_goodput_share"] = ours["overload_goodput"] / peak;
  ours["overload_refused"] = static_cast<double>(ends.overloaded);
  ours["overload_late"] = static_cast<double>(ends.late);
  ours["overload_other"] = static_cast<double>(ends.other);
  ours["overload_p50"] = percentile(ends.us, 0.5);
  ours["overload_p99"] = percentile(ends.us, 0.99);
  ours["overload_longest"] = std::chrono::duration<double, std::micro>(ends.longest).count();
  ours["overload_bytes_first_half"] = static_cast<double>(memory.first_half);
  ours["overload_bytes_second_half"] = static_cast<double>(memory.second_half);
  if (ends.other > 0) say(format("{} questions ended otherwise, the last one: {}", ends.other, to_string(ends.why)));
  print_figures(plan,
                {{"overload_peak", "requests/s"},
                 {"overload_offered", "requests/s"},
                 {"overload_goodput", "requests/s"},
                 {"overload_goodput_share", "of the peak"},
                 {"overload_refused", "requests"},
                 {"overload_late", "requests"},
                 {"overload_other", "requests"},
                 {"overload_p50", "us"},
                 {"overload_p99", "us"},
                 {"overload_longest", "us"},
                 {"overload_bytes_first_half", "bytes"},
                 {"overload_bytes_second_half", "bytes"}},
                ours);
  return {};
}

Status bench_lanes(const BenchPlan& plan) {
  Figures ours;
  BenchPair pair(plan);
  FALAJ_TRY(pair.start());
  const std::array<std::pair<std::string_view, std::string_view>, 2> whom = {{{kPulse, "control"}, {kSink, "control_flooded"}}};
  std::map<std::string, std::vector<double>> all;
  for (unsigned i = 0; i < plan.rounds; ++i) {
    double flood = 0;
    const auto probes = [&]() -> Status {
      for (const auto& [to, name] : whom) {
        const OpenLoop probe{.to = to, .per_second = 500, .lane = Lane::control};
        Ends ends(static_cast<std::size_t>(std::max(probe.per_second * plan.seconds, 100.0)));
        const auto asker = format("probe-{}-{}", to, i);
        pair.spawn(asker, [probe, &ends] { return make_asker(probe, ends); });
        FALAJ_TRY(pair.drive(asker, ends.us.size()));
        if (ends.answered < ends.asked)
          return failed(format("{} of {} questions were not answered", ends.asked - ends.answered, ends.asked));
        std::ranges::sort(ends.us);
        for (const auto& [share, of] : {std::pair(0.5, "p50"), std::pair(0.99, "p99")})
          all[format("{}_{}", name, of)].push_back(percentile(ends.us, share));
      }
      return {};
    };
    FALAJ_ASSIGN(const auto bulk, beside(plan, pair, format("bulk{}", i),
                                         {.to = kEcho, .width = 4, .lane = Lane::bulk, .echo = false, .bytes = kLarge}, [&]() -> Status {
                                           FALAJ_ASSIGN(flood, beside(plan, pair, format("flood{}", i),
                                                                      {.to = kSink, .width = 4, .burst = 256, .echo = false}, probes));
                                           return {};
                                         }));
    all["flood"].push_back(flood);
    all["bulk"].push_back(bulk * static_cast<double>(kLarge));
    say(format(
        "control lane: p50 {:.0f} us, p99 {:.0f} us; of the flooded actor {:.0f} and {:.0f}; beside {:.3g} bytes a second of bulk and "
        "{:.3g} messages a second",
        all["control_p50"].back(), all["control_p99"].back(), all["control_flooded_p50"].back(), all["control_flooded_p99"].back(),
        all["bulk"].back(), flood));
  }
  for (const auto& [name, values] : all) ours[name] = median(values);
  print_figures(plan,
                {{"control_p50", "us"},
                 {"control_p99", "us"},
                 {"control_flooded_p50", "us"},
                 {"control_flooded_p99", "us"},
                 {"flood", "messages/s"},
                 {"bulk", "bytes/s"}},
                ours);
  return {};
}

}  // namespace falaj::nodes
