// The registry: versions, aliases, and the gate as a table.
#include <gtest/gtest.h>

#include <limits>

#include "actors/mlops/registry.hpp"
#include "messages/envelope.capnp.h"
#include "messages/governance.capnp.h"
#include "messages/resources.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/host/sim_host.hpp"
#include "storage/memory_kv.hpp"

namespace falaj::mlops {
namespace {

using namespace std::chrono_literals;
using messages::GateSpec;
using messages::GetVersion;
using messages::ListModels;
using messages::ModelList;
using messages::ModelVersionInfo;
using messages::RegisterVersion;
using messages::SetAlias;

Message gate(double auc, double accuracy, double drop, double rmse = std::numeric_limits<double>::infinity()) {
  return Message::build<GateSpec>([&](GateSpec::Builder b) {
    b.setMinAuc(auc);
    b.setMinAccuracy(accuracy);
    b.setMaxAucDrop(drop);
    b.setMaxRmse(rmse);
  });
}

struct Case {
  const char* name;
  Message gate;
  Metrics candidate;
  std::uint64_t champion_version;
  Metrics champion;
  std::string champion_error;
  bool passed;
};

TEST(Gate, Table) {
  const std::vector<Case> cases = {
      {"no rules", gate(0, 0, 1), {}, 0, {}, "", true},
      {"auc holds", gate(0.7, 0, 1), {{"auc", 0.7}}, 0, {}, "", true},
      {"auc too small", gate(0.7, 0, 1), {{"auc", 0.69}}, 0, {}, "", false},
      {"auc not measured", gate(0.7, 0, 1), {{"accuracy", 0.9}}, 0, {}, "", false},
      {"not a number", gate(0.7, 0, 1), {{"auc", std::numeric_limits<double>::quiet_NaN()}}, 0, {}, "", false},
      {"accuracy too small", gate(0, 0.8, 1), {{"auc", 0.9}, {"accuracy", 0.79}}, 0, {}, "", false},
      {"both hold", gate(0.7, 0.8, 1), {{"auc", 0.9}, {"accuracy", 0.8}}, 0, {}, "", true},
      {"rmse holds", gate(0, 0, 1, 2.0), {{"rmse", 1.5}}, 0, {}, "", true},
      {"rmse too large", gate(0, 0, 1, 2.0), {{"rmse", 2.5}}, 0, {}, "", false},
      {"better than the champion", gate(0, 0, 0), {{"auc", 0.8}}, 3, {{"auc", 0.79}}, "", true},
      {"as good", gate(0, 0, 0), {{"auc", 0.8}}, 3, {{"auc", 0.8}}, "", true},
      {"within the drop", gate(0, 0, 0.02), {{"auc", 0.79}}, 3, {{"auc", 0.8}}, "", true},
      {"dropped too far", gate(0, 0, 0.02), {{"auc", 0.77}}, 3, {{"auc", 0.8}}, "", false},
      {"any drop is allowed", gate(0, 0, 1), {{"auc", 0.5}}, 3, {{"auc", 0.9}}, "", true},
      {"champion not measurable", gate(0, 0, 0.02), {{"auc", 0.9}}, 3, {}, "its artifact is gone", false},
      {"champion not measurable, not asked for", gate(0, 0, 1), {{"auc", 0.9}}, 3, {}, "its artifact is gone", true},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const auto spec = c.gate.view<GateSpec>();
    const auto verdict = judge({*spec, c.candidate, c.champion_version, c.champion, c.champion_error});
    EXPECT_EQ(verdict.passed, c.passed);
    ASSERT_FALSE(verdict.reasons.empty());
  }
}

class FakeAudit final : public ActorOf<FakeAudit> {
 public:
  static constexpr std::string_view kType = "governance/audit";
  static void handlers(Handlers<FakeAudit>& on) { on.message<messages::Audit>(&FakeAudit::take); }

