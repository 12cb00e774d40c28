// ONNX in, ONNX out. Takes and gives bytes: files are the caller's.
//
// Import accepts ai.onnx opset 13 and newer and ai.onnx.ml, and validates everything it reads (truncation, cycles, dangling and
// duplicate names, unknown ops, shapes that do not fit, sizes that cannot be); memory is bounded by the file's size.
// Export of an imported graph is its original file with the initialisers' values and the metadata replaced, and nothing else;
// export of a graph built here is a new file (IR version 8, the graph's opsets) and refuses ops of our own domain.
#pragma once
#include <string_view>

#include "kernels/graph.hpp"
#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

// `name` is what errors call it (a file's path, a model's name).
Result<Graph> import_onnx(ByteView bytes, std::string_view name);
Result<Bytes> export_onnx(const Graph& graph);

}  // namespace falaj::kernels
