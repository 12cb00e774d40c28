#include "kernels/graph.hpp"

#include <algorithm>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "kernels/ops.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

ValueInfo value_info(std::string_view name, DType dtype, const Shape& shape, std::string_view batch_symbol) {
  ValueInfo info{std::string(name), dtype, shape, std::vector<std::string>(shape.rank())};
  for (std::size_t i = 0; i < shape.rank(); ++i) {
    if (shape[i] < 0) info.symbols[i] = batch_symbol;
  }
  return info;
}

std::string_view kind_of(const Attribute& value) {
  static constexpr std::string_view kNames[] = {"an integer",       "a float",           "a string", "a list of integers",
                                                "a list of floats", "a list of strings", "a tensor", "a graph"};
  return kNames[value.index()];
}

template <class T>
Result<T> read_attribute(const Node& node, std::string_view name, std::optional<T> fallback, std::string_view wanted) {
  auto found = node.attributes.find(name);
  if (found == node.attributes.end()) {
    if (fallback) return *std::move(fallback);
    return invalid(format("attribute '{}' is missing; it must be {}", name, wanted));
  }
  if (const T* value = std::get_if<T>(&found->second)) return *value;
  return invalid(format("attribute '{}' is {}; it must be {}", name, kind_of(found->second), wanted));
}

Status check_name(std::string_view name, std::string_view what) {
  if (name.size() > kNameBytesMax)
    return invalid(format("{} is longer than {} bytes: shorten it ('{}...')", what, kNameBytesMax, name.substr(0, 40)));
  return {};
}

// Everything that gives a name its value, once each.
class Definitions {
 public:
  Status add(std::string_view name, std::string by) {
    auto [at, fresh] = by_.try_emplace(name, std::move(by));
    if (fresh) return {};
    return invalid(format("value '{}' is defined twice, by {} and by {}: give each value one definition", name, at->second, by));
  }
  [[nodiscard]] bool has(std::string_view name) const { return by_.contains(name); }

 private:
  std::unordered_map<std::string_view, std::string> by_;
};

Status check_info(const ValueInfo& info, std::string_view what) {
  if (info.name.empty()) return invalid(format("the graph has {} without a name: name it", what));
  FALAJ_TRY(check_name(info.name, what));
  for (std::int64_t d : info.shape) {
    if (d < -1)
      return invalid(format("{} '{}' has shape {}: dimensions must be non-negative or unknown", what, info.name, to_string(info.shape)));
  }
  if (info.shape.is_static()) {
    if (auto bytes = byte_size(info.dtype, info.shape); !bytes) return within(format("{} '{}'", what, info.name), bytes.error());
  }
  return {};
}

Status check_node(const Node& node, const std::string& where) {
  FALAJ_TRY(check_name(node.name, "a node's name"));
  const OpDef* op = find_op(node.domain, node.op);
  if (op == nullptr) {
    return Error{ErrorCode::unimplemented, format("{}: op '{}' of domain '{}' is not known to this build: rewrite the model without it",
                                                  where, node.op, node.domain.empty() ? "ai.onnx" : node.domain)};
  }
  auto arity = [&](std::size_t have, int least, int most, std::string_view what) -> Status {
    bool fits = have >= static_cast<std::size_t>(least) && (most == kVariadic || have <= static_cast<std::size_t>(most));
    if (fits) return {};
    return invalid(format("{} has {} {}; {} takes {} to {}", where, have, what, node.op, least,
                          most == kVariadic ? std::string("any number") : format("{}", most)));
  };
  FALAJ_TRY(arity(node.inputs.size(), op->inputs_min, op->inputs_max, "inputs"));
  FALAJ_TRY(arity(node.outputs.size(), op->outputs_min, op->outputs_max, "outputs"));
  for (std::size_t i = 0; i < node.inputs.size(); ++i) {
    FALAJ_TRY(check_name(node.inputs[i], "a value's name"));
    if (node.inputs[i].empty() && static_cast<int>(i) < op->inputs_min && op->eager == nullptr)
      return invalid(format("{}: input {} is absent; {} needs it", where, i, node.op));
  }
  if (std::ranges::all_of(node.outputs, &std::string::empty)) return invalid(format("{}: none of its outputs has a name", where));
  return {};
}

}  // namespace

ValueInfo& Graph::add_input(std::string_view input, DType dtype, const Shape& shape, std::string_view batch_symbol) {
  return inputs.emplace_back(value_info(input, dtype, shape, batch_symbol));
}

ValueInfo& Graph::add_output(std::string_view output, DType dtype, const Shape& shape, std::string_view batch_symbol) {
  return outputs.emplace_back(value_info(output, dtype, shape, batch_symbol));
}

std::string Graph::add_initializer(std::string_view initializer, Tensor value) {
  initializers.insert_or_assign(std::string(initializer), std::move(value));
  return std::string(initializer);
}

std::string Graph::add(std::string_view op, std::vector<std::string> node_inputs, Attributes attributes, std::string_view output) {
  return add(kOnnx, op, std::move(node_inputs), std::move(attributes), output);
}

