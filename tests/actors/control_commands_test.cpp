// Commands with an idempotency key: carried out once, also when control is started anew, and only for the same content.
#include <gtest/gtest.h>

#include "actors/control/commands.hpp"
#include "actors/control/resources.hpp"
#include "actors/mlops/registry.hpp"
#include "messages/control_internal.capnp.h"
#include "messages/envelope.capnp.h"
#include "messages/governance.capnp.h"
#include "messages/registry.capnp.h"
#include "messages/training.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/host/sim_host.hpp"
#include "storage/memory_kv.hpp"

namespace falaj::control {
namespace {

using namespace std::chrono_literals;
using messages::Apply;
using messages::DeleteResource;
using messages::Empty;
using messages::ResourceRecord;

// What the test reads of the actors around the one under test.
struct Seen {
  std::vector<std::string> audited;
  std::vector<std::uint64_t> runs;  // generations of RunJob
  Duration audit_takes{0};
  bool audit_fails = false;
};
using SeenRef = std::shared_ptr<Seen>;

class FakeAudit final : public ActorOf<FakeAudit> {
 public:
  static constexpr std::string_view kType = "governance/audit";
  explicit FakeAudit(SeenRef seen) : seen_(std::move(seen)) {}
  static void handlers(Handlers<FakeAudit>& on) { on.message<messages::Audit>(&FakeAudit::take); }

 private:
  Task<> take(Context& ctx, Msg<messages::Audit> m) {
    if (seen_->audit_takes > Duration::zero()) co_await ctx.sleep(seen_->audit_takes);
    if (seen_->audit_fails) co_return m.refuse(error(ErrorCode::overloaded, "told to"));
    seen_->audited.emplace_back("audited");
    m.reply(Message::build<Empty>());
  }
  SeenRef seen_;
};

class FakeControl final : public ActorOf<FakeControl> {
 public:
  static constexpr std::string_view kType = "test/control";
  explicit FakeControl(SeenRef seen) : seen_(std::move(seen)) {}
  static void handlers(Handlers<FakeControl>& on) {
    on.message<messages::DealPartitions>(&FakeControl::deal);
    on.message<messages::PublishResources>(&FakeControl::publish);
    on.message<messages::RunJob>(&FakeControl::run);
    on.message<messages::GetRun>(&FakeControl::get);
  }

 private:
  void deal(Context&, Msg<messages::DealPartitions> m) { m.reply(Message::build<Empty>()); }
  void publish(Context&, Msg<messages::PublishResources> m) { m.reply(Message::build<Empty>()); }
  void run(Context&, Msg<messages::RunJob> m) {
    if (seen_->runs.empty() || seen_->runs.back() != m->getGeneration()) seen_->runs.push_back(m->getGeneration());
    m.reply(Message::build<Empty>());
  }
  void get(Context&, Msg<messages::GetRun> m) { m.refuse(error(ErrorCode::not_found, "no such run")); }
  SeenRef seen_;
};

template <class A>
ChildSpec named(std::string name, SeenRef seen) {
  ChildSpec spec;
  spec.id = spec.name = std::move(name);
  spec.make = [seen] { return std::make_unique<A>(seen); };
  return spec;
}

Message job(std::uint64_t epochs, bool again = true, std::uint64_t expected = 0) {
  return Message::build<Apply>([&](Apply::Builder b) {
    auto spec = b.initResource().initJob();
    spec.setName("risk");
    spec.setView("train");
    spec.setLabel("y");
    spec.setPurpose("training");
    spec.setEpochs(epochs);
    b.setAgain(again);
    b.setExpected(expected);
  });
}

Message drop() {
  return Message::build<DeleteResource>([](DeleteResource::Builder b) {
    b.setKind("job");
    b.setName("risk");
  });
}

SendOptions keyed(const std::string& key, const std::string& principal = "spiffe://c/person/ada") {
  SendOptions out;
  auto scope = std::make_shared<Scope>();
  scope->principal = principal;
  scope->idempotency_key = key;
  out.scope = std::move(scope);
  return out;
}

class Everything final : public Authorizer {
 public:
  Status allow(const Scope&, std::string_view, std::string_view, std::string_view) override { return {}; }
};

// Control, with a disk that outlives it.
class Commands : public testing::Test {
 protected:
  Commands() { start({}); }
  void start(const CommandLimits& limits) {
    HostOptions base;
    base.authorizer = &everything;
    world.add_node(
        "control",
        [this, limits](Host& host) {
          stores.push_back(storage::open_control_store(kv, clock).value());
          host.spawn(named<FakeAudit>("governance/audit", seen));
          host.spawn(named<FakeControl>("control/membership", seen));
          host.spawn(named<FakeControl>("training/jobs", seen));
          host.spawn(resources({stores.back().get(), &view, Epoch(1), limits}));
          mlops::RegistryOptions registry;
          registry.store = stores.back().get();
          registry.commands = limits;
          host.spawn(mlops::registry(std::move(registry)));
        },
        base);
    world.run_for(100ms);
  }
  void restart() {
    world.crash("control");
    world.restart("control");
    world.run_for(100ms);
  }
  Result<Message> ask(Message message, const SendOptions& options, std::string_view actor = "control/resources") {
    auto& host = world.host("control");
    return world.ask(host, host.find(actor), std::move(message), options);
  }
  std::shared_ptr<std::optional<Result<Message>>> ask_later(Message message, const SendOptions& options) {
    auto answer = std::make_shared<std::optional<Result<Message>>>();
    auto& host = world.host("control");
    host.ask(host.find("control/resources"), std::move(message), options, [answer](Result<Message> r) { answer->emplace(std::move(r)); });
    return answer;
  }
  static std::uint64_t revision(const Result<Message>& answer) {
    EXPECT_TRUE(answer.has_value()) << to_string(answer.error());
    return answer.has_value() ? answer->view<ResourceRecord>()->getRevision() : 0;
  }
  static ErrorCode code(const Result<Message>& answer) {
    EXPECT_FALSE(answer.has_value());
    return answer.has_value() ? ErrorCode::failed : answer.error().code;
  }
  std::size_t remembered() { return stores.back()->list("command/").value().items.size(); }

