// Who holds a thread is named, once, and again when it is over.
#include "runtime/host/watchdog.hpp"

#include "tests/host/fixtures.hpp"

namespace falaj {
namespace {

using namespace test;

struct Marks {
  std::vector<Watchdog::Stall> told;
  Watchdog dog{[this](const Watchdog::Stall& stall) { told.push_back(stall); }};
  TurnMark& mark = dog.mark();
  Instant now{1h};
  void pass(Duration time) {
    for (Duration done{}; done < time; done += 10ms) dog.look(now += 10ms);
  }
};

TEST(Watchdog, ShortTurnsAndIdleThreadsAreNotNamed) {
  Marks m;
  m.pass(1s);
  for (int i = 0; i < 100; ++i) {
    m.mark.begin(ActorId(7));
    m.pass(90ms);
    m.mark.end();
    m.mark.begin(ActorId(8));
    m.mark.end();
  }
  EXPECT_TRUE(m.told.empty());
}

TEST(Watchdog, ALongTurnIsNamedOnceAndItsEndToo) {
  Marks m;
  static const HandlerEntry entry{TypeId(1), "Do", "", {}};
  m.mark.begin(ActorId(7));
  m.mark.handling(entry);
  m.pass(500ms);
  ASSERT_EQ(m.told.size(), 1U);
  EXPECT_EQ(m.told[0].actor, ActorId(7));
  EXPECT_EQ(m.told[0].handler, &entry);
  EXPECT_FALSE(m.told[0].over);
  EXPECT_GE(m.told[0].held, Watchdog::kStall);
  EXPECT_LE(m.told[0].held, Watchdog::kStall + 20ms);
  m.mark.end();
  m.pass(50ms);
  ASSERT_EQ(m.told.size(), 2U);
  EXPECT_TRUE(m.told[1].over);
  EXPECT_EQ(m.told[1].actor, ActorId(7));
  EXPECT_GE(m.told[1].held, 490ms);
  m.mark.begin(ActorId(8));
  m.pass(200ms);
  ASSERT_EQ(m.told.size(), 3U);
  EXPECT_EQ(m.told[2].actor, ActorId(8));
  EXPECT_EQ(m.told[2].handler, nullptr) << "the handler was the last turn's";
}

// Holds its thread until somebody has noticed.
class Holder : public ActorOf<Holder> {
 public:
  static constexpr std::string_view kType = "test/holder";
  static void handlers(Handlers<Holder>& on) { on.message<GetTotal>(&Holder::hold); }
  void hold(Context& ctx, Msg<GetTotal> m) {
    const auto& stalls = ctx.metrics().counter("falaj_actor_stalls_total", "", {{"type", std::string(kType)}});
    const auto give_up = ctx.now() + 10s;
    while (stalls.value() == 0 && ctx.now() < give_up) {
    }
    m.reply(total(static_cast<std::int64_t>(stalls.value())));
  }
};

TEST(Watchdog, TheHostWatchesItsThreads) {
  Real real;
  const auto holder = real.host->spawn(child<Holder>("holder"));
  SendOptions patient;
  patient.timeout = 30s;
  EXPECT_EQ(value_of(ask_now(*real.host, holder, Message::build<GetTotal>(), patient)), 1);
}

TEST(Watchdog, ALentThreadIsWatchedToo) {
  Real real;
  const auto holder = real.host->spawn(child<Holder>("holder"));
  SendOptions patient;
  patient.timeout = 30s;
  std::shared_ptr<Answer> answer;
  {
    const Host::Lent lent(*real.host);
    answer = ask_later(*real.host, holder, Message::build<GetTotal>(), patient);
  }
  EXPECT_EQ(value_of(answer->get()), 1);
}

}  // namespace
}  // namespace falaj
