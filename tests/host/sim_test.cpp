// The contract on virtual time: mailboxes, asks, watches, remote actors, rights, and equal digests for equal seeds.
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/host/remote.hpp"
#include "runtime/host/sim_host.hpp"
#include "tests/host/fixtures.hpp"

namespace falaj {
namespace {

using namespace test;

class Probe : public ActorOf<Probe> {
 public:
  static constexpr std::string_view kType = "test/probe";
  Probe(std::shared_ptr<Journal> journal, ActorAddress target) : journal_(std::move(journal)), target_(std::move(target)) {}
  static void handlers(Handlers<Probe>& on) {
    on.message<Do>(&Probe::act);
    on.message<Add>(&Probe::note);
    on.message<Large>(&Probe::large);
  }
  void on_down(Context&, const Down& down) override { journal_->write(format("down {}", to_string(down.reason.code))); }
  void note(Context&, Msg<Add> m) { journal_->write(format("note {}", m->getBy())); }
  void large(Context&, Msg<Large> m) { journal_->write(format("large {}", m->getBytes().size())); }

  Task<> act(Context& ctx, Msg<Do> m) {
    const Counted counted;
    const std::string what(text(m->getWhat()));
    const auto target = ctx.at(target_);
    if (what == "watch") {
      ctx.watch(target);
    } else if (what == "unwatch") {
      ctx.unwatch(target);
    } else if (what == "ask") {
      SendOptions options = m.options();
      if (m->getNumber() != 0) options.timeout = std::chrono::milliseconds(m->getNumber());
      auto answer = co_await ctx.ask<Total>(target, Message::build<GetTotal>(), options);
      if (!answer.has_value()) co_return m.refuse(answer.error());
      m.reply(answer->message());
    } else if (what == "sleep") {
      co_await ctx.sleep(std::chrono::milliseconds(m->getNumber()));
      journal_->write("slept");
      m.reply(total(0));
    } else if (what == "timers") {
      ctx.after(20ms, [j = journal_](Context&) { j->write("20"); });
      const auto never = ctx.after(15ms, [j = journal_](Context&) { j->write("never"); });
      ctx.after(10ms, [j = journal_, never](Context& c) {
        j->write("10");
        c.cancel(never);
      });
    } else if (what == "many sleeps") {
      for (int i = 0; i < 100; ++i) ctx.start(wait_long(ctx));
    } else if (what == "fail") {
      ctx.fail(failed("told to"));
    }
    if (m.wants_reply()) m.reply(total(0));
  }

