// Integer kernels give the reference's bits on every instruction set that this machine has; quantised graphs run on them, and give the
// quantum that the float chain gives or its neighbour.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/convert.hpp"
#include "kernels/cpu/integer.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/ops/microsoft.hpp"
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

class Integers : public testing::Seeded {
 protected:
  Tensor f32(const Shape& shape, double low = -1, double high = 1) { return as_f32(random_tensor(random_, shape, low, high)); }
  Tensor u8(const Shape& shape) { return converted(random_tensor(random_, shape, 0, 255.9), DType::u8); }
  Tensor s8(const Shape& shape) { return converted(random_tensor(random_, shape, -127.9, 127.9), DType::i8); }

  static Result<Tensor> run(const Graph& g, const std::vector<Tensor>& inputs, CompileOptions options, std::string* why = nullptr) {
    FALAJ_ASSIGN(auto compiled, compile(g, std::move(options)));
    Executor executor(compiled);
    std::vector<Tensor> outputs;
    FALAJ_TRY(executor.run(inputs, outputs));
    if (why != nullptr) {
      FALAJ_ASSIGN(*why, compiled->why(2));
    }
    return outputs[0];
  }

  // The graph, of one output, on every instruction set and by the reference: the same bits.
  void same_everywhere(const Graph& g, const std::vector<Tensor>& inputs, const std::string& what) {
    const auto plain = run(g, inputs, {.backends = {&reference_backend()}});
    ASSERT_TRUE(plain.has_value()) << plain.error().message;
    std::vector<IntegerIsa> met;
    for (const IntegerIsa most : {IntegerIsa::avx2, IntegerIsa::avx_vnni, IntegerIsa::avx512_vnni, IntegerIsa::amx}) {
      const cpu::IntegerIsaLimit limit(most, true);
      const IntegerIsa isa = cpu::integer_isa();
      if (isa == IntegerIsa::none || std::ranges::find(met, isa) != met.end()) continue;
      met.push_back(isa);
      std::string why;
      const auto fast = run(g, inputs, {}, &why);
      ASSERT_TRUE(fast.has_value()) << fast.error().message;
      EXPECT_TRUE(equal_bits(*fast, *plain)) << what << " on " << cpu::integer_tiles(isa).name << "\n" << why;
      EXPECT_EQ(why.find("reference"), std::string::npos) << why;
    }
    EXPECT_EQ(cpu::has_avx2(), std::ranges::find(met, IntegerIsa::amx) != met.end());
  }

  // One node of ai.falaj whose first input is the graph's.
  Graph node_graph(std::string_view op, const Tensor& x, std::vector<Tensor> constants, Attributes attributes, bool addend = false,
                   const Shape& like = {}) {
    Graph g;
    g.add_input("x", x.dtype(), x.shape());
    std::vector<std::string> inputs = {"x"};
    for (auto& c : constants) inputs.push_back(g.add_initializer(g.fresh("c"), std::move(c)));
    if (addend) {
      g.add_input("addend", DType::u8, like);
      inputs.push_back("addend");
    }
    g.add(kFalaj, op, inputs, std::move(attributes), "y");
    g.outputs.push_back({"y", DType::undefined, {}, {}, false});
    return g;
  }
};

