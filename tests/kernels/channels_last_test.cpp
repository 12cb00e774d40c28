// Convolutional graphs on [N, H, W, C]: the same values as plain ones, whatever lies between the convolutions, and the same bits in every
// batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu/isa.hpp"
#include "kernels/plan.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using testing::as_f32;
using testing::random_tensor;
using Ints = std::vector<std::int64_t>;

class ChannelsLast : public ::testing::Test {
 protected:
  ChannelsLast() : seed_(testing::test_seed()), random_(seed_) { RecordProperty("seed", std::to_string(seed_)); }
  Tensor t(const Shape& shape, double low = -1, double high = 1) { return as_f32(random_tensor(random_, shape, low, high)); }
  std::string weights(Graph& g, const Shape& shape) { return g.add_initializer(g.fresh("w"), t(shape)); }

  std::string conv(Graph& g, const std::string& x, const Shape& w, std::int64_t stride = 1, std::int64_t groups = 1, bool bias = true) {
    Attributes a = {{"strides", Ints{stride, stride}}, {"group", groups}};
    a.emplace("pads", Ints{w[2] / 2, w[3] / 2, w[2] / 2, w[3] / 2});
    std::vector<std::string> inputs = {x, weights(g, w)};
    if (bias) inputs.push_back(weights(g, {w[0]}));
    return g.add("Conv", inputs, a);
  }
  std::string norm(Graph& g, const std::string& x, std::int64_t channels) {
    const std::string variance = g.add_initializer(g.fresh("variance"), t({channels}, 0.5, 2));
    return g.add("BatchNormalization", {x, weights(g, {channels}), weights(g, {channels}), weights(g, {channels}), variance});
  }

  static std::vector<Tensor> run(const Graph& g, const std::vector<Tensor>& inputs, CompileOptions options, std::string* why = nullptr) {
    auto compiled = compile(g, std::move(options));
    EXPECT_TRUE(compiled.has_value()) << compiled.error().message;
    std::vector<Tensor> outputs;
    if (!compiled) return outputs;
    Executor executor(*compiled);
    auto status = executor.run(inputs, outputs);
    EXPECT_TRUE(status.has_value()) << status.error().message;
    if (why != nullptr) *why = (*compiled)->why(1).value_or("");
    return outputs;
  }

  // Runs the graph fast and plain; returns which kernels ran fast. Errors count by each value or, where sums of large values make small
  // ones, by the largest.
  std::string agree(const Graph& g, const Tensor& x, double of_largest = 0) {
    std::string why;
    auto fast = run(g, {x}, {}, &why);
    auto plain = run(g, {x}, {.backends = {&reference_backend()}, .fold = false, .fuse = false});
    EXPECT_EQ(fast.size(), plain.size());
    if (cpu::has_avx512()) {
      const cpu::WithoutAvx512 limit;
      const auto narrow = run(g, {x}, {});
      for (std::size_t k = 0; k < std::min(fast.size(), narrow.size()); ++k)
        EXPECT_TRUE(equal_bits(fast[k], narrow[k])) << "both widths of vectors, output " << k << ", seed " << seed_ << "\n" << why;
    }
    for (std::size_t k = 0; k < std::min(fast.size(), plain.size()); ++k) {
      EXPECT_EQ(to_string(fast[k].shape()), to_string(plain[k].shape()));
      double largest = 0;
      for (const float value : plain[k].data<float>()) largest = std::max(largest, static_cast<double>(std::abs(value)));
      for (std::size_t i = 0; i < std::min(fast[k].elements(), plain[k].elements()); ++i) {
        const double a = static_cast<double>(fast[k].data<float>()[i]);
        const double b = static_cast<double>(plain[k].data<float>()[i]);
        if (std::abs(a - b) > (of_largest > 0 ? of_largest * largest : 1e-4 * (1 + std::abs(b)))) {
          ADD_FAILURE() << "output " << k << " at " << i << ": " << a << " and " << b << ", seed " << seed_ << "\n" << why;
          break;
        }
      }
    }
    return why;
  }

  std::uint64_t seed_;
  Random random_;
};

