// Products and convolutions in bfloat16: exact where operands and sums are exact, close where they are not, the same in every batch, and
// only for who asks for them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/convert.hpp"
#include "kernels/cpu/integer.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using cpu::IntegerIsa;
using testing::as_f32;
using testing::random_tensor;
using Ints = std::vector<std::int64_t>;

class Bf16 : public testing::Seeded {
 protected:
  void SetUp() override {
    if (!__builtin_cpu_supports("avx2")) GTEST_SKIP();
  }
  Tensor f32(const Shape& shape, double low = -1, double high = 1) { return as_f32(random_tensor(random_, shape, low, high)); }
  // Small whole numbers are exact in bfloat16, and so are sums of their products in f32.
  Tensor whole(const Shape& shape) {
    Tensor t = f32(shape, -9, 9);
    for (float& v : t.mutable_data<float>()) v = std::nearbyint(v);
    return t;
  }
  static Tensor through_bf16(const Tensor& t) { return converted(converted(t, DType::bf16), DType::f32); }
  static double distance(const Tensor& a, const Tensor& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.elements(); ++i) sum += std::pow(static_cast<double>(a.data<float>()[i] - b.data<float>()[i]), 2);
    return std::sqrt(sum);
  }
  static CompileOptions asked() {
    CompileOptions options;
    options.backends = {&bf16_backend(), &cpu_backend(), &reference_backend()};
    return options;
  }
  static Tensor run(const Graph& g, const Tensor& x, CompileOptions options, std::string* why = nullptr) {
    auto compiled = compile(g, std::move(options));
    EXPECT_TRUE(compiled.has_value()) << compiled.error().message;
    if (!compiled) return {};
    Executor executor(*compiled);
    std::vector<Tensor> outputs;
    const auto status = executor.run(std::span(&x, 1), outputs);
    EXPECT_TRUE(status.has_value()) << status.error().message;
    if (why != nullptr) *why = (*compiled)->why(1).value_or("");
    return outputs.empty() ? Tensor() : outputs[0];
  }
  // On each instruction set: the values of f32, and bf16's kernels in use.
  void exact(const Graph& g, const Tensor& x, const std::string& what) {
    const Tensor plain = run(g, x, {});
    for (const IntegerIsa most : {IntegerIsa::avx2, IntegerIsa::avx512_vnni, IntegerIsa::amx}) {
      const cpu::IntegerIsaLimit limit(most, true);
      std::string why;
      const Tensor fast = run(g, x, asked(), &why);
      EXPECT_TRUE(equal_bits(fast, plain)) << what << "\n" << why;
      EXPECT_NE(why.find("bf16/a"), std::string::npos) << why;
    }
  }
};

TEST_F(Bf16, ProductsOfWholeNumbersAreExact) {
  for (int round = 0; round < 40; ++round) {
    const std::int64_t k = up_to(70);
    const std::int64_t n = up_to(90);
    Graph g;
    g.add_input("x", DType::f32, {-1, k});
    const bool transposed = random_.below(2) == 0;
    std::vector<std::string> inputs = {"x", g.add_initializer("w", whole(transposed ? Shape{n, k} : Shape{k, n}))};
    if (random_.below(2) == 0) inputs.push_back(g.add_initializer("b", whole({n})));
    const std::string h = g.add("Gemm", inputs, {{"transB", std::int64_t{transposed ? 1 : 0}}});
    g.add("Relu", {h}, {}, "y");
    g.outputs.push_back({"y", DType::f32, {}, {}, false});
    exact(g, whole({up_to(15), k}), format("{}x{}", k, n));
  }
}

TEST_F(Bf16, ConvolutionsOfWholeNumbersAreExact) {
  for (int round = 0; round < 40; ++round) {
    const std::int64_t channels = up_to(9);
    const std::int64_t maps = up_to(70);
    const Ints kernel = {up_to(4), up_to(4)};
    Graph g;
    g.add_input("x", DType::f32, {-1, channels, 9, 11});
    Attributes a = {{"strides", Ints{up_to(2), up_to(2)}},
                    {"dilations", Ints{up_to(2), round % 5 == 0 ? std::int64_t{2} : std::int64_t{1}}}};
    a.emplace("pads", Ints{up_to(3) - 1, up_to(3) - 1, up_to(3) - 1, up_to(3) - 1});
    const std::string w = g.add_initializer("w", whole({maps, channels, kernel[0], kernel[1]}));
    const std::string c = g.add("Conv", {"x", w, g.add_initializer("b", whole({maps}))}, a);
    g.add("Relu", {g.add("Add", {c, g.add("Conv", {"x", w}, a)})}, {}, "y");  // an addend
    g.outputs.push_back({"y", DType::f32, {}, {}, false});
    exact(g, whole({up_to(4), channels, 9, 11}), format("{} to {}, {}x{}", channels, maps, kernel[0], kernel[1]));
  }
}

