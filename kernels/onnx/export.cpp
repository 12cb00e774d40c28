#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>

#include "kernels/onnx/onnx.hpp"
#include "kernels/onnx/proto.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace onnx_format {

std::int32_t code_from(DType dtype) { return code_of(dtype); }

void write_tensor(const Tensor& tensor, onnx::TensorProto& proto) {
  proto.clear_dims();
  proto.clear_float_data();
  proto.clear_int32_data();
  proto.clear_string_data();
  proto.clear_int64_data();
  proto.clear_double_data();
  proto.clear_uint64_data();
  proto.clear_raw_data();
  proto.clear_external_data();
  proto.clear_data_location();
  for (std::int64_t d : tensor.shape()) proto.add_dims(d);
  proto.set_data_type(code_from(tensor.dtype()));
  if (tensor.dtype() == DType::string) {
    for (const auto& text : tensor.data<std::string>()) proto.add_string_data(text);
  } else if (tensor.dtype() == DType::i4 || tensor.dtype() == DType::u4) {
    std::string packed((tensor.elements() + 1) / 2, '\0');
    const auto* from = static_cast<const std::uint8_t*>(tensor.raw());
    for (std::size_t i = 0; i < tensor.elements(); ++i)
      packed[i / 2] = static_cast<char>(static_cast<std::uint8_t>(packed[i / 2]) | static_cast<unsigned>((from[i] & 0xFU) << (i % 2 * 4)));
    proto.set_raw_data(packed);
  } else {
    proto.set_raw_data(tensor.raw(), tensor.bytes());
  }
}

namespace {

// Where initialisers go: into the model, or those of some size into a file beside it.
class TensorWriter {
 public:
  explicit TensorWriter(const DataFile* file) : file_(file) {}
  [[nodiscard]] bool beside() const { return file_ != nullptr; }

  Status write(const Tensor& tensor, onnx::TensorProto& proto) {
    const bool plain = tensor.dtype() != DType::string && tensor.dtype() != DType::i4 && tensor.dtype() != DType::u4;
    if (file_ == nullptr || !plain || tensor.bytes() < kBesideMin) {
      write_tensor(tensor, proto);
      return {};
    }
    write_tensor(Tensor(tensor.dtype(), {0}), proto);
    proto.clear_raw_data();
    proto.clear_dims();
    for (const std::int64_t d : tensor.shape()) proto.add_dims(d);
    FALAJ_TRY(pad());
    proto.set_data_location(onnx::TensorProto::EXTERNAL);
    const auto entry = [&](const char* key, std::string value) {
      auto& added = *proto.add_external_data();
      added.set_key(key);
      added.set_value(std::move(value));
    };
    entry("location", file_->location);
    entry("offset", std::to_string(offset_));
    entry("length", std::to_string(tensor.bytes()));
    offset_ += tensor.bytes();
    return file_->write(ByteView(static_cast<const std::uint8_t*>(tensor.raw()), tensor.bytes()));
  }

 private:
  static constexpr std::size_t kBesideMin = 1024;
  static constexpr std::uint64_t kPage = 4096;  // so that readers can map what they want

  Status pad() {
    static constexpr std::uint8_t kZeros[kPage] = {};
    const std::uint64_t missing = (kPage - offset_ % kPage) % kPage;
    offset_ += missing;
    return missing == 0 ? Status{} : file_->write(ByteView(kZeros, missing));
  }

