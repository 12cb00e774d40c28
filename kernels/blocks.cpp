// Training of convolutional networks: the values between convolutions, and the gradients that come back through them, are kept in blocks of
// sixteen channels, as convolutions read and write them (kernels/ops/blocks.hpp); in training in bfloat16 they are bfloat16. What is
// between them works on blocks too, several nodes as one where one reads what the other makes: normalisation, sum and Relu. Whoever else
// reads such a value, or makes what these read, sees it plain.

#include "kernels/ops/blocks.hpp"

#include <algorithm>

#include "kernels/ops.hpp"
#include "kernels/optimise.hpp"

namespace falaj::kernels {
namespace {

using Ints = std::vector<std::int64_t>;

class Blocker {
 public:
  Blocker(Graph& graph, TypedGraph typed, bool half) : graph_(graph), typed_(std::move(typed)), half_(half), uses_(graph) {
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      for (const auto& name : graph.nodes[i].outputs) {
        if (!name.empty()) makers_[name] = i;
      }
    }
  }

  void run() {
    for (const Node& node : graph_.nodes) kinds_.push_back(kind_of(node));
    while (leave_lonely()) {
    }
    if (std::ranges::all_of(kinds_, [](Kind kind) { return kind == Kind::other; })) return;
    for (const std::size_t at : typed_.order) find_fused(at);
    for (const std::size_t at : typed_.order) {
      if (!fused_.contains(at)) rewrite(at);
    }
    graph_.nodes = std::move(made_);
  }

 private:
  enum class Kind : std::uint8_t {
    other,
    conv,
    data_grad,
    weight_grad,
    norm,
    norm_grad,
    relu,
    relu_grad,
    add,
    sums,
    pool,
    max_pool_grad,
    mean_pool_grad
  };

  [[nodiscard]] const ValueType& type(const std::string& name) const { return typed_.types.at(name); }
  [[nodiscard]] bool fits(const std::string& name) const {
    const ValueType& t = type(name);
    return t.dtype == DType::f32 && t.shape.rank() == 4 && t.shape[1] > 0 && t.shape[1] % kBlockChannels == 0;
  }
  [[nodiscard]] bool is_plane(const std::string& name) const { return type(name).dtype == DType::f32 && type(name).shape.rank() == 4; }

  // What can go through blocks at all.
  [[nodiscard]] Kind kind_of(const Node& node) const {
    const bool ours = node.domain == kFalaj;
    const auto two = [&] { return fits(node.inputs[0]) && fits(node.inputs[1]); };
    if (node.op == "Conv" && !ours) {
      return one_group(node) && is_plane(node.inputs[0]) && fits(node.outputs[0]) ? Kind::conv : Kind::other;
    }
    if (ours && (node.op == "ConvDataGrad" || node.op == "ConvWeightGrad")) {
      if (!one_group(node) || !fits(node.inputs[0])) return Kind::other;
      return node.op == "ConvDataGrad" ? Kind::data_grad : Kind::weight_grad;
    }
    if (node.op == "BatchNormalization") return fits(node.inputs[0]) && (ours || is_fixed(node)) ? Kind::norm : Kind::other;
    if (ours && (node.op == "BatchNormalizationTrainingGrad" || node.op == "BatchNormalizationGrad"))
      return two() ? Kind::norm_grad : Kind::other;
    if (!ours && node.op == "Relu") return fits(node.inputs[0]) ? Kind::relu : Kind::other;
    if (ours && node.op == "ReluGrad") return two() ? Kind::relu_grad : Kind::other;
    if (!ours && node.op == "ReduceSum") return fits(node.inputs[0]) && sums_channels(node) ? Kind::sums : Kind::other;
    if (!ours && is_pool(node, node.op)) return fits(node.inputs[0]) && node.outputs.size() == 1 ? Kind::pool : Kind::other;
    if (ours && node.op == "PoolGrad") {
      const std::string function = attr_string(node, "function", "").value_or("");
      if (!is_pool(node, function) || !two()) return Kind::other;
      return function.ends_with("MaxPool") ? Kind::max_pool_grad : Kind::mean_pool_grad;
    }
    const bool sum = !ours && node.op == "Add";
    return sum && two() && type(node.inputs[0]).shape == type(node.inputs[1]).shape ? Kind::add : Kind::other;
  }
  // A normalisation, or a gradient of one, by statistics that are given.
  [[nodiscard]] bool is_fixed(const Node& node) const {
    if (node.domain == kFalaj) return node.op == "BatchNormalizationGrad";
    return node.outputs.size() == 1 && attr_int(node, "training_mode", 0).value_or(1) == 0 && graph_.opset(node.domain) >= 9;
  }
  static bool one_group(const Node& node) { return attr_int(node, "group", 1).value_or(0) == 1; }