 private:
  Task<> wait_long(Context& ctx) {
    const Counted counted;
    co_await ctx.sleep(1h);
  }
  std::shared_ptr<Journal> journal_;
  ActorAddress target_;
};

ChildSpec probe(const std::shared_ptr<Journal>& journal, ActorAddress target = {}, const std::string& name = "probe") {
  return child<Probe>(name, journal, std::move(target));
}
ActorAddress named(std::string_view node, std::string name) { return {node_id(node), {}, {}, std::move(name)}; }

// ---- mailboxes ------------------------------------------------------------------------------------------------------------------

TEST(Mailbox, AFullLaneRefusesAsksAndCountsTells) {
  SimWorld world(1);
  auto& host = world.add_node("n");
  const auto journal = std::make_shared<Journal>();
  auto spec = probe(journal);
  spec.mailbox.normal = 3;
  const auto to = host.spawn(spec);
  world.run_for(1ms);
  for (int i = 0; i < 3; ++i) host.tell(to, add(i));
  std::optional<Result<Message>> refused;
  host.ask(to, do_this("x"), {}, [&](Result<Message> r) { refused.emplace(std::move(r)); });
  host.tell(to, add(99));
  SendOptions control;
  control.lane = Lane::control;
  host.tell(to, add(7), control);
  EXPECT_FALSE(refused.has_value()) << "never inside the call";
  world.run_for(1ms);
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(code_of(*refused), ErrorCode::overloaded);
  EXPECT_EQ(journal->lines(), (std::vector<std::string>{"note 7", "note 0", "note 1", "note 2"})) << "control first, then in order";
  ASSERT_EQ(host.dead_letters().size(), 1U);
  EXPECT_EQ(host.dead_letters()[0].reason.substr(0, 10), "overloaded");
  EXPECT_EQ(host.dead_letters()[0].to.name, "probe");
  EXPECT_EQ(host.metrics().counter("falaj_actor_dead_letters_total", "").value(), 1U);
}

TEST(Mailbox, BulkIsBoundedInBytesToo) {
  SimWorld world(1);
  auto& host = world.add_node("n");
  const auto journal = std::make_shared<Journal>();
  const auto to = host.spawn(probe(journal));
  world.run_for(1ms);
  constexpr std::size_t kSize = 8U << 20;
  SendOptions bulk;
  bulk.lane = Lane::bulk;
  for (int i = 0; i < 9; ++i) {
    host.tell(to, Message::build<Large>([](Large::Builder b) { b.initBytes(kSize); }, kSize / 8 + 8), bulk);
  }
  world.run_for(1ms);
  EXPECT_EQ(journal->lines().size(), limits::kMailboxBulkBytes / kSize - 1) << "the framing counts as well";
  EXPECT_EQ(host.dead_letters().size(), 9 - journal->lines().size());
}

TEST(Mailbox, DeadLettersAreARing) {
  SimWorld world(1);
  auto& host = world.add_node("n");
  for (std::size_t i = 0; i < limits::kDeadLetters + 10; ++i) host.tell({}, add(1));
  EXPECT_EQ(host.dead_letters().size(), limits::kDeadLetters);
}

// ---- asks, timers and tasks ----------------------------------------------------------------------------------------------------------

TEST(Asks, LateAnswersAreDroppedAndCounted) {
  SimWorld world(2);
  auto& host = world.add_node("n");
  const auto journal = std::make_shared<Journal>();
  const auto to = host.spawn(probe(journal));
  SendOptions soon;
  soon.timeout = 5ms;
  EXPECT_EQ(code_of(world.ask(host, to, do_this("sleep", 10), soon)), ErrorCode::deadline);
  world.run_for(1s);
  EXPECT_EQ(journal->count("slept"), 1U);
  EXPECT_EQ(host.metrics().counter("falaj_actor_late_answers_total", "").value(), 1U);
}

TEST(Asks, TheDeadlineTravelsWithTheMessage) {
  SimWorld world(2);
  auto& host = world.add_node("n");
  const auto journal = std::make_shared<Journal>();
  host.spawn(probe(journal, named("n", "second"), "first"));
  host.spawn(probe(journal, {NodeId{}, {}, {}, "nobody"}, "second"));
  EXPECT_EQ(code_of(world.ask(host, host.find("second"), do_this("ask"))), ErrorCode::not_found);
  EXPECT_EQ(code_of(world.ask(host, host.find("first"), do_this("ask"))), ErrorCode::unimplemented);
}

TEST(Timers, FireInOrderAndCanBeCancelled) {
  SimWorld world(3);
  auto& host = world.add_node("n");
  const auto journal = std::make_shared<Journal>();
  host.tell(host.spawn(probe(journal)), do_this("timers"));
  world.run_for(1s);
  EXPECT_EQ(journal->lines(), (std::vector<std::string>{"10", "20"}));
}

TEST(Tasks, StopFreesEveryFrame) {
  const int before = Counted::alive;
  SimWorld world(3);
  auto& host = world.add_node("n");
  const auto journal = std::make_shared<Journal>();
  const auto to = host.spawn(probe(journal));
  EXPECT_TRUE(world.ask(host, to, do_this("many sleeps")).has_value());
  EXPECT_EQ(Counted::alive, before + 100);
  host.stop_child("probe");
  world.run_for(1ms);
  EXPECT_EQ(Counted::alive, before);
}

TEST(Tasks, AnAskToAnActorThatStopsIsRefusedGone) {
  SimWorld world(3);
  auto& host = world.add_node("n");
  const auto journal = std::make_shared<Journal>();
  const auto to = host.spawn(probe(journal));
  std::optional<Result<Message>> answer;
  host.ask(to, do_this("sleep", 100'000), {}, [&](Result<Message> r) { answer.emplace(std::move(r)); });
  world.run_for(1ms);
  host.stop_child("probe");
  world.run_for(1ms);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(code_of(*answer), ErrorCode::gone);
}

// ---- rights -------------------------------------------------------------------------------------------------------------------------

class Policy final : public Authorizer {
 public:
  Status allow(const Scope& scope, std::string_view verb, std::string_view actor_type, std::string_view message) override {
    asked.push_back(format("{} {} {} {}", scope.principal, verb, actor_type, message));
    if (verb == "sample.read" && scope.principal == "spiffe://c/user/reader") return {};
    return error(ErrorCode::denied, "no");
  }
  std::vector<std::string> asked;
};

ScopeRef principal(std::string id) { return std::make_shared<Scope>(Scope{std::move(id), {}, {}, {}, {}}); }

TEST(Rights, AreAskedForScopesFromOutside) {
  SimWorld world(4);
  Policy policy;
  HostOptions options;
  options.authorizer = &policy;
  auto& host = world.add_node("n", {}, options);
  const auto counter = host.spawn(child<Counter>("counter"));
  SendOptions as;
  as.scope = principal("spiffe://c/user/reader");
  EXPECT_TRUE(world.ask(host, counter, Message::build<GetTotal>(), as).has_value());
  EXPECT_EQ(policy.asked.at(0), "spiffe://c/user/reader sample.read test/counter GetTotal");
  EXPECT_EQ(code_of(world.ask(host, counter, add(1), as)), ErrorCode::denied);
  as.scope = principal("spiffe://c/user/stranger");
  EXPECT_EQ(code_of(world.ask(host, counter, Message::build<GetTotal>(), as)), ErrorCode::denied);
  EXPECT_TRUE(world.ask(host, counter, add(1)).has_value()) << "the node itself";
  EXPECT_EQ(policy.asked.size(), 3U);
}

TEST(Rights, APrincipalSpeaksOnlyForItself) {
  SimWorld world(4);
  Policy policy;
  HostOptions options;
  options.authorizer = &policy;
  auto& host = world.add_node("n", {}, options);
  host.spawn(child<Counter>("counter"));
  const auto envelope = Message::build<messages::Envelope>([&](messages::Envelope::Builder b) {
    b.initTo().setName("counter");
    b.setKind(messages::Kind::TELL);
    b.initScope().setPrincipal("spiffe://c/user/reader");
  });
  Host::Peer peer{NodeId(77), Incarnation(1), "spiffe://c/user/mallory", false};
  host.on_message(peer, Lane::normal, envelope.bytes(), Message::build<GetTotal>());
  world.run_for(1ms);
  ASSERT_EQ(policy.asked.size(), 1U);
  EXPECT_EQ(policy.asked[0].substr(0, 23), "spiffe://c/user/mallory");
  EXPECT_EQ(host.dead_letters().size(), 1U);
  peer.is_node = true;  // a node may speak for others
  host.on_message(peer, Lane::normal, envelope.bytes(), Message::build<GetTotal>());
  world.run_for(1ms);
  EXPECT_EQ(policy.asked.at(1).substr(0, 22), "spiffe://c/user/reader");
}

TEST(Rights, WithoutAPolicyAllIsDenied) {
  SimWorld world(4);
  auto& host = world.add_node("n");
  const auto counter = host.spawn(child<Counter>("counter"));
  SendOptions as;
  as.scope = principal("spiffe://c/user/reader");
  EXPECT_EQ(code_of(world.ask(host, counter, Message::build<GetTotal>(), as)), ErrorCode::denied);
}

// ---- other nodes ---------------------------------------------------------------------------------------------------------------------

struct Pair {
  explicit Pair(std::uint64_t seed = 5) : world(seed) {
    world.add_node("a", [this](Host& h) { h.spawn(probe(journal, named("b", "counter"))); });
    world.add_node("b", [](Host& h) { h.spawn(child<Counter>("counter")); });
    world.run_for(1ms);
  }
  Host& a() { return world.host("a"); }
  Host& b() { return world.host("b"); }
  void tell_probe(std::string_view what) {
    a().tell(a().find("probe"), do_this(what));
    world.run_for(20ms);
  }
  std::shared_ptr<Journal> journal = std::make_shared<Journal>();
  SimWorld world;
};

TEST(Remote, AsksAndTellsFindActorsByName) {
  Pair pair;
  const auto remote = pair.a().at(named("b", "counter"));
  for (int i = 0; i < 10; ++i) pair.a().tell(remote, add(i));
  EXPECT_EQ(value_of(pair.world.ask(pair.a(), remote, Message::build<GetTotal>())), 45);
  EXPECT_EQ(value_of(pair.world.ask(pair.a(), pair.a().find("probe"), do_this("ask"))), 45);
  EXPECT_EQ(code_of(pair.world.ask(pair.a(), pair.a().at(named("b", "nobody")), add(1))), ErrorCode::not_found);
  EXPECT_EQ(code_of(pair.world.ask(pair.a(), pair.a().at(named("c", "counter")), add(1))), ErrorCode::unreachable);
  EXPECT_EQ(code_of(pair.world.ask(pair.a(), pair.a().at({node_id("b"), {}, ActorId(9999), {}}), add(1))), ErrorCode::gone);
  EXPECT_EQ(pair.a().at(named("b", "counter")), remote) << "one proxy for one address";
}

TEST(Remote, AsksFailWhenThePeerIsLost) {
  Pair pair;
  std::optional<Result<Message>> answer;
  pair.world.partition("a", "b");
  const auto sent = pair.world.now();
  pair.a().ask(pair.a().at(named("b", "counter")), add(1), {}, [&](Result<Message> r) { answer.emplace(std::move(r)); });
  ASSERT_TRUE(pair.world.run_until([&] { return answer.has_value(); }, 10s));
  EXPECT_EQ(code_of(*answer), ErrorCode::unreachable);
  EXPECT_LE(pair.world.now() - sent, 1s);
  EXPECT_EQ(code_of(pair.world.ask(pair.a(), pair.a().at(named("b", "counter")), add(1))), ErrorCode::unreachable);
  pair.world.heal("a", "b");
  pair.world.run_for(1s);
  EXPECT_EQ(value_of(pair.world.ask(pair.a(), pair.a().at(named("b", "counter")), add(1))), 1);
}

TEST(Remote, TheDeathOfANodeIsTheDeathOfItsActorsOnce) {
  Pair pair;
  pair.tell_probe("watch");
  pair.world.crash("b");
  pair.world.run_for(5s);
  EXPECT_EQ(pair.journal->lines(), (std::vector<std::string>{"down unreachable"}));
  pair.world.restart("b");
  pair.world.run_for(5s);
  EXPECT_EQ(pair.journal->lines().size(), 1U);
  pair.tell_probe("watch");
  pair.b().stop_child("counter");
  pair.world.run_for(1s);
  EXPECT_EQ(pair.journal->lines(), (std::vector<std::string>{"down unreachable", "down gone"}));
  pair.tell_probe("watch");
  EXPECT_EQ(pair.journal->lines().back(), "down not_found");
}

TEST(Remote, AQuickRestartIsNoticedToo) {
  Pair pair;
  pair.tell_probe("watch");
  pair.world.crash("b");
  pair.world.restart("b");
  pair.world.run_for(1s);
  EXPECT_EQ(pair.journal->lines(), (std::vector<std::string>{"down unreachable"}));
}

TEST(Remote, UnwatchedIsSilent) {
  Pair pair;
  pair.tell_probe("watch");
  pair.tell_probe("unwatch");
  pair.b().stop_child("counter");
  pair.world.run_for(1s);
  EXPECT_TRUE(pair.journal->lines().empty());
}

TEST(Remote, ARefToADeadIncarnationAnswersGone) {
  Pair pair;
  const auto old = pair.a().at(pair.b().find("counter").address());
  EXPECT_EQ(value_of(pair.world.ask(pair.a(), old, add(3))), 3);
  pair.world.crash("b");
  pair.world.run_for(2s);
  pair.world.restart("b");
  pair.world.run_for(2s);
  EXPECT_EQ(code_of(pair.world.ask(pair.a(), old, add(3))), ErrorCode::gone);
  EXPECT_EQ(value_of(pair.world.ask(pair.a(), pair.a().at(named("b", "counter")), add(3))), 3);
}

TEST(Remote, NobodyAnswersUnasked) {
  Pair pair;
  std::optional<Result<Message>> answer;
  pair.world.partition("a", "b");
  pair.a().ask(pair.a().at(named("b", "counter")), add(1), {}, [&](Result<Message> r) { answer.emplace(std::move(r)); });
  for (std::uint64_t actor = 1; actor < 40; ++actor) {
    const auto forged = Message::build<messages::Envelope>([&](messages::Envelope::Builder b) {
      b.initTo().setActor(actor);
      b.setKind(messages::Kind::REPLY);
      b.setCorrelation(1);
    });
    pair.a().on_message({NodeId(66), Incarnation(1), "spiffe://c/user/mallory", false}, Lane::normal, forged.bytes(), total(666));
  }
  pair.world.run_for(10s);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(code_of(*answer), ErrorCode::unreachable);
}

// Programs come under another name each time.
TEST(Remote, ForgetsProgramsThatAreGone) {
  SimWorld world(4);
  Policy policy;
  HostOptions options;
  options.authorizer = &policy;
  auto& host = world.add_node("n", {}, options);
  host.spawn(child<Counter>("counter"));
  const auto envelope = Message::build<messages::Envelope>([&](messages::Envelope::Builder b) {
    b.initTo().setName("counter");
    b.initFrom().setName("asker");
    b.setKind(messages::Kind::ASK);
    b.setCorrelation(1);
  });
  constexpr std::uint64_t kPrograms = 5000;
  for (std::uint64_t i = 1; i <= kPrograms; ++i) {
    host.on_message({NodeId(1000 + i), Incarnation(1), "spiffe://c/user/reader", false}, Lane::normal, envelope.bytes(),
                    Message::build<GetTotal>());
    world.run_for(1ms);
    host.on_peer_down(NodeId(1000 + i), Incarnation(1), error(ErrorCode::unreachable, "it has gone"));
  }
  EXPECT_EQ(policy.asked.size(), kPrograms);
  EXPECT_LT(host.metrics().gauge("falaj_host_peers", "Nodes and programs of which something is remembered").value(),
            2.0 * static_cast<double>(Remote::kForgetPeers));
}

// ---- what the simulated network may do -------------------------------------------------------------------------------------------------

TEST(SimNetwork, ACutOneWayLosesAnswersAndIsNoticed) {
  Pair pair;
  const auto counter = pair.a().at(named("b", "counter"));
  pair.world.cut("b", "a");
  EXPECT_EQ(code_of(pair.world.ask(pair.a(), counter, add(3))), ErrorCode::unreachable) << "silence is taken for loss";
  EXPECT_EQ(value_of(pair.world.ask(pair.b(), pair.b().find("counter"), Message::build<GetTotal>())), 3) << "but it had come";
  pair.world.heal("a", "b");
  pair.world.run_for(1s);
  EXPECT_EQ(value_of(pair.world.ask(pair.a(), counter, add(4))), 7);
}

TEST(SimNetwork, AClogDelaysAndLosesNothing) {
  Pair pair;
  pair.world.clog("a", "b", pair.world.now() + 300ms);
  const auto begin = pair.world.now();
  EXPECT_EQ(value_of(pair.world.ask(pair.a(), pair.a().at(named("b", "counter")), add(3))), 3);
  EXPECT_GE(pair.world.now() - begin, 300ms);
}

TEST(SimNetwork, AnEndedProcessIsNoticedAtOnce) {
  Pair pair;
  pair.tell_probe("watch");
  pair.world.kill("b");
  pair.world.run_for(1ms);
  EXPECT_EQ(pair.journal->lines(), (std::vector<std::string>{"down unreachable"}));
}

// ---- equal seeds, equal runs ------------------------------------------------------------------------------------------------------------

std::uint64_t run_world(std::uint64_t seed) {
  SimWorld world(seed);
  world.options().loss = 0.002;
  const auto journal = std::make_shared<Journal>();
  const std::vector<std::string> names{"a", "b", "c"};
  for (std::size_t i = 0; i < names.size(); ++i) {
    world.add_node(names[i], [&, i](Host& host) {
      host.spawn(child<Counter>("counter"));
      host.spawn(probe(journal, named(names[(i + 1) % names.size()], "counter")));
    });
  }
  auto random = world.random("workload");
  std::size_t asked = 0;
  std::size_t answered = 0;
  for (int round = 0; round < 300; ++round) {
    const auto& name = names[random.below(names.size())];
    if (random.chance(0.02)) world.crash(name);
    if (random.chance(0.02)) world.partition(name, names[random.below(names.size())]);
    if (random.chance(0.1)) {
      for (const auto& a : names) {
        if (!world.running(a)) world.restart(a);
        for (const auto& b : names) world.heal(a, b);
      }
    }
    if (world.running(name)) {
      auto& host = world.host(name);
      ++asked;
      host.ask(host.find("probe"), do_this(random.chance(0.5) ? "ask" : "watch"), {}, [&](const Result<Message>&) { ++answered; });
    }
    world.run_for(std::chrono::milliseconds(random.below(30)));
  }
  world.run_for(30s);
  EXPECT_EQ(answered, asked) << "seed " << seed;
  return world.digest();
}

TEST(Simulation, EqualSeedsGiveEqualDigests) {
  std::vector<std::uint64_t> digests;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    digests.push_back(run_world(seed));
    EXPECT_EQ(run_world(seed), digests.back()) << "seed " << seed;
  }
  std::sort(digests.begin(), digests.end());
  EXPECT_EQ(std::unique(digests.begin(), digests.end()), digests.end());
}

}  // namespace
}  // namespace falaj
