// Quantised graphs on integers. A product or convolution between DequantizeLinear of a u8 value and of known s8 weights becomes one node of
// ai.falaj, with what follows it: bias, one more summand, Relu or Clip, QuantizeLinear. So do sums and pools between quantised values, and
// what only moves values does so in bytes. Convolutions and pools are moved to [N, H, W, C], as kernels/channels_last.cpp does in f32.
// The arithmetic is that of kernels/ops/integer.hpp; it gives the quantum that the float chain gives, or its neighbour.
#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/convert.hpp"
#include "kernels/ops.hpp"
#include "kernels/ops/common.hpp"
#include "kernels/ops/integer.hpp"
#include "kernels/optimise.hpp"

namespace falaj::kernels {
namespace {

using Ints = std::vector<std::int64_t>;

bool is(const Node& node, std::string_view op) { return node.domain == kOnnx && node.op == op; }

constexpr std::string_view kMoves[] = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"};
constexpr std::string_view kWorth[] = {"MatMul", "Gemm", "Conv"};  // whose absence from the integers is said

struct Params {
  double scale = 1;
  std::int32_t zero = 0;
  bool operator==(const Params&) const = default;
};
// A u8 value that was dequantised.
struct Source {
  std::string value;
  Params params;
};
struct Weights {
  std::string value;  // an s8 initialiser
  std::vector<double> scales;
  [[nodiscard]] double scale(std::size_t column) const { return scales[scales.size() == 1 ? 0 : column]; }
};

// What follows a product, as far as it can be carried.
struct Chain {
  std::string result;  // the last value taken: f32, or u8 where it is quantised
  std::vector<double> bias;
  std::optional<Source> addend;
  bool relu = false;
  double low = -INFINITY, high = INFINITY;
  std::optional<Params> quantised;
  std::vector<std::size_t> taken;
};

class Integers {
 public:
  Integers(Graph& graph, TypedGraph typed, std::vector<std::string>& notes)
      : graph_(graph), typed_(std::move(typed)), uses_(graph), gone_(graph.nodes.size(), false), notes_(notes) {
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      for (const auto& name : graph.nodes[i].outputs) makers_[name] = i;
    }
  }

  void run() {
    for (const std::size_t at : typed_.order) {
      if (gone_[at]) continue;
      const Node node = graph_.nodes[at];
      std::string why;
      const bool worth = node.domain == kOnnx && std::ranges::find(kWorth, node.op) != std::end(kWorth);
      bool taken = false;
      if (worth) taken = node.op == "Conv" ? take_conv(at, node, why) : take_product(at, node, why);
      if (is(node, "Add")) taken = take_sum(at, node);
      if (is(node, "MaxPool") || is(node, "GlobalAveragePool")) taken = take_pool(at, node);
      if (node.domain == kOnnx && std::ranges::find(kMoves, node.op) != std::end(kMoves)) taken = take_move(at, node);
      if (worth && !taken) notes_.push_back(format("{} is no integer product: {}", describe(node), why));
    }
    make_pending();
    erase_nodes(graph_, gone_);
    for (Node& node : made_) graph_.nodes.push_back(std::move(node));
    remove_dead(graph_);
  }

 private:
  const ValueType& type(const std::string& name) const { return typed_.types.find(name)->second; }
  const Tensor* constant(const std::string& name) const {
    const auto found = graph_.initializers.find(name);
    return found == graph_.initializers.end() ? nullptr : &found->second;
  }
  const Node* maker(const std::string& name) const {
    const auto found = makers_.find(name);
    return found == makers_.end() ? nullptr : &graph_.nodes[found->second];
  }

