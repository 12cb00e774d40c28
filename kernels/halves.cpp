// Training in bfloat16: what a product with Relu gives, and the gradient that comes back through it, is read by products alone, by the
// Relu's gradient and by the bias's. Such values are handed on in bfloat16, in the forms that those products want (HalfMatMul and
// HalfWeightGrad, kernels/ops/halves.hpp). The products would have rounded them all the same: they see the same operands.

#include <algorithm>

#include "kernels/ops.hpp"
#include "kernels/optimise.hpp"

namespace falaj::kernels {
namespace {

class Halver {
 public:
  Halver(Graph& graph, TypedGraph typed) : graph_(graph), typed_(std::move(typed)), uses_(graph), gone_(graph.nodes.size(), false) {
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      for (const auto& name : graph.nodes[i].outputs) makers_[name] = i;
    }
  }

  void run() {
    const std::size_t nodes = graph_.nodes.size();
    for (std::size_t i = 0; i < nodes; ++i) {
      if (const auto product = product_at(i); product && product->relu) take(i);
    }
    for (std::size_t i = 0; i < nodes; ++i) weights_.push_back(weights_of(i));  // before the products that tell are written anew
    for (std::size_t i = 0; i < nodes; ++i) rewrite(i);
    erase_nodes(graph_, gone_);
  }

 private:
  struct Product {
    bool relu = false, turned = false, biased = false;
  };
  // Who reads a value, by what it is to them; none where there is a reader of another kind.
  struct Readers {
    bool products = false, grads = false;
    std::optional<std::size_t> slope, sums;  // the Relu's gradient, and the bias's
  };

  [[nodiscard]] bool is_f32(const std::string& name, std::size_t rank) const {
    const ValueType& type = typed_.types.at(name);
    return type.dtype == DType::f32 && type.shape.rank() == rank;
  }

  // A node that is a product of matrices as HalfMatMul has it.
  [[nodiscard]] std::optional<Product> product_at(std::size_t at) const {
    const Node& node = graph_.nodes[at];
    const bool gemm = node.op == "Gemm" && node.domain == kOnnx;
    if (!gemm && node.op != "MatMul") return {};
    if (!is_f32(node.inputs[0], 2) || !is_f32(node.inputs[1], 2)) return {};
    Product product;
    product.biased = node.inputs.size() > 2 && !node.inputs[2].empty();
    if (product.biased &&
        (!is_f32(node.inputs[2], 1) || typed_.types.at(node.inputs[2]).shape[0] != typed_.types.at(node.outputs[0]).shape[1]))
      return {};
    if (!gemm && node.domain != kFalaj) return product;
    const std::string activation = attr_string(node, "activation", "").value_or("?");
    const bool plain = attr_int(node, "transA", 0).value_or(1) == 0 && attr_float(node, "alpha", 1.0).value_or(0) == 1.0 &&
                       attr_float(node, "beta", 1.0).value_or(0) == 1.0 && (activation.empty() || activation == "Relu");
    if (!plain) return {};
    product.turned = attr_int(node, "transB", 0).value_or(0) != 0;
    product.relu = activation == "Relu";
    return product;
  }

  // The weights whose gradient a node is, where it is P^T Q of matrices: what such a product multiplied P or Q by.
  [[nodiscard]] std::optional<std::string> weights_of(std::size_t at) const {
    const Node& node = graph_.nodes[at];
    const bool grad = node.op == "MatMul" && node.domain == kFalaj && node.inputs.size() == 2 && node.inputs[0] != node.inputs[1] &&
                      attr_int(node, "transA", 0).value_or(0) != 0 && attr_int(node, "transB", 0).value_or(1) == 0 &&
                      attr_float(node, "alpha", 1.0).value_or(0) == 1.0 && !node.attributes.contains("activation");
    if (!grad || !is_f32(node.inputs[0], 2) || !is_f32(node.inputs[1], 2)) return {};
    for (const std::string& operand : node.inputs) {
      const auto readers = uses_.readers.find(operand);
      if (readers == uses_.readers.end()) continue;
      for (const std::size_t reader : readers->second) {
        const Node& other = graph_.nodes[reader];
        if (product_at(reader) && other.inputs[0] == operand &&
            typed_.types.at(other.inputs[1]).shape == typed_.types.at(node.outputs[0]).shape)
          return other.inputs[1];
      }
    }
    return {};
  }