TEST_F(Integers, ProductsHaveTheReferencesBitsOnEveryInstructionSet) {
  for (int round = 0; round < 60; ++round) {
    const std::int64_t m = up_to(20);
    const std::int64_t k = up_to(round % 2 == 0 ? 20 : 300);
    const std::int64_t n = up_to(100);
    const bool transposed = random_.below(2) == 0;
    const bool addend = random_.below(2) == 0;
    Tensor x = u8({m, k});
    Tensor w = s8(transposed ? Shape{n, k} : Shape{k, n});
    if (round % 5 == 0) {  // what saturates where pairs are added in 16 bits
      std::ranges::fill(x.mutable_data<std::uint8_t>(), std::uint8_t{255});
      std::ranges::fill(w.mutable_data<std::int8_t>(), round % 2 == 0 ? std::int8_t{127} : std::int8_t{-128});
    }
    const double spread = 1.0 / (64.0 * std::sqrt(static_cast<double>(k)));
    Attributes a = {{"x_zero", static_cast<std::int64_t>(random_.below(256))},
                    {"transB", std::int64_t{transposed ? 1 : 0}},
                    {"to", std::int64_t{code_of(random_.below(3) == 0 ? DType::f32 : DType::u8)}},
                    {"relu", static_cast<std::int64_t>(random_.below(2))},
                    {"y_zero", static_cast<std::int64_t>(random_.below(256))},
                    {"low", static_cast<std::int64_t>(random_.below(100))},
                    {"addend_scale", 0.37F},
                    {"addend_zero", std::int64_t{31}}};
    const Graph g = node_graph("QMatMul", x, {w, f32({n}, spread / 4, spread), f32({n}, -50, 50)}, a, addend, {m, n});
    std::vector<Tensor> inputs = {x};
    if (addend) inputs.push_back(u8({m, n}));
    same_everywhere(g, inputs, format("{}x{}x{}", m, k, n));
  }
}

TEST_F(Integers, ConvolutionsHaveTheReferencesBitsOnEveryInstructionSet) {
  for (int round = 0; round < 60; ++round) {
    const std::int64_t groups = round % 3 == 0 ? up_to(4) : 1;
    const bool depthwise = round % 6 == 0;
    const std::int64_t channels = depthwise ? groups : groups * up_to(round % 4 == 1 ? 40 : 5);
    const std::int64_t maps = depthwise ? groups : groups * up_to(40);
    const Ints kernel = {up_to(4), up_to(4)};
    Attributes a = {{"group", groups},
                    {"strides", Ints{up_to(2), up_to(2)}},
                    {"dilations", Ints{up_to(2), round % 5 == 0 ? std::int64_t{2} : std::int64_t{1}}},
                    {"pads", Ints{up_to(3) - 1, up_to(3) - 1, up_to(3) - 1, up_to(3) - 1}},
                    {"x_zero", static_cast<std::int64_t>(random_.below(256))},
                    {"y_zero", std::int64_t{128}},
                    {"to", std::int64_t{code_of(round % 7 == 0 ? DType::f32 : DType::u8)}}};
    const Tensor x = u8({up_to(3), 7 + up_to(9), 7 + up_to(9), channels});
    const Graph g =
        node_graph("QConv", x, {s8({maps, channels / groups, kernel[0], kernel[1]}), f32({maps}, 1e-4, 1e-2), f32({maps}, -50, 50)}, a);
    same_everywhere(g, {x}, format("round {}: {} in {} groups, {} maps, {}x{}", round, channels, groups, maps, kernel[0], kernel[1]));
  }
}

