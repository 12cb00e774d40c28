// Plans and executors: places in the arena, fusion, aliases, batches, outputs in the caller's memory, no allocation in a run.
#include "kernels/plan.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>

#include "kernels/memory.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace {
std::atomic<std::uint64_t> allocations{0};
}

#ifndef FALAJ_SANITIZED  // a sanitizer has its own
// Counts what this program allocates. Not inlined: GCC would then see free() meet operator new, and warn.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes > 0 ? bytes : 1)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  ++allocations;
  auto align = static_cast<std::size_t>(alignment);
  if (void* p = std::aligned_alloc(align, (bytes + align) / align * align)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
#endif

namespace falaj::kernels {
namespace {

using testing::as_f32;
using testing::random_tensor;

Graph mlp(Random& random, std::vector<std::int64_t> sizes, std::string_view activation) {
  Graph g;
  g.add_input("x", DType::f32, {-1, sizes.front()});
  std::string h = "x";
  for (std::size_t i = 1; i < sizes.size(); ++i) {
    std::string w = g.add_initializer("w" + std::to_string(i), as_f32(random_tensor(random, {sizes[i - 1], sizes[i]})));
    std::string b = g.add_initializer("b" + std::to_string(i), as_f32(random_tensor(random, {sizes[i]})));
    h = g.add("Add", {g.add("MatMul", {h, w}), b});
    if (i + 1 < sizes.size()) h = g.add(activation, {h});
  }
  g.add("Identity", {h}, {}, "y");
  g.add_output("y", DType::f32, {-1, sizes.back()});
  return g;
}

std::shared_ptr<const Compiled> compiled(Graph g, CompileOptions options = {}) {
  auto c = compile(std::move(g), std::move(options));
  EXPECT_TRUE(c.has_value()) << c.error().message;
  return c ? *c : nullptr;
}

TEST(MemoryPlan, LiveBlocksNeverOverlap) {
  Random random(testing::test_seed());
  for (int round = 0; round < 200; ++round) {
    std::vector<Block> blocks(1 + random.below(60));
    std::size_t total = 0;
    for (Block& b : blocks) {
      b.bytes = random.below(5) == 0 ? 0 : random.below(5000);
      b.first = random.below(40);
      b.last = b.first + random.below(10);
      total += (b.bytes + 127) / 64 * 64;
    }
    Placing placing = place(blocks);
    EXPECT_LE(placing.bytes, total);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      EXPECT_EQ(placing.offsets[i] % 64, 0U);
      EXPECT_LE(placing.offsets[i] + blocks[i].bytes, placing.bytes);
      for (std::size_t j = 0; j < i; ++j) {
        bool together = blocks[i].first <= blocks[j].last && blocks[j].first <= blocks[i].last;
        bool apart =
            placing.offsets[i] + blocks[i].bytes <= placing.offsets[j] || placing.offsets[j] + blocks[j].bytes <= placing.offsets[i];
        ASSERT_TRUE(!together || apart) << "seed " << testing::test_seed() << ", round " << round;
      }
    }
  }
}

// What a training step of products looks like: the largest first leaves holes, and nothing has to be left.
TEST(MemoryPlan, LeavesNoHolesWhereNoneNeedBe) {
  const std::vector<Block> blocks = {{2048, 0, 17}, {2048, 1, 13},  {1024, 2, 9},   {1024, 7, 12},  {2304, 10, 10}, {2048, 11, 16},
                                     {512, 11, 11}, {2560, 14, 14}, {2048, 15, 19}, {1024, 15, 15}, {768, 18, 18}};
  EXPECT_EQ(place(blocks).bytes, 2048U + 2048 + 1024 + 2048 + 512) << "what lives at step 11";
}

TEST(Plan, FusesBiasAndActivationAndSeesThroughAliases) {
  Random random(testing::test_seed());
  auto c = compiled(mlp(random, {6, 5, 4, 2}, "Relu"));
  EXPECT_EQ(c->graph().nodes.size(), 4U);  // three products and the Identity, which needs no launch
  auto why = c->why(3);
  ASSERT_TRUE(why.has_value());
  EXPECT_EQ(why->rfind("3 launches", 0), 0U) << *why;
}

TEST(Plan, FusedAndPlainAgree) {
  Random random(testing::test_seed());
  for (const char* activation : {"Relu", "Tanh", "Sigmoid", "LeakyRelu", "Gelu", "Softplus"}) {
    Graph g = mlp(random, {7, 33, 2}, activation);
    Executor fast(compiled(g));
    Executor slow(compiled(g, {.backends = {&reference_backend()}, .fold = false, .fuse = false}));
    std::vector<Tensor> inputs = {as_f32(random_tensor(random, {11, 7}))};
    std::vector<Tensor> a;
    std::vector<Tensor> b;
    ASSERT_TRUE(fast.run(inputs, a).has_value());
    ASSERT_TRUE(slow.run(inputs, b).has_value());
    for (std::size_t i = 0; i < a[0].elements(); ++i) ASSERT_NEAR(a[0].data<float>()[i], b[0].data<float>()[i], 1e-4F) << activation;
  }
}

TEST(Executor, ARowsBitsDoNotDependOnItsBatch) {
  Random random(testing::test_seed());
  for (const char* activation : {"Relu", "Tanh", "Sigmoid", "Gelu"}) {
    auto c = compiled(mlp(random, {19, 37, 64, 3}, activation));
    Executor executor(c);
    Tensor all = as_f32(random_tensor(random, {23, 19}));
    std::vector<Tensor> whole;
    ASSERT_TRUE(executor.run(std::vector<Tensor>{all}, whole).has_value());
    for (std::int64_t batch = 1; batch < 14; ++batch) {
      std::int64_t first = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(23 - batch)));
      std::vector<Tensor> part;
      ASSERT_TRUE(executor.run(std::vector<Tensor>{all.rows(first, batch)}, part).has_value());
      EXPECT_TRUE(equal_bits(part[0], whole[0].rows(first, batch))) << activation << ", batch " << batch;
    }
  }
}

