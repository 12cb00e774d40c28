#include "kernels/compress/qdq.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/ops.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/optimise.hpp"

namespace falaj::kernels {
namespace {

constexpr std::int64_t kOpsetMinimum = 13;  // from here on DequantizeLinear takes one scale for each channel
constexpr std::string_view kPassing[] = {"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"};

bool is(const Node& node, std::string_view op) { return node.domain == kOnnx && node.op == op; }
bool passes(const Node& node) {
  return node.domain == kOnnx && std::ranges::find(kPassing, node.op) != std::end(kPassing) && node.outputs.size() == 1;
}

// A graph as the two questions see it: what can be quantised, and what must be with it.
class View {
 public:
  static Result<View> make(const Graph& graph) {
    FALAJ_ASSIGN(auto typed, infer_types(graph, 7));
    return View(graph, std::move(typed));
  }

  const Tensor* constant(const std::string& name) const {
    const auto found = graph_->initializers.find(name);
    return found == graph_->initializers.end() ? nullptr : &found->second;
  }
  const Node* maker(const std::string& name) const {
    const auto found = makers_.find(name);
    return found == makers_.end() ? nullptr : &graph_->nodes[found->second];
  }
  const ValueType& type(const std::string& name) const { return typed_.types.find(name)->second; }
  const std::vector<std::size_t>& order() const { return typed_.order; }
  const Uses& uses() const { return uses_; }

  // Of which axis of the weights each index is an output; nothing: no layer.
  std::optional<std::int64_t> output_axis(const Node& node) const {
    if (node.domain != kOnnx || (node.op != "MatMul" && node.op != "Gemm" && node.op != "Conv")) return {};
    const Tensor* w = constant(node.inputs[1]);
    if (w == nullptr || w->dtype() != DType::f32 || w->elements() == 0 || constant(node.inputs[0]) != nullptr) return {};
    if (type(node.inputs[0]).dtype != DType::f32) return {};
    if (node.op == "Conv") return w->shape().rank() == 4 ? std::optional<std::int64_t>(0) : std::nullopt;
    if (w->shape().rank() != 2 || type(node.inputs[0]).shape.rank() < 2) return {};
    if (node.op == "MatMul") return 1;
    const bool plain = attr_int(node, "transA", 0).value_or(1) == 0 && attr_float(node, "alpha", 1.0).value_or(0) == 1.0 &&
                       attr_float(node, "beta", 1.0).value_or(0) == 1.0;
    if (!plain) return {};
    return attr_int(node, "transB", 0).value_or(0) != 0 ? 0 : 1;
  }

 private:
  View(const Graph& graph, TypedGraph typed) : graph_(&graph), typed_(std::move(typed)), uses_(graph) {
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      for (const auto& name : graph.nodes[i].outputs) makers_[name] = i;
    }
  }
  const Graph* graph_;
  TypedGraph typed_;
  Uses uses_;
  std::map<std::string, std::size_t, std::less<>> makers_;
};

// Which values are quantised, and who reads them so.
class Choice {
 public:
  Choice(const View& view, const Graph& graph, const std::set<std::string>& chosen) : view_(view), chosen_(chosen) {
    for (const std::size_t at : view.order()) {
      const Node& node = graph.nodes[at];
      if (is_chosen(node)) want(node.inputs[0]);
    }
  }
  // Value to the value whose range it shares.
  const std::map<std::string, std::string>& values() const { return values_; }
  bool is_chosen(const Node& node) const { return !node.outputs.empty() && chosen_.contains(node.outputs[0]) && view_.output_axis(node); }

  [[nodiscard]] bool reads_quantised(const Node& node, std::size_t input) const {
    const std::string& value = node.inputs[input];
    if (!values_.contains(value)) return false;
    if (is_chosen(node)) return input == 0;
    if (passes(node) || is(node, "GlobalAveragePool")) {
      if (input == 0 && values_.contains(node.outputs[0])) return true;
    }
    if (is(node, "Add") && sums_.contains(node.outputs[0])) return true;
    return made_inside(value);
  }

 private:
  // What a chosen layer gives, alone or with the bias added behind it, for one reader.
  bool ends_layer(const std::string& value) const {
    if (!view_.uses().only_reader(value)) return false;
    const Node* node = view_.maker(value);
    if (node == nullptr) return false;
    if (is_chosen(*node)) return true;
    if (!is(*node, "Add")) return false;
    for (const std::size_t i : {0U, 1U}) {
      const Node* before = view_.maker(node->inputs[i]);
      const Tensor* bias = view_.constant(node->inputs[1 - i]);
      if (before != nullptr && is_chosen(*before) && bias != nullptr && bias->shape().rank() == 1 &&
          view_.uses().only_reader(node->inputs[i]))
        return true;
    }
    return false;
  }
  // What the activations behind a sum or a layer read.
  const Node* before_activation(const std::string& value) const {
    const Node* node = view_.maker(value);
    for (int depth = 0; node != nullptr && depth < 4 && (is(*node, "Relu") || is(*node, "Clip")); ++depth) {
      if (!view_.uses().only_reader(node->inputs[0])) return nullptr;
      node = view_.maker(node->inputs[0]);
    }
    return node;
  }
  // Computed on integers, so that nobody needs the floats.
  bool made_inside(const std::string& value) const {
    if (view_.uses().outputs.contains(value)) return false;
    const Node* node = before_activation(value);
    if (node == nullptr) return false;
    if (is_chosen(*node) || sums_.contains(node->outputs[0])) return true;
    if (!is(*node, "Add")) return false;
    return std::ranges::any_of(node->inputs, [&](const auto& name) { return ends_layer(name); });
  }

