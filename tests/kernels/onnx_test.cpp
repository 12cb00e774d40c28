// ONNX files: what is written is read again; an imported file comes back unchanged but for initialisers and metadata; bad files give
// errors that name what is wrong.
#include "kernels/onnx/onnx.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/plan.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

Graph small_model() {
  Graph g;
  g.name = "small";
  g.add_input("x", DType::f32, {-1, 2});
  g.add_input("colour", DType::string, {-1, 1});
  g.add_initializer("w", Tensor::of<float>({2, 2}, {1, 2, 3, 4}));
  g.add_initializer("b", Tensor::vector<float>({0.5F, -1}));
  Attributes codes = {
      {"keys_strings", std::vector<std::string>{"red", "blue"}}, {"values_floats", std::vector<float>{1, 2}}, {"default_float", 0.0F}};
  std::string code = g.add(kOnnxMl, "LabelEncoder", {"colour"}, codes);
  std::string h = g.add("Relu", {g.add("Gemm", {"x", "w", "b"}, Attributes{{"transB", std::int64_t{1}}, {"alpha", 0.5F}})});
  std::string pooled = g.add("ReduceSum", {h, g.add_initializer("axes", Tensor::vector<std::int64_t>({1}))});
  g.add("Add", {pooled, code}, {}, "y");
  g.add_output("y", DType::f32, {-1, 1});
  g.metadata["falaj.views"] = "none";
  return g;
}

Bytes exported(const Graph& g) {
  auto bytes = export_onnx(g);
  EXPECT_TRUE(bytes.has_value()) << bytes.error().message;
  return bytes ? *bytes : Bytes{};
}

std::vector<Tensor> outputs_of(const Graph& g) {
  auto compiled = compile(g);
  EXPECT_TRUE(compiled.has_value()) << compiled.error().message;
  Executor executor(*compiled);
  std::vector<Tensor> inputs = {Tensor::of<float>({2, 2}, {1, 2, -3, 4}), Tensor::of<std::string>({2, 1}, {"blue", "?"})};
  std::vector<Tensor> outputs;
  auto status = executor.run(inputs, outputs);
  EXPECT_TRUE(status.has_value()) << status.error().message;
  return outputs;
}

TEST(Onnx, WhatIsWrittenIsReadAgain) {
  Graph g = small_model();
  Bytes bytes = exported(g);
  auto again = import_onnx(bytes, "small.onnx");
  ASSERT_TRUE(again.has_value()) << again.error().message;
  EXPECT_EQ(again->metadata, g.metadata);
  EXPECT_EQ(again->nodes.size(), g.nodes.size());
  EXPECT_EQ(again->inputs[0].symbols[0], "N");
  EXPECT_TRUE(equal_bits(outputs_of(*again)[0], outputs_of(g)[0]));
  EXPECT_EQ(exported(*again), bytes);
}

TEST(Onnx, ExportOfAnImportChangesInitialisersAndMetadataOnly) {
  Bytes bytes = exported(small_model());
  auto g = import_onnx(bytes, "small.onnx");
  ASSERT_TRUE(g.has_value());
  g->initializers["w"] = Tensor::of<float>({2, 2}, {9, 8, 7, 6});
  g->metadata["falaj.views"] = "applicants";
  Bytes changed = exported(*g);
  auto back = import_onnx(changed, "changed.onnx");
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->initializers.at("w").data<float>()[0], 9.0F);
  EXPECT_EQ(back->metadata.at("falaj.views"), "applicants");
  back->initializers["w"] = Tensor::of<float>({2, 2}, {1, 2, 3, 4});
  back->metadata["falaj.views"] = "none";
  EXPECT_EQ(exported(*back), bytes);
  g->nodes.pop_back();
  EXPECT_FALSE(export_onnx(*g).has_value());
  g = import_onnx(bytes, "small.onnx");
  g->initializers["w"] = Tensor::of<float>({3, 2}, {9, 8, 7, 6, 5, 4});
  EXPECT_FALSE(export_onnx(*g).has_value());
}

TEST(Onnx, TrainingOpsAreNotExported) {
  Graph g = small_model();
  g.add(kFalaj, "MeanSquare", {"y", "y"}, {}, "loss");
  auto bytes = export_onnx(g);
  ASSERT_FALSE(bytes.has_value());
  EXPECT_NE(bytes.error().message.find("MeanSquare"), std::string::npos);
}

