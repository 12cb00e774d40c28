// Training of convolutional networks in blocks of channels: the kernels beside the reference ones in all sizes, odd ones too, and training
// in blocks beside training without them; any number of threads gives the same bits.
#include "kernels/ops/blocks.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/convert.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/optimise.hpp"
#include "kernels/plan.hpp"
#include "kernels/train/trainer.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using testing::as_f32;
using testing::random_tensor;
using Ints = std::vector<std::int64_t>;

class InBlocks : public testing::Seeded {
 protected:
  void SetUp() override {
    if (!cpu::has_avx512_bf16()) GTEST_SKIP() << "this CPU has no AVX512_BF16";
  }
  Tensor draw(const Shape& shape, double low = -2, double high = 2) { return as_f32(random_tensor(random_, shape, low, high)); }
  Tensor draw(const Shape& shape, DType type) { return converted(draw(shape), type); }
  static Node node(std::string op, std::size_t outputs, Attributes attributes = {}) {
    Node made{std::move(op), std::string(kFalaj), "n", {}, {}, std::move(attributes)};
    for (std::size_t i = 0; i < outputs; ++i) made.outputs.push_back(format("out{}", i));
    return made;
  }

  static std::vector<Tensor> run(const Node& node, const std::vector<Tensor>& inputs, std::size_t threads) {
    Graph graph;
    std::vector<Tensor> given;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].empty()) continue;
      graph.add_input(node.inputs[i], inputs[i].dtype(), inputs[i].shape());
      given.push_back(inputs[i]);
    }
    graph.add_node(node);
    for (const auto& name : node.outputs) graph.outputs.push_back({name, DType::undefined, {}, {}, false});
    const auto compiled = compile(graph, {.batch_invariant = false, .threads = threads});
    EXPECT_TRUE(compiled) << compiled.error().message;
    EXPECT_EQ((*compiled)->why()->find("reference"), std::string::npos) << *(*compiled)->why();
    Executor executor(*compiled, threads);
    std::vector<Tensor> got;
    const auto status = executor.run(given, got);
    EXPECT_TRUE(status) << status.error().message;
    return got;
  }

  // Fast on one thread and on three, beside the reference; a sum in bfloat16 may be rounded to a neighbour.
  void compare(Node node, const std::vector<Tensor>& inputs, double tolerance = 1e-4) {
    for (std::size_t i = 0; i < inputs.size(); ++i) node.inputs.push_back(inputs[i].empty() ? "" : format("in{}", i));
    const auto wanted = run_reference(node, inputs);
    ASSERT_TRUE(wanted) << wanted.error().message;
    const auto got = run(node, inputs, 1);
    const auto again = run(node, inputs, 3);
    ASSERT_EQ(got.size(), wanted->size());
    for (std::size_t k = 0; k < got.size(); ++k) {
      EXPECT_TRUE(equal_bits(got[k], again[k])) << node.op << " output " << k << " on three threads";
      const Tensor a = converted(got[k], DType::f64);
      const Tensor b = converted((*wanted)[k], DType::f64);
      const double bound = got[k].dtype() == DType::bf16 ? 0.01 : tolerance;
      for (std::size_t i = 0; i < a.elements(); ++i) {
        const double exact = b.data<double>()[i];
        ASSERT_NEAR(a.data<double>()[i], exact, bound * (1 + std::abs(exact)))
            << node.op << " output " << k << " element " << i << " of " << to_string(inputs[0].shape());
      }
    }
  }

  // Gradients of one batch, and their loss.
  struct Step {
    double loss = 0;
    std::vector<float> gradients;
  };
  Step step_of(const Graph& graph, const Tensor& x, const Tensor& labels, bool bf16, std::size_t threads, bool by_batch = true) {
    auto trainer = Trainer::make(
        graph, {.objective = Objective{.loss = Loss::cross_entropy}, .batch_statistics = by_batch, .bf16 = bf16, .threads = threads});
    EXPECT_TRUE(trainer) << trainer.error().message;
    const auto data = (*trainer)->prepare({x}, labels);
    EXPECT_TRUE(data) << data.error().message;
    std::vector<std::uint32_t> rows(static_cast<std::size_t>(x.shape()[0]));
    std::iota(rows.begin(), rows.end(), 0U);
    Step step;
    step.gradients.resize((*trainer)->parameters().size());
    const auto loss = (*trainer)->gradient(*data, rows, step.gradients);
    EXPECT_TRUE(loss) << loss.error().message;
    step.loss = *loss;
    const std::vector<float> statistics = (*trainer)->statistics();
    step.gradients.insert(step.gradients.end(), statistics.begin(), statistics.end());
    return step;
  }
  // A step in f32 has, but for the last digits, what it has without blocks, which is given back.
  Step same_without_blocks(const Step& blocks, const Graph& graph, const Tensor& x, const Tensor& labels, bool by_batch = true) {
    const cpu::WithoutAvx512 limit;
    Step plain = step_of(graph, x, labels, false, 1, by_batch);
    EXPECT_NEAR(blocks.loss, plain.loss, 1e-5 * plain.loss);
    EXPECT_LT(distance(blocks.gradients, plain.gradients), 1e-5);
    return plain;
  }
  static double distance(const std::vector<float>& a, const std::vector<float>& b) {
    double difference = 0;
    double size = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
      size += std::pow(static_cast<double>(b[i]), 2);
    }
    return std::sqrt(difference / size);
  }

  // --- networks: parts of them have names of their own ---
  std::string weights(Graph& g, const std::string& name, const Shape& shape) { return g.add_initializer(name, draw(shape, -1, 1)); }
  std::string conv(Graph& g, const std::string& x, const std::string& name, const Shape& shape, std::int64_t stride, bool bias = false) {
    Tensor w = draw(shape);
    const auto depth = static_cast<float>(shape.elements(1, 4));
    for (float& v : w.mutable_data<float>()) v /= std::sqrt(depth);
    std::vector<std::string> inputs = {x, g.add_initializer(name, std::move(w))};
    if (bias) inputs.push_back(weights(g, name + "_bias", {shape[0]}));
    const std::int64_t pad = shape[2] / 2;
    return g.add("Conv", inputs, {{"pads", Ints{pad, pad, pad, pad}}, {"strides", Ints{stride, stride}}}, name + "_y");
  }
  std::string norm(Graph& g, const std::string& x, const std::string& name, std::int64_t channels) {
    Tensor variance(DType::f32, {channels});
    for (float& v : variance.mutable_data<float>()) v = 1;
    return g.add("BatchNormalization",
                 {x, g.add_initializer(name + "_scale", draw({channels}, 0.5, 1.5)), weights(g, name + "_shift", {channels}),
                  g.add_initializer(name + "_mean", Tensor(DType::f32, {channels})), g.add_initializer(name + "_variance", variance)},
                 {}, name);
  }
  void classify(Graph& g, const std::string& x, std::int64_t width) {
    g.add_output(g.add("Gemm", {x, weights(g, "last", {10, width}), weights(g, "last_bias", {10})}, {{"transB", std::int64_t{1}}}, "y"),
                 DType::f32, {-1, 10});
  }

  // ResNet in small, with what is no part of it: a bias, a layer whose channels are no blocks, Sigmoid and pools between.
  Graph network() {
    Graph g;
    const auto relu = [&](const std::string& x) { return g.add("Relu", {x}); };
    g.add_input("x", DType::f32, {-1, 3, 12, 12});
    std::string x = relu(norm(g, conv(g, "x", "stem", {16, 3, 3, 3}, 1), "stem_norm", 16));
    std::string y = relu(norm(g, conv(g, x, "a", {16, 16, 3, 3}, 1), "a_norm", 16));
    x = relu(g.add("Add", {norm(g, conv(g, y, "b", {16, 16, 3, 3}, 1), "b_norm", 16), x}));
    y = relu(norm(g, conv(g, x, "c", {32, 16, 3, 3}, 2), "c_norm", 32));
    y = norm(g, conv(g, y, "d", {32, 32, 3, 3}, 1), "d_norm", 32);
    x = relu(g.add("Add", {y, norm(g, conv(g, x, "skip", {32, 16, 1, 1}, 2), "skip_norm", 32)}));
    x = g.add("Sigmoid", {relu(conv(g, x, "e", {20, 32, 3, 3}, 1, true))});
    x = relu(conv(g, x, "f", {32, 20, 3, 3}, 1, true));
    x = g.add("MaxPool", {relu(conv(g, x, "g", {32, 32, 3, 3}, 1, true))}, {{"kernel_shape", Ints{2, 2}}, {"strides", Ints{2, 2}}});
    x = relu(conv(g, x, "h", {32, 32, 3, 3}, 1, true));
    classify(g, g.add("Flatten", {g.add("GlobalAveragePool", {x})}), 32);
    return g;
  }

  // Any values read by any others, some of them in blocks and some not; what nobody reads is what classes are told by.
  Graph any_network() {
    Graph g;
    struct Value {
      std::string name;
      std::int64_t channels;
      bool read = false;
    };
    g.add_input("x", DType::f32, {-1, 3, 12, 12});
    std::vector<Value> values = {{conv(g, "x", "stem", {16, 3, 3, 3}, 2), 16}};
    const Attributes same{{"kernel_shape", Ints{3, 3}}, {"pads", Ints{1, 1, 1, 1}}};
    for (std::int64_t i = 0; i < 14; ++i) {
      const std::size_t at = random_.below(values.size());
      const std::size_t other = random_.below(values.size());
      const Value from = values[at];
      const bool alike = from.channels == values[other].channels;
      Value made{"", from.channels};
      const std::uint64_t what = random_.below(11);
      if (what < 3) {
        made.channels = std::array<std::int64_t, 3>{16, 32, 20}[random_.below(3)];
        const std::int64_t kernel = 1 + 2 * static_cast<std::int64_t>(random_.below(2));
        made.name = conv(g, from.name, format("conv{}", i), {made.channels, from.channels, kernel, kernel}, 1, what == 0);
      } else if (what == 3) {
        made.name = norm(g, from.name, format("norm{}", i), from.channels);
      } else if (what == 4) {
        made.name = g.add("Relu", {norm(g, from.name, format("norm{}", i), from.channels)});
      } else if (what == 5) {
        made.name = g.add("Relu", {from.name});
      } else if (what == 6) {
        made.name = g.add(random_.below(2) == 0 ? "MaxPool" : "AveragePool", {from.name}, same);
      } else if (what == 7) {
        made.name = g.add("Sigmoid", {from.name});
      } else if (what == 8) {
        made = {g.add("Concat", {from.name, values[other].name}, {{"axis", std::int64_t{1}}}), from.channels + values[other].channels};
        values[other].read = true;
      } else if (alike) {
        made.name = g.add(what == 9 ? "Mul" : "Add", {from.name, values[other].name});
        if (what == 10) made.name = g.add("Relu", {made.name});
        values[other].read = true;
      } else {
        continue;
      }
      values[at].read = true;
      values.push_back(made);
    }
    std::vector<std::string> ends;
    std::int64_t width = 0;
    for (const Value& value : values) {
      if (value.read) continue;
      ends.push_back(g.add("Flatten", {g.add("GlobalAveragePool", {value.name})}));
      width += value.channels;
    }
    classify(g, g.add("Concat", ends, {{"axis", std::int64_t{1}}}), width);
    return g;
  }
  Tensor classes(std::int64_t rows) {
    Tensor labels(DType::i64, {rows});
    for (auto& l : labels.mutable_data<std::int64_t>()) l = static_cast<std::int64_t>(random_.below(10));
    return labels;
  }
};

