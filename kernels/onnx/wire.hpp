// A look at a serialised model before protobuf sees it: protobuf turns two bytes into an object of a hundred, so that a small file
// could ask for much memory. Counts fields and finds truncation; understands no values.
#pragma once
#include <vector>

#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels::onnx_format {

constexpr std::size_t kModelFieldsMax = 4U << 20;  // messages and strings in one model
constexpr int kModelDepthMax = 24;

Status check_wire(ByteView model);

// A model without the large raw_data of its graph's initialisers: protobuf would copy them, and holds at most 2 GiB.
struct Stripped {
  Bytes model;
  std::vector<ByteView> raw;  // of the initialisers in order, within what was stripped; empty: the tensor has its data still
};
constexpr std::size_t kStripMin = 4096;  // bytes
Result<Stripped> strip(ByteView model);  // that check_wire accepts

}  // namespace falaj::kernels::onnx_format
