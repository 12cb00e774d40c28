// Before use_integers looks for patterns: one way to write quantised ops, and one type of their values.
#include <algorithm>
#include <map>

#include "kernels/ops.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/ops/microsoft.hpp"
#include "kernels/optimise.hpp"

namespace falaj::kernels {
namespace {

bool is(const Node& node, std::string_view op) { return node.domain == kOnnx && node.op == op; }

// Names of the scale and the zero point ("": none) of a quantised value.
struct Scaling {
  std::string scale, zero;
};

class Separator {
 public:
  explicit Separator(Graph& graph) : graph_(graph), gone_(graph.nodes.size(), false) {}

  Status run() {
    FALAJ_ASSIGN(const auto order, topological_order(graph_));
    for (const std::size_t at : order) {
      const Node node = graph_.nodes[at];
      gone_[at] = take(node);
    }
    erase_nodes(graph_, gone_);
    for (Node& node : made_) graph_.nodes.push_back(std::move(node));
    return {};
  }

 private:
  bool known(const std::string& name) const { return graph_.initializers.contains(name); }
  const Tensor& value(const std::string& name) const { return graph_.initializers.find(name)->second; }
  bool one(const std::string& name) const { return known(name) && value(name).elements() == 1; }

  std::string dequantise(const std::string& name, const Scaling& s, std::int64_t axis = 1) {
    std::vector<std::string> inputs = {name, s.scale};
    if (!s.zero.empty()) inputs.push_back(s.zero);
    const std::string out = graph_.fresh(name);
    Attributes attributes;
    if (value(s.scale).elements() != 1) attributes = attr("axis", axis);
    made_.push_back({"DequantizeLinear", "", {}, std::move(inputs), {out}, std::move(attributes)});
    return out;
  }
  void quantise(const std::string& from, const Scaling& s, const std::string& to) {
    made_.push_back({"QuantizeLinear", "", {}, {from, s.scale, s.zero}, {to}, {}});
    scaling_[to] = s;
  }
  // A bias of integers, whose scale is that of the products.
  std::string dequantised_bias(const std::string& bias, const std::string& x_scale, const std::string& w_scale) {
    const auto each = value(w_scale).data<float>();
    Tensor scale(DType::f32, value(w_scale).shape());
    for (std::size_t i = 0; i < each.size(); ++i) scale.mutable_data<float>()[i] = each[i] * value(x_scale).data<float>()[0];
    return dequantise(bias, {graph_.add_initializer(graph_.fresh(w_scale), std::move(scale)), ""}, 0);
  }

  bool take(const Node& node) {
    const auto& in = node.inputs;
    if (is(node, "QuantizeLinear") && one(in[1]) && in.size() > 2 && one(in[2])) {
      scaling_[node.outputs[0]] = {in[1], in[2]};
      return false;
    }
    if (is(node, "QLinearMatMul")) return take_product(node, {in[6], in[7]}, "MatMul", 1, "", {});
    if (is(node, "QLinearConv")) return take_product(node, {in[6], in[7]}, "Conv", 0, in.size() > 8 ? in[8] : "", node.attributes);
    if (node.domain == kMicrosoft && node.op == "QGemm") {
      if (in.size() < 9 || in[7].empty() || attr_float(node, "alpha", 1.0).value_or(0) != 1.0) return false;
      const auto transposed = attr_int(node, "transB", 0).value_or(0) != 0;
      return take_product(node, {in[7], in[8]}, "Gemm", transposed ? 0 : 1, in[6], node.attributes);
    }
    if (const auto op = microsoft_op(node); op) return take_microsoft(node, *op);
    return take_passing(node);
  }

  bool take_product(const Node& node, const Scaling& y, std::string_view op, std::int64_t axis, const std::string& bias,
                    Attributes attributes) {
    const auto& in = node.inputs;
    for (const std::size_t i : {1U, 2U, 3U, 4U, 5U}) {
      if (!known(in[i])) return false;
    }
    if (!one(in[1]) || !one(in[2]) || !one(y.scale) || !one(y.zero) || value(in[4]).dtype() != DType::f32) return false;
    if (value(in[5]).elements() != value(in[4]).elements()) return false;
    if (!bias.empty() && (!known(bias) || value(bias).shape().rank() != 1)) return false;
    attributes.erase("alpha");
    std::vector<std::string> inputs = {dequantise(in[0], {in[1], in[2]}), dequantise(in[3], {in[4], in[5]}, axis)};
    if (!bias.empty()) inputs.push_back(dequantised_bias(bias, in[1], in[4]));
    const std::string out = graph_.fresh(node.outputs[0]);
    made_.push_back({std::string(op), "", node.name, std::move(inputs), {out}, std::move(attributes)});
    quantise(out, y, node.outputs[0]);
    return true;
  }

