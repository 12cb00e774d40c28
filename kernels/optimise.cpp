#include "kernels/optimise.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <unordered_set>

#include "kernels/ops.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/ops/matmul.hpp"

namespace falaj::kernels {

void erase_nodes(Graph& graph, const std::vector<bool>& gone) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    if (gone[i]) continue;
    if (kept != i) graph.nodes[kept] = std::move(graph.nodes[i]);
    ++kept;
  }
  graph.nodes.resize(kept);
}

bool has_open_sizes(const Graph& graph) {
  return std::ranges::any_of(graph.inputs, [](const ValueInfo& info) {
    return std::any_of(info.shape.begin() + (info.shape.empty() ? 0 : 1), info.shape.end(), [](std::int64_t size) { return size < 0; });
  });
}

namespace {
Node reshaped(Graph& graph, const std::string& from, const std::string& to, const std::vector<std::int64_t>& sizes) {
  auto shape = Tensor::of<std::int64_t>({static_cast<std::int64_t>(sizes.size())}, std::span<const std::int64_t>(sizes));
  return {"Reshape", "", {}, {from, graph.add_initializer(graph.fresh("sizes"), std::move(shape))}, {to}, {}};
}
Node transposed(const std::string& from, const std::string& to, std::vector<std::int64_t> order) {
  return {"Transpose", "", {}, {from}, {to}, attr("perm", std::move(order))};
}
}  // namespace

Node turn_to_last(Graph& graph, const Shape& first, const std::string& from, const std::string& to) {
  const bool same = first[1] == 1 && !has_open_sizes(graph);
  return same ? reshaped(graph, from, to, {0, first[2], first[3], 1}) : transposed(from, to, {0, 2, 3, 1});
}
Node turn_to_first(Graph& graph, const Shape& first, const std::string& from, const std::string& to) {
  const bool same = (first[1] == 1 || (first[2] == 1 && first[3] == 1)) && !has_open_sizes(graph);
  return same ? reshaped(graph, from, to, {0, first[1], first[2], first[3]}) : transposed(from, to, {0, 3, 1, 2});
}

Uses::Uses(const Graph& graph) {
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    for (const auto& name : graph.nodes[i].inputs) {
      if (!name.empty()) readers[name].push_back(i);
    }
    outputs.insert(graph.nodes[i].captures.begin(), graph.nodes[i].captures.end());
  }
  for (const auto& output : graph.outputs) outputs.insert(output.name);
}

std::optional<std::size_t> Uses::only_reader(const std::string& name) const {
  auto found = readers.find(name);
  if (found == readers.end() || found->second.size() != 1 || outputs.contains(name)) return {};
  return found->second.front();
}

namespace {

// The upper bound of a Clip between 0 and a known number.
std::optional<float> clip_from_zero(const Graph& graph, const Node& clip) {
  const auto bound = [&](std::size_t i, const char* name) -> std::optional<float> {
    if (clip.attributes.contains(name)) {
      const auto value = attr_float(clip, name, 0.0);
      return value ? std::optional(static_cast<float>(*value)) : std::nullopt;
    }
    const auto found = i < clip.inputs.size() ? graph.initializers.find(clip.inputs[i]) : graph.initializers.end();
    if (found == graph.initializers.end() || found->second.dtype() != DType::f32 || found->second.elements() != 1) return {};
    return found->second.data<float>()[0];
  };
  const auto low = bound(1, "min");
  const auto high = bound(2, "max");
  return low && high && *low == 0.0F && *high > 0.0F ? high : std::nullopt;
}

}  // namespace

bool carry_activation(const Graph& graph, Node& fused, const Node& next) {
  auto activation = activation_of(next.op);
  if (!activation || next.op.empty() || next.domain != kOnnx) return false;
  if (next.op == "Gelu" && attr_string(next, "approximate", "none").value_or("tanh") != "none") return false;
  if (next.op == "LeakyRelu") {
    auto alpha = attr_float(next, "alpha", static_cast<double>(0.01F));
    if (!alpha) return false;
    fused.attributes["activation_alpha"] = static_cast<float>(*alpha);
  }
  if (next.op == "Clip") {
    const auto high = clip_from_zero(graph, next);
    if (!high) return false;
    fused.attributes["activation_alpha"] = *high;
  }
  if (next.op == "Swish" && attr_float(next, "alpha", 1.0).value_or(0) != 1.0) return false;
  fused.attributes["activation"] = next.op;
  return true;
}

