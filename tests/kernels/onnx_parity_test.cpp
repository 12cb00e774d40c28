// Runs a model for tests/peers/test_onnx_parity.py, which compares with onnxruntime: FALAJ_PARITY_DIR holds model.onnx and manifest.txt
// (one line for each input: name dtype rank dims...; its data are in <number>.bin, strings one a line), and gets out<number>.bin.
// With no directory given there is nothing to do.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "kernels/onnx/onnx.hpp"
#include "kernels/plan.hpp"

namespace falaj::kernels {
namespace {

Bytes read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

Tensor read_input(const std::string& line, const std::string& path) {
  std::istringstream words(line);
  std::string name;
  std::string type;
  std::size_t rank = 0;
  words >> name >> type >> rank;
  Shape shape;
  for (std::int64_t d = 0; shape.rank() < rank && words >> d;) shape.push_back(d);
  if (type == "string") {
    Tensor t(DType::string, shape);
    std::ifstream in(path);
    for (auto& text : t.mutable_data<std::string>()) std::getline(in, text);
    return t;
  }
  Tensor t(type == "float32" ? DType::f32 : DType::i64, shape);
  Bytes bytes = read_file(path);
  EXPECT_EQ(bytes.size(), t.bytes()) << path;
  std::memcpy(t.mutable_raw(), bytes.data(), std::min(bytes.size(), t.bytes()));
  return t;
}

TEST(OnnxParity, RunsTheModelOfThePeerTest) {
  const char* given = std::getenv("FALAJ_PARITY_DIR");
  if (given == nullptr) GTEST_SKIP() << "run by tests/peers/test_onnx_parity.py";
  std::string dir = given;
  auto graph = import_onnx(read_file(dir + "/model.onnx"), dir + "/model.onnx");
  ASSERT_TRUE(graph.has_value()) << graph.error().message;
  auto compiled = compile(*graph);
  ASSERT_TRUE(compiled.has_value()) << compiled.error().message;
  std::vector<Tensor> inputs;
  std::ifstream manifest(dir + "/manifest.txt");
  for (std::string line; std::getline(manifest, line);)
    inputs.push_back(read_input(line, dir + "/" + std::to_string(inputs.size()) + ".bin"));
  Executor executor(*compiled);
  std::vector<Tensor> outputs;
  auto status = executor.run(inputs, outputs);
  ASSERT_TRUE(status.has_value()) << status.error().message;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    std::ofstream out(dir + "/out" + std::to_string(i) + ".bin", std::ios::binary);
    if (outputs[i].dtype() == DType::string) {
      for (const auto& text : outputs[i].data<std::string>()) out << text << "\n";
    } else {
      out.write(static_cast<const char*>(outputs[i].raw()), static_cast<std::streamsize>(outputs[i].bytes()));
    }
  }
  // What leaves again is the file that came.
  auto written = export_onnx(*graph);
  ASSERT_TRUE(written.has_value()) << written.error().message;
  std::ofstream(dir + "/again.onnx", std::ios::binary)
      .write(reinterpret_cast<const char*>(written->data()), static_cast<std::streamsize>(written->size()));
}

}  // namespace
}  // namespace falaj::kernels