std::string Graph::add(std::string_view domain, std::string_view op, std::vector<std::string> node_inputs, Attributes attributes,
                       std::string_view output) {
  std::string result = output.empty() ? fresh(op) : std::string(output);
  nodes.push_back(Node{std::string(op), std::string(domain), result, std::move(node_inputs), {result}, std::move(attributes)});
  return result;
}

Node& Graph::add_node(Node node) { return nodes.emplace_back(std::move(node)); }

std::string Graph::fresh(std::string_view stem) {
  if (!collected_) {  // names that came from elsewhere; those made here cannot repeat, for their counter only grows
    collected_ = true;
    for (const auto& info : inputs) taken_.insert(info.name);
    for (const auto& [initializer, value] : initializers) taken_.insert(initializer);
    for (const auto& node : nodes) taken_.insert(node.outputs.begin(), node.outputs.end());
  }
  auto& next = next_.try_emplace(std::string(stem), 0).first->second;
  std::string candidate;
  do {
    candidate = format("{}/{}", stem, next++);
  } while (taken_.contains(candidate));
  return candidate;
}

std::int64_t Graph::opset(std::string_view domain) const {
  auto found = opsets.find(domain == "ai.onnx" ? "" : domain);
  return found == opsets.end() ? 0 : found->second;
}

const ValueInfo* Graph::find_input(std::string_view input) const {
  auto found = std::ranges::find(inputs, input, &ValueInfo::name);
  return found == inputs.end() ? nullptr : &*found;
}

const ValueInfo* Graph::find_output(std::string_view output) const {
  auto found = std::ranges::find(outputs, output, &ValueInfo::name);
  return found == outputs.end() ? nullptr : &*found;
}

std::string describe(const Node& node) {
  if (!node.name.empty()) return format("node '{}' ({})", node.name, node.op);
  return format("node ({}) -> '{}'", node.op, node.outputs.empty() ? "" : node.outputs.front());
}

std::string describe(const Graph& graph, std::size_t node) {
  const Node& n = graph.nodes[node];
  if (!n.name.empty()) return format("node {} '{}' ({})", node, n.name, n.op);
  return format("node {} ({}) -> '{}'", node, n.op, n.outputs.empty() ? "" : n.outputs.front());
}

namespace {

Status validate_within(const Graph& graph, int depth);

Status check_subgraphs(const Node& node, const std::string& where, int depth) {
  for (const auto& [name, value] : node.attributes) {
    const auto* body = std::get_if<Subgraph>(&value);
    if (body == nullptr) continue;
    if (depth == kSubgraphDepthMax) return invalid(format("{}: graphs are nested deeper than {}", where, kSubgraphDepthMax));
    if (*body == nullptr) return invalid(format("{}: attribute '{}' holds no graph", where, name));
    if (auto status = validate_within(**body, depth + 1); !status) return within(format("{}, {}", where, name), status.error());
  }
  return {};
}

// Of an inner graph, what it does not define may come from outside: whether it does is checked through the captures of its node.
Status validate_within(const Graph& graph, int depth) {
  if (graph.nodes.size() > kNodesMax)
    return invalid(format("the graph has {} nodes; at most {} are accepted", graph.nodes.size(), kNodesMax));
  Definitions defined;
  const bool inner = depth > 0;
  for (const auto& input : graph.inputs) {
    FALAJ_TRY(check_info(input, "input"));
    if (input.dtype == DType::undefined && !inner) return invalid(format("input '{}' has no element type", input.name));
    FALAJ_TRY(defined.add(input.name, "an input"));
  }
  for (const auto& [name, value] : graph.initializers) {
    FALAJ_TRY(check_name(name, "an initialiser's name"));
    if (name.empty()) return invalid("an initialiser has no name: name it");
    if (value.empty()) return invalid(format("initialiser '{}' holds no tensor", name));
    FALAJ_TRY(defined.add(name, "an initialiser"));
  }
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    std::string where = describe(graph, i);
    FALAJ_TRY(check_node(graph.nodes[i], where));
    FALAJ_TRY(check_subgraphs(graph.nodes[i], where, depth));
    for (const auto& output : graph.nodes[i].outputs) {
      if (!output.empty()) FALAJ_TRY(defined.add(output, where));
    }
  }
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    if (inner) break;
    for (const auto* names : {&graph.nodes[i].inputs, &graph.nodes[i].captures}) {
      for (const auto& input : *names) {
        if (!input.empty() && !defined.has(input)) {
          return invalid(format("{} reads '{}', which is neither an input, an initialiser nor the output of a node: fix the name",
                                describe(graph, i), input));
        }
      }
    }
  }
  std::set<std::string_view> seen;
  for (const auto& output : graph.outputs) {
    FALAJ_TRY(check_info(output, "output"));
    if (!inner && !defined.has(output.name)) return invalid(format("output '{}' is not computed by any node: fix its name", output.name));
    if (!seen.insert(output.name).second) return invalid(format("output '{}' is listed twice", output.name));
  }
  auto order = topological_order(graph);
  if (!order) return std::move(order).error();
  return {};
}

}  // namespace

