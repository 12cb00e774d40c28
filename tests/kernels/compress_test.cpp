// Post-training quantisation: thresholds, what is quantised with what, graphs that run on integers throughout, and the budget.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/compress/quantize.hpp"
#include "kernels/onnx/onnx.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using testing::as_f32;
using testing::random_tensor;
using Ints = std::vector<std::int64_t>;

class Compress : public testing::Seeded {
 protected:
  Tensor f32(const Shape& shape, double low = -1, double high = 1) { return as_f32(random_tensor(random_, shape, low, high)); }
  std::string weights(Graph& g, const Shape& shape, double size = 1) { return g.add_initializer(g.fresh("w"), f32(shape, -size, size)); }
  static Tensor identity(std::int64_t n, std::int64_t m) {
    Tensor t(DType::f32, {n, m});
    for (std::int64_t i = 0; i < std::min(n, m); ++i) t.mutable_data<float>()[static_cast<std::size_t>(i * m + i)] = 1;
    return t;
  }

  Graph mlp(std::int64_t layers) {
    Graph g;
    g.add_input("x", DType::f32, {-1, 16});
    std::string h = "x";
    for (std::int64_t i = 0; i < layers; ++i) {
      h = g.add("Add", {g.add("MatMul", {h, weights(g, {16, 16}, 0.5)}), weights(g, {16})});
      g.nodes[g.nodes.size() - 2].name = "layer" + std::to_string(i);
      if (i + 1 < layers) h = g.add("Relu", {h});
    }
    g.add("Identity", {h}, {}, "y");
    g.add_output("y", DType::f32, {-1, 16});
    return g;
  }
  std::string conv(Graph& g, const std::string& x, const Shape& w, std::int64_t stride, bool norm) {
    const std::string y =
        g.add("Conv", {x, weights(g, w, 0.3)}, {{"strides", Ints{stride, stride}}, {"pads", Ints{w[2] / 2, w[3] / 2, w[2] / 2, w[3] / 2}}});
    if (!norm) return y;
    const std::string variance = g.add_initializer(g.fresh("variance"), f32({w[0]}, 0.5, 2));
    return g.add("BatchNormalization", {y, weights(g, {w[0]}), weights(g, {w[0]}), weights(g, {w[0]}), variance});
  }
  Graph residual_network() {
    Graph g;
    g.add_input("x", DType::f32, {-1, 3, 12, 12});
    std::string h = g.add("Relu", {conv(g, "x", {8, 3, 3, 3}, 1, true)});
    h = g.add("MaxPool", {h}, {{"kernel_shape", Ints{2, 2}}, {"strides", Ints{2, 2}}});
    std::string branch = conv(g, g.add("Relu", {conv(g, h, {8, 8, 3, 3}, 1, true)}), {8, 8, 3, 3}, 1, true);
    h = g.add("Relu", {g.add("Add", {branch, h})});
    branch = conv(g, g.add("Relu", {conv(g, h, {12, 8, 3, 3}, 2, true)}), {12, 12, 3, 3}, 1, true);
    h = g.add("Relu", {g.add("Add", {branch, conv(g, h, {12, 8, 1, 1}, 2, true)})});
    h = g.add("Flatten", {g.add("GlobalAveragePool", {h})});
    g.add("Gemm", {h, weights(g, {5, 12}), weights(g, {5})}, {{"transB", std::int64_t{1}}}, "y");
    g.add_output("y", DType::f32, {-1, 5});
    return g;
  }
  static std::string why(const Graph& g) {
    auto compiled = compile(g);
    EXPECT_TRUE(compiled.has_value()) << compiled.error().message;
    return compiled ? (*compiled)->why(2).value_or("") : "";
  }
};

TEST_F(Compress, EntropyCutsALongTailAndKeepsAFlatRange) {
  std::vector<std::uint64_t> flat(kHistogramBins, 100);
  EXPECT_NEAR(entropy_threshold(flat, 8.0, 256), 8.0, 0.1);
  std::vector<std::uint64_t> tail(kHistogramBins, 0);
  for (std::size_t i = 0; i < 400; ++i) tail[i] = 100000 - 200 * i;
  tail.back() = 1;
  const double threshold = entropy_threshold(tail, 8.0, 128);
  EXPECT_LT(threshold, 4.0);
  EXPECT_GT(threshold, 8.0 * 300 / kHistogramBins);
}