TEST_F(InBlocks, WhatIsBetweenConvolutionsIsAsTheReferenceHasIt) {
  for (int round = 0; round < 12; ++round) {
    const DType type = round % 2 == 0 ? DType::bf16 : DType::f32;
    const std::int64_t channels = 16 * up_to(3);
    const Shape shape = round < 2 ? Shape{5, channels / 16, 36, 33, 16} : Shape{up_to(5), channels / 16, up_to(7), up_to(7), 16};
    const Tensor x = draw(shape, type);
    const Tensor dy = draw(shape, type);
    Tensor statistics = random_tensor(random_, {2, channels}, 0.3, 1.5);
    const Tensor scale = draw({channels});
    const Tensor shift = draw({channels});
    const Attributes relu{{"relu", std::int64_t{1}}};
    compare(node("BlockStatistics", 3, {{"momentum", 0.7F}}), {x, draw({channels}), draw({channels})});
    compare(node("BlockNorm", 1, relu), {x, statistics, scale, shift, dy});
    compare(node("BlockNorm", 1, {{"epsilon", 0.1F}}), {x, statistics, scale, shift});
    compare(node("BlockNorm", 1, relu), {x, statistics, scale, shift});
    compare(node("BlockNormGrad", 3), {dy, x, statistics, scale}, 1e-3);
    compare(node("BlockNormGrad", 3, relu), {dy, x, statistics, scale, shift}, 1e-3);
    compare(node("BlockNormGrad", 3, {{"fixed", std::int64_t{1}}}), {dy, x, statistics, scale}, 1e-3);
    compare(node("BlockSum", 1), {x, dy});
    compare(node("BlockSum", 1, relu), {x, dy});
    compare(node("BlockSum", 1), {x, Tensor(), dy});
    compare(node("BlockSum", 1), {x, dy, draw(shape, type)});
    compare(node("ChannelSums", 1), {x}, 1e-3);
    compare(node("FromBlocks", 1), {x});
    compare(node("ToBlocks", 1, {{"half", std::int64_t{type == DType::bf16 ? 1 : 0}}}), {draw(plain_of(shape))});
  }
}

