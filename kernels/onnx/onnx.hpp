// ONNX in, ONNX out. Takes and gives bytes: files are the caller's.
//
// Import accepts ai.onnx from opset 6 on, ai.onnx.ml, functions and graphs in attributes, and validates everything it reads
// (truncation, cycles, recursion, dangling and duplicate names, unknown ops, shapes that do not fit, sizes that cannot be); memory is
// bounded by the file's size.
// Export of an imported graph is its original file with the initialisers' values and the metadata replaced, and nothing else;
// export of a graph built here is a new file (IR version 8, the graph's opsets) and refuses ops of our own domain.
//
// Tensors whose data lie in other files are read through ExternalData, which the caller gives; their paths are relative and without
// "..", which is checked here; that no link leads out of the model's folder is the caller's to check. Export embeds them.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "kernels/graph.hpp"
#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

struct ExternalBytes {
  std::shared_ptr<void> storage;  // keeps data alive: a buffer, a mapped file
  void* data = nullptr;
};
// `length` bytes of the file `location` (relative to the model's folder) from `offset` on. Read them, or map them.
using ExternalData = std::function<Result<ExternalBytes>(std::string_view location, std::uint64_t offset, std::uint64_t length)>;

// A serialised model and what keeps it where it is: a buffer, a mapped file.
struct ModelBytes {
  ByteView view;
  std::shared_ptr<const void> storage;
};

// `name` is what errors call it (a file's path, a model's name). The graph keeps `bytes` as its origin, of a view a copy.
Result<Graph> import_onnx(ModelBytes bytes, std::string_view name, const ExternalData& external = {});
Result<Graph> import_onnx(ByteView bytes, std::string_view name, const ExternalData& external = {});

// A file beside the model that is written (ONNX external data), from its beginning on.
struct DataFile {
  std::string location;  // its path, from the model's folder
  std::function<Status(ByteView)> write;
};
// An imported graph: the file that it was, with other initialisers and metadata. A model has at most 2 GiB; with a file beside it, that
// is where all initialisers of 1 KiB and more go, each on a page of its own.
Result<Bytes> export_onnx(const Graph& graph, const DataFile* beside = nullptr);

// A serialised TensorProto, SequenceProto or OptionalProto, as the ONNX project's test data have them: a tensor, a sequence of them,
// or nothing (kind is that of the graph's input or output).
struct Value;
Result<Value> read_onnx_value(ByteView bytes, ValueKind kind, std::string_view name);

}  // namespace falaj::kernels