 private:
  void take(Context&, Msg<messages::Audit> m) { m.reply(Message::build<messages::Empty>()); }
};

ChildSpec fake_audit() {
  ChildSpec spec;
  spec.id = spec.name = "governance/audit";
  spec.make = [] { return std::make_unique<FakeAudit>(); };
  return spec;
}

class RegistryTest : public testing::Test {
 protected:
  RegistryTest() : store(storage::open_control_store(kv, clock).value()) { start({}); }
  void start(Evaluate evaluate) {
    RegistryOptions options;
    options.store = store.get();
    options.evaluate = std::move(evaluate);
    world.add_node("control", [options](Host& host) {
      host.spawn(fake_audit());
      host.spawn(registry(options));
    });
  }
  Host& host() { return world.host("control"); }
  Result<Message> ask(Message message) { return world.ask(host(), host().find("mlops/registry"), std::move(message)); }

  Result<Message> add(const std::string& artifact, double auc, const std::string& run = "r", const std::string& snapshot = "s",
                      double min_auc = 0.7, double drop = 0.02) {
    return ask(Message::build<RegisterVersion>([&](RegisterVersion::Builder b) {
      auto info = b.initInfo();
      info.setModel("credit");
      info.setArtifact(artifact);
      auto lineage = info.initLineage();
      lineage.setRun(run);
      lineage.setSnapshot(snapshot);
      lineage.setLabel("class");
      auto rules = lineage.initJobSpec().initGate();
      rules.setMinAuc(min_auc);
      rules.setMaxAucDrop(drop);
      auto metrics = info.initMetrics(1);
      metrics[0].setName("auc");
      metrics[0].setValue(auc);
    }));
  }
  Result<Message> alias(std::uint64_t version, const std::string& name = "production") {
    return ask(Message::build<SetAlias>([&](SetAlias::Builder b) {
      b.setModel("credit");
      b.setVersion(version);
      b.setAlias(name);
    }));
  }
  Result<Message> get(std::uint64_t version, const std::string& name = "") {
    return ask(Message::build<GetVersion>([&](GetVersion::Builder b) {
      b.setModel("credit");
      b.setVersion(version);
      b.setAlias(name);
    }));
  }
  static std::uint64_t number(const Result<Message>& reply) {
    EXPECT_TRUE(reply.has_value()) << reply.error().message;
    return reply.has_value() ? reply->view<ModelVersionInfo>()->getVersion() : 0;
  }

  storage::MemoryKv kv;
  ManualClock clock;
  std::unique_ptr<storage::ControlStore> store;
  SimWorld world{1};
};

TEST_F(RegistryTest, VersionsGrowAndTheSameAgainIsTheSame) {
  EXPECT_EQ(number(add("a", 0.8)), 1U);
  EXPECT_EQ(number(add("b", 0.8)), 2U);
  EXPECT_EQ(number(add("a", 0.8)), 1U);
  EXPECT_EQ(number(add("a", 0.8, "another run")), 3U);
  EXPECT_EQ(number(get(0)), 3U) << "the newest";
  EXPECT_EQ(get(9).error().code, ErrorCode::not_found);
  const auto list = ask(Message::build<ListModels>());
  ASSERT_TRUE(list.has_value());
  EXPECT_EQ(list->view<ModelList>()->getVersions().size(), 3U);
}

TEST_F(RegistryTest, ProductionOnlyThroughTheGate) {
  ASSERT_EQ(number(add("good", 0.8)), 1U);
  ASSERT_EQ(number(add("bad", 0.6)), 2U);
  ASSERT_EQ(number(add("worse than the champion", 0.75)), 3U);
  const auto refused = alias(2);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::conflict);
  EXPECT_NE(refused.error().message.find("auc 0.6000 is below 0.7000"), std::string::npos) << refused.error().message;
  EXPECT_FALSE(get(2)->view<ModelVersionInfo>()->getVerdict().getPassed());
  EXPECT_GT(get(2)->view<ModelVersionInfo>()->getVerdict().getReasons().size(), 0U) << "the verdict is kept either way";
  EXPECT_EQ(get(0, "production").error().code, ErrorCode::not_found);

