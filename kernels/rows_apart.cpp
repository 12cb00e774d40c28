#include "kernels/rows_apart.hpp"

#include <algorithm>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

// What a rule may ask. `rows` is the first dimension of the outputs, which all inputs that hold rows must share.
struct Asked {
  const RowsCall& call;
  std::int64_t rows;

  [[nodiscard]] const Node& node() const { return call.node; }
  [[nodiscard]] std::size_t rank() const { return call.outputs[0].shape.rank(); }
  [[nodiscard]] bool holds_rows(std::size_t i) const { return call.has(i) && call.apart[i]; }
  // Input i is the same for all rows of a result of `rank` dimensions that it is broadcast to.
  [[nodiscard]] bool shared(std::size_t i, std::size_t rank) const {
    if (!call.has(i)) return true;
    const Shape& shape = call.in(i).shape;
    return !call.apart[i] && (shape.rank() < rank || shape[0] == 1);
  }
  // Input i holds rows, and is broadcast to the outputs with its first dimension at theirs.
  [[nodiscard]] bool aligned(std::size_t i) const { return holds_rows(i) && call.in(i).shape.rank() == rank(); }
  [[nodiscard]] bool shared_from(std::size_t first) const {
    for (std::size_t i = first; i < call.inputs.size(); ++i) {
      if (holds_rows(i)) return false;
    }
    return true;
  }
  [[nodiscard]] bool one_output() const {
    return std::ranges::count_if(call.outputs, [](const ValueType& type) { return type.dtype != DType::undefined; }) == 1;
  }
  // An axis of input 0 that is not its first.
  [[nodiscard]] bool inner(std::int64_t axis) const {
    const auto normal = normal_axis(axis, call.in(0).shape.rank());
    return normal && *normal > 0;
  }
  [[nodiscard]] bool inner_attribute(std::int64_t fallback) const {
    const auto axis = attr_int(node(), "axis", fallback);
    return axis && inner(*axis);
  }
  // All of the constant axes in input i are inner ones.
  [[nodiscard]] bool inner_axes(std::size_t i) const {
    if (!call.has(i)) return false;
    const auto axes = known_ints(call, i, "axes");
    return axes && !axes->empty() && std::ranges::all_of(*axes, [&](std::int64_t axis) { return inner(axis); });
  }
};

using Rule = bool (*)(const Asked&);

bool each_element(const Asked& a) {
  if (a.call.inputs.size() > 1 && a.call.opset < 7 && a.node().domain == kOnnx) return false;  // broadcast by an attribute
  for (std::size_t i = 0; i < a.call.inputs.size(); ++i) {
    if (!a.aligned(i) && !a.shared(i, a.rank())) return false;
  }
  return true;
}

// Of the first input alone; the others are parameters.
bool first_input(const Asked& a) { return a.holds_rows(0) && a.shared_from(1) && a.one_output(); }

// Products with weights: the inputs from `addend` on may hold rows.
bool product(const Asked& a, std::size_t addend) {
  for (std::size_t i = 1; i < a.call.inputs.size(); ++i) {
    if (i < addend ? a.holds_rows(i) : !a.aligned(i) && !a.shared(i, a.rank())) return false;
  }
  return a.holds_rows(0);
}
bool matmul(const Asked& a) {
  const Shape& left = a.call.in(0).shape;
  const auto turned = attr_int(a.node(), "transA", 0);
  if (!a.holds_rows(0) || left.rank() < 2 || left.rank() != a.rank() || !turned || (left.rank() == 2 && *turned != 0)) return false;
  for (std::size_t i = 1; i < a.call.inputs.size(); ++i) {
    const bool rows = a.holds_rows(i) && a.aligned(i) && (i > 1 || left.rank() > 2);
    const bool same = i == 1 && left.rank() == 2 ? !a.holds_rows(i) : a.shared(i, a.rank());  // a matrix has no rows of results
    if (!rows && !same) return false;
  }
  return true;
}
bool integer_matmul(const Asked& a) { return a.call.in(0).shape.rank() == a.rank() && a.rank() >= 2 && product(a, 4); }
bool conv(const Asked& a) { return product(a, 3); }
bool integer_conv(const Asked& a) { return product(a, 4); }

