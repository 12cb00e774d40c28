// Streams: order, back-pressure, and that each end of one comes once, with its type, to both sides; on virtual time and on threads.
#include "runtime/host/stream.hpp"

#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/host/sim_host.hpp"
#include "tests/host/fixtures.hpp"

namespace falaj {
namespace {

using namespace test;
using messages::AwaitStream;
using messages::StreamAnswer;
using messages::StreamChunk;
using messages::StreamCredit;
using messages::StreamOpened;

// What both actors write and the test reads; any thread.
struct Facts {
  Journal journal;
  std::atomic<std::uint64_t> written{0};
  std::atomic<std::uint64_t> taken{0};
  std::atomic<std::size_t> most_items{0};
  std::atomic<std::size_t> most_bytes{0};
  std::atomic<bool> opened{false};
};
using FactsRef = std::shared_ptr<Facts>;

Bytes numbered(std::uint64_t number, std::size_t size) {
  Bytes out(std::max<std::size_t>(size, 8), static_cast<std::uint8_t>(number));
  std::memcpy(out.data(), &number, 8);
  return out;
}

std::string word(ErrorCode code) { return std::string(to_string(code)); }

struct SinkOptions {
  Duration each{0};                      // time for one piece
  std::uint64_t at = ~std::uint64_t{0};  // after so many pieces...
  std::string then;                      // ...: cancel, leave, fail, stop, sleep
  StreamOptions stream;
};

// Takes streams. "no": refuses. Journal: "all N" or the code of what ended it.
class Sink : public ActorOf<Sink> {
 public:
  static constexpr std::string_view kType = "test/sink";
  Sink(FactsRef facts, SinkOptions options) : facts_(std::move(facts)), options_(std::move(options)) {}
  static void handlers(Handlers<Sink>& on) { on.message<Do>(&Sink::take); }

 private:
  Task<> take(Context& ctx, Msg<Do> m) {
    if (text(m->getWhat()) == "no") co_return m.refuse(error(ErrorCode::denied, "told to"));
    const Counted counted;
    StreamIn in(ctx, m, options_.stream);
    for (std::uint64_t n = 0;; ++n) {
      if (n == options_.at) {
        const auto& then = options_.then;
        if (then == "cancel") in.cancel(error(ErrorCode::no_space, "told to"));
        if (then == "leave") co_return;
        if (then == "fail") throw std::runtime_error("told to");
        if (then == "stop") co_return ctx.stop();
        if (then == "sleep") co_await ctx.sleep(10s);
      }
      auto next = in.next();
      auto piece = co_await std::move(next);
      if (!piece.has_value()) co_return facts_->journal.write("sink " + word(piece.error().code));
      if (!piece->has_value()) {
        facts_->journal.write(format("sink all {}", n));
        co_return in.finish(total(static_cast<std::int64_t>(n)));
      }
      std::uint64_t number = 0;
      std::memcpy(&number, (*piece)->bytes().data(), 8);
      if (number != n) facts_->journal.write(format("sink got {} in place of {}", number, n));
      ++facts_->taken;
      if (options_.each > Duration::zero()) co_await ctx.sleep(options_.each);
    }
  }

  FactsRef facts_;
  SinkOptions options_;
};

struct SourceOptions {
  std::uint64_t pieces = 100;
  std::size_t size = 64;
  std::uint64_t at = ~std::uint64_t{0};
  std::string then;  // abort, leave, fail, stop, sleep
  std::string opening = "yes";
  StreamOptions stream;
};

// Writes pieces to the sink. Journal: "source answer N" or the code of what ended it.
class Source : public ActorOf<Source> {
 public:
  static constexpr std::string_view kType = "test/source";
  Source(FactsRef facts, ActorAddress to, SourceOptions options)
      : facts_(std::move(facts)), to_(std::move(to)), options_(std::move(options)) {}
  static void handlers(Handlers<Source>& on) { on.message<Do>(&Source::go); }

