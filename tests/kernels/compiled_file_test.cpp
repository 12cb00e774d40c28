// Compiled models as files: what is read back answers with the same bits and packs nothing; what is damaged or for others is refused.
#include "kernels/compiled_file.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "kernels/codec.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels {
namespace {

// Bytes as a mapped file would have them: on a multiple of 64.
ModelBytes file_of(const Bytes& bytes) {
  Tensor storage(DType::u8, {static_cast<std::int64_t>(bytes.size())});
  std::ranges::copy(bytes, storage.mutable_data<std::uint8_t>().begin());
  const auto kept = std::make_shared<const Tensor>(storage);
  return {kept->data<std::uint8_t>(), kept};
}

Tensor some(const Shape& shape, std::uint64_t seed) {
  Random random(seed);
  Tensor t(DType::f32, shape);
  for (float& v : t.mutable_data<float>()) v = static_cast<float>(random.normal());
  return t;
}

// A convolution, a product and texts: what a head has to hold.
Graph model() {
  Graph g;
  g.name = "all sorts";
  g.add_input("x", DType::f32, {-1, 1, 8, 8});
  g.add_input("colour", DType::string, {-1, 1});
  const std::string image =
      g.add("Conv", {"x", g.add_initializer("k", some({16, 1, 3, 3}, 1))}, Attributes{{"pads", std::vector<std::int64_t>{1, 1, 1, 1}}});
  const std::string flat = g.add("Flatten", {g.add("Relu", {image})}, Attributes{{"axis", std::int64_t{1}}});
  const std::string h = g.add("Gemm", {flat, g.add_initializer("w", some({1024, 40}, 2)), g.add_initializer("b", some({40}, 3))});
  Attributes codes = {
      {"keys_strings", std::vector<std::string>{"red", "blue"}}, {"values_floats", std::vector<float>{1, 2}}, {"default_float", 0.5F}};
  g.add("Add", {h, g.add(kOnnxMl, "LabelEncoder", {"colour"}, codes)}, {}, "y");
  g.add_output("y", DType::f32, {-1, 40});
  g.metadata["made.by"] = "a test";
  return g;
}

std::vector<Tensor> inputs(std::int64_t batch) {
  Tensor colour(DType::string, {batch, 1});
  for (std::int64_t i = 0; i < batch; ++i) colour.mutable_data<std::string>()[static_cast<std::size_t>(i)] = i % 2 == 0 ? "blue" : "?";
  return {some({batch, 1, 8, 8}, 4), colour};
}
Tensor answer(const std::shared_ptr<const Compiled>& compiled, std::int64_t batch) {
  Executor executor(compiled);
  std::vector<Tensor> outputs;
  const auto status = executor.run(inputs(batch), outputs);
  EXPECT_TRUE(status.has_value()) << status.error().message;
  return outputs.empty() ? Tensor() : outputs[0];
}

Bytes written(const Compiled& compiled, std::string_view key = "key") {
  Bytes out;
  const auto status = write_compiled(compiled, key, [&](ByteView part) -> Status {
    out.insert(out.end(), part.begin(), part.end());
    return {};
  });
  EXPECT_TRUE(status.has_value()) << status.error().message;
  return out;
}
ErrorCode code_of(const Bytes& bytes, std::string_view key = "key") {
  const auto read = read_compiled(file_of(bytes), key, {});
  return read ? ErrorCode::failed : read.error().code;
}

TEST(CompiledFile, AnswersAsBeforeAndPacksNothing) {
  const auto compiled = compile(model()).value();
  const Tensor one = answer(compiled, 1);
  const Tensor five = answer(compiled, 5);
  const auto packed = compiled->packed()->bytes();
  ASSERT_GT(packed, 0U);
  auto read = read_compiled(file_of(written(*compiled)), "key", {});
  ASSERT_TRUE(read.has_value()) << read.error().message;
  EXPECT_EQ((*read)->packed()->bytes(), packed);
  EXPECT_TRUE(equal_bits(answer(*read, 1), one));
  EXPECT_TRUE(equal_bits(answer(*read, 5), five));
  EXPECT_EQ((*read)->packed()->bytes(), packed) << "nothing was packed anew";
  EXPECT_EQ((*read)->why(1).value(), compiled->why(1).value());
  EXPECT_EQ((*read)->graph().metadata, compiled->graph().metadata);
  EXPECT_EQ((*read)->inputs()[0].symbols, compiled->inputs()[0].symbols);
}

TEST(CompiledFile, WhatWasReadIsWrittenTheSame) {
  const auto compiled = compile(model()).value();
  answer(compiled, 3);
  const Bytes bytes = written(*compiled);
  const auto read = read_compiled(file_of(bytes), "key", {});
  ASSERT_TRUE(read.has_value()) << read.error().message;
  EXPECT_EQ(written(**read).size(), bytes.size());
  EXPECT_TRUE(equal_bits(answer(*read, 3), answer(compiled, 3)));
}

TEST(CompiledFile, AnotherKeyOrVersionIsAConflict) {
  Bytes bytes = written(*compile(model()).value());
  EXPECT_EQ(code_of(bytes, "other"), ErrorCode::conflict);
  bytes[8] ^= 1U;
  EXPECT_EQ(code_of(bytes), ErrorCode::conflict);
}

TEST(CompiledFile, EveryCutAndEveryFlippedBitOfTheHeadIsDamage) {
  const auto compiled = compile(model()).value();
  answer(compiled, 1);
  const Bytes bytes = written(*compiled);
  std::uint64_t head = 0;
  std::memcpy(&head, bytes.data() + 12, sizeof head);
  for (std::size_t size = 0; size < 20 + head; size += 1 + size / 16)
    EXPECT_EQ(code_of(Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size))), ErrorCode::corrupt) << size;
  for (std::size_t at = 20; at < 20 + head; at += 7) {
    Bytes bad = bytes;
    bad[at] ^= 0x10U;
    EXPECT_EQ(code_of(bad), ErrorCode::corrupt) << at;
  }
  Bytes cut = bytes;
  cut.resize(bytes.size() - 4096);
  EXPECT_EQ(code_of(cut), ErrorCode::corrupt) << "the last tensors are missing";
}

// A head whose checksum fits and that says anything: errors, and no more memory than the file has.
TEST(CompiledFile, AWrongHeadWithARightChecksumIsRefused) {
  const std::uint64_t seed = 20261122;
  SCOPED_TRACE(seed);
  Random random(seed);
  const Bytes bytes = written(*compile(model()).value());
  std::uint64_t head = 0;
  std::memcpy(&head, bytes.data() + 12, sizeof head);
  std::size_t refused = 0;
  for (int round = 0; round < 400; ++round) {
    Bytes bad = bytes;
    for (std::uint64_t n = 1 + random.below(3); n > 0; --n)
      bad[20 + random.below(head - 4)] = static_cast<std::uint8_t>(random.below(2) == 0 ? random.below(256) : 0xFFU);
    const std::uint32_t sum = crc32c(ByteView(bad).subspan(20, head - 4));
    std::memcpy(bad.data() + 20 + head - 4, &sum, sizeof sum);
    const auto read = read_compiled(file_of(bad), "key", {});
    if (read) (void)(*read)->plan(std::vector<Shape>{{1, 1, 8, 8}, {1, 1}});
    refused += read ? 0 : 1;
  }
  EXPECT_GT(refused, 100U);
}

}  // namespace
}  // namespace falaj::kernels