// Images that are summed over by bands of their rows, and kernels that move by more than a row.
TEST_F(InBlocks, GradientsOfWeightsOfLargeImagesAreThoseOfTheReference) {
  for (int round = 0; round < 4; ++round) {
    const std::int64_t stride = up_to(3);
    const std::int64_t dilation = up_to(3);
    const std::int64_t kernel = up_to(4);
    const std::int64_t pad = up_to(3) - 1;
    const std::int64_t high = 40 + up_to(30);
    const std::int64_t wide = 40 + up_to(30);
    const auto out = [&](std::int64_t in) { return (in + 2 * pad - (kernel - 1) * dilation - 1) / stride + 1; };
    const Attributes attributes{{"pads", Ints{pad, pad, pad, pad}},
                                {"strides", Ints{stride, stride}},
                                {"dilations", Ints{dilation, dilation}},
                                {"half", std::int64_t{1}}};
    const Tensor x = draw({1, 1, high, wide, 16}, DType::bf16);
    const Tensor dy = draw({1, 2, out(high), out(wide), 16}, DType::bf16);
    compare(node("BlockConvWeightGrad", 1, attributes), {dy, x, draw({32, 16, kernel, kernel})}, 1e-3);
  }
}

TEST_F(InBlocks, PoolsAreThoseOfTheReference) {
  for (int round = 0; round < 12; ++round) {
    const DType type = round % 2 == 0 ? DType::bf16 : DType::f32;
    Attributes attributes{{"kernel_shape", Ints{up_to(3), up_to(3)}}, {"strides", Ints{up_to(2), up_to(2)}}, {"ceil_mode", up_to(2) - 1}};
    if (round % 3 == 0) attributes["pads"] = Ints{0, 0, 0, 0};
    if (round % 4 == 1) attributes["count_include_pad"] = std::int64_t{1};
    const Tensor x = draw({up_to(3), up_to(3), 3 + up_to(9), 3 + up_to(9), 16}, type);
    for (const char* function : {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}) {
      attributes["function"] = std::string(function);
      Node pool = node("BlockPool", 1, attributes);
      compare(pool, {x});
      pool.inputs = {"in0"};
      const Tensor y = (*run_reference(pool, std::vector<Tensor>{x}))[0];
      const Tensor dy = draw(y.shape(), type);
      if (std::string_view(function).ends_with("MaxPool")) {
        compare(node("BlockMaxPoolGrad", 1, attributes), {dy, x, y});
      } else {
        compare(node("BlockMeanPoolGrad", 1, attributes), {dy, x});
      }
    }
  }
}

