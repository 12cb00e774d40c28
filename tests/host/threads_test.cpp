// Many actors on real threads: nothing is lost, answered twice or out of order. Built to be run under ThreadSanitizer.
#include <cstdlib>

#include "runtime/base/format.hpp"
#include "runtime/base/thread.hpp"
#include "tests/host/fixtures.hpp"

namespace falaj {
namespace {

using namespace test;

#ifdef FALAJ_SANITIZED
constexpr int kScale = 1;
#else
constexpr int kScale = 5;
#endif

std::uint64_t seed() {
  const char* given = std::getenv("FALAJ_TEST_SEED");
  return given != nullptr ? std::stoull(given) : 7;
}

// Checks that what one sender tells arrives in its order.
class InOrder : public ActorOf<InOrder> {
 public:
  static constexpr std::string_view kType = "test/in_order";
  static void handlers(Handlers<InOrder>& on) {
    on.message<Add>(&InOrder::add);
    on.message<GetTotal>(&InOrder::get);
  }
  void add(Context&, Msg<Add> m) {
    auto& last = last_[static_cast<std::size_t>(m->getBy())];
    if (m->getSequence() <= last) ++disorder_;
    last = m->getSequence();
    ++count_;
    if (m.wants_reply()) m.reply(total(count_));
  }
  void get(Context&, Msg<GetTotal> m) { m.reply(total(disorder_, static_cast<std::uint64_t>(count_))); }

 private:
  std::array<std::uint64_t, 64> last_{};
  std::int64_t disorder_ = 0;
  std::int64_t count_ = 0;
};

// Tells and asks its peers at random; counts how its asks end.
class Chatter : public ActorOf<Chatter> {
 public:
  static constexpr std::string_view kType = "test/chatter";
  Chatter(int peers, std::shared_ptr<std::atomic<int>> open, std::shared_ptr<Journal> journal)
      : peers_(peers), open_(std::move(open)), journal_(std::move(journal)) {}
  static void handlers(Handlers<Chatter>& on) {
    on.message<Do>(&Chatter::go);
    on.message<Add>(&Chatter::add);
  }
  void add(Context& ctx, Msg<Add> m) {
    if (ctx.random().chance(0.001)) throw std::runtime_error("a fault that the stress test plants");
    m.reply(total(m->getBy() + 1));
  }
  void go(Context& ctx, Msg<Do> m) {
    for (std::int64_t i = 0; i < m->getNumber(); ++i) ctx.start(ask_one(ctx));
    m.reply(total(0));
  }

