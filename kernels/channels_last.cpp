// Convolutions with known weights are moved to [N, H, W, C], where neighbouring channels are one vector, and all between them with
// them: element-wise ops, pools, concatenations. Before it, BatchNormalization by fixed statistics goes into the weights; with it,
// additions, activations and pools of two by two go into the convolution. Whatever else reads a moved value gets it back by a Transpose,
// which is dropped again where nobody does.
#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/ops.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/optimise.hpp"

namespace falaj::kernels {
namespace {

using Ints = std::vector<std::int64_t>;

constexpr std::string_view kElementwise[] = {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Gelu", "Softplus", "Elu",  "HardSigmoid", "HardSwish",
                                             "Mish", "Swish",     "Clip",    "Neg",  "Abs",  "Exp",      "Sqrt", "Erf",         "Identity"};
constexpr std::string_view kPools[] = {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"};

bool is_one_of(const Node& node, std::span<const std::string_view> ops) {
  return node.domain == kOnnx && std::ranges::find(ops, node.op) != ops.end();
}
bool is(const Node& node, std::string_view op) { return node.domain == kOnnx && node.op == op; }

class Mover {
 public:
  Mover(Graph& graph, TypedGraph typed, bool pooled)
      : graph_(graph), typed_(std::move(typed)), uses_(graph), gone_(graph.nodes.size(), false), pooled_(pooled) {}

  Status run() {
    FALAJ_TRY(take_all_statistics());
    for (const std::size_t at : typed_.order) {
      if (!gone_[at]) FALAJ_TRY(move(at));
    }
    erase_nodes(graph_, gone_);
    for (Node& node : made_) graph_.nodes.push_back(std::move(node));
    remove_dead(graph_);
    return {};
  }

  Status fold_statistics() {
    FALAJ_TRY(take_all_statistics());
    erase_nodes(graph_, gone_);
    remove_dead(graph_);
    return {};
  }

 private:
  Status take_all_statistics() {
    for (const std::size_t at : typed_.order) {
      if (is(graph_.nodes[at], "Conv")) FALAJ_TRY(take_statistics(at));
    }
    return {};
  }
  const Tensor* known(const std::string& name) const {
    const auto found = graph_.initializers.find(name);
    return found == graph_.initializers.end() || found->second.dtype() != DType::f32 ? nullptr : &found->second;
  }
  // Ranks and equalities of sizes are those of any batch; of values made here, nothing is asked.
  const ValueType& type(const std::string& name) const { return typed_.types.find(name)->second; }
  bool is_image(const std::string& name) const { return type(name).dtype == DType::f32 && type(name).shape.rank() == 4; }

  // BatchNormalization by constants, of so many channels: y = x * factor + shift for each of them. None: by something else.
  struct Affine {
    std::vector<double> factor, shift;
  };
  Result<std::optional<Affine>> affine_of(const Node& norm, std::int64_t channels) const {
    if (!is(norm, "BatchNormalization") || norm.outputs.size() != 1 || graph_.opset("") < 9) return std::nullopt;
    FALAJ_ASSIGN(const auto trains, attr_int(norm, "training_mode", 0));
    FALAJ_ASSIGN(const double epsilon, attr_float(norm, "epsilon", static_cast<double>(1e-5F)));
    std::vector<std::span<const float>> constants;
    for (std::size_t i = 1; i < 5; ++i) {
      const Tensor* value = known(norm.inputs[i]);
      if (value == nullptr || value->shape() != Shape{channels}) return std::nullopt;
      constants.push_back(value->data<float>());
    }
    if (trains != 0) return std::nullopt;
    Affine affine;
    for (std::size_t m = 0; m < constants[0].size(); ++m) {
      affine.factor.push_back(static_cast<double>(constants[0][m]) / std::sqrt(static_cast<double>(constants[3][m]) + epsilon));
      affine.shift.push_back(static_cast<double>(constants[1][m]) - static_cast<double>(constants[2][m]) * affine.factor[m]);
    }
    return affine;
  }

  // Conv, then BatchNormalization by constants that nobody else reads between.
  Status take_statistics(std::size_t at) {
    const Node conv = graph_.nodes[at];
    const auto reader = uses_.only_reader(conv.outputs[0]);
    const Tensor* w = known(conv.inputs[1]);
    const bool has_bias = conv.inputs.size() > 2 && !conv.inputs[2].empty();
    if (!reader || w == nullptr || (has_bias && known(conv.inputs[2]) == nullptr)) return {};
    const Node norm = graph_.nodes[*reader];
    FALAJ_ASSIGN(const auto affine, affine_of(norm, w->shape()[0]));
    if (!affine || norm.inputs[0] != conv.outputs[0]) return {};
    Tensor weights = w->clone();
    Tensor bias(DType::f32, {w->shape()[0]});
    const std::size_t each = weights.elements() / std::max<std::size_t>(bias.elements(), 1);
    for (std::size_t m = 0; m < bias.elements(); ++m) {
      const double own = has_bias ? static_cast<double>(known(conv.inputs[2])->data<float>()[m]) : 0.0;
      bias.mutable_data<float>()[m] = static_cast<float>(own * affine->factor[m] + affine->shift[m]);
      for (float& v : weights.mutable_data<float>().subspan(m * each, each))
        v = static_cast<float>(static_cast<double>(v) * affine->factor[m]);
    }
    Node& fused = graph_.nodes[at];
    fused.inputs = {conv.inputs[0], graph_.add_initializer(graph_.fresh(conv.inputs[1]), std::move(weights)),
                    graph_.add_initializer(graph_.fresh(conv.outputs[0]), std::move(bias))};
    fused.outputs[0] = norm.outputs[0];
    gone_[*reader] = true;
    return {};
  }

  // The channels-last form of a value; made by a Transpose if it is not there.
  std::string last(const std::string& name) {
    if (const auto found = last_.find(name); found != last_.end()) return found->second;
    const std::string moved = graph_.fresh(name);
    made_.push_back(turn_to_last(graph_, type(name).shape, name, moved));
    last_.emplace(name, moved);
    return moved;
  }

  // `node` computes the channels-last form of `name`; the value itself comes from it, should anybody want it.
  void made(Node node, const std::string& name) {
    const std::string moved = graph_.fresh(name);
    node.outputs = {moved};
    made_.push_back(std::move(node));
    last_.insert_or_assign(name, moved);
    made_.push_back(turn_to_first(graph_, type(name).shape, moved, name));
  }

  Status move(std::size_t at) {
    const Node node = graph_.nodes[at];
    if (node.outputs.empty() || node.outputs[0].empty() || node.inputs.empty() || node.inputs[0].empty() || !is_image(node.outputs[0]))
      return {};
    if (std::ranges::any_of(node.outputs.begin() + 1, node.outputs.end(), [](const auto& name) { return !name.empty(); })) return {};
    const auto moved = [&](const std::string& name) { return last_.contains(name); };
    if (is(node, "Conv")) {
      if (is_image(node.inputs[0]) && known(node.inputs[1]) != nullptr) move_conv(at, node);
      return {};
    }
    if (is(node, "BatchNormalization")) return moved(node.inputs[0]) ? move_norm(at) : Status{};
    Node copy = node;
    if (is_one_of(node, kPools) && moved(node.inputs[0])) {
      FALAJ_ASSIGN(const auto order, attr_int(node, "storage_order", 0));
      if (order != 0) return {};
      copy.domain = kFalaj;
      copy.inputs[0] = last(node.inputs[0]);
    } else if (is_one_of(node, kElementwise) && moved(node.inputs[0])) {
      copy.inputs[0] = last(node.inputs[0]);
    } else if (is_arithmetic(node) && std::ranges::any_of(node.inputs, moved) && graph_.opset("") >= 7) {
      const bool all = std::ranges::all_of(node.inputs, [&](const auto& name) { return moved(name) || type(name).shape.elements() == 1; });
      if (!all) return {};
      for (auto& name : copy.inputs) name = moved(name) ? last(name) : name;
    } else if (is(node, "Concat") && std::ranges::all_of(node.inputs, moved)) {
      FALAJ_ASSIGN(const auto axis, attr_int(node, "axis"));
      if (axis != 1 && axis != -3) return {};
      for (auto& name : copy.inputs) name = last(name);
      copy.attributes["axis"] = std::int64_t{3};
    } else if (is(node, "Resize") && moved(node.inputs[0]) && keeps_channels(node)) {
      copy.inputs[0] = last(node.inputs[0]);
      // Scales and sizes are of N, C, H, W; they may be known to the plan only.
      for (std::size_t i = 2; i < copy.inputs.size(); ++i) {
        if (!copy.inputs[i].empty()) copy.inputs[i] = turned(copy.inputs[i]);
      }
    } else {
      return {};
    }
    gone_[at] = true;
    made(std::move(copy), node.outputs[0]);
    return {};
  }
  static bool is_arithmetic(const Node& node) { return is(node, "Add") || is(node, "Sub") || is(node, "Mul") || is(node, "Div"); }

  // One that no convolution took is a convolution itself: of one place, each channel with a map of its own.
  Status move_norm(std::size_t at) {
    const Node& norm = graph_.nodes[at];
    const std::int64_t channels = type(norm.inputs[0]).shape[1];
    FALAJ_ASSIGN(const auto affine, affine_of(norm, channels));
    if (!affine || channels < 2) return {};
    Tensor factor(DType::f32, {channels, 1, 1, 1});
    Tensor shift(DType::f32, {channels});
    std::ranges::transform(affine->factor, factor.mutable_data<float>().begin(), [](double v) { return static_cast<float>(v); });
    std::ranges::transform(affine->shift, shift.mutable_data<float>().begin(), [](double v) { return static_cast<float>(v); });
    const std::string w = graph_.add_initializer(graph_.fresh(norm.inputs[1]), std::move(factor));
    const std::string b = graph_.add_initializer(graph_.fresh(norm.inputs[2]), std::move(shift));
    move_conv(at, Node{"Conv", "", norm.name, {norm.inputs[0], w, b}, norm.outputs, attr("group", channels)});
    return {};
  }

  // A Resize of images by their height and width that something reads in this layout: one whose result leaves the graph is better turned
  // before it, while it is small.
  bool keeps_channels(const Node& resize) const {
    const Shape& from = type(resize.inputs[0]).shape;
    const Shape& to = type(resize.outputs[0]).shape;
    const bool plain = graph_.opset("") >= 11 && !resize.attributes.contains("axes") &&
                       attr_string(resize, "coordinate_transformation_mode", "").value_or("") != "tf_crop_and_resize";
    const auto readers = uses_.readers.find(resize.outputs[0]);
    return plain && from[0] == to[0] && from[1] == to[1] && readers != uses_.readers.end() &&
           std::ranges::any_of(readers->second, [&](std::size_t at) {
             const Node& reader = graph_.nodes[at];
             return is(reader, "Conv") || is(reader, "Concat") || is_arithmetic(reader) || is_one_of(reader, kElementwise);
           });
  }
  std::string turned(const std::string& of_dimensions) {
    const std::string order = graph_.add_initializer(graph_.fresh("order"), Tensor::vector<std::int64_t>({0, 2, 3, 1}));
    const std::string to = graph_.fresh(of_dimensions);
    made_.push_back({"Gather", "", {}, {of_dimensions, order}, {to}, {}});
    return to;
  }

  void move_conv(std::size_t at, Node conv) {
    conv.domain = kFalaj;
    conv.inputs[0] = last(conv.inputs[0]);
    conv.inputs.resize(4);
    std::string result = conv.outputs[0];
    gone_[at] = true;
    take_addend(conv, result);
    take_activation(conv, result);
    take_pool(conv, result);
    while (conv.inputs.back().empty()) conv.inputs.pop_back();
    made(std::move(conv), result);
  }
  // What is added must be there already: in its channels-last form, made by an earlier node.
  void take_addend(Node& conv, std::string& result) {
    const auto reader = uses_.only_reader(result);
    if (!reader || gone_[*reader] || !is(graph_.nodes[*reader], "Add")) return;
    const Node& add = graph_.nodes[*reader];
    const std::string& other = add.inputs[0] == result ? add.inputs[1] : add.inputs[0];
    if (!last_.contains(other) || type(other).shape != type(result).shape) return;
    conv.inputs[3] = last_.find(other)->second;
    gone_[*reader] = true;
    result = add.outputs[0];
  }
  void take_activation(Node& conv, std::string& result) {
    const auto reader = uses_.only_reader(result);
    if (!reader || gone_[*reader] || !carry_activation(graph_, conv, graph_.nodes[*reader])) return;
    gone_[*reader] = true;
    result = graph_.nodes[*reader].outputs[0];
  }

  // Of two by two neighbours the largest, without padding.
  void take_pool(Node& conv, std::string& result) {
    const auto reader = uses_.only_reader(result);
    const bool taken = pooled_ || known(conv.inputs[1])->shape()[1] == 1;
    if (!taken || !reader || gone_[*reader] || !is(graph_.nodes[*reader], "MaxPool") || !conv.inputs[3].empty()) return;
    const Node& pool = graph_.nodes[*reader];
    const auto all = [&](std::string_view name, std::int64_t value, bool needed) {
      const auto given = attr_ints(pool, name, Ints{});
      return given && (given->empty() ? !needed : std::ranges::all_of(*given, [&](std::int64_t v) { return v == value; }));
    };
    const bool plain = attr_string(pool, "auto_pad", "NOTSET").value_or("") == "NOTSET" &&
                       attr_int(pool, "ceil_mode", 0).value_or(1) == 0 && attr_int(pool, "storage_order", 0).value_or(1) == 0 &&
                       attr_int(conv, "group", 1).value_or(0) == 1;
    const bool fits = all("kernel_shape", 2, true) && all("strides", 2, true) && all("pads", 0, false) && all("dilations", 1, false);
    if (!plain || !fits || pool.outputs.size() != 1 || !is_image(pool.outputs[0])) return;
    gone_[*reader] = true;
    conv.attributes["pooled"] = std::int64_t{1};
    result = pool.outputs[0];
  }

  Graph& graph_;
  TypedGraph typed_;
  Uses uses_;
  std::vector<bool> gone_;
  bool pooled_;
  std::vector<Node> made_;
  std::map<std::string, std::string, std::less<>> last_;
};

}  // namespace

Status fold_statistics(Graph& graph) {
  FALAJ_ASSIGN(auto typed, infer_types(graph, 7));
  return Mover(graph, std::move(typed), false).fold_statistics();
}

Status use_channels_last(Graph& graph, bool pooled) {
  const bool any = std::ranges::any_of(graph.nodes, [](const Node& node) { return is(node, "Conv"); });
  if (!any) return {};
  auto typed = infer_types(graph, 7);  // as fuse() does
  if (!typed) return {};
  return Mover(graph, std::move(*typed), pooled).run();
}

}  // namespace falaj::kernels
