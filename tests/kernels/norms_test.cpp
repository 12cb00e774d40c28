// Normalisations, sums and PRelu by vectors, in all sizes: beside the reference, on any number of threads, and a sample alone or in a
// batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/isa.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/run_graph.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using Ints = std::vector<std::int64_t>;

class Norms : public testing::Seeded {
 protected:
  struct Layer {
    Graph graph;
    Tensor x;
  };
  Tensor draw(const Shape& shape, double least, double most) {
    return testing::as_f32(testing::random_tensor(random_, shape, least, most));
  }

  Layer layer(const std::string& op) {
    Layer l;
    Shape shape{up_to(4)};
    const std::int64_t groups = up_to(5);
    shape.push_back(op == "GroupNormalization" ? groups * up_to(4) : up_to(20));
    for (std::size_t i = random_.below(3); i-- > 0;) shape.push_back(up_to(random_.chance(0.2) ? 200 : 12));
    if (shape.rank() == 2 && op == "InstanceNormalization") shape.push_back(up_to(300));
    Node node{op, "", "layer", {"x"}, {"y"}, {}};
    Graph& g = l.graph;
    const auto give = [&](const char* name, const Shape& of, double least = -1) {
      node.inputs.push_back(g.add_initializer(name, draw(of, least, 1)));
    };
    const auto from = [&](std::int64_t axis) {  // the dimensions from an inner one on
      Shape rest;
      for (auto d = static_cast<std::size_t>(axis); d < shape.rank(); ++d) rest.push_back(shape[d]);
      return rest;
    };
    const auto inner = up_to(static_cast<std::int64_t>(shape.rank()) - 1);
    if (op == "BatchNormalization" || op == "InstanceNormalization" || op == "GroupNormalization") {
      give("scale", {shape[1]});
      give("bias", {shape[1]});
      if (op == "BatchNormalization") {
        give("mean", {shape[1]});
        give("variance", {shape[1]}, 0.1);
      }
      if (op == "GroupNormalization") node.attributes.emplace("num_groups", groups);
    } else if (op == "MeanVarianceNormalization") {
      Ints axes;
      for (auto d = inner; d < static_cast<std::int64_t>(shape.rank()); ++d) axes.push_back(d);
      node.attributes.emplace("axes", std::move(axes));
    } else if (op == "LpNormalization") {
      node.attributes.emplace("p", up_to(2));
    } else if (op == "RMSNormalization") {
      give("scale", from(inner));
      node.attributes.emplace("axis", inner);
    } else if (op == "PRelu") {
      Shape slope = from(inner);
      const bool channels = random_.chance(0.5);
      for (std::size_t d = 1; d < slope.rank() && channels; ++d) slope[d] = 1;
      give("slope", slope);
    } else if (op == "ReduceMean" || op == "ReduceSum") {
      Ints axes;
      const auto last = inner + up_to(static_cast<std::int64_t>(shape.rank()) - inner) - 1;
      for (auto d = inner; d <= last; ++d) axes.push_back(d);
      node.inputs.push_back(g.add_initializer("axes", Tensor::of<std::int64_t>({last - inner + 1}, std::span<const std::int64_t>(axes))));
      node.attributes.emplace("keepdims", up_to(2) - 1);
    }
    const bool bounded = op == "RMSNormalization" || node.attributes.contains("num_groups") || op == "InstanceNormalization";
    if (bounded && random_.chance(0.5)) node.attributes.emplace("epsilon", 1e-3F);
    l.x = draw(shape, -1, 1);
    if (op != "LpNormalization" && op != "RMSNormalization" && random_.chance(0.3)) {  // a mean that is far from zero
      for (float& v : l.x.mutable_data<float>()) v += 100;
    }
    g.opsets[""] = 23;
    g.add_input("x", DType::f32, shape);
    g.inputs[0].shape[0] = -1;
    g.add_node(std::move(node));
    g.outputs.push_back({"y", DType::undefined, {}, {}, false});
    return l;
  }

  static Tensor run(const Graph& graph, const Tensor& x, std::size_t threads, bool fast = true) {
    const bool any = graph.nodes[0].op == "PRelu";  // which has none for short rows
    const auto fits = [any](const std::string& why) {
      return any || (why.find("no fast kernel") == std::string::npos && why.find("cpu/") != std::string::npos);
    };
    const auto got = testing::run_graph(graph, std::span(&x, 1), threads, fast, fits, x.shape()[0]);
    return got.empty() ? Tensor() : got[0];
  }

  // Sample `at` alone gives what it gives among the others.
  static void expect_same_alone(const Graph& graph, const Tensor& x, const Tensor& all, std::size_t at) {
    Shape shape = x.shape();
    shape[0] = 1;
    Tensor one = Tensor::uninitialised(DType::f32, shape);
    std::ranges::copy(x.data<float>().subspan(at * one.elements(), one.elements()), one.mutable_data<float>().begin());
    const Tensor alone = run(graph, one, 1);
    EXPECT_EQ(0, std::memcmp(alone.raw(), all.data<float>().data() + at * alone.elements(), alone.elements() * sizeof(float)));
  }
};

constexpr const char* kOps[] = {"InstanceNormalization",
                                "GroupNormalization",
                                "BatchNormalization",
                                "MeanVarianceNormalization",
                                "LpNormalization",
                                "RMSNormalization",
                                "PRelu",
                                "ReduceMean",
                                "ReduceSum"};

TEST_F(Norms, AgreeWithTheReferenceOnAnyNumberOfThreadsAndInAnyBatch) {
  for (int round = 0; round < 270; ++round) {
    const Layer l = layer(kOps[round % std::size(kOps)]);
    SCOPED_TRACE(format("round {}: {} of {}", round, l.graph.nodes[0].op, to_string(l.x.shape())));
    const Tensor wanted = run(l.graph, l.x, 1, false);
    const auto check = [&] {
      const Tensor one = run(l.graph, l.x, 1);
      ASSERT_EQ(to_string(one.shape()), to_string(wanted.shape()));
      for (std::size_t i = 0; i < one.elements(); ++i) {
        const float value = wanted.data<float>()[i];
        ASSERT_NEAR(one.data<float>()[i], value, 2e-5F + 1e-6F * std::abs(value)) << i;
      }
      EXPECT_TRUE(equal_bits(one, run(l.graph, l.x, 3)));
      expect_same_alone(l.graph, l.x, one, random_.below(static_cast<std::uint64_t>(l.x.shape()[0])));
    };
    check();
    const cpu::WithoutAvx512 limit;
    check();
    if (HasFailure()) return;
  }
}

TEST_F(Norms, NaNSpreadsNoFurtherThanItsRun) {
  for (const char* op : kOps) {
    SCOPED_TRACE(op);
    Layer l = layer(op);
    auto values = l.x.mutable_data<float>();
    values[random_.below(values.size())] = std::numeric_limits<float>::quiet_NaN();
    const Tensor wanted = run(l.graph, l.x, 1, false);
    const Tensor got = run(l.graph, l.x, 1);
    for (std::size_t i = 0; i < got.elements(); ++i) ASSERT_EQ(std::isnan(got.data<float>()[i]), std::isnan(wanted.data<float>()[i])) << i;
  }
}

}  // namespace
}  // namespace falaj::kernels
