// What a training step keeps: values that are computed again change no bit and leave the arena; transposed weights are read as they lie,
// and Gelu is one node, however the exporter wrote them.
#include "kernels/train/recompute.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/optimise.hpp"
#include "kernels/plan.hpp"
#include "kernels/train/forms.hpp"
#include "kernels/train/trainer.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using testing::as_f32;
using testing::random_tensor;

class Recomputing : public testing::Seeded {
 protected:
  std::string weights(Graph& g, const std::string& name, const Shape& shape) {
    wrt_.push_back(g.add_initializer(name, as_f32(random_tensor(random_, shape, -0.3, 0.3))));
    return name;
  }
  std::string norm(Graph& g, const std::string& x, const std::string& name) {
    const std::string scale = weights(g, name + "_scale", {8});
    const std::string shift = weights(g, name + "_shift", {8});
    const std::string mean = g.add_initializer(name + "_mean", Tensor(DType::f32, {8}));
    const std::string variance = g.add_initializer(name + "_variance", Tensor(DType::f32, {8}));
    return g.add(kFalaj, "BatchNormalization", {x, scale, shift, mean, variance}, {}, name);
  }
  // Convolutions with normalisation and Relu, and blocks with what passes them by: ResNet in small.
  Graph network() {
    const Attributes same{{"pads", std::vector<std::int64_t>{1, 1, 1, 1}}, {"kernel_shape", std::vector<std::int64_t>{3, 3}}};
    Graph g;
    g.add_input("x", DType::f32, {-1, 8, 16, 16});
    std::string x = g.add("Relu", {norm(g, g.add("Conv", {"x", weights(g, "stem", {8, 8, 3, 3})}, same), "stem_norm")});
    for (int block = 0; block < 3; ++block) {
      const auto at = [&](std::string_view part) { return format("{}{}", part, block); };
      const std::string a = g.add("Relu", {norm(g, g.add("Conv", {x, weights(g, at("a"), {8, 8, 3, 3})}, same), at("a_norm"))});
      const std::string b = norm(g, g.add("Conv", {a, weights(g, at("b"), {8, 8, 3, 3})}, same), at("b_norm"));
      x = g.add("Relu", {g.add("Add", {b, x})});
    }
    const std::string mean = g.add("ReduceMean", {x}, {{"axes", std::vector<std::int64_t>{1, 2, 3}}, {"keepdims", std::int64_t{0}}});
    g.add_output(g.add("Mul", {mean, mean}, {}, "loss"), DType::f32, {-1});
    return g;
  }

  std::vector<std::string> wrt_;
};

TEST_F(Recomputing, ChangesNoBitAndTakesLessMemory) {
  Graph graph = network();
  graph.outputs.clear();
  const std::size_t forward = graph.nodes.size();
  const auto gradients = append_gradients(graph, "loss", wrt_);
  ASSERT_TRUE(gradients) << gradients.error().message;
  for (const std::string& name : *gradients) graph.outputs.push_back({name, DType::undefined, {}, {}, false});
  const auto values = promote_to_inputs(graph, wrt_);  // as parameters are
  ASSERT_TRUE(values) << values.error().message;
  Graph again = graph;
  recompute(again, forward);
  ASSERT_TRUE(validate(again)) << validate(again).error().message;
  const auto count = [](const Graph& g) { return std::ranges::count(g.nodes, "BatchNormalization", &Node::op); };
  EXPECT_GT(count(again), count(graph) + 5) << "all of the stem and the blocks but some sums";
  std::vector<Tensor> inputs = {as_f32(random_tensor(random_, {16, 8, 16, 16}))};
  inputs.insert(inputs.end(), values->begin(), values->end());
  std::vector<std::vector<Tensor>> outputs(2);
  std::vector<std::size_t> bytes;
  for (const Graph* g : {&graph, &again}) {
    const auto compiled = compile(*g, {.batch_invariant = false});
    ASSERT_TRUE(compiled) << compiled.error().message;
    Executor executor(*compiled);
    const auto status = executor.run(inputs, outputs[bytes.size()]);
    ASSERT_TRUE(status) << status.error().message;
    bytes.push_back(executor.stats().arena_bytes);
  }
  for (std::size_t i = 0; i < wrt_.size(); ++i) EXPECT_TRUE(equal_bits(outputs[0][i], outputs[1][i])) << wrt_[i];
  EXPECT_LT(static_cast<double>(bytes[1]), 0.8 * static_cast<double>(bytes[0]));
}

TEST_F(Recomputing, TransposedWeightsAreReadAsTheyLie) {
  const Tensor w = as_f32(random_tensor(random_, {6, 5}));
  const auto graph_by = [&](bool folded) {
    Graph g;
    g.add_input("x", DType::f32, {-1, 3, 5});
    std::string right = "w";
    if (folded) {
      g.add_initializer("w", transposed(w));
    } else {
      g.add_initializer("w", w);
      right = g.add("Transpose", {"w"}, {{"perm", std::vector<std::int64_t>{1, 0}}});
    }
    g.add_output(g.add("MatMul", {"x", right}, {}, "y"), DType::f32, {-1, 3, 6});
    return g;
  };
  const auto form = trainable_form(graph_by(false));
  ASSERT_TRUE(form) << form.error().message;
  Graph turned = form->graph;
  remove_dead(turned);
  EXPECT_EQ(std::ranges::count(turned.nodes, "Transpose", &Node::op), 0);
  const Tensor x = as_f32(random_tensor(random_, {4, 3, 5}));
  Tensor labels = as_f32(random_tensor(random_, {4, 3, 6}));
  const std::vector<std::uint32_t> rows = {0, 1, 2, 3};
  std::vector<Tensor> gradients;
  for (const bool folded : {false, true}) {
    auto trainer = Trainer::make(graph_by(folded), {.objective = Objective{.loss = Loss::mse, .label_row = {3, 6}}});
    ASSERT_TRUE(trainer) << trainer.error().message;
    const auto data = (*trainer)->prepare({x}, labels);
    ASSERT_TRUE(data) << data.error().message;
    std::vector<float> sum(30);
    ASSERT_TRUE((*trainer)->gradient(*data, rows, sum));
    const Tensor gradient = Tensor::of<float>((*trainer)->layout()[0].shape, sum);
    gradients.push_back(folded ? transposed(gradient) : gradient);
  }
  for (std::size_t i = 0; i < 30; ++i) EXPECT_NEAR(gradients[0].data<float>()[i], gradients[1].data<float>()[i], 1e-5) << i;
}

TEST_F(Recomputing, GeluIsFoundWhereItsNumbersAreNodes) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 5});
  const auto number = [&](float value) { return g.add("Constant", {}, {{"value", Tensor::scalar<float>(value)}}); };
  const std::string scaled = g.add("Div", {"x", number(std::sqrt(2.0F))});
  const std::string sum = g.add("Add", {g.add("Erf", {scaled}), number(1)});
  g.add_output(g.add("Mul", {g.add("Mul", {"x", sum}), number(0.5F)}, {}, "y"), DType::f32, {-1, 5});
  find_gelus(g);
  remove_dead(g);
  ASSERT_EQ(g.nodes.size(), 1U);
  EXPECT_EQ(g.nodes[0].op, "Gelu");
}

}  // namespace
}  // namespace falaj::kernels