// By minimal filtering where the processor has AVX512-VNNI: whatever the image and its padding, at the ends of the range too, with the
// bits of the plain sums.
TEST_F(Integers, WideConvolutionsHaveTheReferencesBitsOnEveryInstructionSet) {
  for (int round = 0; round < 12; ++round) {
    const std::int64_t channels = 32 * up_to(3);
    const std::int64_t maps = 16 * up_to(9);
    Tensor x = u8({up_to(2), 20 + up_to(6), 20 + up_to(6), channels});
    Tensor w = s8({maps, channels, 3, 3});
    const bool extreme = round % 4 == 0;
    if (extreme) {  // 32 channels alone keep the largest sum in its range
      x = u8({1, 23, 22, 32});
      w = s8({maps, 32, 3, 3});
      for (auto& value : x.mutable_data<std::uint8_t>()) value = random_.below(2) == 0 ? std::uint8_t{0} : std::uint8_t{255};
      for (auto& value : w.mutable_data<std::int8_t>()) value = random_.below(2) == 0 ? std::int8_t{127} : std::int8_t{-128};
    }
    const bool addend = round % 3 == 0;
    const Ints pads = {up_to(2), up_to(2), up_to(2), up_to(2)};
    Attributes a = {{"pads", pads},
                    {"x_zero", static_cast<std::int64_t>(random_.below(256))},
                    {"y_zero", static_cast<std::int64_t>(random_.below(256))},
                    {"addend_scale", 0.37F},
                    {"addend_zero", std::int64_t{31}},
                    {"to", std::int64_t{code_of(round % 5 == 1 ? DType::f32 : DType::u8)}}};
    const Shape like = {x.shape()[0], x.shape()[1] + pads[0] + pads[2] - 2, x.shape()[2] + pads[1] + pads[3] - 2, maps};
    const Graph g = node_graph("QConv", x, {w, f32({maps}, 1e-5, 1e-3), f32({maps}, -50, 50)}, a, addend, like);
    std::vector<Tensor> inputs = {x};
    if (addend) inputs.push_back(u8(like));
    same_everywhere(g, inputs, format("round {}: {} channels, {} maps, {}", round, channels, maps, to_string(x.shape())));
    if (!cpu::has_avx512_vnni()) continue;
    const cpu::IntegerIsaLimit limit(IntegerIsa::avx512_vnni);
    std::string why;
    ASSERT_TRUE(run(g, inputs, {}, &why).has_value());
    EXPECT_NE(why.find("winograd 4x4"), std::string::npos) << why;
  }
}

TEST_F(Integers, SumsThatCouldLeaveTheRangeOfMinimalFilteringAreComputedPlainly) {
  for (const std::int64_t channels : {96, 128}) {
    Tensor x = u8({1, 24, 24, channels});
    Tensor w = s8({16, channels, 3, 3});
    std::ranges::fill(x.mutable_data<std::uint8_t>(), std::uint8_t{255});
    std::ranges::fill(w.mutable_data<std::int8_t>(), std::int8_t{127});
    const Graph g = node_graph("QConv", x, {w, f32({16}, 1e-6, 1e-5), f32({16}, -50, 50)}, {{"pads", Ints{1, 1, 1, 1}}});
    same_everywhere(g, {x}, format("{} channels", channels));
    if (!cpu::has_avx512_vnni()) continue;
    const cpu::IntegerIsaLimit limit(IntegerIsa::avx512_vnni);
    std::string why;
    ASSERT_TRUE(run(g, {x}, {}, &why).has_value());
    EXPECT_EQ(why.find("winograd 4x4") != std::string::npos, channels == 96) << why;
  }
}

TEST_F(Integers, SumsPoolsAndQuantisationHaveTheReferencesBits) {
  for (int round = 0; round < 20; ++round) {
    const std::int64_t c = up_to(70);
    const Tensor x = u8({up_to(2), 4 + up_to(5), 4 + up_to(5), c});
    same_everywhere(node_graph("QAdd", x, {},
                               {{"a_scale", 0.71F},
                                {"b_scale", 0.29F},
                                {"a_zero", std::int64_t{99}},
                                {"b_zero", std::int64_t{3}},
                                {"y_zero", std::int64_t{60}}},
                               true, x.shape()),
                    {x, u8(x.shape())}, "sum");
    same_everywhere(node_graph("QMaxPool", x, {}, {{"kernel_shape", Ints{3, 2}}, {"strides", Ints{2, 1}}, {"pads", Ints{1, 1, 0, 0}}}), {x},
                    "max");
    same_everywhere(node_graph("QGlobalAveragePool", x, {}, {{"scale", 0.021F}, {"x_zero", std::int64_t{17}}, {"y_zero", std::int64_t{5}}}),
                    {x}, "mean");
    const Tensor f = f32({up_to(2), up_to(4), up_to(6), up_to(6)}, -6, 6);
    same_everywhere(node_graph("Quantize", f, {Tensor::scalar<float>(0.031F)}, {{"y_zero", std::int64_t{101}}}), {f}, "quantise");
    for (const bool is_signed : {false, true}) {
      Graph g;
      g.add_input("x", DType::f32, f.shape());
      const auto s = g.add_initializer("s", Tensor::scalar<float>(0.043F));
      const auto z = g.add_initializer("z", is_signed ? Tensor::scalar<std::int8_t>(-11) : Tensor::scalar<std::uint8_t>(111));
      const auto q = g.add("QuantizeLinear", {"x", s, z});
      g.add("DequantizeLinear", {q, s, z}, {}, "y");
      g.outputs.push_back({"y", DType::f32, {}, {}, false});
      g.outputs.push_back({q, DType::undefined, {}, {}, false});
      same_everywhere(g, {f}, "there and back");
    }
  }
}

