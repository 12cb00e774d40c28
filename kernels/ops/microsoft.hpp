// Ops on quantised operands of the domain com.microsoft, which onnxruntime's quantiser writes (contrib operators' documentation there):
// each is an op of ai.onnx between DequantizeLinear and QuantizeLinear. QGemm is a product with a bias of integers.
#pragma once
#include <optional>
#include <vector>

#include "kernels/ops.hpp"

namespace falaj::kernels {

inline constexpr std::string_view kMicrosoft = "com.microsoft";

struct QuantisedInput {
  std::size_t value, scale, zero;  // inputs of the node
};
struct MicrosoftOp {
  Node plain;  // the op of ai.onnx; its inputs and outputs are not named yet
  std::vector<QuantisedInput> inputs;
  QuantisedInput result;  // its scale and zero point
};
// Nothing for other ops, QGemm among them.
std::optional<MicrosoftOp> microsoft_op(const Node& node);

std::span<const OpDef> microsoft_ops();  // the family

}  // namespace falaj::kernels
