// `falaj bench overload`: ten times the requests that an actor of another process can answer, for a minute, each with a deadline.
// `falaj bench lanes`: what a question on the control lane waits while bulk fills the link and a flood fills the actor that is asked.
// Loads are open-loop: a question is due when its time has come, whatever became of those before, and waits count from then.
#include <algorithm>
#include <limits>

#include "nodes/bench_pair.hpp"
#include "nodes/http_load.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

using falaj::Lane;
using messages::Ball;
using messages::Tally;

constexpr double kMany = 1000;  // questions a second: from here on they are asked some at a time, every kTick
constexpr Duration kTick = std::chrono::milliseconds(1);

struct OpenLoop {
  std::string_view to;
  double per_second = 1000;
  Duration deadline = std::chrono::seconds(5);
  Lane lane = Lane::normal;
};

// How the questions ended. Written by one actor; read when it has answered.
struct Ends {
  explicit Ends(std::size_t questions) : us(questions) {}  // all memory is there before the first question
  std::uint64_t asked = 0;
  std::uint64_t overloaded = 0;
  std::uint64_t late = 0;  // their deadline came first
  std::uint64_t other = 0;
  std::uint64_t answered = 0;
  Duration longest{};      // until any end
  std::vector<double> us;  // waits of the answered
  Error why;               // of the last other end

  [[nodiscard]] std::uint64_t ended() const { return answered + overloaded + late + other; }
};

// Asks as often as the plan says, as many questions as a Ball says; answers when the last of them has ended.
class Asker final : public ActorOf<Asker> {
 public:
  static constexpr std::string_view kType = "bench/asker";
  static void handlers(Handlers<Asker>& on) { on.message<Ball>(&Asker::drive); }
  Asker(const OpenLoop& plan, Ends* ends) : plan_(plan), ends_(ends), parcel_(parcel(kSmall, false)) {}

  Task<> drive(Context& ctx, Msg<Ball> m) {
    const auto total = m->getLeft();
    const auto begin = ctx.now();
    const auto due_at = [&](std::uint64_t question) {
      return begin + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(static_cast<double>(question) / plan_.per_second));
    };
    while (ends_->asked < total) {
      const double since = std::chrono::duration<double>(ctx.now() - begin).count();
      const auto due = std::min(total, static_cast<std::uint64_t>(since * plan_.per_second));
      for (; ends_->asked < due; ++ends_->asked) ctx.start(ask(ctx, due_at(ends_->asked)));
      co_await ctx.sleep(kMany < plan_.per_second ? kTick : std::max(due_at(ends_->asked) - ctx.now(), Duration::zero()));
    }
    while (ends_->ended() < total) co_await ctx.sleep(kTick);
    m.reply(Message::build<Tally>());
  }

 private:
  Task<> ask(Context& ctx, Instant due) {
    SendOptions options;
    options.lane = plan_.lane;
    options.timeout = plan_.deadline;
    const auto to = ctx.at(BenchPair::at(plan_.to));
    auto answer = co_await ctx.ask<Tally>(to, parcel_, options);
    const auto waited = ctx.now() - due;
    ends_->longest = std::max(ends_->longest, waited);
    if (answer.has_value()) {
      ends_->us[ends_->answered++] = std::chrono::duration<double, std::micro>(waited).count();
    } else if (answer.error().code == ErrorCode::overloaded) {
      ++ends_->overloaded;
    } else if (answer.error().code == ErrorCode::deadline) {
      ++ends_->late;
    } else {
      ++ends_->other;
      ends_->why = std::move(answer).error();
    }
  }

  OpenLoop plan_;
  Ends* ends_;
  Message parcel_;
};

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
  pair.spawn("asker", [load, &ends] { return std::make_unique<Asker>(load, &ends); });
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
  const OpenLoop probe{.to = kSink, .per_second = 500, .lane = Lane::control};
  std::vector<double> p50;
  std::vector<double> p99;
  std::vector<double> flooded;
  std::vector<double> hauled;
  for (unsigned i = 0; i < plan.rounds; ++i) {
    Ends ends(static_cast<std::size_t>(std::max(probe.per_second * plan.seconds, 100.0)));
    const auto name = format("probe{}", i);
    pair.spawn(name, [probe, &ends] { return std::make_unique<Asker>(probe, &ends); });
    double flood = 0;
    FALAJ_ASSIGN(const auto bulk, beside(plan, pair, format("bulk{}", i),
                                         {.to = kEcho, .width = 4, .lane = Lane::bulk, .echo = false, .bytes = kLarge}, [&]() -> Status {
                                           FALAJ_ASSIGN(flood, beside(plan, pair, format("flood{}", i),
                                                                      {.to = kSink, .width = 4, .burst = 256, .echo = false},
                                                                      [&] { return pair.drive(name, ends.us.size()); }));
                                           return {};
                                         }));
    if (ends.answered < ends.asked) return failed(format("{} of {} questions were not answered", ends.asked - ends.answered, ends.asked));
    std::ranges::sort(ends.us);
    p50.push_back(percentile(ends.us, 0.5));
    p99.push_back(percentile(ends.us, 0.99));
    flooded.push_back(flood);
    hauled.push_back(bulk * static_cast<double>(kLarge));
    say(format("control lane: p50 {:.0f} us, p99 {:.0f} us, beside {:.3g} bytes a second of bulk and {:.3g} messages a second", p50.back(),
               p99.back(), hauled.back(), flooded.back()));
  }
  ours["control_p50"] = median(p50);
  ours["control_p99"] = median(p99);
  ours["flood"] = median(flooded);
  ours["bulk"] = median(hauled);
  print_figures(plan, {{"control_p50", "us"}, {"control_p99", "us"}, {"flood", "messages/s"}, {"bulk", "bytes/s"}}, ours);
  return {};
}

}  // namespace falaj::nodes
