// Pruning: which weights and channels go, that a graph without them says what one with them silenced says, and what is left whole and why.
#include "kernels/compress/prune.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/compress/channels.hpp"
#include "kernels/onnx/onnx.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels {
namespace {

Tensor draw(Random& random, const Shape& shape) {
  Tensor t(DType::f32, shape);
  for (float& v : t.mutable_data<float>()) v = static_cast<float>(random.normal());
  return t;
}
Tensor positive(Random& random, const Shape& shape) {
  Tensor t = draw(random, shape);
  for (float& v : t.mutable_data<float>()) v = 0.5F + std::abs(v);
  return t;
}

std::vector<float> answers(const Graph& graph, const Tensor& x) {
  auto compiled = compile(graph);
  EXPECT_TRUE(compiled) << compiled.error().message;
  if (!compiled) return {};
  Executor executor(*compiled);
  std::vector<Tensor> outputs;
  const std::vector<Tensor> inputs = {x};
  const auto done = executor.run(inputs, outputs);
  EXPECT_TRUE(done) << done.error().message;
  if (!done) return {};
  return {outputs[0].data<float>().begin(), outputs[0].data<float>().end()};
}

// Silences channels instead of removing them: what reads them multiplies them by zero.
void silence(Graph& graph, const ChannelSlice& slice, const std::vector<std::int64_t>& gone) {
  Tensor& tensor = graph.initializers.find(slice.name)->second;
  tensor = tensor.clone();
  const Shape& shape = tensor.shape();
  const auto inner = static_cast<std::size_t>(shape.elements(slice.axis + 1, shape.rank()) * slice.block);
  const auto channels = static_cast<std::size_t>(shape[slice.axis] / slice.block);
  auto values = tensor.mutable_data<float>();
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::ranges::find(gone, static_cast<std::int64_t>(i / inner % channels)) != gone.end()) values[i] = 0;
  }
}

// Conv, BatchNormalization, activation, pooling, Conv, a spelled-out sigmoid gate, Flatten, Gemm, MatMul with Add.
Graph image_network(Random& random) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 3, 8, 8});
  g.add_initializer("c1", draw(random, {6, 3, 3, 3}));
  g.add_initializer("c1b", draw(random, {6}));
  for (const char* name : {"scale", "mean"}) g.add_initializer(name, draw(random, {6}));
  g.add_initializer("shift", draw(random, {6}));
  g.add_initializer("variance", positive(random, {6}));
  g.add_initializer("c2", draw(random, {5, 6, 3, 3}));
  g.add_initializer("bias", draw(random, {5, 1, 1}));
  g.add_initializer("two", Tensor::scalar<float>(2));
  g.add_initializer("g1", draw(random, {7, 20}));
  g.add_initializer("g1b", draw(random, {7}));
  g.add_initializer("m", draw(random, {7, 4}));
  g.add_initializer("mb", draw(random, {4}));
  g.add("Conv", {"x", "c1", "c1b"}, {{"pads", std::vector<std::int64_t>{1, 1, 1, 1}}}, "a");
  g.add("BatchNormalization", {"a", "scale", "shift", "mean", "variance"}, {}, "n");
  g.add("Relu", {"n"}, {}, "r");
  g.add("MaxPool", {"r"}, {{"kernel_shape", std::vector<std::int64_t>{2, 2}}, {"strides", std::vector<std::int64_t>{2, 2}}}, "p");
  g.add("Conv", {"p", "c2"}, {}, "b");
  g.add("Add", {"b", "bias"}, {}, "d");
  g.add("Sigmoid", {"d"}, {}, "s");
  g.add("Mul", {"d", "s"}, {}, "e");
  g.add("Mul", {"e", "two"}, {}, "t");
  g.add("Flatten", {"t"}, {{"axis", std::int64_t{1}}}, "f");
  g.add("Gemm", {"f", "g1", "g1b"}, {{"transB", std::int64_t{1}}}, "h");
  g.add("Tanh", {"h"}, {}, "i");
  g.add("MatMul", {"i", "m"}, {}, "j");
  g.add_output(g.add("Add", {"j", "mb"}, {}, "y"), DType::f32, {-1, 4});
  return g;
}