// --- graphs ---------------------------------------------------------------------------------------------------------------------

// Writes quantised graphs as quantisers do.
class Writer {
 public:
  Writer(Graph& g, Random& random, bool is_signed) : g_(g), random_(random), signed_(is_signed) {}

  std::pair<std::string, std::string> scaling(float scale, int zero) {
    auto s = g_.add_initializer(g_.fresh("scale"), Tensor::scalar<float>(scale));
    auto z = g_.add_initializer(g_.fresh("zero"), signed_ ? Tensor::scalar<std::int8_t>(static_cast<std::int8_t>(zero - 128))
                                                          : Tensor::scalar<std::uint8_t>(static_cast<std::uint8_t>(zero)));
    return {s, z};
  }
  std::string through(const std::string& x, float scale, int zero) {  // QuantizeLinear, DequantizeLinear
    const auto [s, z] = scaling(scale, zero);
    return g_.add("DequantizeLinear", {g_.add("QuantizeLinear", {x, s, z}), s, z});
  }
  Tensor weights(const Shape& shape) { return converted(random_tensor(random_, shape, -127, 127), DType::i8); }
  std::string scales(std::int64_t n, double each) {
    return g_.add_initializer(g_.fresh("scales"), as_f32(random_tensor(random_, {n}, each / 2, each)));
  }
  std::string known(const Shape& shape, std::int64_t axis, double each) {  // DequantizeLinear of known weights
    const auto w = g_.add_initializer(g_.fresh("w"), weights(shape));
    const std::int64_t n = shape[static_cast<std::size_t>(axis)];
    const auto z = g_.add_initializer(g_.fresh("zeros"), Tensor(DType::i8, {n}));
    return g_.add("DequantizeLinear", {w, scales(n, each), z}, {{"axis", axis}});
  }
  std::string row(std::int64_t n) { return g_.add_initializer(g_.fresh("bias"), as_f32(random_tensor(random_, {n}))); }
  // Quantised, and where one of its size was written before, the same: an exporter writes equal constants once.
  std::string bias(std::int64_t n) {
    if (const auto found = biases_.find(n); found != biases_.end()) return g_.add("Identity", {found->second});
    const auto q = g_.add_initializer(g_.fresh("bias"), converted(random_tensor(random_, {n}, -1000, 1000), DType::i32));
    const auto z = g_.add_initializer(g_.fresh("zeros"), Tensor(DType::i32, {n}));
    return biases_.emplace(n, g_.add("DequantizeLinear", {q, scales(n, 0.001), z}, {{"axis", std::int64_t{0}}})).first->second;
  }
  std::string conv(const std::string& x, const Shape& w, std::int64_t stride = 1) {
    const auto fan = static_cast<double>(w.elements(1, 4));
    return g_.add("Conv", {x, known(w, 0, 0.02 / std::sqrt(fan)), bias(w[0])},
                  {{"strides", Ints{stride, stride}}, {"pads", Ints{w[2] / 2, w[3] / 2, w[2] / 2, w[3] / 2}}});
  }

 private:
  Graph& g_;
  Random& random_;
  bool signed_;
  std::map<std::int64_t, std::string> biases_;
};