  // With dilations, versions of the standard differ in what some means divide by.
  static bool is_pool(const Node& node, std::string_view function) {
    if (function == "GlobalAveragePool" || function == "GlobalMaxPool" || function == "MaxPool") return true;
    const auto dilations = attr_ints(node, "dilations", Ints{});
    return function == "AveragePool" && dilations && std::ranges::all_of(*dilations, [](std::int64_t d) { return d == 1; });
  }
  // As the gradient of a convolution's bias is.
  [[nodiscard]] bool sums_channels(const Node& node) const {
    const Tensor* axes = node.inputs.size() > 1 && !node.inputs[1].empty() ? type(node.inputs[1]).constant : nullptr;
    return axes != nullptr && attr_int(node, "keepdims", 1).value_or(1) == 0 &&
           std::ranges::equal(axes->data<std::int64_t>(), Ints{0, 2, 3});
  }

  // Which of a node's inputs it reads in blocks, if it goes through them. A convolution takes its input as it comes.
  [[nodiscard]] std::size_t values_read(std::size_t at) const {
    switch (kinds_[at]) {
      case Kind::other:
        return 0;
      case Kind::conv:
      case Kind::data_grad:
      case Kind::norm:
      case Kind::relu:
      case Kind::sums:
      case Kind::pool:
      case Kind::mean_pool_grad:
        return 1;
      case Kind::max_pool_grad:
        return 3;
      default:
        return 2;
    }
  }
  // In blocks once the pass is through.
  [[nodiscard]] bool in_blocks(const std::string& name) const {
    const auto maker = makers_.find(name);
    if (maker == makers_.end()) return false;
    const Kind kind = kinds_[maker->second];
    return kind != Kind::other && kind != Kind::weight_grad && kind != Kind::sums && graph_.nodes[maker->second].outputs[0] == name &&
           fits(name);
  }
  [[nodiscard]] const std::vector<std::size_t>& readers(const std::string& name) const {
    static const std::vector<std::size_t> kNone;
    const auto found = uses_.readers.find(name);
    return found == uses_.readers.end() ? kNone : found->second;
  }
  [[nodiscard]] bool reads_blocks(std::size_t reader, const std::string& name) const {
    const Node& node = graph_.nodes[reader];
    for (std::size_t k = 0; k < values_read(reader); ++k) {
      if (node.inputs[k] == name) return true;
    }
    return false;
  }
  // As a node of its own kind, or as what is not a value to it: the weights of a convolution may be a value themselves.
  [[nodiscard]] bool reads_plain(std::size_t reader, const std::string& name) const {
    const Node& node = graph_.nodes[reader];
    for (std::size_t k = values_read(reader); k < node.inputs.size(); ++k) {
      const bool like =
          (kinds_[reader] == Kind::data_grad && k == 2 && in_blocks(node.outputs[0])) || (kinds_[reader] == Kind::mean_pool_grad && k == 1);
      if (node.inputs[k] == name && !like) return true;
    }
    return false;
  }
  [[nodiscard]] bool reads_shape_only(std::size_t reader, const std::string& name) const {
    const Node& node = graph_.nodes[reader];
    const OpDef* op = find_op(node.domain, node.op);
    for (std::size_t k = 0; k < node.inputs.size(); ++k) {
      if (node.inputs[k] == name && (k >= 32 || ((op->shape_only >> k) & 1U) == 0)) return false;
    }
    return true;
  }

  // A node that would have more values turned into blocks and back than it shares with others that go through blocks is left alone.
  bool leave_lonely() {
    bool any = false;
    for (std::size_t at = 0; at < kinds_.size(); ++at) {
      if (kinds_[at] == Kind::other) continue;
      const Node& node = graph_.nodes[at];
      std::size_t shared = 0;
      std::size_t turned = 0;
      for (std::size_t k = 0; k < values_read(at); ++k) {
        if (in_blocks(node.inputs[k])) ++shared;
        if (!in_blocks(node.inputs[k]) && needs_blocks(at, k)) ++turned;
      }
      if (in_blocks(node.outputs[0])) {
        bool plain = uses_.outputs.contains(node.outputs[0]);
        for (const std::size_t reader : readers(node.outputs[0])) {
          if (reads_blocks(reader, node.outputs[0])) ++shared;
          plain = plain || (!reads_blocks(reader, node.outputs[0]) && !reads_shape_only(reader, node.outputs[0]));
        }
        turned += plain ? 1 : 0;
      }
      if (shared >= std::max<std::size_t>(turned, 1)) continue;
      kinds_[at] = Kind::other;
      any = true;
    }
    return any;
  }
  // False for the input of a convolution, which may be plain.
  [[nodiscard]] bool needs_blocks(std::size_t at, std::size_t k) const {
    return !(kinds_[at] == Kind::conv || (kinds_[at] == Kind::weight_grad && k == 1));
  }

