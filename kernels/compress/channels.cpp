#include "kernels/compress/channels.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>

#include "kernels/ops.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

// One number in, one number out: channels are not mixed.
constexpr std::array<std::string_view, 28> kElementwise = {"Relu", "LeakyRelu", "Elu",      "Selu", "Celu", "Sigmoid",   "HardSigmoid",
                                                           "Tanh", "Softplus",  "Softsign", "Erf",  "Gelu", "HardSwish", "Mish",
                                                           "Clip", "Identity",  "Dropout",  "Abs",  "Neg",  "Sqrt",      "Exp",
                                                           "Log",  "Pow",       "Add",      "Sub",  "Mul",  "Div",       "ThresholdedRelu"};
constexpr std::array<std::string_view, 5> kSpatial = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"};

const Tensor* constant(const Graph& graph, const Node& node, std::size_t input) {
  if (input >= node.inputs.size() || node.inputs[input].empty()) return nullptr;
  const auto found = graph.initializers.find(node.inputs[input]);
  return found == graph.initializers.end() ? nullptr : &found->second;
}

std::optional<LayerUse> use_of(const Graph& graph, std::size_t at) {
  const Node& node = graph.nodes[at];
  if (!node.domain.empty() && node.domain != "ai.onnx") return std::nullopt;
  const Tensor* weights = constant(graph, node, 1);
  if (weights == nullptr || weights->dtype() != DType::f32) return std::nullopt;
  const std::size_t rank = weights->shape().rank();
  if (node.op == "Conv" && rank >= 3) {
    if (attr_int(node, "group", 1).value_or(0) != 1) return std::nullopt;
    return LayerUse{at, node.inputs[1], 0, 1, true};
  }
  if (node.op == "MatMul" && rank == 2) return LayerUse{at, node.inputs[1], 1, 0, false};
  if (node.op != "Gemm" || rank != 2 || attr_int(node, "transA", 0).value_or(1) != 0) return std::nullopt;
  const bool transposed = attr_int(node, "transB", 0).value_or(0) != 0;
  return LayerUse{at, node.inputs[1], transposed ? 0U : 1U, transposed ? 1U : 0U, false};
}

// Where the channels of a value are.
struct Place {
  std::int64_t from_last = 0;  // how many dimensions come behind them
  std::int64_t rank = 0;       // 0: not known, and not needed
  std::int64_t block = 1;      // neighbouring elements of one channel, after spatial dimensions were folded in
};

class Walk {
 public:
  Walk(const Graph& graph, const LayerUse& layer) : graph_(graph), layer_(layer) {}

  Result<ChannelGroup> walk() {
    const Tensor& weights = graph_.initializers.find(layer_.weights)->second;
    group_ = {layer_.node, layer_.weights, layer_.out_axis, weights.shape()[layer_.out_axis], {}};
    const Node& node = graph_.nodes[layer_.node];
    FALAJ_TRY(slice(layer_.weights, layer_.out_axis, 1));
    if (const Tensor* bias = constant(graph_, node, 2)) {
      const std::size_t rank = bias->shape().rank();
      if (bias->elements() != 1) {
        if (rank == 0 || bias->shape().back() != group_.channels || static_cast<std::int64_t>(bias->elements()) != group_.channels)
          return invalid("its bias is not one number for each channel");
        FALAJ_TRY(slice(node.inputs[2], rank - 1, 1));
      }
    } else if (node.inputs.size() > 2 && !node.inputs[2].empty()) {
      return invalid("its bias is computed");
    }
    FALAJ_ASSIGN(const auto types, infer_types(graph_, 2));
    types_ = &types;
    const auto made = types.types.find(node.outputs[0]);
    if (made == types.types.end()) return invalid("its shape is not known");
    const auto rank = static_cast<std::int64_t>(made->second.shape.rank());
    reached_[node.outputs[0]] = {layer_.image ? rank - 2 : 0, rank, 1};
    for (const std::size_t at : types.order) {
      if (at != layer_.node) FALAJ_TRY(pass(graph_.nodes[at]));
    }
    for (const ValueInfo& output : graph_.outputs) {
      if (reached_.contains(output.name)) return invalid("its channels are a result of the model");
    }
    if (!taken_in_) return invalid("no other layer takes its channels in");
    return std::move(group_);
  }