TEST_F(Compress, RangesAreOfAllRowsAndBadValuesAreNamed) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 4});
  g.add("Mul", {"x", g.add_initializer("two", Tensor::scalar<float>(2))}, {}, "y");
  g.add_output("y", DType::f32, {-1, 4});
  Tensor x = f32({1000, 4});
  x.mutable_data<float>()[3998] = 50;  // one of 4000
  auto rows = Rows::make(g, std::span(&x, 1), 64);
  ASSERT_TRUE(rows.has_value());
  const std::string names[] = {"y"};
  const auto minmax = calibrate(g, names, *rows, Calibration::minmax);
  ASSERT_TRUE(minmax.has_value()) << minmax.error().message;
  EXPECT_DOUBLE_EQ(minmax->at("y").high, 100);
  EXPECT_NEAR(minmax->at("y").low, -2, 0.05);
  for (const auto c : {Calibration::percentile, Calibration::entropy}) {
    const auto cut = calibrate(g, names, *rows, c, 99.9);
    ASSERT_TRUE(cut.has_value()) << cut.error().message;
    EXPECT_LT(cut->at("y").high, c == Calibration::percentile ? 3 : 20) << to_string(c);
    EXPECT_NEAR(cut->at("y").low, -2, 0.15) << to_string(c);
  }
  x.mutable_data<float>()[700] = std::nanf("");
  const auto bad = calibrate(g, names, *rows, Calibration::minmax);
  ASSERT_FALSE(bad.has_value());
  EXPECT_NE(bad.error().message.find("'y', rows from 128"), std::string::npos) << bad.error().message;
}

TEST_F(Compress, AResidualNetworkRunsOnIntegersThroughout) {
  const Graph g = residual_network();
  const Tensor x = f32({64, 3, 12, 12});
  const auto made = quantize_all(g, std::span(&x, 1));
  ASSERT_TRUE(made.has_value()) << made.error().message;
  const std::string text = why(*made);
  for (const char* left : {"(Conv)", "(MaxPool)", "(Add)", "(Relu)", "(GlobalAveragePool)", "(Gemm)", "(BatchNormalization)", "(Transpose)",
                           "(QAdd)", "reference", "no integer"})
    EXPECT_EQ(text.find(left), std::string::npos) << left << "\n" << text;
  auto rows = Rows::make(g, std::span(&x, 1), 64);
  const auto before = values_of(g, "y", *rows);
  const auto after = values_of(*made, "y", *rows);
  ASSERT_TRUE(before.has_value() && after.has_value());
  double difference = 0;
  double size = 0;
  for (std::size_t i = 0; i < before->elements(); ++i) {
    difference += std::pow(static_cast<double>(before->data<float>()[i] - after->data<float>()[i]), 2);
    size += std::pow(static_cast<double>(before->data<float>()[i]), 2);
  }
  EXPECT_LT(std::sqrt(difference / size), 0.05);
  // It leaves as ONNX, and comes back as the same computation.
  const auto bytes = export_onnx(*made);
  ASSERT_TRUE(bytes.has_value()) << bytes.error().message;
  const auto again = import_onnx(*bytes, "again");
  ASSERT_TRUE(again.has_value()) << again.error().message;
  const auto read = values_of(*again, "y", *rows);
  ASSERT_TRUE(read.has_value()) << read.error().message;
  EXPECT_TRUE(equal_bits(*read, *after));
}

