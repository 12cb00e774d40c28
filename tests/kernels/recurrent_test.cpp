// Steps of recurrent layers by vectors, in all sizes: beside the reference, on any number of threads, and alone or in a batch.
#include "kernels/ops/recurrent.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/cpu/isa.hpp"
#include "kernels/plan.hpp"
#include "kernels/train/trainer.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/run_graph.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

class RecurrentLayers : public testing::Seeded {
 protected:
  struct Model {
    Graph graph;                 // its first output is Y, and gradients come last
    std::vector<Tensor> inputs;  // x, then lengths if there are any; the rest are weights
    bool batch_first;
  };

  Tensor draw(const Shape& shape, double most = 1) { return testing::as_f32(testing::random_tensor(random_, shape, -most, most)); }

  // `any_batch`: of open size, without initial states, which are of one.
  Model layer(std::string_view op, std::int64_t batch, bool with_gradients, bool any_batch = false) {
    Model m;
    const std::int64_t gates = op == "RNN" ? 1 : (op == "GRU" ? 3 : 4);
    const std::int64_t hidden = up_to(40);
    const std::int64_t width = up_to(20);
    const std::int64_t steps = up_to(7);
    const std::int64_t directions = random_.chance(0.3) ? 2 : 1;
    const bool reverse = directions == 1 && random_.chance(0.3);
    m.batch_first = random_.chance(0.3);
    Attributes attributes{{"layout", std::int64_t{m.batch_first ? 1 : 0}},
                          {"hidden_size", hidden},
                          {"direction", std::string(directions == 2 ? "bidirectional" : (reverse ? "reverse" : "forward"))}};
    if (op == "GRU") attributes.emplace("linear_before_reset", std::int64_t{1});
    if (op == "RNN" && random_.chance(0.5))
      attributes.emplace("activations", std::vector<std::string>(static_cast<std::size_t>(directions), "Relu"));
    Graph& g = m.graph;
    const Shape x = m.batch_first ? Shape{batch, steps, width} : Shape{steps, batch, width};
    const Shape state = m.batch_first ? Shape{batch, directions, hidden} : Shape{directions, batch, hidden};
    g.add_input("x", DType::f32, x);
    m.inputs.push_back(draw(x));
    std::vector<std::string> names = {"x"};
    std::vector<std::string> wrt = {"x"};
    const auto give = [&](const char* name, const Shape& shape, bool given, double most = 1) {
      if (given) wrt.emplace_back(name);
      names.push_back(given ? g.add_initializer(name, draw(shape, most)) : std::string());
    };
    give("w", {directions, gates * hidden, width}, true);
    give("r", {directions, gates * hidden, hidden}, true, 1 / std::sqrt(static_cast<double>(hidden)));  // larger ones multiply rounding
    give("b", {directions, 2 * gates * hidden}, random_.chance(0.7));
    names.emplace_back();
    if (random_.chance(0.4)) {
      Tensor lengths(DType::i32, {batch});
      for (auto& n : lengths.mutable_data<std::int32_t>())
        n = static_cast<std::int32_t>(random_.below(static_cast<std::uint64_t>(steps) + 1));
      g.add_input("lengths", DType::i32, {batch});
      m.inputs.push_back(lengths);
      names.back() = "lengths";
    }
    give("h0", state, !any_batch && random_.chance(0.5));
    if (op == "LSTM") give("c0", state, !any_batch && random_.chance(0.5));
    while (names.back().empty()) names.pop_back();
    Node node{std::string(op), "", "layer", names, {"y", "y_h"}, std::move(attributes)};
    if (op == "LSTM") node.outputs.emplace_back("y_c");
    const std::vector<std::string> outputs = node.outputs;
    g.add_node(std::move(node));
    for (const auto& name : outputs) g.outputs.push_back({name, DType::undefined, {}, {}, false});
    if (with_gradients) differentiate(g, outputs, wrt);
    return m;
  }

