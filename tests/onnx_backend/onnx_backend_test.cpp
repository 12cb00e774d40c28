// Runs the ONNX project's backend tests for tests/integration/test_onnx_backend.py: FALAJ_ONNX_BACKEND names a file with one line for each
// test, "folder rtol atol"; a folder holds model.onnx and test_data_set_*/{input,output}_*.pb. Prints one line for each test: "RESULT
// folder pass|unsupported|wrong|failed how message". With no file given there is nothing to do.
//
// `unsupported` is what we say we cannot do; `failed` is an error that says the model or its data are at fault, which they are not;
// `wrong` is an answer that is not the expected one. `how` is plan or interpreter: whatever runs as a plan is interpreted too, and
// both must be right.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/convert.hpp"
#include "kernels/interpret.hpp"
#include "kernels/onnx/onnx.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

namespace fs = std::filesystem;

Bytes read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Tolerance {
  double relative = 1e-3, absolute = 1e-7;
};

std::string differs(const Tensor& got, const Tensor& want, const Tolerance& tolerance) {
  if (got.dtype() == DType::bf16 && want.dtype() == DType::u16)
    return differs(Tensor::const_view(DType::u16, got.shape(), got.raw()), want, tolerance);
  if (got.dtype() != want.dtype()) return format("{} instead of {}", to_string(got.dtype()), to_string(want.dtype()));
  if (got.shape() != want.shape()) return format("shape {} instead of {}", to_string(got.shape()), to_string(want.shape()));
  auto n = static_cast<std::size_t>(want.shape().elements());
  if (got.dtype() == DType::string) return equal_bits(got, want) ? "" : "other strings";
  std::vector<double> a(n);
  std::vector<double> b(n);
  to_doubles(got.dtype(), got.raw(), a.data(), static_cast<std::int64_t>(n));
  to_doubles(want.dtype(), want.raw(), b.data(), static_cast<std::int64_t>(n));
  for (std::size_t i = 0; i < n; ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    if (std::abs(a[i] - b[i]) <= tolerance.absolute + tolerance.relative * std::abs(b[i]) && std::isfinite(b[i])) continue;
    return format("{} instead of {} at {} of {}{}", a[i], b[i], i, to_string(want.dtype()), to_string(want.shape()));
  }
  return {};
}

std::string differs(const Value& got, const Value& want, const Tolerance& tolerance) {
  if (got.kind != want.kind) return "a value of another kind";
  if (want.kind == Value::Kind::tensor) return differs(got.tensor, want.tensor, tolerance);
  if (got.items.size() != want.items.size()) return format("{} items instead of {}", got.items.size(), want.items.size());
  for (std::size_t i = 0; i < want.items.size(); ++i) {
    if (auto text = differs(got.items[i], want.items[i], tolerance); !text.empty()) return format("item {}: {}", i, text);
  }
  return {};
}

struct Outcome {
  std::string kind = "pass";
  std::string how = "-";
  std::string message;
};

Outcome failure(const Error& error, std::string how) {
  return {error.code == ErrorCode::unimplemented ? "unsupported" : "failed", std::move(how), error.message};
}

Result<std::vector<Value>> read_values(const fs::path& set, std::string_view stem, const std::vector<ValueInfo>& infos, bool as_declared) {
  std::vector<Value> values;
  for (std::size_t i = 0; i < infos.size(); ++i) {
    fs::path file = set / format("{}_{}.pb", stem, i);
    if (!fs::exists(file)) return invalid(format("{} is missing", file.string()));
    FALAJ_ASSIGN(Value v, read_onnx_value(read_file(file), infos[i].kind, file.filename().string()));
    // NumPy has no bfloat16: where a model says so, the data are its bits. Outputs are compared as bits (below).
    if (as_declared && infos[i].dtype == DType::bf16 && v.kind == Value::Kind::tensor && v.tensor.dtype() == DType::u16)
      v = Value(Tensor::const_view(DType::bf16, v.tensor.shape(), v.tensor.raw()).clone());
    values.push_back(std::move(v));
  }
  return values;
}

Outcome run_set(const Graph& graph, Session& session, const fs::path& set, const Tolerance& tolerance) {
  auto inputs = read_values(set, "input", graph.inputs, true);
  if (!inputs) return failure(inputs.error(), "-");
  auto wanted = read_values(set, "output", graph.outputs, false);
  if (!wanted) return failure(wanted.error(), "-");
  auto compare = [&](const Result<std::vector<Value>>& outputs, std::string how) -> Outcome {
    if (!outputs) return failure(outputs.error(), how);
    for (std::size_t i = 0; i < wanted->size(); ++i) {
      if (auto text = differs((*outputs)[i], (*wanted)[i], tolerance); !text.empty())
        return {"wrong", std::move(how), format("output '{}': {}", graph.outputs[i].name, text)};
    }
    return {"pass", std::move(how), ""};
  };
  Outcome outcome = compare(session.run(*inputs), session.interpreted().empty() ? "plan" : "interpreter");
  if (!session.interpreted().empty()) outcome.how = "interpreter";
  if (outcome.how != "plan" || outcome.kind != "pass") return outcome;
  Outcome plain = compare(interpret(graph, *inputs), "interpreter-as-well");
  return plain.kind == "pass" ? outcome : plain;
}

Outcome run_test(const fs::path& folder, const Tolerance& tolerance) {
  auto graph = import_onnx(read_file(folder / "model.onnx"), "model.onnx");
  if (!graph) return failure(graph.error(), "import");
  auto written = export_onnx(*graph);
  if (!written || !std::ranges::equal(*written, *graph->origin))
    return {"wrong", "export", written ? "export changed the file" : written.error().message};
  auto session = Session::make(*graph);
  if (!session) return failure(session.error(), "compile");
  Outcome outcome;
  for (int k = 0; fs::exists(folder / format("test_data_set_{}", k)); ++k) {
    outcome = run_set(*graph, *session, folder / format("test_data_set_{}", k), tolerance);
    if (outcome.kind != "pass") return outcome;
  }
  if (outcome.how == "-") return {"failed", "-", "no data"};
  return outcome;
}

TEST(OnnxBackend, RunsTheTestsOfTheOnnxProject) {
  const char* given = std::getenv("FALAJ_ONNX_BACKEND");
  if (given == nullptr) GTEST_SKIP() << "run by tests/integration/test_onnx_backend.py";
  std::ifstream list(given);
  for (std::string line; std::getline(list, line);) {
    std::istringstream words(line);
    std::string folder;
    Tolerance tolerance;
    words >> folder >> tolerance.relative >> tolerance.absolute;
    std::printf("START %s\n", folder.c_str());
    std::fflush(stdout);
    Outcome outcome = run_test(folder, tolerance);
    for (char& c : outcome.message) c = c == '\n' ? ' ' : c;
    std::printf("RESULT %s %s %s %s\n", folder.c_str(), outcome.kind.c_str(), outcome.how.c_str(), outcome.message.c_str());
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace falaj::kernels
