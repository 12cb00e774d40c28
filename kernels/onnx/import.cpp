#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <set>

#include "kernels/onnx/onnx.hpp"
#include "kernels/onnx/proto.hpp"
#include "kernels/onnx/wire.hpp"
#include "kernels/ops.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace onnx_format {

static_assert(std::endian::native == std::endian::little, "raw_data is little endian");

DType dtype_from(std::int32_t code) {
  using P = onnx::TensorProto;
  switch (code) {
    case P::FLOAT:
      return DType::f32;
    case P::UINT8:
      return DType::u8;
    case P::INT8:
      return DType::i8;
    case P::UINT16:
      return DType::u16;
    case P::INT16:
      return DType::i16;
    case P::INT32:
      return DType::i32;
    case P::INT64:
      return DType::i64;
    case P::STRING:
      return DType::string;
    case P::BOOL:
      return DType::boolean;
    case P::FLOAT16:
      return DType::f16;
    case P::DOUBLE:
      return DType::f64;
    case P::UINT32:
      return DType::u32;
    case P::UINT64:
      return DType::u64;
    case P::BFLOAT16:
      return DType::bf16;
    default:
      return DType::undefined;
  }
}

Result<onnx::ModelProto> parse_model(ByteView bytes, std::string_view name) {
  if (bytes.empty()) return invalid(format("{}: the file is empty", name));
  if (bytes.size() > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    return Error{ErrorCode::unimplemented, format("{}: {} bytes are more than protobuf reads in one piece (2 GiB)", name, bytes.size())};
  }
  if (auto status = check_wire(bytes); !status) return within(name, status.error());
  onnx::ModelProto model;
  if (!model.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return Error{ErrorCode::corrupt, format("{}: this is no ONNX model, or it is damaged", name)};
  }
  return model;
}

namespace {

// Elements from a repeated field of a wider type.
template <class T, class Field>
Status copy_field(const Field& field, Tensor& out) {
  if (static_cast<std::size_t>(field.size()) != out.elements())
    return invalid(format("{} values for shape {}", field.size(), to_string(out.shape())));
  auto* to = static_cast<T*>(out.mutable_raw());
  for (int i = 0; i < field.size(); ++i) to[i] = static_cast<T>(field.Get(i));
  return {};
}

Status copy_values(const onnx::TensorProto& proto, Tensor& out) {
  switch (out.dtype()) {
    case DType::f32:
      return copy_field<float>(proto.float_data(), out);
    case DType::f64:
      return copy_field<double>(proto.double_data(), out);
    case DType::i64:
      return copy_field<std::int64_t>(proto.int64_data(), out);
    case DType::i32:
      return copy_field<std::int32_t>(proto.int32_data(), out);
    case DType::u8:
    case DType::i8:
      return copy_field<std::uint8_t>(proto.int32_data(), out);
    case DType::boolean: {
      FALAJ_TRY(copy_field<std::uint8_t>(proto.int32_data(), out));
      for (bool& b : out.mutable_data<bool>()) b = *reinterpret_cast<const std::uint8_t*>(&b) != 0;
      return {};
    }
    case DType::i16:
    case DType::u16:
    case DType::f16:
    case DType::bf16:
      return copy_field<std::uint16_t>(proto.int32_data(), out);
    case DType::u32:
      return copy_field<std::uint32_t>(proto.uint64_data(), out);
    case DType::u64:
      return copy_field<std::uint64_t>(proto.uint64_data(), out);
    case DType::string: {
      if (static_cast<std::size_t>(proto.string_data_size()) != out.elements())
        return invalid(format("{} strings for shape {}", proto.string_data_size(), to_string(out.shape())));
      std::copy(proto.string_data().begin(), proto.string_data().end(), out.mutable_data<std::string>().begin());
      return {};
    }
    case DType::undefined:
      break;
  }
  return invalid("no element type");
}

}  // namespace