TEST(Executor, AllocatesNothingInARunOnceItKnowsTheShape) {
#ifdef FALAJ_SANITIZED
  GTEST_SKIP() << "the sanitizer counts for itself";
#endif
  Random random(testing::test_seed());
  Executor executor(compiled(mlp(random, {24, 64, 64, 2}, "Relu")));
  std::vector<Tensor> inputs = {as_f32(random_tensor(random, {5, 24}))};
  std::vector<Tensor> outputs;
  ASSERT_TRUE(executor.run(inputs, outputs).has_value());
  const void* where = outputs[0].raw();
  std::uint64_t before = allocations;
  for (int i = 0; i < 10; ++i) {
    if (!executor.run(inputs, outputs).has_value()) std::abort();
  }
  EXPECT_EQ(allocations - before, 0U);
  EXPECT_EQ(outputs[0].raw(), where);
}

TEST(Executor, WritesIntoTheCallersMemoryAndReadsParametersThere) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 2});
  g.add_initializer("w", Tensor::of<float>({2, 1}, {1, 2}));
  g.add("MatMul", {"x", "w"}, {}, "y");
  g.add_output("y", DType::f32, {-1, 1});
  std::vector<std::string> names = {"w"};
  ASSERT_TRUE(promote_to_inputs(g, names).has_value());
  Executor executor(compiled(g, {.batch_invariant = false}));
  std::vector<float> w = {3, 4};
  std::vector<float> y(2, 0.0F);
  std::vector<Tensor> inputs = {Tensor::of<float>({2, 2}, {1, 0, 0, 1}), Tensor::view(DType::f32, {2, 1}, w.data())};
  std::vector<Tensor> outputs = {Tensor::view(DType::f32, {2, 1}, y.data())};
  ASSERT_TRUE(executor.run(inputs, outputs).has_value());
  EXPECT_EQ(y, (std::vector<float>{3, 4}));
  w = {5, 6};  // the caller's step: no copy of the old value is left
  ASSERT_TRUE(executor.run(inputs, outputs).has_value());
  EXPECT_EQ(y, (std::vector<float>{5, 6}));
}

TEST(Executor, OutputsThatAreInputsConstantsOrEachOther) {
  Graph g;
  g.add_input("x", DType::f32, {-1, 2});
  g.add_initializer("c", Tensor::vector<float>({7}));
  g.add("Identity", {"x"}, {}, "same");
  g.add("Relu", {"x"}, {}, "relu");
  g.add("Reshape", {"relu", g.add_initializer("flat", Tensor::vector<std::int64_t>({-1}))}, {}, "view");
  g.add_output("same", DType::f32, {-1, 2});
  g.add_output("c", DType::f32, {1});
  g.add_output("relu", DType::f32, {-1, 2});
  g.add_output("view", DType::f32, {-1}, "M");
  Executor executor(compiled(g));
  std::vector<Tensor> outputs;
  ASSERT_TRUE(executor.run(std::vector<Tensor>{Tensor::of<float>({1, 2}, {-1, 2})}, outputs).has_value());
  EXPECT_EQ(outputs[0].data<float>()[0], -1.0F);
  EXPECT_EQ(outputs[1].data<float>()[0], 7.0F);
  EXPECT_EQ(outputs[2].data<float>()[1], 2.0F);
  EXPECT_EQ(outputs[3].data<float>()[0], 0.0F);
  EXPECT_NE(outputs[2].raw(), outputs[3].raw());
}

