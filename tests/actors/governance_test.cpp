#include <gtest/gtest.h>

#include "messages/envelope.capnp.h"
#include "messages/governance.capnp.h"
#include "tests/actors/features_support.hpp"

namespace falaj::governance {
namespace {

using namespace std::chrono_literals;
using test::must;
using test::SmallCluster;

ErrorCode code(const auto& result) { return result.has_value() ? ErrorCode::failed : result.error().code; }

// ---- policy -------------------------------------------------------------------------------------------------------------------

TEST(Policy, Globs) {
  EXPECT_TRUE(glob("*", "a/b.c"));
  EXPECT_TRUE(glob("person/*", "person/admin"));
  EXPECT_FALSE(glob("person/*", "person/a/b"));
  EXPECT_TRUE(glob("person/**", "person/a/b"));
  EXPECT_TRUE(glob("features.*", "features.read"));
  EXPECT_FALSE(glob("features.*", "featuresxread"));
  EXPECT_TRUE(glob("**/x*", "a/xb/xc"));
  EXPECT_TRUE(glob("a*b*c", "aXbYbZc"));
  EXPECT_FALSE(glob("a*b", "a.b"));
  EXPECT_FALSE(glob("", "a"));
  EXPECT_TRUE(glob("", ""));
  EXPECT_TRUE(glob("node/n1/worker/*", "node/n1/worker/3"));
  EXPECT_FALSE(glob(std::string(64, '*') + "b", std::string(5000, 'a')));  // in no time
}

TEST(Policy, Principals) {
  EXPECT_EQ(parse_principal("spiffe://c/person/admin").path, "person/admin");
  EXPECT_EQ(parse_principal("spiffe://c/person/admin").cluster, "c");
  EXPECT_EQ(parse_principal("").path, "anonymous");
  for (const auto* bad : {"person/admin", "spiffe://c", "spiffe:///x", "spiffe://c/", "http://c/x"})
    EXPECT_EQ(parse_principal(bad).path, "") << bad;
  EXPECT_TRUE(parse_principal("spiffe://c/node/n1").is_node());
  EXPECT_FALSE(parse_principal("spiffe://c/node/n1/worker/0").is_node());
  EXPECT_TRUE(parse_principal("spiffe://c/node/n1/worker/0").is_worker());
  EXPECT_FALSE(parse_principal("spiffe://c/node/n1/x/worker/0").is_worker());
  EXPECT_FALSE(parse_principal("spiffe://c/node/").is_node());
}

constexpr std::string_view kRights = R"(
[[grant]]
principal = "person/admin"
verbs = ["*"]

[[grant]]
principal = "service/*"
verbs = ["features.read", "models.*"]
tenants = ["acme"]
purposes = ["credit"]
)";

TEST(Policy, GrantsAreNarrowAndWhatIsNotGrantedIsDenied) {
  const auto rights = must(Rights::parse(kRights, "rights.toml"));
  EXPECT_TRUE(rights.allow("person/admin", "anything", "any", "any").has_value());
  EXPECT_TRUE(rights.allow("service/a", "features.read", "acme", "credit").has_value());
  EXPECT_TRUE(rights.allow("service/a", "models.read", "acme", "").has_value());
  EXPECT_EQ(code(rights.allow("service/a", "features.write", "acme", "")), ErrorCode::denied);
  EXPECT_NE(rights.allow("service/a", "features.read", "default", "credit").error().message.find("tenant 'default'"), std::string::npos);
  EXPECT_NE(rights.allow("service/a", "features.read", "acme", "ads").error().message.find("purpose 'ads'"), std::string::npos);
  EXPECT_EQ(code(rights.allow("person/else", "features.read", "acme", "credit")), ErrorCode::denied);
  EXPECT_EQ(code(Rights().allow("person/admin", "x", "default", "")), ErrorCode::denied);
}

TEST(Policy, AGrantMayHoldForSomeTypesOfActorsOnly) {
  constexpr std::string_view kNarrow = R"(
[[grant]]
principal = "service/pricing"
verbs = ["cluster.read", "actors.register"]
actors = ["control/*", "foreign/pricing"]

[[grant]]
principal = "service/pricing"
verbs = ["cluster.read"]
actors = ["node/agent"]
)";
  const auto rights = must(Rights::parse(kNarrow, "rights.toml"));
  const auto allow = [&](std::string_view verb, std::string_view actor) {
    return rights.allow("service/pricing", verb, "default", "", actor);
  };
  EXPECT_TRUE(allow("cluster.read", "control/membership").has_value());
  EXPECT_TRUE(allow("cluster.read", "node/agent").has_value());
  EXPECT_TRUE(allow("cluster.read", "").has_value()) << "of some actor";
  EXPECT_NE(allow("cluster.read", "features/front").error().message.find("on actors of type 'features/front'"), std::string::npos);
  EXPECT_EQ(code(allow("actors.register", "foreign/billing")), ErrorCode::denied);
  // The wish to host something reaches the actor that then asks about the type.
  ManualClock clock;
  metrics::Registry metrics;
  Policy policy(PolicyOptions{.cluster = "c", .rights = rights, .clock = &clock, .refusals = nullptr, .metrics = &metrics});
  const Scope scope{"spiffe://c/service/pricing", "", "", "", ""};
  EXPECT_TRUE(policy.allow(scope, kRegisterVerb, kForeignDesk, "RegisterActor").has_value());
  EXPECT_TRUE(policy.allow(scope, kRegisterVerb, "foreign/pricing", "RegisterActor").has_value());
  EXPECT_FALSE(policy.allow(scope, kRegisterVerb, "foreign/billing", "RegisterActor").has_value());
  EXPECT_FALSE(policy.allow(Scope{"spiffe://c/service/else", "", "", "", ""}, kRegisterVerb, kForeignDesk, "RegisterActor").has_value());
  EXPECT_EQ(metrics.counter("falaj_refusals_total", "", {{"verb", std::string(kRegisterVerb)}}).value(), 2U) << "each refusal is counted";
}

