// The protocol of a job and its workers, on virtual time, with a course whose sums depend on the order of additions.
#include "actors/training/run_state.hpp"
#include "tests/actors/training_fixtures.hpp"

namespace falaj::training::test {
namespace {

ClusterOptions toy(std::uint32_t fits = 1) {
  ClusterOptions options;
  options.toy.fits = fits;
  options.sim.detect = 20ms;
  return options;
}

struct Ended {
  std::string phase, digest, message;
  std::uint64_t samples = 0;
  std::uint32_t recoveries = 0;
  double last_recovery_ms = 0;
};

Ended ended(Cluster& cluster) {
  const auto message = cluster.info();
  if (!message) return {};
  const auto info = message.view<RunInfo>();
  return {std::string(text(info->getPhase())),
          std::string(text(info->getWeightsDigest())),
          std::string(text(info->getMessage())),
          info->getSamples(),
          info->getRecoveries(),
          info->getLastRecoveryMs()};
}

Ended train(std::uint64_t seed, std::uint32_t workers, bool deterministic = true, std::uint32_t folds = 0) {
  Cluster cluster(seed, toy(folds == 0 ? 1 : folds + 1));
  EXPECT_TRUE(cluster.run_job(toy_job(workers, deterministic, folds)).has_value());
  EXPECT_TRUE(cluster.run_until_over(60s)) << cluster.phase();
  return ended(cluster);
}

constexpr std::uint64_t kSamples = 60 * 4;

TEST(TrainingProtocol, OneWorkerTrainsAndRegisters) {
  Cluster cluster(1, toy());
  ASSERT_TRUE(cluster.run_job(toy_job(1)).has_value());
  ASSERT_TRUE(cluster.run_until_over(60s)) << cluster.phase();
  const auto end = ended(cluster);
  EXPECT_EQ(end.phase, "finished") << end.message;
  EXPECT_EQ(end.samples, kSamples);
  EXPECT_EQ(end.recoveries, 0U);
  ASSERT_EQ(cluster.registered.versions.size(), 1U);
  const auto version = cluster.registered.versions[0].view<messages::ModelVersionInfo>();
  EXPECT_EQ(text(version->getModel()), "toy");
  EXPECT_EQ(text(version->getLineage().getWeightsDigest()), end.digest);
  EXPECT_EQ(version->getLineage().getRows(), 60U);
  EXPECT_TRUE(cluster.shelf.manifests.contains(std::string(text(version->getArtifact()))));
  cluster.world.run_for(1s);
  EXPECT_TRUE(cluster.workers().empty()) << "worker processes end with the run";
}

TEST(TrainingProtocol, BitsDoNotDependOnTheNumberOfWorkers) {
  const auto one = train(2, 1);
  ASSERT_EQ(one.phase, "finished") << one.message;
  for (const std::uint32_t workers : {2U, 3U, 5U}) {
    const auto many = train(2 + workers, workers);
    EXPECT_EQ(many.digest, one.digest) << workers;
    EXPECT_EQ(many.samples, kSamples);
  }
  EXPECT_EQ(train(99, 9).digest, one.digest) << "more workers than micro-shards";
}

TEST(TrainingProtocol, FastModeTrainsToo) {
  const auto fast = train(3, 3, false);
  EXPECT_EQ(fast.phase, "finished") << fast.message;
  EXPECT_EQ(fast.samples, kSamples);
}

TEST(TrainingProtocol, FoldsThenTheFinalFit) {
  const auto one = train(4, 1, true, 3);
  const auto two = train(5, 2, true, 3);
  EXPECT_EQ(one.phase, "finished") << one.message;
  EXPECT_EQ(one.digest, two.digest);
  EXPECT_EQ(two.samples, 4 * kSamples) << "of all fits";
}

TEST(TrainingProtocol, SameSeedSameWorld) {
  const auto digest = [] {
    Cluster cluster(6, toy());
    EXPECT_TRUE(cluster.run_job(toy_job(2)).has_value());
    EXPECT_TRUE(cluster.run_until_over(60s));
    return cluster.world.digest();
  };
  EXPECT_EQ(digest(), digest());
}

class WithKills : public testing::TestWithParam<std::uint64_t> {};

TEST_P(WithKills, SameBitsAndEveryRowOnce) {
  const std::uint64_t seed = GetParam();
  SCOPED_TRACE(format("seed {}", seed));
  static const std::string expected = train(2, 1).digest;
  auto options = toy();
  options.sim.blocking_min = 1ms;
  options.sim.blocking_max = 8ms;
  Cluster cluster(seed, options);
  auto random = cluster.world.random("kills");
  const auto workers = static_cast<std::uint32_t>(2 + random.below(2));
  ASSERT_TRUE(cluster.run_job(toy_job(workers)).has_value());
  std::uint32_t killed = 0;
  for (int kill = 0; kill < 3; ++kill) {
    const auto step = 1 + random.below(14);
    cluster.world.run_until(
        [&] {
          const auto message = cluster.info();
          return message && (message.view<RunInfo>()->getStep() >= step || text(message.view<RunInfo>()->getPhase()) == "finished");
        },
        10s);
    const auto running = cluster.workers();
    if (running.empty() || cluster.phase() == "finished") break;
    cluster.world.crash(running[random.below(running.size())]);
    ++killed;
    cluster.world.run_for(std::chrono::milliseconds(random.below(60)));
  }
  ASSERT_TRUE(cluster.run_until_over(60s)) << cluster.phase();
  const auto end = ended(cluster);
  EXPECT_EQ(end.phase, "finished") << end.message;
  EXPECT_EQ(end.digest, expected);
  EXPECT_EQ(end.samples, kSamples);
  EXPECT_LE(end.recoveries, killed);
  if (end.recoveries > 0) {
    EXPECT_LE(end.last_recovery_ms, 500) << "detection to first new step";
  }
}
INSTANTIATE_TEST_SUITE_P(Seeds, WithKills, testing::Range<std::uint64_t>(1, 21));

TEST(TrainingProtocol, OnlyWorkerLostGoesOnFromTheCheckpoint) {
  auto options = toy();
  options.sim.blocking_min = 5ms;
  options.sim.blocking_max = 10ms;
  Cluster cluster(7, options);
  ASSERT_TRUE(cluster.run_job(toy_job(1)).has_value());
  ASSERT_TRUE(cluster.world.run_until([&] { return cluster.info() && cluster.info().view<RunInfo>()->getStep() >= 8; }, 20s));
  cluster.world.crash(cluster.workers().at(0));
  ASSERT_TRUE(cluster.run_until_over(60s));
  const auto end = ended(cluster);
  EXPECT_EQ(end.phase, "finished") << end.message;
  EXPECT_EQ(end.digest, train(2, 1).digest);
  EXPECT_EQ(end.samples, kSamples);
  EXPECT_EQ(end.recoveries, 1U);
}

class WithControlRestart : public testing::TestWithParam<std::uint64_t> {};

TEST_P(WithControlRestart, TheRunGoesOn) {
  SCOPED_TRACE(format("seed {}", GetParam()));
  auto options = toy(3);
  options.sim.blocking_min = 2ms;
  options.sim.blocking_max = 6ms;
  Cluster cluster(GetParam(), options);
  auto random = cluster.world.random("control");
  ASSERT_TRUE(cluster.run_job(toy_job(2, true, 2)).has_value());
  for (int i = 0; i < 2; ++i) {
    cluster.world.run_for(std::chrono::milliseconds(20 + random.below(200)));
    if (cluster.phase() == "finished") break;
    cluster.world.crash("control");
    cluster.world.run_for(std::chrono::milliseconds(random.below(300)));
    cluster.world.restart("control");
  }
  ASSERT_TRUE(cluster.run_until_over(60s)) << cluster.phase();
  const auto end = ended(cluster);
  EXPECT_EQ(end.phase, "finished") << end.message;
  EXPECT_EQ(end.digest, train(5, 2, true, 2).digest);
  EXPECT_EQ(end.samples, 3 * kSamples);
  EXPECT_EQ(cluster.registered.versions.size(), 1U);
}
INSTANTIATE_TEST_SUITE_P(Seeds, WithControlRestart, testing::Range<std::uint64_t>(1, 9));

TEST(TrainingProtocol, AStepThatFailsEndsTheRunWithItsReason) {
  auto options = toy();
  options.toy.fail_at = 3;
  Cluster cluster(8, options);
  ASSERT_TRUE(cluster.run_job(toy_job(2)).has_value());
  ASSERT_TRUE(cluster.run_until_over(60s));
  const auto end = ended(cluster);
  EXPECT_EQ(end.phase, "failed");
  EXPECT_NE(end.message.find("not finite"), std::string::npos) << end.message;
}

TEST(TrainingProtocol, WorkersThatDieAtOnceEndTheRun) {
  auto options = toy();
  options.make_course = [](TrainingJob::Reader, const Bytes&, const Bytes&) -> Result<std::shared_ptr<const Course>> {
    throw std::runtime_error("no luck");
  };
  Cluster cluster(9, options);
  ASSERT_TRUE(cluster.run_job(toy_job(1)).has_value());
  ASSERT_TRUE(cluster.run_until_over(300s)) << ended(cluster).message;
  const auto end = ended(cluster);
  EXPECT_EQ(end.phase, "failed");
  EXPECT_NE(end.message.find("gave up after"), std::string::npos) << end.message;
}

TEST(TrainingProtocol, APurposeTheViewDoesNotAllowEndsTheRun) {
  Cluster cluster(10, toy());
  auto job = Message::build<TrainingJob>([&](TrainingJob::Builder b) {
    b.setName("toy");
    b.setView("rows");
    b.setLabel("y");
    b.setPurpose("marketing");
  });
  ASSERT_TRUE(cluster.run_job(job).has_value());
  ASSERT_TRUE(cluster.run_until_over(60s));
  const auto end = ended(cluster);
  EXPECT_EQ(end.phase, "failed");
  EXPECT_NE(end.message.find("purpose"), std::string::npos) << end.message;
}

TEST(TrainingJobs, AGenerationRunsOnce) {
  Cluster cluster(11, toy());
  ASSERT_TRUE(cluster.run_job(toy_job(1), 5).has_value());
  ASSERT_TRUE(cluster.run_until_over(60s));
  const auto first = std::string(text(cluster.info().view<RunInfo>()->getRun()));
  ASSERT_TRUE(cluster.run_job(toy_job(1), 5).has_value());
  ASSERT_TRUE(cluster.run_job(toy_job(1), 4).has_value());
  EXPECT_EQ(text(cluster.info().view<RunInfo>()->getRun()), first);
  EXPECT_EQ(cluster.phase(), "finished");
  ASSERT_TRUE(cluster.run_job(toy_job(1), 6).has_value());
  EXPECT_NE(text(cluster.info().view<RunInfo>()->getRun()), first);
  ASSERT_TRUE(cluster.run_until_over(60s));
  EXPECT_EQ(cluster.phase(), "finished");
}

TEST(TrainingJobs, ANewGenerationEndsTheRunningOne) {
  auto options = toy();
  options.toy.epochs = 1000;
  Cluster cluster(12, options);
  ASSERT_TRUE(cluster.run_job(toy_job(2), 1).has_value());
  ASSERT_TRUE(cluster.world.run_until([&] { return cluster.phase() == "running"; }, 20s));
  ASSERT_TRUE(cluster.run_job(toy_job(2), 2).has_value());
  ASSERT_TRUE(cluster.world.run_until([&] { return cluster.phase() == "running"; }, 20s));
  EXPECT_NE(std::string(text(cluster.info().view<RunInfo>()->getRun())).find("-2"), std::string::npos);
  auto& control = cluster.world.host("control");
  const auto stop = Message::build<messages::StopJob>([](messages::StopJob::Builder b) { b.setJob("toy"); });
  EXPECT_TRUE(cluster.world.ask(control, control.find("training/jobs"), stop).has_value());
  cluster.world.run_for(1s);
  EXPECT_EQ(cluster.phase(), "stopped");
  EXPECT_TRUE(cluster.workers().empty());
}

}  // namespace
}  // namespace falaj::training::test