  Everything everything;
  storage::MemoryKv kv;
  ManualClock clock;
  cluster::ClusterViewHolder view;
  SeenRef seen = std::make_shared<Seen>();
  std::vector<std::unique_ptr<storage::ControlStore>> stores;
  SimWorld world{1};
};

TEST_F(Commands, ACommandIsCarriedOutOnceForItsKey) {
  const auto first = revision(ask(job(1), keyed("k")));
  EXPECT_EQ(revision(ask(job(1), keyed("k"))), first);
  EXPECT_EQ(revision(ask(job(1), keyed("k"))), first);
  world.run_for(2s);
  EXPECT_EQ(seen->runs, (std::vector<std::uint64_t>{first})) << "one run";
  EXPECT_EQ(seen->audited.size(), 1U);
  const auto second = revision(ask(job(1), keyed("another")));
  EXPECT_GT(second, first);
  EXPECT_GT(revision(ask(job(1), keyed("k", "spiffe://c/person/bob"))), second) << "keys belong to their principal";
  EXPECT_EQ(revision(ask(job(1), keyed("k"))), first) << "as the first time, whatever has happened since";
}

TEST_F(Commands, WithoutAKeyNothingIsRemembered) {
  const auto first = revision(ask(job(1), {}));
  EXPECT_GT(revision(ask(job(1), {})), first);
  EXPECT_GT(revision(ask(job(1), keyed(""))), first);
  EXPECT_EQ(remembered(), 0U);
}

TEST_F(Commands, OtherContentUnderTheSameKeyIsAConflict) {
  const auto first = revision(ask(job(1), keyed("k")));
  EXPECT_EQ(code(ask(job(2), keyed("k"))), ErrorCode::conflict);
  EXPECT_EQ(code(ask(drop(), keyed("k"))), ErrorCode::conflict);
  EXPECT_EQ(revision(ask(job(1), keyed("k"))), first);
  auto other = keyed("k");
  auto scope = std::make_shared<Scope>(*other.scope);
  scope->tenant = "default";
  other.scope = scope;
  EXPECT_EQ(code(ask(job(1), other)), ErrorCode::conflict) << "for whom is part of what";
  world.run_for(2s);
  EXPECT_EQ(seen->runs.size(), 1U);
}

TEST_F(Commands, TheAnswerSurvivesARestart) {
  const auto first = revision(ask(job(1, true), keyed("k")));
  restart();
  EXPECT_EQ(revision(ask(job(1), keyed("k"))), first);
  EXPECT_EQ(code(ask(job(2), keyed("k"))), ErrorCode::conflict);
  ASSERT_TRUE(ask(drop(), keyed("d")).has_value());
  restart();
  EXPECT_TRUE(ask(drop(), keyed("d")).has_value());
  EXPECT_EQ(code(ask(drop(), keyed("e"))), ErrorCode::not_found);
  EXPECT_EQ(revision(ask(job(1), keyed("k"))), first) << "and brings nothing back";
  EXPECT_EQ(code(ask(drop(), keyed("e"))), ErrorCode::not_found);
}

// Whenever control dies, what was done and what is remembered agree.
TEST_F(Commands, ACrashAtAnyStepLeavesItDoneOnceOrNotAtAll) {
  std::size_t done = 0;
  std::size_t undone = 0;
  for (int steps = 1; steps < 60; ++steps) {
    const auto key = format("k{}", steps);
    const auto before = stores.back()->revision();
    const auto answer = ask_later(job(1), keyed(key));
    for (int i = 0; i < steps && !*answer; ++i) ASSERT_TRUE(world.step());
    const bool stored = stores.back()->revision() > before;
    ++(stored ? done : undone);
    const auto committed = stores.back()->revision().value();
    restart();
    const auto again = revision(ask(job(1), keyed(key)));
    if (stored) {
      EXPECT_EQ(again, committed) << "after " << steps << " steps";
    }
    if (!stored) {
      EXPECT_GT(again, before.value()) << "after " << steps << " steps";
    }
    EXPECT_EQ(revision(ask(job(1), keyed(key))), again);
  }
  EXPECT_GT(done, 0U);
  EXPECT_GT(undone, 0U);
}

TEST_F(Commands, OneThatComesWhileTheFirstIsRunningWaitsForIt) {
  seen->audit_takes = 1s;
  const auto first = ask_later(job(1), keyed("k"));
  const auto second = ask_later(job(1), keyed("k"));
  const auto other = ask_later(job(2), keyed("k"));
  world.run_for(500ms);
  EXPECT_FALSE(*first || *second || *other);
  world.run_for(3s);
  ASSERT_TRUE(*first && *second && *other);
  // Which of the three came first is the mailbox's to say; the others agree with it.
  const int conflicts = (**first ? 0 : 1) + (**second ? 0 : 1) + (**other ? 0 : 1);
  EXPECT_EQ(conflicts, **other ? 2 : 1);
  if (**first) {
    EXPECT_EQ(revision(**first), revision(**second));
  }
  EXPECT_EQ(seen->audited.size(), 1U);
}

TEST_F(Commands, WhatWasRefusedMayBeSentAgain) {
  seen->audit_fails = true;
  EXPECT_EQ(code(ask(job(1), keyed("k"))), ErrorCode::overloaded);
  EXPECT_EQ(code(ask(drop(), keyed("k"))), ErrorCode::not_found) << "under another content, too: nothing was done";
  seen->audit_fails = false;
  const auto done = revision(ask(job(1), keyed("k")));
  EXPECT_EQ(revision(ask(job(1), keyed("k"))), done);
}

TEST_F(Commands, AnExpectationThatHeldOnceIsNotAskedAgain) {
  const auto first = revision(ask(job(1), {}));
  const auto second = revision(ask(job(2, false, first), keyed("k")));
  EXPECT_EQ(revision(ask(job(2, false, first), keyed("k"))), second);
  EXPECT_EQ(code(ask(job(2, false, first), keyed("l"))), ErrorCode::conflict);
}

TEST_F(Commands, WhatFoundEverythingDoneIsRememberedToo) {
  const auto first = revision(ask(job(1, false), {}));
  EXPECT_EQ(revision(ask(job(1, false), keyed("k"))), first);
  const auto changed = revision(ask(job(2, false), {}));
  EXPECT_EQ(revision(ask(job(1, false), keyed("k"))), first);
  restart();
  EXPECT_EQ(revision(ask(job(1, false), keyed("k"))), first);
  EXPECT_EQ(revision(ask(job(2, false), {})), changed) << "somebody else's change stands";
}

TEST_F(Commands, AKeyHasABound) {
  EXPECT_EQ(code(ask(job(1), keyed(std::string(kIdempotencyKeyBytesMax + 1, 'k')))), ErrorCode::invalid);
  revision(ask(job(1), keyed(std::string(kIdempotencyKeyBytesMax, 'k'))));
}

TEST_F(Commands, ActorsThatShareAStoreShareTheKeys) {
  revision(ask(job(1), keyed("k")));
  const auto alias = Message::build<messages::SetAlias>([](messages::SetAlias::Builder b) {
    b.setModel("m");
    b.setAlias("canary");
  });
  EXPECT_EQ(code(ask(alias, keyed("k"), "mlops/registry")), ErrorCode::conflict);
  EXPECT_EQ(code(ask(alias, keyed("l"), "mlops/registry")), ErrorCode::not_found);
}

TEST_F(Commands, AnAliasThatWasMovedOnStays) {
  const auto add = [&](const std::string& artifact) {
    return ask(Message::build<messages::RegisterVersion>([&](messages::RegisterVersion::Builder b) {
                 b.initInfo().setModel("m");
                 b.getInfo().setArtifact(artifact);
               }),
               keyed("add " + artifact), "mlops/registry");
  };
  const auto alias = [&](std::uint64_t version, const std::string& key) {
    return ask(Message::build<messages::SetAlias>([&](messages::SetAlias::Builder b) {
                 b.setModel("m");
                 b.setVersion(version);
                 b.setAlias("canary");
               }),
               keyed(key), "mlops/registry");
  };
  const auto version = [](const Result<Message>& answer) {
    EXPECT_TRUE(answer.has_value()) << to_string(answer.error());
    if (!answer.has_value()) return std::uint64_t{0};
    const auto info = answer->open<messages::ModelVersionInfo>();  // one from the store comes as if from outside
    EXPECT_TRUE(info.has_value());
    return info.has_value() ? (*info)->getVersion() : std::uint64_t{0};
  };
  EXPECT_EQ(version(add("a")), 1U);
  EXPECT_EQ(version(add("b")), 2U);
  EXPECT_EQ(version(add("a")), 1U);
  const auto first = alias(1, "k");
  EXPECT_EQ(version(first), 1U);
  EXPECT_EQ(version(alias(2, "l")), 2U);
  restart();
  const auto again = alias(1, "k");
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(as_text(again->bytes()), as_text(first->bytes())) << "the very answer of the first time";
  const auto now = ask(Message::build<messages::GetVersion>([](messages::GetVersion::Builder b) {
                         b.setModel("m");
                         b.setAlias("canary");
                       }),
                       {}, "mlops/registry");
  EXPECT_EQ(version(now), 2U);
}

// ---- bounds ------------------------------------------------------------------------------------------------------------------------

TEST(CommandBounds, TheOldestAreForgottenByNumberBytesAndAge) {
  storage::MemoryKv kv;
  ManualClock clock;
  const auto seen = std::make_shared<Seen>();
  const auto store = storage::open_control_store(kv, clock).value();
  cluster::ClusterViewHolder view;
  Everything everything;
  const auto begin = [&](SimWorld& world, const CommandLimits& limits) {
    HostOptions base;
    base.authorizer = &everything;
    world.add_node(
        "control",
        [&, limits](Host& host) {
          host.spawn(named<FakeAudit>("governance/audit", seen));
          host.spawn(named<FakeControl>("control/membership", seen));
          host.spawn(named<FakeControl>("training/jobs", seen));
          host.spawn(resources({store.get(), &view, Epoch(1), limits}));
        },
        base);
    world.run_for(100ms);
  };
  const auto send = [](SimWorld& world, const std::string& key) {
    auto& host = world.host("control");
    const auto answer = world.ask(host, host.find("control/resources"), job(1), keyed(key));
    EXPECT_TRUE(answer.has_value());
    return answer.has_value() ? answer->view<ResourceRecord>()->getRevision() : 0;
  };
  const auto kept = [&] { return store->list("command/").value().items.size(); };

  SimWorld world(1);
  begin(world, {.kept = 5});
  std::vector<std::uint64_t> revisions;
  for (int i = 0; i < 12; ++i) revisions.push_back(send(world, format("k{}", i)));
  EXPECT_EQ(kept(), 5U);
  EXPECT_EQ(send(world, "k11"), revisions[11]);
  EXPECT_EQ(send(world, "k7"), revisions[7]);
  EXPECT_GT(send(world, "k6"), revisions[11]) << "forgotten, so carried out again";

  SimWorld anew(2);  // finds what the other left
  begin(anew, {.kept = 3, .forgotten_at_once = 2});
  send(anew, "n0");
  EXPECT_EQ(kept(), 4U) << "two at a time";
  send(anew, "n1");
  EXPECT_EQ(kept(), 3U);

  SimWorld small(3);
  const auto one = store->list("command/").value().items.front().value.size();
  begin(small, {.kept = 100, .bytes = 3 * one});
  for (int i = 0; i < 10; ++i) send(small, format("b{}", i));
  EXPECT_LE(kept(), 3U);
  EXPECT_GE(kept(), 2U);

  SimWorld brief(4);
  begin(brief, {.kept = 100, .age = 10s});
  for (int i = 0; i < 4; ++i) send(brief, format("a{}", i));
  brief.run_for(60s);
  send(brief, "a9");
  EXPECT_EQ(kept(), 1U) << "a minute is too old";
}

}  // namespace
}  // namespace falaj::control
