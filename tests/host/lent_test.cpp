// Host::Lent: the actor that a thread from outside woke last has its turn on that thread.
#include "runtime/base/thread.hpp"
#include "tests/host/fixtures.hpp"

namespace falaj {
namespace {

using namespace test;

// Says on which thread it ran; told to, it wakes the next one or takes long.
class Here : public ActorOf<Here> {
 public:
  static constexpr std::string_view kType = "test/here";
  Here(std::thread::id lender, std::string next) : lender_(lender), next_(std::move(next)) {}
  static void handlers(Handlers<Here>& on) { on.message<Do>(&Here::act); }
  Task<> act(Context& ctx, Msg<Do> m) {
    const bool here = std::this_thread::get_id() == lender_;
    if (text(m->getWhat()) == "slow") {
      const auto end = ctx.now() + 1ms;
      while (ctx.now() < end) {
      }
    }
    if (text(m->getWhat()) == "pass on" && !next_.empty()) {
      auto asked = ctx.ask<Total>(ctx.find(next_), do_this("look"));
      auto answer = co_await asked;
      if (!answer.has_value()) co_return m.refuse(answer.error());
      co_return m.reply(total((*answer)->getValue() + (here ? 1 : 0)));
    }
    m.reply(total(here ? 1 : 0));
  }

 private:
  std::thread::id lender_;
  std::string next_;
};

struct Lending : testing::Test {
  Real real;
  ActorRef spawn(const std::string& name, const std::string& next = {}) {
    const auto actor = real.host->spawn(child<Here>(name, std::this_thread::get_id(), next));
    // It has started and is idle when it has answered, and once more: the first answer may come before its turn has ended.
    for (int i = 0; i < 2; ++i) static_cast<void>(ask_now(*real.host, actor, do_this("look")));
    return actor;
  }
  std::shared_ptr<Answer> lent(const ActorRef& to, const std::string& what) {
    const Host::Lent lent(*real.host);
    return ask_later(*real.host, to, do_this(what));
  }
};

TEST_F(Lending, AnIdleActorAnswersOnTheThreadThatAsked) {
  const auto actor = spawn("a");
  int here = 0;
  for (int i = 0; i < 5000 && here < 50; ++i) {  // a loaded machine may call a turn slow
    const auto answer = lent(actor, "look");
    here += static_cast<int>(value_of(answer->get()));
  }
  EXPECT_EQ(here, 50);
}

TEST_F(Lending, SoDoesTheOneThatItAsks) {
  spawn("b");
  const auto first = spawn("a", "b");
  std::int64_t most = 0;
  for (int i = 0; i < 5000 && most < 2; ++i) most = std::max(most, value_of(lent(first, "pass on")->get()));
  EXPECT_EQ(most, 2);
}

TEST_F(Lending, TheRestGoToTheScheduler) {
  const auto a = spawn("a");
  const auto b = spawn("b");
  for (int i = 0; i < 100; ++i) {
    std::shared_ptr<Answer> answers[2];
    {
      const Host::Lent lent(*real.host);
      answers[0] = ask_later(*real.host, a, do_this("look"));
      answers[1] = ask_later(*real.host, b, do_this("look"));
    }
    const auto here = value_of(answers[0]->get()) + value_of(answers[1]->get());
    EXPECT_LE(here, 1);
  }
}

TEST_F(Lending, AnActorThatIsSlowIsSentAway) {
  const auto slow = spawn("slow");
  int here = 0;
  for (int i = 0; i < 40; ++i) here += static_cast<int>(value_of(lent(slow, "slow")->get()));
  EXPECT_LE(here, 5);
}

TEST_F(Lending, NothingIsLostWhenManyLend) {
  const auto counter = real.host->spawn(child<Counter>("counter"));
  constexpr int kThreads = 3;
  constexpr int kEach = 3'000;
  {
    std::vector<Thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back("lender", [&] {
        for (int i = 0; i < kEach; ++i) {
          std::shared_ptr<Answer> answer;
          {
            const Host::Lent lent(*real.host);
            answer = ask_later(*real.host, counter, add(1));
          }
          EXPECT_TRUE(answer->get().has_value());
        }
      });
    }
  }
  EXPECT_EQ(value_of(ask_now(*real.host, counter, Message::build<GetTotal>())), kThreads * kEach);
}

}  // namespace
}  // namespace falaj