  // One scale for all, u8.
  std::optional<Params> params(const Node& node) const {
    const Tensor* scale = constant(node.inputs[1]);
    if (scale == nullptr || scale->dtype() != DType::f32 || scale->elements() != 1) return {};
    Params p{static_cast<double>(scale->data<float>()[0]), 0};
    if (node.inputs.size() > 2 && !node.inputs[2].empty()) {
      const Tensor* zero = constant(node.inputs[2]);
      if (zero == nullptr || zero->dtype() != DType::u8 || zero->elements() != 1) return {};
      p.zero = zero->data<std::uint8_t>()[0];
    }
    if (!std::isfinite(p.scale) || p.scale <= 0) return {};
    return p;
  }
  std::optional<Source> source(const std::string& name) const {
    const Node* node = maker(name);
    if (node == nullptr || !is(*node, "DequantizeLinear") || constant(node->inputs[0]) != nullptr) return {};
    if (type(node->inputs[0]).dtype != DType::u8 || type(name).dtype != DType::f32) return {};
    const auto p = params(*node);
    if (!p) return {};
    return Source{node->inputs[0], *p};
  }
  std::optional<Params> quantises(const Node& node) const {
    if (!is(node, "QuantizeLinear") || type(node.outputs[0]).dtype != DType::u8 || type(node.inputs[0]).dtype != DType::f32) return {};
    return params(node);
  }

  std::optional<Weights> weights(const std::string& name, std::int64_t axis, std::int64_t columns, std::string& why) {
    const Node* node = maker(name);
    const Tensor* value = node != nullptr && is(*node, "DequantizeLinear") ? constant(node->inputs[0]) : nullptr;
    if (value == nullptr || (value->dtype() != DType::i8 && value->dtype() != DType::u8)) {
      why = "its weights are no quantised constants of 8 bits";
      return {};
    }
    Weights w{node->inputs[0], {}};
    const Tensor* scale = constant(node->inputs[1]);
    const auto given = attr_int(*node, "axis", 1).value_or(1);
    const auto own = normal_axis(given, value->shape().rank()).value_or(-1);
    const bool each =
        scale != nullptr && scale->elements() == static_cast<std::size_t>(columns) && scale->shape().rank() == 1 && own == axis;
    if (scale == nullptr || scale->dtype() != DType::f32 || (scale->elements() != 1 && !each)) {
      why = "its weights have neither one scale nor one for each output";
      return {};
    }
    for (const float s : scale->data<float>()) {
      w.scales.push_back(static_cast<double>(s));
      if (std::isfinite(s) && s > 0) continue;
      why = "a scale of its weights is not positive";
      return {};
    }
    std::vector<double> zeros = {0};
    if (node->inputs.size() > 2 && !node->inputs[2].empty()) {
      const Tensor* zero = constant(node->inputs[2]);
      if (zero == nullptr) return {};
      zeros = numbers(*zero);
    }
    const double middle = value->dtype() == DType::u8 ? 128 : 0;
    if (std::ranges::any_of(zeros, [&](double z) { return z != middle; })) {
      why = "its weights have a zero point that is not the middle of their range";
      return {};
    }
    if (value->dtype() == DType::u8) w.value = as_signed(w.value, *value);
    return w;
  }
  static std::vector<double> numbers(const Tensor& tensor) {
    std::vector<double> values(tensor.elements());
    to_doubles(tensor.dtype(), tensor.raw(), values.data(), static_cast<std::int64_t>(values.size()));
    return values;
  }
  std::string as_signed(const std::string& name, const Tensor& value) {
    if (const auto found = signed_.find(name); found != signed_.end()) return found->second;
    Tensor moved(DType::i8, value.shape());
    for (std::size_t i = 0; i < moved.elements(); ++i)
      moved.mutable_data<std::int8_t>()[i] = static_cast<std::int8_t>(value.data<std::uint8_t>()[i] - 128);
    return signed_[name] = graph_.add_initializer(graph_.fresh(name), std::move(moved));
  }