  void want(const std::string& value) {
    if (values_.contains(value) || view_.constant(value) != nullptr || view_.type(value).dtype != DType::f32) return;
    const Node* node = view_.maker(value);
    if (node != nullptr && passes(*node) && view_.constant(node->inputs[0]) == nullptr) {
      want(node->inputs[0]);
      const auto found = values_.find(node->inputs[0]);
      values_[value] = found == values_.end() ? value : found->second;
      return;
    }
    values_[value] = value;
    if (node != nullptr && is(*node, "GlobalAveragePool")) return want(node->inputs[0]);
    const Node* sum = before_activation(value);
    if (sum == nullptr || !is(*sum, "Add")) return;
    const std::string a = sum->inputs[0];
    const std::string b = sum->inputs[1];
    if (view_.constant(a) != nullptr || view_.constant(b) != nullptr || a == b || view_.type(a).shape != view_.type(b).shape) return;
    // One summand may come straight from its layer; the others are quantised.
    sums_.insert(sum->outputs[0]);
    if (!ends_layer(a)) want(a);
    if (ends_layer(a) || !ends_layer(b)) want(b);
  }

  const View& view_;
  const std::set<std::string>& chosen_;
  std::map<std::string, std::string> values_;
  std::set<std::string, std::less<>> sums_;
};

struct Affine {
  float scale = 1;
  std::uint8_t zero = 0;
};
Affine affine_of(const Range& range) {
  Affine a;
  const double scale = (range.high - range.low) / 255;
  a.scale = scale > 1e-30 ? static_cast<float>(scale) : 1.0F;
  a.zero = static_cast<std::uint8_t>(std::clamp(std::nearbyint(-range.low / static_cast<double>(a.scale)), 0.0, 255.0));
  return a;
}

class WriterQdq {
 public:
  WriterQdq(const View& view, const Choice& choice, const Graph& graph, const std::map<std::string, Range>& ranges)
      : view_(view), choice_(choice), graph_(graph), out_(graph), ranges_(ranges) {}

  Result<Graph> run() {
    out_.origin = nullptr;
    out_.nodes.clear();
    for (const auto& [value, source] : choice_.values()) FALAJ_TRY(quantise(value, source));
    for (const std::size_t at : view_.order()) {
      Node node = graph_.nodes[at];
      const Node before = node;
      if (choice_.is_chosen(before)) FALAJ_TRY(quantise_weights(before, node));
      for (std::size_t i = 0; i < before.inputs.size(); ++i) {
        if (!before.inputs[i].empty() && choice_.reads_quantised(before, i)) node.inputs[i] = dequantised_.at(before.inputs[i]);
      }
      out_.nodes.push_back(std::move(node));
    }
    remove_dead(out_);
    return std::move(out_);
  }

 private:
  Status quantise(const std::string& value, const std::string& source) {
    const auto range = ranges_.find(source);
    if (range == ranges_.end()) return failed(format("value '{}' was not calibrated", source));
    auto [at, fresh] = affine_.try_emplace(source, affine_of(range->second));
    if (fresh) {
      scale_[source] = out_.add_initializer(out_.fresh(source + "_scale"), Tensor::scalar<float>(at->second.scale));
      zero_[source] = out_.add_initializer(out_.fresh(source + "_zero_point"), Tensor::scalar<std::uint8_t>(at->second.zero));
    }
    const std::string q = out_.fresh(value + "_quantized");
    const std::string d = out_.fresh(value + "_dequantized");
    out_.nodes.push_back({"QuantizeLinear", "", value + "_QuantizeLinear", {value, scale_[source], zero_[source]}, {q}, {}});
    out_.nodes.push_back({"DequantizeLinear", "", value + "_DequantizeLinear", {q, scale_[source], zero_[source]}, {d}, {}});
    dequantised_[value] = d;
    return {};
  }

