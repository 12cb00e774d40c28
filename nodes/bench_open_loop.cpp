#include "nodes/bench_open_loop.hpp"

#include <algorithm>

#include "nodes/bench_pair.hpp"

namespace falaj::nodes {
namespace {

using messages::Ball;
using messages::Tally;

constexpr double kMany = 1000;  // questions a second: from here on they are asked some at a time, every kTick
constexpr Duration kTick = std::chrono::milliseconds(1);

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
      const auto due = std::min(total, static_cast<std::uint64_t>(since * plan_.per_second) + 1);  // the first at once
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

}  // namespace

std::unique_ptr<Actor> make_asker(const OpenLoop& plan, Ends& ends) { return std::make_unique<Asker>(plan, &ends); }

}  // namespace falaj::nodes