 private:
  struct Open {  // counts an ask that has not ended yet, however it ends
    explicit Open(std::shared_ptr<std::atomic<int>> counter) : n(std::move(counter)) { ++*n; }
    ~Open() { --*n; }
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;
    std::shared_ptr<std::atomic<int>> n;
  };
  Task<> ask_one(Context& ctx) {
    const Open open(open_);
    for (int i = 0; i < 20; ++i) {
      const auto peer = ctx.find(format("chatter{}", ctx.random().below(static_cast<std::uint64_t>(peers_))));
      SendOptions options;
      options.timeout = std::chrono::milliseconds(1 + ctx.random().below(2000));
      options.lane = static_cast<Lane>(ctx.random().below(3));
      auto answer = co_await ctx.ask<Total>(peer, test::add(i), options);
      if (answer.has_value() && (*answer)->getValue() != i + 1) journal_->write("wrong answer");
      if (ctx.random().chance(0.05)) co_await ctx.sleep(std::chrono::microseconds(ctx.random().below(300)));
      if (ctx.random().chance(0.05)) {
        auto work = co_await ctx.blocking([i] { return i * 2; });
        if (work.has_value() && *work != i * 2) journal_->write("wrong work");
      }
    }
  }
  int peers_;
  std::shared_ptr<std::atomic<int>> open_;
  std::shared_ptr<Journal> journal_;
};

TEST(Threads, SendersKeepTheirOrder) {
  Real real;
  auto spec = child<InOrder>("sink");
  spec.mailbox.normal = 1'000'000;
  const auto sink = real.host->spawn(spec);
  const int each = 4000 * kScale;
  {
    std::vector<Thread> senders;
    for (int s = 0; s < 4; ++s) {
      senders.emplace_back("sender", [&, s] {
        for (int i = 1; i <= each; ++i) real.host->tell(sink, add(s, static_cast<std::uint64_t>(i)));
      });
    }
  }
  const auto answer = ask_now(*real.host, sink, Message::build<GetTotal>());
  EXPECT_EQ(value_of(answer), 0) << "messages out of order";
  EXPECT_EQ(answer->view<Total>()->getSequence(), 4U * static_cast<std::uint64_t>(each));
}

TEST(Threads, StressWithFaultsEndsEveryAsk) {
  RecordProperty("seed", static_cast<int>(seed()));
  SystemClock clock;
  metrics::Registry registry;
  HostOptions options;
  options.clock = &clock;
  options.metrics = &registry;
  options.seed = seed();
  const auto open = std::make_shared<std::atomic<int>>(0);
  const auto journal = std::make_shared<Journal>();
  {
    const auto host = make_caf_host(options);
    SupervisorSpec tree;
    tree.id = "chatters";
    tree.supervision.intensity = 1'000'000;
    tree.supervision.backoff = {.min = 1ms, .max = 5ms};
    constexpr int kPeers = 8;
    for (int i = 0; i < kPeers; ++i) tree.children.push_back(child<Chatter>(format("chatter{}", i), kPeers, open, journal));
    host->spawn(supervisor(tree));
    for (int round = 0; round < 10 * kScale; ++round) {
      for (int i = 0; i < kPeers; ++i) {
        const auto result = ask_now(*host, host->find(format("chatter{}", i)), do_this("go", 10));
        EXPECT_TRUE(result.has_value() || result.error().code != ErrorCode::deadline);
      }
    }
    const auto until = clock.now() + 30s;
    while (open->load() > 0 && clock.now() < until) {
      // Each pass through the host takes a turn of its threads: waiting without a sleep.
      static_cast<void>(ask_now(*host, host->find("chatter0"), Message::build<GetTotal>()));
    }
    EXPECT_EQ(open->load(), 0) << "seed " << seed();
    EXPECT_TRUE(host->shutdown(10s).empty());
    EXPECT_TRUE(host->actors().empty());
  }
  EXPECT_TRUE(journal->lines().empty()) << journal->lines().front();
}

// Two hosts, joined by queues with a thread for each direction.
class Wire final : public Transport {
 public:
  Wire(Host& from, Host*& to) : from_(from), to_(to) {}
  Status send(NodeId, Lane lane, ByteView envelope, const Message& body) override {
    auto b = message_from_bytes(body.type(), body.bytes());
    const bool taken = thread_.submit([this, lane, e = Bytes(envelope.begin(), envelope.end()), b = std::move(*b)]() mutable {
      to_->on_message({from_.node(), from_.incarnation(), "spiffe://test/node", true}, lane, ByteView(e), std::move(b));
    });
    return taken ? Status{} : error(ErrorCode::overloaded, "the wire is full");
  }
  void stop() { thread_.stop(); }

 private:
  Host& from_;
  Host*& to_;
  BlockingPool thread_{"wire", 1, 1'000'000};
};

TEST(Threads, TwoHostsTalk) {
  Real a("a");
  Real b("b");
  Host* to_a = a.host.get();
  Host* to_b = b.host.get();
  Wire ab(*a.host, to_b);
  Wire ba(*b.host, to_a);
  a.host->set_transport(&ab);
  b.host->set_transport(&ba);
  auto spec = child<InOrder>("sink");
  spec.mailbox.normal = 1'000'000;
  b.host->spawn(spec);
  const auto sink = a.host->at({node_id("b"), {}, {}, "sink"});
  const int each = 1000 * kScale;
  std::vector<std::shared_ptr<Answer>> answers;
  SendOptions patient;  // a sanitizer on a busy machine is slow
  patient.timeout = 60s;
  for (int i = 1; i <= each; ++i) answers.push_back(ask_later(*a.host, sink, add(0, static_cast<std::uint64_t>(i)), patient));
  for (int i = 0; i < each; ++i) EXPECT_EQ(value_of(answers[static_cast<std::size_t>(i)]->get()), i + 1);
  EXPECT_EQ(value_of(ask_now(*a.host, sink, Message::build<GetTotal>())), 0);
  EXPECT_EQ(code_of(ask_now(*a.host, a.host->at({node_id("b"), Incarnation(9), {}, "sink"}), add(1))), ErrorCode::gone);
  a.host->on_peer_down(node_id("b"), Incarnation(1), failed("test"));
  EXPECT_TRUE(a.host->shutdown(5s).empty());
  EXPECT_TRUE(b.host->shutdown(5s).empty());
  ab.stop();
  ba.stop();
}

// Where everything goes and nothing comes from.
class Pit final : public Transport {
 public:
  Status send(NodeId, Lane, ByteView, const Message&) override { return {}; }
};

TEST(Threads, AHostKnowsForWhomItsActorsWait) {
  Real a("a");
  Pit pit;
  a.host->set_transport(&pit);
  const auto there = a.host->at({node_id("b"), {}, {}, "sink"});
  EXPECT_FALSE(a.host->waits_for(node_id("b")));
  a.host->tell(there, add(1));
  EXPECT_FALSE(a.host->waits_for(node_id("b"))) << "a tell is not waited for";
  SendOptions brief;
  brief.timeout = 500ms;
  const auto answer = ask_later(*a.host, there, add(1), brief);
  EXPECT_TRUE(a.host->waits_for(node_id("b")));
  EXPECT_FALSE(a.host->waits_for(node_id("c")));
  EXPECT_EQ(code_of(answer->get()), ErrorCode::deadline);
  EXPECT_FALSE(a.host->waits_for(node_id("b"))) << "whoever asked has had an end";
  EXPECT_TRUE(a.host->shutdown(5s).empty());
}

// ---- a handler that does not return -----------------------------------------------------------------------------------------------------

class Stuck : public ActorOf<Stuck> {
 public:
  static constexpr std::string_view kType = "test/stuck";
  Stuck(std::shared_ptr<Gate> gate, std::shared_ptr<Journal> journal) : gate_(std::move(gate)), journal_(std::move(journal)) {}
  static void handlers(Handlers<Stuck>& on) { on.message<Do>(&Stuck::act); }
  void act(Context&, Msg<Do> m) {
    journal_->write(std::string(text(m->getWhat())));
    if (text(m->getWhat()) == "wait") gate_->wait();
    const SystemClock clock;
    for (const auto end = clock.now() + m->getNumber() * 1us; clock.now() < end;) {
    }
    m.reply(total(0));
  }

