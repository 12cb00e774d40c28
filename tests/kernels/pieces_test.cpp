// A batch that goes through a plan a few rows at a time: which nodes may, that answers are the same bits as in one go, and what goes wrong
// in a row is told as before.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "kernels/compress/quantize.hpp"
#include "kernels/plan.hpp"
#include "kernels/rows_apart.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using testing::as_f32;
using testing::random_tensor;
using Ints = std::vector<std::int64_t>;
using Names = std::vector<std::string>;

class PiecesTest : public testing::Seeded {
 protected:
  Tensor f32(const Shape& shape, double low = -1, double high = 1) { return as_f32(random_tensor(random_, shape, low, high)); }
};

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() && (a.bytes() == 0 || std::memcmp(a.raw(), b.raw(), a.bytes()) == 0);
}

// Index `row` of the first dimension.
Tensor row_of(const Tensor& t, std::int64_t row) {
  Shape shape = t.shape();
  shape[0] = 1;
  const std::size_t bytes = t.bytes() / static_cast<std::size_t>(t.shape()[0]);
  return Tensor::const_view(t.dtype(), shape, static_cast<const std::byte*>(t.raw()) + static_cast<std::size_t>(row) * bytes);
}

// --- which nodes ------------------------------------------------------------------------------------------------------------------

// The samples of every op, with any choice of inputs that may hold rows: where the rule says so, a row alone gives what it gave among
// others.
TEST_F(PiecesTest, NodesThatAreSaidToComputeEachRowForItselfDo) {
  std::set<std::string> confirmed;
  for (const auto& sample : testing::op_cases(random_)) {
    if (find_op(sample.node.domain, sample.node.op)->eager != nullptr || sample.inputs.empty()) continue;
    for (unsigned chosen = 1; chosen < 1U << std::min<std::size_t>(sample.inputs.size(), 5); ++chosen) {
      std::vector<ValueType> types;
      std::array<bool, 64> apart{};
      std::int64_t rows = 0;
      for (std::size_t i = 0; i < sample.inputs.size(); ++i) {
        const Tensor& input = sample.inputs[i];
        apart[i] = i < 5 && (chosen >> i & 1U) != 0 && !input.empty() && !input.shape().empty();
        if (apart[i] && rows == 0) rows = input.shape()[0];
        types.push_back(input.empty() ? ValueType{} : ValueType{input.dtype(), input.shape(), apart[i] ? nullptr : &input});
      }
      if (rows < 2) continue;
      auto outputs = infer_node(sample.node, types, kOpset);
      if (!outputs || !rows_apart({{sample.node, types, kOpset}, {apart.data(), types.size()}, *outputs})) continue;
      const auto whole = run_reference(sample.node, sample.inputs);
      ASSERT_TRUE(whole.has_value()) << describe(sample.node);
      for (std::int64_t row = 0; row < rows; ++row) {
        std::vector<Tensor> inputs = sample.inputs;
        for (std::size_t i = 0; i < inputs.size(); ++i) {
          if (apart[i]) inputs[i] = row_of(inputs[i], row);
        }
        const auto alone = run_reference(sample.node, inputs);
        ASSERT_TRUE(alone.has_value()) << describe(sample.node) << ": " << alone.error().message;
        for (std::size_t k = 0; k < alone->size(); ++k) {
          if (sample.node.outputs[k].empty()) continue;
          EXPECT_TRUE(same_bytes((*alone)[k], row_of((*whole)[k], row)))
              << describe(sample.node) << ", row " << row << ", inputs " << chosen;
        }
      }
      confirmed.insert(sample.node.domain + sample.node.op);
    }
  }
  EXPECT_GE(confirmed.size(), 90U);  // rules are reached, not only refusals
}

// --- whole graphs -----------------------------------------------------------------------------------------------------------------

