// Reverse-mode differentiation of a graph: walks the nodes backwards from the target, asks each op that lies between the target and
// what is wanted for its gradient nodes, and adds contributions in a fixed order, so that the same graph always gives the same bits.
#include <algorithm>
#include <map>
#include <set>

#include "kernels/ops.hpp"
#include "kernels/optimise.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {

GradientCall::GradientCall(Graph& graph, const Node& node, std::span<const ValueType> inputs, std::span<const ValueType> outputs,
                           std::vector<std::string> dy, std::vector<bool> wanted)
    : graph_(graph),
      node_(node),
      inputs_(inputs.begin(), inputs.end()),
      outputs_(outputs.begin(), outputs.end()),
      dy_(std::move(dy)),
      dx_(inputs.size()),
      wanted_(std::move(wanted)) {}

std::string GradientCall::add(std::string_view op, std::vector<std::string> inputs, Attributes attributes) {
  return graph_.add(kOnnx, op, std::move(inputs), std::move(attributes), graph_.fresh(format("grad/{}", op)));
}

std::string GradientCall::add_falaj(std::string_view op, std::vector<std::string> inputs, Attributes attributes) {
  return graph_.add(kFalaj, op, std::move(inputs), std::move(attributes), graph_.fresh(format("grad/{}", op)));
}

std::vector<std::string> GradientCall::add_many(std::string_view domain, std::string_view op, std::vector<std::string> inputs,
                                                Attributes attributes, std::size_t outputs) {
  Node node{std::string(op), std::string(domain), {}, std::move(inputs), {}, std::move(attributes)};
  for (std::size_t i = 0; i < outputs; ++i) node.outputs.push_back(graph_.fresh(format("grad/{}", op)));
  node.name = node.outputs.front();
  return graph_.add_node(std::move(node)).outputs;
}

std::string GradientCall::constant(double value, DType dtype) {
  Tensor tensor = dtype == DType::f64 ? Tensor::scalar<double>(value) : Tensor::scalar<float>(static_cast<float>(value));
  return graph_.add_initializer(graph_.fresh("grad/constant"), std::move(tensor));
}

namespace {

class Differentiator {
 public:
  Differentiator(Graph& graph, TypedGraph typed) : graph_(graph), typed_(std::move(typed)) {}

  Result<std::vector<std::string>> run(std::string_view target, std::span<const std::string> wrt, std::string_view seed) {
    for (const auto& name : wrt) {
      if (!typed_.types.contains(name)) return invalid(format("there is no value '{}' to differentiate with respect to", name));
      active_.insert(name);
    }
    auto found = typed_.types.find(target);
    if (found == typed_.types.end()) return invalid(format("there is no value '{}' to differentiate", target));
    if (!is_float(found->second.dtype))
      return invalid(format("'{}' is {}: only floats are differentiated", target, to_string(found->second.dtype)));
    spread();
    if (active_.contains(std::string(target)))
      contributions_[std::string(target)] = {seed.empty() ? ones_like(std::string(target), found->second) : std::string(seed)};
    for (std::size_t i = typed_.order.size(); i-- > 0;) FALAJ_TRY(visit(typed_.order[i]));
    std::vector<std::string> gradients;
    for (const auto& name : wrt) gradients.push_back(total(name));
    return gradients;
  }

 private:
  // What depends on the wanted values through floats.
  void spread() {
    for (std::size_t at : typed_.order) {
      const Node& node = graph_.nodes[at];
      if (std::ranges::none_of(node.inputs, [&](const auto& name) { return active_.contains(name); })) continue;
      for (const auto& output : node.outputs) {
        if (!output.empty() && is_float(typed_.types.at(output).dtype)) active_.insert(output);
      }
    }
  }

  std::string ones_like(const std::string& name, const ValueType& type) {
    std::string one = graph_.fresh("grad/one");
    graph_.add_initializer(one, type.dtype == DType::f64 ? Tensor::scalar<double>(1.0) : Tensor::scalar<float>(1.0F));
    if (type.shape.empty()) return one;
    std::string zeros = graph_.add(kFalaj, "ZerosLike", {name}, {}, graph_.fresh("grad/zeros"));
    return graph_.add(kOnnx, "Add", {zeros, one}, {}, graph_.fresh("grad/ones"));
  }

  // The sum of what has been contributed to a value, in the order of contribution; "" where there is nothing.
  std::string total(const std::string& name) {
    auto found = contributions_.find(name);
    if (found == contributions_.end()) return {};
    auto& parts = found->second;
    std::string sum = parts.front();
    for (std::size_t i = 1; i < parts.size(); ++i) sum = graph_.add(kOnnx, "Add", {sum, parts[i]}, {}, graph_.fresh("grad/sum"));
    parts = {sum};
    return sum;
  }

  Status visit(std::size_t at) {
    const Node node = graph_.nodes[at];  // a copy: appending moves the vector
    const OpDef& op = *find_op(node.domain, node.op);
    std::vector<bool> wanted;
    std::vector<ValueType> inputs;
    for (const auto& name : node.inputs) {
      const bool unread = inputs.size() < 32 && ((op.shape_only >> inputs.size()) & 1U) != 0;  // its shape does not move
      inputs.push_back(name.empty() ? ValueType{} : typed_.types.at(name));
      wanted.push_back(!name.empty() && !unread && active_.contains(name) && is_float(inputs.back().dtype));
    }
    if (std::ranges::none_of(wanted, std::identity{})) return {};
    std::vector<std::string> dy;
    std::vector<ValueType> outputs;
    for (const auto& name : node.outputs) {
      outputs.push_back(name.empty() ? ValueType{} : typed_.types.at(name));
      dy.push_back(name.empty() ? std::string() : total(name));
    }
    if (std::ranges::all_of(dy, &std::string::empty)) return {};
    if (op.gradient == nullptr)
      return Error{ErrorCode::unimplemented, format("{}: {} has no gradient; keep what is trained behind it", describe(node), node.op)};
    if (dy.front().empty() && op.outputs_max == 1) return {};
    GradientCall call(graph_, node, inputs, outputs, std::move(dy), wanted);
    if (auto status = op.gradient(call); !status) return within(describe(node), status.error());
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      if (!wanted[i] || call.stopped()) continue;
      if (call.dx()[i].empty())
        return Error{ErrorCode::unimplemented, format("{}: no gradient for input {} ('{}')", describe(node), i, node.inputs[i])};
      contributions_[node.inputs[i]].push_back(call.dx()[i]);
    }
    return {};
  }

  Graph& graph_;
  TypedGraph typed_;
  std::set<std::string, std::less<>> active_;
  std::map<std::string, std::vector<std::string>, std::less<>> contributions_;
};

}  // namespace

Result<std::vector<std::string>> append_gradients(Graph& graph, std::string_view target, std::span<const std::string> wrt,
                                                  std::string_view seed) {
  FALAJ_TRY(validate(graph));
  lower_recurrent(graph);
  FALAJ_ASSIGN(auto typed, infer_types(graph));
  // Shapes that were folded at that batch must not be mistaken for constants.
  return Differentiator(graph, std::move(typed)).run(target, wrt, seed);
}

}  // namespace falaj::kernels
