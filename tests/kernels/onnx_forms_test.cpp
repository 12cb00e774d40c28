// What ONNX files hold besides nodes: functions, graphs in attributes, data in other files.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/interpret.hpp"
#include "kernels/onnx/onnx.hpp"
#include "tests/kernels/onnx_wire.hpp"

namespace falaj::kernels {
namespace {

using testing::graph_attribute;
using testing::model;
using testing::node;
using testing::opset;
using testing::Proto;
using testing::value_info;

std::vector<float> run(const Proto& file, std::vector<Value> inputs, const ExternalData& external = {}) {
  Bytes bytes = file.bytes();
  auto graph = import_onnx(bytes, "test.onnx", external);
  EXPECT_TRUE(graph.has_value()) << graph.error().message;
  if (!graph) return {};
  auto written = export_onnx(*graph);
  EXPECT_TRUE(written.has_value() && (external || *written == bytes)) << "export must give the file back";
  auto session = Session::make(*graph);
  EXPECT_TRUE(session.has_value()) << session.error().message;
  if (!session) return {};
  auto outputs = session->run(inputs);
  EXPECT_TRUE(outputs.has_value()) << outputs.error().message;
  if (!outputs) return {};
  auto data = (*outputs)[0].tensor.data<float>();
  return {data.begin(), data.end()};
}
std::string error_of(const Proto& file, const ExternalData& external = {}) {
  auto graph = import_onnx(file.bytes(), "test.onnx", external);
  return graph ? std::string() : graph.error().message;
}

// --- large data -------------------------------------------------------------------------------------------------------------

// Large raw data do not pass through protobuf (onnx/wire.hpp): whatever form the file has, it says the same.
constexpr std::size_t kLarge = 2048;  // floats
std::string floats(float value, std::size_t count = kLarge) {
  std::string raw(count * 4, '\0');
  for (std::size_t i = 0; i < count; ++i) std::memcpy(raw.data() + i * 4, &value, 4);
  return raw;
}
Proto large(std::string_view name) { return Proto().number(1, kLarge).number(2, 1).text(8, name); }
// y = x + w, and y's outputs: one graph, or its parts one after the other.
Proto sum_graph() {
  return Proto().part(1, node("Add", {"x", "w"}, {"y"})).part(11, value_info("x", {1})).part(12, value_info("y", {kLarge}));
}
std::vector<Value> one() { return {Value(Tensor::vector<float>({1}))}; }

TEST(OnnxLarge, RawDataAreReadWhereTheyLie) {
  EXPECT_EQ(run(model(sum_graph().part(5, large("w").text(9, floats(2)))), one()), std::vector<float>(kLarge, 3));
  EXPECT_EQ(run(model(sum_graph().part(5, Proto().text(9, floats(2)).raw(as_text(large("w").bytes())))), one()),
            std::vector<float>(kLarge, 3))
      << "fields in another order";
}

TEST(OnnxLarge, OfDataGivenTwiceTheLastCount) {
  EXPECT_EQ(run(model(sum_graph().part(5, large("w").text(9, floats(7)).text(9, floats(2)))), one()), std::vector<float>(kLarge, 3));
  EXPECT_EQ(run(model(sum_graph().part(5, large("w").text(9, floats(7, 1)).text(9, floats(2)))), one()), std::vector<float>(kLarge, 3));
  EXPECT_NE(error_of(model(sum_graph().part(5, large("w").text(9, floats(7)).text(9, floats(2, 1))))).find("needs 8192 bytes, but 4"),
            std::string::npos);
}

TEST(OnnxLarge, AGraphInSeveralPiecesIsOne) {
  const Proto rest =
      Proto().part(5, Proto().number(1, 1).number(2, 1).text(8, "small").text(9, floats(1, 1))).part(5, large("w").text(9, floats(2)));
  EXPECT_EQ(run(Proto().number(1, 8).part(7, rest).part(7, sum_graph()).part(8, opset("", 17)), one()), std::vector<float>(kLarge, 3));
}

TEST(OnnxLarge, WrongSizesAreNamed) {
  EXPECT_EQ(error_of(model(sum_graph().part(5, large("w").text(9, floats(2, kLarge - 1))))),
            "test.onnx: initialiser 'w': shape [2048] of float32 needs 8192 bytes, but 8188 are given");
}

// --- functions --------------------------------------------------------------------------------------------------------------

// scaled(x) = leaky(x) + x, with the slope passed on; `inner` is what the first node calls.
Proto scaled_function(std::string_view inner, std::string_view inner_domain) {
  Proto slope = Proto().text(1, "alpha").number(20, 1).text(21, "slope");
  Proto first = node(inner, {"a"}, {"b"}, inner_domain).part(5, slope);
  return Proto()
      .text(1, "scaled")
      .text(4, "a")
      .text(5, "c")
      .text(6, "slope")
      .part(7, first)
      .part(7, node("Add", {"a", "b"}, {"c"}))
      .part(9, opset("", 17))
      .text(10, "mine");
}
Proto float_attribute(std::string_view name, float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, 4);
  std::string raw = "\x15";  // field 2, four bytes
  for (int i = 0; i < 4; ++i) raw.push_back(static_cast<char>(bits >> (8 * i)));
  return Proto().text(1, name).number(20, 1).raw(raw);
}
Proto calling(const Proto& function) {
  Proto graph = Proto()
                    .part(1, node("scaled", {"x"}, {"h"}, "mine").part(5, float_attribute("slope", 0.5F)))
                    .part(1, node("scaled", {"h"}, {"y"}, "mine").part(5, float_attribute("slope", 0.25F)))
                    .text(2, "g")
                    .part(11, value_info("x", {2}))
                    .part(12, value_info("y", {2}));
  return model(graph).part(8, opset("mine", 1)).part(25, function);
}

TEST(OnnxForms, CallsOfFunctionsAreReplacedByTheirNodes) {
  auto y = run(calling(scaled_function("LeakyRelu", "")), {Value(Tensor::vector<float>({4, -8}))});
  EXPECT_EQ(y, (std::vector<float>{16, -15}));  // 4 -> 8 -> 16; -8 -> -12 -> -15
}

TEST(OnnxForms, FunctionsThatCallThemselvesAreRefused) {
  EXPECT_NE(error_of(calling(scaled_function("scaled", "mine"))).find("calls itself"), std::string::npos);
}

TEST(OnnxForms, FunctionsThatMultiplyAreBounded) {
  // f0 calls f1 four times, f1 calls f2 four times, ...: 4^12 nodes from a small file.
  Proto file =
      model(Proto().part(1, node("f0", {"x"}, {"y"}, "mine")).text(2, "g").part(11, value_info("x", {2})).part(12, value_info("y", {2})));
  file.part(8, opset("mine", 1));
  for (int k = 0; k < 12; ++k) {
    std::string inner = k == 11 ? "Abs" : "f" + std::to_string(k + 1);
    Proto function = Proto().text(1, "f" + std::to_string(k)).text(4, "a0").text(5, "a4").text(10, "mine").part(9, opset("", 17));
    for (int i = 0; i < 4; ++i)
      function.part(7, node(inner, {"a" + std::to_string(i)}, {"a" + std::to_string(i + 1)}, k == 11 ? "" : "mine"));
    file.part(25, function);
  }
  EXPECT_NE(error_of(file).find("more than"), std::string::npos) << error_of(file);
}

// --- graphs in attributes -------------------------------------------------------------------------------------------------------

Proto branch(std::string_view op) { return Proto().part(1, node(op, {"x"}, {"r"})).text(2, "b").part(12, value_info("r", {2})); }
Proto choice(const Proto& otherwise) {
  Proto fork =
      node("If", {"c"}, {"y"}).part(5, graph_attribute("then_branch", branch("Neg"))).part(5, graph_attribute("else_branch", otherwise));
  return model(
      Proto().part(1, fork).text(2, "g").part(11, value_info("x", {2})).part(11, value_info("c", {}, 9)).part(12, value_info("y", {2})));
}

TEST(OnnxForms, BranchesSeeTheValuesAroundThem) {
  Proto file = choice(branch("Abs"));
  Value x(Tensor::vector<float>({1, -2}));
  EXPECT_EQ(run(file, {x, Value(Tensor::scalar<bool>(true))}), (std::vector<float>{-1, 2}));
  EXPECT_EQ(run(file, {x, Value(Tensor::scalar<bool>(false))}), (std::vector<float>{1, 2}));
}

TEST(OnnxForms, BadBranchesAreRefusedAtImport) {
  EXPECT_NE(error_of(choice(branch("Abx"))).find("Abx"), std::string::npos);
  Proto dangling = Proto().part(1, node("Abs", {"nobody"}, {"r"})).text(2, "b").part(12, value_info("r", {2}));
  EXPECT_NE(error_of(choice(dangling)).find("'nobody'"), std::string::npos) << error_of(choice(dangling));
  Proto nested = branch("Abs");
  for (int i = 0; i < kSubgraphDepthMax + 2; ++i) {
    Proto fork = node("If", {"c"}, {"r"}).part(5, graph_attribute("then_branch", nested)).part(5, graph_attribute("else_branch", nested));
    nested = Proto().part(1, fork).text(2, "b").part(12, value_info("r", {2}));
    if (nested.bytes().size() > (1U << 20)) break;
  }
  EXPECT_NE(error_of(choice(nested)), "");
}

// --- data in other files ------------------------------------------------------------------------------------------------------------

Proto external_model(std::string_view location, std::string_view offset = "8", std::string_view length = "8") {
  auto entry = [](std::string_view key, std::string_view value) { return Proto().text(1, key).text(2, value); };
  Proto weight = Proto().number(1, 2).number(2, 1).text(8, "w").part(13, entry("location", location)).number(14, 1);
  if (!offset.empty()) weight.part(13, entry("offset", offset));
  if (!length.empty()) weight.part(13, entry("length", length));
  return model(Proto()
                   .part(1, node("Mul", {"x", "w"}, {"y"}))
                   .text(2, "g")
                   .part(5, weight)
                   .part(11, value_info("x", {2}))
                   .part(12, value_info("y", {2})));
}

TEST(OnnxForms, DataInOtherFilesAreReadWhereTheyLie) {
  auto stored = std::make_shared<std::array<float, 4>>(std::array<float, 4>{9, 9, 3, 5});
  ExternalData files = [&](std::string_view location, std::uint64_t offset, std::uint64_t length) -> Result<ExternalBytes> {
    if (location != "weights/a.bin") return Error{ErrorCode::not_found, "no such file"};
    if (offset + length > sizeof *stored) return invalid("beyond the end");
    return ExternalBytes{stored, reinterpret_cast<std::byte*>(stored->data()) + offset};
  };
  EXPECT_EQ(run(external_model("weights/a.bin"), {Value(Tensor::vector<float>({2, 10}))}, files), (std::vector<float>{6, 50}));
  // What is exported holds its data itself.
  auto graph = import_onnx(external_model("weights/a.bin").bytes(), "test.onnx", files);
  ASSERT_TRUE(graph.has_value());
  graph->initializers["w"] = Tensor::vector<float>({1, 2});
  auto written = export_onnx(*graph);
  ASSERT_TRUE(written.has_value()) << written.error().message;
  auto again = import_onnx(*written, "test.onnx");
  ASSERT_TRUE(again.has_value()) << again.error().message;
  EXPECT_EQ(again->initializers.at("w").data<float>()[1], 2.0F);
}

// What is written beside a model is read back as it was, of an imported model and of a new one; each tensor begins a page.
TEST(OnnxForms, DataAreWrittenBesideAModel) {
  Graph graph;
  graph.name = "beside";
  graph.add_input("x", DType::f32, {-1, 300});
  Tensor weights(DType::f32, {300, 7});
  for (std::size_t i = 0; i < weights.elements(); ++i) weights.mutable_data<float>()[i] = static_cast<float>(i) / 7;
  Tensor table(DType::bf16, {600});
  for (std::size_t i = 0; i < table.bytes(); ++i) static_cast<std::uint8_t*>(table.mutable_raw())[i] = static_cast<std::uint8_t>(i * 31);
  const auto h = graph.add("MatMul", std::vector<std::string>{"x", graph.add_initializer("w", weights)});
  graph.add("Add", std::vector<std::string>{h, graph.add_initializer("b", Tensor::vector<float>({1, 2, 3, 4, 5, 6, 7}))}, {}, "y");
  graph.add("Identity", std::vector<std::string>{graph.add_initializer("t", table)}, {}, "z");
  graph.add_output("y", DType::f32, {-1, 7});
  graph.add_output("z", DType::bf16, {600});

  auto stored = std::make_shared<Bytes>();
  std::vector<std::uint64_t> offsets;
  const DataFile file{"m.onnx.data", [&](ByteView part) -> Status {
                        stored->insert(stored->end(), part.begin(), part.end());
                        return {};
                      }};
  const ExternalData files = [&](std::string_view location, std::uint64_t offset, std::uint64_t length) -> Result<ExternalBytes> {
    EXPECT_EQ(location, "m.onnx.data");
    EXPECT_LE(offset + length, stored->size());
    offsets.push_back(offset);
    return ExternalBytes{stored, stored->data() + offset};
  };
  const auto same = [&](const Graph& read) {
    for (const auto& [name, value] : graph.initializers) EXPECT_TRUE(equal_bits(read.initializers.at(name), value)) << name;
  };
  const auto written = export_onnx(graph, &file);
  ASSERT_TRUE(written.has_value()) << written.error().message;
  EXPECT_LT(written->size(), 1000U);
  auto read = import_onnx(*written, "m.onnx", files);
  ASSERT_TRUE(read.has_value()) << read.error().message;
  same(*read);
  EXPECT_EQ(offsets, (std::vector<std::uint64_t>{0, 4096}));

  graph.initializers["w"] = read->initializers["w"] = Tensor(DType::f32, {300, 7});
  const auto before = std::exchange(*stored, Bytes());  // what `read` has is a copy of it no longer
  read->initializers["t"] = table;
  const auto again = export_onnx(*read, &file);
  ASSERT_TRUE(again.has_value()) << again.error().message;
  auto last = import_onnx(*again, "m.onnx", files);
  ASSERT_TRUE(last.has_value()) << last.error().message;
  same(*last);

  const DataFile full{"m.onnx.data", [](ByteView) -> Status { return failed("the disk is full"); }};
  EXPECT_NE(export_onnx(*last, &full).error().message.find("disk is full"), std::string::npos);
}

TEST(OnnxForms, DataOutsideTheModelsFolderAreNeverAskedFor) {
  int asked = 0;
  ExternalData files = [&](std::string_view, std::uint64_t, std::uint64_t) -> Result<ExternalBytes> {
    ++asked;
    return invalid("never");
  };
  for (const char* location : {"../secret", "/etc/passwd", "a/../../b", "..", "a\\..\\b", ""})
    EXPECT_NE(error_of(external_model(location), files).find("inside the model's folder"), std::string::npos) << location;
  EXPECT_NE(error_of(external_model("a", "minus"), files).find("offset"), std::string::npos);
  EXPECT_NE(error_of(external_model("a", "0", "999"), files).find("999"), std::string::npos);
  EXPECT_NE(error_of(external_model("a", "18446744073709551615"), files), "");
  EXPECT_EQ(asked, 0);
  EXPECT_NE(error_of(external_model("a")).find("another file"), std::string::npos);
}

}  // namespace
}  // namespace falaj::kernels
