// Pruning: weights that hardly matter become zeros, or whole channels are taken out of the graph.
//
// Magnitude (Han, Pool, Tran, Dally: "Learning both Weights and Connections for Efficient Neural Networks", 2015): the smallest absolute
// values become zeros and stay zeros while the rest is trained on. The graph keeps its shape.
//
// Channels (Li, Kadav, Durdanovic, Samet, Graf: "Pruning Filters for Efficient ConvNets", 2017): the output channels of a Conv, or the
// neurons of a Gemm or MatMul, with the smallest sum of absolute weights are removed, with their biases and statistics and what the next
// layers read of them. Only where all that reads the layer treats channels one by one until the next layer takes them in; a layer whose
// output is added to another's, reshaped in an unknown way, normalised across channels or is a result of the model is left whole, with the
// reason. The result is a new model: it has no file that it came from.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/graph.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

// The weights of layers: matrices and filters that Gemm, MatMul and Conv multiply by, in the order of the graph's nodes.
struct LayerWeights {
  std::string name;  // of the initialiser
  Shape shape;
  std::size_t elements = 0;
  std::size_t zeros = 0;
  [[nodiscard]] double sparsity() const { return elements == 0 ? 0 : static_cast<double>(zeros) / static_cast<double>(elements); }
};
std::vector<LayerWeights> layer_weights(const Graph& graph);

enum class PruneScope : std::uint8_t { layer, global };  // the share is that of each layer, or of all of them together

struct PruneSpec {
  double amount = 0.5;  // share of weights, or of each layer's channels
  PruneScope scope = PruneScope::layer;
  std::vector<std::string> keep;  // initialisers that are left alone; a name may end in *
};
Status check(const PruneSpec& spec);

// Which elements of an initialiser stay: 1, the others are 0.
struct WeightMask {
  std::string name;
  std::vector<std::uint8_t> kept;
};
// Of equal values the later ones go first. Elements that are zero already count.
Result<std::vector<WeightMask>> magnitude_masks(const Graph& graph, const PruneSpec& spec);
Status apply_masks(Graph& graph, const std::vector<WeightMask>& masks);

struct PrunedLayer {
  std::string name;  // of the layer's weights
  std::int64_t channels = 0;
  std::int64_t kept = 0;
};
struct KeptLayer {
  std::string name;
  std::string reason;
};
struct ChannelReport {
  std::vector<PrunedLayer> pruned;
  std::vector<KeptLayer> whole;
};
// At least one channel of a layer stays. `invalid` when there is no layer at all to take channels of.
Result<ChannelReport> prune_channels(Graph& graph, const PruneSpec& spec);

}  // namespace falaj::kernels
