// RNN, GRU and LSTM as one product for all steps and then the steps, a direction at a time: the product has fast kernels, any precision
// and a gradient already, and what is left for the steps is what depends on the step before (kernels/ops/recurrent.hpp).
#include "kernels/ops/recurrent.hpp"

#include <algorithm>

#include "kernels/ops/common.hpp"
#include "kernels/optimise.hpp"

namespace falaj::kernels {
namespace {

bool is_layer(const Node& node) { return node.domain == kOnnx && (node.op == "RNN" || node.op == "GRU" || node.op == "LSTM"); }

class Lowering {
 public:
  explicit Lowering(Graph& graph) : graph_(graph) {}

  void lower(const Node& node, const Recurrent& l) {
    const std::string rows = reshaped(node.inputs[0], {-1, l.width});
    std::vector<Node> steps;
    for (std::int64_t d = 0; d < l.directions; ++d) steps.push_back(steps_of(node, l, rows, d));
    for (std::size_t i = 0; i < node.outputs.size(); ++i) {
      if (node.outputs[i].empty()) continue;
      std::vector<std::string> parts;
      for (Node& direction : steps) {
        direction.outputs[i] = l.directions == 1 ? node.outputs[i] : graph_.fresh(node.outputs[i]);
        parts.push_back(direction.outputs[i]);
      }
      // Y is [steps, directions, batch, hidden], or with the batch first [batch, steps, directions, hidden]; states likewise.
      const std::int64_t axis = (i == 0 ? 1 : 0) + (l.batch_first ? 1 : 0);
      if (l.directions == 2) made_.push_back({"Concat", "", node.outputs[i], parts, {node.outputs[i]}, attr("axis", axis)});
    }
    for (Node& direction : steps) made_.push_back(std::move(direction));
  }
  std::vector<Node>& made() { return made_; }

 private:
  std::string add(std::string_view op, std::vector<std::string> inputs, Attributes attributes) {
    const std::string y = graph_.fresh(inputs[0]);
    made_.push_back({std::string(op), "", y, std::move(inputs), {y}, std::move(attributes)});
    return y;
  }
  std::string integers(const char* name, std::initializer_list<std::int64_t> values) {
    return graph_.add_initializer(graph_.fresh(name), Tensor::vector<std::int64_t>(values));
  }
  std::string reshaped(const std::string& x, std::initializer_list<std::int64_t> shape) {
    return add("Reshape", {x, integers("shape", shape)}, {});
  }
  // Of a size, one: [..., 1, ...].
  std::string at(const std::string& x, std::int64_t index, std::int64_t axis) {
    return add("Gather", {x, integers("index", {index})}, attr("axis", axis));
  }

  Node steps_of(const Node& node, const Recurrent& l, const std::string& rows, std::int64_t d) {
    // Operands of the layer, for this direction; "" where there is none.
    const auto own = [&](std::size_t i, std::int64_t axis) {
      if (i >= node.inputs.size() || node.inputs[i].empty()) return std::string();
      return l.directions == 1 ? node.inputs[i] : at(node.inputs[i], d, axis);
    };
    const std::int64_t batch_first = l.batch_first ? 1 : 0;
    const std::string bias = own(3, 0);
    std::vector<std::string> product = {rows, reshaped(own(1, 0), {l.sums(), l.width})};
    if (!bias.empty()) product.push_back(at(reshaped(bias, {2, l.sums()}), 0, 0));
    const std::string z = add("Gemm", product, attr("transB", std::int64_t{1}));

    Node steps{node.op + "Steps", std::string(kFalaj), node.name, {}, {}, node.attributes};
    steps.inputs = {node.inputs[0], z, own(2, 0), bias, "", own(5, batch_first), own(6, batch_first), own(7, 0)};
    if (node.inputs.size() > 4) steps.inputs[4] = node.inputs[4];
    while (steps.inputs.back().empty()) steps.inputs.pop_back();
    steps.outputs.resize(node.outputs.size());
    steps.attributes.insert_or_assign("direction", std::string(l.backwards(d) ? "reverse" : "forward"));
    const auto each = l.functions_each();
    put_functions(steps.attributes, std::span(l.functions).subspan(static_cast<std::size_t>(d) * each, each));
    return steps;
  }

  Graph& graph_;
  std::vector<Node> made_;
};

}  // namespace

void lower_recurrent(Graph& graph) {
  if (std::ranges::none_of(graph.nodes, is_layer)) return;
  const auto typed = infer_types(graph);
  if (!typed) return;
  Lowering lowering(graph);
  std::vector<bool> gone(graph.nodes.size(), false);
  for (std::size_t i = 0; i < gone.size(); ++i) {
    if (!is_layer(graph.nodes[i])) continue;
    const Node node = graph.nodes[i];
    std::vector<ValueType> inputs;
    for (const auto& name : node.inputs) inputs.push_back(name.empty() ? ValueType{} : typed->types.at(name));
    const auto spec = recurrent_spec(OpCall{node, inputs, graph.opset("")});
    if (!spec || spec->width == 0 || spec->hidden == 0) continue;  // whoever runs it says why
    lowering.lower(node, *spec);
    gone[i] = true;
  }
  erase_nodes(graph, gone);
  for (Node& node : lowering.made()) graph.nodes.push_back(std::move(node));
}

}  // namespace falaj::kernels
