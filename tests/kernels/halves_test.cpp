// Training in bfloat16 through HalfMatMul and HalfWeightGrad: the kernels beside the reference ones in all sizes, odd ones too, and
// training beside training without them; any number of threads gives the same bits.
#include "kernels/ops/halves.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/convert.hpp"
#include "kernels/cpu/amx.hpp"
#include "kernels/cpu/integer.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/plan.hpp"
#include "kernels/train/trainer.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using testing::as_f32;
using testing::random_tensor;

class Halves : public testing::Seeded {
 protected:
  void SetUp() override {
    if (!cpu::has_avx512_bf16()) GTEST_SKIP() << "this CPU has no AVX512_BF16";
  }
  Tensor draw(const Shape& shape) { return as_f32(random_tensor(random_, shape)); }

  // The forms of a matrix, as the reference kernel gives them: of a product with the unit matrix.
  std::vector<Tensor> forms_of(const Tensor& x) {
    const std::int64_t n = x.shape()[1];
    Tensor unit(DType::f32, {n, n});
    for (std::int64_t i = 0; i < n; ++i) unit.mutable_data<float>()[static_cast<std::size_t>(i * n + i)] = 1;
    return *run_reference(Node{"HalfMatMul", std::string(kFalaj), "n", {"a", "b"}, {"y", "rows", "pairs", "sums"}, {}},
                          std::vector<Tensor>{x, unit});
  }

  static std::vector<Tensor> run(const Node& node, const std::vector<Tensor>& inputs, std::size_t threads) {
    Graph graph;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].empty()) graph.add_input(node.inputs[i], inputs[i].dtype(), inputs[i].shape());
    }
    graph.add_node(node);
    for (const auto& name : node.outputs) {
      if (!name.empty()) graph.outputs.push_back({name, DType::undefined, {}, {}, false});
    }
    auto compiled = compile(graph, {.threads = threads});
    EXPECT_TRUE(compiled) << compiled.error().message;
    Executor executor(*compiled, threads);
    std::vector<Tensor> given;
    for (const Tensor& t : inputs) {
      if (!t.empty()) given.push_back(t);
    }
    std::vector<Tensor> got;
    const auto status = executor.run(given, got);
    EXPECT_TRUE(status) << status.error().message;
    return got;
  }

  // Fast on one thread and on three, beside the reference, by AVX512_BF16 and by AMX; sums of bfloat16 products may be rounded to a
  // neighbour.
  void compare(const Node& node, const std::vector<Tensor>& inputs) {
    for (const cpu::IntegerIsa most : {cpu::IntegerIsa::avx512_vnni, cpu::IntegerIsa::amx}) {
      const cpu::IntegerIsaLimit limit(most, true);
      ASSERT_EQ(cpu::amx::use_for_halves() != cpu::amx::Use::none, most == cpu::IntegerIsa::amx);
      compare_now(node, inputs);
    }
  }
  void compare_now(Node node, const std::vector<Tensor>& inputs) {
    for (std::size_t i = 0; i < inputs.size(); ++i) node.inputs.push_back(inputs[i].empty() ? "" : format("in{}", i));
    auto wanted = run_reference(node, inputs);
    ASSERT_TRUE(wanted) << wanted.error().message;
    std::erase_if(*wanted, [](const Tensor& t) { return t.empty(); });
    const auto got = run(node, inputs, 1);
    const auto again = run(node, inputs, 3);
    ASSERT_EQ(got.size(), wanted->size());
    for (std::size_t k = 0; k < got.size(); ++k) {
      EXPECT_TRUE(equal_bits(got[k], again[k])) << node.op << " output " << k << " on three threads";
      const Tensor a = converted(got[k], DType::f64);
      const Tensor b = converted((*wanted)[k], DType::f64);
      const double tolerance = got[k].dtype() == DType::bf16 ? 0.01 : 1e-4;
      for (std::size_t i = 0; i < a.elements(); ++i) {
        const double exact = b.data<double>()[i];
        ASSERT_NEAR(a.data<double>()[i], exact, tolerance * (1 + std::abs(exact)))
            << node.op << " output " << k << " element " << i << " of " << to_string(inputs[0].shape()) << to_string(inputs[1].shape());
      }
    }
  }
  static Node node(std::string op, std::vector<std::string> outputs, Attributes attributes = {}) {
    return Node{std::move(op), std::string(kFalaj), "n", {}, std::move(outputs), std::move(attributes)};
  }
};