 private:
  Status slice(const std::string& name, std::size_t axis, std::int64_t block) {
    std::size_t uses = 0;
    for (const Node& node : graph_.nodes)
      uses += static_cast<std::size_t>(std::ranges::count(node.inputs, name) + std::ranges::count(node.captures, name));
    uses += static_cast<std::size_t>(std::ranges::count(graph_.outputs, name, &ValueInfo::name));
    if (uses != 1) return invalid(format("'{}' is used in {} places", name, uses));
    group_.slices.push_back({name, axis, block});
    return {};
  }

  [[nodiscard]] const Shape& shape_of(const std::string& value) const { return types_->types.find(value)->second.shape; }

  // What is known before the run: initialisers, and what follows from constants and shapes.
  [[nodiscard]] const Tensor* known(const Node& node, std::size_t input) const {
    if (input >= node.inputs.size() || node.inputs[input].empty()) return nullptr;
    if (const Tensor* value = constant(graph_, node, input)) return value;
    const auto found = types_->types.find(node.inputs[input]);
    return found == types_->types.end() ? nullptr : found->second.constant;
  }

  Status pass(const Node& node) {
    std::size_t from_group = 0;
    for (const auto& input : node.inputs) from_group += reached_.contains(input) ? 1U : 0U;
    if (from_group == 0) return {};
    const auto refused = [&](std::string_view why) { return invalid(format("{} (node '{}') {}", node.op, node.outputs[0], why)); };
    if (std::ranges::any_of(node.captures, [&](const auto& name) { return reached_.contains(name); }))
      return refused("is a graph of its own");
    if (!node.domain.empty() && node.domain != "ai.onnx") return refused("may mix its channels");
    const Place place = reached_.find(node.inputs[0]) != reached_.end() ? reached_[node.inputs[0]] : Place{};
    if (const auto next = use_of(graph_, static_cast<std::size_t>(&node - graph_.nodes.data())); next && reached_.contains(node.inputs[0]))
      return take_in(node, *next, place);
    if (std::ranges::find(kElementwise, node.op) != kElementwise.end()) return elementwise(node);
    if (!reached_.contains(node.inputs[0])) return refused("may mix its channels");
    if (node.op == "BatchNormalization") {
      if (place.rank - place.from_last != 2 || node.outputs.size() > 1) return refused("does not normalise its channels one by one");
      for (std::size_t i = 1; i < 5; ++i) {
        if (constant(graph_, node, i) == nullptr) return refused("has computed statistics");
        FALAJ_TRY(slice(node.inputs[i], 0, place.block));
      }
      reached_[node.outputs[0]] = place;
      return {};
    }
    if (std::ranges::find(kSpatial, node.op) != kSpatial.end() && place.rank - place.from_last == 2) {
      reached_[node.outputs[0]] = place;
      return {};
    }
    if (node.op == "PRelu") {
      const Tensor* slope = constant(graph_, node, 1);
      if (slope == nullptr) return refused("may mix its channels");
      FALAJ_TRY(spread(node.inputs[1], slope->shape(), place));
      reached_[node.outputs[0]] = place;
      return {};
    }
    if (node.op == "Flatten" || node.op == "Reshape") return flatten(node, place);
    if (node.op == "ReduceMean") return reduce(node, place);
    return refused("may mix its channels");
  }

  Status take_in(const Node& node, const LayerUse& next, const Place& place) {
    const bool fits = next.image ? place.rank - place.from_last == 2 && place.block == 1 : place.from_last == 0;
    if (!fits || reached_.contains(node.inputs[1]))
      return invalid(format("{} (node '{}') reads its channels otherwise", node.op, node.outputs[0]));
    if (node.inputs.size() > 2 && reached_.contains(node.inputs[2])) return invalid("its channels are a bias");
    taken_in_ = true;
    return slice(next.weights, next.in_axis, place.block);
  }

  // An initialiser that is broadcast against a value of the group: one number, or one for each channel.
  Status spread(const std::string& name, const Shape& shape, const Place& place) {
    if (shape.elements() == 1) return {};
    const auto rank = static_cast<std::int64_t>(shape.rank());
    if (place.from_last >= rank) return {};  // it has no dimension of channels
    const auto axis = static_cast<std::size_t>(rank - 1 - place.from_last);
    if (shape[axis] == 1) return {};
    return slice(name, axis, place.block);
  }

