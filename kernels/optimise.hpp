// Passes over a graph before plans are made of it. Each keeps the meaning of every output.
#pragma once
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "kernels/graph.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

// Nodes that read only constants become initialisers; quantised weights stay as they are if `keep_quantised`.
Status fold_constants(Graph& graph, bool keep_quantised = false);
// Quantised products, convolutions and what is between them run on integers; `notes` says why others do not (see integers.cpp).
Status use_integers(Graph& graph, std::vector<std::string>& notes);
Status fold_statistics(Graph& graph);  // BatchNormalization by fixed statistics goes into the convolution before it
// Convolutions with known weights, and what is between them, on [N, H, W, C]. Pools of two by two go into those over one channel, and with
// `pooled` into all.
Status use_channels_last(Graph& graph, bool pooled);
void turn_weights(Graph& graph);             // after them: weights of what reads flattened images stand in the order of [H, W, C]
void read_through_identities(Graph& graph);  // exporters write equal constants once, and the others as Identity of that one
void lower_einsums(Graph& graph);            // Einsum of two operands, where a product or a matrix product says the same
void lower_recurrent(Graph& graph);          // RNN, GRU and LSTM: a product for all steps, then the steps (recurrent.cpp)
void find_gelus(Graph& graph);               // Gelu as exporters write it becomes one node
void find_swishes(Graph& graph);             // a product with its own sigmoid
void find_attention(Graph& graph);           // scaled products with softmax between, heads transposed: one node
Status fuse(Graph& graph);                   // product + bias + activation becomes one node
void share_halves(Graph& graph);             // training in bfloat16: values between products with Relu are rounded once (halves.cpp)
void use_blocks(Graph& graph, bool half);    // training: values between convolutions in blocks of channels, rounded if `half` (blocks.cpp)
void remove_dead(Graph& graph);              // nodes and initialisers that no output depends on

// --- for those who write passes ---------------------------------------------------------------------------------------------

void erase_nodes(Graph& graph, const std::vector<bool>& gone);

// Whether inputs leave more open than their first size: then no shape but those of constants is known before the run.
bool has_open_sizes(const Graph& graph);

// The node that makes `to`, an image's channels-last form, of `from`; and the one that turns it back. `first` is the image's shape, [N, C,
// H, W]: where no byte moves, and sizes are known, a Reshape, else a Transpose.
Node turn_to_last(Graph& graph, const Shape& first, const std::string& from, const std::string& to);
Node turn_to_first(Graph& graph, const Shape& first, const std::string& from, const std::string& to);

// Who reads each value, by node index; graph outputs count as a reader without a node.
struct Uses {
  std::map<std::string, std::vector<std::size_t>, std::less<>> readers;
  std::set<std::string, std::less<>> outputs;
  explicit Uses(const Graph& graph);
  // The one node that reads the value, if there is just one and nobody else wants it.
  [[nodiscard]] std::optional<std::size_t> only_reader(const std::string& name) const;
};

// Steps of use_integers. The first writes ops on quantised operands (QLinearConv, QLinearMatMul, those of com.microsoft, and what moves
// or compares their results) as DequantizeLinear, a float op, QuantizeLinear; the second turns values of s8 into u8, zero points with them.
Status separate_quantisation(Graph& graph);
void use_unsigned(Graph& graph, const struct TypedGraph& typed);

// Makes `fused` carry the activation that `next` is; false, and nothing changed, if it is none that can be carried.
bool carry_activation(const Graph& graph, Node& fused, const Node& next);

}  // namespace falaj::kernels