TEST(Onnx, TruncatedAtAnyByteIsRefused) {
  Bytes bytes = exported(small_model());
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    auto g = import_onnx(ByteView(bytes).first(n), "cut.onnx");
    // A cut between fields of the model leaves a shorter model: only then may it be read, as far as its graph goes.
    EXPECT_TRUE(g.has_value() || g.error().message.find("cut.onnx") != std::string::npos);
  }
  auto half = import_onnx(ByteView(bytes).first(bytes.size() / 2), "cut.onnx");
  ASSERT_FALSE(half.has_value());
  EXPECT_EQ(half.error().code, ErrorCode::corrupt);
  EXPECT_NE(half.error().message.find("truncated"), std::string::npos) << half.error().message;
}

TEST(Onnx, NoFlippedByteDoesHarm) {
  Random random(testing::test_seed());
  Bytes bytes = exported(small_model());
  for (int i = 0; i < 3000; ++i) {
    Bytes damaged = bytes;
    for (std::uint64_t k = 0; k <= random.below(3); ++k)
      damaged[random.below(damaged.size())] = static_cast<std::uint8_t>(random.below(256));
    auto g = import_onnx(damaged, "damaged.onnx");
    if (g) (void)export_onnx(*g);
  }
}

std::string import_error(Graph g) {
  auto bytes = export_onnx(g);
  if (!bytes) return bytes.error().message;
  auto read = import_onnx(*bytes, "bad.onnx");
  return read ? std::string() : read.error().message;
}

// Replaces one text by another of the same length in a file.
std::string import_with(std::string_view from, std::string_view to) {
  Bytes bytes = exported(small_model());
  auto at = std::search(bytes.begin(), bytes.end(), from.begin(), from.end());
  EXPECT_NE(at, bytes.end());
  while (at != bytes.end()) {
    std::copy(to.begin(), to.end(), at);
    at = std::search(at + 1, bytes.end(), from.begin(), from.end());
  }
  auto read = import_onnx(bytes, "bad.onnx");
  return read ? std::string() : read.error().message;
}

TEST(Onnx, ErrorsNameTheNodeAndTheRemedy) {
  EXPECT_NE(import_with("Relu", "Rexu").find("Rexu"), std::string::npos);
  EXPECT_EQ(import_with("colour", "koloro"), "");  // renamed everywhere: still a model
  Graph g = small_model();
  g.initializers["b"] = Tensor::vector<float>({1, 2, 3});
  EXPECT_NE(import_error(g).find("Gemm"), std::string::npos) << import_error(g);
  g = small_model();
  g.outputs[0].shape[1] = 5;
  EXPECT_NE(import_error(g).find("'y'"), std::string::npos) << import_error(g);
  g = small_model();
  g.opsets[""] = 5;
  EXPECT_NE(import_error(g).find("opset 5"), std::string::npos) << import_error(g);
  g = small_model();
  g.add_initializer("huge", Tensor::vector<std::int64_t>({1 << 30, 1 << 30}));
  g.add("Expand", {"y", "huge"}, {}, "z");
  g.add_output("z", DType::f32, {-1, -1});
  EXPECT_NE(import_error(g).find("Expand"), std::string::npos) << import_error(g);
  g = small_model();
  g.inputs[0].shape[1] = std::int64_t{1} << 61;
  EXPECT_NE(import_error(g).find("input 'x'"), std::string::npos) << import_error(g);
  EXPECT_FALSE(import_onnx(as_bytes("this is no model at all"), "text").has_value());
  EXPECT_FALSE(import_onnx(ByteView{}, "empty").has_value());
}

TEST(Onnx, ManyTinyPartsAreCountedBeforeMemoryIsTaken) {
  Bytes nodes;
  for (int i = 0; i < (5 << 20); ++i) {
    nodes.push_back(0x0A);  // GraphProto.node, of no bytes
    nodes.push_back(0x00);
  }
  Bytes model = {0x3A};  // ModelProto.graph
  for (std::size_t size = nodes.size(); size > 0; size >>= 7)
    model.push_back(static_cast<std::uint8_t>((size & 0x7F) | (size > 0x7F ? 0x80 : 0)));
  model.insert(model.end(), nodes.begin(), nodes.end());
  auto g = import_onnx(model, "bomb.onnx");
  ASSERT_FALSE(g.has_value());
  EXPECT_NE(g.error().message.find("parts"), std::string::npos) << g.error().message;
}

}  // namespace
}  // namespace falaj::kernels