  const DataFile* file_;
  std::uint64_t offset_ = 0;
};

void write_attribute(const std::string& name, const Attribute& value, onnx::AttributeProto& a) {
  using P = onnx::AttributeProto;
  a.set_name(name);
  if (const auto* i = std::get_if<std::int64_t>(&value)) {
    a.set_type(P::INT);
    a.set_i(*i);
  } else if (const auto* f = std::get_if<float>(&value)) {
    a.set_type(P::FLOAT);
    a.set_f(*f);
  } else if (const auto* s = std::get_if<std::string>(&value)) {
    a.set_type(P::STRING);
    a.set_s(*s);
  } else if (const auto* ints = std::get_if<std::vector<std::int64_t>>(&value)) {
    a.set_type(P::INTS);
    for (auto v : *ints) a.add_ints(v);
  } else if (const auto* floats = std::get_if<std::vector<float>>(&value)) {
    a.set_type(P::FLOATS);
    for (auto v : *floats) a.add_floats(v);
  } else if (const auto* strings = std::get_if<std::vector<std::string>>(&value)) {
    a.set_type(P::STRINGS);
    for (const auto& v : *strings) a.add_strings(v);
  } else if (const auto* tensor = std::get_if<Tensor>(&value)) {
    a.set_type(P::TENSOR);
    write_tensor(*tensor, *a.mutable_t());
  }
}

void write_node(const Node& node, onnx::NodeProto& proto) {
  proto.set_op_type(node.op);
  if (!node.domain.empty()) proto.set_domain(node.domain);
  if (!node.name.empty()) proto.set_name(node.name);
  for (const auto& input : node.inputs) proto.add_input(input);
  for (const auto& output : node.outputs) proto.add_output(output);
  for (const auto& [name, value] : node.attributes) write_attribute(name, value, *proto.add_attribute());
}

void write_value_info(const ValueInfo& info, onnx::ValueInfoProto& proto) {
  proto.set_name(info.name);
  auto& type = *proto.mutable_type()->mutable_tensor_type();
  type.set_elem_type(code_from(info.dtype));
  if (!info.has_shape) return;
  auto& shape = *type.mutable_shape();
  for (std::size_t i = 0; i < info.shape.rank(); ++i) {
    auto& dim = *shape.add_dim();
    if (info.shape[i] >= 0) {
      dim.set_dim_value(info.shape[i]);
    } else if (i < info.symbols.size() && !info.symbols[i].empty()) {
      dim.set_dim_param(info.symbols[i]);
    }
  }
}

// Existing entries keep their place; the others follow by key.
void write_metadata(const Graph& graph, onnx::ModelProto& model) {
  auto& entries = *model.mutable_metadata_props();
  std::map<std::string, std::string, std::less<>> left = graph.metadata;
  for (int i = 0; i < entries.size();) {
    auto found = left.find(entries.Get(i).key());
    if (found == left.end()) {
      entries.DeleteSubrange(i, 1);
      continue;
    }
    if (entries.Get(i).value() != found->second) entries.Mutable(i)->set_value(found->second);
    left.erase(found);
    ++i;
  }
  for (const auto& [key, value] : left) {
    auto& entry = *entries.Add();
    entry.set_key(key);
    entry.set_value(value);
  }
}

Result<Bytes> serialise(const onnx::ModelProto& model) {
  std::size_t size = model.ByteSizeLong();
  if (size > static_cast<std::size_t>(std::numeric_limits<int>::max()))
    return Error{ErrorCode::unimplemented, format("the model has {} bytes; protobuf writes at most 2 GiB", size)};
  Bytes bytes(size);
  google::protobuf::io::ArrayOutputStream array(bytes.data(), static_cast<int>(size));
  google::protobuf::io::CodedOutputStream stream(&array);
  stream.SetSerializationDeterministic(true);
  if (!model.SerializeToCodedStream(&stream)) return failed("the model could not be serialised");
  return bytes;
}

bool same_structure(const Graph& a, const Graph& b) {
  return std::ranges::equal(a.nodes, b.nodes, [](const Node& x, const Node& y) {
    return x.op == y.op && x.domain == y.domain && x.inputs == y.inputs && x.outputs == y.outputs;
  });
}

Result<Bytes> export_imported(const Graph& graph, TensorWriter tensors) {
  FALAJ_ASSIGN(auto model, parse_model(*graph.origin, "the imported model"));
  // Where data lie in other files, the graph's own values are what is written.
  ExternalData nothing = [](std::string_view, std::uint64_t, std::uint64_t) -> Result<ExternalBytes> { return ExternalBytes{}; };
  FALAJ_ASSIGN(Graph original, read_graph(model, nothing));
  if (!same_structure(graph, original))
    return invalid("the graph's nodes were changed after it was imported: clear its origin to export it as a new model");
  bool changed = graph.metadata != original.metadata;
  for (auto& proto : *model.mutable_graph()->mutable_initializer()) {
    auto now = graph.initializers.find(proto.name());
    if (now == graph.initializers.end()) return invalid(format("initialiser '{}' of the imported model is missing", proto.name()));
    const Tensor& before = original.initializers.at(proto.name());
    FALAJ_ASSIGN(Shape shape, read_dims(proto));
    DType dtype = dtype_from(proto.data_type());
    if (now->second.dtype() != dtype || now->second.shape() != shape) {
      return invalid(format("initialiser '{}' was {}{} and is {}{}: an imported model keeps its types", proto.name(), to_string(dtype),
                            to_string(shape), to_string(now->second.dtype()), to_string(now->second.shape())));
    }
    if (!tensors.beside() && equal_bits(now->second, before)) continue;
    FALAJ_TRY(tensors.write(now->second, proto));
    changed = true;
  }
  if (graph.initializers.size() != original.initializers.size())
    return invalid("initialisers were added after the model was imported: clear its origin to export it as a new model");
  if (!changed) return Bytes(graph.origin->begin(), graph.origin->end());  // byte for byte, however the file orders its fields
  write_metadata(graph, model);
  return serialise(model);
}

Result<Bytes> export_new(const Graph& graph, TensorWriter tensors) {
  FALAJ_TRY(validate(graph));
  onnx::ModelProto model;
  model.set_ir_version(8);
  model.set_producer_name("falaj");
  std::set<std::string, std::less<>> domains = {""};
  FALAJ_ASSIGN(auto order, topological_order(graph));
  auto& proto = *model.mutable_graph();
  proto.set_name(graph.name.empty() ? "graph" : graph.name);
  for (std::size_t at : order) {
    const Node& node = graph.nodes[at];
    if (node.domain == kFalaj)
      return invalid(format("{}: ops of domain '{}' are for training and cannot be exported", describe(node), kFalaj));
    if (!node.captures.empty() ||
        std::ranges::any_of(node.attributes, [](const auto& a) { return std::holds_alternative<Subgraph>(a.second); }))
      return Error{ErrorCode::unimplemented, format("{}: new models with graphs in attributes are not written", describe(node))};
    domains.insert(node.domain);
    write_node(node, *proto.add_node());
  }
  for (const auto& domain : domains) {
    if (graph.opset(domain) < 1) return invalid(format("the graph uses domain '{}' but names no opset of it", domain));
    auto& opset = *model.add_opset_import();
    opset.set_domain(domain);
    opset.set_version(graph.opset(domain));
  }
  for (const auto& [name, value] : graph.initializers) {
    auto& tensor = *proto.add_initializer();
    tensor.set_name(name);
    FALAJ_TRY(tensors.write(value, tensor));
  }
  for (const auto& input : graph.inputs) write_value_info(input, *proto.add_input());
  for (const auto& output : graph.outputs) write_value_info(output, *proto.add_output());
  write_metadata(graph, model);
  return serialise(model);
}

}  // namespace
}  // namespace onnx_format

Result<Bytes> export_onnx(const Graph& graph, const DataFile* beside) {
  const onnx_format::TensorWriter tensors(beside);
  return graph.origin != nullptr ? onnx_format::export_imported(graph, tensors) : onnx_format::export_new(graph, tensors);
}

}  // namespace falaj::kernels