TEST_F(Compress, TheWorstLayerGoesBackFirstAndTheBudgetHolds) {
  Graph g = mlp(4);
  // One large value that layer 1 does not even look at leaves the others of its input few quanta.
  Tensor bias = g.initializers.find(g.nodes[1].inputs[1])->second.clone();
  bias.mutable_data<float>()[0] = 300;
  g.initializers.insert_or_assign(g.nodes[1].inputs[1], bias);
  Tensor blind = g.initializers.find(g.nodes[3].inputs[1])->second.clone();
  std::ranges::fill(blind.mutable_data<float>().first(16), 0.0F);
  g.initializers.insert_or_assign(g.nodes[3].inputs[1], blind);
  const Tensor x = f32({256, 16});
  const auto all = quantize(g, std::span(&x, 1), {}, {.budget = 1});
  ASSERT_TRUE(all.has_value()) << all.error().message;
  ASSERT_EQ(all->report.layers.size(), 4U);
  const auto worst = std::ranges::max_element(all->report.layers, {}, &LayerReport::error);
  EXPECT_EQ(worst->layer.name, "layer1");
  for (const auto& layer : all->report.layers) EXPECT_TRUE(layer.quantised && layer.why.empty()) << layer.why;
  EXPECT_EQ(all->report.measure, "disagreement");
  EXPECT_LT(all->report.int8_bytes, all->report.f32_bytes / 2);

  const double budget = all->report.loss / 2;
  const auto less = quantize(g, std::span(&x, 1), {}, {.budget = budget});
  ASSERT_TRUE(less.has_value()) << less.error().message;
  ASSERT_GT(all->report.loss, 0);
  EXPECT_LE(less->report.loss, budget);
  EXPECT_FALSE(less->report.layers[1].quantised);
  EXPECT_NE(less->report.layers[1].why.find("taken back"), std::string::npos);
  const auto none = quantize(g, std::span(&x, 1), {}, {.budget = 1, .keep = {"layer0", "layer1", "layer2", "layer3"}});
  ASSERT_TRUE(none.has_value());
  EXPECT_EQ(none->report.loss, 0);
  EXPECT_EQ(why(none->graph).find("QMatMul"), std::string::npos);
  EXPECT_FALSE(quantize(g, std::span(&x, 1), {}, {.keep = {"nobody"}}).has_value());
}

TEST_F(Compress, LabelsJudgeByAccuracyAndByLoss) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 8});
  g.add("MatMul", {"x", g.add_initializer("w", identity(8, 8))}, {}, "y");
  g.add_output("y", DType::f32, {-1, 8});
  const Tensor x = f32({200, 8});
  Tensor labels(DType::i64, {200});
  for (std::size_t r = 0; r < 200; ++r) {
    const auto row = x.data<float>().subspan(r * 8, 8);
    labels.mutable_data<std::int64_t>()[r] = std::ranges::max_element(row) - row.begin();
  }
  const auto accuracy = quantize(g, std::span(&x, 1), {.objective = Objective{}, .labels = labels}, {.budget = 0.05});
  ASSERT_TRUE(accuracy.has_value()) << accuracy.error().message;
  EXPECT_EQ(accuracy->report.measure, "accuracy");
  EXPECT_DOUBLE_EQ(accuracy->report.f32, 1.0);
  EXPECT_GE(accuracy->report.int8, 0.95);
  EXPECT_TRUE(accuracy->report.layers[0].quantised);
  Tensor target = x.clone();
  for (float& v : target.mutable_data<float>()) v += 1;
  const auto loss =
      quantize(g, std::span(&x, 1), {.objective = Objective{.loss = Loss::mse, .label_row = {8}}, .labels = target}, {.budget = 0.05});
  ASSERT_TRUE(loss.has_value()) << loss.error().message;
  EXPECT_EQ(loss->report.measure, "loss");
  EXPECT_NEAR(loss->report.f32, 1.0, 1e-5);
  EXPECT_LT(std::abs(loss->report.loss), 0.05);
}

TEST_F(Compress, WhatCannotBeQuantisedIsRefused) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 4});
  g.add("Relu", {"x"}, {}, "y");
  g.add_output("y", DType::f32, {-1, 4});
  const Tensor x = f32({8, 4});
  const auto nothing = quantize(g, std::span(&x, 1), {}, {});
  ASSERT_FALSE(nothing.has_value());
  EXPECT_NE(nothing.error().message.find("no product"), std::string::npos);
  Graph old = mlp(1);
  old.opsets[""] = 11;
  const auto refused = quantize(old, std::span(&x, 1), {}, {});
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message.find("opset 11"), std::string::npos) << refused.error().message;
}

}  // namespace
}  // namespace falaj::kernels
