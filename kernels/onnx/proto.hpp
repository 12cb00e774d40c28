// The one door to ONNX's protobuf classes, and what both directions need of them. Included by kernels/onnx/*.cpp only.
#pragma once
#define ONNX_ML 1
#define ONNX_NAMESPACE onnx
#include <onnx/onnx_pb.h>

#include "kernels/graph.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels::onnx_format {

DType dtype_from(std::int32_t code);  // undefined: no such type, or none that we carry
std::int32_t code_from(DType dtype);

Result<onnx::ModelProto> parse_model(ByteView bytes, std::string_view name);  // checks sizes before it allocates
Result<Tensor> read_tensor(const onnx::TensorProto& proto);
void write_tensor(const Tensor& tensor, onnx::TensorProto& proto);  // value only: name and doc stay
Result<Graph> read_graph(const onnx::ModelProto& model);            // unvalidated, without origin

}  // namespace falaj::kernels::onnx_format
