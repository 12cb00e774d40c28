// Calls of a model's own functions, replaced by the functions' nodes. Values inside get names of their own for each call; attributes
// that refer to the call's are replaced by them.
#include <map>
#include <set>

#include "kernels/onnx/proto.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels::onnx_format {
namespace {

constexpr int kAttributeProtoField = 11;  // FunctionProto.attribute_proto: newer than the headers

using Names = std::map<std::string, std::string, std::less<>>;
using Given = std::map<std::string, onnx::AttributeProto, std::less<>>;

class Inliner {
 public:
  explicit Inliner(const onnx::ModelProto& model) : model_(model) {}

  Status collect() {
    for (const auto& function : model_.functions()) {
      if (!functions_.emplace(key(function.domain(), function.name()), &function).second)
        return Error{ErrorCode::unimplemented, format("function '{}' of domain '{}' is given twice (overloads are not supported)",
                                                      function.name(), function.domain())};
      for (const auto& opset : function.opset_import()) {
        for (const auto& own : model_.opset_import()) {
          bool same_domain = plain(own.domain()) == plain(opset.domain());
          if (same_domain && own.version() != opset.version())
            return Error{ErrorCode::unimplemented, format("function '{}' is written for opset {} of domain '{}', the model for {}",
                                                          function.name(), opset.version(), opset.domain(), own.version())};
        }
      }
    }
    return {};
  }

  // The nodes of `from`, with calls replaced, renamed by `names` (outside a function: not at all), appended to `to`.
  template <class Nodes>
  Status expand(const Nodes& from, const Names& names, const Given* given, const std::string& prefix, int depth,
                google::protobuf::RepeatedPtrField<onnx::NodeProto>& to) {
    for (const auto& node : from) {
      if (++nodes_ > kNodesMax) return invalid(format("with its functions the model has more than {} nodes", kNodesMax));
      onnx::NodeProto copy = node;
      FALAJ_TRY(rewrite(copy, names, given, prefix, depth));
      auto found = functions_.find(key(node.domain(), node.op_type()));
      if (found == functions_.end()) {
        *to.Add() = std::move(copy);
      } else {
        FALAJ_TRY(call(*found->second, copy, depth, to));
      }
    }
    return {};
  }

 private:
  static std::string plain(const std::string& domain) { return domain == "ai.onnx" ? "" : domain; }
  static std::string key(const std::string& domain, const std::string& name) { return plain(domain) + "::" + name; }

  static std::string renamed(const std::string& name, const Names& names) {
    auto found = names.find(name);
    return found == names.end() ? name : found->second;
  }

  Status rewrite(onnx::NodeProto& node, const Names& names, const Given* given, const std::string& prefix, int depth) {
    for (auto& name : *node.mutable_input()) name = renamed(name, names);
    for (auto& name : *node.mutable_output()) name = renamed(name, names);
    if (!prefix.empty()) node.set_name(prefix + node.name());
    auto& attributes = *node.mutable_attribute();
    for (int i = 0; i < attributes.size();) {
      auto& attribute = attributes[i];
      if (given != nullptr && !attribute.ref_attr_name().empty()) {
        auto found = given->find(attribute.ref_attr_name());
        if (found == given->end()) {  // neither given nor with a default: absent
          attributes.DeleteSubrange(i, 1);
          continue;
        }
        std::string name = attribute.name();
        attribute = found->second;
        attribute.set_name(name);
      } else if (attribute.has_g()) {
        FALAJ_TRY(rewrite_graph(*attribute.mutable_g(), names, given, prefix, depth));
      }
      ++i;
    }
    return {};
  }

