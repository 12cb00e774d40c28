// The fast kernels of backward passes beside the reference ones, sizes odd and even; any number of threads gives the same bits; training in
// bfloat16 goes where training in f32 goes.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <numeric>

#include "kernels/cpu/isa.hpp"
#include "kernels/plan.hpp"
#include "kernels/team.hpp"
#include "kernels/train/steps.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using testing::as_f32;
using testing::random_tensor;

class Gradients : public testing::Seeded {
 protected:
  Tensor draw(const Shape& shape) { return random_tensor(random_, shape); }
  Tensor labels(std::int64_t rows, std::int64_t classes) {
    Tensor t(DType::i64, {rows});
    for (auto& l : t.mutable_data<std::int64_t>())
      l = random_.below(8) == 0 ? -100 : static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(classes)));
    return t;
  }

  // The node in f64 by the reference kernel, and in f32 by the fast one, on one thread and on three.
  void compare(Node node, const std::vector<Tensor>& inputs, std::size_t outputs, double tolerance = 2e-5) {
    Graph graph;
    std::vector<Tensor> given;
    node.inputs.clear();
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      node.inputs.push_back(format("in{}", i));
      given.push_back(inputs[i].dtype() == DType::f64 ? as_f32(inputs[i]) : inputs[i]);
      graph.add_input(node.inputs.back(), given.back().dtype(), given.back().shape());
    }
    for (std::size_t i = 0; i < outputs; ++i) node.outputs.push_back(format("out{}", i));
    graph.add_node(node);
    for (const auto& name : node.outputs) graph.outputs.push_back({name, DType::undefined, {}, {}, false});
    const auto wanted = run_reference(node, inputs);
    ASSERT_TRUE(wanted) << wanted.error().message;
    std::vector<Tensor> first;
    for (const std::size_t threads : {1, 3}) {
      auto compiled = compile(graph, {.batch_invariant = false, .threads = threads});
      ASSERT_TRUE(compiled) << compiled.error().message;
      Executor executor(*compiled, threads);
      std::vector<Tensor> got;
      const auto status = executor.run(given, got);
      ASSERT_TRUE(status) << status.error().message;
      for (std::size_t k = 0; k < outputs; ++k) {
        for (std::size_t i = 0; threads == 1 && i < got[k].elements(); ++i) {
          const double exact = (*wanted)[k].data<double>()[i];
          ASSERT_NEAR(static_cast<double>(got[k].data<float>()[i]), exact, tolerance * (1 + std::abs(exact)))
              << node.op << " output " << k << " element " << i << " of " << to_string(inputs[0].shape());
        }
        if (threads > 1) {
          EXPECT_TRUE(equal_bits(first[k], got[k])) << node.op << " output " << k << " on three threads";
        }
      }
      if (threads == 1) first = got;
    }
  }
  static Node falaj(std::string op, Attributes attributes = {}) {
    return Node{std::move(op), std::string(kFalaj), "n", {}, {}, std::move(attributes)};
  }
};

TEST_F(Gradients, OfRows) {
  for (int round = 0; round < 8; ++round) {
    const std::int64_t rows = round == 0 ? 700 : up_to(9);
    const std::int64_t width = round == 1 ? 1 : up_to(77);
    const Shape shape{rows, width};
    compare(falaj("SoftmaxGrad"), {draw(shape), draw(shape)}, 1);
    compare(falaj("LogSoftmaxGrad"), {draw(shape), draw(shape)}, 1);
    compare(falaj("GeluGrad"), {draw(shape), draw(shape)}, 1);
    compare(falaj("LayerNormalizationGrad"), {draw(shape), draw(shape), draw({width})}, 3, width < 3 ? 1e-2 : 2e-4);
    compare(falaj("ReduceLike"), {draw(shape), draw({width})}, 1, 1e-4);
  }
}

TEST_F(Gradients, OfCrossEntropy) {
  for (int round = 0; round < 8; ++round) {
    const std::int64_t rows = round == 0 ? 900 : 1 + up_to(9);
    const std::int64_t classes = round == 1 ? 1 : up_to(70);
    Tensor wanted = labels(rows, classes);
    wanted.mutable_data<std::int64_t>()[0] = 0;  // one at least counts
    for (const std::string reduction : {"mean", "sum"}) {
      const Attributes attributes{{"reduction", reduction}, {"ignore_index", std::int64_t{-100}}};
      const Tensor x = draw({rows, classes});
      const Tensor weights = draw({rows});
      compare(falaj("SoftmaxCrossEntropy", attributes), {x, wanted}, 1);
      compare(falaj("SoftmaxCrossEntropy", attributes), {x, wanted, weights}, 1, 1e-4);
      compare(falaj("SoftmaxCrossEntropyGrad", attributes), {draw({}), x, wanted}, 1);
      compare(falaj("SoftmaxCrossEntropyGrad", attributes), {draw({}), x, wanted, weights}, 1);
    }
  }
}

