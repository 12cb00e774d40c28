// What was applied is known to every node when the apply is answered, whichever is asked next.
#include <gtest/gtest.h>

#include <algorithm>

#include "messages/features.capnp.h"
#include "messages/registry.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "simulations/cluster.hpp"

namespace falaj::simulations {
namespace {

using namespace std::chrono_literals;
using messages::Apply;
using messages::CountRows;

std::string principal(std::string_view path) { return format("spiffe://{}/{}", kCluster, path); }

class ResourcesTest : public ::testing::Test {
 protected:
  ResourcesTest() : cluster_(17, 5) {
    log::configure({.level = log::Level::off});
    cluster_.start_all();
    world().add_node("person");
    world().introduce("person", principal("person/admin"), false);
    EXPECT_TRUE(world().run_until([this] { return apply("first").has_value() && everybody_knows("first"); }, 20s));
  }

  SimWorld& world() { return cluster_.world(); }

  Result<Message> send(const std::string& machine, const std::string& actor, Message message) {
    SendOptions options;
    options.timeout = 3s;
    options.scope = std::make_shared<const Scope>(Scope{principal("person/admin"), "", "", "", ""});
    auto& host = world().host("person");
    return world().ask(host, host.at(ActorAddress{node_id(machine), {}, {}, actor}), std::move(message), options);
  }

  Result<Message> apply(const std::string& name) {
    return send("n0", "control/resources", Message::build<Apply>([&](Apply::Builder b) {
                  auto view = b.initResource().initFeatureView();
                  view.setName(name);
                  view.setEntity("id");
                  auto fields = view.initField(1);
                  fields[0].setName("v");
                  fields[0].setType(messages::FieldType::INT64);
                  view.initPurposes(1).set(0, "scoring");
                }));
  }

  Result<Message> count(const std::string& machine, const std::string& name) {
    return send(machine, "features/front", Message::build<CountRows>([&](CountRows::Builder b) { b.setView(name); }));
  }

  bool everybody_knows(const std::string& name) {
    return std::ranges::all_of(cluster_.names(), [&](const auto& machine) { return count(machine, name).has_value(); });
  }

  Cluster cluster_;
};

TEST_F(ResourcesTest, AnAppliedViewIsKnownToEachNodeThatIsAskedNext) {
  for (const auto& machine : cluster_.names()) {
    const auto name = "after-" + machine;
    const auto applied = apply(name);
    ASSERT_TRUE(applied.has_value()) << applied.error().message;
    const auto answer = count(machine, name);
    EXPECT_TRUE(answer.has_value()) << machine << ": " << answer.error().message;
  }
}

TEST_F(ResourcesTest, ANodeThatHearsOfItLateIsWaitedFor) {
  cluster_.lag("n0", "n3", 150ms);
  const auto applied = apply("late");
  ASSERT_TRUE(applied.has_value()) << applied.error().message;
  const auto answer = count("n3", "late");
  EXPECT_TRUE(answer.has_value()) << answer.error().message;
}

TEST_F(ResourcesTest, ANodeThatSaysNothingHoldsNobodyUpForLong) {
  cluster_.cut("n0", "n3");
  cluster_.cut("n3", "n0");
  const auto before = world().now();
  const auto applied = apply("without");
  ASSERT_TRUE(applied.has_value()) << applied.error().message;
  EXPECT_LT(world().now() - before, 2s);
  const auto answer = count("n1", "without");
  EXPECT_TRUE(answer.has_value()) << answer.error().message;
}

}  // namespace
}  // namespace falaj::simulations