  // Of a sum of all outputs, each element with a weight of its own.
  void differentiate(Graph& g, const std::vector<std::string>& outputs, const std::vector<std::string>& wrt) {
    const auto typed = infer_types(g, 7);
    ASSERT_TRUE(typed) << typed.error().message;
    std::string total;
    for (const auto& name : outputs) {
      const std::string weights = g.add_initializer(g.fresh("weights"), draw(typed->types.at(name).shape));
      const std::string sum = g.add("ReduceSum", {g.add("Mul", {name, weights})}, Attributes{{"keepdims", std::int64_t{0}}});
      total = total.empty() ? sum : g.add("Add", {total, sum});
    }
    const auto gradients = append_gradients(g, total, wrt);
    ASSERT_TRUE(gradients) << gradients.error().message;
    for (const std::string& name : *gradients) g.outputs.push_back({name, DType::undefined, {}, {}, false});
  }

  static std::vector<Tensor> run(const Graph& graph, const std::vector<Tensor>& inputs, std::size_t threads, bool fast = true) {
    return testing::run_graph(graph, inputs, threads, fast,
                              [](const std::string& why) { return why.find("recurrent steps") != std::string::npos; });
  }

  static void expect_near(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) {
      ASSERT_EQ(to_string(a[i].shape()), to_string(b[i].shape())) << i;
      double size = 1e-3;
      for (const float v : b[i].data<float>()) size = std::max(size, std::abs(static_cast<double>(v)));
      for (std::size_t j = 0; j < a[i].elements(); ++j)
        ASSERT_NEAR(a[i].data<float>()[j], b[i].data<float>()[j], 2e-5 * size) << "output " << i << " at " << j;
    }
  }
};

TEST_F(RecurrentLayers, AgreeWithTheReferenceOnAnyNumberOfThreads) {
  for (int round = 0; round < 60; ++round) {
    SCOPED_TRACE(format("round {}", round));
    const Model m = layer(std::array{"RNN", "GRU", "LSTM"}[static_cast<std::size_t>(round % 3)], up_to(60), round % 2 == 0);
    const auto wanted = run(m.graph, m.inputs, 1, false);
    const auto check = [&] {
      const auto one = run(m.graph, m.inputs, 1);
      expect_near(one, wanted);
      const auto three = run(m.graph, m.inputs, 3);
      for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(equal_bits(one[i], three[i])) << i;
    };
    check();
    const cpu::WithoutAvx512 limit;
    check();
    if (HasFatalFailure()) return;
  }
}

TEST_F(RecurrentLayers, ASequenceIsTheSameAloneAndInABatch) {
  for (const char* op : {"RNN", "GRU", "LSTM"}) {
    constexpr std::int64_t kBatch = 40;
    Model m = layer(op, kBatch, false, true);
    m.graph.inputs[0].shape[m.batch_first ? 0 : 1] = -1;
    if (m.inputs.size() > 1) m.graph.inputs[1].shape[0] = -1;
    const auto all = run(m.graph, m.inputs, 1);
    const std::int64_t at = up_to(kBatch) - 1;
    const Shape& x = m.inputs[0].shape();
    const std::int64_t steps = x[m.batch_first ? 1 : 0];
    std::vector<Tensor> one = {Tensor(DType::f32, m.batch_first ? Shape{1, steps, x[2]} : Shape{steps, 1, x[2]})};
    for (std::int64_t t = 0; t < steps; ++t) {
      const std::int64_t row = m.batch_first ? at * steps + t : t * kBatch + at;
      std::copy_n(m.inputs[0].data<float>().data() + row * x[2], x[2], one[0].mutable_data<float>().data() + t * x[2]);
    }
    if (m.inputs.size() > 1) one.push_back(Tensor::of<std::int32_t>({1}, {m.inputs[1].data<std::int32_t>()[static_cast<std::size_t>(at)]}));
    const auto alone = run(m.graph, one, 1);
    const Shape& y = all[0].shape();  // [steps, directions, batch, hidden], or [batch, steps, directions, hidden]
    const std::int64_t wide = y[3];
    const std::int64_t directions = y[m.batch_first ? 2 : 1];
    for (std::int64_t row = 0; row < steps * directions; ++row) {
      const std::int64_t in_all = m.batch_first ? at * steps * directions + row : row * kBatch + at;
      for (std::int64_t i = 0; i < wide; ++i)
        ASSERT_EQ(alone[0].data<float>()[static_cast<std::size_t>(row * wide + i)],
                  all[0].data<float>()[static_cast<std::size_t>(in_all * wide + i)])
            << op << " step " << row << " of " << to_string(y);
    }
  }
}

