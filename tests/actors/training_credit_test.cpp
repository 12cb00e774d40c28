// The real learners on real data through the whole protocol: the German credit table, two workers, kills; and the same bits.
#include <fstream>

#include "actors/features/snapshot.hpp"
#include "kernels/onnx/onnx.hpp"
#include "runtime/config.hpp"
#include "tests/actors/training_fixtures.hpp"

namespace falaj::training::test {
namespace {

using messages::FeatureView;
using messages::ResourceFile;
using messages::Row;

struct Example {
  capnp::MallocMessageBuilder arena;
  ResourceFile::Reader file;
  Bytes snapshot;
};

// Resources and rows as `falaj apply` and `falaj features ingest` would read them.
std::unique_ptr<Example> read_example(const std::string& name, const std::string& csv) {
  auto out = std::make_unique<Example>();
  const std::string dir = FALAJ_SOURCE_DIR "/configs/examples/";
  const auto text_of = config::read_file(dir + name);
  EXPECT_TRUE(text_of.has_value());
  auto root = out->arena.initRoot<ResourceFile>();
  const auto parsed = config::parse_toml<ResourceFile>(*text_of, name, root);
  EXPECT_TRUE(parsed.has_value()) << parsed.error().message;
  out->file = root.asReader();
  const auto view = out->file.getFeatureView()[0];
  std::ifstream in(dir + "data/" + csv);
  std::string line;
  std::getline(in, line);
  if (line.ends_with('\r')) line.pop_back();
  features::SnapshotWriter writer(view);
  while (std::getline(in, line)) {
    if (line.ends_with('\r')) line.pop_back();  // the file's lines end as RFC 4180 has it
    std::vector<std::string> cells;
    for (std::size_t at = 0; at <= line.size();) {
      const auto comma = std::min(line.find(',', at), line.size());
      cells.push_back(line.substr(at, comma - at));
      at = comma + 1;
    }
    const auto row = Message::build<Row>([&](Row::Builder b) {
      b.setEntity(cells[0]);
      auto values = b.initValues(view.getField().size());
      for (unsigned i = 0; i < values.size(); ++i) {
        const auto& cell = cells[i + 1];
        switch (view.getField()[i].getType()) {
          case messages::FieldType::STRING:
            values[i].setString(cell);
            break;
          case messages::FieldType::INT64:
            values[i].setInt64(std::stoll(cell));
            break;
          default:
            values[i].setFloat32(std::stof(cell));
        }
      }
    });
    writer.add(*row.view<Row>());
  }
  writer.finish();
  while (writer.ready() > 0) {
    const auto piece = writer.take(1U << 20);
    out->snapshot.insert(out->snapshot.end(), piece.begin(), piece.end());
  }
  return out;
}

Message job_of(const Example& example, std::uint32_t workers, std::uint32_t folds, std::uint32_t epochs) {
  return Message::build<TrainingJob>([&](TrainingJob::Builder b) {
    const auto given = example.file.getJob()[0];
    b.setName("toy");
    b.setView(given.getView());
    b.setLabel(given.getLabel());
    b.setPositive(given.getPositive());
    b.setModel(given.getModel());
    b.setOptimizer(given.getOptimizer());
    b.setGlobalBatch(given.getGlobalBatch());
    b.setEpochs(epochs == 0 ? given.getEpochs() : epochs);
    b.setWorkers(workers);
    b.setFolds(folds);
    b.setPurpose("testing");
    b.setCheckpointEverySteps(10);
    b.setPatience(given.getPatience());
  });
}

struct Trained {
  std::string phase, message, digest;
  std::uint64_t samples = 0;
  std::uint32_t recoveries = 0;
  double recovery_ms = 0;
  std::map<std::string, double> metrics;
  std::vector<std::uint64_t> confusion;
  Bytes model;
};

// `kills`: a worker dies once so many steps are reported.
Trained train(const Example& example, const Message& job, std::uint64_t seed, const std::vector<std::uint64_t>& kills = {}) {
  ClusterOptions options;
  options.make_course = make_course;
  options.snapshot = example.snapshot;
  options.sim.detect = 20ms;
  Cluster cluster(seed, options);
  EXPECT_TRUE(cluster.run_job(job).has_value());
  auto random = cluster.world.random("kills");
  for (const auto step : kills) {
    EXPECT_TRUE(cluster.world.run_until(
        [&] {
          const auto info = cluster.info();
          return info && info.view<RunInfo>()->getTotalStep() >= step;
        },
        120s));
    const auto running = cluster.workers();
    if (running.empty()) break;
    cluster.world.crash(running[random.below(running.size())]);
  }
  EXPECT_TRUE(cluster.run_until_over(600s)) << cluster.phase();
  Trained out;
  const auto message = cluster.info();
  const auto info = message.view<RunInfo>();
  out.phase = text(info->getPhase());
  out.message = text(info->getMessage());
  out.digest = text(info->getWeightsDigest());
  out.samples = info->getSamples();
  out.recoveries = info->getRecoveries();
  out.recovery_ms = info->getLastRecoveryMs();
  for (const auto metric : info->getMetrics()) out.metrics[std::string(text(metric.getName()))] = metric.getValue();
  for (const auto count : info->getConfusion()) out.confusion.push_back(count);
  const auto manifest = cluster.shelf.manifests.find(std::string(text(info->getArtifact())));
  if (manifest != cluster.shelf.manifests.end()) {
    for (const auto chunk : manifest->second.view<messages::ArtifactInfo>()->getChunks()) {
      const auto& part = cluster.shelf.chunks.at(std::string(text(chunk.getDigest())));
      out.model.insert(out.model.end(), part.begin(), part.end());
    }
  }
  return out;
}

TEST(TrainingCredit, SameBitsForOneWorkerTwoAgainAndWithKills) {
  const auto example = read_example("credit.toml", "german_credit.csv");
  const auto one = train(*example, job_of(*example, 1, 0, 6), 1);
  ASSERT_EQ(one.phase, "finished") << one.message;
  // 1000 rows: a fifth is held out, a tenth of the rest validates.
  EXPECT_EQ(one.samples % 6, 0U);
  EXPECT_NEAR(static_cast<double>(one.samples) / 6, 720, 4);
  const auto two = train(*example, job_of(*example, 2, 0, 6), 2);
  const auto again = train(*example, job_of(*example, 2, 0, 6), 3);
  const auto killed = train(*example, job_of(*example, 2, 0, 6), 4, {10, 25, 50});
  for (const Trained* other : {&two, &again, &killed}) {
    EXPECT_EQ(other->phase, "finished") << other->message;
    EXPECT_EQ(other->digest, one.digest);
    EXPECT_EQ(other->samples, one.samples);
    EXPECT_EQ(other->model, one.model);
    EXPECT_EQ(other->metrics, one.metrics);
  }
  EXPECT_GE(killed.recoveries, 1U);
  EXPECT_LE(killed.recovery_ms, 2000);
}

TEST(TrainingCredit, AUCOfFoldsAndOfHeldOutRows) {
  const auto example = read_example("credit.toml", "german_credit.csv");
  const auto trained = train(*example, job_of(*example, 2, 10, 0), 5);
  ASSERT_EQ(trained.phase, "finished") << trained.message;
  EXPECT_GE(trained.metrics.at("cv_auc_mean"), 0.75);
  EXPECT_GE(trained.metrics.at("auc"), 0.72);
  ASSERT_EQ(trained.confusion.size(), 4U);
  std::uint64_t rows = 0;
  for (const auto count : trained.confusion) rows += count;
  EXPECT_EQ(rows, 200U);
  const auto graph = kernels::import_onnx(trained.model, "credit");
  ASSERT_TRUE(graph.has_value()) << graph.error().message;
  auto spec = job_of(*example, 2, 10, 0);
  const auto measured = evaluate_model(*spec.view<TrainingJob>(), example->snapshot, trained.model);
  ASSERT_TRUE(measured.has_value()) << measured.error().message;
  EXPECT_NEAR(measured->at("auc"), trained.metrics.at("auc"), 1e-6);
  RecordProperty("cv_auc_mean", format("{:.4f}", trained.metrics.at("cv_auc_mean")));
  RecordProperty("auc", format("{:.4f}", trained.metrics.at("auc")));
}

TEST(TrainingCredit, DigitsLearnTenClasses) {
  const auto example = read_example("digits.toml", "digits.csv");
  const auto trained = train(*example, job_of(*example, 2, 0, 0), 6);
  ASSERT_EQ(trained.phase, "finished") << trained.message;
  EXPECT_GE(trained.metrics.at("accuracy"), 0.93);
  EXPECT_EQ(trained.confusion.size(), 100U);
}

// A job of a file that uses the view of another.
template <class Change>
Message job_from(const std::string& file, unsigned index, Change change) {
  capnp::MallocMessageBuilder arena;
  auto root = arena.initRoot<ResourceFile>();
  const auto text_of = config::read_file(FALAJ_SOURCE_DIR "/configs/examples/" + file);
  EXPECT_TRUE(text_of.has_value());
  const auto parsed = config::parse_toml<ResourceFile>(*text_of, file, root);
  EXPECT_TRUE(parsed.has_value()) << parsed.error().message;
  auto job = root.getJob()[index];
  job.setName("toy");
  job.setPurpose("testing");
  job.setCheckpointEverySteps(10);
  change(job);
  return Message::copy_of<TrainingJob>(job.asReader());
}

Message trees_job(std::uint32_t folds, std::uint32_t rounds, std::uint32_t workers = 1) {
  return job_from("credit_trees.toml", 0, [&](TrainingJob::Builder job) {
    job.setFolds(folds);
    job.setWorkers(workers);
    if (rounds != 0) job.getModel().getTrees().setRounds(rounds);
  });
}

TEST(TrainingCredit, NetworksOfTheExamplesLearnAndAreTheSameWithKills) {
  const auto few = [](TrainingJob::Builder job) { job.setEpochs(4); };
  const auto digits = read_example("digits.toml", "digits.csv");
  for (const unsigned job : {0U, 1U}) {
    const auto trained = train(*digits, job_from("digits_networks.toml", job, few), 20);
    ASSERT_EQ(trained.phase, "finished") << trained.message;
    EXPECT_GE(trained.metrics.at("accuracy"), 0.8) << job;
  }
  const auto read = train(*digits, job_from("digits_gpt.toml", 0, few), 23);
  ASSERT_EQ(read.phase, "finished") << read.message;
  EXPECT_GE(read.metrics.at("accuracy"), 0.4);
  const auto credit = read_example("credit.toml", "german_credit.csv");
  const auto whole = train(*credit, job_from("credit_transformer.toml", 0, few), 21);
  const auto killed = train(*credit, job_from("credit_transformer.toml", 0, few), 22, {6, 12});
  ASSERT_EQ(whole.phase, "finished") << whole.message;
  ASSERT_EQ(killed.phase, "finished") << killed.message;
  EXPECT_GE(killed.recoveries, 1U);
  EXPECT_EQ(killed.digest, whole.digest);
}

TEST(TrainingCredit, BoostedTreesOfFoldsAndOfHeldOutRows) {
  const auto example = read_example("credit.toml", "german_credit.csv");
  const Message job = trees_job(10, 0);
  const auto trained = train(*example, job, 8);
  ASSERT_EQ(trained.phase, "finished") << trained.message;
  EXPECT_GE(trained.metrics.at("cv_auc_mean"), 0.75);
  EXPECT_GE(trained.metrics.at("auc"), 0.72);
  std::uint64_t rows = 0;
  for (const auto count : trained.confusion) rows += count;
  EXPECT_EQ(rows, 200U);
  const auto measured = evaluate_model(*job.view<TrainingJob>(), example->snapshot, trained.model);
  ASSERT_TRUE(measured.has_value()) << measured.error().message;
  EXPECT_NEAR(measured->at("auc"), trained.metrics.at("auc"), 1e-6);
  RecordProperty("cv_auc_mean", format("{:.4f}", trained.metrics.at("cv_auc_mean")));
}

TEST(TrainingCredit, BoostedTreesOutliveTheirWorker) {
  const auto example = read_example("credit.toml", "german_credit.csv");
  const auto whole = train(*example, trees_job(0, 60), 9);
  const auto killed = train(*example, trees_job(0, 60), 10, {15, 40});
  ASSERT_EQ(whole.phase, "finished") << whole.message;
  ASSERT_EQ(killed.phase, "finished") << killed.message;
  EXPECT_GE(killed.recoveries, 1U);
  EXPECT_EQ(killed.digest, whole.digest);
  EXPECT_EQ(killed.samples, whole.samples);
  EXPECT_EQ(killed.model, whole.model);
}

TEST(TrainingCredit, BoostedTreesAreForOneWorker) {
  const auto example = read_example("credit.toml", "german_credit.csv");
  const Message job = trees_job(0, 5, 2);
  const auto course = make_course(*job.view<TrainingJob>(), example->snapshot, {});
  ASSERT_FALSE(course.has_value());
  EXPECT_NE(course.error().message.find("workers is 2"), std::string::npos) << course.error().message;
}

TEST(TrainingCredit, AnImportedModelIsTrainedFurther) {
  const auto example = read_example("credit.toml", "german_credit.csv");
  const auto base = train(*example, job_of(*example, 1, 0, 2), 7);
  ASSERT_EQ(base.phase, "finished") << base.message;
  const auto spec = Message::build<TrainingJob>([&](TrainingJob::Builder b) {
    b.setName("toy");
    b.setLabel("class");
    b.setPositive("bad");
    b.initModel().setFamily("onnx");
    b.setEpochs(1);
  });
  const auto course = make_course(*spec.view<TrainingJob>(), example->snapshot, base.model);
  ASSERT_TRUE(course.has_value()) << course.error().message;
  const auto learner = (*course)->learner(0);
  ASSERT_TRUE(learner.has_value()) << learner.error().message;
}

TEST(TrainingCredit, BadJobsSayWhatIsWrong) {
  const auto example = read_example("credit.toml", "german_credit.csv");
  const auto why = [&](auto change) {
    const Message job = Message::build<TrainingJob>([&](TrainingJob::Builder b) {
      b.setName("toy");
      b.setView("applicants");
      b.setLabel("class");
      b.setPositive("bad");
      change(b);
    });
    const auto course = make_course(*job.view<TrainingJob>(), example->snapshot, {});
    if (!course.has_value()) return course.error().message;
    const auto learner = (*course)->learner(fits_of(*job.view<TrainingJob>()) - 1);
    return learner.has_value() ? std::string() : learner.error().message;
  };
  EXPECT_EQ(why([](TrainingJob::Builder) {}), "");
  EXPECT_NE(why([](TrainingJob::Builder b) { b.setLabel("klass"); }).find("no field klass"), std::string::npos);
  EXPECT_NE(why([](TrainingJob::Builder b) { b.initExclude(1).set(0, "nothing"); }).find("no field nothing"), std::string::npos);
  EXPECT_NE(why([](TrainingJob::Builder b) { b.setPositive("worse"); }), "");
  EXPECT_NE(why([](TrainingJob::Builder b) { b.initModel().setFamily("cnn"); }).find("needs `image`"), std::string::npos);
}

}  // namespace
}  // namespace falaj::training::test