  EXPECT_EQ(number(alias(1)), 1U);
  EXPECT_TRUE(get(1)->view<ModelVersionInfo>()->getVerdict().getPassed());
  EXPECT_EQ(number(get(0, "production")), 1U);
  EXPECT_EQ(alias(3).error().code, ErrorCode::conflict);
  EXPECT_EQ(number(get(0, "production")), 1U) << "the champion stays";
  EXPECT_EQ(number(alias(3, "canary")), 3U) << "other aliases pass no gate";
  EXPECT_EQ(number(alias(1)), 1U) << "again";
  ASSERT_EQ(number(add("better", 0.85)), 4U);
  EXPECT_EQ(number(alias(4)), 4U);
  EXPECT_EQ(get(4)->view<ModelVersionInfo>()->getVerdict().getChampion(), 1U);
}

TEST_F(RegistryTest, ChampionsOfOtherRowsAreMeasuredAgainOrRefused) {
  ASSERT_EQ(number(add("old", 0.8, "r", "snapshot one")), 1U);
  ASSERT_EQ(number(alias(1)), 1U);
  ASSERT_EQ(number(add("new", 0.78, "r", "snapshot two")), 2U);
  const auto refused = alias(2);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message.find("cannot be compared"), std::string::npos) << refused.error().message;
}

TEST_F(RegistryTest, BadNamesAreRefused) {
  const auto bad = ask(Message::build<RegisterVersion>([](RegisterVersion::Builder b) {
    b.initInfo().setModel("../x");
    b.getInfo().setArtifact("a");
  }));
  EXPECT_EQ(bad.error().code, ErrorCode::invalid);
  ASSERT_EQ(number(add("a", 0.8)), 1U);
  EXPECT_EQ(alias(1, "a/b").error().code, ErrorCode::invalid);
}

Task<Result<Metrics>> measured_again(Context&, std::string artifact, std::string snapshot, Message) {
  EXPECT_EQ(artifact, "old");
  EXPECT_EQ(snapshot, "snapshot two");
  co_return Metrics{{"auc", 0.77}};
}

TEST(RegistryEvaluate, IsAskedForTheChampion) {
  storage::MemoryKv kv;
  ManualClock clock;
  const auto store = storage::open_control_store(kv, clock).value();
  SimWorld world(2);
  RegistryOptions options;
  options.store = store.get();
  options.evaluate = measured_again;
  auto& host = world.add_node("control", [options](Host& h) {
    h.spawn(fake_audit());
    h.spawn(registry(options));
  });
  const auto ask = [&](Message m) { return world.ask(host, host.find("mlops/registry"), std::move(m)); };
  const auto version = [&](const char* artifact, const char* snapshot, double auc) {
    return ask(Message::build<RegisterVersion>([&](RegisterVersion::Builder b) {
      b.initInfo().setModel("credit");
      b.getInfo().setArtifact(artifact);
      b.getInfo().initLineage().setSnapshot(snapshot);
      b.getInfo().getLineage().initJobSpec().initGate().setMaxAucDrop(0.02);
      auto metrics = b.getInfo().initMetrics(1);
      metrics[0].setName("auc");
      metrics[0].setValue(auc);
    }));
  };
  const auto promote = [&](std::uint64_t v) {
    return ask(Message::build<SetAlias>([&](SetAlias::Builder b) {
      b.setModel("credit");
      b.setVersion(v);
      b.setAlias("production");
    }));
  };
  ASSERT_TRUE(version("old", "snapshot one", 0.9).has_value());
  ASSERT_TRUE(promote(1).has_value());
  ASSERT_TRUE(version("new", "snapshot two", 0.78).has_value());
  const auto done = promote(2);
  ASSERT_TRUE(done.has_value()) << done.error().message;
}

}  // namespace
}  // namespace falaj::mlops
