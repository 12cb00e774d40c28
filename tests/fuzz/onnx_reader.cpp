// Any bytes are read as a model or refused; what was read can be written, and compiles or says why not.
#include <cstdint>
#include <cstdlib>

#include "kernels/onnx/onnx.hpp"
#include "kernels/plan.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  auto graph = falaj::kernels::import_onnx({bytes, size}, "input");
  if (!graph) return 0;
  auto written = falaj::kernels::export_onnx(*graph);
  if (!written) std::abort();
  if (!falaj::kernels::import_onnx(*written, "written")) std::abort();
  return 0;
}