  // A bias of one number for each column: f32, or dequantised from known integers.
  std::optional<std::vector<double>> known_row(const std::string& name, std::int64_t columns) const {
    std::vector<double> values;
    if (const Tensor* value = constant(name); value != nullptr) {
      if (value->dtype() != DType::f32) return {};
      values = numbers(*value);
      if (value->shape().rank() > 1 && value->shape().back() != static_cast<std::int64_t>(value->elements())) return {};
    } else {
      const Node* node = maker(name);
      const Tensor* whole = node != nullptr && is(*node, "DequantizeLinear") ? constant(node->inputs[0]) : nullptr;
      const Tensor* scale = whole == nullptr ? nullptr : constant(node->inputs[1]);
      if (scale == nullptr || whole->shape().rank() != 1 || (scale->elements() != 1 && scale->elements() != whole->elements())) return {};
      values = numbers(*whole);
      const auto scales = numbers(*scale);
      std::vector<double> zeros = {0};
      if (node->inputs.size() > 2 && !node->inputs[2].empty()) {
        const Tensor* zero = constant(node->inputs[2]);
        if (zero == nullptr) return {};
        zeros = numbers(*zero);
      }
      for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = (values[i] - zeros[zeros.size() == 1 ? 0 : i]) * scales[scales.size() == 1 ? 0 : i];
    }
    if (values.size() == 1) values.resize(static_cast<std::size_t>(columns), values[0]);
    if (values.size() != static_cast<std::size_t>(columns) || std::ranges::any_of(values, [](double v) { return !std::isfinite(v); }))
      return {};
    return values;
  }

  std::optional<std::size_t> next(const std::string& value) const {
    const auto reader = uses_.only_reader(value);
    if (!reader || gone_[*reader]) return {};
    return reader;
  }

  void follow(Chain& chain, std::int64_t columns, bool image) const {
    while (const auto reader = next(chain.result)) {
      const Node& node = graph_.nodes[*reader];
      if (is(node, "Add") && !chain.relu && !chain.addend && node.inputs[0] != node.inputs[1]) {
        const std::string& other = node.inputs[0] == chain.result ? node.inputs[1] : node.inputs[0];
        const auto row = image ? std::nullopt : known_row(other, columns);
        const auto added = source(other);
        if (row && type(other).shape.rank() == 1 && type(node.outputs[0]).shape == type(chain.result).shape) {
          for (std::size_t i = 0; i < chain.bias.size(); ++i) chain.bias[i] += (*row)[i];
        } else if (added && type(other).shape == type(chain.result).shape) {
          chain.addend = added;
        } else {
          return;
        }
      } else if (is(node, "Relu")) {
        chain.relu = true;
      } else if (is(node, "Clip")) {
        const auto after = next(node.outputs[0]);
        if (!after || !quantises(graph_.nodes[*after]) || !bounds(node, chain)) return;
      } else if (const auto p = quantises(node)) {
        chain.quantised = p;
      } else {
        return;
      }
      chain.taken.push_back(*reader);
      chain.result = node.outputs[0];
      if (chain.quantised) return;
    }
  }
  bool bounds(const Node& clip, Chain& chain) const {
    double limits[2] = {-INFINITY, INFINITY};
    if (clip.inputs.size() == 1) {
      limits[0] = attr_float(clip, "min", -INFINITY).value_or(NAN);
      limits[1] = attr_float(clip, "max", INFINITY).value_or(NAN);
    }
    for (std::size_t i = 1; i < clip.inputs.size() && i < 3; ++i) {
      if (clip.inputs[i].empty()) continue;
      const Tensor* value = constant(clip.inputs[i]);
      if (value == nullptr || value->dtype() != DType::f32 || value->elements() != 1) return false;
      limits[i - 1] = static_cast<double>(value->data<float>()[0]);
    }
    if (!(limits[0] <= limits[1])) return false;
    chain.low = limits[0];
    chain.high = limits[1];
    return true;
  }