namespace {

constexpr std::size_t kFoldBytesMax = 256U << 20;  // constants beyond this, all together, are computed in each run

// Exporters write Gelu out: 0.5 * x * (1 + erf(x / sqrt 2)), in either order of its factors.
class GeluFinder {
 public:
  explicit GeluFinder(Graph& graph) : graph_(graph), uses_(graph), gone_(graph.nodes.size(), false) {
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      for (const auto& name : graph.nodes[i].outputs) makers_[name] = i;
    }
  }
  void run() {
    for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
      if (graph_.nodes[i].op == "Erf") take(i);
    }
    erase_nodes(graph_, gone_);
  }

 private:
  // The one number that a value is, whatever its shape.
  std::optional<double> number(const std::string& name) const {
    const Tensor* value = nullptr;
    if (const auto found = graph_.initializers.find(name); found != graph_.initializers.end()) {
      value = &found->second;
    } else if (const auto maker = makers_.find(name); maker != makers_.end() && graph_.nodes[maker->second].op == "Constant") {
      value = attr_tensor(graph_.nodes[maker->second], "value");
    }
    if (value == nullptr || value->dtype() != DType::f32 || value->elements() != 1) return {};
    return static_cast<double>(value->data<float>()[0]);
  }
  bool is_number(const std::string& name, double wanted) const {
    const auto value = number(name);
    return value && std::abs(*value - wanted) < 1e-6 * wanted;
  }
  // Of a node `op` of two inputs, one of which is `name`: the other.
  std::optional<std::string> other(std::optional<std::size_t> at, std::string_view op, const std::string& name) const {
    if (!at || graph_.nodes[*at].op != op || graph_.nodes[*at].inputs.size() != 2) return {};
    const auto& inputs = graph_.nodes[*at].inputs;
    return inputs[0] == name ? inputs[1] : inputs[0];
  }

  void take(std::size_t erf) {
    const std::string& scaled = graph_.nodes[erf].inputs[0];
    const auto maker = makers_.find(scaled);
    if (maker == makers_.end() || !uses_.only_reader(scaled)) return;
    const Node& scale = graph_.nodes[maker->second];
    const bool fits = (scale.op == "Div" && is_number(scale.inputs[1], std::numbers::sqrt2)) ||
                      (scale.op == "Mul" && is_number(scale.inputs[1], std::numbers::sqrt2 / 2));
    if (!fits) return;
    const std::string x = scale.inputs[0];
    const std::string& y = graph_.nodes[erf].outputs[0];
    const auto plus = uses_.only_reader(y);
    const auto one = other(plus, "Add", y);
    if (!one || !is_number(*one, 1.0)) return;
    // Then two products, with x and with a half; or one, with a half of x.
    std::string value = graph_.nodes[*plus].outputs[0];
    const auto first = uses_.only_reader(value);
    const auto factor = other(first, "Mul", value);
    if (!factor) return;
    std::vector<std::size_t> all = {maker->second, erf, *plus, *first};
    value = graph_.nodes[*first].outputs[0];
    const bool halved = is_number(*factor, 0.5);
    if (*factor == x || halved) {
      const auto second = uses_.only_reader(value);
      const auto rest = other(second, "Mul", value);
      if (!rest || !(halved ? *rest == x : is_number(*rest, 0.5))) return;
      value = graph_.nodes[*second].outputs[0];
      all.push_back(*second);
    } else {
      const auto half = makers_.find(*factor);
      if (half == makers_.end() || uses_.only_reader(*factor) != first) return;
      const auto rest = other(half->second, "Mul", x);
      if (!rest || !is_number(*rest, 0.5) || graph_.nodes[half->second].inputs[0] == graph_.nodes[half->second].inputs[1]) return;
      all.push_back(half->second);
    }
    for (const std::size_t at : all) gone_[at] = true;
    gone_[erf] = false;
    graph_.nodes[erf] = Node{"Gelu", "", graph_.nodes[erf].name, {x}, {value}, {}};
  }

  Graph& graph_;
  Uses uses_;
  std::map<std::string, std::size_t, std::less<>> makers_;
  std::vector<bool> gone_;
};

// x * Sigmoid(x), where nobody else reads the sigmoid: Swish, whatever the opset.
class SwishFinder {
 public:
  explicit SwishFinder(Graph& graph) : graph_(graph), uses_(graph), gone_(graph.nodes.size(), false) {}
  void run() {
    for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
      const Node& sigmoid = graph_.nodes[i];
      if (sigmoid.op != "Sigmoid" || sigmoid.domain != kOnnx) continue;
      const std::string x = sigmoid.inputs[0];
      const std::string& y = sigmoid.outputs[0];
      const auto reader = uses_.only_reader(y);
      if (!reader || graph_.nodes[*reader].op != "Mul" || graph_.nodes[*reader].domain != kOnnx) continue;
      Node& product = graph_.nodes[*reader];
      const bool fits = (product.inputs[0] == x && product.inputs[1] == y) || (product.inputs[0] == y && product.inputs[1] == x);
      if (!fits) continue;
      product = Node{"Swish", "", product.name, {x}, product.outputs, {}};
      gone_[i] = true;
    }
    erase_nodes(graph_, gone_);
  }

 private:
  Graph& graph_;
  Uses uses_;
  std::vector<bool> gone_;
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
    if (!carry_activation(graph_, fused, next)) return false;
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

Status fold_constants(Graph& graph, bool keep_quantised) {
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
    if (!known || (keep_quantised && node.op == "DequantizeLinear")) continue;
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

void find_gelus(Graph& graph) { GeluFinder(graph).run(); }
void find_swishes(Graph& graph) { SwishFinder(graph).run(); }

void read_through_identities(Graph& graph) {
  const auto order = topological_order(graph);
  if (!order) return;
  std::map<std::string, std::string, std::less<>> same;
  for (const std::size_t at : *order) {
    Node& node = graph.nodes[at];
    for (std::string& name : node.inputs) {
      if (const auto found = same.find(name); found != same.end()) name = found->second;
    }
    if (node.op == "Identity" && node.domain == kOnnx && node.inputs.size() == 1) same.emplace(node.outputs[0], node.inputs[0]);
  }
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
