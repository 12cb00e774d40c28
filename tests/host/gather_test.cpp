// ask_all on virtual time: when it goes on, what it brings, and what becomes of those it does not wait for.
#include "runtime/base/format.hpp"
#include "runtime/host/sim_host.hpp"
#include "tests/host/fixtures.hpp"

namespace falaj {
namespace {

using namespace test;

// Answers `value` after `delay`; a negative value is a refusal.
class Slow : public ActorOf<Slow> {
 public:
  static constexpr std::string_view kType = "test/slow";
  Slow(std::int64_t value, Duration delay) : value_(value), delay_(delay) {}
  static void handlers(Handlers<Slow>& on) { on.message<GetTotal>(&Slow::get); }
  Task<> get(Context& ctx, Msg<GetTotal> m) {
    const Counted counted;
    co_await ctx.sleep(delay_);
    if (value_ < 0) co_return m.refuse(invalid("told to"));
    m.reply(total(value_));
  }

 private:
  std::int64_t value_;
  Duration delay_;
};

// Asks all that it was given; writes "quorum|none at MS: a,b,..." with "-" for a refusal and "?" for no answer yet.
class Asker : public ActorOf<Asker> {
 public:
  static constexpr std::string_view kType = "test/asker";
  Asker(std::shared_ptr<Journal> journal, std::vector<ActorRef> targets, std::size_t quorum)
      : journal_(std::move(journal)), targets_(std::move(targets)), quorum_(quorum) {}
  static void handlers(Handlers<Asker>& on) { on.message<Do>(&Asker::act); }
  Task<> act(Context& ctx, Msg<Do> m) {
    if (text(m->getWhat()) == "stop") {
      ctx.stop();
      co_return;
    }
    const auto begin = ctx.now();
    SendOptions options;
    options.timeout = 1s;
    auto asked = ctx.ask_all<Total>(targets_, Message::build<GetTotal>(), quorum_, options);
    const auto answers = co_await asked;
    std::string line = answers.quorum ? "quorum" : "none";
    line += format(" at {}:", std::chrono::duration_cast<std::chrono::milliseconds>(ctx.now() - begin).count());
    std::size_t replies = 0;
    for (const auto& one : answers.from) {
      line += !one ? " ?" : one->has_value() ? format(" {}", (**one)->getValue()) : std::string(" -");
      if (one && one->has_value()) ++replies;
    }
    EXPECT_EQ(answers.replies, replies);
    journal_->write(line);
    co_await ctx.sleep(3s);  // the awaitable lives on: whoever answers now must not wake us again
    journal_->write("end");
  }

 private:
  std::shared_ptr<Journal> journal_;
  std::vector<ActorRef> targets_;
  std::size_t quorum_;
};

struct Crowd {
  SimWorld world{3};
  Host& host = world.add_node("n");
  std::shared_ptr<Journal> journal = std::make_shared<Journal>();

  // Delays in milliseconds; the value is the place, negative delays refuse after their amount.
  std::vector<std::string> ask(const std::vector<int>& delays, std::size_t quorum, bool with_nobody = false) {
    std::vector<ActorRef> targets;
    for (std::size_t i = 0; i < delays.size(); ++i) {
      const auto value = delays[i] < 0 ? -1 : static_cast<std::int64_t>(i);
      targets.push_back(host.spawn(child<Slow>(format("slow{}", i), value, Duration(std::chrono::milliseconds(std::abs(delays[i]))))));
    }
    if (with_nobody) targets.emplace_back();
    const auto asker = host.spawn(child<Asker>("asker", journal, targets, quorum));
    world.run_for(1ms);
    host.tell(asker, do_this("go"));
    world.run_for(10s);
    return journal->lines();
  }
};
using Lines = std::vector<std::string>;

TEST(AskAll, WaitsForEachWhenNoQuorumIsNamed) {
  EXPECT_EQ(Crowd().ask({10, 30, 20}, 0), (Lines{"quorum at 30: 0 1 2", "end"}));
  EXPECT_EQ(Crowd().ask({10, -30, 20}, 0), (Lines{"none at 30: 0 - 2", "end"})) << "a refusal is an end, too";
}

TEST(AskAll, GoesOnAtTheQuorum) { EXPECT_EQ(Crowd().ask({10, 50, 20, 900}, 2), (Lines{"quorum at 20: 0 ? 2 ?", "end"})); }

TEST(AskAll, GoesOnWhenTheQuorumCannotBeReachedAnyMore) {
  EXPECT_EQ(Crowd().ask({-10, 50, -20, 900}, 3), (Lines{"none at 20: - ? - ?", "end"}));
}

TEST(AskAll, ADeadlineAndAnEmptyRefAreRefusals) {
  EXPECT_EQ(Crowd().ask({10, 5000}, 0, true), (Lines{"none at 1000: 0 - -", "end"}));
  EXPECT_EQ(Crowd().ask({10, 20}, 2, true), (Lines{"quorum at 20: 0 1 -", "end"}));
}

TEST(AskAll, NobodyToAskIsNothingToWaitFor) {
  EXPECT_EQ(Crowd().ask({}, 0), (Lines{"quorum at 0:", "end"}));
  EXPECT_EQ(Crowd().ask({10}, 2), (Lines{"none at 0: ?", "end"}));
}

TEST(AskAll, StoppingTheActorFreesAll) {
  const int alive = Counted::alive;
  {
    Crowd crowd;
    std::vector<ActorRef> targets;
    for (const auto* id : {"a", "b"}) targets.push_back(crowd.host.spawn(child<Slow>(id, std::int64_t{1}, Duration(500ms))));
    const auto asker = crowd.host.spawn(child<Asker>("asker", crowd.journal, targets, std::size_t{0}));
    crowd.world.run_for(1ms);
    crowd.host.tell(asker, do_this("go"));
    crowd.world.run_for(10ms);
    crowd.host.tell(asker, do_this("stop"));
    crowd.world.run_for(2s);
    EXPECT_TRUE(crowd.journal->lines().empty());
    EXPECT_EQ(crowd.host.metrics().counter("falaj_actor_late_answers_total", "").value(), 2U) << "counted, and dropped";
  }
  EXPECT_EQ(Counted::alive, alive);
}

}  // namespace
}  // namespace falaj