  // The node's attributes and constants from what was found.
  std::vector<std::string> ends(Node& node, const Chain& chain, const Source& x, const Weights& w, std::int64_t columns) {
    const double y_scale = chain.quantised ? chain.quantised->scale : 1.0;
    Tensor multiplier(DType::f32, {columns});
    Tensor offset(DType::f32, {columns});
    for (std::size_t i = 0; i < multiplier.elements(); ++i) {
      multiplier.mutable_data<float>()[i] = static_cast<float>(x.params.scale * w.scale(i) / y_scale);
      offset.mutable_data<float>()[i] = static_cast<float>(chain.bias[i] / y_scale);
    }
    node.attributes["x_zero"] = std::int64_t{x.params.zero};
    node.attributes["relu"] = std::int64_t{chain.relu ? 1 : 0};
    node.attributes["to"] = std::int64_t{code_of(chain.quantised ? DType::u8 : DType::f32)};
    if (chain.quantised) set_range(node, *chain.quantised, chain.relu ? std::max(chain.low, 0.0) : chain.low, chain.high);
    if (chain.addend) {
      node.attributes["addend_zero"] = std::int64_t{chain.addend->params.zero};
      node.attributes["addend_scale"] = static_cast<float>(chain.addend->params.scale / y_scale);
    }
    return {graph_.add_initializer(graph_.fresh("multiplier"), std::move(multiplier)),
            graph_.add_initializer(graph_.fresh("offset"), std::move(offset))};
  }
  // Quantisation is monotone: a bound of the values is a bound of the quanta.
  static void set_range(Node& node, const Params& y, double low, double high) {
    const auto quantum = [&](double v) {
      return static_cast<std::int64_t>(std::clamp(std::nearbyint(std::clamp(v / y.scale, -1e6, 1e6)) + y.zero, 0.0, 255.0));
    };
    node.attributes["y_zero"] = std::int64_t{y.zero};
    node.attributes["low"] = quantum(low);
    node.attributes["high"] = quantum(high);
  }
  void retire(std::size_t at, const Chain& chain) {
    gone_[at] = true;
    for (const std::size_t node : chain.taken) gone_[node] = true;
  }

  bool take_product(std::size_t at, const Node& node, std::string& why) {
    const bool gemm = node.op == "Gemm";
    const auto trans_b = gemm ? attr_int(node, "transB", 0).value_or(0) : 0;
    if (gemm && (attr_int(node, "transA", 0).value_or(1) != 0 || attr_float(node, "alpha", 1.0).value_or(0) != 1.0 ||
                 attr_float(node, "beta", 1.0).value_or(0) != 1.0)) {
      why = "its left operand is transposed, or alpha or beta is not 1";
      return false;
    }
    const auto x = source(node.inputs[0]);
    if (!x) {
      why = "its left operand was not quantised by one scale";
      return false;
    }
    const Shape& shape = type(node.inputs[1]).shape;
    if (shape.rank() != 2 || type(node.inputs[0]).shape.rank() < 2) {
      why = "its right operand is no matrix";
      return false;
    }
    const std::size_t axis = trans_b != 0 ? 0 : 1;
    const std::int64_t columns = shape[axis];
    if (shape[1 - axis] > kDepthMax) {
      why = format("sums of more than {} terms could overflow", kDepthMax);
      return false;
    }
    const auto w = weights(node.inputs[1], static_cast<std::int64_t>(axis), columns, why);
    if (!w) return false;
    Chain chain{node.outputs[0], std::vector<double>(static_cast<std::size_t>(columns), 0.0), {}, false, -INFINITY, INFINITY, {}, {}};
    if (node.inputs.size() > 2 && !node.inputs[2].empty()) {
      const auto bias = known_row(node.inputs[2], columns);
      if (!bias) {
        why = "its bias is no known row";
        return false;
      }
      chain.bias = *bias;
    }
    follow(chain, columns, false);
    Node made{"QMatMul", std::string(kFalaj), node.name, {x->value, w->value}, {chain.result}, {}};
    if (trans_b != 0) made.attributes["transB"] = std::int64_t{1};
    for (auto& name : ends(made, chain, *x, *w, columns)) made.inputs.push_back(std::move(name));
    if (chain.addend) made.inputs.push_back(chain.addend->value);
    retire(at, chain);
    made_.push_back(std::move(made));
    return true;
  }