TEST_F(InBlocks, PoolsKeepWhatIsNoNumber) {
  for (const DType type : {DType::bf16, DType::f32}) {
    Tensor values = draw({1, 1, 4, 4, 16});
    for (std::size_t i = 0; i < values.elements(); ++i) {  // at each place of a window, and in none
      if (i / 16 % 4 == i % 5) values.mutable_data<float>()[i] = std::numeric_limits<float>::quiet_NaN();
    }
    const Tensor x = converted(values, type);
    for (const char* function : {"MaxPool", "GlobalMaxPool"}) {
      Node pool = node("BlockPool", 1, {{"kernel_shape", Ints{2, 2}}, {"strides", Ints{2, 2}}, {"function", std::string(function)}});
      pool.inputs = {"in0"};
      const Tensor wanted = converted((*run_reference(pool, std::vector<Tensor>{x}))[0], DType::f32);
      const Tensor got = converted(run(pool, {x}, 1)[0], DType::f32);
      for (std::size_t i = 0; i < wanted.elements(); ++i) {
        const float a = got.data<float>()[i];
        const float b = wanted.data<float>()[i];
        ASSERT_TRUE(a == b || (std::isnan(a) && std::isnan(b))) << function << " element " << i << ": " << a << ", " << b;
      }
    }
  }
}

