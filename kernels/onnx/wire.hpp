// A look at a serialised model before protobuf sees it: protobuf turns two bytes into an object of a hundred, so that a small file
// could ask for much memory. Counts fields and finds truncation; understands no values.
#pragma once
#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels::onnx_format {

constexpr std::size_t kModelFieldsMax = 4U << 20;  // messages and strings in one model
constexpr int kModelDepthMax = 24;

Status check_wire(ByteView model);

}  // namespace falaj::kernels::onnx_format
