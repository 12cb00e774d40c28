#include "kernels/train/cut.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>

#include "kernels/train/families.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {

namespace {

using Names = std::set<std::string, std::less<>>;

Result<std::string> find_logits_in(const Graph& graph, std::span<const std::size_t> order, std::string_view wanted) {
  std::string name(wanted);
  if (name.empty()) {
    if (const auto found = graph.metadata.find(metadata::kLogitsValue); found != graph.metadata.end()) name = found->second;
  }
  for (std::size_t i = order.size(); name.empty() && i-- > 0;) {
    const Node& node = graph.nodes[order[i]];
    const bool is_output = graph.find_output(node.outputs[0]) != nullptr;
    if (is_output && (node.op == "Sigmoid" || node.op == "Softmax")) name = node.inputs[0];
  }
  if (name.empty() && !graph.outputs.empty()) name = graph.outputs[0].name;
  if (name.empty()) return invalid("the graph has no output to train");
  return name;
}

bool is_recurrent(const Node& node) { return node.op == "RNN" || node.op == "GRU" || node.op == "LSTM"; }

class Cutter {
 public:
  Cutter(const Graph& graph, const std::vector<std::string>& frozen) : graph_(graph), frozen_(frozen) {}

  Result<Cut> cut(std::string_view logits, const std::vector<std::string>& trainable) {
    FALAJ_TRY(validate(graph_));
    FALAJ_ASSIGN(typed_, infer_types(graph_, kSampleRows));
    FALAJ_ASSIGN(other_, infer_types(graph_, kSampleRows + 1));
    for (const std::size_t node : typed_.order) {
      for (const std::string& output : graph_.nodes[node].outputs) producer_[output] = node;
    }
    Cut cut;
    FALAJ_ASSIGN(cut.logits, find_logits(logits));
    cut.logits_type = typed_.types.find(cut.logits)->second;
    cut.logits_type.constant = nullptr;
    collect_ancestors(cut.logits);
    FALAJ_TRY(find_parameters(trainable));
    cut.parameters.assign(parameters_.begin(), parameters_.end());
    FALAJ_TRY(find_boundary());
    if (producer_.find(cut.logits) == producer_.end() || !rest_.contains(producer_.find(cut.logits)->second)) {
      return invalid(format("value '{}' does not depend on any parameter", cut.logits));
    }
    split(cut);
    return cut;
  }

 private:
  Result<std::string> find_logits(std::string_view wanted) const {
    FALAJ_ASSIGN(auto name, find_logits_in(graph_, typed_.order, wanted));
    const auto type = typed_.types.find(name);
    if (type == typed_.types.end()) return invalid(format("the graph has no value '{}' to train", name));
    if (type->second.dtype != DType::f32)
      return invalid(format("value '{}' is {}, training needs f32", name, to_string(type->second.dtype)));
    return name;
  }

  void collect_ancestors(const std::string& value) {
    std::vector<std::string> open = {value};
    while (!open.empty()) {
      const auto found = producer_.find(open.back());
      open.pop_back();
      if (found == producer_.end() || !ancestors_.insert(found->second).second) continue;
      for (const std::string& input : graph_.nodes[found->second].inputs) open.push_back(input);
    }
  }

  // A value that is nothing but initialisers, laid out otherwise; in `pieces`: also cut and joined, as exporters bring a recurrent layer's
  // gates into ONNX's order.
  struct Held {
    std::shared_ptr<const Names> sources;  // null: it is anything else
    bool pieces = false;
  };
  Held held(const std::string& value) const {
    if (graph_.initializers.contains(value)) return {std::make_shared<const Names>(Names{value})};
    const auto found = held_.find(value);
    return found == held_.end() ? Held{} : found->second;
  }
  void note_held(std::size_t index) {
    const Node& node = graph_.nodes[index];
    const bool layout =
        node.op == "Transpose" || node.op == "Identity" || node.op == "Reshape" || node.op == "Unsqueeze" || node.op == "Squeeze";
    const bool joined = node.op == "Concat";
    if (!layout && !joined && node.op != "Slice") return;
    Held all = held(node.inputs[0]);
    for (std::size_t i = 1; joined && i < node.inputs.size() && all.sources != nullptr; ++i) {
      const Held more = held(node.inputs[i]);
      Names both = *all.sources;
      if (more.sources != nullptr) both.insert(more.sources->begin(), more.sources->end());
      all.sources = more.sources == nullptr ? nullptr : std::make_shared<const Names>(std::move(both));
    }
    if (all.sources == nullptr) return;
    all.pieces = all.pieces || !layout;
    held_[node.outputs[0]] = std::move(all);
  }