// A convolution's weights may be another's result, which goes through blocks itself.
TEST_F(InBlocks, WeightsMayBeComputed) {
  Graph g;
  const auto weights = [&](const std::string& name, const Shape& shape) { return g.add_initializer(name, draw(shape, -0.3, 0.3)); };
  g.add_input("x", DType::f32, {-1, 3, 8, 8});
  const Attributes padded{{"pads", Ints{1, 1, 1, 1}}};
  const std::string a = g.add("Relu", {g.add("Conv", {"x", weights("a", {16, 3, 3, 3})}, padded)});
  const std::string of = g.add("Relu", {g.add("Conv", {weights("b", {16, 16, 5, 5}), weights("c", {16, 16, 3, 3})}, padded)});
  const std::string made = g.add("Relu", {g.add("Conv", {of, weights("d", {16, 16, 3, 3})})});
  const std::string c = g.add("Relu", {g.add("Conv", {a, made}, padded)});
  g.add_output(g.add("Flatten", {g.add("GlobalAveragePool", {c})}, {}, "y"), DType::f32, {-1, 16});
  const Tensor x = draw({16, 3, 8, 8});
  Tensor labels(DType::i64, {16});
  for (auto& label : labels.mutable_data<std::int64_t>()) label = up_to(16) - 1;
  const Step blocks = step_of(g, x, labels, false, 1);
  same_without_blocks(blocks, g, x, labels);
}

TEST_F(InBlocks, StatisticsFarFromZeroLoseNoDigits) {
  Tensor x = draw({3, 2, 9, 7, 16});
  for (float& v : x.mutable_data<float>()) v += 1000;
  compare(node("BlockStatistics", 1), {x}, 1e-9);
}

TEST_F(InBlocks, ConvolutionsAreThoseOfTheReference) {
  for (int round = 0; round < 10; ++round) {
    const DType type = round % 2 == 0 ? DType::bf16 : DType::f32;
    const bool large = round < 4;  // in parts: of the images, or of the maps
    const std::int64_t batch = large ? 8 : up_to(3);
    const std::int64_t maps = 16 * (large ? 4 : up_to(3));
    const std::int64_t channels = 16 * (large ? 4 : up_to(2));
    const std::int64_t kernel = round % 3 == 0 ? 3 : up_to(3);
    const std::int64_t stride = up_to(3);
    const std::int64_t dilation = up_to(2);
    const std::int64_t high = round < 2 ? 20 : (large ? 6 : 2 + up_to(5));
    const std::int64_t wide = round < 2 ? 18 : (large ? 7 : 2 + up_to(5));
    const std::int64_t pad = kernel / 2 * dilation;
    Attributes attributes{{"pads", Ints{pad, pad, pad, pad}}, {"strides", Ints{stride, stride}}, {"dilations", Ints{dilation, dilation}}};
    if (type == DType::bf16) attributes["half"] = std::int64_t{1};
    const auto out = [&](std::int64_t in) { return (in + 2 * pad - (kernel - 1) * dilation - 1) / stride + 1; };
    const Tensor x = draw({batch, channels / 16, high, wide, 16}, type);
    const Tensor plain = draw({batch, 3, high, wide});
    const Tensor w = draw({maps, channels, kernel, kernel});
    const Tensor few = draw({maps, 3, kernel, kernel});
    const Tensor dy = draw({batch, maps / 16, out(high), out(wide), 16}, type);
    compare(node("BlockConv", 1, attributes), {x, w, draw({maps})}, 1e-3);
    compare(node("BlockConv", 1, attributes), {plain, few}, 1e-3);
    compare(node("BlockConvDataGrad", 1, attributes), {dy, w, x}, 1e-3);
    compare(node("BlockConvDataGrad", 1, attributes), {dy, few, plain}, 1e-3);
    compare(node("BlockConvWeightGrad", 1, attributes), {dy, x, w}, 1e-3);
    compare(node("BlockConvWeightGrad", 1, attributes), {dy, plain, few}, 1e-3);
  }
}

