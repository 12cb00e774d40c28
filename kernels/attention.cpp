// Attention as exporters write it: queries, keys and values [N, T, H, D] are transposed so that products find tokens and depth last, the
// scores are scaled, and the result is transposed back. One node of it: the scores of a head stay in the nearest cache, and nothing is
// transposed in memory. Masks are not looked for.
#include <algorithm>
#include <map>

#include "kernels/ops.hpp"
#include "kernels/optimise.hpp"

namespace falaj::kernels {
namespace {

using Ints = std::vector<std::int64_t>;

class AttentionFinder {
 public:
  AttentionFinder(Graph& graph, TypedGraph typed)
      : graph_(graph), typed_(std::move(typed)), uses_(graph), gone_(graph.nodes.size(), false) {
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      for (const auto& name : graph.nodes[i].outputs) makers_[name] = i;
    }
  }
  void run() {
    for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
      if (is(graph_.nodes[i], "Softmax")) take(i);
    }
    erase_nodes(graph_, gone_);
    remove_dead(graph_);  // transposes that nobody reads any more
  }

 private:
  static bool is(const Node& node, std::string_view op) { return node.domain == kOnnx && node.op == op; }
  const Node* maker(const std::string& name, std::string_view op) const {
    const auto found = makers_.find(name);
    return found != makers_.end() && is(graph_.nodes[found->second], op) ? &graph_.nodes[found->second] : nullptr;
  }
  static bool turns(const Node& node, const Ints& perm) {
    const auto given = attr_ints(node, "perm", Ints{});
    return is(node, "Transpose") && given && *given == perm;
  }
  // What is transposed by `perm` to give the value; empty if it is not.
  std::string before(const std::string& name, const Ints& perm) const {
    const Node* node = maker(name, "Transpose");
    return node != nullptr && turns(*node, perm) ? node->inputs[0] : std::string();
  }
  struct Scaled {
    std::string value;
    double factor = 1;
    std::string by;  // another factor, of one element, known when it runs; empty: none
  };
  // Of a value that is another times a number: both.
  Scaled scaled(const std::string& name) const {
    const Node* quotient = maker(name, "Div");
    const auto found = quotient == nullptr ? graph_.initializers.end() : graph_.initializers.find(quotient->inputs[1]);
    if (found != graph_.initializers.end() && found->second.dtype() == DType::f32 && found->second.elements() == 1)
      return {quotient->inputs[0], 1.0 / static_cast<double>(found->second.data<float>()[0]), ""};
    const Node* product = maker(name, "Mul");
    if (product == nullptr) return {name, 1, ""};
    const auto one = typed_.types.find(product->inputs[1]);
    if (one == typed_.types.end() || one->second.shape.elements() != 1) return {name, 1, ""};
    return {product->inputs[0], 1, product->inputs[1]};
  }

  void take(std::size_t softmax) {
    const Node& node = graph_.nodes[softmax];
    const auto axis = attr_int(node, "axis", graph_.opset({}) < 13 ? 1 : -1);
    if (!axis || (*axis != -1 && *axis != 3)) return;
    const Scaled scores = scaled(node.inputs[0]);
    const Node* first = maker(scores.value, "MatMul");
    if (first == nullptr || !uses_.only_reader(scores.value) || !uses_.only_reader(node.inputs[0])) return;
    const std::string q = before(first->inputs[0], {0, 2, 1, 3});
    std::string k = before(first->inputs[1], {0, 2, 3, 1});
    if (k.empty()) k = before(before(first->inputs[1], {0, 1, 3, 2}), {0, 2, 1, 3});
    const auto second = uses_.only_reader(node.outputs[0]);
    if (q.empty() || k.empty() || !second) return;
    const Node& product = graph_.nodes[*second];
    if (!is(product, "MatMul") || product.inputs[0] != node.outputs[0]) return;
    const std::string v = before(product.inputs[1], {0, 2, 1, 3});
    const auto back = uses_.only_reader(product.outputs[0]);
    if (v.empty() || !back || !turns(graph_.nodes[*back], {0, 2, 1, 3})) return;
    const std::string y = graph_.nodes[*back].outputs[0];
    gone_[*back] = gone_[*second] = true;
    std::vector<std::string> inputs = {q, k, v};
    if (!scores.by.empty()) inputs.push_back(scores.by);
    graph_.nodes[softmax] =
        Node{"Attention", std::string(kFalaj), node.name, std::move(inputs), {y}, {{"scale", static_cast<float>(scores.factor)}}};
  }

  Graph& graph_;
  TypedGraph typed_;
  Uses uses_;
  std::map<std::string, std::size_t, std::less<>> makers_;
  std::vector<bool> gone_;
};

}  // namespace

void find_attention(Graph& graph) {
  if (std::ranges::none_of(graph.nodes, [](const Node& node) { return node.op == "Softmax"; })) return;
  auto typed = infer_types(graph, 7);
  if (typed) AttentionFinder(graph, std::move(*typed)).run();
}

}  // namespace falaj::kernels