TEST(Policy, BadFilesAreRefusedWithTheirPlace) {
  EXPECT_NE(Rights::parse("[[grant]]\nprincipal = \"x\"\nverb = [\"a\"]\n", "rights.toml").error().message.find("rights.toml:3"),
            std::string::npos);
  EXPECT_EQ(code(Rights::parse("[[grant]]\nprincipal = \"x\"\nverbs = []\n", "r")), ErrorCode::invalid);
  EXPECT_EQ(code(Rights::parse("[[grant]]\nprincipal = \"spiffe://c/person/x\"\nverbs = [\"*\"]\n", "r")), ErrorCode::invalid);
  EXPECT_TRUE(Rights::parse(default_rights_toml(), "default").has_value());
}

TEST(Policy, NodesMayAllWorkersLittleStrangersNothing) {
  ManualClock clock;
  const auto refusals = std::make_shared<RefusalQueue>();
  Policy policy({.cluster = "c", .rights = must(Rights::parse(kRights, "r")), .clock = &clock, .refusals = refusals});
  const auto allow = [&](std::string principal, std::string_view verb, std::string_view actor) {
    Scope scope;
    scope.principal = std::move(principal);
    return policy.allow(scope, verb, actor, "SomeMessage").has_value();
  };
  EXPECT_TRUE(allow("spiffe://c/node/n1", "", "features/shard"));
  EXPECT_TRUE(allow("spiffe://c/node/n1", "features.erase", "features/front"));
  EXPECT_TRUE(allow("spiffe://c/node/n1/worker/0", "artifacts.read", "artifacts/store"));
  EXPECT_TRUE(allow("spiffe://c/node/n1/worker/0", "", "training/job"));
  EXPECT_TRUE(allow("spiffe://c/person/admin", "resources.write", "control/resources"));
  EXPECT_EQ(refusals->pushed(), 0U);
  EXPECT_FALSE(allow("spiffe://c/node/n1/worker/0", "features.read", "features/front"));
  EXPECT_FALSE(allow("spiffe://c/node/n1/worker/0", "", "features/shard"));
  EXPECT_FALSE(allow("spiffe://c/person/admin", "", "features/shard"));
  EXPECT_FALSE(allow("spiffe://other/node/n1", "features.read", "features/front"));
  EXPECT_FALSE(allow("admin", "features.read", "features/front"));
  EXPECT_FALSE(allow("", "features.read", "features/front"));
  const auto entries = refusals->take_all();
  ASSERT_EQ(entries.size(), 6U) << "each refusal is recorded";
  EXPECT_EQ(entries[0].verb, "features.read");
  EXPECT_EQ(entries[1].verb, "SomeMessage");
  EXPECT_EQ(entries[5].principal, "anonymous");
  EXPECT_FALSE(entries[0].allowed);
  policy.replace(Rights());
  EXPECT_FALSE(allow("spiffe://c/person/admin", "resources.write", "control/resources"));
}