TEST(Executor, RawColumnsWithStringsThroughOneGraph) {
  Graph g;
  g.add_input("age", DType::f32, {-1, 1});
  g.add_input("colour", DType::string, {-1, 1});
  std::string missing = g.add("IsNaN", {"age"});
  g.add_initializer("mean", Tensor::of<float>({1, 1}, {40}));
  std::string age = g.add("Where", {missing, "mean", "age"});
  Attributes codes = {{"keys_strings", std::vector<std::string>{"red", "blue"}},
                      {"values_int64s", std::vector<std::int64_t>{1, 2}},
                      {"default_int64", std::int64_t{0}}};
  std::string code = g.add(kOnnxMl, "LabelEncoder", {"colour"}, codes);
  std::string flat = g.add("Reshape", {code, g.add_initializer("flat", Tensor::vector<std::int64_t>({-1}))});
  std::string row = g.add("Gather", {g.add_initializer("table", Tensor::of<float>({3, 2}, {0, 0, 1, 10, 2, 20})), flat});
  g.add("Concat", {age, row}, Attributes{{"axis", std::int64_t{1}}}, "y");
  g.add_output("y", DType::f32, {-1, 3});
  Executor executor(compiled(g));
  std::vector<Tensor> outputs;
  Tensor ages = Tensor::of<float>({3, 1}, {20, std::nanf(""), 30});
  Tensor colours = Tensor::of<std::string>({3, 1}, {"blue", "?", "red"});
  ASSERT_TRUE(executor.run(std::vector<Tensor>{ages, colours}, outputs).has_value());
  auto y = outputs[0].data<float>();
  EXPECT_EQ(std::vector<float>(y.begin(), y.end()), (std::vector<float>{20, 2, 20, 40, 0, 0, 30, 1, 10}));
}

TEST(Executor, WrongInputsAreNamed) {
  Random random(1);
  Graph g = mlp(random, {3, 2}, "Relu");
  g.add_input("other", DType::f32, {-1, 1});
  Executor executor(compiled(g));
  std::vector<Tensor> outputs;
  auto expect = [&](std::vector<Tensor> inputs, std::string_view part) {
    auto status = executor.run(inputs, outputs);
    ASSERT_FALSE(status.has_value());
    EXPECT_NE(status.error().message.find(part), std::string::npos) << status.error().message;
  };
  expect({Tensor(DType::f32, {2, 3})}, "takes 2");
  expect({Tensor(DType::f32, {2, 4}), Tensor(DType::f32, {2, 1})}, "'x'");
  expect({Tensor(DType::f32, {2, 3}), Tensor(DType::f32, {5, 1})}, "N = 5");
  expect({Tensor(DType::f64, {2, 3}), Tensor(DType::f32, {2, 1})}, "float64");
}

TEST(Compile, WeightsArePackedOnceForAllBatches) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP();
  Random random(1);
  auto c = compiled(mlp(random, {24, 64, 2}, "Relu"));
  ASSERT_TRUE(c->why(1).has_value());
  std::size_t bytes = c->packed()->bytes();
  EXPECT_GT(bytes, 0U);
  ASSERT_TRUE(c->why(64).has_value());
  EXPECT_EQ(c->packed()->bytes(), bytes);
}

TEST(Compile, GraphErrorsNameTheNode) {
  auto message = [](const Graph& g) {
    auto c = compile(g);
    return c ? std::string() : c.error().message;
  };
  Graph g;
  g.add_input("x", DType::f32, {-1, 2});
  g.add_output("y", DType::f32, {-1, 2});
  EXPECT_NE(message(g).find("'y'"), std::string::npos);
  g.add("Add", {"x", "nowhere"}, {}, "y");
  EXPECT_NE(message(g).find("'nowhere'"), std::string::npos) << message(g);
  g.nodes[0].inputs[1] = "z";
  g.add("Relu", {"y"}, {}, "z");
  EXPECT_NE(message(g).find("cycle"), std::string::npos) << message(g);
  g.nodes[1].inputs[0] = "x";
  EXPECT_EQ(message(g), "");
  g.nodes[1].op = "Frobnicate";
  EXPECT_NE(message(g).find("Frobnicate"), std::string::npos) << message(g);
  g.nodes[1] = g.nodes[0];
  EXPECT_NE(message(g).find("defined twice"), std::string::npos) << message(g);
}

}  // namespace
}  // namespace falaj::kernels