  bool take_conv(std::size_t at, const Node& node, std::string& why) {
    const Shape& shape = type(node.inputs[1]).shape;
    if (shape.rank() != 4) {
      why = "only two spatial dimensions";
      return false;
    }
    const auto x = source(node.inputs[0]);
    if (!x) {
      why = "its input was not quantised by one scale";
      return false;
    }
    if (shape.elements(1, 4) > kDepthMax) {
      why = format("sums of more than {} terms could overflow", kDepthMax);
      return false;
    }
    const auto w = weights(node.inputs[1], 0, shape[0], why);
    if (!w) return false;
    Chain chain{node.outputs[0], std::vector<double>(static_cast<std::size_t>(shape[0]), 0.0), {}, false, -INFINITY, INFINITY, {}, {}};
    if (node.inputs.size() > 2 && !node.inputs[2].empty()) {
      const auto bias = known_row(node.inputs[2], shape[0]);
      if (!bias) {
        why = "its bias is no known row";
        return false;
      }
      chain.bias = *bias;
    }
    follow(chain, shape[0], true);
    Node made{"QConv", std::string(kFalaj), node.name, {last(x->value), w->value}, {}, node.attributes};
    for (auto& name : ends(made, chain, *x, *w, shape[0])) made.inputs.push_back(std::move(name));
    if (chain.addend) made.inputs.push_back(last(chain.addend->value));
    retire(at, chain);
    add_last(std::move(made), chain.result);
    return true;
  }

  // A sum of two quantised values.
  bool take_sum(std::size_t at, const Node& node) {
    const auto a = source(node.inputs[0]);
    const auto b = source(node.inputs[1]);
    if (!a || !b || type(node.inputs[0]).shape != type(node.inputs[1]).shape) return false;
    Chain chain{node.outputs[0], {}, {}, false, -INFINITY, INFINITY, {}, {}};
    chain.addend = a;  // no other one
    follow(chain, 0, true);
    if (!chain.quantised) return false;
    const Params& y = *chain.quantised;
    Node made{"QAdd", std::string(kFalaj), node.name, {a->value, b->value}, {}, {}};
    made.attributes["a_zero"] = std::int64_t{a->params.zero};
    made.attributes["b_zero"] = std::int64_t{b->params.zero};
    made.attributes["a_scale"] = static_cast<float>(a->params.scale / y.scale);
    made.attributes["b_scale"] = static_cast<float>(b->params.scale / y.scale);
    set_range(made, y, chain.relu ? std::max(chain.low, 0.0) : chain.low, chain.high);
    retire(at, chain);
    if (last_.contains(a->value) || last_.contains(b->value)) {
      made.inputs = {last(a->value), last(b->value)};
      add_last(std::move(made), chain.result);
    } else {
      made.outputs = {chain.result};
      made_.push_back(std::move(made));
    }
    return true;
  }

  // What a node gives, if it is quantised next and nothing else reads it.
  std::optional<std::size_t> quantised_next(const Node& node) const {
    if (std::ranges::any_of(node.outputs.begin() + 1, node.outputs.end(), [](const auto& name) { return !name.empty(); })) return {};
    const auto reader = next(node.outputs[0]);
    if (!reader || !quantises(graph_.nodes[*reader])) return {};
    return reader;
  }