// Outputs that were dequantised differ by whole quanta: at most by `quanta`.
void expect_within(const Tensor& a, const Tensor& b, double quantum, double quanta, const std::string& what) {
  ASSERT_EQ(to_string(a.shape()), to_string(b.shape()));
  for (std::size_t i = 0; i < a.elements(); ++i) {
    const double difference = std::abs(static_cast<double>(a.data<float>()[i]) - static_cast<double>(b.data<float>()[i]));
    ASSERT_LE(difference, quanta * quantum * 1.0001) << "at " << i << ": " << a.data<float>()[i] << " and " << b.data<float>()[i] << "\n"
                                                     << what;
  }
}

TEST_F(Integers, AQuantisedMlpRunsOnIntegersWithinOneQuantum) {
  for (const bool is_signed : {false, true}) {
    Graph g;
    g.add_input("x", DType::f32, {-1, 20});
    Writer w(g, random_, is_signed);
    std::string h = w.through("x", 0.01F, 128);
    h = g.add("Relu", {g.add("Add", {g.add("MatMul", {h, w.known({20, 33}, 1, 0.01)}), w.row(33)})});
    h = w.through(h, 0.02F, 0);
    h = g.add("Gemm", {h, w.known({7, 33}, 0, 0.01), w.row(7)}, {{"transB", std::int64_t{1}}});
    const float quantum = 0.05F;
    g.add("Identity", {w.through(h, quantum, 120)}, {}, "y");
    g.outputs.push_back({"y", DType::f32, {}, {}, false});
    const Tensor x = f32({9, 20}, -1.3, 1.3);
    std::string why;
    const auto fast = run(g, {x}, {}, &why);
    const auto plain = run(g, {x}, {.backends = {&reference_backend()}, .fold = false, .fuse = false});
    ASSERT_TRUE(fast.has_value() && plain.has_value());
    expect_within(*fast, *plain, static_cast<double>(quantum), 1, why);
    for (const char* gone : {"MatMul(", "(MatMul)", "(Gemm)", "(Relu)"}) EXPECT_EQ(why.find(gone), std::string::npos) << why;
    EXPECT_NE(why.find("QMatMul"), std::string::npos) << why;
    same_everywhere(g, {x}, "mlp");
  }
}

TEST_F(Integers, AQuantisedResidualNetworkRunsOnIntegersWithinOneQuantum) {
  for (const bool added_inside : {false, true}) {
    Graph g;
    g.add_input("x", DType::f32, {-1, 3, 15, 15});
    Writer w(g, random_, added_inside);
    std::string h = w.through(g.add("Relu", {w.conv(w.through("x", 0.01F, 128), {16, 3, 7, 7}, 2)}), 0.01F, 0);
    const auto [s, z] = w.scaling(0.01F, 0);
    h = g.add("MaxPool", {h}, {{"kernel_shape", Ints{3, 3}}, {"strides", Ints{2, 2}}, {"pads", Ints{1, 1, 1, 1}}});
    h = g.add("DequantizeLinear", {g.add("QuantizeLinear", {h, s, z}), s, z});
    std::string branch = w.through(g.add("Relu", {w.conv(h, {16, 16, 3, 3})}), 0.02F, 0);
    branch = w.conv(branch, {16, 16, 3, 3});
    if (!added_inside) branch = w.through(branch, 0.02F, 130);
    h = w.through(g.add("Relu", {g.add("Add", {branch, h})}), 0.02F, 0);
    // The skip's convolution comes after the sum's other operand.
    branch = w.conv(w.through(g.add("Clip", {w.conv(h, {24, 16, 3, 3}, 2), g.add_initializer("low", Tensor::scalar<float>(0)),
                                             g.add_initializer("high", Tensor::scalar<float>(6))}),
                              0.03F, 0),
                    {24, 24, 3, 3});
    if (!added_inside) branch = w.through(branch, 0.03F, 128);
    h = w.through(g.add("Add", {branch, w.through(w.conv(h, {24, 16, 1, 1}, 2), 0.03F, 128)}), 0.03F, 128);
    h = w.through(g.add("GlobalAveragePool", {h}), 0.02F, 128);
    const auto [fs, fz] = w.scaling(0.02F, 128);
    h = g.add("DequantizeLinear", {g.add("QuantizeLinear", {g.add("Flatten", {h}), fs, fz}), fs, fz});
    const float quantum = 0.02F;
    g.add("Identity", {w.through(g.add("Gemm", {h, w.known({24, 5}, 1, 0.005), w.row(5)}), quantum, 128)}, {}, "y");
    g.outputs.push_back({"y", DType::f32, {}, {}, false});
    const Tensor x = f32({3, 3, 15, 15}, -1.2, 1.2);
    std::string why;
    const auto fast = run(g, {x}, {}, &why);
    const auto plain = run(g, {x}, {.backends = {&reference_backend()}, .fold = false, .fuse = false});
    ASSERT_TRUE(fast.has_value()) << fast.error().message;
    ASSERT_TRUE(plain.has_value()) << plain.error().message;
    expect_within(*fast, *plain, static_cast<double>(quantum), 2, why);  // a neighbouring quantum inside may move the next one
    for (const char* gone : {"(Conv)", "(MaxPool)", "(Add)", "(Relu)", "(GlobalAveragePool)", "reference", "(Transpose)"})
      EXPECT_EQ(why.find(gone), std::string::npos) << gone << "\n" << why;
    same_everywhere(g, {x}, "network");
  }
}

