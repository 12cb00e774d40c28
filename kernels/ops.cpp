#include "kernels/ops.hpp"

#include <algorithm>
#include <unordered_map>

#include "kernels/ops/channels_last.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/ops/integer.hpp"
#include "kernels/ops/microsoft.hpp"

namespace falaj::kernels {
namespace {

// The one list of all ops, by family.
using Family = std::span<const OpDef> (*)();
constexpr Family kFamilies[] = {
    arithmetic_ops,    // Add Sub Mul Div Pow Min Max Neg Abs Sign Sqrt Reciprocal Exp Log Erf Floor Ceil Clip
    activation_ops,    // Relu LeakyRelu Sigmoid Tanh Gelu Softplus
    logic_ops,         // Equal Less LessOrEqual Greater GreaterOrEqual And Or Not IsNaN Where Cast
    matmul_ops,        // MatMul Gemm
    halves_ops,        // ai.falaj: HalfMatMul HalfWeightGrad
    blocks_ops,        // ai.falaj: ToBlocks FromBlocks BlockConv BlockConvDataGrad BlockConvWeightGrad BlockStatistics BlockNorm ...
    reduce_ops,        // ReduceSum ReduceMean ReduceMax ReduceMin ArgMax ArgMin
    shape_ops,         // Identity Dropout Reshape Flatten Squeeze Unsqueeze Transpose Expand Shape Size Constant ConstantOfShape
    slice_ops,         // Concat Split Slice
    gather_ops,        // Gather OneHot ArrayFeatureExtractor
    softmax_ops,       // Softmax LogSoftmax
    attention_ops,     // Attention of ai.falaj
    norm_ops,          // LayerNormalization BatchNormalization
    loss_ops,          // SigmoidCrossEntropy MeanSquare SoftmaxCrossEntropy
    encoder_ops,       // LabelEncoder CategoryMapper OneHotEncoder Scaler Imputer Normalizer FeatureVectorizer ZipMap
    linear_ops,        // LinearClassifier LinearRegressor
    svm_ops,           // SVMClassifier SVMRegressor
    math_ops,          // Sin ... Atanh, Round, Softsign Elu Selu Celu HardSigmoid HardSwish Mish ThresholdedRelu Shrink, IsInf PRelu
    bits_ops,          // Mod BitShift BitwiseAnd BitwiseOr BitwiseXor BitwiseNot Xor, Sum Mean
    scatter_ops,       // GatherElements ScatterElements Scatter GatherND ScatterND
    layout_ops,        // Tile Pad DepthToSpace SpaceToDepth CenterCropPad ReverseSequence Trilu EyeLike Range CumSum
    select_ops,        // TopK Hardmax NonZero Compress Unique NonMaxSuppression
    conv_ops,          // Conv ConvTranspose DeformConv ConvInteger QLinearConv
    pool_ops,          // MaxPool AveragePool LpPool Global... MaxUnpool Col2Im
    integer_ops,       // ai.falaj: QMatMul QConv QAdd QMaxPool QGlobalAveragePool Quantize
    microsoft_ops,     // com.microsoft: QGemm QLinearAdd QLinearMul QLinearConcat ...
    nhwc_ops,          // ai.falaj: Conv MaxPool AveragePool GlobalMaxPool GlobalAveragePool
    criterion_ops,     // NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss
    channel_norm_ops,  // InstanceNormalization GroupNormalization MeanVarianceNormalization LpNormalization LRN RMSNormalization
    sequence_ops,      // Sequence..., SplitToSequence ConcatFromSequence, Optional...
    control_ops,       // If Loop Scan
    resize_ops,        // Resize Upsample
    region_ops,        // GridSample AffineGrid RoiAlign
    recurrent_ops,     // RNN GRU LSTM
    signal_ops,        // DFT STFT HannWindow HammingWindow BlackmanWindow MelWeightMatrix
    update_ops,        // ai.onnx.preview.training: Adagrad Adam Momentum
    einsum_ops,        // Einsum Det
    text_ops,          // StringConcat StringSplit StringNormalizer TfIdfVectorizer
    tree_ops,          // TreeEnsemble TreeEnsembleRegressor TreeEnsembleClassifier Binarizer
    quantize_ops,      // QuantizeLinear DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearMatMul
};

std::string_view canonical(std::string_view domain) { return domain == "ai.onnx" ? kOnnx : domain; }

struct Registry {
  std::vector<const OpDef*> list;
  std::unordered_map<std::string, const OpDef*> by_name;
  Registry() {
    for (Family family : kFamilies) {
      for (const OpDef& op : family()) {
        list.push_back(&op);
        by_name.emplace(std::string(op.domain) + ":" + std::string(op.type), &op);
      }
    }
  }
};
const Registry& registry() {
  static const Registry instance;
  return instance;
}

bool can_fold(const OpDef& op, std::span<const ValueType> inputs) {
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    bool by_shape = i < 32 && ((op.shape_only >> i) & 1U) != 0;
    if (!by_shape && inputs[i].dtype != DType::undefined && inputs[i].constant == nullptr) return false;
  }
  return true;
}

// The node's outputs, computed now by the reference kernel.
Result<std::vector<Tensor>> evaluate(const OpDef& op, const OpCall& call, std::span<const ValueType> outputs) {
  FALAJ_ASSIGN(KernelPtr kernel, make_reference(op, KernelCall{{call.node, call.inputs, call.opset}, outputs}));
  std::vector<Tensor> in(call.inputs.size());
  for (std::size_t i = 0; i < in.size(); ++i) {
    if (call.inputs[i].constant != nullptr) in[i] = *call.inputs[i].constant;
  }
  std::vector<Tensor> out;
  out.reserve(outputs.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    out.push_back(call.node.outputs[i].empty() ? Tensor() : Tensor::uninitialised(outputs[i].dtype, outputs[i].shape));
  }
  FALAJ_TRY(run_kernel(*kernel, in, out));
  return out;
}

}  // namespace

