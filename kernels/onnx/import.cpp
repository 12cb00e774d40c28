#include <algorithm>
#include <bit>
#include <charconv>
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

DType dtype_from(std::int32_t code) { return dtype_of_code(code); }

Result<onnx::ModelProto> parse_model(ByteView bytes, std::string_view name) {
  if (bytes.size() > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    return Error{ErrorCode::unimplemented,
                 format("{}: {} bytes beside its weights are more than protobuf reads in one piece (2 GiB)", name, bytes.size())};
  }
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

// Two values in a byte, the first in the low half.
Status unpack_nibbles(ByteView packed, Tensor& out) {
  if (packed.size() != (out.elements() + 1) / 2) return invalid(format("{} bytes for {} values of 4 bits", packed.size(), out.elements()));
  auto* to = static_cast<std::uint8_t*>(out.mutable_raw());
  for (std::size_t i = 0; i < out.elements(); ++i) {
    auto half = static_cast<std::uint8_t>((packed[i / 2] >> (i % 2 * 4)) & 0xFU);
    to[i] = out.dtype() == DType::i4 && half > 7 ? static_cast<std::uint8_t>(half | 0xF0U) : half;
  }
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
    case DType::f8e4m3fn:
    case DType::f8e4m3fnuz:
    case DType::f8e5m2:
    case DType::f8e5m2fnuz:
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
    case DType::i4:
    case DType::u4: {
      Bytes packed;
      for (std::int32_t v : proto.int32_data()) packed.push_back(static_cast<std::uint8_t>(v));
      return unpack_nibbles(packed, out);
    }
    case DType::undefined:
      break;
  }
  return invalid("no element type");
}

// key -> value of external_data, checked: a path inside the model's folder, and a range.
struct ExternalPlace {
  std::string location;
  std::uint64_t offset = 0, length = 0;
};
Result<ExternalPlace> external_place(const onnx::TensorProto& proto, std::size_t bytes) {
  ExternalPlace place;
  place.length = bytes;
  for (const auto& entry : proto.external_data()) {
    const std::string& value = entry.value();
    if (entry.key() == "location") {
      place.location = value;
    } else if (entry.key() == "offset" || entry.key() == "length") {
      std::uint64_t number = 0;
      auto [end, code] = std::from_chars(value.data(), value.data() + value.size(), number);
      if (code != std::errc{} || end != value.data() + value.size() || number > kTensorBytesMax * 64)
        return invalid(format("external_data has {} '{}': it must be a number of bytes", entry.key(), value.substr(0, 40)));
      (entry.key() == "offset" ? place.offset : place.length) = number;
    }
  }
  if (place.length != bytes) return invalid(format("its data in '{}' have {} bytes; {} are needed", place.location, place.length, bytes));
  std::string_view rest = place.location;
  bool inside = !rest.empty() && rest.size() <= kNameBytesMax && rest.front() != '/' && rest.find('\0') == std::string_view::npos &&
                rest.find('\\') == std::string_view::npos;
  while (inside && !rest.empty()) {
    std::size_t slash = rest.find('/');
    std::string_view part = rest.substr(0, slash);
    inside = part != "..";
    rest = slash == std::string_view::npos ? std::string_view() : rest.substr(slash + 1);
  }
  if (!inside)
    return Error{ErrorCode::denied,
                 format("its data are said to be in '{}': only files inside the model's folder are read", place.location)};
  return place;
}

Result<Tensor> read_external(const onnx::TensorProto& proto, DType dtype, const Shape& shape, std::size_t bytes,
                             const ExternalData& external) {
  if (dtype == DType::string) return invalid("strings may not be in another file");
  bool nibbles = dtype == DType::i4 || dtype == DType::u4;
  FALAJ_ASSIGN(auto place, external_place(proto, nibbles ? (bytes + 1) / 2 : bytes));
  if (!external)
    return Error{
        ErrorCode::unimplemented,
        format("its data are in another file ('{}'), which cannot be read here: save the model with its data embedded", place.location)};
  if (bytes == 0) return Tensor::uninitialised(dtype, shape);
  FALAJ_ASSIGN(auto data, external(place.location, place.offset, place.length));
  if (data.data == nullptr) return Tensor();  // only the structure is wanted
  if (nibbles) {
    Tensor tensor = Tensor::uninitialised(dtype, shape);
    FALAJ_TRY(unpack_nibbles({static_cast<const std::uint8_t*>(data.data), place.length}, tensor));
    return tensor;
  }
  bool aligned = reinterpret_cast<std::uintptr_t>(data.data) % 64 == 0;
  Tensor tensor = Tensor::adopt(dtype, shape, std::move(data.storage), data.data);
  if (dtype == DType::boolean) {
    Tensor checked = tensor.clone();
    auto* values = static_cast<std::uint8_t*>(checked.mutable_raw());
    for (std::size_t i = 0; i < bytes; ++i) values[i] = static_cast<const std::uint8_t*>(tensor.raw())[i] != 0 ? 1 : 0;
    return checked;
  }
  return aligned ? tensor : tensor.clone();
}

}  // namespace