// With two shortcuts, plain and strided.
TEST_F(ChannelsLast, AResidualNetworkAgreesAndRunsFused) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP();
  Graph g;
  g.add_input("x", DType::f32, {-1, 3, 13, 17});
  std::string h = g.add("Relu", {norm(g, conv(g, "x", {8, 3, 7, 7}, 2, 1, false), 8)});
  h = g.add("MaxPool", {h}, {{"kernel_shape", Ints{3, 3}}, {"strides", Ints{2, 2}}, {"pads", Ints{1, 1, 1, 1}}});
  std::string branch = norm(g, conv(g, g.add("Relu", {norm(g, conv(g, h, {8, 8, 3, 3}), 8)}), {8, 8, 3, 3}), 8);
  h = g.add("Relu", {g.add("Add", {branch, h})});
  branch = norm(g, conv(g, g.add("Relu", {conv(g, h, {20, 8, 3, 3}, 2)}), {20, 20, 3, 3}, 1, 1, false), 20);
  h = g.add("Relu", {g.add("Add", {branch, conv(g, h, {20, 8, 1, 1}, 2)})});
  h = g.add("Flatten", {g.add("GlobalAveragePool", {h})});
  g.add("Gemm", {h, weights(g, {20, 5})}, {}, "y");
  g.add_output("y", DType::f32, {-1, 5});
  const std::string why = agree(g, t({3, 3, 13, 17}));
  for (const char* plain : {"reference", "BatchNormalization", "(Add)", "(Relu)"})
    EXPECT_EQ(why.find(plain), std::string::npos) << plain << "\n" << why;
}

TEST_F(ChannelsLast, WhatIsBetweenConvolutionsStaysInTheirLayoutOrComesBack) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 1, 9, 6});
  const std::string a = conv(g, "x", {4, 1, 3, 3});
  const std::string b = conv(g, a, {4, 1, 3, 3}, 1, 4);  // depthwise; `a` is read twice
  const std::string c = g.add("Concat", {a, b}, {{"axis", std::int64_t{1}}});
  const std::string d = conv(g, c, {6, 4, 1, 1}, 1, 2);  // in two groups
  const std::string e = g.add("Mul", {d, g.add("Sigmoid", {g.add("GlobalAveragePool", {d})})});
  const std::string f = g.add("Clip", {e, g.add_initializer("low", Tensor::scalar<float>(-0.5F))});
  const std::string p = g.add("AveragePool", {f}, {{"kernel_shape", Ints{2, 3}}, {"ceil_mode", std::int64_t{1}}, {"strides", Ints{2, 2}}});
  g.add("ReduceMean", {p}, {{"axes", Ints{1}}}, "mean");  // needs the plain layout
  g.add("Transpose", {c}, {{"perm", Ints{1, 0, 3, 2}}}, "turned");
  g.outputs.push_back({"mean", DType::f32, {}, {}, false});
  g.outputs.push_back({"turned", DType::f32, {}, {}, false});
  g.outputs.push_back({d, DType::f32, {}, {}, false});  // an output in between
  agree(g, t({2, 1, 9, 6}));
}

// Each channel with a map of its own, after a convolution over all of them; and what a convolution carries at its end.
TEST_F(ChannelsLast, DepthwiseConvolutionsAgreeWhateverTheImageAndTheirEnd) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP();
  const auto up_to = [&](std::int64_t most) { return 1 + static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(most))); };
  for (int round = 0; round < 60; ++round) {
    SCOPED_TRACE(format("round {}", round));
    Graph g;
    const std::int64_t channels = up_to(40) + 1;
    const Shape x{2, 3, up_to(14), up_to(19)};
    g.add_input("x", DType::f32, {-1, x[1], x[2], x[3]});
    const auto end = [&](const std::string& y) {
      switch (random_.below(7)) {
        case 0:
          return g.add("Relu", {y});
        case 1:
          return g.add("Clip", {y, g.add_initializer(g.fresh("low"), Tensor::scalar<float>(0)),
                                g.add_initializer(g.fresh("high"), Tensor::scalar<float>(0.75F))});
        case 2:
          return g.add("HardSwish", {y});
        case 3:
          return g.add("Swish", {y});
        case 4:
          return g.add("Sigmoid", {y});
        case 5:
          return g.add("LeakyRelu", {y}, Attributes{{"alpha", 0.3F}});
        default:
          return y;
      }
    };
    const std::string before = end(conv(g, "x", {channels, 3, 1, 1}));
    const Ints kernel = {up_to(5), up_to(5)};
    Attributes a = {{"group", channels},
                    {"strides", Ints{up_to(3), up_to(3)}},
                    {"dilations", Ints{up_to(2), up_to(2)}},
                    {"pads", Ints{kernel[0], kernel[1], kernel[0] + up_to(3), kernel[1] + up_to(2)}}};
    std::vector<std::string> inputs = {before, weights(g, {channels, 1, kernel[0], kernel[1]})};
    if (random_.chance(0.7)) inputs.push_back(weights(g, {channels}));
    const std::string y = end(g.add("Conv", inputs, a));
    // A normalisation that no convolution takes.
    const std::string joined = g.add("Concat", {before, before}, {{"axis", std::int64_t{1}}});
    const std::string z = end(norm(g, joined, 2 * channels));
    // A dilation that leads most places of the kernel out of the image.
    const Ints wide = {up_to(16), up_to(21)};
    const std::string far = end(
        g.add("Conv", {before, weights(g, {7, channels, 3, 3})},
              {{"dilations", wide}, {"strides", Ints{up_to(2), up_to(2)}}, {"pads", Ints{wide[0], wide[1], wide[0] + up_to(2), wide[1]}}}));
    for (const auto& name : {y, z, far}) g.outputs.push_back({name, DType::f32, {}, {}, false});
    const Tensor image = t(x);
    const std::string why = agree(g, image);
    EXPECT_NE(why.find("depthwise"), std::string::npos) << why;
    EXPECT_EQ(why.find("(BatchNormalization)"), std::string::npos) << why;
    const auto one = run(g, {image}, {});
    const auto compiled = compile(g, {.threads = 3});
    ASSERT_TRUE(compiled) << compiled.error().message;
    Executor executor(*compiled, 3);
    std::vector<Tensor> three;
    ASSERT_TRUE(executor.run(std::vector<Tensor>{image}, three));
    for (std::size_t k = 0; k < one.size(); ++k) EXPECT_TRUE(equal_bits(one[k], three[k])) << k;
    if (HasFailure()) return;
  }
}