  // A graph in an attribute: its own names hide those outside; calls in it are replaced too.
  Status rewrite_graph(onnx::GraphProto& graph, const Names& names, const Given* given, const std::string& prefix, int depth) {
    if (depth >= kDepthMax) return invalid(format("functions and graphs are nested deeper than {}", kDepthMax));
    Names inner = names;
    for (const auto& input : graph.input()) inner.erase(input.name());
    for (const auto& initializer : graph.initializer()) inner.erase(initializer.name());
    for (const auto& node : graph.node()) {
      for (const auto& output : node.output()) inner.erase(output);
    }
    google::protobuf::RepeatedPtrField<onnx::NodeProto> nodes;
    FALAJ_TRY(expand(graph.node(), inner, given, prefix, depth + 1, nodes));
    graph.mutable_node()->Swap(&nodes);
    for (auto& output : *graph.mutable_output()) output.set_name(renamed(output.name(), inner));
    return {};
  }

  Status call(const onnx::FunctionProto& function, const onnx::NodeProto& node, int depth,
              google::protobuf::RepeatedPtrField<onnx::NodeProto>& to) {
    std::string name = key(function.domain(), function.name());
    if (depth >= kDepthMax || !active_.insert(name).second)
      return invalid(format("function '{}' calls itself, or functions are nested deeper than {}", function.name(), kDepthMax));
    if (node.input_size() > function.input_size() || node.output_size() > function.output_size())
      return invalid(format("a call of function '{}' has more inputs or outputs than the function", function.name()));
    std::string prefix = format("{}#{}/", function.name(), ++calls_);
    Names names;
    for (const auto& inner : function.node()) {
      for (const auto& output : inner.output()) {
        if (!output.empty()) names[output] = prefix + output;
      }
    }
    for (int i = 0; i < function.input_size(); ++i) names[function.input(i)] = i < node.input_size() ? node.input(i) : "";
    std::vector<std::pair<std::string, std::string>> passed;  // outputs that are inputs: nothing in the function makes them
    for (int i = 0; i < function.output_size(); ++i) {
      if (i >= node.output_size() || node.output(i).empty()) continue;
      const std::string& formal = function.output(i);
      bool is_input = std::find(function.input().begin(), function.input().end(), formal) != function.input().end();
      bool repeated = std::find(function.output().begin(), function.output().begin() + i, formal) != function.output().begin() + i;
      if (is_input || repeated) {
        passed.emplace_back(renamed(formal, names), node.output(i));
      } else {
        names[formal] = node.output(i);
      }
    }
    Given given;
    defaults(function, given);
    for (const auto& attribute : node.attribute()) given[attribute.name()] = attribute;
    FALAJ_TRY(expand(function.node(), names, &given, prefix, depth + 1, to));
    for (const auto& [from, target] : passed) {
      auto& identity = *to.Add();
      identity.set_op_type("Identity");
      identity.add_input(from);
      identity.add_output(target);
    }
    active_.erase(name);
    return {};
  }

  static void defaults(const onnx::FunctionProto& function, Given& given) {
    const auto& unknown = function.GetReflection()->GetUnknownFields(function);
    for (int i = 0; i < unknown.field_count(); ++i) {
      const auto& field = unknown.field(i);
      if (field.number() != kAttributeProtoField || field.type() != google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED) continue;
      onnx::AttributeProto attribute;
      if (attribute.ParseFromString(field.length_delimited())) given[attribute.name()] = attribute;
    }
  }

  static constexpr int kDepthMax = 16;
  const onnx::ModelProto& model_;
  std::map<std::string, const onnx::FunctionProto*> functions_;
  std::set<std::string> active_;
  std::size_t nodes_ = 0;
  std::size_t calls_ = 0;
};

}  // namespace

Status inline_functions(onnx::ModelProto& model) {
  Inliner inliner(model);
  FALAJ_TRY(inliner.collect());
  google::protobuf::RepeatedPtrField<onnx::NodeProto> nodes;
  FALAJ_TRY(inliner.expand(model.graph().node(), {}, nullptr, "", 0, nodes));
  model.mutable_graph()->mutable_node()->Swap(&nodes);
  return {};
}

}  // namespace falaj::kernels::onnx_format