 private:
  Task<> go(Context& ctx, Msg<Do>) {
    const Counted counted;
    auto opening = open_stream(ctx, ctx.at(to_), do_this(options_.opening), options_.stream);
    auto opened = co_await std::move(opening);
    if (!opened.has_value()) co_return facts_->journal.write("source not opened: " + word(opened.error().code));
    auto& out = *opened;
    facts_->opened = true;
    for (std::uint64_t n = 0; n < options_.pieces; ++n) {
      if (n == options_.at) {
        const auto& then = options_.then;
        if (then == "abort") out.abort(error(ErrorCode::corrupt, "told to"));
        if (then == "leave") co_return;
        if (then == "fail") throw std::runtime_error("told to");
        if (then == "stop") co_return ctx.stop();
        if (then == "sleep") co_await ctx.sleep(10s);
      }
      auto writing = out.write(numbered(n, options_.size));
      const auto sent = co_await std::move(writing);
      if (!sent.has_value()) {
        facts_->journal.write("source " + word(sent.error().code));
        if (sent.error().code == ErrorCode::invalid) co_return;
        auto again = out.write({});
        const auto same = co_await std::move(again);
        EXPECT_TRUE(!same.has_value() && same.error() == sent.error()) << "an end is one end";
        co_return;
      }
      ++facts_->written;
      facts_->most_items = std::max<std::size_t>(facts_->most_items, out.items_in_flight());
      facts_->most_bytes = std::max<std::size_t>(facts_->most_bytes, out.bytes_in_flight());
    }
    auto closing = out.close();
    const auto answer = co_await std::move(closing);
    facts_->journal.write(answer.has_value() ? format("source answer {}", value_of(answer)) : "source " + word(answer.error().code));
  }