  [[nodiscard]] std::optional<Readers> readers_of(const std::string& value) const {
    if (uses_.outputs.contains(value)) return {};
    const auto found = uses_.readers.find(value);
    if (found == uses_.readers.end()) return {};
    Readers all;
    for (const std::size_t at : found->second) {
      const Node& node = graph_.nodes[at];
      if (std::ranges::count(node.inputs, value) != 1) return {};
      if (node.op == "ReluGrad" && node.inputs[1] == value && !all.slope) {
        all.slope = at;
      } else if (node.op == "ReduceLike" && node.inputs[0] == value && !all.sums && is_f32(node.outputs[0], 1)) {
        all.sums = at;
      } else if (product_at(at) && node.inputs[0] == value) {
        all.products = true;
      } else if (weights_of(at)) {
        all.grads = true;
      } else {
        return {};
      }
    }
    return all;
  }

  // A product with Relu, whose result and whose result's gradient are to be handed on in halves.
  void take(std::size_t at) {
    const std::string value = graph_.nodes[at].outputs[0];
    const auto readers = readers_of(value);
    if (!readers || !readers->slope || readers->sums) return;
    const std::size_t slope = *readers->slope;
    const std::string before = graph_.nodes[slope].inputs[0];
    const std::string after = graph_.nodes[slope].outputs[0];
    const auto maker = makers_.find(before);
    if (maker == makers_.end() || uses_.only_reader(before) != slope) return;
    const auto back = product_at(maker->second);
    const auto back_readers = readers_of(after);
    if (!back || back->relu || back->biased || !back_readers || back_readers->slope) return;
    if (back_readers->sums && typed_.types.at(graph_.nodes[*back_readers->sums].outputs[0]).shape[0] != typed_.types.at(after).shape[1])
      return;
    forms_[at].rows = readers->products ? form(value, "rows") : "";
    forms_[at].pairs = form(value, "pairs");
    auto& forms = forms_[maker->second];
    forms = {back_readers->products ? form(after, "rows") : "", back_readers->grads ? form(after, "pairs") : "", "", form(value, "pairs")};
    if (back_readers->sums) {
      forms.sums = graph_.nodes[*back_readers->sums].outputs[0];
      gone_[*back_readers->sums] = true;
    }
    gone_[slope] = true;
    halved_.insert({value, after});
  }

  // The name of a form; the first that asks makes it.
  std::string form(const std::string& value, std::string_view kind) {
    auto& name = names_[value + "/" + std::string(kind)];
    if (name.empty()) name = graph_.fresh(value + "/" + std::string(kind));
    return name;
  }

  void rewrite(std::size_t at) {
    if (gone_[at]) return;
    Node& node = graph_.nodes[at];
    const auto reads_halves = [&] { return std::ranges::any_of(node.inputs, [&](const auto& name) { return halved_.contains(name); }); };
    if (const auto product = product_at(at)) {
      const auto made = forms_.find(at);
      if (made == forms_.end() && !reads_halves()) return;
      const Forms forms = made == forms_.end() ? Forms{} : made->second;
      Node half{"HalfMatMul", std::string(kFalaj), node.name, {node.inputs[0], node.inputs[1]}, {}, {}};
      if (halved_.contains(node.inputs[0])) half.inputs[0] = form(node.inputs[0], "rows");
      if (product->biased || !forms.mask.empty()) half.inputs.push_back(product->biased ? node.inputs[2] : "");
      if (!forms.mask.empty()) half.inputs.push_back(forms.mask);
      half.outputs = {made == forms_.end() ? node.outputs[0] : "", forms.rows, forms.pairs, forms.sums};
      while (half.outputs.back().empty()) half.outputs.pop_back();
      if (product->turned) half.attributes["transB"] = std::int64_t{1};
      if (product->relu) half.attributes["relu"] = std::int64_t{1};
      node = std::move(half);
    } else if (reads_halves()) {
      Node half{"HalfWeightGrad", std::string(kFalaj), node.name, {}, node.outputs, {}};
      for (const auto& name : node.inputs) half.inputs.push_back(halved_.contains(name) ? form(name, "pairs") : name);
      half.inputs.push_back(*weights_[at]);
      node = std::move(half);
    }
  }

  struct Forms {
    std::string rows, pairs, sums, mask;
  };

  Graph& graph_;
  TypedGraph typed_;
  Uses uses_;
  std::vector<bool> gone_;
  std::map<std::string, std::size_t, std::less<>> makers_;
  std::map<std::size_t, Forms> forms_;  // of what a node makes
  std::set<std::string, std::less<>> halved_;
  std::map<std::string, std::string, std::less<>> names_;
  std::vector<std::optional<std::string>> weights_;  // by node: see weights_of
};

}  // namespace

void share_halves(Graph& graph) {
  auto typed = infer_types(graph, 7);
  if (typed) Halver(graph, std::move(*typed)).run();
}

}  // namespace falaj::kernels