TEST_F(Gradients, OfBatchNormalizationFarFromZeroToo) {
  for (int round = 0; round < 6; ++round) {
    const std::int64_t channels = round == 0 ? 70 : up_to(5);
    const Shape shape{1 + up_to(4), channels, up_to(7), 1 + up_to(7)};
    Tensor x = draw(shape);
    if (round % 2 == 1) {
      for (double& v : x.mutable_data<double>()) v = static_cast<double>(static_cast<float>(v + 100));
    }
    Tensor variance = draw({channels});
    for (double& v : variance.mutable_data<double>()) v = std::abs(v);
    compare(falaj("BatchNormalization", {{"momentum", 0.8F}}), {x, draw({channels}), draw({channels}), draw({channels}), variance}, 3,
            2e-4);
    compare(falaj("BatchNormalizationTrainingGrad"), {draw(shape), x, draw({channels})}, 3, 2e-3);
  }
}

TEST_F(Gradients, OfBatchNormalizationAreTheSameBitsOnEachWidthOfVectors) {
  for (int round = 0; round < 6; ++round) {
    const Shape shape{1 + up_to(4), 3, up_to(9), 1 + up_to(9)};
    const std::vector<Tensor> inputs = {as_f32(draw(shape)), as_f32(draw(shape)), as_f32(draw({3}))};
    Graph graph;
    for (std::size_t i = 0; i < inputs.size(); ++i) graph.add_input(format("in{}", i), DType::f32, inputs[i].shape());
    Node node = falaj("BatchNormalizationTrainingGrad");
    node.inputs = {"in0", "in1", "in2"};
    node.outputs = {"dx", "dscale", "dbias"};
    graph.add_node(node);
    for (const auto& name : node.outputs) graph.outputs.push_back({name, DType::undefined, {}, {}, false});
    const auto run = [&] {
      std::vector<Tensor> got;
      Executor executor(*compile(graph, {.batch_invariant = false}));
      EXPECT_TRUE(executor.run(inputs, got));
      return got;
    };
    const auto widest = run();
    const cpu::WithoutAvx512 limit;
    const auto narrow = run();
    for (std::size_t k = 0; k < 3; ++k) EXPECT_TRUE(equal_bits(widest[k], narrow[k])) << node.outputs[k] << " of " << to_string(shape);
  }
}

TEST_F(Gradients, ALabelThatIsNoClassIsNamed) {
  Graph graph;
  graph.add_input("x", DType::f32, {2, 3});
  graph.add_input("labels", DType::i64, {2});
  graph.add_output(graph.add(kFalaj, "SoftmaxCrossEntropy", {"x", "labels"}, {}, "loss"), DType::f32, {});
  Executor executor(*compile(graph));
  std::vector<Tensor> outputs;
  const std::vector<Tensor> inputs = {Tensor(DType::f32, {2, 3}), Tensor::vector<std::int64_t>({1, 3})};
  const auto status = executor.run(inputs, outputs);
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("label 3 in row 1"), std::string::npos) << status.error().message;
}

TEST(Team, EachPartRunsOnceInTheCallersFloatMode) {
  Team team(3);
  set_flush_denormals();
  std::vector<int> done(257);
  std::vector<float> tiny(257);
  volatile float small = 1e-38F;
  for (int round = 1; round <= 200; ++round) {
    team.run(done.size(), [&](std::size_t i) {
      ++done[i];
      tiny[i] = small * 0.01F;  // a denormal, where those are kept
    });
  }
  for (std::size_t i = 0; i < done.size(); ++i) {
    EXPECT_EQ(done[i], 200);
    EXPECT_EQ(tiny[i], 0.0F);
  }
}