 private:
  std::shared_ptr<Gate> gate_;
  std::shared_ptr<Journal> journal_;
};

TEST(Threads, AnExpiredAskIsNotDone) {
  Real real;
  const auto gate = std::make_shared<Gate>();
  const auto journal = std::make_shared<Journal>();
  const auto stuck = real.host->spawn(child<Stuck>("stuck", gate, journal));
  const auto first = ask_later(*real.host, stuck, do_this("wait"));
  ASSERT_TRUE(journal->wait_for("wait"));
  SendOptions soon;
  soon.timeout = 2ms;
  EXPECT_EQ(code_of(ask_now(*real.host, stuck, do_this("late"), soon)), ErrorCode::deadline);
  gate->open();
  EXPECT_EQ(value_of(first->get()), 0);
  EXPECT_EQ(value_of(ask_now(*real.host, stuck, do_this("next"))), 0);
  EXPECT_EQ(journal->lines(), (std::vector<std::string>{"wait", "next"}));
}

TEST(Threads, AnAskThatWouldWaitLongerThanItsDeadlineIsRefusedAtOnce) {
  Real real;
  const auto gate = std::make_shared<Gate>();
  const auto journal = std::make_shared<Journal>();
  const auto actor = real.host->spawn(child<Stuck>("stuck", gate, journal));
  SendOptions patient;
  patient.timeout = 60s;
  SendOptions hasty;
  hasty.timeout = 50ms;  // of which three quarters may be spent in the queue: half of what that costs at least
  std::vector<std::shared_ptr<Answer>> answers;
  // It learns what a place in its queue costs: a millisecond or more.
  for (int i = 0; i < 64; ++i) answers.push_back(ask_later(*real.host, actor, do_this("work", 1000), patient));
  for (const auto& answer : answers) EXPECT_EQ(value_of(answer->get()), 0);
  answers = {ask_later(*real.host, actor, do_this("wait"), patient)};
  ASSERT_TRUE(journal->wait_for("wait"));
  for (int i = 0; i < 100; ++i) answers.push_back(ask_later(*real.host, actor, do_this("work", 1000), patient));
  const auto refused = ask_later(*real.host, actor, do_this("hasty"), hasty);
  EXPECT_EQ(code_of(refused->get()), ErrorCode::overloaded) << "while the actor is still busy";
  gate->open();
  for (const auto& answer : answers) EXPECT_EQ(value_of(answer->get()), 0);
  EXPECT_EQ(value_of(ask_now(*real.host, actor, do_this("hasty"), patient)), 0) << "there is no queue any more";
  EXPECT_EQ(journal->count("hasty"), 1U);
}

TEST(Threads, ShutdownKeepsItsDeadlineAndNamesWhoLives) {
  const auto gate = std::make_shared<Gate>();
  const auto journal = std::make_shared<Journal>();
  {
    Real real;
    const auto stuck = real.host->spawn(child<Stuck>("stuck", gate, journal));
    real.host->spawn(child<Counter>("counter"));
    const auto first = ask_later(*real.host, stuck, do_this("wait"));
    ASSERT_TRUE(journal->wait_for("wait"));
    const auto alive = real.host->shutdown(20ms);
    EXPECT_EQ(std::count(alive.begin(), alive.end(), "test/stuck"), 1);
    gate->open();
    EXPECT_TRUE(real.host->shutdown(10s).empty());
  }
}

}  // namespace
}  // namespace falaj