  FactsRef facts_;
  ActorAddress to_;
  SourceOptions options_;
};

std::size_t streams_of(Host& host) {
  const auto actors = host.actors();
  return static_cast<std::size_t>(std::ranges::count_if(actors, [](const ActorInfo& a) { return a.type == "host/stream"; }));
}

// A source on one node, a sink on another.
struct Pair {
  SimWorld world;
  FactsRef facts = std::make_shared<Facts>();
  explicit Pair(SourceOptions source, SinkOptions sink, std::uint64_t seed = 5, const SimOptions& net = {}) : world(seed, net) {
    auto& b = world.add_node("b", [f = facts, sink](Host& host) {
      auto spec = child<Sink>("sink", f, sink);
      spec.restart = Restart::temporary;
      host.spawn(std::move(spec));
    });
    const ActorAddress to{b.node(), {}, {}, "sink"};
    world.add_node("a", [f = facts, to, source](Host& host) {
      auto spec = child<Source>("source", f, to, source);
      spec.restart = Restart::temporary;
      host.spawn(std::move(spec));
    });
    world.run_for(10ms);
  }
  void go() {
    auto& a = world.host("a");
    a.tell(a.find("source"), do_this("go"));
  }
  std::vector<std::string> run(Duration limit = 30s) {
    go();
    world.run_for(limit);
    auto lines = facts->journal.lines();
    std::ranges::sort(lines);
    return lines;
  }
};
using Lines = std::vector<std::string>;
std::ptrdiff_t times(const Lines& lines, std::string_view line) { return std::count(lines.begin(), lines.end(), line); }

TEST(Stream, BringsEverythingOnceAndInOrder) {
  Pair pair({.pieces = 1000, .size = 1000}, {});
  EXPECT_EQ(pair.run(), (Lines{"sink all 1000", "source answer 1000"}));
  EXPECT_EQ(streams_of(pair.world.host("b")), 0U) << "the inlet ends with its stream";
}

TEST(Stream, OfNothingIsAStream) {
  Pair pair({.pieces = 0}, {});
  EXPECT_EQ(pair.run(), (Lines{"sink all 0", "source answer 0"}));
}

TEST(Stream, ASlowConsumerBoundsTheProducerByItems) {
  SinkOptions slow{.each = 10ms};
  slow.stream.items = 4;
  Pair pair({.pieces = 200}, slow);
  pair.go();
  const auto over = pair.world.now() + 20s;
  while (pair.world.step_until(over)) {
    ASSERT_LE(pair.facts->written, pair.facts->taken + 4U + 1U) << "four have credit, one has just been written";
  }
  EXPECT_EQ(pair.facts->most_items, 4U);
  EXPECT_EQ(pair.facts->journal.count("source answer 200"), 1U);
}

TEST(Stream, ASlowConsumerBoundsTheProducerByBytes) {
  SinkOptions slow{.each = 1ms};
  slow.stream.bytes = 3'500;
  Pair pair({.pieces = 50, .size = 1'000}, slow);
  EXPECT_EQ(pair.run(), (Lines{"sink all 50", "source answer 50"}));
  EXPECT_EQ(pair.facts->most_items, 3U);
  EXPECT_EQ(pair.facts->most_bytes, 3'000U);
}

TEST(Stream, AChunkLargerThanTheWindowIsRefusedAtOnce) {
  SinkOptions small;
  small.stream.bytes = 999;
  Pair pair({.pieces = 1, .size = 1'000}, small);
  pair.go();
  pair.world.run_for(5s);
  EXPECT_EQ(pair.facts->journal.lines().front(), "source invalid");
}

TEST(Stream, ARefusedOpeningSaysWhy) {
  Pair pair({.opening = "no"}, {});
  EXPECT_EQ(pair.run(), (Lines{"source not opened: denied"}));
  Pair nobody({}, {});
  auto& b = nobody.world.host("b");
  b.stop_child("sink");
  nobody.world.run_for(10ms);
  EXPECT_EQ(nobody.run(), (Lines{"source not opened: not_found"}));
}

// ---- how it ends -------------------------------------------------------------------------------------------------------------------

struct EndCase {
  std::string name;
  SourceOptions source;
  SinkOptions sink;
  Lines lines;
};
class StreamEnd : public testing::TestWithParam<EndCase> {};

TEST_P(StreamEnd, IsOneTypedErrorOnTheOtherSide) {
  const int alive = Counted::alive;
  {
    Pair pair(GetParam().source, GetParam().sink);
    EXPECT_EQ(pair.run(), GetParam().lines);
    EXPECT_EQ(streams_of(pair.world.host("b")), 0U);
    EXPECT_EQ(Counted::alive, alive) << "nobody waits any more";
  }
}

SinkOptions sink_that(std::string then) { return {.at = 20, .then = std::move(then)}; }
SourceOptions source_that(std::string then) { return {.at = 20, .then = std::move(then)}; }
SinkOptions silent_source() {
  SinkOptions out;
  out.stream.silence = 1s;
  return out;
}
SourceOptions silent_sink() {
  SourceOptions out;
  out.stream.silence = 1s;
  return out;
}

INSTANTIATE_TEST_SUITE_P(
    All, StreamEnd,
    testing::Values(EndCase{"ReceiverCancels", {}, sink_that("cancel"), {"sink no_space", "source no_space"}},
                    EndCase{"ReceiverLeaves", {}, sink_that("leave"), {"source gone"}},
                    EndCase{"ReceiverStops", {}, sink_that("stop"), {"source gone"}},
                    EndCase{"ReceiverFails", {}, sink_that("fail"), {"source gone"}},
                    EndCase{"SenderAborts", source_that("abort"), {}, {"sink corrupt", "source corrupt"}},
                    EndCase{"SenderLeaves", source_that("leave"), {}, {"sink gone"}},
                    EndCase{"SenderStops", source_that("stop"), {}, {"sink gone"}},
                    EndCase{"SenderFails", source_that("fail"), {}, {"sink gone"}},
                    EndCase{"SenderIsSilent", source_that("sleep"), silent_source(), {"sink deadline", "source deadline"}},
                    EndCase{"ReceiverIsSilent", silent_sink(), sink_that("sleep"), {"sink deadline", "source deadline"}}),
    [](const auto& test) { return test.param.name; });

TEST(Stream, TheDeathOfANodeEndsItAtTheOther) {
  for (const std::string dies : {"a", "b"}) {
    Pair pair({.pieces = 1'000'000}, {});
    pair.go();
    pair.world.run_for(50ms);
    ASSERT_GT(pair.facts->taken, 10U);
    pair.world.crash(dies);
    pair.world.run_for(5s);
    EXPECT_EQ(pair.facts->journal.lines(), (Lines{dies == "a" ? "sink unreachable" : "source unreachable"}));
    if (dies == "a") {
      EXPECT_EQ(streams_of(pair.world.host("b")), 0U);
    }
  }
}

TEST(Stream, ALostLinkEndsItAtBothEnds) {
  Pair pair({.pieces = 1'000'000}, {});
  pair.go();
  pair.world.run_for(50ms);
  pair.world.partition("a", "b");
  pair.world.run_for(5s);
  auto lines = pair.facts->journal.lines();
  std::ranges::sort(lines);
  EXPECT_EQ(lines, (Lines{"sink unreachable", "source unreachable"}));
  pair.world.heal("a", "b");
  pair.world.run_for(5s);
  EXPECT_EQ(pair.facts->journal.lines().size(), 2U) << "an end comes once";
}

// ---- faults from a seed --------------------------------------------------------------------------------------------------------------

// Each mailbox now and then has no room.
class Crowded : public fault::Injector {
 public:
  explicit Crowded(std::uint64_t seed) : random_(seed) { fault::injector = this; }
  ~Crowded() override { fault::injector = nullptr; }
  Crowded(const Crowded&) = delete;
  Crowded& operator=(const Crowded&) = delete;
  bool planted(std::string_view) override { return false; }
  bool rarely(std::string_view name, double) override { return on && name == "mailbox-full" && random_.uniform() < 0.3; }
  bool on = false;

 private:
  Random random_;
};

TEST(Stream, AChunkThatFindsNoRoomIsSentAgain) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Crowded crowded(seed);
    Pair pair({.pieces = 300}, {}, seed);
    pair.go();
    ASSERT_TRUE(pair.world.run_until([&] { return pair.facts->opened.load(); }, 5s));
    crowded.on = true;
    pair.world.run_for(60s);
    auto lines = pair.facts->journal.lines();
    std::ranges::sort(lines);
    EXPECT_EQ(lines, (Lines{"sink all 300", "source answer 300"})) << "seed " << seed;
  }
}

TEST(Stream, EndsOnceAtBothEndsWhateverTheNetworkDoes) {
  std::size_t whole = 0;
  std::size_t broken = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SimOptions net;
    net.loss = seed % 3 == 0 ? 0.003 : 0;
    net.uneven = 0.5;
    SourceOptions from{.pieces = 400, .size = 2'000};
    from.stream.silence = 3s;
    SinkOptions to{.each = 1ms};
    to.stream.silence = 3s;
    Pair pair(from, to, seed, net);
    auto faults = pair.world.random("faults");
    pair.go();
    const auto begin = pair.world.now();
    for (int i = 0; i < 3; ++i) {
      const auto when = begin + std::chrono::milliseconds(20 + faults.below(600));
      const auto kind = faults.below(6);
      pair.world.at(when, [&pair, kind, when] {
        if (kind == 0) pair.world.reset("a", "b");
        if (kind == 1) pair.world.clog("a", "b", when + 300ms);
        if (kind == 2) pair.world.clog("b", "a", when + 300ms);
        if (kind == 3) pair.world.cut("a", "b");
        if (kind == 4) pair.world.lag("b", "a", 5ms);
      });
    }
    pair.world.run_for(60s);
    const auto lines = pair.facts->journal.lines();
    const auto of = [&](std::string_view who) {
      return std::ranges::count_if(lines, [&](const std::string& line) { return line.starts_with(who); });
    };
    EXPECT_EQ(of("source "), 1) << "seed " << seed;
    EXPECT_LE(of("sink "), 1) << "seed " << seed;
    if (of("source not opened") == 0) {
      EXPECT_EQ(of("sink "), 1) << "seed " << seed;
    }
    EXPECT_EQ(of("sink got"), 0) << "seed " << seed;
    const bool answered = pair.facts->journal.count("source answer 400") == 1;
    const bool all = pair.facts->journal.count("sink all 400") == 1;
    EXPECT_TRUE(all || !answered) << "seed " << seed << ": answered for what was not there";
    ++(all ? whole : broken);
    EXPECT_EQ(streams_of(pair.world.host("b")), 0U) << "seed " << seed;
  }
  EXPECT_GT(whole, 5U);
  EXPECT_GT(broken, 5U);
}

// ---- by hand, as a program in another language would -----------------------------------------------------------------------------------

Message chunk_of(std::uint64_t number, std::size_t size = 8, bool last = false) {
  const auto content = numbered(number, size);
  return Message::build<StreamChunk>([&](StreamChunk::Builder b) {
    b.setSequence(number);
    if (!last) b.setContent(falaj::data(content));
    b.setLast(last);
  });
}

// Sends the chunks whose numbers it was given, and writes down what each was answered.
class ByHand : public ActorOf<ByHand> {
 public:
  static constexpr std::string_view kType = "test/by-hand";
  ByHand(FactsRef facts, ActorAddress to, std::vector<Message> chunks)
      : facts_(std::move(facts)), to_(std::move(to)), chunks_(std::move(chunks)) {}
  static void handlers(Handlers<ByHand>& on) { on.message<Do>(&ByHand::go); }

 private:
  Task<> go(Context& ctx, Msg<Do>) {
    auto asked = ctx.ask<StreamOpened>(ctx.at(to_), do_this("yes"));
    const auto opened = co_await asked;
    if (!opened.has_value()) co_return;
    const auto where = (*opened)->getInlet();
    inlet_ = ctx.at({NodeId(where.getNode()), Incarnation(where.getIncarnation()), ActorId(where.getActor()), {}});
    ctx.start(await_end(ctx));
    for (const auto& chunk : chunks_) {
      ctx.start(send(ctx, chunk));
      co_await ctx.sleep(1ms);
    }
  }
  Task<> await_end(Context& ctx) {
    auto waiting = ctx.ask<StreamAnswer>(inlet_, Message::build<AwaitStream>(), {.timeout = 20s});
    const auto answer = co_await waiting;
    facts_->journal.write(answer.has_value() ? "answer" : "end " + word(answer.error().code));
  }
  Task<> send(Context& ctx, Message chunk) {
    auto asked = ctx.ask<StreamCredit>(inlet_, chunk, {.lane = Lane::bulk, .timeout = 20s});
    const auto credit = co_await asked;
    const auto number = chunk.view<StreamChunk>()->getSequence();
    facts_->journal.write(credit.has_value() ? format("{}: credit to {}", number, (*credit)->getTaken())
                                             : format("{}: {}", number, word(credit.error().code)));
  }

  FactsRef facts_;
  ActorAddress to_;
  std::vector<Message> chunks_;
  ActorRef inlet_;
};

Lines by_hand(const std::vector<Message>& chunks, const SinkOptions& to) {
  SimWorld world(7);
  const auto facts = std::make_shared<Facts>();
  auto& host = world.add_node("n");
  const auto sink = host.spawn(child<Sink>("sink", facts, to));
  const auto hand = host.spawn(child<ByHand>("hand", facts, sink.address(), chunks));
  world.run_for(1ms);
  host.tell(hand, do_this("go"));
  world.run_for(30s);
  auto lines = facts->journal.lines();
  std::ranges::sort(lines);
  return lines;
}

TEST(StreamWire, WhatComesOutOfOrderIsPutInOrder) {
  EXPECT_EQ(by_hand({chunk_of(1), chunk_of(0), chunk_of(3, 0, true), chunk_of(2)}, {}),
            (Lines{"0: credit to 1", "1: credit to 2", "2: credit to 3", "3: credit to 4", "answer", "sink all 3"}));
}

TEST(StreamWire, AChunkTwiceEndsIt) {
  EXPECT_EQ(by_hand({chunk_of(0), chunk_of(0)}, {.each = 10ms}), (Lines{"0: corrupt", "0: credit to 1", "end corrupt", "sink corrupt"}));
  EXPECT_EQ(by_hand({chunk_of(1), chunk_of(1)}, {}), (Lines{"1: corrupt", "1: corrupt", "end corrupt", "sink corrupt"}));
}

TEST(StreamWire, ALostChunkEndsItByItsDeadline) {
  EXPECT_EQ(by_hand({chunk_of(0), chunk_of(2, 0, true)}, silent_source()),
            (Lines{"0: credit to 1", "2: deadline", "end deadline", "sink deadline"}));
}

TEST(StreamWire, WhatHasNoCreditEndsIt) {
  SinkOptions two;
  two.each = 1s;
  two.stream.items = 2;
  const auto items = by_hand({chunk_of(0), chunk_of(1), chunk_of(2), chunk_of(3)}, two);
  EXPECT_EQ(times(items, "end invalid"), 1);
  EXPECT_EQ(times(items, "sink invalid"), 1);
  SinkOptions few;
  few.each = 1s;
  few.stream.bytes = 100;
  const auto bytes = by_hand({chunk_of(0, 60), chunk_of(1, 60), chunk_of(2, 60)}, few);
  EXPECT_EQ(times(bytes, "end invalid"), 1);
}

TEST(StreamWire, GoingOnAfterTheEndEndsIt) {
  const auto lines = by_hand({chunk_of(0), chunk_of(1, 0, true), chunk_of(2)}, {.each = 1s});
  EXPECT_EQ(times(lines, "end corrupt"), 1);
  EXPECT_EQ(times(lines, "sink corrupt"), 1);
}

TEST(StreamWire, AnotherActorMayNotWriteToIt) {
  SimWorld world(7);
  const auto facts = std::make_shared<Facts>();
  auto& host = world.add_node("n");
  SinkOptions slow{.each = 10ms};
  const auto to = host.spawn(child<Sink>("sink", facts, slow));
  const auto from = host.spawn(child<Source>("source", facts, to.address(), SourceOptions{.pieces = 50}));
  world.run_for(1ms);
  host.tell(from, do_this("go"));
  world.run_for(50ms);
  const auto actors = host.actors();
  const auto inlet = std::ranges::find(actors, "host/stream", &ActorInfo::type);
  ASSERT_NE(inlet, actors.end());
  const auto answer = world.ask(host, host.at({host.node(), {}, inlet->id, {}}), chunk_of(100));
  EXPECT_EQ(code_of(answer), ErrorCode::denied);
  EXPECT_EQ(code_of(world.ask(host, host.at({host.node(), {}, inlet->id, {}}), Message::build<messages::TakeChunk>())), ErrorCode::denied);
  world.run_for(10s);
  EXPECT_EQ(facts->journal.count("source answer 50"), 1U) << "and the stream goes on";
}

// ---- on threads ----------------------------------------------------------------------------------------------------------------------

struct StreamOnThreads : testing::Test {
  Real real;
  FactsRef facts = std::make_shared<Facts>();
  void go(const SourceOptions& source, const SinkOptions& sink) {
    auto to = child<Sink>("sink", facts, sink);
    auto from = child<Source>("source", facts, real.host->spawn(std::move(to)).address(), source);
    from.restart = Restart::temporary;
    const auto actor = real.host->spawn(std::move(from));
    real.host->tell(actor, do_this("go"));
  }
};

TEST_F(StreamOnThreads, AStreamBringsEverythingInOrder) {
  SinkOptions sink;
  sink.stream.items = 8;
  go({.pieces = 5'000, .size = 4'096}, sink);
  EXPECT_TRUE(facts->journal.wait_for("source answer 5000"));
  EXPECT_EQ(facts->journal.lines(), (Lines{"sink all 5000", "source answer 5000"}));
  EXPECT_LE(facts->most_items, 8U);
}

TEST_F(StreamOnThreads, TheDeathOfEitherSideReachesTheOther) {
  go({.pieces = 1'000'000}, {.at = 100, .then = "fail"});
  EXPECT_TRUE(facts->journal.wait_for("source gone"));
  facts = std::make_shared<Facts>();
  auto to = real.host->spawn(child<Sink>("sink2", facts, SinkOptions{}));
  auto from = child<Source>("source2", facts, to.address(), SourceOptions{.pieces = 1'000, .at = 100, .then = "stop"});
  from.restart = Restart::temporary;
  real.host->tell(real.host->spawn(std::move(from)), do_this("go"));
  EXPECT_TRUE(facts->journal.wait_for("sink gone"));
}

}  // namespace
}  // namespace falaj