Status validate(const Graph& graph) { return validate_within(graph, 0); }

std::vector<std::string> free_names(const Graph& graph) {
  std::unordered_set<std::string_view> own;
  for (const auto& input : graph.inputs) own.insert(input.name);
  for (const auto& [name, value] : graph.initializers) own.insert(name);
  for (const auto& node : graph.nodes) own.insert(node.outputs.begin(), node.outputs.end());
  std::set<std::string> names;
  auto read = [&](const std::string& name) {
    if (!name.empty() && !own.contains(name)) names.insert(name);
  };
  for (const auto& node : graph.nodes) {
    std::ranges::for_each(node.inputs, read);
    std::ranges::for_each(node.captures, read);
  }
  for (const auto& output : graph.outputs) read(output.name);
  return {names.begin(), names.end()};
}

Result<std::vector<std::size_t>> topological_order(const Graph& graph) {
  std::unordered_map<std::string_view, std::size_t> producer;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    for (const auto& output : graph.nodes[i].outputs) {
      if (!output.empty()) producer.emplace(output, i);
    }
  }
  // Kahn's method over a set ordered by file position: stable, and nodes on a cycle are what is left.
  std::vector<std::size_t> waits(graph.nodes.size(), 0);
  std::vector<std::vector<std::size_t>> readers(graph.nodes.size());
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    for (const auto* names : {&graph.nodes[i].inputs, &graph.nodes[i].captures}) {
      for (const auto& input : *names) {
        if (auto found = producer.find(input); found != producer.end()) {
          ++waits[i];
          readers[found->second].push_back(i);
        }
      }
    }
  }
  std::set<std::size_t> ready;
  for (std::size_t i = 0; i < waits.size(); ++i) {
    if (waits[i] == 0) ready.insert(i);
  }
  std::vector<std::size_t> order;
  order.reserve(graph.nodes.size());
  while (!ready.empty()) {
    std::size_t node = *ready.begin();
    ready.erase(ready.begin());
    order.push_back(node);
    for (std::size_t reader : readers[node]) {
      if (--waits[reader] == 0) ready.insert(reader);
    }
  }
  if (order.size() == graph.nodes.size()) return order;
  // Walk back over nodes that still wait until one repeats: it is on a cycle.
  std::size_t at = static_cast<std::size_t>(std::ranges::find_if(waits, [](std::size_t w) { return w > 0; }) - waits.begin());
  std::unordered_set<std::size_t> seen;
  while (seen.insert(at).second) {
    std::vector<std::string_view> reads(graph.nodes[at].inputs.begin(), graph.nodes[at].inputs.end());
    reads.insert(reads.end(), graph.nodes[at].captures.begin(), graph.nodes[at].captures.end());
    for (const auto& input : reads) {
      if (auto found = producer.find(input); found != producer.end() && waits[found->second] > 0) {
        at = found->second;
        break;
      }
    }
  }
  return invalid(format("the graph has a cycle through {}: a node may not read what depends on its own output", describe(graph, at)));
}

Result<std::int64_t> attr_int(const Node& node, std::string_view name, std::optional<std::int64_t> fallback) {
  return read_attribute<std::int64_t>(node, name, fallback, "an integer");
}
Result<double> attr_float(const Node& node, std::string_view name, std::optional<double> fallback) {
  if (!node.attributes.contains(name) && fallback) return *fallback;
  FALAJ_ASSIGN(float value, read_attribute<float>(node, name, {}, "a float"));
  return static_cast<double>(value);
}
Result<std::string> attr_string(const Node& node, std::string_view name, std::optional<std::string> fallback) {
  return read_attribute<std::string>(node, name, std::move(fallback), "a string");
}
Result<std::vector<std::int64_t>> attr_ints(const Node& node, std::string_view name, std::optional<std::vector<std::int64_t>> fallback) {
  return read_attribute<std::vector<std::int64_t>>(node, name, std::move(fallback), "a list of integers");
}
Result<std::vector<float>> attr_floats(const Node& node, std::string_view name, std::optional<std::vector<float>> fallback) {
  return read_attribute<std::vector<float>>(node, name, std::move(fallback), "a list of floats");
}
Result<std::vector<std::string>> attr_strings(const Node& node, std::string_view name, std::optional<std::vector<std::string>> fallback) {
  return read_attribute<std::vector<std::string>>(node, name, std::move(fallback), "a list of strings");
}
Result<Subgraph> attr_graph(const Node& node, std::string_view name) {
  FALAJ_ASSIGN(auto graph, read_attribute<Subgraph>(node, name, {}, "a graph"));
  if (graph == nullptr) return invalid(format("attribute '{}' holds no graph", name));
  return graph;
}
const Tensor* attr_tensor(const Node& node, std::string_view name) {
  auto found = node.attributes.find(name);
  return found == node.attributes.end() ? nullptr : std::get_if<Tensor>(&found->second);
}

}  // namespace falaj::kernels