std::span<const OpDef* const> all_ops() { return registry().list; }

const OpDef* find_op(std::string_view domain, std::string_view type) {
  auto found = registry().by_name.find(std::string(canonical(domain)) + ":" + std::string(type));
  return found == registry().by_name.end() ? nullptr : found->second;
}

Result<std::vector<ValueType>> infer_node(const Node& node, std::span<const ValueType> inputs, std::int64_t opset) {
  const OpDef* op = find_op(node.domain, node.op);
  if (op == nullptr) return Error{ErrorCode::unimplemented, format("{}: unknown op", describe(node))};
  if (op->infer == nullptr)
    return Error{ErrorCode::unimplemented, format("{}: its outputs depend on data; it runs in the interpreter only", describe(node))};
  if (static_cast<int>(inputs.size()) < op->inputs_min) return invalid(format("{}: {} inputs are too few", describe(node), inputs.size()));
  for (int i = 0; i < op->inputs_min; ++i) {
    if (inputs[static_cast<std::size_t>(i)].dtype == DType::undefined) return invalid(format("{}: input {} is absent", describe(node), i));
  }
  std::vector<ValueType> outputs(node.outputs.size());
  InferCall call{{node, inputs, opset}, outputs};
  if (auto status = op->infer(call); !status) return within(describe(node), status.error());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (!node.outputs[i].empty() && outputs[i].dtype == DType::undefined) {
      return Error{ErrorCode::unimplemented, format("{}: output {} ('{}') is not supported", describe(node), i, node.outputs[i])};
    }
  }
  return outputs;
}

Result<std::vector<Tensor>> evaluate_node(const Node& node, std::span<const ValueType> inputs, std::int64_t opset,
                                          std::span<const ValueType> outputs) {
  const OpDef* op = find_op(node.domain, node.op);
  if (op == nullptr) return Error{ErrorCode::unimplemented, format("{}: unknown op", describe(node))};
  return evaluate(*op, OpCall{node, inputs, opset}, outputs);
}

Status run_kernel(const Kernel& kernel, std::span<const Tensor> inputs, std::span<Tensor> outputs) {
  std::vector<void*> in;
  std::vector<void*> out;
  for (const Tensor& t : inputs) in.push_back(const_cast<void*>(t.raw()));
  for (Tensor& t : outputs) out.push_back(t.mutable_raw());
  Tensor scratch = Tensor::uninitialised(DType::u8, {static_cast<std::int64_t>(kernel.scratch_bytes())});
  std::string failure;
  kernel.run(Io{in.data(), out.data(), static_cast<std::byte*>(scratch.mutable_raw()), &failure});
  if (!failure.empty()) return invalid(std::move(failure));
  return {};
}