Result<Tensor> read_tensor(const onnx::TensorProto& proto) {
  DType dtype = dtype_from(proto.data_type());
  if (dtype == DType::undefined) return Error{ErrorCode::unimplemented, format("element type {} is not supported", proto.data_type())};
  if (proto.data_location() == onnx::TensorProto::EXTERNAL) {
    return Error{ErrorCode::unimplemented, "its data are in another file: save the model with its data embedded"};
  }
  if (proto.dims_size() > static_cast<int>(kRankMax))
    return invalid(format("it has {} dimensions; at most {} are supported", proto.dims_size(), kRankMax));
  Shape shape;
  for (std::int64_t d : proto.dims()) shape.push_back(d);
  FALAJ_ASSIGN(std::size_t bytes, byte_size(dtype, shape));
  // The data must be there before memory is taken for it: a shape is a claim.
  if (proto.has_raw_data()) {
    if (dtype == DType::string) return invalid("strings may not be raw data");
    if (proto.raw_data().size() != bytes)
      return invalid(
          format("shape {} of {} needs {} bytes, but {} are given", to_string(shape), to_string(dtype), bytes, proto.raw_data().size()));
    Tensor tensor = Tensor::uninitialised(dtype, shape);
    if (bytes > 0) std::memcpy(tensor.mutable_raw(), proto.raw_data().data(), bytes);
    if (dtype == DType::boolean) {
      for (std::size_t i = 0; i < bytes; ++i) static_cast<std::uint8_t*>(tensor.mutable_raw())[i] = proto.raw_data()[i] != 0 ? 1 : 0;
    }
    return tensor;
  }
  auto given = std::max({proto.float_data_size(), proto.double_data_size(), proto.int64_data_size(), proto.int32_data_size(),
                         proto.uint64_data_size(), proto.string_data_size()});
  if (static_cast<std::int64_t>(given) != shape.elements())
    return invalid(format("shape {} needs {} values, but {} are given", to_string(shape), shape.elements(), given));
  Tensor tensor(dtype, shape);
  FALAJ_TRY(copy_values(proto, tensor));
  return tensor;
}

namespace {

Result<Attribute> read_attribute(const onnx::AttributeProto& a) {
  using P = onnx::AttributeProto;
  switch (a.type()) {
    case P::FLOAT:
      return Attribute{a.f()};
    case P::INT:
      return Attribute{static_cast<std::int64_t>(a.i())};
    case P::STRING:
      return Attribute{a.s()};
    case P::FLOATS:
      return Attribute{std::vector<float>(a.floats().begin(), a.floats().end())};
    case P::INTS:
      return Attribute{std::vector<std::int64_t>(a.ints().begin(), a.ints().end())};
    case P::STRINGS:
      return Attribute{std::vector<std::string>(a.strings().begin(), a.strings().end())};
    case P::TENSOR: {
      FALAJ_ASSIGN(Tensor t, read_tensor(a.t()));
      return Attribute{std::move(t)};
    }
    case P::GRAPH:
    case P::GRAPHS:
      return Error{ErrorCode::unimplemented, "it holds a graph: If, Loop and Scan are not supported"};
    default:
      return Error{ErrorCode::unimplemented, format("attribute type {} is not supported", static_cast<int>(a.type()))};
  }
}

Result<Node> read_node(const onnx::NodeProto& proto) {
  Node node;
  node.op = proto.op_type();
  node.domain = proto.domain() == "ai.onnx" ? "" : proto.domain();
  node.name = proto.name();
  node.inputs.assign(proto.input().begin(), proto.input().end());
  node.outputs.assign(proto.output().begin(), proto.output().end());
  for (const auto& attribute : proto.attribute()) {
    auto value = read_attribute(attribute);
    if (!value) return within(format("{}: attribute '{}'", describe(node), attribute.name()), value.error());
    if (!node.attributes.emplace(attribute.name(), std::move(*value)).second)
      return invalid(format("{}: attribute '{}' is given twice", describe(node), attribute.name()));
  }
  // Optional inputs and outputs at the end may be left out or be empty: one form for both.
  while (!node.inputs.empty() && node.inputs.back().empty()) node.inputs.pop_back();
  while (node.outputs.size() > 1 && node.outputs.back().empty()) node.outputs.pop_back();
  return node;
}

// `strict`: inputs need a tensor type; outputs may be what we have no type for (ZipMap's sequence of maps).
Result<ValueInfo> read_value_info(const onnx::ValueInfoProto& proto, bool strict) {
  ValueInfo info;
  info.name = proto.name();
  info.has_shape = false;
  if (!proto.type().has_tensor_type()) {
    if (!strict) return info;
    return Error{ErrorCode::unimplemented, format("input '{}' is no tensor (or has no type): only tensors are supported", info.name)};
  }
  const auto& type = proto.type().tensor_type();
  info.dtype = dtype_from(type.elem_type());
  if (info.dtype == DType::undefined && (strict || type.elem_type() != 0)) {
    return Error{ErrorCode::unimplemented, format("'{}' has element type {}, which is not supported", info.name, type.elem_type())};
  }
  if (!type.has_shape()) {
    if (strict)
      return Error{ErrorCode::unimplemented, format("input '{}' has no shape: give it one (a batch may stay symbolic)", info.name)};
    return info;
  }
  if (type.shape().dim_size() > static_cast<int>(kRankMax))
    return invalid(format("'{}' has {} dimensions; at most {} are supported", info.name, type.shape().dim_size(), kRankMax));
  info.has_shape = true;
  for (const auto& dim : type.shape().dim()) {
    bool known = dim.has_dim_value() && dim.dim_value() >= 0;
    info.shape.push_back(known ? dim.dim_value() : -1);
    info.symbols.push_back(dim.has_dim_param() ? dim.dim_param() : "");
  }
  return info;
}

Status read_opsets(const onnx::ModelProto& model, Graph& graph) {
  graph.opsets.clear();
  for (const auto& opset : model.opset_import()) {
    std::string domain = opset.domain() == "ai.onnx" ? "" : opset.domain();
    graph.opsets[domain] = opset.version();
  }
  bool uses_onnx = std::ranges::any_of(graph.nodes, [](const Node& n) { return n.domain.empty(); });
  if (uses_onnx && graph.opset("") < kOpsetMin) {
    return Error{ErrorCode::unimplemented,
                 format("the model is written for opset {}; {} or newer is needed: convert it with onnx.version_converter", graph.opset(""),
                        kOpsetMin)};
  }
  for (const Node& node : graph.nodes) {
    if (node.domain == kFalaj) return invalid(format("{}: domain '{}' is not for files", describe(node), kFalaj));
    if (!graph.opsets.contains(node.domain))
      return invalid(format("{}: the model imports no opset of domain '{}'", describe(node), node.domain));
  }
  return {};
}

}  // namespace