TEST(Refusals, AreBoundedAndNoneIsLost) {
  RefusalQueue queue(8);
  int woken = 0;
  queue.on_push([&] { ++woken; });
  for (int i = 0; i < 1000; ++i) {
    queue.push(
        {.principal = "p" + std::to_string(i % 3), .verb = "v" + std::to_string(i % 50), .target = "t", .allowed = false, .reason = "no"});
  }
  EXPECT_EQ(woken, 1);
  const auto entries = queue.take_all();
  EXPECT_LE(entries.size(), 16U);
  std::uint64_t counted = 0;
  for (const auto& entry : entries) {
    const auto at = entry.reason.rfind(" (");
    counted += at == std::string::npos ? 1 : std::stoull(entry.reason.substr(at + 2));
  }
  EXPECT_EQ(counted, 1000U);
  EXPECT_TRUE(queue.take_all().empty());
  queue.push({});
  EXPECT_EQ(woken, 2);
}

// ---- audit --------------------------------------------------------------------------------------------------------------------

Message entry(int i) {
  AuditRecord record;
  record.principal = "spiffe://test/person/admin";
  record.verb = "test.verb";
  record.target = "n" + std::to_string(i);
  return audit_message(record);
}

std::vector<std::string> targets(SmallCluster& cluster) {
  std::vector<std::string> out;
  for (std::uint64_t after = 0;;) {
    const auto page = must(cluster.audit_page(after));
    for (const auto e : page->getEntries()) {
      if (text(e.getVerb()) == "test.verb") out.emplace_back(text(e.getTarget()));
    }
    if (page->getEntries().size() == 0) return out;
    after = page->getFirst() + page->getEntries().size();
  }
}

class Audits : public ::testing::TestWithParam<test::Disk> {};
INSTANTIATE_TEST_SUITE_P(Stores, Audits, ::testing::Values(test::Disk::memory, test::Disk::lmdb),
                         [](const auto& p) { return p.param == test::Disk::memory ? "memory" : "lmdb"; });