  // By use: what multiplies, looks up or normalises is a weight; what is added to (or scales) something that depends on a weight is a
  // bias (or a scale). Constants of preprocessing and of attention masks fall through.
  [[nodiscard]] bool is_parameter(const Node& node, std::size_t input, const Tensor& value) const {
    if (value.dtype() != DType::f32 || value.shape().empty()) return false;
    if (!std::ranges::all_of(value.data<float>(), [](float x) { return std::isfinite(x); })) return false;  // a mask
    if (node.op == "Gemm") return input >= 1;
    if (node.op == "MatMul" || node.op == "Einsum") return true;
    if (node.op == "Conv" || node.op == "ConvTranspose" || node.op.ends_with("Normalization")) return input == 1 || input == 2;
    if (node.op == "Gather") return input == 0;
    if (node.op == "PRelu") return input == 1;
    if (is_recurrent(node)) return (input >= 1 && input <= 3) || input == 7;
    const bool follows = std::ranges::any_of(node.inputs, [&](const std::string& other) { return depends_.contains(other); });
    if (node.op == "Add") return follows;
    if (node.op == "Mul") return follows && value.elements() > 1;
    return false;
  }

  [[nodiscard]] bool frozen(std::string_view name) const {
    return std::ranges::any_of(frozen_, [name](std::string_view pattern) { return stands_for(pattern, name); });
  }

  Status find_parameters(const std::vector<std::string>& trainable) {
    const bool given = !trainable.empty();
    for (const std::string& name : trainable) {
      const auto found = graph_.initializers.find(name);
      if (found == graph_.initializers.end()) return invalid(format("'{}' is to be trained, but is no initialiser of the graph", name));
      if (found->second.dtype() != DType::f32)
        return invalid(format("'{}' is {}, only f32 can be trained", name, to_string(found->second.dtype())));
      parameters_.insert(name);
      depends_.insert(name);
    }
    for (const std::size_t index : typed_.order) {
      if (!ancestors_.contains(index)) continue;
      const Node& node = graph_.nodes[index];
      note_held(index);
      for (std::size_t i = 0; !given && i < node.inputs.size(); ++i) {
        const Held value = held(node.inputs[i]);
        if (value.sources == nullptr || (value.pieces && !is_recurrent(node))) continue;
        for (const std::string& source : *value.sources) {
          if (frozen(source) || !is_parameter(node, i, graph_.initializers.find(source)->second)) continue;
          parameters_.insert(source);
          depends_.insert(source);
          bring_along(node.inputs[i]);
        }
      }
      if (std::ranges::any_of(node.inputs, [&](const std::string& input) { return depends_.contains(input); })) {
        for (const std::string& output : node.outputs) depends_.insert(output);
        rest_.insert(index);
      }
    }
    for (auto it = parameters_.begin(); given && it != parameters_.end();) {
      const bool used = std::ranges::any_of(ancestors_, [&](std::size_t index) {
        return std::ranges::find(graph_.nodes[index].inputs, *it) != graph_.nodes[index].inputs.end();
      });
      if (!used) return invalid(format("'{}' is to be trained, but the trained value does not depend on it", *it));
      ++it;
    }
    if (parameters_.empty()) return invalid("the graph has no parameters: no f32 initialiser is used as a weight");
    return {};
  }

  // A weight that is reached through other nodes brings these along.
  void bring_along(const std::string& value) {
    std::vector<std::string> open = {value};
    while (!open.empty()) {
      const auto found = held_.contains(open.back()) ? producer_.find(open.back()) : producer_.end();
      open.pop_back();
      if (found == producer_.end() || !rest_.insert(found->second).second) continue;
      const Node& node = graph_.nodes[found->second];
      depends_.insert(node.outputs[0]);
      open.insert(open.end(), node.inputs.begin(), node.inputs.end());
    }
  }