// Graphs that grow node by node, out of values that hold rows.
class Grower {
 public:
  Grower(Random& random, bool images) : random_(random) {
    size_ = images ? Shape{-1, 3, 8, 8} : Shape{-1, 6, 8};
    graph.add_input("x", DType::f32, size_);
    values_ = {"x"};
  }
  Graph done() {
    const std::string flat = graph.add("Flatten", Names{values_.back()});
    graph.add("Add", Names{flat, flat}, {}, "y");
    graph.add_output("y", DType::f32, {-1, -1});
    graph.add("Relu", Names{values_[values_.size() / 2]}, {}, "z");  // what was made on the way is wanted, too
    Shape open = size_;
    for (std::size_t d = 0; d < open.rank(); ++d) open[d] = -1;
    graph.add_output("z", DType::f32, open);
    return std::move(graph);
  }
  void image_step() {
    const std::int64_t channels = size_[1];
    const std::string x = values_.back();
    switch (random_.below(6)) {
      case 0: {
        const std::int64_t maps = 1 + static_cast<std::int64_t>(random_.below(20));
        grow(graph.add("Conv", Names{x, weight({maps, channels, 3, 3}), weight({maps})}, {{"pads", Ints{1, 1, 1, 1}}}));
        values_ = {values_.back()};
        size_[1] = maps;
        return;
      }
      case 1:
        return grow(graph.add("Add", Names{graph.add("Conv", Names{x, weight({channels, channels, 1, 1})}), values_.front()}));
      case 2:
        return grow(graph.add("MaxPool", Names{x}, {{"kernel_shape", Ints{3, 3}}, {"pads", Ints{1, 1, 1, 1}}}));
      case 3:
        return grow(graph.add("Concat", Names{x, values_.front()}, {{"axis", std::int64_t{1}}}), 2 * channels);
      case 4:
        return grow(graph.add("Mul", Names{x, graph.add("Sigmoid", Names{graph.add("GlobalAveragePool", Names{x})})}));
      default:
        return mix(x);
    }
  }
  void token_step() {
    const std::string x = values_.back();
    switch (random_.below(7)) {
      case 0:
        return grow(graph.add("LayerNormalization", Names{x, weight({8}), weight({8})}));
      case 1: {
        const std::string wide = graph.add("Gelu", Names{graph.add("MatMul", Names{x, weight({8, 40})})});
        return grow(graph.add("Add", Names{graph.add("MatMul", Names{wide, weight({40, 8})}), values_.front()}));
      }
      case 2: {  // to rows of tokens and back, by sizes that the model computes
        const std::string flat = graph.add("Reshape", Names{x, ints({-1, 8})});
        const std::string product = graph.add("Gemm", Names{flat, weight({8, 8}), weight({8})});
        return grow(graph.add("Reshape", Names{product, graph.add("Shape", Names{x})}));
      }
      case 3: {
        const std::string turned = graph.add("Transpose", Names{x}, {{"perm", Ints{0, 2, 1}}});
        const std::string scores = graph.add("Softmax", Names{graph.add("MatMul", Names{x, turned})}, {{"axis", std::int64_t{-1}}});
        return grow(graph.add("MatMul", Names{scores, x}));
      }
      case 4: {
        Node split{"Split", "", "", {x, ints({3, 5})}, {graph.fresh("left"), ""}, {{"axis", std::int64_t{2}}}};
        split.outputs[1] = graph.fresh("right");
        const auto halves = graph.add_node(split).outputs;
        return grow(graph.add("Concat", Names{halves[1], halves[0]}, {{"axis", std::int64_t{2}}}));
      }
      case 5:
        return grow(graph.add("Sub", Names{x, graph.add("ReduceMean", Names{x}, {{"axes", Ints{1}}})}));
      default:
        return mix(x);
    }
  }
  Graph graph;

 private:
  // Now and then rows see each other.
  void mix(const std::string& x) {
    if (random_.chance(0.5)) return grow(graph.add("Tanh", Names{x}));
    grow(graph.add("Sub", Names{x, graph.add("ReduceMax", Names{x}, {{"axes", Ints{0}}})}));
  }
  void grow(std::string value, std::int64_t channels = 0) {
    if (channels > 0) {
      size_[1] = channels;
      values_.clear();
    }
    values_.push_back(std::move(value));
  }
  std::string weight(const Shape& shape) {
    return graph.add_initializer(graph.fresh("w"), as_f32(random_tensor(random_, shape, -0.5, 0.5)));
  }
  std::string ints(const Ints& values) {
    return graph.add_initializer(
        graph.fresh("i"), Tensor::of<std::int64_t>({static_cast<std::int64_t>(values.size())}, std::span<const std::int64_t>(values)));
  }
  Random& random_;
  Shape size_;
  std::vector<std::string> values_;  // of size_
};

struct Ran {
  std::vector<Tensor> outputs;
  std::string why;
  std::size_t arena_bytes = 0;
};
Ran run(const Graph& graph, const Tensor& x, CompileOptions options, std::size_t threads = 1) {
  const auto compiled = compile(graph, std::move(options));
  EXPECT_TRUE(compiled.has_value()) << compiled.error().message;
  if (!compiled) return {};
  Executor executor(*compiled, threads);
  Ran ran;
  for (int twice = 0; twice < 2; ++twice) {
    const auto status = executor.run(std::span(&x, 1), ran.outputs);
    EXPECT_TRUE(status.has_value()) << status.error().message;
  }
  ran.why = (*compiled)->why(x.shape()[0]).value_or("");
  ran.arena_bytes = executor.stats().arena_bytes;
  return ran;
}