  bool take_pool(std::size_t at, const Node& node) {
    const auto x = source(node.inputs[0]);
    const auto after = quantised_next(node);
    if (!x || !after || type(node.inputs[0]).shape.rank() != 4) return false;
    const Params y = *quantises(graph_.nodes[*after]);
    Node made{"QMaxPool", std::string(kFalaj), node.name, {}, {}, node.attributes};
    if (node.op == "MaxPool") {
      if (!(y == x->params) || attr_int(node, "storage_order", 0).value_or(1) != 0) return false;
    } else {
      const Shape& in = type(node.inputs[0]).shape;
      // Sizes that a model leaves open are only guessed here.
      if (in[2] * in[3] > kDepthMax || has_open_sizes(graph_)) return false;
      made.op = "QGlobalAveragePool";
      made.attributes["x_zero"] = std::int64_t{x->params.zero};
      made.attributes["scale"] = static_cast<float>(x->params.scale / y.scale / static_cast<double>(in[2] * in[3]));
      set_range(made, y, -INFINITY, INFINITY);
    }
    made.inputs = {last(x->value)};
    gone_[at] = gone_[*after] = true;
    add_last(std::move(made), graph_.nodes[*after].outputs[0]);
    return true;
  }
  // Whether the spatial sizes depend on an input's open ones (but its batch).

  bool take_move(std::size_t at, const Node& node) {
    const auto x = source(node.inputs[0]);
    const auto after = quantised_next(node);
    if (!x || !after || !(*quantises(graph_.nodes[*after]) == x->params)) return false;
    Node made = node;
    made.inputs[0] = x->value;
    made.outputs = {graph_.nodes[*after].outputs[0]};
    gone_[at] = gone_[*after] = true;
    made_.push_back(std::move(made));
    return true;
  }

  // --- layout ---

  // The channels-last form of a u8 value. Who makes it may come later in the graph; what nobody makes is made at the end.
  std::string last(const std::string& name) {
    if (const auto found = last_.find(name); found != last_.end()) return found->second;
    return last_[name] = pending_[name] = graph_.fresh(name);
  }
  // Made where the value is quantised, or by a Transpose.
  void make_pending() {
    for (const auto& [name, moved] : pending_) {
      const Node* from = maker(name);
      if (from != nullptr && quantises(*from) && !gone_[makers_.find(name)->second]) {
        Node node{"Quantize", std::string(kFalaj), from->name, {from->inputs[0], from->inputs[1]}, {moved}, {}};
        set_range(node, *quantises(*from), -INFINITY, INFINITY);
        made_.push_back(std::move(node));
      } else {
        made_.push_back(turn_to_last(graph_, type(name).shape, name, moved));
      }
    }
  }
  // `node` computes the channels-last form of `name`; the value itself comes from it, should anybody want it.
  void add_last(Node node, const std::string& name) {
    const std::string moved = last(name);
    pending_.erase(name);
    node.outputs = {moved};
    made_.push_back(std::move(node));
    made_.push_back(turn_to_first(graph_, type(name).shape, moved, name));
  }

  Graph& graph_;
  TypedGraph typed_;
  Uses uses_;
  std::map<std::string, std::size_t, std::less<>> makers_;
  std::vector<bool> gone_;
  std::vector<Node> made_;
  std::map<std::string, std::string, std::less<>> last_, pending_, signed_;
  std::vector<std::string>& notes_;
};

}  // namespace

Status use_integers(Graph& graph, std::vector<std::string>& notes) {
  FALAJ_TRY(separate_quantisation(graph));
  const bool any = std::ranges::any_of(graph.nodes, [](const Node& node) { return is(node, "DequantizeLinear"); });
  if (!any) return {};
  auto typed = infer_types(graph, 7);  // as fuse() does
  if (!typed) {
    notes.push_back(format("no node runs on integers: {}", typed.error().message));
    return {};
  }
  use_unsigned(graph, *typed);
  typed = infer_types(graph, 7);
  if (!typed) return typed.error();
  Integers(graph, std::move(*typed), notes).run();
  return {};
}

}  // namespace falaj::kernels