// 3 x 3 kernels at stride 1 go another way, which is exact for small whole numbers, too: sums of four of them and of nine fit eight bits.
TEST_F(Bf16, TransformedConvolutionsOfWholeNumbersAreExact) {
  for (int round = 0; round < 12; ++round) {
    const std::int64_t channels = 16 + 16 * up_to(3);
    const std::int64_t maps = 16 + 16 * up_to(4);
    const std::int64_t height = 11 + up_to(4);
    const std::int64_t width = 11 + up_to(6);
    const std::int64_t pad = up_to(3) - 1;
    Graph g;
    g.add_input("x", DType::f32, {-1, channels, height, width});
    const Attributes a = {{"pads", Ints{1, pad, 1, 1}}};
    std::vector<std::string> inputs = {"x", g.add_initializer("w", whole({maps, channels, 3, 3}))};
    if (round % 3 != 0) inputs.push_back(g.add_initializer("b", whole({maps})));
    const std::string c = g.add("Conv", inputs, a);
    g.add(round % 4 == 0 ? "Neg" : "Relu", {g.add("Add", {c, g.add("Conv", inputs, a)})}, {}, "y");  // an addend
    g.outputs.push_back({"y", DType::f32, {}, {}, false});
    const Tensor x = whole({up_to(3), channels, height, width});
    CompileOptions plain;
    plain.backends = {&reference_backend()};
    const Tensor wanted = run(g, x, plain);
    for (const IntegerIsa most : {IntegerIsa::avx2, IntegerIsa::avx512_vnni, IntegerIsa::amx}) {
      const cpu::IntegerIsaLimit limit(most, true);
      std::string why;
      const Tensor fast = run(g, x, asked(), &why);
      EXPECT_TRUE(equal_bits(fast, wanted)) << why;
      EXPECT_NE(why.find("winograd 2x2"), std::string::npos) << why;
      for (std::int64_t row = 0; row < x.shape()[0]; ++row) EXPECT_TRUE(equal_bits(run(g, x.rows(row, 1), asked()), fast.rows(row, 1)));
    }
  }
}

// The one over a single channel, which is pooled in registers, stays f32; the other pools after it.
TEST_F(Bf16, PooledConvolutionsOfWholeNumbersAreExact) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 1, 13, 12});
  std::string h = "x";
  for (const Shape& shape : {Shape{8, 1, 3, 3}, Shape{5, 8, 3, 3}}) {
    Tensor w = f32(shape, -1.4, 1.4);
    for (float& v : w.mutable_data<float>()) v = std::nearbyint(v);
    h = g.add("Conv", {h, g.add_initializer(g.fresh("w"), std::move(w))}, {{"pads", Ints{1, 1, 1, 1}}});
    h = g.add("MaxPool", {h}, {{"kernel_shape", Ints{2, 2}}, {"strides", Ints{2, 2}}});
  }
  g.add("Flatten", {h}, {}, "y");
  g.outputs.push_back({"y", DType::f32, {}, {}, false});
  const Tensor x = whole({3, 1, 13, 12});
  std::string why;
  const Tensor fast = run(g, x, asked(), &why);
  const Tensor plain = run(g, x, {.backends = {&reference_backend()}});
  EXPECT_TRUE(equal_bits(fast, plain)) << why;
  for (const char* kernel : {"of one channel", "bf16", "(MaxPool)"})
    EXPECT_NE(why.find(kernel), std::string::npos) << kernel << "\n" << why;
}

TEST_F(Bf16, TransformedConvolutionsErrLessThanTwiceAsMuchAsPlainOnes) {
  Graph g;
  Graph by_rounded;  // the plain sum of rounded operands, in f32
  const Tensor w = f32({48, 64, 3, 3});
  const Tensor x = f32({2, 64, 14, 15});
  for (Graph* graph : {&g, &by_rounded}) {
    graph->add_input("x", DType::f32, {-1, 64, 14, 15});
    const std::string weights = graph->add_initializer("w", graph == &g ? w : through_bf16(w));
    graph->add("Sigmoid", {graph->add("Conv", {"x", weights}, {{"pads", Ints{1, 1, 1, 1}}})}, {}, "y");
    graph->outputs.push_back({"y", DType::f32, {}, {}, false});
  }
  const Tensor exact = run(g, x, {});
  const Tensor plain = run(by_rounded, through_bf16(x), {});
  for (const IntegerIsa most : {IntegerIsa::avx2, IntegerIsa::avx512_vnni, IntegerIsa::amx}) {
    const cpu::IntegerIsaLimit limit(most, true);
    const Tensor fast = run(g, x, asked());
    EXPECT_GT(distance(fast, exact), 0);
    EXPECT_LT(distance(fast, exact), 2 * distance(plain, exact));
  }
}

TEST_F(Bf16, ErrorsAreThoseOfRoundingOperandsAndRowsAreTheSameInEveryBatch) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 300});
  const Tensor w = f32({300, 40});
  g.add("MatMul", {"x", g.add_initializer("w", w)}, {}, "y");
  g.outputs.push_back({"y", DType::f32, {}, {}, false});
  const Tensor x = f32({11, 300});
  const Tensor plain = run(g, x, {});
  const Tensor fast = run(g, x, asked());
  EXPECT_FALSE(equal_bits(fast, plain));
  for (std::size_t i = 0; i < plain.elements(); ++i) {
    double size = 0;
    for (std::size_t k = 0; k < 300; ++k)
      size += std::abs(static_cast<double>(x.data<float>()[i / 40 * 300 + k]) * static_cast<double>(w.data<float>()[k * 40 + i % 40]));
    // Each operand is off by at most 2^-9 of itself.
    ASSERT_LE(std::abs(static_cast<double>(fast.data<float>()[i] - plain.data<float>()[i])), size * 2.01 / 512);
  }
  for (std::int64_t row = 0; row < 11; ++row) EXPECT_TRUE(equal_bits(run(g, x.rows(row, 1), asked()), fast.rows(row, 1))) << row;
}

TEST_F(Bf16, NobodyGetsItUnasked) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 8});
  g.add("MatMul", {"x", g.add_initializer("w", f32({8, 8}))}, {}, "y");
  g.outputs.push_back({"y", DType::f32, {}, {}, false});
  std::string why;
  run(g, f32({2, 8}), {}, &why);
  EXPECT_EQ(why.find("bf16"), std::string::npos) << why;
}

}  // namespace
}  // namespace falaj::kernels