bool batch_norm(const Asked& a) {
  const auto trains = attr_int(a.node(), "training_mode", 0);
  return first_input(a) && trains && *trains == 0 && a.call.opset >= 9;
}
bool along_axis(const Asked& a, std::int64_t fallback) {
  for (std::size_t i = 1; i < a.call.inputs.size(); ++i) {
    if (!a.shared(i, a.call.in(0).shape.rank())) return false;
  }
  return a.holds_rows(0) && a.inner_attribute(fallback);
}
bool softmax(const Asked& a) { return along_axis(a, a.call.opset < 13 ? 1 : -1); }
bool along_last(const Asked& a) { return along_axis(a, -1); }
bool along_first(const Asked& a) { return along_axis(a, 0); }  // unless the attribute says otherwise
bool split(const Asked& a) { return a.holds_rows(0) && a.shared_from(1) && a.inner_attribute(0); }
bool concat(const Asked& a) {
  for (std::size_t i = 0; i < a.call.inputs.size(); ++i) {
    if (!a.aligned(i)) return false;
  }
  return a.inner_attribute(1);
}
bool transpose(const Asked& a) {
  const auto perm = attr_ints(a.node(), "perm", std::vector<std::int64_t>{});
  return a.holds_rows(0) && perm && !perm->empty() && (*perm)[0] == 0;
}
bool slice(const Asked& a) { return a.holds_rows(0) && a.shared_from(1) && a.call.opset >= 10 && a.inner_axes(3); }
bool cumulative(const Asked& a) { return a.holds_rows(0) && a.inner_axes(1); }
bool pad(const Asked& a) {
  if (!a.holds_rows(0) || !a.shared_from(1) || a.call.has(3) || !a.call.has(1)) return false;
  const auto pads = known_ints(a.call, 1, "pads");
  return pads && pads->size() == 2 * a.rank() && (*pads)[0] == 0 && (*pads)[a.rank()] == 0;
}
bool gather(const Asked& a) {
  if (a.holds_rows(0)) return a.shared_from(1) && a.inner_attribute(0);
  const auto axis = attr_int(a.node(), "axis", 0);
  return axis && *axis == 0 && a.holds_rows(1);  // a table, and rows of indices
}
bool reduce(const Asked& a) {
  bool given = false;
  const auto axes = a.holds_rows(0) && a.shared_from(1) ? known_axes(a.call, a.call.in(0).shape.rank(), given) : Error{};
  return axes && given && !axes->empty() && axes->front() > 0;
}
bool quantise(const Asked& a) {
  const auto axis = attr_int(a.node(), "axis", 1);
  for (std::size_t i = 1; i < a.call.inputs.size(); ++i) {
    if (a.holds_rows(i) || (a.call.has(i) && a.call.in(i).shape.rank() > 1)) return false;
  }
  return a.holds_rows(0) && axis && (a.call.in(1).shape.elements() == 1 || a.inner(*axis));
}
bool attention(const Asked& a) {
  return a.aligned(0) && a.aligned(1) && a.aligned(2) && a.rank() == 4 && a.shared_from(3) && a.call.inputs.size() <= 4;
}