Result<Shape> read_dims(const onnx::TensorProto& proto) {
  if (proto.dims_size() > static_cast<int>(kRankMax))
    return invalid(format("it has {} dimensions; at most {} are supported", proto.dims_size(), kRankMax));
  Shape shape;
  for (std::int64_t d : proto.dims()) shape.push_back(d);
  return shape;
}

Result<Tensor> read_tensor(const onnx::TensorProto& proto, const ExternalData& external, ByteView stripped) {
  DType dtype = dtype_from(proto.data_type());
  if (dtype == DType::undefined) return Error{ErrorCode::unimplemented, format("element type {} is not supported", proto.data_type())};
  FALAJ_ASSIGN(Shape shape, read_dims(proto));
  FALAJ_ASSIGN(std::size_t bytes, byte_size(dtype, shape));
  if (proto.data_location() == onnx::TensorProto::EXTERNAL) return read_external(proto, dtype, shape, bytes, external);
  // The data must be there before memory is taken for it: a shape is a claim.
  if (!stripped.empty() || proto.has_raw_data()) {
    const ByteView raw = stripped.empty() ? as_bytes(proto.raw_data()) : stripped;
    const bool nibbles = dtype == DType::i4 || dtype == DType::u4;
    if (dtype == DType::string) return invalid("strings may not be raw data");
    if (const auto needed = nibbles ? (bytes + 1) / 2 : bytes; raw.size() != needed)
      return invalid(format("shape {} of {} needs {} bytes, but {} are given", to_string(shape), to_string(dtype), needed, raw.size()));
    Tensor tensor = Tensor::uninitialised(dtype, shape);
    if (nibbles) {
      FALAJ_TRY(unpack_nibbles(raw, tensor));
    } else if (dtype == DType::boolean) {
      for (std::size_t i = 0; i < bytes; ++i) static_cast<std::uint8_t*>(tensor.mutable_raw())[i] = raw[i] != 0 ? 1 : 0;
    } else if (bytes > 0) {
      std::memcpy(tensor.mutable_raw(), raw.data(), bytes);
    }
    return tensor;
  }
  auto given = std::max({proto.float_data_size(), proto.double_data_size(), proto.int64_data_size(), proto.int32_data_size(),
                         proto.uint64_data_size(), proto.string_data_size()});
  bool nibbles = dtype == DType::i4 || dtype == DType::u4;
  if (static_cast<std::int64_t>(given) != (nibbles ? (shape.elements() + 1) / 2 : shape.elements()))
    return invalid(format("shape {} needs {} values, but {} are given", to_string(shape), shape.elements(), given));
  Tensor tensor(dtype, shape);
  FALAJ_TRY(copy_values(proto, tensor));
  return tensor;
}

namespace {

struct Context {
  const ExternalData& external;
  std::span<const ByteView> stripped;  // of the outermost graph's initialisers
  int depth = 0;
  std::size_t nodes = 0;  // in all graphs together
};

Result<Graph> read_graph_proto(const onnx::GraphProto& proto, Context& context);

Result<Attribute> read_attribute(const onnx::AttributeProto& a, Context& context) {
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
      FALAJ_ASSIGN(Tensor t, read_tensor(a.t(), context.external));
      return Attribute{std::move(t)};
    }
    case P::GRAPH: {
      if (context.depth == kSubgraphDepthMax) return invalid(format("graphs are nested deeper than {}", kSubgraphDepthMax));
      ++context.depth;
      auto graph = read_graph_proto(a.g(), context);
      --context.depth;
      if (!graph) return std::move(graph).error();
      return Attribute{Subgraph(std::make_shared<const Graph>(std::move(*graph)))};
    }
    case P::TYPE_PROTO:
      return Attribute{std::string("type")};  // of an Optional without a value: nothing depends on it
    default:
      return Error{ErrorCode::unimplemented, format("attribute type {} is not supported", static_cast<int>(a.type()))};
  }
}