TEST_F(Halves, ProductsAreThoseOfTheReference) {
  const std::vector<std::string> all = {"y", "rows", "pairs", "sums"};
  for (int round = 0; round < 24; ++round) {
    const std::int64_t m = round == 0 ? 150 : up_to(40);
    const std::int64_t n = round % 3 == 0 ? 16 * up_to(6) : up_to(90);
    const std::int64_t k = round == 1 ? 1 : up_to(70);
    const Tensor x = draw({m, k});
    const Tensor rows = forms_of(x)[1];
    const Attributes turned{{"transB", std::int64_t{1}}};
    const Attributes relu{{"relu", std::int64_t{1}}};
    compare(node("HalfMatMul", all, relu), {x, draw({k, n}), draw({n})});
    compare(node("HalfMatMul", all, turned), {rows, draw({n, k}), draw({n})});
    compare(node("HalfMatMul", all, turned), {rows, draw({n, k}), Tensor(), forms_of(draw({m, n}))[2]});
    compare(node("HalfMatMul", {"", "", "pairs", "sums"}), {x, draw({k, n}), Tensor(), forms_of(draw({m, n}))[2]});
    compare(node("HalfMatMul", {"y"}), {rows, draw({k, n})});
  }
}

TEST_F(Halves, GradientsOfWeightsAreThoseOfTheReference) {
  for (int round = 0; round < 24; ++round) {
    const std::int64_t k = round == 0 ? 300 : up_to(60);
    const std::int64_t m = round == 1 ? 200 : up_to(50);
    const std::int64_t n = up_to(90);
    const Tensor p = draw({k, m});
    const Tensor q = draw({k, n});
    const Tensor like = draw({m, n});
    compare(node("HalfWeightGrad", {"y"}), {p, q, like});
    compare(node("HalfWeightGrad", {"y"}), {forms_of(p)[2], q, like});
    compare(node("HalfWeightGrad", {"y"}), {p, forms_of(q)[2], like});
    compare(node("HalfWeightGrad", {"y"}), {forms_of(p)[2], forms_of(q)[2], like});
  }
}

// Products that hand on f32 take the same tiles where they are large.
TEST_F(Halves, LargeProductsOfTrainingTakeTheSameTiles) {
  const cpu::IntegerIsaLimit limit(random_.below(2) == 0 ? cpu::IntegerIsa::amx : cpu::IntegerIsa::avx512_vnni, true);
  const std::int64_t m = 130 + up_to(9);
  const std::int64_t n = 140 + up_to(9);
  const std::int64_t k = 150 + up_to(9);
  const Tensor x = draw({m, k});
  const Tensor w = draw({n, k});
  const Tensor bias = draw({n});
  const Tensor p = draw({k, m});
  const Tensor q = draw({k, n});
  const auto check = [&](const std::string& op, const Attributes& attributes, const std::vector<Tensor>& inputs, const Tensor& wanted) {
    std::vector<Tensor> first;
    for (const std::size_t threads : {1, 3}) {
      Graph graph;
      std::vector<std::string> names;
      for (const Tensor& t : inputs) names.push_back(graph.add_input(format("in{}", names.size()), DType::f32, t.shape()).name);
      graph.add_output(graph.add(op == "Gemm" ? kOnnx : kFalaj, op, names, attributes, "y"), DType::f32, {m, n});
      const auto compiled = compile(
          graph,
          {.backends = {&bf16_training_backend(), &cpu_backend(), &reference_backend()}, .batch_invariant = false, .threads = threads});
      ASSERT_TRUE(compiled) << compiled.error().message;
      EXPECT_NE((*compiled)->why()->find("in halves"), std::string::npos) << *(*compiled)->why();
      Executor executor(*compiled, threads);
      std::vector<Tensor> got;
      ASSERT_TRUE(executor.run(inputs, got));
      for (std::size_t i = 0; i < wanted.elements(); ++i)
        ASSERT_NEAR(got[0].data<float>()[i], wanted.data<float>()[i], 1e-3) << op << " element " << i;
      EXPECT_TRUE(threads == 1 || equal_bits(first[0], got[0])) << op << " on three threads";
      first = got;
    }
  };
  const auto reference = [&](Node by, std::vector<Tensor> inputs) {
    for (std::size_t i = 0; i < inputs.size(); ++i) by.inputs.push_back(format("in{}", i));
    return (*run_reference(by, inputs))[0];
  };
  const Attributes turned{{"transB", std::int64_t{1}}};
  Attributes relu = turned;
  relu["relu"] = std::int64_t{1};
  Attributes activated = turned;
  activated["activation"] = std::string("Relu");
  check("MatMul", activated, {x, w, bias}, reference(node("HalfMatMul", {"y"}, relu), {x, w, bias}));
  check("Gemm", turned, {x, w, bias}, reference(node("HalfMatMul", {"y"}, turned), {x, w, bias}));
  check("MatMul", {{"transA", std::int64_t{1}}}, {p, q}, reference(node("HalfWeightGrad", {"y"}), {p, q, draw({m, n})}));
}

