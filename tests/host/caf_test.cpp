// The contract on real threads. What needs no thread is in sim_test.cpp, on virtual time.
#include "tests/host/fixtures.hpp"

namespace falaj {
namespace {

using namespace test;

// Does what it is told; the words are explained where they are sent.
class Worker : public ActorOf<Worker> {
 public:
  static constexpr std::string_view kType = "test/worker";
  explicit Worker(std::shared_ptr<Journal> journal) : journal_(std::move(journal)) {}
  static void handlers(Handlers<Worker>& on) { on.message<Do>(&Worker::act); }
  void on_start(Context&) override { journal_->write("start"); }
  void on_stop(Context&) override { journal_->write("stop"); }
  void on_down(Context&, const Down& down) override { journal_->write("down " + std::string(to_string(down.reason.code))); }

  Task<> act(Context& ctx, Msg<Do> m) {
    const Counted counted;
    const std::string what(text(m->getWhat()));
    if (what == "sleep") {
      co_await ctx.sleep(std::chrono::milliseconds(m->getNumber()));
      m.reply(total(1));
    } else if (what == "block") {
      auto result = co_await ctx.blocking([n = m->getNumber()]() -> Result<std::int64_t> {
        if (n < 0) return invalid("negative");
        return n * 2;
      });
      if (!result.has_value()) co_return m.refuse(result.error());
      m.reply(total(*result));
    } else if (what == "forget") {
      co_return;
    } else if (what == "throw") {
      throw std::runtime_error("told to");
    } else if (what == "throw later") {
      co_await ctx.sleep(std::chrono::milliseconds(1));
      throw std::runtime_error("told to, later");
    } else if (what == "ask counter") {
      const auto counter = ctx.find("counter");
      auto answer = co_await ctx.ask<Total>(counter, Message::build<GetTotal>(), m.options());
      if (!answer.has_value()) co_return m.refuse(answer.error());
      m.reply(answer->message());
    } else if (what == "watch") {
      ctx.watch(ctx.find("counter"));
      m.reply(total(0));
    } else if (what == "stop") {
      ctx.stop();
    }
  }

 private:
  std::shared_ptr<Journal> journal_;
};

// Tells its friend once, then writes what comes back.
class Caller : public ActorOf<Caller> {
 public:
  static constexpr std::string_view kType = "test/caller";
  Caller(std::shared_ptr<Journal> journal, std::string friend_name) : journal_(std::move(journal)), friend_(std::move(friend_name)) {}
  static void handlers(Handlers<Caller>& on) {
    on.message<Do>(&Caller::call);
    on.message<Add>(&Caller::answered);
  }
  void call(Context& ctx, Msg<Do> m) {
    ctx.tell(ctx.find(friend_), add(m->getNumber()));
    if (text(m->getWhat()) == "call and stop") ctx.stop();
  }
  void answered(Context&, Msg<Add> m) { journal_->write("answer " + std::to_string(m->getBy())); }
  void on_stop(Context&) override { journal_->write("caller stopped"); }

 private:
  std::shared_ptr<Journal> journal_;
  std::string friend_;
};

// Answers a tell by a tell to whoever sent it, when it is told to.
class Friend : public ActorOf<Friend> {
 public:
  static constexpr std::string_view kType = "test/friend";
  explicit Friend(std::shared_ptr<Journal> journal) : journal_(std::move(journal)) {}
  static void handlers(Handlers<Friend>& on) {
    on.message<Add>(&Friend::called);
    on.message<Do>(&Friend::answer);
  }
  void called(Context&, Msg<Add> m) {
    calls_.push_back(std::move(m));
    journal_->write("called");
  }
  void answer(Context& ctx, Msg<Do>) {
    for (auto& call : calls_) ctx.tell(call.from(), add(call->getBy() + 1));
    calls_.clear();
    journal_->write("answered");
  }