Result<Node> read_node(const onnx::NodeProto& proto, Context& context) {
  Node node;
  node.op = proto.op_type();
  node.domain = proto.domain() == "ai.onnx" ? "" : proto.domain();
  node.name = proto.name();
  node.inputs.assign(proto.input().begin(), proto.input().end());
  node.outputs.assign(proto.output().begin(), proto.output().end());
  std::set<std::string> captures;
  for (const auto& attribute : proto.attribute()) {
    if (!attribute.ref_attr_name().empty())
      return invalid(format("{}: attribute '{}' refers to '{}' of a function, but stands in none", describe(node), attribute.name(),
                            attribute.ref_attr_name()));
    auto value = read_attribute(attribute, context);
    if (!value) return within(format("{}: attribute '{}'", describe(node), attribute.name()), value.error());
    if (const auto* body = std::get_if<Subgraph>(&*value)) {
      for (auto& name : free_names(**body)) captures.insert(std::move(name));
    }
    if (!node.attributes.emplace(attribute.name(), std::move(*value)).second)
      return invalid(format("{}: attribute '{}' is given twice", describe(node), attribute.name()));
  }
  node.captures.assign(captures.begin(), captures.end());
  // Optional inputs and outputs at the end may be left out or be empty: one form for both.
  while (!node.inputs.empty() && node.inputs.back().empty()) node.inputs.pop_back();
  while (node.outputs.size() > 1 && node.outputs.back().empty()) node.outputs.pop_back();
  return node;
}

// The tensor type inside sequences and optionals; null: there is none (a map, or no type at all).
const onnx::TypeProto_Tensor* unwrap(const onnx::TypeProto& type, ValueKind& kind) {
  if (type.has_tensor_type()) return &type.tensor_type();
  if (type.has_sequence_type()) {
    kind = ValueKind::sequence;
    ValueKind inner = ValueKind::tensor;
    return unwrap(type.sequence_type().elem_type(), inner);
  }
  if (type.has_optional_type()) {
    ValueKind inner = ValueKind::tensor;
    const auto* found = unwrap(type.optional_type().elem_type(), inner);
    kind = ValueKind::optional;
    return found;
  }
  return nullptr;
}

// `strict`: inputs need a type; outputs may be what we have no type for (ZipMap's sequence of maps).
Result<ValueInfo> read_value_info(const onnx::ValueInfoProto& proto, bool strict) {
  ValueInfo info;
  info.name = proto.name();
  info.has_shape = false;
  const auto* found = unwrap(proto.type(), info.kind);
  if (found == nullptr) {
    info.kind = ValueKind::tensor;
    if (!strict) return info;
    return Error{
        ErrorCode::unimplemented,
        format("input '{}' has no type, or one without tensors: tensors, sequences and optionals of them are supported", info.name)};
  }
  const auto& type = *found;
  info.dtype = dtype_from(type.elem_type());
  if (info.dtype == DType::undefined && (strict || type.elem_type() != 0)) {
    return Error{ErrorCode::unimplemented, format("'{}' has element type {}, which is not supported", info.name, type.elem_type())};
  }
  if (!type.has_shape() || info.kind != ValueKind::tensor) return info;
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

Status check_domains(const Graph& model, const Graph& graph, bool& uses_onnx) {
  for (const Node& node : graph.nodes) {
    uses_onnx = uses_onnx || node.domain.empty();
    if (node.domain == kFalaj) return invalid(format("{}: domain '{}' is not for files", describe(node), kFalaj));
    if (!model.opsets.contains(node.domain))
      return invalid(format("{}: the model imports no opset of domain '{}'", describe(node), node.domain));
    for (const auto& [name, value] : node.attributes) {
      if (const auto* body = std::get_if<Subgraph>(&value)) FALAJ_TRY(check_domains(model, **body, uses_onnx));
    }
  }
  return {};
}

Status read_opsets(const onnx::ModelProto& model, Graph& graph) {
  graph.opsets.clear();
  for (const auto& opset : model.opset_import()) {
    std::string domain = opset.domain() == "ai.onnx" ? "" : opset.domain();
    graph.opsets[domain] = opset.version();
  }
  bool uses_onnx = false;
  FALAJ_TRY(check_domains(graph, graph, uses_onnx));
  if (uses_onnx && graph.opset("") < kOpsetMin) {
    return Error{ErrorCode::unimplemented,
                 format("the model is written for opset {}; {} or newer is needed: convert it with onnx.version_converter", graph.opset(""),
                        kOpsetMin)};
  }
  return {};
}

Result<Graph> read_graph_proto(const onnx::GraphProto& proto, Context& context) {
  Graph graph;
  graph.name = proto.name();
  context.nodes += static_cast<std::size_t>(proto.node_size());
  if (context.nodes > kNodesMax) return invalid(format("the graph has more than {} nodes", kNodesMax));
  const bool outermost = context.depth == 0;
  for (int i = 0; i < proto.initializer_size(); ++i) {
    const auto& initializer = proto.initializer(i);
    const bool was_stripped = outermost && static_cast<std::size_t>(i) < context.stripped.size();
    auto value = read_tensor(initializer, context.external, was_stripped ? context.stripped[static_cast<std::size_t>(i)] : ByteView{});
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
    FALAJ_ASSIGN(ValueInfo info, read_value_info(input, outermost));
    graph.inputs.push_back(std::move(info));
  }
  for (const auto& output : proto.output()) {
    FALAJ_ASSIGN(ValueInfo info, read_value_info(output, false));
    graph.outputs.push_back(std::move(info));
  }
  if (graph.outputs.empty() && outermost) return invalid("the graph has no outputs");
  for (const auto& node : proto.node()) {
    FALAJ_ASSIGN(Node read, read_node(node, context));
    graph.nodes.push_back(std::move(read));
  }
  return graph;
}

}  // namespace