TEST_F(Integers, FlattenedImagesAreReadAsTheyLie) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 1, 10, 13});
  Writer w(g, random_, false);
  std::string h = w.through(g.add("Relu", {w.conv(w.through("x", 0.01F, 128), {6, 1, 3, 3})}), 0.01F, 0);
  h = w.through(g.add("MaxPool", {h}, {{"kernel_shape", Ints{2, 2}}, {"strides", Ints{2, 2}}}), 0.01F, 0);
  h = g.add("Flatten", {h});
  const float quantum = 0.02F;
  h = g.add("Gemm", {w.through(h, 0.01F, 0), w.known({6 * 5 * 6, 5}, 1, 0.005), w.row(5)});
  g.add("Identity", {w.through(h, quantum, 128)}, {}, "y");
  g.outputs.push_back({"y", DType::f32, {}, {}, false});
  const Tensor x = f32({3, 1, 10, 13}, -1.2, 1.2);
  std::string why;
  const auto fast = run(g, {x}, {}, &why);
  const auto plain = run(g, {x}, {.backends = {&reference_backend()}, .fold = false, .fuse = false});
  ASSERT_TRUE(fast.has_value()) << fast.error().message;
  ASSERT_TRUE(plain.has_value()) << plain.error().message;
  expect_within(*fast, *plain, static_cast<double>(quantum), 2, why);
  EXPECT_EQ(why.find("(Transpose)"), std::string::npos) << why;
  same_everywhere(g, {x}, "network");
}

TEST_F(Integers, ADeepSumThatCouldOverflowAndOddWeightsStayFloatAndSaySo) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 8});
  Writer w(g, random_, false);
  const std::string h = w.through("x", 0.01F, 128);
  const auto ws = g.add_initializer("w", w.weights({8, 4}));
  const auto one = g.add_initializer("one", Tensor::scalar<float>(0.01F));
  const auto odd = g.add_initializer("odd", Tensor::scalar<std::int8_t>(3));
  const std::string a = g.add("MatMul", {h, g.add("DequantizeLinear", {ws, one, odd})});
  const std::string b = g.add("MatMul", {"x", g.add("DequantizeLinear", {ws, one})});
  g.add("Add", {a, b}, {}, "y");
  g.outputs.push_back({"y", DType::f32, {}, {}, false});
  const Tensor x = f32({3, 8});
  std::string why;
  const auto fast = run(g, {x}, {}, &why);
  const auto plain = run(g, {x}, {.backends = {&reference_backend()}, .fold = false, .fuse = false});
  ASSERT_TRUE(fast.has_value() && plain.has_value());
  expect_within(*fast, *plain, 1e-5, 1, why);
  EXPECT_NE(why.find("is no integer product: its weights have a zero point"), std::string::npos) << why;
  EXPECT_NE(why.find("is no integer product: its left operand was not quantised"), std::string::npos) << why;
}