struct Entry {
  std::string_view domain, op;
  Rule rule;
};
constexpr Entry kRules[] = {
    {kOnnx, "Conv", conv},
    {kOnnx, "ConvTranspose", conv},
    {kFalaj, "Conv", conv},
    {kFalaj, "QConv", integer_conv},
    {kOnnx, "MatMul", matmul},
    {kOnnx, "Gemm", matmul},
    {kFalaj, "MatMul", matmul},
    {kFalaj, "QMatMul", integer_matmul},
    {kFalaj, "Attention", attention},
    {kOnnx, "MaxPool", first_input},
    {kOnnx, "AveragePool", first_input},
    {kOnnx, "GlobalMaxPool", first_input},
    {kOnnx, "GlobalAveragePool", first_input},
    {kFalaj, "MaxPool", first_input},
    {kFalaj, "AveragePool", first_input},
    {kFalaj, "GlobalMaxPool", first_input},
    {kFalaj, "GlobalAveragePool", first_input},
    {kFalaj, "QMaxPool", first_input},
    {kFalaj, "QGlobalAveragePool", first_input},
    {kFalaj, "Quantize", first_input},
    {kOnnx, "InstanceNormalization", first_input},
    {kOnnx, "GroupNormalization", first_input},
    {kOnnx, "LRN", first_input},
    {kOnnx, "DepthToSpace", first_input},
    {kOnnx, "SpaceToDepth", first_input},
    {kOnnx, "BatchNormalization", batch_norm},
    {kOnnx, "Softmax", softmax},
    {kOnnx, "LogSoftmax", softmax},
    {kOnnx, "Hardmax", softmax},
    {kOnnx, "LayerNormalization", along_last},
    {kOnnx, "RMSNormalization", along_last},
    {kOnnx, "LpNormalization", along_last},
    {kOnnx, "TopK", along_last},
    {kOnnx, "ArgMax", along_first},
    {kOnnx, "ArgMin", along_first},
    {kOnnx, "Split", split},
    {kOnnx, "Concat", concat},
    {kOnnx, "Transpose", transpose},
    {kOnnx, "Slice", slice},
    {kOnnx, "CumSum", cumulative},
    {kOnnx, "Pad", pad},
    {kOnnx, "Gather", gather},
    {kOnnx, "QuantizeLinear", quantise},
    {kOnnx, "DequantizeLinear", quantise},
    {kFalaj, "QAdd", each_element},
};
constexpr std::string_view kReductions[] = {"ReduceL1",  "ReduceL2",   "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
                                            "ReduceMin", "ReduceMean", "ReduceProd",   "ReduceSum",       "ReduceSumSquare"};
constexpr std::string_view kElementwise[] = {
    "Abs",      "Add",  "And",  "BitShift",    "BitwiseAnd", "BitwiseNot", "BitwiseOr",   "BitwiseXor", "Cast",  "Ceil",
    "Clip",     "Cos",  "Cosh", "Div",         "Elu",        "Equal",      "Erf",         "Exp",        "Floor", "Gelu",
    "Greater",  "Celu", "Less", "HardSigmoid", "HardSwish",  "IsInf",      "IsNaN",       "LeakyRelu",  "Log",   "GreaterOrEqual",
    "Max",      "Mean", "Min",  "Mish",        "Mod",        "Mul",        "LessOrEqual", "Not",        "Or",    "Neg",
    "PRelu",    "Pow",  "Relu", "Reciprocal",  "Round",      "Selu",       "Sigmoid",     "Sign",       "Sin",   "Sinh",
    "Softplus", "Sqrt", "Sub",  "Sum",         "Softsign",   "Swish",      "Tan",         "Tanh",       "Xor",   "ThresholdedRelu",
    "Where"};

Rule rule_of(const Node& node) {
  const auto found = std::ranges::find_if(kRules, [&](const Entry& e) { return e.domain == node.domain && e.op == node.op; });
  if (found != std::end(kRules)) return found->rule;
  if (node.domain != kOnnx) return nullptr;
  if (std::ranges::find(kElementwise, node.op) != std::end(kElementwise)) return each_element;
  if (std::ranges::find(kReductions, node.op) != std::end(kReductions)) return reduce;
  return nullptr;
}

bool plain(const ValueType& type) { return type.dtype == DType::undefined || (type.dtype != DType::string && type.shape.elements() > 0); }

}  // namespace

bool rows_apart(const RowsCall& call) {
  const Rule rule = rule_of(call.node);
  if (rule == nullptr || call.inputs.empty() || call.outputs.empty() || call.outputs[0].dtype == DType::undefined) return false;
  if (!std::ranges::all_of(call.inputs, plain) || !std::ranges::all_of(call.outputs, plain)) return false;
  if (call.outputs[0].shape.empty()) return false;
  const std::int64_t rows = call.outputs[0].shape[0];
  bool any = false;
  for (std::size_t i = 0; i < call.inputs.size(); ++i) {
    if (!call.has(i) || !call.apart[i]) continue;
    any = true;
    if (call.in(i).constant != nullptr || call.in(i).shape.empty() || call.in(i).shape[0] != rows) return false;
  }
  const auto same_rows = [&](const ValueType& type) {
    return type.dtype == DType::undefined || (!type.shape.empty() && type.shape[0] == rows);
  };
  return any && std::ranges::all_of(call.outputs, same_rows) && rule(Asked{call, rows});
}

}  // namespace falaj::kernels
