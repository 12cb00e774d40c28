// Attention as exporters write it becomes one node, with the values of the plain graph; and where somebody else reads what it would not
// compute any more, it does not.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using testing::as_f32;
using testing::random_tensor;
using Ints = std::vector<std::int64_t>;

class AttentionGraphs : public ::testing::Test {
 protected:
  AttentionGraphs() : seed_(testing::test_seed()), random_(seed_) { RecordProperty("seed", std::to_string(seed_)); }

  // Queries, keys and values of three heads by known weights, from 12 columns.
  Graph graph(bool quotient, bool two_steps) {
    Graph g;
    g.add_input("x", DType::f32, {-1, 37, 12});
    std::string parts[3];
    for (std::string& part : parts) {
      const std::string w = g.add_initializer(g.fresh("w"), as_f32(random_tensor(random_, {12, 15}, -1, 1)));
      part =
          g.add("Reshape", {g.add("MatMul", {"x", w}), g.add_initializer(g.fresh("heads"), Tensor::of<std::int64_t>({4}, {0, 0, 3, 5}))});
    }
    const Attributes heads_first = {{"perm", Ints{0, 2, 1, 3}}};
    const std::string q = g.add("Transpose", {parts[0]}, heads_first);
    const std::string k = two_steps ? g.add("Transpose", {g.add("Transpose", {parts[1]}, heads_first)}, {{"perm", Ints{0, 1, 3, 2}}})
                                    : g.add("Transpose", {parts[1]}, {{"perm", Ints{0, 2, 3, 1}}});
    const std::string v = g.add("Transpose", {parts[2]}, heads_first);
    std::string scores = g.add("MatMul", {q, k});
    scores = quotient ? g.add("Div", {scores, g.add_initializer("root", Tensor::scalar<float>(2.5F))})
                      : g.add("Mul", {scores, g.add_initializer("factor", Tensor::scalar<float>(0.4F))});
    const std::string weights = g.add("Softmax", {scores}, {{"axis", std::int64_t{-1}}}, "weights");
    g.add("Transpose", {g.add("MatMul", {weights, v})}, heads_first, "y");
    g.outputs.push_back({"y", DType::f32, {}, {}, false});
    return g;
  }
  // Which kernels ran.
  std::string agree(const Graph& g, const Tensor& x) {
    auto fast = compile(g);
    auto plain = compile(g, {.backends = {&reference_backend()}, .fuse = false});
    EXPECT_TRUE(fast.has_value() && plain.has_value());
    if (!fast || !plain) return {};
    std::vector<Tensor> a;
    std::vector<Tensor> b;
    for (const auto& [compiled, outputs] : {std::pair(*fast, &a), {*plain, &b}}) {
      const auto status = Executor(compiled).run(std::span(&x, 1), *outputs);
      EXPECT_TRUE(status.has_value()) << status.error().message;
      if (!status) return {};
    }
    const std::string why = (*fast)->why(2).value_or("");
    for (std::size_t k = 0; k < b.size(); ++k) {
      EXPECT_EQ(to_string(a[k].shape()), to_string(b[k].shape()));
      for (std::size_t i = 0; i < b[k].elements(); ++i) {
        const auto wanted = static_cast<double>(b[k].data<float>()[i]);
        EXPECT_NEAR(static_cast<double>(a[k].data<float>()[i]), wanted, 1e-5 * (1 + std::abs(wanted))) << "seed " << seed_ << "\n" << why;
      }
    }
    return why;
  }

  std::uint64_t seed_;
  Random random_;
};

TEST_F(AttentionGraphs, OneNodeGivesThePlainGraphsValues) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP();
  for (const bool quotient : {false, true}) {
    for (const bool two_steps : {false, true}) {
      const Graph g = graph(quotient, two_steps);
      const std::string why = agree(g, as_f32(random_tensor(random_, {2, 37, 12}, -1, 1)));
      EXPECT_NE(why.find("(Attention)"), std::string::npos) << why;
      for (const char* gone : {"(Softmax)", "(Transpose)", "(Div)", "(Mul)"})
        EXPECT_EQ(why.find(gone), std::string::npos) << gone << "\n" << why;
    }
  }
}

TEST_F(AttentionGraphs, WeightsThatAreWantedStay) {
  Graph g = graph(false, false);
  g.outputs.push_back({"weights", DType::f32, {}, {}, false});
  const std::string why = agree(g, as_f32(random_tensor(random_, {2, 37, 12}, -1, 1)));
  EXPECT_NE(why.find("(Softmax)"), std::string::npos) << why;
  EXPECT_EQ(why.find("(Attention)"), std::string::npos) << why;
}

}  // namespace
}  // namespace falaj::kernels