  // --- nodes that become one ----------------------------------------------------------------------------------------------------------

  [[nodiscard]] std::optional<std::size_t> maker(const std::string& name, Kind kind) const {
    const auto found = makers_.find(name);
    if (found == makers_.end() || kinds_[found->second] != kind || graph_.nodes[found->second].outputs[0] != name) return {};
    return found->second;
  }
  // The node of this kind that makes the value for one reader alone.
  [[nodiscard]] std::optional<std::size_t> only_for(const std::string& name, Kind kind) const {
    const auto found = maker(name, kind);
    return found && uses_.only_reader(name) && readers(name).size() == 1 ? found : std::nullopt;
  }

  struct Fused {
    std::optional<std::size_t> norm, add, relu_grad;
    std::optional<std::size_t> passed;  // of a normalisation's gradient: the normalisation whose Relu was behind it
  };

  void find_fused(std::size_t at) {
    const Node& node = graph_.nodes[at];
    Fused f;
    if (kinds_[at] == Kind::relu) {
      f.norm = only_for(node.inputs[0], Kind::norm);
      f.add = only_for(node.inputs[0], Kind::add);
      for (std::size_t k = 0; f.add && !f.norm && k < 2; ++k) f.norm = only_for(graph_.nodes[*f.add].inputs[k], Kind::norm);
    } else if (kinds_[at] == Kind::relu_grad) {
      f.add = only_for(node.inputs[0], Kind::add);
    } else if (kinds_[at] == Kind::norm_grad) {
      f.relu_grad = only_for(node.inputs[0], Kind::relu_grad);
      if (f.relu_grad) f.passed = passed_by(node, graph_.nodes[*f.relu_grad].inputs[1]);
      if (!f.passed) f.relu_grad = {};
      if (f.relu_grad && found_[*f.relu_grad].add) fused_.erase(*found_[*f.relu_grad].add);  // it stays a node of its own
    }
    for (const auto& gone : {f.norm, f.add, f.relu_grad}) {
      if (gone) fused_.insert(*gone);
    }
    found_[at] = f;
  }
  // The normalisation whose Relu is y, where it is that of this gradient.
  [[nodiscard]] std::optional<std::size_t> passed_by(const Node& grad, const std::string& y) const {
    const auto relu = maker(y, Kind::relu);
    const auto norm = relu ? maker(graph_.nodes[*relu].inputs[0], Kind::norm) : std::nullopt;
    if (!norm) return {};
    const Node& node = graph_.nodes[*norm];
    const auto epsilon = [](const Node& of) { return attr_float(of, "epsilon", static_cast<double>(1e-5F)).value_or(-1); };
    const bool same = node.inputs[0] == grad.inputs[1] && node.inputs[1] == grad.inputs[2] && epsilon(node) == epsilon(grad);
    if (is_fixed(node) != is_fixed(grad)) return {};
    if (is_fixed(node) && !std::equal(node.inputs.begin() + 3, node.inputs.end(), grad.inputs.begin() + 3)) return {};
    return same ? norm : std::nullopt;
  }

  // --- nodes anew -----------------------------------------------------------------------------------------------------------------------

