// Einsum of two operands as the ops that have fast kernels: where nothing is summed, a product of broadcast operands; where one label is
// summed and each operand brings one of its own, a matrix product over the labels that all share.
#include <algorithm>

#include "kernels/ops.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/optimise.hpp"

namespace falaj::kernels {
namespace {

using Ints = std::vector<std::int64_t>;

struct Terms {
  std::string a, b, out;
};

bool letters_once(std::string_view term) {
  return std::ranges::all_of(term,
                             [&](char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0 && std::ranges::count(term, c) == 1; });
}

// None: not two terms of letters ("..." and repeated letters stay with the reference kernel).
std::optional<Terms> terms_of(const Node& node) {
  auto equation = attr_string(node, "equation");
  if (!equation || node.inputs.size() != 2) return {};
  std::erase(*equation, ' ');
  const auto comma = equation->find(',');
  const auto arrow = equation->find("->");
  if (comma == std::string::npos || comma > arrow) return {};
  Terms t;
  t.a = equation->substr(0, comma);
  t.b = equation->substr(comma + 1, arrow == std::string::npos ? arrow : arrow - comma - 1);
  if (arrow != std::string::npos) {
    t.out = equation->substr(arrow + 2);
  } else {
    for (const char c : t.a + t.b) {
      if (std::ranges::count(t.a + t.b, c) == 1) t.out += c;
    }
    std::ranges::sort(t.out);
  }
  if (!letters_once(t.a) || !letters_once(t.b) || !letters_once(t.out)) return {};
  return t;
}

bool has(std::string_view term, char c) { return term.find(c) != std::string_view::npos; }

class Lowering {
 public:
  Lowering(Graph& graph, const TypedGraph& typed) : graph_(graph), typed_(typed) {}

  bool lower(const Node& node) {
    const auto t = terms_of(node);
    if (!t || !sizes_agree(node, *t)) return false;
    std::string batch, left, right, sum;
    for (const char c : t->out) {
      if (!has(t->a, c) && !has(t->b, c)) return false;
      (has(t->a, c) && has(t->b, c) ? batch : has(t->a, c) ? left : right) += c;
    }
    for (const char c : t->a + t->b) {
      if (has(t->out, c)) continue;
      if (!has(t->a, c) || !has(t->b, c)) return false;  // summed in one operand alone
      if (!has(sum, c)) sum += c;
    }
    if (sum.empty()) {
      made_.push_back(
          {"Mul", "", node.name, {spread(node.inputs[0], t->a, t->out), spread(node.inputs[1], t->b, t->out)}, node.outputs, {}});
      return true;
    }
    if (sum.size() != 1 || left.size() != 1 || right.size() != 1) return false;
    const std::string a = turned(node.inputs[0], t->a, batch + left + sum);
    const std::string b = turned(node.inputs[1], t->b, batch + sum + right);
    const std::string natural = batch + left + right;
    const bool direct = natural == t->out;
    const std::string y = direct ? node.outputs[0] : graph_.fresh(node.outputs[0]);
    made_.push_back({"MatMul", "", node.name, {a, b}, {y}, {}});
    if (!direct) made_.push_back({"Transpose", "", {}, {y}, {node.outputs[0]}, attr("perm", order(natural, t->out))});
    return true;
  }
  std::vector<Node>& made() { return made_; }

 private:
  // Einsum stretches sizes of one; a product stretches them too, but not along what it sums.
  bool sizes_agree(const Node& node, const Terms& t) const {
    const Shape& a = typed_.types.at(node.inputs[0]).shape;
    const Shape& b = typed_.types.at(node.inputs[1]).shape;
    if (a.rank() != t.a.size() || b.rank() != t.b.size()) return false;
    for (std::size_t i = 0; i < t.a.size(); ++i) {
      const auto at = t.b.find(t.a[i]);
      if (at != std::string::npos && a[i] != b[at]) return false;
    }
    return true;
  }
  static Ints order(std::string_view from, std::string_view to) {
    Ints perm;
    for (const char c : to) perm.push_back(static_cast<std::int64_t>(from.find(c)));
    return perm;
  }
  std::string turned(const std::string& name, const std::string& from, const std::string& to) {
    if (from == to) return name;
    const auto y = graph_.fresh(name);
    made_.push_back({"Transpose", "", {}, {name}, {y}, attr("perm", order(from, to))});
    return y;
  }
  // In the order of `out`, with a size of one for each label that it has not; before the first of its own none are needed.
  std::string spread(const std::string& name, const std::string& term, const std::string& out) {
    std::string own;
    Ints axes;
    for (const char c : out) {
      if (has(term, c)) {
        own += c;
      } else if (!own.empty()) {
        axes.push_back(static_cast<std::int64_t>(own.size() + axes.size()));
      }
    }
    const std::string x = turned(name, term, own);
    if (axes.empty()) return x;
    const auto y = graph_.fresh(name);
    if (graph_.opset("") >= 13) {
      const auto count = static_cast<std::int64_t>(axes.size());
      const auto list =
          graph_.add_initializer(graph_.fresh("axes"), Tensor::of<std::int64_t>({count}, std::span<const std::int64_t>(axes)));
      made_.push_back({"Unsqueeze", "", {}, {x, list}, {y}, {}});
    } else {
      made_.push_back({"Unsqueeze", "", {}, {x}, {y}, attr("axes", axes)});
    }
    return y;
  }

  Graph& graph_;
  const TypedGraph& typed_;
  std::vector<Node> made_;
};

}  // namespace

void lower_einsums(Graph& graph) {
  if (std::ranges::none_of(graph.nodes, [](const Node& n) { return n.op == "Einsum" && n.domain == kOnnx; })) return;
  const auto typed = infer_types(graph, 7);  // ranks, and which sizes are equal
  if (!typed) return;
  Lowering lowering(graph, *typed);
  std::vector<bool> gone(graph.nodes.size(), false);
  for (std::size_t i = 0; i < gone.size(); ++i) {
    const Node& node = graph.nodes[i];
    if (node.op == "Einsum" && node.domain == kOnnx && is_float(typed->types.at(node.outputs[0]).dtype)) gone[i] = lowering.lower(node);
  }
  erase_nodes(graph, gone);
  for (Node& node : lowering.made()) graph.nodes.push_back(std::move(node));
}

}  // namespace falaj::kernels
