// `falaj bench overload`: ten times the requests that an actor of another process can answer, for a minute, each with a deadline.
// `falaj bench lanes`: what a question on the control lane waits while bulk fills the link and a flood fills the actor that is asked.
// Loads are open-loop: a question is due when its time has come, whatever became of those before, and waits count from then.
#include <algorithm>
#include <array>
#include <atomic>

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
    while (ends_->asked < total) {
      const double since = std::chrono::duration<double>(ctx.now() - begin).count();
      const auto due = std::min(total, static_cast<std::uint64_t>(since * plan_.per_second));
      for (; ends_->asked < due; ++ends_->asked) {
        const auto when = static_cast<double>(ends_->asked) / plan_.per_second;
        ctx.start(ask(ctx, begin + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(when))));
      }
      co_await ctx.sleep(kTick);
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

struct ClosedLoop {
  std::string_view to;
  std::size_t width = 1;
  std::uint64_t burst = 1;  // messages of which the last is waited for
  Lane lane = Lane::normal;
  std::size_t bytes = kSmall;
};

// Keeps `width` bursts under way until told to stop; then answers with the number of messages.
class Loader final : public ActorOf<Loader> {
 public:
  static constexpr std::string_view kType = "bench/loader";
  static void handlers(Handlers<Loader>& on) { on.message<Ball>(&Loader::drive); }
  Loader(const ClosedLoop& plan, const std::atomic<bool>* stop, std::atomic<std::uint64_t>* done)
      : plan_(plan), stop_(stop), done_(done), parcel_(parcel(plan.bytes, false)) {}

  void drive(Context& ctx, Msg<Ball> m) {
    const auto shared = std::make_shared<Under>(Under{plan_.width, {}, std::move(m)});
    for (std::size_t i = 0; i < plan_.width; ++i) ctx.start(send(ctx, shared));
  }

 private:
  struct Under {
    std::size_t open;
    std::optional<Error> why;
    Msg<Ball> from;
  };

  Task<> send(Context& ctx, std::shared_ptr<Under> under) {
    const auto to = ctx.at(BenchPair::at(plan_.to));
    SendOptions options;
    options.lane = plan_.lane;
    SendOptions patient = options;
    patient.timeout = std::chrono::seconds(30);
    while (!stop_->load(std::memory_order_relaxed) && !under->why) {
      for (std::uint64_t i = 1; i < plan_.burst; ++i) ctx.tell(to, parcel_, options);
      auto counted = co_await ctx.ask<Tally>(to, parcel_, patient);
      if (!counted.has_value()) under->why = std::move(counted).error();
      done_->fetch_add(plan_.burst, std::memory_order_relaxed);
    }
    if (--under->open > 0) co_return;
    if (under->why) co_return under->from.refuse(*under->why);
    under->from.reply(Message::build<Tally>());
  }

  ClosedLoop plan_;
  const std::atomic<bool>* stop_;
  std::atomic<std::uint64_t>* done_;
  Message parcel_;
};

template <class A, class... Arguments>
void spawn(BenchPair& pair, const std::string& name, Arguments... arguments) {
  ChildSpec spec;
  spec.id = spec.name = name;
  spec.make = [arguments...] { return std::make_unique<A>(arguments...); };
  pair.host().spawn(std::move(spec));
}

// Runs a closed loop beside what `meanwhile` does; gives its messages a second.
Result<double> beside(const BenchPlan& plan, BenchPair& pair, const std::string& name, const ClosedLoop& load,
                      const std::function<Status()>& meanwhile) {
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> done{0};
  spawn<Loader>(pair, name, load, &stop, &done);
  Status loaded;
  Gate ended;
  SendOptions patient;
  patient.timeout = std::chrono::minutes(15);
  pair.host().ask(pair.host().find(name), Message::build<Ball>(), patient, [&](Result<Message> answer) {
    if (!answer) loaded = std::move(answer).error();
    ended.open();
  });
  const auto begin = plan.clock.now();
  auto how = meanwhile();
  const auto seconds = std::chrono::duration<double>(plan.clock.now() - begin).count();
  const auto messages = static_cast<double>(done.load());
  stop = true;
  if (!ended.wait(std::chrono::minutes(2))) return failed("the load does not end");
  FALAJ_TRY(how);
  FALAJ_TRY(loaded);
  return messages / seconds;
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
  spawn<Asker>(pair, "asker", load, &ends);
  Memory memory;
  Status how;
  Gate ended;
  SendOptions patient;
  patient.timeout = std::chrono::minutes(15);
  pair.host().ask(pair.host().find("asker"), Message::build<Ball>([&](Ball::Builder b) { b.setLeft(questions); }), patient,
                  [&](Result<Message> answer) {
                    if (!answer) how = std::move(answer).error();
                    ended.open();
                  });
  const auto begin = plan.clock.now();
  const auto half = std::chrono::duration<double>(static_cast<double>(questions) / load.per_second / 2);
  const auto step = std::chrono::duration_cast<Duration>(std::min(std::chrono::duration<double>(1), half / 10));
  do {
    auto& most = plan.clock.now() - begin < half ? memory.first_half : memory.second_half;
    most = std::max(most, resident_bytes() + pair.other_resident_bytes());
  } while (!ended.wait(step) && plan.clock.now() - begin < std::chrono::minutes(14));
  FALAJ_TRY(how);
  return memory;
}

}  // namespace

Status bench_overload(const BenchPlan& plan) {
  Figures ours;
  BenchPair pair(plan);
  FALAJ_TRY(pair.start());
  // The peak: as much as it can do when nobody asks for more than it answers.
  const auto round = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(std::clamp(plan.seconds, 0.5, 5.0)));
  FALAJ_ASSIGN(const auto peak, beside(plan, pair, "peak", {.to = kService, .width = 16}, [&]() -> Status {
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
    spawn<Asker>(pair, name, probe, &ends);
    double flood = 0;
    FALAJ_ASSIGN(const auto bulk,
                 beside(plan, pair, format("bulk{}", i), {.to = kEcho, .width = 4, .lane = Lane::bulk, .bytes = kLarge}, [&]() -> Status {
                   FALAJ_ASSIGN(flood, beside(plan, pair, format("flood{}", i), {.to = kSink, .width = 4, .burst = 256},
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