// As onnxruntime's quantiser writes it with quant_format QOperator.
TEST_F(Integers, OpsOnQuantisedOperandsRunOnIntegersWithinOneQuantum) {
  for (const bool is_signed : {false, true}) {
    Graph g;
    g.opsets[std::string(kMicrosoft)] = 1;
    g.add_input("x", DType::f32, {-1, 2, 9, 9});
    Writer w(g, random_, is_signed);
    const auto [s, z] = w.scaling(0.01F, 128);
    const auto [s2, z2] = w.scaling(0.02F, 128);
    const auto [s3, z3] = w.scaling(0.03F, 110);
    const std::string q = g.add("QuantizeLinear", {"x", s, z});
    const auto zeros = [&](std::int64_t n) { return g.add_initializer(g.fresh("zeros"), Tensor(DType::i8, {n})); };
    const auto bias = g.add_initializer("bias", converted(random_tensor(random_, {8}, -900, 900), DType::i32));
    const auto w1 = g.add_initializer("w1", w.weights({8, 2, 3, 3}));
    const Attributes pads = {{"pads", Ints{1, 1, 1, 1}}};
    const std::string a = g.add("QLinearConv", {q, s, z, w1, w.scales(8, 0.004), zeros(8), s2, z2, bias}, pads);
    const auto w2 = g.add_initializer("w2", w.weights({8, 8, 3, 3}));
    const std::string b = g.add("QLinearConv", {a, s2, z2, w2, w.scales(8, 0.002), zeros(8), s2, z2}, pads);
    std::string h = g.add(kMicrosoft, "QLinearAdd", {a, s2, z2, b, s2, z2, s3, z3});
    h = g.add("MaxPool", {h}, {{"kernel_shape", Ints{2, 2}}, {"strides", Ints{2, 2}}});
    h = g.add(kMicrosoft, "QLinearGlobalAveragePool", {h, s3, z3, s2, z2}, {{"channels_last", std::int64_t{0}}});
    h = g.add("Flatten", {h});
    const auto w3 = g.add_initializer("w3", w.weights({4, 8}));
    h = g.add(
        kMicrosoft, "QGemm",
        {h, s2, z2, w3, g.add_initializer("ws", Tensor::scalar<float>(0.004F)), g.add_initializer("wz", Tensor::scalar<std::int8_t>(0)),
         g.add_initializer("b3", converted(random_tensor(random_, {4}, -90, 90), DType::i32)), s2, z2},
        {{"transB", std::int64_t{1}}});
    const auto w4 = g.add_initializer("w4", w.weights({4, 6}));
    h = g.add("QLinearMatMul", {h, s2, z2, w4, g.add_initializer("ws4", Tensor::scalar<float>(0.004F)),
                                g.add_initializer("wz4", Tensor::scalar<std::int8_t>(0)), s2, z2});
    g.add("DequantizeLinear", {h, s2, z2}, {}, "y");
    g.outputs.push_back({"y", DType::f32, {}, {}, false});
    const Tensor x = f32({3, 2, 9, 9}, -1.2, 1.2);
    std::string why;
    const auto fast = run(g, {x}, {}, &why);
    const auto plain = run(g, {x}, {.backends = {&reference_backend()}, .fold = false, .fuse = false});
    ASSERT_TRUE(fast.has_value()) << fast.error().message;
    ASSERT_TRUE(plain.has_value()) << plain.error().message;
    expect_within(*fast, *plain, 0.02, 1, why);
    for (const char* gone : {"(QLinear", "(QGemm)", "reference"}) EXPECT_EQ(why.find(gone), std::string::npos) << gone << "\n" << why;
    same_everywhere(g, {x}, "operators");
  }
}

}  // namespace
}  // namespace falaj::kernels