 private:
  std::shared_ptr<Journal> journal_;
  std::vector<Msg<Add>> calls_;
};

TEST(CafHost, ATellKnowsWhoSentIt) {
  Real real;
  const auto journal = std::make_shared<Journal>();
  const auto caller = real.host->spawn(child<Caller>("caller", journal, std::string("friend")));
  const auto other = real.host->spawn(child<Friend>("friend", journal));
  const auto act = [](std::string_view what, std::int64_t number) {
    return Message::build<Do>([&](Do::Builder b) {
      b.setWhat(std::string(what));
      b.setNumber(number);
    });
  };
  real.host->tell(caller, act("call", 41));
  ASSERT_TRUE(journal->wait_for("called"));
  real.host->tell(other, act("answer", 0));
  EXPECT_TRUE(journal->wait_for("answer 42"));
  // The caller has ended when its friend looks back: a dead letter, to an actor that was there and is gone.
  real.host->tell(caller, act("call and stop", 1));
  ASSERT_TRUE(journal->wait_for("called", 2));
  ASSERT_TRUE(journal->wait_for("caller stopped"));
  for (int tries = 0; real.host->find("caller") && tries < 1000; ++tries) std::this_thread::yield();
  real.host->tell(other, act("answer", 0));
  ASSERT_TRUE(journal->wait_for("answered", 2));
  const auto letters = real.host->dead_letters();
  ASSERT_EQ(letters.size(), 1U);
  EXPECT_NE(letters.front().to.actor.value(), 0U);
  EXPECT_NE(letters.front().reason.find("gone"), std::string::npos) << letters.front().reason;
}

TEST(CafHost, TellThenAskIsInOrder) {
  Real real;
  const auto counter = real.host->spawn(child<Counter>("counter"));
  for (int i = 0; i < 1000; ++i) real.host->tell(counter, add(1));
  EXPECT_EQ(value_of(ask_now(*real.host, counter, Message::build<GetTotal>())), 1000);
  EXPECT_EQ(real.host->find("counter"), counter);
}

TEST(CafHost, CoroutineAsksSleepsAndBlocks) {
  Real real;
  const auto journal = std::make_shared<Journal>();
  real.host->spawn(child<Counter>("counter"));
  const auto worker = real.host->spawn(child<Worker>("worker", journal));
  EXPECT_EQ(value_of(ask_now(*real.host, worker, do_this("sleep", 1))), 1);
  EXPECT_EQ(value_of(ask_now(*real.host, worker, do_this("block", 21))), 42);
  EXPECT_EQ(code_of(ask_now(*real.host, worker, do_this("block", -1))), ErrorCode::invalid);
  EXPECT_EQ(value_of(ask_now(*real.host, worker, do_this("ask counter"))), 0);
  EXPECT_EQ(code_of(ask_now(*real.host, worker, do_this("forget"))), ErrorCode::failed);
  EXPECT_EQ(code_of(ask_now(*real.host, worker, Message::build<GetTotal>())), ErrorCode::unimplemented);
  EXPECT_EQ(code_of(ask_now(*real.host, real.host->find("nobody"), do_this("x"))), ErrorCode::not_found);
}

TEST(CafHost, ExceptionKillsAndTheSupervisorRestarts) {
  Real real;
  const auto journal = std::make_shared<Journal>();
  real.host->spawn(child<Worker>("worker", journal));
  std::size_t starts = 1;
  for (const auto* how : {"throw", "throw later"}) {
    ASSERT_TRUE(journal->wait_for("start", starts));
    const auto before = real.host->find("worker");
    EXPECT_EQ(code_of(ask_now(*real.host, before, do_this(how))), ErrorCode::failed);
    ASSERT_TRUE(journal->wait_for("start", ++starts));
    EXPECT_NE(real.host->find("worker"), before);
    EXPECT_EQ(code_of(ask_now(*real.host, before, do_this("sleep"))), ErrorCode::gone);
  }
  EXPECT_EQ(journal->count("stop"), 0U);
}

TEST(CafHost, WatchFiresOnce) {
  Real real;
  const auto journal = std::make_shared<Journal>();
  auto spec = child<Counter>("counter");
  spec.restart = Restart::temporary;
  real.host->spawn(spec);
  const auto worker = real.host->spawn(child<Worker>("worker", journal));
  EXPECT_EQ(value_of(ask_now(*real.host, worker, do_this("watch"))), 0);
  EXPECT_EQ(value_of(ask_now(*real.host, worker, do_this("watch"))), 0);
  real.host->stop_child("counter");
  EXPECT_TRUE(journal->wait_for("down gone"));
  EXPECT_EQ(value_of(ask_now(*real.host, worker, do_this("watch"))), 0);  // nobody has the name now
  EXPECT_TRUE(journal->wait_for("down not_found"));
  EXPECT_EQ(journal->count("down gone"), 1U);
}

TEST(CafHost, DeadlineEndsAnAskAndCancelsNothingElse) {
  Real real;
  const auto journal = std::make_shared<Journal>();
  const auto worker = real.host->spawn(child<Worker>("worker", journal));
  SendOptions soon;
  soon.timeout = 5ms;
  EXPECT_EQ(code_of(ask_now(*real.host, worker, do_this("sleep", 60'000), soon)), ErrorCode::deadline);
  EXPECT_EQ(value_of(ask_now(*real.host, worker, do_this("block", 1))), 2);
}

TEST(CafHost, StopFreesTheFramesOfWaitingTasks) {
  const int before = Counted::alive;
  std::shared_ptr<Answer> waiting;
  {
    Real real;
    const auto journal = std::make_shared<Journal>();
    auto spec = child<Worker>("worker", journal);
    const auto worker = real.host->spawn(spec);
    waiting = ask_later(*real.host, worker, do_this("sleep", 60'000));
    EXPECT_EQ(value_of(ask_now(*real.host, worker, do_this("block", 1))), 2);
    EXPECT_GT(Counted::alive, before);
    EXPECT_TRUE(real.host->shutdown(5s).empty());
    EXPECT_EQ(journal->count("stop"), 1U);
  }
  EXPECT_EQ(code_of(waiting->get()), ErrorCode::gone);
  EXPECT_EQ(Counted::alive, before);
}

}  // namespace
}  // namespace falaj