// PyTorch keeps a layer's matrices [gates * hidden, ...] in another order of gates, and its training export cuts and joins them to ONNX's.
TEST_F(RecurrentLayers, WeightsAreTrainedThroughWhatAnExporterWrote) {
  constexpr std::int64_t kHidden = 6;
  constexpr std::int64_t kWidth = 3;
  Graph g;
  g.opsets[""] = 17;
  g.add_input("x", DType::f32, {-1, 5, kWidth});
  const auto numbers = [&](std::initializer_list<std::int64_t> values) {
    return g.add_initializer(g.fresh("n"), Tensor::vector<std::int64_t>(values));
  };
  const auto reordered = [&](const char* name, const Shape& shape) {
    g.add_initializer(name, draw(shape));
    const auto gates = [&](std::int64_t first, std::int64_t last) {
      return g.add("Slice", {name, numbers({first * kHidden}), numbers({last * kHidden}), numbers({0})});
    };
    const std::string joined = g.add("Concat", {gates(0, 1), gates(3, 4), gates(1, 3)}, Attributes{{"axis", std::int64_t{0}}});
    return shape.rank() == 1 ? joined : g.add("Unsqueeze", {joined, numbers({0})});
  };
  const std::string w = reordered("w", {4 * kHidden, kWidth});
  const std::string r = reordered("r", {4 * kHidden, kHidden});
  const std::string biases =
      g.add("Concat", {reordered("b_in", {4 * kHidden}), reordered("b_state", {4 * kHidden})}, Attributes{{"axis", std::int64_t{0}}});
  const std::string b = g.add("Unsqueeze", {biases, numbers({0})});
  const std::string turned = g.add("Transpose", {"x"}, Attributes{{"perm", std::vector<std::int64_t>{1, 0, 2}}});
  g.add_node({"LSTM", "", "memory", {turned, w, r, b}, {"y", "last"}, {{"hidden_size", kHidden}}});
  g.add_initializer("head", draw({2, kHidden}));
  g.add_output(g.add("Gemm", {g.add("Squeeze", {"last", numbers({0})}), "head"}, Attributes{{"transB", std::int64_t{1}}}), DType::f32,
               {-1, 2});

  auto trainer = Trainer::make(g, {.objective = Objective{.loss = Loss::cross_entropy}});
  ASSERT_TRUE(trainer) << trainer.error().message;
  std::set<std::string> names;
  for (const auto& parameter : (*trainer)->layout()) names.insert(parameter.name);
  EXPECT_EQ(names, (std::set<std::string>{"w", "r", "b_in", "b_state", "head"}));
  const Tensor labels = Tensor::of<std::int64_t>({4}, {0, 1, 1, 0});
  const auto data = (*trainer)->prepare({draw({4, 5, kWidth})}, labels);
  ASSERT_TRUE(data) << data.error().message;
  std::vector<float> gradient((*trainer)->parameters().size());
  ASSERT_TRUE((*trainer)->gradient(*data, std::vector<std::uint32_t>{0, 1, 2, 3}, gradient));
  for (const auto& parameter : (*trainer)->layout()) {
    const auto own = std::span(gradient).subspan(parameter.offset, parameter.count);
    EXPECT_GT(std::ranges::count_if(own, [](float v) { return v != 0; }), static_cast<std::ptrdiff_t>(parameter.count) / 2)
        << parameter.name;
  }
}

TEST_F(RecurrentLayers, ABadLengthIsReported) {
  Graph g;
  g.add_input("x", DType::f32, {3, 2, 4});
  g.add_input("lengths", DType::i32, {2});
  g.add_initializer("w", draw({1, 20, 4}));
  g.add_initializer("r", draw({1, 20, 5}));
  g.add_node({"LSTM", "", "memory", {"x", "w", "r", "", "lengths"}, {"y"}, {}});
  g.add_output("y", DType::f32, {3, 1, 2, 5});
  const auto compiled = compile(g);
  ASSERT_TRUE(compiled) << compiled.error().message;
  Executor executor(*compiled);
  std::vector<Tensor> got;
  const auto status = executor.run(std::vector<Tensor>{draw({3, 2, 4}), Tensor::of<std::int32_t>({2}, {3, 4})}, got);
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("length 4 of sequence 1 is outside [0, 3]"), std::string::npos) << status.error().message;
  EXPECT_NE(status.error().message.find("memory"), std::string::npos) << status.error().message;
}

}  // namespace
}  // namespace falaj::kernels