// Sizes that come from another value's shape are known to the plan only; what leaves the graph is resized as it was.
TEST_F(ChannelsLast, ResizedImagesStayInTheirLayoutWhereItIsReadAgain) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 3, 8, 10});
  const std::string a = g.add("Relu", {conv(g, "x", {6, 3, 3, 3})});
  const std::string b = conv(g, a, {5, 6, 3, 3}, 2);
  const std::string swish = g.add("Mul", {b, g.add("Sigmoid", {b})});
  const std::string scales = g.add_initializer("scales", Tensor::vector<float>({1, 1, 2, 2}));
  const std::string up = g.add("Resize", {swish, "", scales},
                               {{"mode", std::string("linear")}, {"coordinate_transformation_mode", std::string("align_corners")}});
  const std::string joined = g.add("Concat", {up, a}, {{"axis", std::int64_t{1}}});
  const std::string c = conv(g, joined, {7, 11, 3, 3}, 2);
  const std::string sizes = g.add("Concat",
                                  {g.add("Slice", {g.add("Shape", {c}), g.add_initializer("n", Tensor::vector<std::int64_t>({0})),
                                                   g.add_initializer("two", Tensor::vector<std::int64_t>({2}))}),
                                   g.add("Slice", {g.add("Shape", {a}), g.add_initializer("h", Tensor::vector<std::int64_t>({2})),
                                                   g.add_initializer("four", Tensor::vector<std::int64_t>({4}))})},
                                  {{"axis", std::int64_t{0}}});
  const std::string d = conv(g, g.add("Resize", {c, "", "", sizes}), {2, 7, 1, 1});
  const std::string y = g.add("Resize", {d, "", scales}, {{"mode", std::string("linear")}});
  g.outputs.push_back({y, DType::f32, {}, {}, false});
  const std::string why = agree(g, t({3, 3, 8, 10}));
  EXPECT_NE(why.find("4, 5, 5] - float32[4] -> float32[1, 8, 10, 5]"), std::string::npos) << why;
  EXPECT_NE(why.find("4, 5, 7] - - int64[4] -> float32[1, 8, 10, 7]"), std::string::npos) << why;
  EXPECT_NE(why.find("2, 8, 10] - float32[4] -> float32[1, 2, 16, 20]"), std::string::npos) << why;
  EXPECT_EQ(why.find("(Sigmoid)"), std::string::npos) << why;  // the convolution carries it
}

TEST_F(ChannelsLast, ARowsBitsDoNotDependOnItsBatch) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 5, 7, 7});
  const std::string h = g.add("Relu", {conv(g, "x", {18, 5, 3, 3})});
  const std::string i = conv(g, h, {18, 18, 3, 3}, 2);
  g.add("Flatten", {g.add("MaxPool", {i}, {{"kernel_shape", Ints{2, 2}}})}, {}, "y");
  g.outputs.push_back({"y", DType::f32, {}, {}, false});
  const Tensor all = t({9, 5, 7, 7});
  const auto whole = run(g, {all}, {});
  ASSERT_EQ(whole.size(), 1U);
  for (std::int64_t batch = 1; batch < 9; ++batch) {
    const auto first = static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(10 - batch)));
    const auto part = run(g, {all.rows(first, batch)}, {});
    ASSERT_EQ(part.size(), 1U);
    EXPECT_TRUE(equal_bits(part[0], whole[0].rows(first, batch))) << "rows " << first << " to " << first + batch;
  }
}