// Control, the audit's own node and the link between them fail at moments drawn from the seed: each entry that was acknowledged
// is in the log once, in order.
TEST_P(Audits, NoAcknowledgedEntryIsLostOrWrittenTwice) {
  for (const std::uint64_t seed : {1U, 2U, 3U, 4U}) {
    SmallCluster cluster({.disk = GetParam(), .shards = 1, .seed = seed});
    auto random = cluster.world().random("faults");
    std::vector<std::string> acknowledged;
    int next = 0;
    for (int round = 0; round < 10; ++round) {
      const std::string victim = random.below(2) == 0 ? "control" : "gate";
      const auto kind = random.below(4);
      cluster.world().at(cluster.world().now() + std::chrono::microseconds(random.below(20000)), [&cluster, victim, kind] {
        if (kind == 0) cluster.crash("control");
        if (kind == 1) cluster.crash(victim);
        if (kind == 2) cluster.world().reset("gate", "control");
      });
      for (int i = 0; i < 10 && cluster.world().running("gate"); ++i) {
        const int n = next++;
        auto& host = cluster.world().host("gate");
        const auto kept = cluster.world().ask(host, host.find(kAudit), entry(n), test::as(nullptr, 200ms));
        if (kept.has_value()) acknowledged.push_back("n" + std::to_string(n));
      }
      cluster.world().run_for(30ms);
      for (const auto* node : {"control", "gate"}) {
        if (!cluster.world().running(node)) cluster.restart(node);
      }
      cluster.world().run_for(std::chrono::milliseconds(random.below(300)));
    }
    EXPECT_GT(acknowledged.size(), 30U) << "seed " << seed;
    cluster.world().run_for(10s);
    const auto written = targets(cluster);
    std::size_t at = 0;
    for (const auto& target : acknowledged) {
      const auto found = std::ranges::find(written, target);
      ASSERT_NE(found, written.end()) << "seed " << seed << ": lost " << target;
      const auto index = static_cast<std::size_t>(found - written.begin());
      EXPECT_GE(index, at) << "seed " << seed << ": out of order " << target;
      at = index;
      EXPECT_EQ(std::ranges::count(written, target), 1) << "seed " << seed << ": twice " << target;
    }
  }
}

TEST(Audit, LossOfControlOnlyDelaysEntries) {
  SmallCluster cluster({.shards = 1});
  cluster.crash("control");
  auto& host = cluster.world().host("gate");
  for (int i = 0; i < 600; ++i) must(cluster.world().ask(host, host.find(kAudit), entry(i), test::as(nullptr)));
  cluster.world().run_for(20s);
  cluster.restart("control");
  ASSERT_TRUE(cluster.world().run_until([&] { return targets(cluster).size() == 600; }, 30s));
  const auto written = targets(cluster);
  for (std::size_t i = 0; i < written.size(); ++i) ASSERT_EQ(written[i], "n" + std::to_string(i));
  const auto verdict = must(storage::verify_audit(cluster.audit_dir()));
  EXPECT_TRUE(verdict.good) << verdict.what;
}

class Forger final : public ActorOf<Forger> {
 public:
  static constexpr std::string_view kType = "test/forger";
  static void handlers(Handlers<Forger>& on) { on.message<messages::DrainRefusals>(&Forger::forge); }
  Task<> forge(Context& ctx, Msg<messages::DrainRefusals> m) {
    auto forged = Message::build<messages::AppendAudit>([](messages::AppendAudit::Builder out) {
      auto list = out.initEntries(1);
      list[0].setNode("f1");
      list[0].setSequence(1ULL << 60);
    });
    const auto to = ctx.find(kLog);
    auto taken = co_await ctx.ask<messages::Empty>(to, std::move(forged));
    if (!taken.has_value()) co_return m.refuse(std::move(taken).error());
    m.reply(Message::build<messages::Empty>());
  }
};

TEST(Audit, EntriesOfAnotherNodeAreRefused) {
  SmallCluster cluster({.shards = 1});
  auto& host = cluster.world().host("gate");
  ChildSpec spec;
  spec.id = spec.name = "test/forger";
  spec.make = [] { return std::make_unique<Forger>(); };
  host.spawn(spec);
  cluster.world().run_for(100ms);
  EXPECT_EQ(code(cluster.world().ask(host, host.find("test/forger"), Message::build<messages::DrainRefusals>(), test::as(nullptr))),
            ErrorCode::denied);
}

TEST(Audit, StoredRequestsNameTheirOrigin) {
  const Origin origin{"0af7@x/y", "n1", 7, 42};
  const auto back = origin_of(stored_request(origin));
  EXPECT_EQ(back.request, origin.request);
  EXPECT_EQ(back.node, "n1");
  EXPECT_EQ(back.incarnation, 7U);
  EXPECT_EQ(back.sequence, 42U);
  EXPECT_EQ(origin_of("").node, "");
}

}  // namespace
}  // namespace falaj::governance
