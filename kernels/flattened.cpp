// What use_channels_last and use_integers leave where a convolutional part ends: images are turned back to [N, C, H, W], flattened, and
// multiplied by known weights. Weights whose rows stand in the other order do the same without turning any image.
#include <algorithm>
#include <cstring>

#include "kernels/ops.hpp"
#include "kernels/optimise.hpp"

namespace falaj::kernels {
namespace {

using Ints = std::vector<std::int64_t>;

// The product that reads `flat` rows and nothing else of them, whose weights are known; by whether these are [N, K].
struct Product {
  std::size_t node;
  bool transposed;
};
std::optional<Product> product_of(const Graph& graph, const Uses& uses, const std::string& flat) {
  const auto reader = uses.only_reader(flat);
  if (!reader) return {};
  const Node& node = graph.nodes[*reader];
  if (node.op != "Gemm" && node.op != "MatMul" && node.op != "QMatMul") return {};
  const bool first = node.inputs[0] == flat && std::ranges::count(node.inputs, flat) == 1;
  if (!first || attr_int(node, "transA", 0).value_or(1) != 0) return {};
  const auto weights = graph.initializers.find(node.inputs[1]);
  if (weights == graph.initializers.end() || weights->second.shape().rank() != 2 || weights->second.borrowed()) return {};
  return Product{*reader, attr_int(node, "transB", 0).value_or(0) != 0};
}

// Rows (or columns, if `transposed`) of C times P in the order of P times C.
Tensor turned(const Tensor& weights, bool transposed, std::int64_t channels, std::int64_t places) {
  Tensor out = Tensor::uninitialised(weights.dtype(), weights.shape());
  const auto row = static_cast<std::size_t>(weights.shape()[1]);
  const std::size_t each = size_of(weights.dtype()) * (transposed ? 1 : row);
  const std::int64_t images = transposed ? weights.shape()[0] : 1;
  const auto* from = static_cast<const std::byte*>(weights.raw());
  auto* to = static_cast<std::byte*>(out.mutable_raw());
  for (std::int64_t i = 0; i < images; ++i, from += static_cast<std::size_t>(channels * places) * each) {
    for (std::int64_t p = 0; p < places; ++p) {
      for (std::int64_t c = 0; c < channels; ++c, to += each) std::memcpy(to, from + static_cast<std::size_t>(c * places + p) * each, each);
    }
  }
  return out;
}

}  // namespace

void turn_weights(Graph& graph) {
  if (has_open_sizes(graph)) return;
  const auto typed = infer_types(graph, 7);  // as fuse() does
  if (!typed) return;
  const Uses uses(graph);
  for (const Node& turn : graph.nodes) {
    if (turn.op != "Transpose" || turn.domain != kOnnx || attr_ints(turn, "perm", Ints{}).value_or(Ints{}) != Ints{0, 3, 1, 2}) continue;
    const auto flatten = uses.only_reader(turn.outputs[0]);
    if (!flatten) continue;
    const Node& flattens = graph.nodes[*flatten];
    const std::int64_t axis = attr_int(flattens, "axis", 1).value_or(0);
    if (flattens.op != "Reshape" && (flattens.op != "Flatten" || (axis != 1 && axis != -3))) continue;
    const Shape& image = typed->types.at(turn.inputs[0]).shape;
    const Shape& flat = typed->types.at(flattens.outputs[0]).shape;
    if (flat.rank() != 2 || flat[0] != image[0] || image[3] == 0) continue;
    const auto product = product_of(graph, uses, flattens.outputs[0]);
    if (!product) continue;
    Node& node = graph.nodes[product->node];
    const Tensor& weights = graph.initializers.at(node.inputs[1]);
    if (weights.shape()[product->transposed ? 1 : 0] != flat[1] || size_of(weights.dtype()) == 0) continue;
    Tensor other = turned(weights, product->transposed, image[3], flat[1] / image[3]);
    node.inputs[1] = graph.add_initializer(graph.fresh(node.inputs[1]), std::move(other));
    graph.nodes[*flatten].inputs[0] = turn.inputs[0];
  }
  remove_dead(graph);
}

}  // namespace falaj::kernels