  std::string name_of(const std::string& value, std::string_view form) {
    auto& name = names_[value + "/" + std::string(form)];
    if (name.empty()) name = graph_.fresh(value + "/" + std::string(form));
    return name;
  }
  void make(std::string_view op, const Node& from, std::vector<std::string> inputs, std::vector<std::string> outputs,
            Attributes attributes = {}) {
    made_.push_back({std::string(op), std::string(kFalaj), from.name, std::move(inputs), std::move(outputs), std::move(attributes)});
  }
  void set_half(Attributes& attributes) const {
    if (half_) attributes["half"] = std::int64_t{1};
  }
  // The value in blocks, made of the plain one if nobody makes it so.
  std::string blocks(const std::string& value) {
    std::string name = name_of(value, "blocks");
    if (!in_blocks(value) && there_.insert(name).second) {
      Attributes attributes;
      set_half(attributes);
      make("ToBlocks", {}, {value}, {name}, std::move(attributes));
    }
    return name;
  }
  std::string as_it_comes(const std::string& value) { return in_blocks(value) ? blocks(value) : value; }
  // A value in blocks that somebody wants plain keeps its name there.
  void turn_back(const std::string& value) {
    const bool plain = uses_.outputs.contains(value) ||
                       std::ranges::any_of(readers(value), [&](std::size_t reader) { return reads_plain(reader, value); });
    if (plain) make("FromBlocks", {}, {blocks(value)}, {value});
  }
  // Mean and variance of x, once; with what they move, where the normalisation does that.
  std::string statistics(const Node& norm) {
    const std::string& x = norm.inputs[0];
    std::string name = name_of(x, "statistics");
    const bool moves = norm.outputs.size() > 1;
    if (!there_.insert(name).second) {
      if (!moves) return name;
      name = graph_.fresh(name);
    }
    Node node{"BlockStatistics", std::string(kFalaj), norm.name, {blocks(x)}, {name}, {}};
    if (moves) {
      node.inputs.insert(node.inputs.end(), norm.inputs.begin() + 3, norm.inputs.end());
      node.outputs.insert(node.outputs.end(), norm.outputs.begin() + 1, norm.outputs.end());
      if (const auto momentum = norm.attributes.find("momentum"); momentum != norm.attributes.end()) node.attributes.insert(*momentum);
    }
    made_.push_back(std::move(node));
    return name_of(x, "statistics");
  }
  // Those that a node is given, in the same form.
  std::string given_statistics(const Node& node) {
    std::string name = name_of(node.inputs[3] + "/" + node.inputs[4], "statistics");
    if (there_.insert(name).second) make("GivenStatistics", node, {node.inputs[3], node.inputs[4]}, {name});
    return name;
  }
  static Attributes attributes_of(const Node& norm, bool relu) {
    Attributes attributes;
    if (const auto epsilon = norm.attributes.find("epsilon"); epsilon != norm.attributes.end()) attributes.insert(*epsilon);
    if (relu) attributes["relu"] = std::int64_t{1};
    return attributes;
  }

  void rewrite(std::size_t at) {
    const Node node = graph_.nodes[at];
    const Fused f = found_[at];
    switch (kinds_[at]) {
      case Kind::other:
        made_.push_back(node);
        return;
      case Kind::conv:
      case Kind::data_grad:
      case Kind::weight_grad:
        rewrite_conv(at, node);
        break;
      case Kind::norm:
        rewrite_norm(node, node.outputs[0], false, {});
        break;
      case Kind::norm_grad:
        rewrite_norm_grad(node, f);
        break;
      case Kind::relu:
        rewrite_relu(node, f);
        break;
      case Kind::relu_grad:
        if (f.add) {
          const auto& terms = graph_.nodes[*f.add].inputs;
          make("BlockSum", node, {blocks(terms[0]), blocks(terms[1]), blocks(node.inputs[1])}, {blocks(node.outputs[0])});
        } else {
          make("BlockSum", node, {blocks(node.inputs[0]), "", blocks(node.inputs[1])}, {blocks(node.outputs[0])});
        }
        break;
      case Kind::add:
        make("BlockSum", node, {blocks(node.inputs[0]), blocks(node.inputs[1])}, {blocks(node.outputs[0])});
        break;
      case Kind::sums:
        make("ChannelSums", node, {blocks(node.inputs[0])}, node.outputs);
        break;
      case Kind::pool:
      case Kind::max_pool_grad:
      case Kind::mean_pool_grad:
        rewrite_pool(at, node);
        break;
    }
    if (in_blocks(node.outputs[0])) turn_back(node.outputs[0]);
  }

  void rewrite_conv(std::size_t at, const Node& node) {
    Attributes attributes = node.attributes;
    std::vector<std::string> inputs = node.inputs;
    if (kinds_[at] == Kind::conv) {
      inputs[0] = as_it_comes(inputs[0]);
      set_half(attributes);
      return make("BlockConv", node, std::move(inputs), {blocks(node.outputs[0])}, std::move(attributes));
    }
    inputs[0] = blocks(inputs[0]);
    if (kinds_[at] == Kind::weight_grad) {
      inputs[1] = as_it_comes(inputs[1]);
      return make("BlockConvWeightGrad", node, std::move(inputs), node.outputs, std::move(attributes));
    }
    // What is read for its shape tells which form is wanted.
    const std::string& dx = node.outputs[0];
    inputs[2] = in_blocks(dx) ? blocks(inputs[2]) : inputs[2];
    make("BlockConvDataGrad", node, std::move(inputs), {in_blocks(dx) ? blocks(dx) : dx}, std::move(attributes));
  }

