#include "kernels/optimise.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <unordered_set>

#include "kernels/ops.hpp"
#include "kernels/ops/matmul.hpp"

namespace falaj::kernels {
namespace {

constexpr std::size_t kFoldBytesMax = 256U << 20;  // constants beyond this, all together, are computed in each run

void erase_nodes(Graph& graph, const std::vector<bool>& gone) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    if (gone[i]) continue;
    if (kept != i) graph.nodes[kept] = std::move(graph.nodes[i]);
    ++kept;
  }
  graph.nodes.resize(kept);
}

// Who reads each value, by node index; graph outputs count as a reader without a node.
struct Uses {
  std::map<std::string, std::vector<std::size_t>, std::less<>> readers;
  std::set<std::string, std::less<>> outputs;
  explicit Uses(const Graph& graph) {
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      for (const auto& name : graph.nodes[i].inputs) {
        if (!name.empty()) readers[name].push_back(i);
      }
      outputs.insert(graph.nodes[i].captures.begin(), graph.nodes[i].captures.end());
    }
    for (const auto& output : graph.outputs) outputs.insert(output.name);
  }
  // The one node that reads the value, if there is just one and nobody else wants it.
  [[nodiscard]] std::optional<std::size_t> only_reader(const std::string& name) const {
    auto found = readers.find(name);
    if (found == readers.end() || found->second.size() != 1 || outputs.contains(name)) return {};
    return found->second.front();
  }
};

// Bias and activation are looked for along the chain that starts at a product.
class Fuser {
 public:
  Fuser(Graph& graph, TypedGraph typed) : graph_(graph), typed_(std::move(typed)), uses_(graph), gone_(graph.nodes.size(), false) {}

  void run() {
    for (std::size_t at : typed_.order) {
      const Node& node = graph_.nodes[at];
      bool product = node.op == "MatMul" || (node.op == "Gemm" && node.domain == kOnnx);
      if (product && is_float(typed_.types.at(node.outputs[0]).dtype) && !node.attributes.contains("activation")) extend(at);
    }
    erase_nodes(graph_, gone_);
  }

 private:
  void extend(std::size_t at) {
    Node fused = graph_.nodes[at];
    bool changed = false;
    if (fused.inputs.size() == 2) changed = take_bias(fused);
    changed = take_activation(fused) || changed;
    if (!changed) return;
    fused.op = "MatMul";
    fused.domain = kFalaj;
    graph_.nodes[at] = std::move(fused);
  }

  bool take_bias(Node& fused) {
    auto reader = uses_.only_reader(fused.outputs[0]);
    if (!reader || graph_.nodes[*reader].op != "Add" || gone_[*reader]) return false;
    const Node& add = graph_.nodes[*reader];
    const std::string& bias = add.inputs[0] == fused.outputs[0] ? add.inputs[1] : add.inputs[0];
    if (bias == fused.outputs[0]) return false;
    const ValueType& type = typed_.types.at(bias);
    const Shape& out = typed_.types.at(fused.outputs[0]).shape;
    if (out.rank() < 2 || type.shape.rank() != 1 || type.shape[0] != out.back()) return false;
    // The product is computed where the Add stood: by then the bias is there too. Order is by data, so that moving is free.
    fused.inputs.push_back(bias);
    fused.outputs[0] = add.outputs[0];
    gone_[*reader] = true;
    return true;
  }

  bool take_activation(Node& fused) {
    auto reader = uses_.only_reader(fused.outputs[0]);
    if (!reader || gone_[*reader]) return false;
    const Node& next = graph_.nodes[*reader];
    auto activation = activation_of(next.op);
    if (!activation || next.op.empty()) return false;
    if (next.op == "Gelu" && attr_string(next, "approximate", "none").value_or("tanh") != "none") return false;
    if (next.op == "LeakyRelu") {
      auto alpha = attr_float(next, "alpha", static_cast<double>(0.01F));
      if (!alpha) return false;
      fused.attributes["activation_alpha"] = static_cast<float>(*alpha);
    }
    fused.attributes["activation"] = next.op;
    fused.outputs[0] = next.outputs[0];
    gone_[*reader] = true;
    return true;
  }

  Graph& graph_;
  TypedGraph typed_;
  Uses uses_;
  std::vector<bool> gone_;
};

}  // namespace

Status fold_constants(Graph& graph) {
  FALAJ_ASSIGN(auto order, topological_order(graph));
  std::vector<bool> gone(graph.nodes.size(), false);
  std::size_t left = kFoldBytesMax;
  for (std::size_t at : order) {
    const Node& node = graph.nodes[at];
    std::vector<Tensor> inputs;
    bool known = true;
    for (const auto& name : node.inputs) {
      auto found = graph.initializers.find(name);
      known = known && (name.empty() || found != graph.initializers.end());
      inputs.push_back(known && !name.empty() ? found->second : Tensor());
    }
    if (!known) continue;
    std::vector<ValueType> types;
    types.reserve(inputs.size());
    for (const Tensor& t : inputs) types.push_back(t.empty() ? ValueType{} : ValueType{t.dtype(), t.shape(), &t});
    FALAJ_ASSIGN(auto outputs, infer_node(node, types, graph.opset(node.domain)));
    std::size_t bytes = 0;
    for (const auto& output : outputs) bytes += byte_size(output.dtype, output.shape).value_or(0);
    if (bytes > left) continue;
    left -= bytes;
    FALAJ_ASSIGN(auto values, run_reference(node, inputs, graph.opset(node.domain)));
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (!node.outputs[i].empty()) graph.initializers.emplace(node.outputs[i], std::move(values[i]));
    }
    gone[at] = true;
  }
  erase_nodes(graph, gone);
  return {};
}

Status fuse(Graph& graph) {
  // Ranks and which sizes are equal decide; a batch that no other size equals shows both. A model that takes no such batch
  // (all sizes fixed, say) is typed as it is; one that cannot be typed here is left alone, and its plan will say why.
  auto typed = infer_types(graph, 7);
  if (!typed) return {};
  Fuser(graph, std::move(*typed)).run();
  return {};
}

void remove_dead(Graph& graph) {
  std::unordered_set<std::string_view> wanted;
  for (const auto& output : graph.outputs) wanted.insert(output.name);
  auto order = topological_order(graph);
  if (!order) return;
  std::vector<bool> gone(graph.nodes.size(), true);
  for (std::size_t i = order->size(); i-- > 0;) {
    const Node& node = graph.nodes[(*order)[i]];
    if (std::ranges::none_of(node.outputs, [&](const auto& name) { return wanted.contains(name); })) continue;
    gone[(*order)[i]] = false;
    for (const auto& name : node.inputs) wanted.insert(name);
    for (const auto& name : node.captures) wanted.insert(name);
  }
  std::erase_if(graph.initializers, [&](const auto& entry) { return !wanted.contains(entry.first); });
  erase_nodes(graph, gone);
}

}  // namespace falaj::kernels
