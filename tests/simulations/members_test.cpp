// Membership: many nodes lost at once, and who may take a node for dead.
#include "simulations/members.hpp"

#include <gtest/gtest.h>

#include "runtime/base/log.hpp"

namespace falaj::simulations {
namespace {

MembersReport run(unsigned nodes, unsigned lost, bool power) {
  log::configure({.level = log::Level::off});
  return run_members({.seed = 1, .nodes = nodes, .lost = lost, .power = power});
}

TEST(SimulateMembers, ManyLostAtOnceAreOutOfEverybodysViewWithinSeconds) {
  for (const bool power : {false, true}) {
    const auto report = run(60, 12, power);
    EXPECT_EQ(report.trouble, "");
    EXPECT_LE(report.agreed, 5.0) << "power " << power;
  }
}

TEST(SimulateMembers, HeartbeatsOfANodeDoNotGrowWithTheCluster) {
  for (const unsigned nodes : {10U, 80U}) {
    const auto report = run(nodes, 1, true);
    EXPECT_EQ(report.trouble, "");
    EXPECT_EQ(report.beats_with, 7U) << nodes << " nodes: control, three that it watches, three that watch it";
  }
}

TEST(SimulateMembers, TheSameSeedGivesTheSameDigest) {
  const auto first = run(12, 3, true);
  const auto second = run(12, 3, true);
  EXPECT_EQ(first.digest, second.digest);
  EXPECT_EQ(first.steps, second.steps);
}

}  // namespace
}  // namespace falaj::simulations