  bool take_microsoft(const Node& node, const MicrosoftOp& op) {
    std::vector<std::string> inputs;
    for (const auto& x : op.inputs) {
      if (!one(node.inputs[x.scale]) || !one(node.inputs[x.zero])) return false;
    }
    if (!one(node.inputs[op.result.scale]) || !one(node.inputs[op.result.zero])) return false;
    for (const auto& x : op.inputs) inputs.push_back(dequantise(node.inputs[x.value], {node.inputs[x.scale], node.inputs[x.zero]}));
    Node plain = op.plain;
    plain.name = node.name;
    plain.inputs = std::move(inputs);
    plain.outputs = {graph_.fresh(node.outputs[0])};
    const std::string out = plain.outputs[0];
    made_.push_back(std::move(plain));
    quantise(out, {node.inputs[op.result.scale], node.inputs[op.result.zero]}, node.outputs[0]);
    return true;
  }

  // Ops that the standard lets work on quantised values as they are: the result has the operand's scale.
  bool take_passing(const Node& node) {
    constexpr std::string_view kPassing[] = {"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Relu"};
    if (node.domain != kOnnx || std::ranges::find(kPassing, node.op) == std::end(kPassing) || node.outputs.size() != 1) return false;
    const auto found = scaling_.find(node.inputs[0]);
    if (found == scaling_.end() || node.op == "Relu") return false;
    const Scaling s = found->second;
    Node plain = node;
    plain.inputs[0] = dequantise(node.inputs[0], s);
    plain.outputs[0] = graph_.fresh(node.outputs[0]);
    const std::string out = plain.outputs[0];
    made_.push_back(std::move(plain));
    quantise(out, s, node.outputs[0]);
    return true;
  }

  Graph& graph_;
  std::vector<bool> gone_;
  std::vector<Node> made_;
  std::map<std::string, Scaling, std::less<>> scaling_;
};

}  // namespace

Status separate_quantisation(Graph& graph) {
  const bool any = std::ranges::any_of(graph.nodes, [](const Node& node) {
    return is(node, "QuantizeLinear") || is(node, "QLinearConv") || is(node, "QLinearMatMul") || node.domain == kMicrosoft;
  });
  if (!any) return {};
  return Separator(graph).run();
}

// A value counts if all who read it dequantise it, so that nobody sees the change.
void use_unsigned(Graph& graph, const TypedGraph& typed) {
  const Uses uses(graph);
  const auto zero_of = [&](const Node& node) -> const Tensor* {
    if (node.inputs.size() < 3 || node.inputs[2].empty()) return nullptr;
    const auto found = graph.initializers.find(node.inputs[2]);
    const bool fits = found != graph.initializers.end() && found->second.dtype() == DType::i8 && found->second.elements() == 1;
    return fits ? &found->second : nullptr;
  };
  std::map<std::string, std::string, std::less<>> moved;  // zero points
  const auto move_zero = [&](Node& node) {
    auto [at, fresh] = moved.try_emplace(node.inputs[2]);
    if (fresh) {
      const auto zero = static_cast<std::uint8_t>(zero_of(node)->data<std::int8_t>()[0] + 128);
      at->second = graph.add_initializer(graph.fresh(node.inputs[2]), Tensor::of<std::uint8_t>(zero_of(node)->shape(), {zero}));
    }
    node.inputs[2] = at->second;
    node.attributes.erase("output_dtype");
  };
  for (const std::size_t at : typed.order) {
    Node& node = graph.nodes[at];
    if (!is(node, "QuantizeLinear") || zero_of(node) == nullptr || uses.outputs.contains(node.outputs[0])) continue;
    const auto readers = uses.readers.find(node.outputs[0]);
    if (readers == uses.readers.end()) continue;
    const bool all = std::ranges::all_of(readers->second, [&](std::size_t reader) {
      return is(graph.nodes[reader], "DequantizeLinear") && graph.nodes[reader].inputs[0] == node.outputs[0] &&
             zero_of(graph.nodes[reader]) != nullptr;
    });
    if (!all) continue;
    move_zero(node);
    for (const std::size_t reader : readers->second) move_zero(graph.nodes[reader]);
  }
}

}  // namespace falaj::kernels
