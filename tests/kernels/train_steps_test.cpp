// Training of imported models by steps: losses and optimizers against plain formulas, what is trained and what only moves along, export
// that changes nothing but initialisers, and where a number that went bad is found.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/onnx/onnx.hpp"
#include "kernels/train/forms.hpp"
#include "kernels/train/steps.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels {
namespace {

Tensor draw(Random& random, const Shape& shape, float scale = 1.0F) {
  Tensor t(DType::f32, shape);
  for (float& v : t.mutable_data<float>()) v = static_cast<float>(random.normal()) * scale;
  return t;
}

// y = W x + b, imported from its own bytes so that it has an origin.
Graph linear(Random& random, std::int64_t in, std::int64_t out) {
  Graph g;
  g.add_input("x", DType::f32, {-1, in});
  g.add_initializer("w", draw(random, {out, in}));
  g.add_initializer("b", draw(random, {out}));
  g.add_output(g.add("Gemm", {"x", "w", "b"}, {{"transB", std::int64_t{1}}}, "y"), DType::f32, {-1, out});
  return import_onnx(*export_onnx(g), "linear.onnx").value();
}

std::unique_ptr<Trainer> trainer_of(const Graph& graph, Objective objective, bool dropout = false, std::vector<std::string> frozen = {}) {
  auto made = Trainer::make(graph, {.frozen = std::move(frozen), .objective = objective, .batch_statistics = true, .dropout = dropout});
  EXPECT_TRUE(made) << made.error().message;
  return made ? std::move(*made) : nullptr;
}

StepsSpec sgd(double rate, std::uint64_t steps, std::uint32_t batch) {
  StepsSpec spec;
  spec.optimizer = default_optimizer(OptimizerKind::sgd);
  spec.optimizer.learning_rate = rate;
  spec.sampler = {.global_batch = batch, .shuffle = false};
  spec.steps = steps;
  return spec;
}

TEST(TrainSteps, EachLossIsItsFormulaAndItsMeanIsOverAllThatIsCompared) {
  Random random(1);
  const Graph graph = linear(random, 3, 2);
  const Tensor x = draw(random, {4, 3});
  for (const Loss loss : {Loss::cross_entropy, Loss::bce, Loss::mse, Loss::l1, Loss::huber}) {
    const bool classes = loss == Loss::cross_entropy;
    const Tensor labels =
        classes ? Tensor::vector<std::int64_t>({1, 0, kIgnoredLabel, 1}) : Tensor::of<float>({4, 2}, {0, 1, 1, 0, 0.5F, 1, 0, 0});
    auto trainer = trainer_of(graph, {.loss = loss, .huber_delta = 0.5, .label_row = classes ? Shape{} : Shape{2}});
    ASSERT_NE(trainer, nullptr);
    const auto data = trainer->prepare({x}, labels);
    ASSERT_TRUE(data) << data.error().message;
    double told = 0;
    ASSERT_TRUE(train_steps(*trainer, *data, sgd(0.1, 1, 4), [&](const StepReport& r) -> Status {
      told = r.loss;
      return {};
    }));
    const auto w = graph.initializers.find("w")->second.data<float>();
    const auto b = graph.initializers.find("b")->second.data<float>();
    double sum = 0;
    double count = 0;
    for (std::size_t row = 0; row < 4; ++row) {
      double y[2];
      for (std::size_t k = 0; k < 2; ++k) {
        y[k] = static_cast<double>(b[k]);
        for (std::size_t i = 0; i < 3; ++i) y[k] += static_cast<double>(w[k * 3 + i]) * static_cast<double>(x.data<float>()[row * 3 + i]);
      }
      if (classes) {
        const auto label = labels.data<std::int64_t>()[row];
        if (label == kIgnoredLabel) continue;
        sum += std::log(std::exp(y[0]) + std::exp(y[1])) - y[label];
        ++count;
        continue;
      }
      for (std::size_t k = 0; k < 2; ++k, ++count) {
        const double t = static_cast<double>(labels.data<float>()[row * 2 + k]);
        const double d = std::abs(y[k] - t);
        if (loss == Loss::bce) sum += std::log1p(std::exp(y[k])) - t * y[k];
        if (loss == Loss::mse) sum += d * d;
        if (loss == Loss::l1) sum += d;
        if (loss == Loss::huber) sum += d <= 0.5 ? 0.5 * d * d : 0.5 * (d - 0.25);
      }
    }
    EXPECT_NEAR(told, sum / count, 1e-6 * (1 + std::abs(told))) << to_string(loss);
  }
}

TEST(TrainSteps, AStepOfSgdIsTheGradientAndDecayCoversEveryTensor) {
  Random random(2);
  const Graph graph = linear(random, 2, 1);
  auto trainer = trainer_of(graph, {.loss = Loss::mse, .label_row = {1}});
  const Tensor x = Tensor::of<float>({1, 2}, {0, 0});  // no gradient for w: only decay moves it
  const auto data = trainer->prepare({x}, Tensor::of<float>({1, 1}, {0}));
  ASSERT_TRUE(data);
  StepsSpec spec = sgd(0.1, 1, 1);
  spec.optimizer.weight_decay = 0.5;
  ASSERT_TRUE(train_steps(*trainer, *data, spec, [](const StepReport&) -> Status { return {}; }));
  const Graph after = trainer->export_graph();
  const auto moved = [&](const char* name, std::size_t i) {
    return std::pair(graph.initializers.find(name)->second.data<float>()[i], after.initializers.find(name)->second.data<float>()[i]);
  };
  EXPECT_NEAR(moved("w", 0).second, moved("w", 0).first * 0.95F, 1e-6);
  EXPECT_NEAR(moved("w", 1).second, moved("w", 1).first * 0.95F, 1e-6);
  EXPECT_NEAR(moved("b", 0).second, moved("b", 0).first * (1 - 0.1F * (2 + 0.5F)), 1e-6);  // loss b^2
}

TEST(TrainSteps, ExportChangesInitialisersOnlyAndFrozenOnesNot) {
  Random random(3);
  const Graph graph = linear(random, 3, 2);
  auto trainer = trainer_of(graph, {.loss = Loss::cross_entropy}, false, {"b*"});
  const auto data = trainer->prepare({draw(random, {8, 3})}, Tensor::vector<std::int64_t>({0, 1, 0, 1, 0, 1, 1, 1}));
  ASSERT_TRUE(data);
  ASSERT_TRUE(train_steps(*trainer, *data, sgd(0.1, 5, 4), [](const StepReport&) -> Status { return {}; }));
  Graph after = import_onnx(*export_onnx(trainer->export_graph()), "after.onnx").value();
  EXPECT_FALSE(equal_bits(after.initializers.find("w")->second, graph.initializers.find("w")->second));
  EXPECT_TRUE(equal_bits(after.initializers.find("b")->second, graph.initializers.find("b")->second));
  after.initializers.find("w")->second = graph.initializers.find("w")->second;
  EXPECT_TRUE(std::ranges::equal(*export_onnx(after), *graph.origin));  // with the old weights it is the old file, byte for byte
}

TEST(TrainSteps, SmallBatchesAccumulatedAreOneLargeBatch) {
  Random random(4);
  const Graph graph = linear(random, 3, 2);
  const Tensor x = draw(random, {8, 3});
  const Tensor labels = Tensor::vector<std::int64_t>({0, 1, 0, 1, 0, 1, 1, 1});
  std::vector<std::vector<float>> results;
  for (const std::uint32_t parts : {1U, 4U}) {
    auto trainer = trainer_of(graph, {.loss = Loss::cross_entropy});
    const auto data = trainer->prepare({x}, labels);
    ASSERT_TRUE(data);
    StepsSpec spec = sgd(0.3, 3, 8 / parts);
    spec.accumulate = parts;
    ASSERT_TRUE(train_steps(*trainer, *data, spec, [](const StepReport&) -> Status { return {}; }));
    results.emplace_back(trainer->parameters().begin(), trainer->parameters().end());
  }
  for (std::size_t i = 0; i < results[0].size(); ++i) EXPECT_NEAR(results[0][i], results[1][i], 1e-5);
}

// A convolution with BatchNormalization: running statistics move as PyTorch's do, towards the batch's mean and unbiased variance.
TEST(TrainSteps, BatchStatisticsTrainAndRunningOnesMove) {
  Random random(5);
  Graph g;
  g.add_input("x", DType::f32, {-1, 2, 3, 3});
  g.add_initializer("scale", Tensor::vector<float>({1, 2}));
  g.add_initializer("shift", Tensor::vector<float>({0, 0.5F}));
  g.add_initializer("mean", Tensor::vector<float>({0.25F, -1}));
  g.add_initializer("variance", Tensor::vector<float>({1, 3}));
  g.add("BatchNormalization", {"x", "scale", "shift", "mean", "variance"}, {}, "n");
  g.add_output(g.add("GlobalAveragePool", {"n"}, {}, "y"), DType::f32, {-1, 2, 1, 1});
  auto trainer = trainer_of(g, {.loss = Loss::mse, .label_row = {2, 1, 1}});
  ASSERT_NE(trainer, nullptr);
  const Tensor x = draw(random, {4, 2, 3, 3});
  const auto data = trainer->prepare({x}, draw(random, {4, 2, 1, 1}));
  ASSERT_TRUE(data) << data.error().message;
  ASSERT_TRUE(train_steps(*trainer, *data, sgd(0.01, 1, 4), [](const StepReport&) -> Status { return {}; }));
  const Graph after = trainer->export_graph();
  for (std::size_t c = 0; c < 2; ++c) {
    double mean = 0;
    double square = 0;
    for (std::size_t row = 0; row < 4; ++row) {
      for (std::size_t i = 0; i < 9; ++i) mean += static_cast<double>(x.data<float>()[(row * 2 + c) * 9 + i]) / 36;
    }
    for (std::size_t row = 0; row < 4; ++row) {
      for (std::size_t i = 0; i < 9; ++i) square += std::pow(static_cast<double>(x.data<float>()[(row * 2 + c) * 9 + i]) - mean, 2) / 35;
    }
    const auto now = [&](const char* name) { return static_cast<double>(after.initializers.find(name)->second.data<float>()[c]); };
    const auto then = [&](const char* name) { return static_cast<double>(g.initializers.find(name)->second.data<float>()[c]); };
    EXPECT_NEAR(now("mean"), 0.9 * then("mean") + 0.1 * mean, 1e-6);
    EXPECT_NEAR(now("variance"), 0.9 * then("variance") + 0.1 * square, 1e-5);
  }
}

// An embedding and a head that an exporter folded into a transposed copy of it stay one matrix.
TEST(TrainSteps, TiedWeightsStayTied) {
  Random random(6);
  Graph g;
  g.add_input("ids", DType::i64, {-1, 3});
  const Tensor table = draw(random, {5, 4});
  g.add_initializer("table", table);
  g.add_initializer("head", transposed(table));
  g.add("Gather", {"table", "ids"}, {}, "h");
  g.add_output(g.add("MatMul", {"h", "head"}, {}, "y"), DType::f32, {-1, 3, 5});
  auto trainer = trainer_of(g, {.loss = Loss::cross_entropy, .label_row = {3}});
  ASSERT_NE(trainer, nullptr);
  EXPECT_EQ(trainer->layout().size(), 1U);
  Tensor ids = Tensor::of<std::int64_t>({2, 3}, {0, 1, 2, 3, 4, 0});
  const auto data = trainer->prepare({ids}, ids);
  ASSERT_TRUE(data) << data.error().message;
  double first = 0;
  double last = 0;
  ASSERT_TRUE(train_steps(*trainer, *data, sgd(0.1, 20, 2), [&](const StepReport& r) -> Status {
    (r.step == 1 ? first : last) = r.loss;
    return {};
  }));
  EXPECT_LT(last, first);
  const Graph after = trainer->export_graph();
  EXPECT_TRUE(equal_bits(after.initializers.find("head")->second, transposed(after.initializers.find("table")->second)));
  EXPECT_FALSE(equal_bits(after.initializers.find("table")->second, table));
}

TEST(TrainSteps, DropoutDropsOnRequestAlikeForASeed) {
  Random random(7);
  Graph g;
  g.add_input("x", DType::f32, {-1, 6});
  g.add_initializer("w", draw(random, {6, 2}));
  g.add_initializer("ratio", Tensor::scalar<float>(0.5F));
  g.add_initializer("training", Tensor::scalar<bool>(true));
  g.add("Dropout", {"x", "ratio", "training"}, {}, "d");
  g.add_output(g.add("MatMul", {"d", "w"}, {}, "y"), DType::f32, {-1, 2});
  const Tensor x = draw(random, {4, 6});
  const Tensor labels = Tensor::vector<std::int64_t>({0, 1, 1, 0});
  const auto loss = [&](bool dropout, std::uint64_t key) {
    auto trainer = trainer_of(g, {.loss = Loss::cross_entropy}, dropout);
    const auto data = trainer->prepare({x}, labels);
    std::vector<float> gradient(trainer->parameters().size());
    const std::vector<std::uint32_t> rows = {0, 1, 2, 3};
    return trainer->gradient(*data, rows, gradient, key).value();
  };
  EXPECT_EQ(loss(false, 1), loss(false, 2));
  EXPECT_EQ(loss(true, 1), loss(true, 1));
  EXPECT_NE(loss(true, 1), loss(true, 2));
  EXPECT_NE(loss(true, 1), loss(false, 1));
}

TEST(TrainSteps, ANumberThatGoesBadIsNamedAndNothingMoves) {
  Random random(8);
  const Graph graph = linear(random, 2, 1);
  const auto message = [&](float bad_input, double rate) {
    auto trainer = trainer_of(graph, {.loss = Loss::mse, .label_row = {1}});
    const auto data = trainer->prepare({Tensor::of<float>({3, 2}, {1, 2, 3, bad_input, 5, 6})}, Tensor::of<float>({3, 1}, {1, 2, 3}));
    const auto done = train_steps(*trainer, *data, sgd(rate, 200, 3), [](const StepReport&) -> Status { return {}; });
    return done ? std::string() : done.error().message;
  };
  const std::string by_data = message(std::numeric_limits<float>::quiet_NaN(), 1e-3);
  EXPECT_NE(by_data.find("step 1: "), std::string::npos) << by_data;
  EXPECT_NE(by_data.find("input 'x', row 1"), std::string::npos) << by_data;
  const std::string by_rate = message(4, 1e3);
  EXPECT_NE(by_rate.find("step "), std::string::npos) << by_rate;
  EXPECT_TRUE(by_rate.find("made by") != std::string::npos || by_rate.find("parameter") != std::string::npos) << by_rate;
  EXPECT_EQ(message(4, 1e-3), "");
}

TEST(TrainSteps, StepsWithoutANumberAreLeftOutWhereThatIsWanted) {
  Random random(10);
  const Graph graph = linear(random, 2, 1);
  const float bad = std::numeric_limits<float>::quiet_NaN();
  const auto run = [&](std::vector<float> x, std::uint64_t steps, std::uint32_t accumulate, std::vector<StepReport>& reports,
                       const StepsState* from = nullptr, std::vector<StepsState>* states = nullptr) {
    auto trainer = trainer_of(graph, {.loss = Loss::mse, .label_row = {1}});
    const auto rows = static_cast<std::int64_t>(x.size() / 2);
    std::vector<float> labels(static_cast<std::size_t>(rows), 1.0F);
    const auto data = trainer->prepare({Tensor::of<float>({rows, 2}, x)}, Tensor::of<float>({rows, 1}, labels));
    StepsSpec spec = sgd(1e-2, steps, 1);
    spec.optimizer = default_optimizer(OptimizerKind::adam);  // its steps are counted
    spec.accumulate = accumulate;
    spec.skip_not_finite = true;
    Checkpoints checkpoints{.from = from, .every = states != nullptr ? 1U : 0U};
    checkpoints.save = [&](const StepsState& state) -> Status {
      states->push_back(state);
      return {};
    };
    const auto done = train_steps(
        *trainer, *data, spec,
        [&](const StepReport& report) -> Status {
          reports.push_back(report);
          return {};
        },
        checkpoints);
    EXPECT_TRUE(done || done.error().message.find("100 steps one after the other") != std::string::npos) << done.error().message;
    const auto parameters = trainer->parameters();
    return std::pair(done.has_value(), std::vector<float>(parameters.begin(), parameters.end()));
  };
  // A bad row moves nothing: what comes out is what the others give.
  std::vector<StepReport> with_bad;
  std::vector<StepReport> without;
  std::vector<StepsState> states;
  const auto [done, parameters] = run({1, 2, bad, 4, 5, 6}, 3, 1, with_bad, nullptr, &states);
  const auto [also_done, expected] = run({1, 2, 5, 6}, 2, 1, without);
  EXPECT_TRUE(done && also_done);
  EXPECT_EQ(parameters, expected);
  ASSERT_EQ(with_bad.size(), 3U);
  EXPECT_FALSE(with_bad[0].skipped());
  EXPECT_TRUE(with_bad[1].skipped());
  EXPECT_EQ(with_bad[2].loss, without[1].loss);
  // Taken up behind it, the same.
  std::vector<StepReport> rest;
  ASSERT_EQ(states.size(), 3U);
  const auto resumed = decode_steps(encode(states[1], {}), {});
  ASSERT_TRUE(resumed);
  EXPECT_EQ(run({1, 2, bad, 4, 5, 6}, 3, 1, rest, &*resumed).second, parameters);
  // A batch without a number takes its whole step with it.
  std::vector<StepReport> two;
  run({1, 2, bad, 4, 5, 6, 7, 8}, 2, 2, two);
  ASSERT_EQ(two.size(), 2U);
  EXPECT_TRUE(two[0].skipped());
  EXPECT_FALSE(two[1].skipped());
  // Nothing but bad ones: that ends.
  std::vector<StepReport> none;
  EXPECT_FALSE(run({bad, bad}, 500, 1, none).first);
  EXPECT_EQ(none.size(), 99U);
}

TEST(TrainSteps, BadLabelsAndShapesAreRefusedByName) {
  Random random(9);
  const Graph graph = linear(random, 2, 3);
  auto trainer = trainer_of(graph, {.loss = Loss::cross_entropy});
  const auto refused = [&](const Tensor& x, const Tensor& labels) {
    const auto data = trainer->prepare({x}, labels);
    return data ? std::string() : data.error().message;
  };
  EXPECT_NE(refused(draw(random, {2, 2}), Tensor::vector<std::int64_t>({0, 3})).find("row 1: label 3"), std::string::npos);
  EXPECT_NE(refused(draw(random, {2, 2}), Tensor::vector<float>({0, 1})).find("floats"), std::string::npos);
  EXPECT_NE(refused(draw(random, {3, 2}), Tensor::vector<std::int64_t>({0, 1})).find("input 'x'"), std::string::npos);
  EXPECT_FALSE(Trainer::make(graph, {.objective = Objective{.loss = Loss::mse, .label_row = {2}}}));
  EXPECT_FALSE(Trainer::make(graph, {.objective = Objective{.loss = Loss::cross_entropy, .label_row = {3}}}));
}

TEST(TrainSteps, SchedulesAndOptimizersDoWhatTheyPromise) {
  Schedule drops{.kind = ScheduleKind::step, .warmup_steps = 2, .every = 3, .gamma = 0.5};
  const double expected[] = {0.5, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25};
  for (std::uint64_t step = 0; step < std::size(expected); ++step) EXPECT_DOUBLE_EQ(drops.factor(step), expected[step]) << step;
  Plateau plateau{.gamma = 0.1, .patience = 1};
  for (const double loss : {3.0, 2.0, 2.0}) plateau.update(loss);
  EXPECT_DOUBLE_EQ(plateau.factor, 1.0);
  plateau.update(2.5);
  EXPECT_DOUBLE_EQ(plateau.factor, 0.1);
  // Adam's decay is in its gradient: with no other gradient the first step is a whole one, against the sign.
  OptimizerSpec adam = default_optimizer(OptimizerKind::adam);
  adam.weight_decay = 0.5;
  adam.learning_rate = 0.1;
  std::vector<float> p = {2, -3};
  std::vector<float> none = {0, 0};
  Optimizer(adam, 2).step(p, none);
  EXPECT_NEAR(p[0], 1.9F, 1e-6);
  EXPECT_NEAR(p[1], -2.9F, 1e-6);
  // LAMB moves each tensor by the rate times its own length.
  OptimizerSpec lamb = default_optimizer(OptimizerKind::lamb);
  lamb.weight_decay = 0;
  lamb.learning_rate = 0.1;
  std::vector<float> q = {3, 4, 0.5F};
  std::vector<float> g = {1, -1, 7};
  Optimizer(lamb, 3, {}, {2, 1}).step(q, g);
  const double half = 0.5 / std::sqrt(2.0);  // |(3, 4)| = 5, its step has two equal parts
  EXPECT_NEAR(q[0], 3 - half, 1e-4);
  EXPECT_NEAR(q[1], 4 + half, 1e-4);
  EXPECT_NEAR(q[2], 0.45F, 1e-4);
}

}  // namespace
}  // namespace falaj::kernels