TEST(Prune, AGraphWithoutChannelsSaysWhatOneWithSilentOnesSays) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    Random random(seed);
    Graph graph = image_network(random);
    // The wide matrix must fit what is flattened: 5 channels of 2 x 2.
    graph.initializers.find("g1")->second = draw(random, {7, 20});
    const Tensor x = draw(random, {3, 3, 8, 8});
    Graph pruned = graph;
    const auto report = prune_channels(pruned, {.amount = 0.5});
    ASSERT_TRUE(report) << report.error().message;
    ASSERT_EQ(report->pruned.size(), 3U);
    ASSERT_EQ(report->whole.size(), 1U);
    EXPECT_EQ(report->whole[0].name, "m");
    EXPECT_NE(report->whole[0].reason.find("result of the model"), std::string::npos) << report->whole[0].reason;
    const std::int64_t kept[] = {3, 3, 4};
    for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(report->pruned[i].kept, kept[i]) << report->pruned[i].name;
    EXPECT_EQ(pruned.initializers.find("c2")->second.shape(), (Shape{3, 3, 3, 3}));
    EXPECT_EQ(pruned.initializers.find("variance")->second.shape(), (Shape{3}));
    EXPECT_EQ(pruned.initializers.find("bias")->second.shape(), (Shape{3, 1, 1}));
    EXPECT_EQ(pruned.initializers.find("g1")->second.shape(), (Shape{4, 12}));
    // The same, layer after layer, with zeros.
    Graph silent = graph;
    for (const LayerUse& layer : layers_of(graph)) {
      const auto group = channel_group(graph, layer);
      if (!group) continue;
      // Norms of the silent graph: as in the pruned one, inputs that went no longer count.
      const Tensor& weights = silent.initializers.find(group->weights)->second;
      const auto inner = static_cast<std::size_t>(weights.shape().elements(group->axis + 1, weights.shape().rank()));
      std::vector<std::pair<double, std::int64_t>> norms;
      for (std::int64_t c = 0; c < group->channels; ++c) norms.emplace_back(0, c);
      for (std::size_t i = 0; i < weights.elements(); ++i)
        norms[i / inner % norms.size()].first += std::abs(static_cast<double>(weights.data<float>()[i]));
      std::ranges::sort(norms);
      std::vector<std::int64_t> gone;
      for (std::size_t i = 0; i < norms.size() / 2; ++i) gone.push_back(norms[i].second);
      silence(silent, group->slices.back(), gone);
    }
    const auto a = answers(pruned, x);
    const auto b = answers(silent, x);
    ASSERT_EQ(a.size(), 12U);
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-4 * (1 + std::abs(b[i]))) << "seed " << seed;
    // And it is a model like any other.
    const auto bytes = export_onnx(pruned);
    ASSERT_TRUE(bytes) << bytes.error().message;
    const auto again = import_onnx(*bytes, "pruned.onnx");
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_EQ(answers(*again, x), a);
  }
}

TEST(Prune, TheSmallestWeightsBecomeZerosByLayerOrAltogether) {
  Random random(3);
  Graph g;
  g.add_input("x", DType::f32, {-1, 2});
  g.add_initializer("w", Tensor::of<float>({2, 3}, {1, -0.1F, 3, -4, 0.2F, 6}));
  g.add_initializer("v", Tensor::of<float>({3, 2}, {0.01F, -0.02F, 0.03F, 0.04F, -0.05F, 0.06F}));
  g.add("MatMul", {"x", "w"}, {}, "h");
  g.add_output(g.add("MatMul", {"h", "v"}, {}, "y"), DType::f32, {-1, 2});
  const auto zeros = [&](const PruneSpec& spec) {
    Graph copy = g;
    const auto masks = magnitude_masks(copy, spec);
    EXPECT_TRUE(masks) << masks.error().message;
    EXPECT_TRUE(apply_masks(copy, *masks));
    const auto layers = layer_weights(copy);
    EXPECT_EQ(layers.size(), 2U);
    return std::pair(layers[0].zeros, layers[1].zeros);
  };
  EXPECT_EQ(zeros({.amount = 0.5}), std::pair(std::size_t{3}, std::size_t{3}));
  EXPECT_EQ(zeros({.amount = 0.5, .scope = PruneScope::global}), std::pair(std::size_t{0}, std::size_t{6}));
  EXPECT_EQ(zeros({.amount = 0.7, .scope = PruneScope::global}), std::pair(std::size_t{2}, std::size_t{6}));
  EXPECT_EQ(zeros({.amount = 0.5, .keep = {"v*"}}), std::pair(std::size_t{3}, std::size_t{0}));
  const auto masks = magnitude_masks(g, {.amount = 0.5});
  EXPECT_EQ((*masks)[0].kept, (std::vector<std::uint8_t>{0, 0, 1, 1, 0, 1}));
  EXPECT_EQ(layer_weights(g)[0].zeros, 0U) << "the graph's own weights are as they were";
}

TEST(Prune, WhatCannotLoseChannelsIsLeftWholeWithTheReason) {
  Random random(4);
  Graph g;
  g.add_input("x", DType::f32, {-1, 4});
  for (const char* name : {"w1", "w2", "w3", "shared"}) g.add_initializer(name, draw(random, {4, 4}));
  g.add_initializer("s", draw(random, {4}));
  g.add("MatMul", {"x", "w1"}, {}, "a");
  g.add("Add", {"a", "x"}, {}, "residual");
  g.add("MatMul", {"residual", "w2"}, {}, "b");
  g.add("LayerNormalization", {"b", "s"}, {}, "n");
  g.add("MatMul", {"n", "shared"}, {}, "c");
  g.add("MatMul", {"c", "shared"}, {}, "d");
  g.add_output(g.add("MatMul", {"d", "w3"}, {}, "y"), DType::f32, {-1, 4});
  Graph copy = g;
  const auto report = prune_channels(copy, {.amount = 0.5});
  ASSERT_FALSE(report);
  for (const char* part : {"w1: Add (node 'residual') joins its channels with those of another layer", "w2: LayerNormalization",
                           "shared: 'shared' is used in 2 places", "w3: its channels are a result of the model"})
    EXPECT_NE(report.error().message.find(part), std::string::npos) << report.error().message;
  for (const double amount : {0.0, 1.0, -1.0, std::nan("")}) EXPECT_FALSE(check(PruneSpec{.amount = amount}));
  Graph none;
  none.add_input("x", DType::f32, {-1, 4});
  none.add_output(none.add("Relu", {"x"}, {}, "y"), DType::f32, {-1, 4});
  EXPECT_FALSE(magnitude_masks(none, {}));
  EXPECT_FALSE(prune_channels(none, {}));
}

}  // namespace
}  // namespace falaj::kernels