// Products with Relu between, some with biases, weights turned as PyTorch writes them.
Graph network(Random& random) {
  Graph g;
  const auto weights = [&](const std::string& name, const Shape& shape, double scale) {
    return g.add_initializer(name, as_f32(random_tensor(random, shape, -scale, scale)));
  };
  g.add_input("x", DType::f32, {-1, 37});
  const Attributes turned{{"transB", std::int64_t{1}}};
  const std::string a = g.add("Relu", {g.add("Gemm", {"x", weights("a", {90, 37}, 0.3), weights("a0", {90}, 0.1)}, turned, "1")}, {}, "2");
  const std::string b = g.add("Relu", {g.add("MatMul", {a, weights("b", {90, 51}, 0.3)}, {}, "3")}, {}, "4");
  const std::string c = g.add("Relu", {g.add("Gemm", {b, weights("c", {51, 64}, 0.3), weights("c0", {64}, 0.1)}, {}, "5")}, {}, "6");
  g.add_output(g.add("Gemm", {c, weights("d", {10, 64}, 0.3), weights("d0", {10}, 0.1)}, turned, "y"), DType::f32, {-1, 10});
  return g;
}

TEST_F(Halves, TrainingGoesThroughThemWithTheSameGradients) {
  const cpu::IntegerIsaLimit tiles(random_.below(2) == 0 ? cpu::IntegerIsa::amx : cpu::IntegerIsa::avx512_vnni, true);
  const Graph graph = network(random_);
  const Tensor x = draw({77, 37});
  Tensor labels(DType::i64, {77});
  for (auto& l : labels.mutable_data<std::int64_t>()) l = static_cast<std::int64_t>(random_.below(10));
  std::vector<std::uint32_t> rows(77);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::uint32_t>(i);
  const auto gradients = [&](std::size_t threads, double& loss) {
    auto trainer = Trainer::make(graph, {.objective = Objective{.loss = Loss::cross_entropy}, .bf16 = true, .threads = threads});
    EXPECT_TRUE(trainer) << trainer.error().message;
    const auto data = (*trainer)->prepare({x}, labels);
    std::vector<float> sum((*trainer)->parameters().size());
    loss = *(*trainer)->gradient(*data, rows, sum);
    return sum;
  };
  double loss = 0;
  const std::vector<float> halves = gradients(1, loss);
  double others = 0;
  EXPECT_EQ(halves, gradients(3, others));
  EXPECT_EQ(loss, others);
  std::vector<float> rounded;
  {
    const cpu::WithoutAvx512 limit;
    rounded = gradients(1, others);
  }
  EXPECT_NEAR(loss, others, 1e-3 * std::abs(others));
  double difference = 0;
  double size = 0;
  for (std::size_t i = 0; i < rounded.size(); ++i) {
    difference += std::pow(static_cast<double>(halves[i]) - static_cast<double>(rounded[i]), 2);
    size += std::pow(static_cast<double>(rounded[i]), 2);
  }
  EXPECT_LT(std::sqrt(difference), 0.01 * std::sqrt(size));
  EXPECT_GT(difference, 0) << "the same products were taken";
}

}  // namespace
}  // namespace falaj::kernels
