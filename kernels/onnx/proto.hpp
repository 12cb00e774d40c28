// The one door to ONNX's protobuf classes, and what both directions need of them. Included by kernels/onnx/*.cpp only.
#pragma once
#define ONNX_ML 1
#define ONNX_NAMESPACE onnx
#include <onnx/onnx_pb.h>

#include "kernels/graph.hpp"
#include "kernels/onnx/onnx.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels::onnx_format {

DType dtype_from(std::int32_t code);  // undefined: no such type, or none that we carry
std::int32_t code_from(DType dtype);

Result<onnx::ModelProto> parse_model(ByteView bytes, std::string_view name);  // that check_wire accepts (wire.hpp)
// Data in other files come through `external`; without it such tensors are refused. `stripped`: raw_data that strip() took out.
Result<Tensor> read_tensor(const onnx::TensorProto& proto, const ExternalData& external, ByteView stripped = {});
void write_tensor(const Tensor& tensor, onnx::TensorProto& proto);  // value only: name and doc stay
// Unvalidated, without origin. `stripped`: of the initialisers, as strip() gives them.
Result<Graph> read_graph(const onnx::ModelProto& model, const ExternalData& external, std::span<const ByteView> stripped = {});
// Calls of the model's own functions become the functions' nodes; recursion is refused.
Status inline_functions(onnx::ModelProto& model);
Result<Shape> read_dims(const onnx::TensorProto& proto);

}  // namespace falaj::kernels::onnx_format