// By minimal filtering: images that no whole number of tiles covers, padding on some sides, shortcuts, activations; and the same bits in
// every batch.
TEST_F(ChannelsLast, WideConvolutionsAgreeWhateverTheImage) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP();
  const auto below = [&](std::uint64_t n) { return static_cast<std::int64_t>(random_.below(n)); };
  for (int round = 0; round < 12; ++round) {
    const std::int64_t channels = 16 + 8 * below(5);
    const std::int64_t maps = 16 + 8 * below(6);
    const Shape image = {11 + below(8), 11 + below(8)};  // at least nine tiles
    const Ints pads = {below(3), below(2), below(2), below(3)};
    Graph g;
    g.add_input("x", DType::f32, {-1, channels, image[0], image[1]});
    std::vector<std::string> inputs = {"x", g.add_initializer("w", t({maps, channels, 3, 3}, -0.2, 0.2))};
    if (round % 3 != 0) inputs.push_back(weights(g, {maps}));
    std::string h = g.add("Conv", inputs, {{"pads", pads}});
    if (round % 2 == 0) {
      h = g.add("Add", {h, conv(g, h, {maps, maps, 3, 3}, 1, 1, false)});
      h = g.add(round % 4 == 0 ? "Relu" : "LeakyRelu", {h});
    } else if (round % 4 == 1) {
      h = g.add("Sigmoid", {h});
    }
    g.add("Flatten", {h}, {}, "y");
    g.outputs.push_back({"y", DType::f32, {}, {}, false});
    const Tensor x = t({5, channels, image[0], image[1]});
    const std::string why = agree(g, x, 3e-5);
    EXPECT_NE(why.find("winograd"), std::string::npos) << why;
    const auto whole = run(g, {x}, {});
    const auto part = run(g, {x.rows(2, 2)}, {});
    ASSERT_EQ(whole.size() + part.size(), 2U);
    EXPECT_TRUE(equal_bits(part[0], whole[0].rows(2, 2))) << "round " << round << ", seed " << seed_;
  }
}

// Pools of two by two go into the convolution before them, whichever kernel that is; odd last rows and columns are left out.
TEST_F(ChannelsLast, PooledConvolutionsAgreeWhateverTheImage) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP();
  const auto below = [&](std::uint64_t n) { return static_cast<std::int64_t>(random_.below(n)); };
  const char* kinds[] = {"of one channel", "winograd", "convolution, packed"};
  for (int round = 0; round < 24; ++round) {
    const int kind = round % 3;
    const std::int64_t channels = kind == 0 ? 1 : (kind == 1 ? 16 + 8 * below(3) : 2 + below(9));
    const std::int64_t maps = kind == 1 ? 16 + 8 * below(4) : 1 + below(40);
    const Shape image = {12 + below(8), 12 + below(8)};
    const Ints pads = {below(3), below(2), below(2), below(3)};
    Graph g;
    g.add_input("x", DType::f32, {-1, channels, image[0], image[1]});
    const std::int64_t side = kind == 2 ? 1 + below(5) : 3;
    std::vector<std::string> inputs = {"x", g.add_initializer("w", t({maps, channels, side, 3}, -0.3, 0.3))};
    if (round % 4 != 0) inputs.push_back(weights(g, {maps}));
    std::string h = g.add("Conv", inputs, {{"pads", pads}, {"strides", kind == 2 ? Ints{1 + below(2), 1 + below(2)} : Ints{1, 1}}});
    if (round % 2 == 0) h = g.add(kind != 0 && round % 4 == 0 ? "LeakyRelu" : "Relu", {h});
    h = g.add("MaxPool", {h}, {{"kernel_shape", Ints{2, 2}}, {"strides", Ints{2, 2}}});
    g.add("Flatten", {h}, {}, "y");
    g.outputs.push_back({"y", DType::f32, {}, {}, false});
    Tensor x = t({5, channels, image[0], image[1]});
    const std::string why = agree(g, x, 3e-5);
    EXPECT_NE(why.find(kinds[kind]), std::string::npos) << why;
    EXPECT_EQ(why.find("(MaxPool)"), std::string::npos) << why;
    const auto whole = run(g, {x}, {});
    const auto part = run(g, {x.rows(2, 2)}, {});
    ASSERT_EQ(whole.size() + part.size(), 2U);
    EXPECT_TRUE(equal_bits(part[0], whole[0].rows(2, 2))) << "round " << round << ", seed " << seed_;
    // A pixel that is no number makes the results that read it none: the pool does not lose it.
    x.mutable_data<float>()[x.elements() / 10] = std::nanf("");
    const auto none = run(g, {x}, {});
    const auto plain = run(g, {x}, {.backends = {&reference_backend()}, .fold = false, .fuse = false});
    for (std::size_t i = 0; i < plain[0].elements(); ++i) {
      const bool lost = std::isnan(plain[0].data<float>()[i]) && !std::isnan(none[0].data<float>()[i]);
      ASSERT_FALSE(lost) << "round " << round << " at " << i << ", seed " << seed_;
    }
  }
}

