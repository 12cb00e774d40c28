// Training on the example data: quality against fixed bars, and bits that depend on nothing.

#include "kernels/collective/in_process.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/thread.hpp"
#include "tests/kernels/train_support.hpp"

namespace falaj::kernels {
namespace {

using namespace testing;  // NOLINT: the tests' own helpers

double mean_auc(Family family, std::uint64_t splits) {
  double sum = 0;
  for (std::uint64_t seed = 0; seed < splits; ++seed) {
    const auto split = credit_split(seed);
    const FamilySpec spec = default_spec(family);
    auto prepared = prepare(credit(), split->train, spec, seed, "class", "bad");
    EXPECT_TRUE(prepared) << prepared.error().message;
    if (!prepared) return 0;
    FitSpec fitting = recommended_fit(family, split->train.size());
    fitting.sampler.seed = seed;
    const auto report = fit(*prepared->trainer, prepared->data, fitting, split->train);
    EXPECT_TRUE(report) << report.error().message;
    sum += prepared->trainer->evaluate(prepared->data, split->test)->score();
  }
  return sum / static_cast<double>(splits);
}

// scikit-learn's logistic regression on one-hot features reaches 0.78 to 0.79 in the mean over ten such splits; single ones range from 0.71
// to 0.84. Sanitizers look for other things than quality.
#ifdef FALAJ_SANITIZED
constexpr std::uint64_t kSplits = 2;
constexpr double kLess = 0.05;
#else
constexpr std::uint64_t kSplits = 10;
constexpr double kLess = 0;
#endif
TEST(TrainEndToEnd, CreditAucOfLinear) {
  const double auc = mean_auc(Family::linear, kSplits);
  RecordProperty("auc", format("{:.4f}", auc));
  EXPECT_GE(auc, 0.77 - kLess);
}
TEST(TrainEndToEnd, CreditAucOfWideAndDeep) {
  const double auc = mean_auc(Family::wide_deep, kSplits);
  RecordProperty("auc", format("{:.4f}", auc));
  EXPECT_GE(auc, 0.77 - kLess);
}
TEST(TrainEndToEnd, CreditAucOfMlp) {
  const double auc = mean_auc(Family::mlp, kSplits);
  RecordProperty("auc", format("{:.4f}", auc));
  EXPECT_GE(auc, 0.765 - kLess);
}

TEST(TrainEndToEnd, AnyNumberOfRanksGivesTheSameBits) {
  const auto split = credit_split(1);
  FamilySpec family = default_spec(Family::wide_deep);
  family.dropout = 0.2;
  auto alone = prepare(credit(), split->train, family, 7, "class", "bad");
  ASSERT_TRUE(alone) << alone.error().message;
  const FitSpec spec = short_fit();
  ASSERT_TRUE(fit(*alone->trainer, alone->data, spec, split->train));
  for (const std::uint32_t world : {1U, 2U, 3U, 5U}) {
    InProcessRing ring(world, {.chunk_floats = 100, .window = 2}, 3);
    ASSERT_TRUE(ring.reform(Epoch(1)));
    Random random(world);
    std::vector<Prepared> ranks;
    std::vector<Sampler> samplers;
    std::vector<Optimizer> optimizers;
    for (std::uint32_t r = 0; r < world; ++r) {
      ranks.push_back(std::move(prepare(credit(), split->train, family, 7, "class", "bad").value()));
      samplers.emplace_back(spec.sampler, split->train);
      optimizers.emplace_back(spec.optimizer, ranks[r].trainer->parameters().size(), ranks[r].trainer->decay_mask());
    }
    const std::uint64_t steps = samplers[0].steps_per_epoch();
    std::vector<std::vector<float>> sums(world, std::vector<float>(ranks[0].trainer->parameters().size()));
    for (std::uint64_t step = 0; step < steps * spec.epochs; ++step) {
      std::vector<std::vector<std::vector<float>>> gradients(world);
      for (std::uint32_t r = 0; r < world; ++r) {
        const ShardRange range = shard_range(spec.sampler.micro_shards, world, Rank(r));
        gradients[r].resize(range.count);
        ASSERT_TRUE(micro_shard_gradients(*ranks[r].trainer, ranks[r].data, samplers[r], step, range.first, gradients[r]));
        std::vector<std::span<const float>> mine(gradients[r].begin(), gradients[r].end());
        ASSERT_TRUE(ring.rank(r).fold(step, std::move(mine), sums[r], Instant::max(), [](const Status& status) { EXPECT_TRUE(status); }));
      }
      ring.run(random);
      for (std::uint32_t r = 0; r < world; ++r) {
        ASSERT_TRUE(ring.rank(r).idle());
        const auto rows = samplers[r].batch(step).size();
        const double factor = schedule_of(spec, steps).factor(step);
        ASSERT_TRUE(std::isfinite(apply_step(*ranks[r].trainer, optimizers[r], factor, rows, sums[r])));
      }
    }
    for (const Prepared& rank : ranks) EXPECT_TRUE(same_bits(rank.trainer->parameters(), alone->trainer->parameters())) << world;
  }
}

TEST(TrainEndToEnd, AnotherThreadGivesTheSameBits) {
  const auto split = credit_split(1);
  std::vector<std::vector<float>> results;
  const auto train = [&] {
    auto prepared = prepare(credit(), split->train, default_spec(Family::mlp), 7, "class", "bad");
    ASSERT_TRUE(prepared) << prepared.error().message;
    ASSERT_TRUE(fit(*prepared->trainer, prepared->data, short_fit(), split->train));
    const auto parameters = std::as_const(*prepared->trainer).parameters();
    results.emplace_back(parameters.begin(), parameters.end());
  };
  train();
  Thread("other", train).join();
  train();
  ASSERT_EQ(results.size(), 3U);
  EXPECT_TRUE(same_bits(results[0], results[1]));
  EXPECT_TRUE(same_bits(results[0], results[2]));
}

TEST(TrainEndToEnd, GradientsAreTheSlopesOfTheLoss) {
  const auto rows = all_rows(100);
  for (const Family family : {Family::linear, Family::mlp, Family::wide_deep}) {
    FamilySpec spec = default_spec(family);
    spec.activation = "Tanh";  // smooth: differences are meaningful
    auto prepared = prepare(credit(), rows, spec, 3, "class", "bad");
    ASSERT_TRUE(prepared) << prepared.error().message;
    expect_slopes(*prepared, rows, Random(1));
  }
}

TEST(TrainEndToEnd, MicroShardsAddUpAndKeysSeedDropout) {
  FamilySpec spec = default_spec(Family::mlp);
  const auto rows = all_rows(64);
  auto plain = prepare(credit(), rows, spec, 3, "class", "bad");
  ASSERT_TRUE(plain);
  std::vector<float> whole(plain->trainer->parameters().size());
  std::vector<float> part(whole.size());
  std::vector<float> sum(whole.size(), 0.0F);
  const double loss = plain->trainer->gradient(plain->data, rows, whole).value();
  double losses = 0;
  for (std::size_t first = 0; first < 64; first += 16) {
    losses += plain->trainer->gradient(plain->data, std::span(rows).subspan(first, 16), part).value();
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
  }
  EXPECT_NEAR(loss, losses, 1e-3);
  for (std::size_t i = 0; i < sum.size(); ++i) EXPECT_NEAR(sum[i], whole[i], 1e-3);
  EXPECT_EQ(plain->trainer->gradient(plain->data, {}, part).value(), 0.0);
  EXPECT_EQ(part, std::vector<float>(part.size(), 0.0F));

  spec.dropout = 0.5;
  auto dropped = prepare(credit(), rows, spec, 3, "class", "bad");
  ASSERT_TRUE(dropped) << dropped.error().message;
  std::vector<float> again(whole.size());
  ASSERT_TRUE(dropped->trainer->gradient(dropped->data, rows, part, 1));
  ASSERT_TRUE(dropped->trainer->gradient(dropped->data, rows, again, 1));
  EXPECT_TRUE(same_bits(part, again));
  ASSERT_TRUE(dropped->trainer->gradient(dropped->data, rows, again, 2));
  EXPECT_FALSE(same_bits(part, again));
  EXPECT_EQ(dropped->trainer->predict(dropped->data, rows).value(), plain->trainer->predict(plain->data, rows).value());
}

TEST(TrainEndToEnd, MissingAndUnknownValues) {
  Example example = credit();
  auto& duration = std::get<NumericColumn>(example.table.values[1]);
  for (std::size_t row = 0; row < 1000; row += 10) duration[row] = std::numeric_limits<float>::quiet_NaN();
  auto& status = std::get<CategoricalColumn>(example.table.values[0]);
  for (std::size_t row = 5; row < 1000; row += 10) status[row] = "";
  const auto rows = all_rows(1000);
  auto prepared = prepare(example, rows, default_spec(Family::wide_deep), 7, "class", "bad");
  ASSERT_TRUE(prepared) << prepared.error().message;
  ASSERT_TRUE(fit(*prepared->trainer, prepared->data, short_fit(), rows));
  const auto expected = prepared->trainer->predict(prepared->data, rows).value();
  for (const float p : expected) ASSERT_TRUE(p > 0 && p < 1);
  for (std::size_t row = 5; row < 1000; row += 10) status[row] = "never seen";
  const auto outputs = serve(prepared->trainer->export_graph(), example.table);
  ASSERT_TRUE(outputs) << outputs.error().message;
  for (std::size_t row = 0; row < 1000; ++row) ASSERT_NEAR((*outputs)[0].data<float>()[row], expected[row], 1e-5);
}

TEST(TrainEndToEnd, DigitsHaveTenClasses) {
  const Example digits = read_example("digits.csv", "id", "digit");
  const auto rows = all_rows(digits.labels.size());
  const auto target = fit_target("digit", digits.labels, rows);
  ASSERT_TRUE(target);
  EXPECT_EQ(target->task, Task::multiclass);
  EXPECT_EQ(target->classes.size(), 10U);
  const auto split = stratified_split({.test = 0.2, .seed = 1}, rows.size(), strata_of(*encode_labels(*target, digits.labels), false));
  auto prepared = prepare(digits, split->train, {.family = Family::mlp, .hidden = {64}}, 1, "digit");
  ASSERT_TRUE(prepared) << prepared.error().message;
  FitSpec spec;
  spec.epochs = 15;
  spec.optimizer.learning_rate = 0.01;
  ASSERT_TRUE(fit(*prepared->trainer, prepared->data, spec, split->train));
  const auto evaluation = prepared->trainer->evaluate(prepared->data, split->test).value();
  EXPECT_GE(evaluation.score(), 0.95);
  const auto outputs = serve(prepared->trainer->export_graph(), digits.table);
  ASSERT_TRUE(outputs) << outputs.error().message;
  const auto expected = prepared->trainer->predict(prepared->data, rows).value();
  std::size_t right = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR((*outputs)[0].data<float>()[i], expected[i], 1e-5);
  for (const auto row : split->test) right += (*outputs)[1].data<std::string>()[row] == digits.labels[row] ? 1 : 0;
  EXPECT_NEAR(static_cast<double>(right) / static_cast<double>(split->test.size()), evaluation.score(), 1e-9);
}

TEST(TrainEndToEnd, Regression) {
  Example example;
  example.table.columns = {{"x", ColumnKind::numeric}, {"kind", ColumnKind::categorical}};
  NumericColumn x;
  CategoricalColumn kind;
  Random random(2);
  for (int i = 0; i < 600; ++i) {
    x.push_back(static_cast<float>(random.normal() * 50 + 1000));
    kind.emplace_back(random.chance(0.5) ? "a" : "b");
    example.labels.push_back(format("{}", 20000 + 30 * x.back() + (kind.back() == "a" ? 4000 : 0) + 100 * random.normal()));
  }
  example.table.values = {x, kind};
  const auto rows = all_rows(600);
  const auto train = std::span(rows).first(500);
  auto prepared = prepare(example, train, {.family = Family::linear}, 1, "price");
  ASSERT_TRUE(prepared) << prepared.error().message;
  EXPECT_EQ(prepared->target.task, Task::regression);
  FitSpec spec;
  spec.optimizer.learning_rate = 0.03;
  ASSERT_TRUE(fit(*prepared->trainer, prepared->data, spec, {train.begin(), train.end()}));
  const auto evaluation = prepared->trainer->evaluate(prepared->data, std::span(rows).subspan(500)).value();
  EXPECT_GE(evaluation.named().at("r2"), 0.99);
  EXPECT_LE(evaluation.named().at("rmse"), 150);
  const auto outputs = serve(prepared->trainer->export_graph(), example.table);
  ASSERT_TRUE(outputs) << outputs.error().message;
  const auto expected = prepared->trainer->predict(prepared->data, rows).value();
  for (std::size_t i = 0; i < 600; ++i) ASSERT_NEAR((*outputs)[0].data<float>()[i], expected[i], 0.05);
}

TEST(TrainEndToEnd, EarlyStoppingRestoresTheBest) {
  const auto split = credit_split(1);
  auto prepared = prepare(credit(), split->train, {.family = Family::mlp, .hidden = {64}}, 7, "class", "bad");
  ASSERT_TRUE(prepared);
  FitSpec spec;
  spec.optimizer.learning_rate = 0.02;  // overfits soon
  spec.patience = 3;
  std::vector<double> scores;
  const auto report = fit(*prepared->trainer, prepared->data, spec, split->train, split->test,
                          [&](const EpochReport& line) { scores.push_back(line.validation->score()); });
  ASSERT_TRUE(report);
  EXPECT_LT(report->epochs, spec.epochs);
  EXPECT_EQ(scores.size(), report->epochs);
  EXPECT_EQ(prepared->trainer->evaluate(prepared->data, split->test)->score(), std::ranges::max(scores));
}

TEST(TrainEndToEnd, BadInputIsNamed) {
  const auto rows = all_rows(1000);
  auto prepared = prepare(credit(), rows, default_spec(Family::linear), 7, "class", "bad");
  ASSERT_TRUE(prepared);
  Trainer& trainer = *prepared->trainer;
  const auto labels = std::vector<float>(1000, 1.0F);
  Table table = credit().table;
  table.columns[1].name = "length";
  EXPECT_NE(trainer.prepare(table, labels).error().message.find("'duration'"), std::string::npos);
  EXPECT_FALSE(trainer.prepare(credit().table, std::vector<float>(1000, 2.0F)));
  EXPECT_FALSE(trainer.prepare(credit().table, std::vector<float>(10, 1.0F)));
  std::vector<float> gradient(trainer.parameters().size());
  EXPECT_FALSE(trainer.gradient(prepared->data, std::vector<std::uint32_t>{1000}, gradient));
  EXPECT_FALSE(trainer.gradient(prepared->data, rows, std::span(gradient).first(3)));
  EXPECT_FALSE(trainer.load(std::vector<float>(3)));
  EXPECT_FALSE(Trainer::make(prepared->graph, {.spec = prepared->target, .logits = "nothing"}));
  EXPECT_FALSE(Trainer::make(prepared->graph, {.spec = prepared->target, .trainable = {"nothing"}}));
  TargetSpec three{.name = "class", .task = Task::multiclass, .classes = {"a", "b", "c"}};
  EXPECT_FALSE(Trainer::make(prepared->graph, {three}));
  FitSpec spec;
  spec.epochs = 0;
  EXPECT_FALSE(fit(trainer, prepared->data, spec, rows));
}

}  // namespace
}  // namespace falaj::kernels
