// Boosting as a whole: what is learned, stopping, resuming, the exported graph, bad input; and the runner of tests/peers.
#include <cstdlib>
#include <filesystem>

#include "kernels/npy.hpp"
#include "kernels/onnx/onnx.hpp"
#include "runtime/base/clock.hpp"
#include "tests/kernels/trees_support.hpp"

namespace falaj::kernels::trees {
namespace {

using kernels::testing::credit;
using kernels::testing::credit_split;
using testing::all_rows;
using testing::boosted;
using testing::kBinary;
using testing::kMissing;
using testing::random_sample;
using testing::serve;

std::vector<float> credit_labels(const TargetSpec& target) { return encode_labels(target, credit().labels).value(); }
TargetSpec credit_target() { return fit_target("class", credit().labels, all_rows(1000), "bad").value(); }

TEST(TreesBoost, LearnsGermanCredit) {
  double sum = 0;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const auto split = credit_split(seed).value();
    const TargetSpec target = credit_target();
    const Spec spec{.rounds = 60, .leaves = 8, .learning_rate = 0.08, .l2 = 1, .column_share = 0.7, .row_share = 0.8, .seed = seed};
    auto booster = Booster::make(spec, target, credit().table, credit_labels(target), split.train, {}, 1).value();
    while (!booster->done()) ASSERT_TRUE(booster->step());
    sum += booster->evaluate(split.test)->named()["auc"];
  }
  EXPECT_GT(sum / 5, 0.75);
}

TEST(TreesBoost, LearnsSeveralClasses) {
  const auto digits = kernels::testing::read_example("digits.csv", "id", "digit", true);
  const auto rows = all_rows(digits.labels.size());
  const TargetSpec target = fit_target("digit", digits.labels, rows).value();
  const auto labels = encode_labels(target, digits.labels).value();
  const auto split = stratified_split({.test = 0.2, .seed = 1}, rows.size(), strata_of(labels, false)).value();
  auto booster =
      Booster::make({.rounds = 25, .leaves = 15, .learning_rate = 0.2, .rows_min = 5}, target, digits.table, labels, split.train, {}, 2)
          .value();
  double before = booster->training_loss();
  EXPECT_NEAR(before, std::log(10.0), 0.01);
  while (!booster->done()) {
    ASSERT_TRUE(booster->step());
    EXPECT_LT(booster->training_loss(), before);
    before = booster->training_loss();
  }
  EXPECT_GT(booster->evaluate(split.test)->named()["accuracy"], 0.93);
}

TEST(TreesBoost, LearnsNumbers) {
  Random random(8);
  NumericColumn x;
  NumericColumn z;
  std::vector<float> y;
  for (int i = 0; i < 4000; ++i) {
    x.push_back(static_cast<float>(random.uniform() * 6));
    z.push_back(static_cast<float>(random.normal()));
    y.push_back(1000 + 50 * std::sin(x.back()) + 10 * z.back());
  }
  const Table table{{{"x", ColumnKind::numeric}, {"z", ColumnKind::numeric}}, {x, z}};
  const TargetSpec target{.name = "y", .task = Task::regression, .classes = {}, .mean = 1000, .scale = 40};
  const auto booster = boosted({.rounds = 150}, target, table, y);
  auto metrics = booster->evaluate(all_rows(4000))->named();
  EXPECT_GT(metrics["r2"], 0.995);
  EXPECT_NEAR(metrics["loss"], booster->training_loss(), 1e-5 * metrics["loss"] + 1e-9);
}

TEST(TreesBoost, TheSameForAnyNumberOfThreadsAndAnotherForAnotherSeed) {
  Random random(9);
  const auto sample = random_sample(random, 90'000, 8, 2);  // so many cells that two threads are really there
  Spec spec{.rounds = 4, .column_share = 0.8, .row_share = 0.6, .seed = 3};
  const auto one = boosted(spec, kBinary, sample.table, sample.labels, 1);
  const auto two = boosted(spec, kBinary, sample.table, sample.labels, 2);
  EXPECT_EQ(one->state(), two->state());
  EXPECT_EQ(one->training_loss(), two->training_loss());
  spec.seed = 4;
  EXPECT_NE(boosted(spec, kBinary, sample.table, sample.labels, 1)->forest().trees, one->forest().trees);
}

// Rows for training and, behind them, rows for validation.
std::unique_ptr<Booster> with_validation(const Spec& spec, const testing::Sample& sample, std::size_t train) {
  std::vector<std::uint32_t> first(all_rows(train));
  std::vector<std::uint32_t> rest;
  for (auto row = static_cast<std::uint32_t>(train); row < sample.table.rows(); ++row) rest.push_back(row);
  return Booster::make(spec, kBinary, sample.table, sample.labels, first, rest, 1).value();
}

TEST(TreesBoost, StopsEarlyAndKeepsTheBestRounds) {
  Random random(12);
  auto sample = random_sample(random, 1200, 5, 1);
  for (std::size_t r = 0; r < 400; ++r) sample.labels[r] = random.chance(0.5) ? 1.0F : 0.0F;  // noise, which more trees learn by heart
  const Spec spec{.rounds = 500, .learning_rate = 0.3, .rows_min = 2, .patience = 7};
  auto booster = with_validation(spec, sample, 800);
  std::vector<double> losses;
  while (!booster->done()) {
    ASSERT_TRUE(booster->step());
    losses.push_back(booster->validation_loss());
  }
  ASSERT_LT(booster->rounds(), 500U);
  const auto best = static_cast<std::size_t>(std::ranges::min_element(losses) - losses.begin());
  EXPECT_EQ(losses.size(), best + 1 + spec.patience);
  EXPECT_EQ(booster->forest().rounds(), best + 1);
  std::vector<std::uint32_t> validation;
  for (std::uint32_t row = 800; row < 1200; ++row) validation.push_back(row);
  EXPECT_NEAR(booster->evaluate(validation)->loss(), losses[best], 1e-6);
}

TEST(TreesBoost, GoesOnFromItsStateAsIfNothingHadHappened) {
  Random random(13);
  const auto sample = random_sample(random, 1500, 5, 2);
  const Spec spec{.rounds = 20, .column_share = 0.8, .row_share = 0.7, .patience = 50, .seed = 1};
  auto whole = with_validation(spec, sample, 1000);
  while (!whole->done()) ASSERT_TRUE(whole->step());
  auto first = with_validation(spec, sample, 1000);
  for (int i = 0; i < 9; ++i) ASSERT_TRUE(first->step());
  const Bytes state = first->state();
  auto second = with_validation(spec, sample, 1000);
  ASSERT_TRUE(second->load(state));
  EXPECT_EQ(second->rounds(), 9U);
  EXPECT_EQ(second->validation_loss(), first->validation_loss());
  while (!second->done()) ASSERT_TRUE(second->step());
  EXPECT_EQ(second->state(), whole->state());
  Bytes bad = state;
  bad[bad.size() / 2] ^= 1;
  EXPECT_FALSE(second->load(bad));
  EXPECT_EQ(second->state(), whole->state());
  Spec other = spec;
  other.seed = 2;
  EXPECT_FALSE(with_validation(other, sample, 1000)->load(state));
}

// --- the exported graph -----------------------------------------------------------------------------------------------------

// What the graph answers on these columns (which need not be those it was trained on) is what the forest answers.
void expect_graph_agrees(const Booster& booster, const TargetSpec& target, const Table& table) {
  const auto graph = booster.graph();
  ASSERT_TRUE(graph) << graph.error().message;
  const auto file = export_onnx(*graph);
  ASSERT_TRUE(file) << file.error().message;
  const auto again = import_onnx(*file, "trees.onnx");
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(read_target(*again)->task, target.task);
  const auto outputs = serve(*again, table);
  ASSERT_TRUE(outputs) << outputs.error().message;
  const Forest forest = booster.forest();
  Team team(1);
  const Matrix matrix = Matrix::of(forest.bins, table, team).value();
  const auto exact = scores(forest, matrix, all_rows(table.rows()), team);
  const auto wanted = outputs_of_logits(target, std::vector<float>(exact.begin(), exact.end()), table.rows());
  const auto got = (*outputs)[0].data<float>();
  ASSERT_EQ(got.size(), wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) ASSERT_NEAR(got[i], wanted[i], 1e-5 * std::max(1.0F, std::abs(wanted[i]))) << i;
}

TEST(TreesExport, AnswersAsTheForest) {
  Random random(14);
  for (const auto& [numbers, categories] : {std::pair{4, 3}, std::pair{3, 0}, std::pair{0, 2}}) {
    const auto sample = random_sample(random, 700, static_cast<std::size_t>(numbers), static_cast<std::size_t>(categories));
    const auto booster = boosted({.rounds = 12, .rows_min = 5}, kBinary, sample.table, sample.labels);
    expect_graph_agrees(*booster, kBinary, sample.table);
    // Values nobody has seen: other words, missing ones everywhere, infinities, the edges themselves.
    auto strange = random_sample(random, 300, static_cast<std::size_t>(numbers), static_cast<std::size_t>(categories)).table;
    const Forest forest = booster->forest();
    for (std::size_t c = 0; c < strange.columns.size(); ++c) {
      if (auto* x = std::get_if<NumericColumn>(&strange.values[c])) {
        for (float& v : *x) {
          const auto& upper = forest.bins[c].upper;
          const float edge = upper[random.below(upper.size())];
          const float choices[] = {v,
                                   kMissing,
                                   std::numeric_limits<float>::infinity(),
                                   -std::numeric_limits<float>::infinity(),
                                   edge,
                                   std::nextafter(edge, 1e30F)};
          v = choices[random.below(6)];
        }
      } else {
        for (std::string& word : std::get<CategoricalColumn>(strange.values[c])) {
          if (random.chance(0.3)) word = random.chance(0.5) ? "never seen" : "";
        }
      }
    }
    expect_graph_agrees(*booster, kBinary, strange);
  }
}

TEST(TreesExport, SeveralClassesAndNumbers) {
  Random random(15);
  const auto sample = random_sample(random, 600, 4, 2);
  std::vector<float> three;
  std::vector<float> numbers;
  for (std::size_t r = 0; r < 600; ++r) {
    three.push_back(static_cast<float>(random.below(2)) + sample.labels[r]);
    numbers.push_back(500 + 30 * sample.labels[r] + static_cast<float>(random.normal()));
  }
  const TargetSpec classes{.name = "y", .task = Task::multiclass, .classes = {"a", "b", "c"}};
  const TargetSpec number{.name = "y", .task = Task::regression, .classes = {}, .mean = 515, .scale = 16};
  expect_graph_agrees(*boosted({.rounds = 6}, classes, sample.table, three), classes, sample.table);
  expect_graph_agrees(*boosted({.rounds = 10}, number, sample.table, numbers), number, sample.table);
  // Nothing to split: every leaf would be too small.
  expect_graph_agrees(*boosted({.rounds = 2, .rows_min = 400}, kBinary, sample.table, sample.labels), kBinary, sample.table);
}

TEST(TreesExport, IsMeasuredWithoutATrainer) {
  const TargetSpec target = credit_target();
  const auto labels = credit_labels(target);
  const auto booster = boosted({.rounds = 10}, target, credit().table, labels);
  const auto rows = credit_split(1)->test;
  auto ours = booster->evaluate(rows)->named();
  auto graph = evaluate_graph(*booster->graph(), target, credit().table, labels, rows);
  ASSERT_TRUE(graph) << graph.error().message;
  EXPECT_NEAR(graph->named()["auc"], ours["auc"], 1e-9);
  EXPECT_NEAR(graph->named()["loss"], ours["loss"], 1e-6);
}

// --- bad input --------------------------------------------------------------------------------------------------------------

std::string refusal(const Spec& spec, const TargetSpec& target, const Table& table, std::vector<float> labels,
                    std::vector<std::uint32_t> train, std::vector<std::uint32_t> validation = {}) {
  const auto made = Booster::make(spec, target, table, labels, std::move(train), std::move(validation), 1);
  return made ? "" : made.error().message;
}

TEST(TreesBadInput, IsRefusedByName) {
  Random random(16);
  const auto sample = random_sample(random, 100, 2, 1);
  const auto rows = all_rows(100);
  const auto said = [&](const Spec& spec) { return refusal(spec, kBinary, sample.table, sample.labels, rows); };
  EXPECT_EQ(said({}), "");
  EXPECT_NE(said({.rounds = 0}).find("rounds is 0"), std::string::npos);
  EXPECT_NE(said({.rounds = 1'000'000'000}).find("rounds"), std::string::npos);
  EXPECT_NE(said({.leaves = 1}).find("leaves is 1"), std::string::npos);
  EXPECT_NE(said({.leaves = 4'000'000'000}).find("leaves"), std::string::npos);
  EXPECT_NE(said({.learning_rate = kMissing}).find("learning_rate"), std::string::npos);
  EXPECT_NE(said({.learning_rate = -1}).find("learning_rate is -1"), std::string::npos);
  EXPECT_NE(said({.rows_min = 0}).find("rows_min"), std::string::npos);
  EXPECT_NE(said({.hessian_min = -1}).find("hessian_min"), std::string::npos);
  EXPECT_NE(said({.l2 = std::numeric_limits<double>::infinity()}).find("l2"), std::string::npos);
  EXPECT_NE(said({.column_share = 0}).find("column_share"), std::string::npos);
  EXPECT_NE(said({.row_share = 1.5}).find("row_share is 1.5"), std::string::npos);
  EXPECT_NE(said({.bins = 256}).find("bins is 256"), std::string::npos);
  EXPECT_NE(said({.patience = 3}).find("patience needs validation rows"), std::string::npos);
  auto labels = sample.labels;
  labels[17] = kMissing;
  EXPECT_NE(refusal({}, kBinary, sample.table, labels, rows).find("row 17"), std::string::npos);
  labels[17] = 2;
  EXPECT_NE(refusal({}, kBinary, sample.table, labels, rows).find("row 17"), std::string::npos);
  EXPECT_NE(refusal({}, kBinary, sample.table, std::vector<float>(100, 1.0F), rows).find("one class only"), std::string::npos);
  EXPECT_NE(refusal({}, kBinary, sample.table, std::vector<float>(99, 1.0F), rows).find("99 labels for 100 rows"), std::string::npos);
  EXPECT_NE(refusal({}, kBinary, sample.table, sample.labels, {}).find("no training rows"), std::string::npos);
  EXPECT_NE(refusal({}, kBinary, sample.table, sample.labels, {100}).find("row 100"), std::string::npos);
  EXPECT_NE(refusal({}, kBinary, sample.table, sample.labels, rows, {100}).find("validation row 100"), std::string::npos);
  EXPECT_NE(refusal({}, kBinary, Table{}, {}, {}).find("no columns"), std::string::npos);
  const TargetSpec number{.name = "y", .task = Task::regression, .classes = {}, .mean = 0, .scale = 0};
  EXPECT_NE(refusal({}, number, sample.table, sample.labels, rows).find("scale 0"), std::string::npos);
}

TEST(TreesBadInput, OtherColumnsAreRefused) {
  Random random(17);
  const auto sample = random_sample(random, 100, 1, 1);
  const auto forest = boosted({.rounds = 1}, kBinary, sample.table, sample.labels)->forest();
  Team team(1);
  Table renamed = sample.table;
  renamed.columns[0].name = "other";
  EXPECT_NE(Matrix::of(forest.bins, renamed, team).error().message.find("'x0'"), std::string::npos);
  const Table swapped{{{"x0", ColumnKind::categorical}, {"c0", ColumnKind::categorical}}, {CategoricalColumn{"a"}, CategoricalColumn{"b"}}};
  EXPECT_NE(Matrix::of(forest.bins, swapped, team).error().message.find("'x0' as numbers"), std::string::npos);
}

TEST(TreesBadInput, ScoresThatGrowBeyondAllNumbersStopTheTraining) {
  Random random(18);
  const auto sample = random_sample(random, 200, 2, 0);
  const TargetSpec number{.name = "y", .task = Task::regression, .classes = {}};
  auto booster = Booster::make({.rounds = 2000, .learning_rate = 10}, number, sample.table, sample.labels, all_rows(200), {}, 1).value();
  Status status;
  while (status && !booster->done()) status = booster->step();
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("lower the learning rate"), std::string::npos) << status.error().message;
}

// --- tests/peers ------------------------------------------------------------------------------------------------------------

Bytes read_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void write_bytes(const std::filesystem::path& path, ByteView bytes) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

// In the folder FALAJ_TREES_DIR: x.npy (f32 [rows, columns]), y.npy (f32), train and all settings in settings.txt; out come the model and
// the seconds that it took to cut the bins and to grow the trees.
TEST(TreesPeer, TrainsWhatItIsGiven) {
  const char* given = std::getenv("FALAJ_TREES_DIR");
  if (given == nullptr) GTEST_SKIP() << "for tests/peers";
  const std::filesystem::path folder(given);
  const Tensor x = read_npy(read_bytes(folder / "x.npy"), DType::f32).value();
  const Tensor y = read_npy(read_bytes(folder / "y.npy"), DType::f32).value();
  std::size_t train = 0;
  std::size_t threads = 1;
  Spec spec;
  std::ifstream(folder / "settings.txt") >> train >> threads >> spec.rounds >> spec.leaves >> spec.learning_rate;
  Table table;
  const auto width = static_cast<std::size_t>(x.shape()[1]);
  for (std::size_t c = 0; c < width; ++c) {
    NumericColumn column;
    for (std::size_t r = 0; r < train; ++r) column.push_back(x.data<float>()[r * width + c]);
    table.columns.push_back({format("x{}", c), ColumnKind::numeric});
    table.values.emplace_back(std::move(column));
  }
  const SystemClock clock;
  const Instant start = clock.now();
  auto booster = Booster::make(spec, kBinary, table, y.data<float>().first(train), all_rows(train), {}, threads).value();
  const Instant binned = clock.now();
  while (!booster->done()) ASSERT_TRUE(booster->step());
  const Instant grown = clock.now();
  const auto seconds = [](Duration d) { return std::chrono::duration<double>(d).count(); };
  std::ofstream(folder / "seconds.txt") << seconds(binned - start) << " " << seconds(grown - binned) << "\n";
  write_bytes(folder / "model.onnx", export_onnx(booster->graph().value()).value());
}

}  // namespace
}  // namespace falaj::kernels::trees