  void rewrite_pool(std::size_t at, const Node& node) {
    Attributes attributes = node.attributes;
    const std::string y = blocks(node.outputs[0]);
    if (kinds_[at] == Kind::pool) {
      attributes["function"] = node.op;
      make("BlockPool", node, {blocks(node.inputs[0])}, {y}, std::move(attributes));
    } else if (kinds_[at] == Kind::max_pool_grad) {
      make("BlockMaxPoolGrad", node, {blocks(node.inputs[0]), blocks(node.inputs[1]), blocks(node.inputs[2])}, {y}, std::move(attributes));
    } else {
      make("BlockMeanPoolGrad", node, {blocks(node.inputs[0]), blocks(node.inputs[1])}, {y}, std::move(attributes));
    }
  }

  void rewrite_norm(const Node& norm, const std::string& y, bool relu, const std::string& addend) {
    std::vector<std::string> inputs = {blocks(norm.inputs[0]), is_fixed(norm) ? given_statistics(norm) : statistics(norm), norm.inputs[1],
                                       norm.inputs[2]};
    if (!addend.empty()) inputs.push_back(blocks(addend));
    make("BlockNorm", norm, std::move(inputs), {blocks(y)}, attributes_of(norm, relu));
  }
  void rewrite_relu(const Node& node, const Fused& f) {
    if (f.norm) {
      const Node norm = graph_.nodes[*f.norm];
      std::string addend;
      if (f.add) {
        const auto& terms = graph_.nodes[*f.add].inputs;
        addend = terms[0] == norm.outputs[0] ? terms[1] : terms[0];
      }
      return rewrite_norm(norm, node.outputs[0], true, addend);
    }
    const auto terms = f.add ? graph_.nodes[*f.add].inputs : node.inputs;
    std::vector<std::string> inputs;
    for (const auto& term : terms) inputs.push_back(blocks(term));
    make("BlockSum", node, std::move(inputs), {blocks(node.outputs[0])}, {{"relu", std::int64_t{1}}});
  }
  void rewrite_norm_grad(const Node& node, const Fused& f) {
    const std::string& dy = f.relu_grad ? graph_.nodes[*f.relu_grad].inputs[0] : node.inputs[0];
    std::vector<std::string> inputs = {blocks(dy), blocks(node.inputs[1]), statistics_of(node), node.inputs[2]};
    if (f.passed) inputs.push_back(graph_.nodes[*f.passed].inputs[2]);
    std::vector<std::string> outputs = node.outputs;
    if (!outputs[0].empty()) outputs[0] = blocks(outputs[0]);
    Attributes attributes = attributes_of(node, f.passed.has_value());
    if (is_fixed(node)) attributes["fixed"] = std::int64_t{1};
    make("BlockNormGrad", node, std::move(inputs), std::move(outputs), std::move(attributes));
  }
  std::string statistics_of(const Node& grad) {
    if (is_fixed(grad)) return given_statistics(grad);
    Node norm = grad;
    norm.inputs = {grad.inputs[1]};
    norm.outputs.resize(1);
    return statistics(norm);
  }

  Graph& graph_;
  TypedGraph typed_;
  bool half_;
  Uses uses_;
  std::map<std::string, std::size_t, std::less<>> makers_;
  std::vector<Kind> kinds_;             // by node; other: stays as it is
  std::map<std::size_t, Fused> found_;  // by node
  std::set<std::size_t> fused_;         // gone into others
  std::map<std::string, std::string, std::less<>> names_;
  std::set<std::string, std::less<>> there_;  // conversions and statistics that are made already
  std::vector<Node> made_;
};

}  // namespace

void use_blocks(Graph& graph, bool half) {
  const bool learns = std::ranges::any_of(graph.nodes, [](const Node& node) { return node.op == "ConvWeightGrad"; });
  if (!learns) return;
  auto typed = infer_types(graph, 7);
  if (typed) Blocker(graph, std::move(*typed), half).run();
}

}  // namespace falaj::kernels