Result<Graph> read_graph(const onnx::ModelProto& model, const ExternalData& external, std::span<const ByteView> stripped) {
  if (!model.has_graph()) return invalid("the model has no graph");
  if (model.functions_size() > 0) {
    onnx::ModelProto plain = model;
    FALAJ_TRY(inline_functions(plain));
    plain.clear_functions();
    return read_graph(plain, external, stripped);
  }
  Context context{external, stripped};
  FALAJ_ASSIGN(Graph graph, read_graph_proto(model.graph(), context));
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
    if (!fits && graph.opset(kOnnxMl) == 0)
      return invalid(
          format("output '{}' is declared {}, but the graph computes {}", output.name, to_string(output.shape), to_string(type.shape)));
    // Converters of classical models declare two columns where there is one, or one row where there are many: what is computed counts.
    if (!fits) output = {.name = output.name, .dtype = output.dtype, .has_shape = false};
  }
  return {};
}

// Inputs whose sizes are known, or all unknown ones of which may be the same: then a trial says something.
bool can_try(const Graph& graph) {
  std::set<std::string_view> symbols;
  std::size_t anonymous = 0;
  for (const auto& input : graph.inputs) {
    if (input.kind != ValueKind::tensor || !input.has_shape) return false;
    for (std::size_t d = 0; d < input.shape.rank(); ++d) {
      if (input.shape[d] >= 0) continue;
      if (d < input.symbols.size() && !input.symbols[d].empty()) {
        symbols.insert(input.symbols[d]);
      } else {
        anonymous += d > 0 ? 1 : 0;  // an anonymous first dimension is a batch
      }
    }
  }
  return anonymous == 0 && symbols.size() <= 1;
}

// A trial with some batch finds wrong shapes now rather than at the first request. What depends on data is found out by running.
Status check_types(Graph& graph) {
  if (!can_try(graph)) return {};
  Status first;
  for (std::int64_t batch : {std::int64_t{7}, std::int64_t{8}, std::int64_t{1}}) {
    auto typed = infer_types(graph, batch);
    Status status;
    if (typed) {
      status = settle_outputs(graph, *typed);
    } else {
      status = typed.error();
    }
    if (status || status.error().code == ErrorCode::unimplemented) return {};
    if (first) first = status;
  }
  return first;
}

}  // namespace

Result<Graph> import_onnx(ModelBytes bytes, std::string_view name, const ExternalData& external) {
  using namespace onnx_format;
  if (bytes.view.empty()) return invalid(format("{}: the file is empty", name));
  if (auto status = check_wire(bytes.view); !status) return within(name, status.error());
  FALAJ_ASSIGN(const Stripped stripped, strip(bytes.view));
  FALAJ_ASSIGN(auto model, parse_model(stripped.model, name));
  auto graph = read_graph(model, external, stripped.raw);
  if (!graph) return within(name, graph.error());
  if (auto status = validate(*graph); !status) return within(name, status.error());
  if (auto status = check_types(*graph); !status) return within(name, status.error());
  const auto origin = std::make_shared<const ModelBytes>(std::move(bytes));
  graph->origin = std::shared_ptr<const ByteView>(origin, &origin->view);
  return graph;
}

Result<Graph> import_onnx(ByteView bytes, std::string_view name, const ExternalData& external) {
  const auto copy = std::make_shared<const Bytes>(bytes.begin(), bytes.end());
  return import_onnx(ModelBytes{*copy, copy}, name, external);
}

}  // namespace falaj::kernels