TEST_F(PiecesTest, AnswersAreTheBitsOfTheWholeBatch) {
  int in_pieces = 0;
  for (int round = 0; round < 60; ++round) {
    const bool images = random_.chance(0.5);
    Grower grower(random_, images);
    for (std::int64_t i = up_to(8); i > 0; --i) images ? grower.image_step() : grower.token_step();
    Graph graph = grower.done();
    const std::int64_t batch = 1 + up_to(16);
    const Tensor x = f32(images ? Shape{batch, 3, 8, 8} : Shape{batch, 6, 8});
    CompileOptions options;
    const auto kind = random_.below(4);
    if (kind == 0) options.backends = {&bf16_backend(), &cpu_backend(), &reference_backend()};
    if (kind == 1) options.backends = {&reference_backend()};
    if (kind == 2) {
      auto quantised = quantize_all(graph, std::span(&x, 1));  // refused where there is no product
      if (quantised) graph = std::move(*quantised);
    }
    options.piece_bytes = 0;
    const Ran whole = run(graph, x, options);
    EXPECT_EQ(whole.why.find("rows at a time"), std::string::npos);
    const std::size_t sizes[] = {1, 1500, 6000};
    options.piece_bytes = sizes[random_.below(3)];
    options.threads = static_cast<std::size_t>(up_to(3));
    const std::size_t threads = random_.chance(0.8) ? options.threads : 2;
    const Ran cut = run(graph, x, options, threads);
    in_pieces += cut.why.find("rows at a time") != std::string::npos ? 1 : 0;
    ASSERT_EQ(whole.outputs.size(), cut.outputs.size());
    for (std::size_t i = 0; i < whole.outputs.size(); ++i)
      EXPECT_TRUE(same_bytes(whole.outputs[i], cut.outputs[i])) << "round " << round << ", output " << i << "\n" << cut.why;
  }
  EXPECT_GE(in_pieces, 12);
}

TEST_F(PiecesTest, LargeBatchesNeedTheMemoryOfAPieceByThemselves) {
  Graph graph;
  std::string x = graph.add_input("x", DType::f32, {-1, 8, 32, 32}).name;
  for (int i = 0; i < 4; ++i) {
    const std::string w = graph.add_initializer(graph.fresh("w"), f32({8, 8, 3, 3}));
    x = graph.add("Add", Names{graph.add("Relu", Names{graph.add("Conv", Names{x, w}, {{"pads", Ints{1, 1, 1, 1}}})}), x});
  }
  graph.add("GlobalAveragePool", Names{x}, {}, "y");
  graph.add_output("y", DType::f32, {-1, 8, 1, 1});
  CompileOptions options;
  const Tensor batch = f32({96, 8, 32, 32});
  const Ran cut = run(graph, batch, options);
  options.piece_bytes = 0;
  const Ran whole = run(graph, batch, options);
  EXPECT_TRUE(same_bytes(cut.outputs.at(0), whole.outputs.at(0)));
  EXPECT_LT(cut.arena_bytes * 10, whole.arena_bytes) << cut.why;
}

TEST_F(PiecesTest, WhatIsWrongInARowIsToldAsForTheWholeBatch) {
  Graph graph;
  graph.add_input("x", DType::i64, {-1, 4});
  const std::string table = graph.add_initializer("table", f32({10, 3}));
  graph.add_node({"Gather", "", "look", {table, "x"}, {"rows"}, {}});
  graph.add("Relu", Names{graph.add("Neg", Names{"rows"})}, {}, "y");
  graph.add_output("y", DType::f32, {-1, 4, 3});
  Tensor x(DType::i64, {64, 4});
  x.mutable_data<std::int64_t>()[200] = 77;
  x.mutable_data<std::int64_t>()[250] = 99;
  for (const std::size_t threads : {std::size_t{1}, std::size_t{3}}) {
    CompileOptions options;
    options.piece_bytes = 1;
    options.threads = threads;
    const auto compiled = compile(graph, options);
    ASSERT_TRUE(compiled.has_value());
    Executor executor(*compiled, threads);
    std::vector<Tensor> outputs;
    const auto status = executor.run(std::span(&x, 1), outputs);
    ASSERT_FALSE(status.has_value());
    EXPECT_NE(status.error().message.find("'look'"), std::string::npos) << status.error().message;
    EXPECT_NE(status.error().message.find("77"), std::string::npos) << status.error().message;
    x.mutable_data<std::int64_t>()[200] = x.mutable_data<std::int64_t>()[250] = 1;
    EXPECT_TRUE(executor.run(std::span(&x, 1), outputs).has_value());  // and is forgotten
    x.mutable_data<std::int64_t>()[200] = 77;
    x.mutable_data<std::int64_t>()[250] = 99;
  }
}

}  // namespace
}  // namespace falaj::kernels
