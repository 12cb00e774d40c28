// Figures, not verdicts: run with --gtest_also_run_disabled_tests --gtest_filter=*Throughput*.
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "tests/host/fixtures.hpp"

namespace falaj {
namespace {

using namespace test;

// Plays a ball back and forth by tells until its count is spent.
class Player : public ActorOf<Player> {
 public:
  static constexpr std::string_view kType = "test/player";
  Player(std::string next, std::shared_ptr<Gate> done) : next_(std::move(next)), done_(std::move(done)) {}
  static void handlers(Handlers<Player>& on) { on.message<Add>(&Player::ball); }
  void ball(Context& ctx, Msg<Add> m) {
    if (!peer_) peer_ = ctx.find(next_);
    if (m->getBy() == 0) {
      done_->open();
    } else {
      ctx.tell(peer_, Message::build<Add>([&](Add::Builder b) { b.setBy(m->getBy() - 1); }, 4));
    }
  }
  void on_stop(Context&) override { peer_ = {}; }

 private:
  std::string next_;
  std::shared_ptr<Gate> done_;
  ActorRef peer_;
};

class Asker : public ActorOf<Asker> {
 public:
  static constexpr std::string_view kType = "test/asker";
  static void handlers(Handlers<Asker>& on) { on.message<Do>(&Asker::run); }
  Task<> run(Context& ctx, Msg<Do> m) {
    const auto counter = ctx.find("counter");
    for (std::int64_t i = 0; i < m->getNumber(); ++i) {
      auto answer = co_await ctx.ask<Total>(counter, Message::build<Add>([&](Add::Builder b) { b.setBy(1); }, 4));
      if (!answer.has_value()) co_return m.refuse(answer.error());
    }
    m.reply(total(0));
  }
};

// Sends in bursts and goes on when told, so that the receiver's mailbox stays bounded.
class Sender : public ActorOf<Sender> {
 public:
  static constexpr std::string_view kType = "test/sender";
  static void handlers(Handlers<Sender>& on) { on.message<Do>(&Sender::run); }
  void run(Context& ctx, Msg<Do> m) {
    const auto to = ctx.find("counter");
    left_ = m->getNumber();
    ctx.start(burst(ctx, to, std::move(m)));
  }
  Task<> burst(Context& ctx, ActorRef to, Msg<Do> m) {
    while (left_ > 0) {
      for (int i = 0; i < 99; ++i) ctx.tell(to, Message::build<Add>([&](Add::Builder b) { b.setBy(1); }, 4));
      auto answer = co_await ctx.ask<Total>(to, Message::build<Add>([&](Add::Builder b) { b.setBy(1); }, 4));
      if (!answer.has_value()) co_return m.refuse(answer.error());
      left_ -= 100;
    }
    m.reply(total(0));
  }

 private:
  std::int64_t left_ = 0;
};

void report(const std::string& what, double messages, Instant from, const Clock& clock) {
  const double seconds = std::chrono::duration<double>(clock.now() - from).count();
  std::printf("%-28s %8.2f M messages/s\n", what.c_str(), messages / seconds * 1e-6);
}

class Throughput : public testing::TestWithParam<std::size_t> {};

TEST_P(Throughput, DISABLED_Figures) {
  constexpr std::int64_t kMessages = 2'000'000;
  Real real("bench", GetParam());
  auto& host = *real.host;
  SendOptions patient;
  patient.timeout = 60s;
  for (int run = 0; run < 3; ++run) {
    {
      const auto done = std::make_shared<Gate>();
      const auto ping = host.spawn(child<Player>(format("ping{}", run), format("pong{}", run), done));
      host.spawn(child<Player>(format("pong{}", run), format("ping{}", run), done));
      const auto from = real.clock.now();
      host.tell(ping, add(kMessages));
      ASSERT_TRUE(done->wait());
      report("ping-pong by tell", kMessages, from, real.clock);
    }
    if (run == 0) {
      auto counter = child<Counter>("counter");
      counter.mailbox.normal = 10'000;
      host.spawn(counter);
      host.spawn(child<Asker>("asker"));
      for (int i = 0; i < 8; ++i) host.spawn(child<Sender>(format("sender{}", i)));
    }
    {
      const auto from = real.clock.now();
      EXPECT_TRUE(ask_now(host, host.find("asker"), do_this("run", kMessages / 4), patient).has_value());
      report("ping-pong by ask", kMessages / 2.0, from, real.clock);
    }
    {
      const auto from = real.clock.now();
      std::vector<std::shared_ptr<Answer>> answers;
      for (int i = 0; i < 8; ++i)
        answers.push_back(ask_later(host, host.find(format("sender{}", i)), do_this("run", kMessages / 8), patient));
      for (auto& answer : answers) EXPECT_TRUE(answer->get().has_value());
      report("8 senders to 1", kMessages, from, real.clock);
    }
    {
      const auto done = std::make_shared<Gate>();
      constexpr int kRing = 1000;
      for (int i = 0; i < kRing; ++i) {
        host.spawn(child<Player>(format("ring{}-{}", run, i), format("ring{}-{}", run, (i + 1) % kRing), done));
      }
      const auto from = real.clock.now();
      for (int i = 0; i < 8; ++i) host.tell(host.find(format("ring{}-{}", run, i * 100)), add(kMessages / 8));
      ASSERT_TRUE(done->wait());
      report("8 balls round 1000 actors", kMessages, from, real.clock);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Host, Throughput, testing::Values(1, 2));

}  // namespace
}  // namespace falaj