// Large enough that products and convolutions have parts.
Graph network(Random& random) {
  Graph g;
  const auto weights = [&](const std::string& name, const Shape& shape, double scale) {
    Tensor t = as_f32(random_tensor(random, shape, -scale, scale));
    return g.add_initializer(name, std::move(t));
  };
  g.add_input("x", DType::f32, {-1, 16, 16, 16});
  const Attributes same{{"pads", std::vector<std::int64_t>{1, 1, 1, 1}}, {"kernel_shape", std::vector<std::int64_t>{3, 3}}};
  const std::string a = g.add("Conv", {"x", weights("a", {32, 16, 3, 3}, 0.1)}, same, "conv");
  const auto normed = g.add("BatchNormalization",
                            {a, weights("scale", {32}, 1), weights("shift", {32}, 1), g.add_initializer("mean", Tensor(DType::f32, {32})),
                             g.add_initializer("variance", Tensor(DType::f32, {32}))},
                            {}, "normed");
  const std::string b = g.add("Conv", {g.add("Relu", {normed}, {}, "relu"), weights("b", {32, 32, 3, 3}, 0.1)}, same, "conv2");
  const std::string flat = g.add("Flatten", {b}, {}, "flat");
  const std::string hidden = g.add("Relu", {g.add("MatMul", {flat, weights("h", {32 * 256, 160}, 0.02)}, {}, "hidden")}, {}, "relu2");
  g.add_output(g.add("Gemm", {hidden, weights("w", {160, 10}, 0.2), weights("c", {10}, 0.1)}, {}, "y"), DType::f32, {-1, 10});
  return g;
}

struct Outcome {
  std::vector<double> losses;
  std::vector<float> parameters;
};
Outcome train(const Graph& graph, const Tensor& x, const Tensor& labels, std::uint64_t steps, bool bf16, std::size_t threads) {
  Outcome out;
  auto trainer = Trainer::make(
      graph, {.objective = Objective{.loss = Loss::cross_entropy}, .batch_statistics = true, .bf16 = bf16, .threads = threads});
  EXPECT_TRUE(trainer) << trainer.error().message;
  if (!trainer) return out;
  const auto data = (*trainer)->prepare({x}, labels);
  EXPECT_TRUE(data) << data.error().message;
  StepsSpec spec;
  spec.sampler = {.global_batch = 16, .seed = 3};
  spec.steps = steps;
  const auto done = train_steps(**trainer, *data, spec, [&](const StepReport& report) -> Status {
    out.losses.push_back(report.loss);
    return {};
  });
  EXPECT_TRUE(done) << done.error().message;
  out.parameters.assign((*trainer)->parameters().begin(), (*trainer)->parameters().end());
  return out;
}

TEST(TrainingThreads, GiveTheSameBits) {
  Random random(testing::test_seed());
  const Graph graph = network(random);
  const Tensor x = as_f32(random_tensor(random, {32, 16, 16, 16}));
  Tensor labels(DType::i64, {32});
  for (auto& l : labels.mutable_data<std::int64_t>()) l = static_cast<std::int64_t>(random.below(10));
  for (const bool bf16 : {false, true}) {
    const Outcome one = train(graph, x, labels, 2, bf16, 1);
    for (const std::size_t threads : {2, 5}) {
      const Outcome many = train(graph, x, labels, 2, bf16, threads);
      EXPECT_EQ(one.losses, many.losses) << threads << " threads, bf16 " << bf16;
      EXPECT_EQ(one.parameters, many.parameters) << threads << " threads, bf16 " << bf16;
    }
  }
}

// Of twelve steps, by which the loss has gone down to less than a half, none is further than 5 % from that of f32.
TEST(TrainingInBf16, FollowsTrainingInF32) {
  Random random(testing::test_seed());
  const Graph graph = network(random);
  Tensor x = as_f32(random_tensor(random, {32, 16, 16, 16}));
  Tensor labels(DType::i64, {32});
  for (auto& l : labels.mutable_data<std::int64_t>()) l = static_cast<std::int64_t>(random.below(10));
  const Outcome wide = train(graph, x, labels, 12, false, 1);
  const Outcome narrow = train(graph, x, labels, 12, true, 1);
  ASSERT_EQ(wide.losses.size(), narrow.losses.size());
  EXPECT_NE(wide.losses.front(), narrow.losses.front()) << "operands were not rounded";
  for (std::size_t i = 0; i < wide.losses.size(); ++i)
    EXPECT_NEAR(narrow.losses[i], wide.losses[i], 0.05 * wide.losses.front()) << "step " << i;
  EXPECT_LT(narrow.losses.back(), 0.5 * narrow.losses.front());
}

}  // namespace
}  // namespace falaj::kernels