// The same convolutions, and sums in f64: all but the last digits are those of training without blocks.
TEST_F(InBlocks, TrainingInF32HasTheSameGradients) {
  const Graph graph = network();
  const Tensor x = draw({8, 3, 12, 12});
  const Tensor labels = classes(8);
  const Step blocks = step_of(graph, x, labels, false, 1);
  const Step threads = step_of(graph, x, labels, false, 3);
  EXPECT_EQ(blocks.gradients, threads.gradients);
  EXPECT_EQ(blocks.loss, threads.loss);
  same_without_blocks(blocks, graph, x, labels);
}

TEST_F(InBlocks, TrainingByFixedStatisticsHasTheSameGradients) {
  Graph graph = network();
  for (auto& [name, value] : graph.initializers) {
    if (name.ends_with("_mean")) value = draw(value.shape(), -0.5, 0.5);
    if (name.ends_with("_variance")) value = draw(value.shape(), 0.5, 1.5);
  }
  const Tensor x = draw({8, 3, 12, 12});
  const Tensor labels = classes(8);
  const Step blocks = step_of(graph, x, labels, false, 1, false);
  const Step halves = step_of(graph, x, labels, true, 1, false);
  const Step plain = same_without_blocks(blocks, graph, x, labels, false);
  EXPECT_NEAR(halves.loss, plain.loss, 0.02 * plain.loss);
  EXPECT_LT(distance(halves.gradients, plain.gradients), 0.1);
  EXPECT_NE(halves.gradients, blocks.gradients);
}

TEST_F(InBlocks, TrainingInHalvesIsNearTrainingInF32) {
  const Graph graph = network();
  const Tensor x = draw({16, 3, 12, 12});
  const Tensor labels = classes(16);
  const Step halves = step_of(graph, x, labels, true, 1);
  const Step threads = step_of(graph, x, labels, true, 3);
  EXPECT_EQ(halves.gradients, threads.gradients);
  EXPECT_EQ(halves.loss, threads.loss);
  const Step exact = step_of(graph, x, labels, false, 1);
  EXPECT_NEAR(halves.loss, exact.loss, 0.02 * exact.loss);
  EXPECT_LT(distance(halves.gradients, exact.gradients), 0.1);
}

TEST_F(InBlocks, LossesInHalvesFollowThoseInF32) {
  const Graph graph = network();
  const Tensor x = draw({16, 3, 12, 12});
  const Tensor labels = classes(16);
  std::vector<std::uint32_t> rows(16);
  std::iota(rows.begin(), rows.end(), 0U);
  const auto losses = [&](bool bf16) {
    auto trainer = Trainer::make(graph, {.objective = Objective{.loss = Loss::cross_entropy}, .batch_statistics = true, .bf16 = bf16});
    EXPECT_TRUE(trainer) << trainer.error().message;
    const auto data = (*trainer)->prepare({x}, labels);
    std::vector<double> all;
    std::vector<float> sum((*trainer)->parameters().size());
    for (int step = 0; step < 20; ++step) {
      all.push_back(*(*trainer)->gradient(*data, rows, sum) / 16);
      for (std::size_t i = 0; i < sum.size(); ++i) (*trainer)->parameters()[i] -= 0.01F * sum[i] / 16;
    }
    return all;
  };
  const std::vector<double> exact = losses(false);
  const std::vector<double> halves = losses(true);
  EXPECT_LT(exact.back(), 0.97 * exact.front());
  for (std::size_t i = 0; i < exact.size(); ++i) EXPECT_NEAR(halves[i], exact[i], 0.03 * exact[i]) << "step " << i;
}