Result<Graph> read_graph(const onnx::ModelProto& model) {
  if (!model.has_graph()) return invalid("the model has no graph");
  const auto& proto = model.graph();
  Graph graph;
  graph.name = proto.name();
  if (proto.node_size() > static_cast<int>(kNodesMax))
    return invalid(format("the graph has {} nodes; at most {} are accepted", proto.node_size(), kNodesMax));
  for (const auto& initializer : proto.initializer()) {
    auto value = read_tensor(initializer);
    if (!value) return within(format("initialiser '{}'", initializer.name()), value.error());
    if (!graph.initializers.emplace(initializer.name(), std::move(*value)).second)
      return invalid(format("initialiser '{}' is given twice", initializer.name()));
  }
  if (proto.sparse_initializer_size() > 0) {
    return Error{ErrorCode::unimplemented,
                 format("initialiser '{}' is sparse: store it dense", proto.sparse_initializer(0).values().name())};
  }
  for (const auto& input : proto.input()) {
    if (graph.initializers.contains(input.name())) continue;  // older files list both
    FALAJ_ASSIGN(ValueInfo info, read_value_info(input, true));
    graph.inputs.push_back(std::move(info));
  }
  for (const auto& output : proto.output()) {
    FALAJ_ASSIGN(ValueInfo info, read_value_info(output, false));
    graph.outputs.push_back(std::move(info));
  }
  if (graph.outputs.empty()) return invalid("the graph has no outputs");
  for (const auto& node : proto.node()) {
    FALAJ_ASSIGN(Node read, read_node(node));
    graph.nodes.push_back(std::move(read));
  }
  for (const auto& entry : model.metadata_props()) graph.metadata[entry.key()] = entry.value();
  FALAJ_TRY(read_opsets(model, graph));
  return graph;
}

}  // namespace onnx_format

namespace {

// What a graph declares of its outputs must be what it computes; what it leaves open is filled in.
Status settle_outputs(Graph& graph, const TypedGraph& typed) {
  for (ValueInfo& output : graph.outputs) {
    const ValueType& type = typed.types.at(output.name);
    if (output.dtype != DType::undefined && output.dtype != type.dtype) {
      return invalid(
          format("output '{}' is declared {}, but the graph computes {}", output.name, to_string(output.dtype), to_string(type.dtype)));
    }
    output.dtype = type.dtype;
    if (!output.has_shape) continue;
    bool fits = output.shape.rank() == type.shape.rank();
    for (std::size_t d = 0; fits && d < type.shape.rank(); ++d) fits = output.shape[d] < 0 || output.shape[d] == type.shape[d];
    if (!fits)
      return invalid(
          format("output '{}' is declared {}, but the graph computes {}", output.name, to_string(output.shape), to_string(type.shape)));
  }
  return {};
}

// A trial with some batch finds wrong shapes now rather than at the first request.
Status check_types(Graph& graph) {
  Status first;
  for (std::int64_t batch : {std::int64_t{7}, std::int64_t{8}, std::int64_t{1}}) {
    auto typed = infer_types(graph, batch);
    Status status;
    if (typed) {
      status = settle_outputs(graph, *typed);
    } else {
      status = typed.error();
    }
    if (status) return {};
    if (first) first = status;
  }
  return first;
}

}  // namespace

Result<Graph> import_onnx(ByteView bytes, std::string_view name) {
  FALAJ_ASSIGN(auto model, onnx_format::parse_model(bytes, name));
  auto graph = onnx_format::read_graph(model);
  if (!graph) return within(name, graph.error());
  if (auto status = validate(*graph); !status) return within(name, status.error());
  if (auto status = check_types(*graph); !status) return within(name, status.error());
  graph->origin = std::make_shared<const Bytes>(bytes.begin(), bytes.end());
  return graph;
}

}  // namespace falaj::kernels