TEST_F(ChannelsLast, FlattenedImagesAreReadAsTheyLie) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP();
  for (const bool gemm : {false, true}) {
    Graph g;
    g.add_input("x", DType::f32, {-1, 1, 10, 13});
    const std::string h = g.add("MaxPool", {conv(g, "x", {6, 1, 3, 3})}, {{"kernel_shape", Ints{3, 2}}});
    if (gemm) {
      const std::string flat = g.add("Flatten", {h});
      g.add("Gemm", {flat, weights(g, {5, 6 * 8 * 12}), weights(g, {5})}, {{"transB", std::int64_t{1}}}, "y");
    } else {
      const std::string flat = g.add("Reshape", {h, g.add_initializer("sizes", Tensor::of<std::int64_t>({2}, {0, -1}))});
      g.add("MatMul", {flat, weights(g, {6 * 8 * 12, 5})}, {}, "y");
    }
    g.outputs.push_back({"y", DType::f32, {}, {}, false});
    const std::string why = agree(g, t({3, 1, 10, 13}));
    EXPECT_EQ(why.find("(Transpose)"), std::string::npos) << why;
  }
}

// Where sizes are open, what fits at one of them is no rule.
TEST_F(ChannelsLast, ImagesOfOpenSizesAreFlattenedAsWritten) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP();
  Graph g;
  g.add_input("x", DType::f32, {-1, 1, -1, -1}).symbols = {"N", "", "H", "W"};
  const std::string h = g.add("Relu", {conv(g, "x", {6, 1, 3, 3})});
  const std::string flat = g.add("Reshape", {h, g.add_initializer("sizes", Tensor::of<std::int64_t>({2}, {-1, 7 * 7 * 6}))});
  g.add("MatMul", {flat, weights(g, {7 * 7 * 6, 5})}, {}, "y");
  g.outputs.push_back({"y", DType::f32, {}, {}, false});
  agree(g, t({2, 1, 7, 7}));
  agree(g, t({2, 1, 14, 14}));
}

TEST_F(ChannelsLast, PoolsThatDoNotFitAreRefusedWithinConvolutionsToo) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP();
  Graph g;
  g.add_input("x", DType::f32, {-1, 1, -1, -1}).symbols = {"N", "", "H", "W"};
  const std::string h = g.add("Conv", {"x", weights(g, {16, 1, 3, 3})});
  g.add("MaxPool", {h}, {{"kernel_shape", Ints{2, 2}}, {"strides", Ints{2, 2}}}, "y");
  g.outputs.push_back({"y", DType::f32, {}, {}, false});
  agree(g, t({1, 1, 9, 8}));
  const auto compiled = compile(g, {});
  ASSERT_TRUE(compiled);
  Executor executor(*compiled);
  std::vector<Tensor> outputs;
  const auto status = executor.run(std::vector<Tensor>{t({1, 1, 3, 5})}, outputs);
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("does not fit"), std::string::npos) << status.error().message;
}

TEST_F(ChannelsLast, TransposesAgree) {
  for (const Shape& shape : {Shape{2, 3, 4, 5}, Shape{1, 17, 9, 3}, Shape{2, 8, 16, 8}, Shape{3, 1, 33, 2}}) {
    Ints perm = {0, 1, 2, 3};
    do {
      Graph g;
      g.add_input("x", DType::f32, shape);
      g.add("Transpose", {"x"}, {{"perm", perm}}, "y");
      g.outputs.push_back({"y", DType::f32, {}, {}, false});
      const Tensor x = t(shape);
      const auto fast = run(g, {x}, {});
      const auto plain = run(g, {x}, {.backends = {&reference_backend()}});
      ASSERT_EQ(fast.size() + plain.size(), 2U);
      EXPECT_TRUE(equal_bits(fast[0], plain[0])) << to_string(shape) << format(" to {} {} {} {}", perm[0], perm[1], perm[2], perm[3]);
    } while (std::ranges::next_permutation(perm).found);
  }
}

}  // namespace
}  // namespace falaj::kernels