  [[nodiscard]] bool has_rows(const std::string& value) const {
    const Shape& a = typed_.types.find(value)->second.shape;
    const Shape& b = other_.types.find(value)->second.shape;
    if (a.empty() || a.rank() != b.rank() || a[0] != kSampleRows || b[0] != kSampleRows + 1) return false;
    return std::equal(a.begin() + 1, a.end(), b.begin() + 1);
  }

  // What does not come row by row (shapes, folded constants) is computed with the parameters.
  Status find_boundary() {
    for (bool moved = true; moved;) {
      moved = false;
      boundary_.clear();
      for (const std::size_t index : std::set<std::size_t>(rest_)) {
        for (const std::string& input : graph_.nodes[index].inputs) {
          if (input.empty() || graph_.initializers.contains(input)) continue;
          const auto found = producer_.find(input);
          if (found != producer_.end() && rest_.contains(found->second)) continue;
          if (has_rows(input)) {
            boundary_.insert(input);
          } else if (found == producer_.end()) {
            return invalid(format("input '{}' has no row dimension in front: the graph cannot be trained by rows", input));
          } else {
            rest_.insert(found->second);
            moved = true;
          }
        }
      }
    }
    return {};
  }

  static void take_nodes(const Graph& from, const std::vector<std::size_t>& order, const std::set<std::size_t>& wanted, Graph& to) {
    to.opsets = from.opsets;
    for (const std::size_t index : order) {
      if (!wanted.contains(index)) continue;
      to.nodes.push_back(from.nodes[index]);
      for (const std::string& input : from.nodes[index].inputs) {
        const auto found = from.initializers.find(input);
        if (found != from.initializers.end()) to.initializers.emplace(found->first, found->second);
      }
    }
  }

  void split(Cut& cut) {
    cut.prefix.name = graph_.name + " (prefix)";
    cut.prefix.inputs = graph_.inputs;
    cut.rest.name = graph_.name;
    ancestors_.clear();
    for (const std::string& value : boundary_) {
      const ValueType& type = typed_.types.find(value)->second;
      ValueInfo info{value, type.dtype, type.shape};
      info.shape[0] = -1;
      info.symbols.assign(info.shape.rank(), "");
      info.symbols[0] = "N";
      cut.boundary.push_back(info);
      cut.rest.inputs.push_back(info);
      if (graph_.find_input(value) == nullptr) {
        cut.prefix.outputs.push_back(info);
        collect_ancestors(value);
      }
    }
    ValueInfo logits{cut.logits, DType::f32, cut.logits_type.shape};
    if (!logits.shape.empty()) logits.shape[0] = -1;
    cut.rest.outputs.push_back(std::move(logits));
    take_nodes(graph_, typed_.order, ancestors_, cut.prefix);
    take_nodes(graph_, typed_.order, rest_, cut.rest);
  }

  const Graph& graph_;
  const std::vector<std::string>& frozen_;
  TypedGraph typed_, other_;
  std::map<std::string, std::size_t, std::less<>> producer_;
  std::map<std::string, Held, std::less<>> held_;
  std::set<std::size_t> ancestors_, rest_;
  Names parameters_, depends_, boundary_;
};

}  // namespace

bool stands_for(std::string_view pattern, std::string_view name) {
  return pattern.ends_with('*') ? name.starts_with(pattern.substr(0, pattern.size() - 1)) : name == pattern;
}

Result<Cut> cut_for_training(const Graph& graph, std::string_view logits, const std::vector<std::string>& trainable,
                             const std::vector<std::string>& frozen) {
  return Cutter(graph, frozen).cut(logits, trainable);
}

Result<std::string> logits_of(const Graph& graph, std::string_view wanted) {
  FALAJ_ASSIGN(const auto order, topological_order(graph));
  return find_logits_in(graph, order, wanted);
}

}  // namespace falaj::kernels