  // Symmetric, one scale for each output.
  Status quantise_weights(const Node& layer, Node& node) {
    const std::string& name = layer.inputs[1];
    const Tensor& w = *view_.constant(name);
    const std::int64_t axis = *view_.output_axis(layer);
    const AxisSplit split = split_at(w.shape(), axis);
    std::vector<float> largest(static_cast<std::size_t>(split.size), 0.0F);
    const auto channel = [&](std::size_t i) { return i / static_cast<std::size_t>(split.inner) % largest.size(); };
    const auto from = w.data<float>();
    for (std::size_t i = 0; i < from.size(); ++i) {
      if (!std::isfinite(from[i])) return invalid(format("{}: weight {} of '{}' is {}", describe(layer), i, name, from[i]));
      largest[channel(i)] = std::max(largest[channel(i)], std::abs(from[i]));
    }
    Tensor scales(DType::f32, {split.size});
    for (std::size_t c = 0; c < largest.size(); ++c) scales.mutable_data<float>()[c] = largest[c] > 0 ? largest[c] / 127.0F : 1.0F;
    Tensor quantised(DType::i8, w.shape());
    for (std::size_t i = 0; i < from.size(); ++i)
      quantised.mutable_data<std::int8_t>()[i] =
          static_cast<std::int8_t>(std::clamp(std::nearbyint(from[i] / scales.data<float>()[channel(i)]), -127.0F, 127.0F));
    const std::string q = out_.add_initializer(out_.fresh(name + "_quantized"), std::move(quantised));
    const std::string s = out_.add_initializer(out_.fresh(name + "_scale"), scales);
    const std::string z = out_.add_initializer(out_.fresh(name + "_zero_point"), Tensor(DType::i8, {split.size}));
    node.inputs[1] = out_.fresh(name + "_dequantized");
    out_.nodes.push_back({"DequantizeLinear", "", name + "_DequantizeLinear", {q, s, z}, {node.inputs[1]}, attr("axis", axis)});
    if (layer.inputs.size() > 2 && !layer.inputs[2].empty()) quantise_bias(layer, node, scales);
    return {};
  }
  void quantise_bias(const Node& layer, Node& node, const Tensor& weight_scales) {
    const std::string& name = layer.inputs[2];
    const Tensor* bias = view_.constant(name);
    if (bias == nullptr || bias->dtype() != DType::f32 || bias->shape() != weight_scales.shape()) return;
    const float x_scale = affine_.at(choice_.values().at(layer.inputs[0])).scale;
    Tensor scales(DType::f32, bias->shape());
    Tensor whole(DType::i32, bias->shape());
    for (std::size_t i = 0; i < bias->elements(); ++i) {
      const float scale = x_scale * weight_scales.data<float>()[i];
      const double quantum = std::nearbyint(static_cast<double>(bias->data<float>()[i]) / static_cast<double>(scale));
      if (!(scale > 0) || !(std::abs(quantum) < 2147483647.0)) return;  // stays as it is
      scales.mutable_data<float>()[i] = scale;
      whole.mutable_data<std::int32_t>()[i] = static_cast<std::int32_t>(quantum);
    }
    const std::string q = out_.add_initializer(out_.fresh(name + "_quantized"), std::move(whole));
    const std::string s = out_.add_initializer(out_.fresh(name + "_scale"), std::move(scales));
    node.inputs[2] = out_.fresh(name + "_dequantized");
    out_.nodes.push_back({"DequantizeLinear", "", name + "_DequantizeLinear", {q, s}, {node.inputs[2]}, attr("axis", std::int64_t{0})});
  }

  const View& view_;
  const Choice& choice_;
  const Graph& graph_;
  Graph out_;
  const std::map<std::string, Range>& ranges_;
  std::map<std::string, Affine> affine_;
  std::map<std::string, std::string> scale_, zero_, dequantised_;
};

}  // namespace

Result<Graph> prepare_for_quantisation(const Graph& graph) {
  Graph out = graph;
  out.origin = nullptr;
  FALAJ_TRY(validate(out));
  if (out.opset("") < kOpsetMinimum)
    return Error{ErrorCode::unimplemented,
                 format("the model declares opset {}: quantised models need at least {}; convert it first", out.opset(""), kOpsetMinimum)};
  for (const auto& input : out.inputs) {
    if (input.kind != ValueKind::tensor)
      return Error{ErrorCode::unimplemented, format("input '{}' is no tensor: such models are not quantised", input.name)};
  }
  remove_dead(out);
  FALAJ_TRY(fold_constants(out, true));
  FALAJ_TRY(fold_statistics(out));
  remove_dead(out);
  return out;
}

Result<std::vector<Layer>> quantisable_layers(const Graph& prepared) {
  FALAJ_ASSIGN(const View view, View::make(prepared));
  std::vector<Layer> layers;
  for (const std::size_t at : view.order()) {
    const Node& node = prepared.nodes[at];
    if (!view.output_axis(node)) continue;
    layers.push_back({node.outputs[0], node.name.empty() ? node.outputs[0] : node.name, node.op, view.constant(node.inputs[1])->bytes()});
  }
  return layers;
}

Result<std::map<std::string, std::string>> quantised_values(const Graph& prepared, const std::set<std::string>& chosen) {
  FALAJ_ASSIGN(const View view, View::make(prepared));
  return Choice(view, prepared, chosen).values();
}

Result<Graph> write_quantised(const Graph& prepared, const std::set<std::string>& chosen, const std::map<std::string, Range>& ranges) {
  FALAJ_ASSIGN(const View view, View::make(prepared));
  const Choice choice(view, prepared, chosen);
  return WriterQdq(view, choice, prepared, ranges).run();
}

}  // namespace falaj::kernels