Result<TypedGraph> infer_types(const Graph& graph, std::span<const Shape> input_shapes, std::size_t fold_bytes_max) {
  TypedGraph typed;
  FALAJ_ASSIGN(typed.order, topological_order(graph));
  for (const auto& [name, value] : graph.initializers) typed.types[name] = ValueType{value.dtype(), value.shape(), &value};
  for (std::size_t i = 0; i < graph.inputs.size(); ++i) {
    const ValueInfo& input = graph.inputs[i];
    // An open batch times a claimed size may be more than there can be: found here, before anything multiplies sizes.
    if (auto bytes = byte_size(input.dtype, input_shapes[i]); !bytes) return within(format("input '{}'", input.name), bytes.error());
    typed.types[input.name] = ValueType{input.dtype, input_shapes[i], nullptr};
  }
  for (std::size_t at : typed.order) {
    const Node& node = graph.nodes[at];
    std::vector<ValueType> inputs;
    inputs.reserve(node.inputs.size());
    for (const auto& name : node.inputs) inputs.push_back(name.empty() ? ValueType{} : typed.types.at(name));
    std::int64_t opset = graph.opset(node.domain);
    FALAJ_ASSIGN(auto outputs, infer_node(node, inputs, opset));
    const OpDef& op = *find_op(node.domain, node.op);
    std::size_t bytes = 0;
    for (const auto& output : outputs) bytes += byte_size(output.dtype, output.shape).value_or(0);
    if (bytes <= fold_bytes_max && can_fold(op, inputs)) {
      auto values = evaluate(op, OpCall{node, inputs, opset}, outputs);
      if (!values) return within(describe(node), values.error());
      for (std::size_t i = 0; i < outputs.size(); ++i) {
        if (!node.outputs[i].empty())
          outputs[i].constant = typed.constants.emplace_back(std::make_unique<Tensor>(std::move((*values)[i]))).get();
      }
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (!node.outputs[i].empty()) typed.types[node.outputs[i]] = outputs[i];
    }
  }
  return typed;
}

Result<TypedGraph> infer_types(const Graph& graph, std::int64_t size) {
  std::vector<Shape> shapes;
  for (const auto& input : graph.inputs) {
    Shape shape = input.shape;
    for (std::size_t i = 0; i < shape.rank(); ++i) shape[i] = shape[i] < 0 ? size : shape[i];
    shapes.push_back(shape);
  }
  return infer_types(graph, shapes);
}

Result<TypedGraph> infer_types(const Graph& graph) {
  Result<TypedGraph> typed = invalid("no batch");
  for (std::int64_t batch : {std::int64_t{7}, std::int64_t{8}, std::int64_t{12}}) {
    typed = infer_types(graph, batch);
    if (typed) break;
  }
  return typed;
}

Result<std::vector<Tensor>> run_reference(const Node& node, std::span<const Tensor> inputs, std::int64_t opset) {
  std::vector<ValueType> types;
  for (const Tensor& t : inputs) types.push_back(t.empty() ? ValueType{} : ValueType{t.dtype(), t.shape(), &t});
  FALAJ_ASSIGN(auto outputs, infer_node(node, types, opset));
  auto values = evaluate(*find_op(node.domain, node.op), OpCall{node, types, opset}, outputs);
  if (!values) return within(describe(node), values.error());
  return values;
}

Result<std::vector<Tensor>> promote_to_inputs(Graph& graph, std::span<const std::string> names) {
  std::vector<Tensor> values;
  for (const auto& name : names) {
    auto found = graph.initializers.find(name);
    if (found == graph.initializers.end()) return invalid(format("'{}' is no initialiser of the graph", name));
    graph.add_input(name, found->second.dtype(), found->second.shape());
    values.push_back(found->second);
    graph.initializers.erase(found);
  }
  return values;
}

}  // namespace falaj::kernels
