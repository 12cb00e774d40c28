// The simulator itself: it repeats, it is calm in calm weather, and it finds what is planted.
#include "simulations/faults.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/base/log.hpp"

namespace falaj::simulations {
namespace {

std::string said(const FaultReport& report) {
  std::string out;
  for (const auto& violation : report.violations) out += violation.what + "\n";
  return out;
}

FaultReport run(std::uint64_t seed, bool faults, unsigned minutes = 2, unsigned nodes = 5) {
  log::configure({.level = log::Level::off});
  FaultPlan plan;
  plan.seed = seed;
  plan.nodes = nodes;
  plan.minutes = minutes;
  plan.faults = faults;
  return run_faults(plan);
}

TEST(SimulateFaults, CalmWeatherKeepsEveryPromise) {
  const auto report = run(1, false);
  EXPECT_TRUE(report.good()) << said(report);
  EXPECT_GE(report.runs, 3U);
  EXPECT_GE(report.promotions, 3U);
  EXPECT_GE(report.predictions, 50U);
  EXPECT_GE(report.rows, 50U);
}

TEST(SimulateFaults, OneMachineWillDo) {
  const auto report = run(3, false, 2, 1);
  EXPECT_TRUE(report.good()) << said(report);
}

TEST(SimulateFaults, TheSameSeedGivesTheSameDigest) {
  const auto first = run(5, true);
  const auto second = run(5, true);
  const auto other = run(6, true);
  EXPECT_EQ(first.digest, second.digest);
  EXPECT_EQ(first.steps, second.steps);
  EXPECT_NE(first.digest, other.digest);
}

TEST(SimulateFaults, ATraceTellsWhatHappensAndChangesNothing) {
  const auto silent = run(7, true, 1);
  FaultPlan plan;
  plan.seed = 7;
  plan.minutes = 1;
  std::size_t lines = 0;
  plan.trace = [&lines](const std::string& line) { lines += line.empty() ? 0 : 1; };
  const auto traced = run_faults(plan);
  EXPECT_EQ(traced.digest, silent.digest);
  EXPECT_GT(lines, 1'000U);
}

TEST(SimulateFaults, TheFirstSeedsKeepEveryPromise) {
#ifdef FALAJ_SANITIZED
  constexpr std::uint64_t kSeeds = 4;
#else
  constexpr std::uint64_t kSeeds = 12;
#endif
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const auto report = run(seed, true);
    EXPECT_TRUE(report.good()) << "seed " << seed << ": " << said(report);
  }
}

// Each deliberate defect is found, by some seed of the first 200.
class Planted : public testing::TestWithParam<std::string> {};

// The seeds in the order in which they are tried: nearly every defect is found by one of the first two. Where it took more when this was
// written, the one that found it comes first.
std::vector<std::uint64_t> seeds_for(std::string_view plant) {
  std::vector<std::uint64_t> seeds;
  if (plant == "folder-not-synced") seeds.push_back(13);
  if (plant == "run-ended-by-busy-pool") seeds.push_back(3);
  for (std::uint64_t seed = 1; seed <= 200; ++seed) seeds.push_back(seed);
  return seeds;
}

TEST_P(Planted, IsFound) {
  log::configure({.level = log::Level::off});
  for (const std::uint64_t seed : seeds_for(GetParam())) {
    FaultPlan plan;
    plan.seed = seed;
    plan.plant = GetParam();
    const auto report = run_faults(plan);
    if (report.good()) continue;
    RecordProperty("seed", static_cast<int>(seed));
    SUCCEED() << "seed " << seed << ": " << said(report);
    return;
  }
  FAIL() << "no seed up to 200 finds it";
}

INSTANTIATE_TEST_SUITE_P(SimulateFaults, Planted, testing::ValuesIn(plants()), [](const auto& plant) {
  auto name = plant.param;
  std::ranges::replace(name, '-', '_');
  return name;
});

}  // namespace
}  // namespace falaj::simulations
