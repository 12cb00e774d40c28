// Element-wise kernels beside the reference's: odd sizes, operands broadcast in every way, NaN and infinities, and the same bits on any
// number of threads.
#include <cmath>
#include <limits>

#include "kernels/cpu/isa.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/run_graph.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

class Elementwise : public testing::Seeded {
 protected:
  // Numbers of all sizes; some are none, or at an edge.
  Tensor draw(const Shape& shape) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr std::array kEdges = {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity, 0.0F, -0.0F, 1e-30F, -3.0F, 3.0F, 3e38F};
    Tensor t(DType::f32, shape);
    for (float& v : t.mutable_data<float>()) {
      v = static_cast<float>(random_.normal() * (random_.chance(0.2) ? 30 : 2));
      if (random_.chance(0.1)) v = kEdges[random_.below(kEdges.size())];
    }
    return t;
  }
  Tensor numbers(const Shape& shape) { return testing::as_f32(testing::random_tensor(random_, shape, -2, 5)); }
  Tensor conditions(const Shape& shape) {
    Tensor t(DType::boolean, shape);
    for (bool& v : t.mutable_data<bool>()) v = random_.chance(0.5);
    return t;
  }
  Shape shape(std::int64_t most = 30) {
    Shape s;
    for (std::int64_t d = up_to(4); d > 0; --d) s.push_back(random_.chance(0.3) ? up_to(3) : up_to(most));
    if (random_.chance(0.2)) s[0] = up_to(300);
    return s;
  }
  // What broadcasts to `whole`.
  Shape part_of(const Shape& whole) {
    Shape s;
    for (const std::int64_t d : whole) s.push_back(random_.chance(0.4) ? 1 : d);
    while (s.rank() > 0 && s[0] == 1 && random_.chance(0.5)) s = Shape(s.dims().subspan(1));
    return s;
  }

  // Inputs from `known` on are constants of the graph.
  static std::vector<Tensor> run(const Node& node, const std::vector<Tensor>& inputs, std::size_t known, std::int64_t opset,
                                 std::size_t threads, bool fast) {
    Graph g;
    g.opsets[""] = opset;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].empty()) continue;
      if (i >= known) {
        g.add_initializer(node.inputs[i], inputs[i]);
      } else {
        g.add_input(node.inputs[i], inputs[i].dtype(), inputs[i].shape());
      }
    }
    g.add_node(node);
    g.outputs.push_back({"y", DType::undefined, {}, {}, false});
    return testing::run_graph(g, std::span(inputs).first(std::min(known, inputs.size())), threads, fast,
                              [](const std::string& why) { return why.find(" loop") != std::string::npos; });
  }

  void check(std::string_view op, const std::vector<Tensor>& inputs, Attributes attributes = {}, std::size_t known = 64,
             std::int64_t opset = kOpset) {
    Node node{std::string(op), "", "", {}, {"y"}, std::move(attributes)};
    for (std::size_t i = 0; i < inputs.size(); ++i) node.inputs.push_back(inputs[i].empty() ? "" : format("x{}", i));
    std::string what(op);
    for (const Tensor& t : inputs) what += t.empty() ? " -" : " " + to_string(t.shape());
    SCOPED_TRACE(what);
    const auto wanted = run(node, inputs, known, opset, 1, false);
    const auto compare = [&] {
      const auto one = run(node, inputs, known, opset, 1, true);
      const auto three = run(node, inputs, known, opset, 3, true);
      ASSERT_EQ(one.size(), 1U);
      ASSERT_EQ(wanted.size(), 1U);
      EXPECT_TRUE(equal_bits(one[0], three[0]));
      for (std::size_t i = 0; i < one[0].elements(); ++i) {
        const auto a = static_cast<double>(one[0].data<float>()[i]);
        const auto b = static_cast<double>(wanted[0].data<float>()[i]);
        if ((std::isnan(a) && std::isnan(b)) || a == b) continue;
        ASSERT_LE(std::abs(a - b), 1e-7 + 2e-6 * std::abs(b)) << a << " and " << b << " at " << i;
      }
    };
    compare();
    const cpu::WithoutAvx512 limit;
    compare();
  }
};