TEST_F(InBlocks, AnyNetworkHasTheSameGradients) {
  for (int round = 0; round < 30; ++round) {
    const Graph graph = any_network();
    const Tensor x = draw({6, 3, 12, 12});
    const Tensor labels = classes(6);
    const Step blocks = step_of(graph, x, labels, false, 1, round % 3 > 0);
    const Step halves = step_of(graph, x, labels, true, 1, round % 3 > 0);
    Step plain;
    {
      const cpu::WithoutAvx512 limit;
      plain = step_of(graph, x, labels, false, 1, round % 3 > 0);
    }
    ASSERT_NEAR(blocks.loss, plain.loss, 1e-4 * plain.loss) << "round " << round;
    ASSERT_LT(distance(blocks.gradients, plain.gradients), 1e-3) << "round " << round;
    ASSERT_NEAR(halves.loss, plain.loss, 0.05 * plain.loss) << "round " << round;
  }
}

// What the pass makes of the graph of a training step.
TEST_F(InBlocks, ValuesAreTurnedAtTheEdgesOnly) {
  Graph graph = network();
  use_blocks(graph, true);
  EXPECT_EQ(std::ranges::count(graph.nodes, "BlockConv", &Node::op), 0) << "nothing learns";
  graph.outputs.clear();
  std::vector<std::string> wrt;
  for (const auto& [name, value] : graph.initializers) {
    if (name.find("_mean") == std::string::npos && name.find("_variance") == std::string::npos) wrt.push_back(name);
  }
  for (Node& node : graph.nodes) {
    if (node.op == "BatchNormalization") node.domain = kFalaj;
  }
  const auto gradients = append_gradients(graph, "y", wrt);
  ASSERT_TRUE(gradients) << gradients.error().message;
  for (const std::string& name : *gradients) graph.outputs.push_back({name, DType::undefined, {}, {}, false});
  ASSERT_TRUE(promote_to_inputs(graph, wrt));  // as parameters are
  const auto taken = [&](std::vector<const Backend*> backends, bool batch_invariant) {
    const auto compiled = compile(graph, {.backends = std::move(backends), .batch_invariant = batch_invariant});
    return compiled && std::ranges::count((*compiled)->graph().nodes, "BlockConv", &Node::op) > 0;
  };
  EXPECT_TRUE(taken({}, false));
  EXPECT_TRUE(taken(backends_after(bf16_training_backend()), false));
  EXPECT_FALSE(taken({}, true)) << "answers do not depend on the batch";
  EXPECT_FALSE(taken({&reference_backend()}, false));
  use_blocks(graph, true);
  remove_dead(graph);
  ASSERT_TRUE(validate(graph)) << validate(graph).error().message;
  const auto count = [&](std::string_view op) { return std::ranges::count(graph.nodes, op, &Node::op); };
  EXPECT_EQ(count("BlockConv"), 9) << "all but the one that has 20 maps";
  EXPECT_EQ(count("Conv"), 1);
  EXPECT_EQ(count("BatchNormalization"), 0);
  EXPECT_EQ(count("BatchNormalizationTrainingGrad"), 0);
  EXPECT_EQ(count("BlockStatistics"), 6) << "of each normalisation, for both passes";
  EXPECT_EQ(count("ChannelSums"), 3);
  EXPECT_EQ(count("BlockPool"), 2);
  EXPECT_EQ(count("PoolGrad"), 0);
  // To the convolution of 20 maps and from the last pool, and what comes back from there; Sigmoid is plain on both sides.
  EXPECT_LE(count("FromBlocks"), 3);
  EXPECT_LE(count("ToBlocks"), 3);
}

}  // namespace
}  // namespace falaj::kernels