  Status elementwise(const Node& node) {
    std::optional<Place> place;
    for (const auto& input : node.inputs) {
      if (const auto found = reached_.find(input); found != reached_.end()) {
        if (place && (place->from_last != found->second.from_last || place->block != found->second.block))
          return invalid(format("{} (node '{}') lines its channels up otherwise", node.op, node.outputs[0]));
        place = found->second;
      }
    }
    for (std::size_t i = 0; i < node.inputs.size(); ++i) {
      const auto& input = node.inputs[i];
      if (input.empty() || reached_.contains(input)) continue;
      const Tensor* other = known(node, i);
      if (other == nullptr || (constant(graph_, node, i) == nullptr && other->elements() != 1))
        return invalid(format("{} (node '{}') joins its channels with those of another layer", node.op, node.outputs[0]));
      FALAJ_TRY(spread(input, other->shape(), *place));
    }
    if (shape_of(node.outputs[0]).rank() != static_cast<std::size_t>(place->rank))
      return invalid(format("{} (node '{}') gives its channels another place", node.op, node.outputs[0]));
    reached_[node.outputs[0]] = *place;
    return {};
  }

  // Channels and what comes behind them become one dimension, the last.
  Status flatten(const Node& node, const Place& place) {
    const auto other = [&] { return invalid(format("{} (node '{}') folds its channels in an unknown way", node.op, node.outputs[0])); };
    if (place.rank - place.from_last != 2) return other();
    const Shape& before = shape_of(node.inputs[0]);
    const Shape& after = shape_of(node.outputs[0]);
    if (after.rank() != 2 || after[0] != before[0]) return other();
    if (node.op == "Flatten") {
      if (attr_int(node, "axis", 1).value_or(0) != 1) return other();
    } else {
      // The width must be left open, or a number in the graph would have to change.
      const Tensor* shape = known(node, 1);
      if (shape == nullptr || shape->dtype() != DType::i64 || shape->elements() != 2 || shape->data<std::int64_t>()[1] != -1)
        return other();
    }
    reached_[node.outputs[0]] = {0, 2, place.block * before.elements(2, before.rank())};
    return {};
  }

  // The mean over all spatial dimensions.
  Status reduce(const Node& node, const Place& place) {
    const auto other = [&] { return invalid(format("ReduceMean (node '{}') may mix its channels", node.outputs[0])); };
    std::vector<std::int64_t> axes;
    if (const Tensor* given = known(node, 1); given != nullptr && given->dtype() == DType::i64) {
      axes.assign(given->data<std::int64_t>().begin(), given->data<std::int64_t>().end());
    } else if (node.inputs.size() < 2) {
      axes = attr_ints(node, "axes", std::vector<std::int64_t>{}).value_or(std::vector<std::int64_t>{});
    }
    if (place.rank - place.from_last != 2 || static_cast<std::int64_t>(axes.size()) != place.from_last || axes.empty()) return other();
    for (auto& axis : axes) axis = axis < 0 ? axis + place.rank : axis;
    std::ranges::sort(axes);
    for (std::size_t i = 0; i < axes.size(); ++i) {
      if (axes[i] != static_cast<std::int64_t>(i) + 2) return other();
    }
    const bool keeps = attr_int(node, "keepdims", 1).value_or(1) != 0;
    reached_[node.outputs[0]] = keeps ? place : Place{0, 2, place.block};
    return {};
  }

  const Graph& graph_;
  const LayerUse& layer_;
  const TypedGraph* types_ = nullptr;
  std::map<std::string, Place, std::less<>> reached_;
  ChannelGroup group_;
  bool taken_in_ = false;
};

}  // namespace

std::vector<LayerUse> layers_of(const Graph& graph) {
  std::vector<LayerUse> out;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    if (auto use = use_of(graph, i)) out.push_back(std::move(*use));
  }
  return out;
}

Result<ChannelGroup> channel_group(const Graph& graph, const LayerUse& layer) { return Walk(graph, layer).walk(); }

}  // namespace falaj::kernels