TEST_F(Elementwise, FunctionsOfOneElementAgreeWithTheReference) {
  for (const char* op :
       {"Relu",     "LeakyRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "Swish",      "HardSwish", "Mish", "Tanh", "Softplus",
        "Softsign", "Exp",       "Log", "Sqrt", "Neg",     "Abs",         "Reciprocal", "Floor",     "Ceil", "Round"}) {
    check(op, {draw(shape())});
    check(op, {draw({up_to(100'000)})});
  }
  for (const char* op : {"LeakyRelu", "Elu", "HardSigmoid", "Swish", "Selu"}) check(op, {draw(shape())}, {{"alpha", 0.7F}});
  check("HardSigmoid", {draw(shape())}, {{"beta", 0.1F}});
  for (const char* form : {"none", "tanh"}) check("Gelu", {numbers(shape())}, {{"approximate", std::string(form)}});
}

TEST_F(Elementwise, BoundsMayBeAbsentOrAttributes) {
  const Tensor low = Tensor::scalar<float>(-0.5F);
  const Tensor high = Tensor::scalar<float>(6);
  const Tensor none;
  for (const auto& [least, most] : {std::pair{low, high}, {low, none}, {none, high}, {none, none}, {high, low}}) {
    check("Clip", {draw(shape()), least, most}, {}, 1);
    check("Clip", {draw({up_to(100'000)}), least, most}, {}, 1);
  }
  check("Clip", {draw(shape()), low, high});  // known in the run only
  check("Clip", {draw(shape())}, {{"min", 0.0F}, {"max", 6.0F}}, 1, 6);
  check("Clip", {draw(shape())}, {{"max", 6.0F}}, 1, 6);
}

TEST_F(Elementwise, PowersOfOneKnownExponent) {
  for (const double exponent : {2.0, 3.0, 0.5, -1.0}) check("Pow", {draw(shape()), Tensor::scalar(static_cast<float>(exponent))}, {}, 1);
  check("Pow", {draw(shape()), Tensor::vector<std::int64_t>({2})}, {}, 1);
}

TEST_F(Elementwise, OperandsAreBroadcastInEveryWay) {
  for (int round = 0; round < 60; ++round) {
    for (const char* op : {"Add", "Sub", "Mul", "Div", "Min", "Max"}) {
      const Shape whole = shape();
      const bool first = random_.chance(0.5);
      const Tensor a = draw(first ? whole : part_of(whole));
      const Tensor b = draw(first ? part_of(whole) : whole);
      check(op, {a, b});
    }
    const Shape whole = shape();
    check("PRelu", {draw(whole), draw(part_of(whole))});
    check("Max", {draw(part_of(whole)), draw(whole), draw(part_of(whole))});
    check("Where", {conditions(part_of(whole)), draw(whole), draw(part_of(whole))});
    check("Where", {conditions(whole), draw(part_of(whole)), draw(part_of(whole))});
  }
}

// Runs that are shorter than a vector, of many rows.
TEST_F(Elementwise, ShortRunsAreBroadcastToo) {
  for (const char* op : {"Add", "Sub", "Mul", "Div", "Max"}) {
    for (std::int64_t n = 1; n < 10; ++n) {
      const std::int64_t m = up_to(9000);
      check(op, {draw({2, m, n}), draw({n})});
      check(op, {draw({2, m, n}), draw({2, m, 1})});
      check(op, {draw({m, 1}), draw({2, 1, n})});
      check(op, {draw({2, 1, n}), draw({2, m, n})});
    }
    check(op, {draw({3, 7, 5, 1}), draw({3, 7, 1, 2})});
    check(op, {draw({}), draw({5, 40, 2})});
  }
}

TEST_F(Elementwise, ProductsWithOwnSigmoidAreOneNode) {
  for (const bool swapped : {false, true}) {
    for (const bool shared : {false, true}) {
      Graph g;
      g.opsets[""] = 17;
      g.add_input("x", DType::f32, {-1, 21});
      const std::string s = g.add("Sigmoid", {"x"});
      const std::string y = swapped ? g.add("Mul", {s, "x"}) : g.add("Mul", {"x", s});
      g.add_output(y, DType::f32, {-1, 21});
      if (shared) g.add_output(s, DType::f32, {-1, 21});
      const auto slow = compile(g, {.backends = {&reference_backend()}});
      const auto fast = compile(g);
      ASSERT_TRUE(slow && fast);
      EXPECT_EQ((*fast)->graph().nodes.size(), shared ? 2U : 1U);
      const std::vector<Tensor> inputs = {draw({5, 21})};
      std::vector<Tensor> wanted;
      std::vector<Tensor> got;
      ASSERT_TRUE(Executor(*slow).run(inputs, wanted));
      ASSERT_TRUE(Executor(*fast).run(inputs, got));
      for (std::size_t i = 0; i < got[0].elements(); ++i) {
        const float a = got[0].data<float>()[i];
        const float b = wanted[0].data<float>()[i];
        if ((std::isnan(a) && std::isnan(b)) || a == b) continue;
        ASSERT_NEAR(a, b, 2e-6F * std::abs(b) + 1e-7F) << inputs[0].data<float>()[i];
      }
    }
  }
}

}  // namespace
}  // namespace falaj::kernels
