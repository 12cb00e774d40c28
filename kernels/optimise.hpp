// Passes over a graph before plans are made of it. Each keeps the meaning of every output.
#pragma once
#include <map>
#include <optional>
#include <set>

#include "kernels/graph.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

Status fold_constants(Graph& graph);     // nodes that read only constants become initialisers
Status use_channels_last(Graph& graph);  // convolutions with known weights, and what is between them, on [N, H, W, C]
void find_gelus(Graph& graph);           // Gelu as exporters write it becomes one node
Status fuse(Graph& graph);               // product + bias + activation becomes one node
void remove_dead(Graph& graph);          // nodes and initialisers that no output depends on

// --- for those who write passes ---------------------------------------------------------------------------------------------

void erase_nodes(Graph& graph, const std::vector<bool>& gone);

// Who reads each value, by node index; graph outputs count as a reader without a node.
struct Uses {
  std::map<std::string, std::vector<std::size_t>, std::less<>> readers;
  std::set<std::string, std::less<>> outputs;
  explicit Uses(const Graph& graph);
  // The one node that reads the value, if there is just one and nobody else wants it.
  [[nodiscard]] std::optional<std::size_t> only_reader(const std::string& name) const;
};

// Makes `fused` carry the activation that `next` is; false, and nothing changed, if it is none that can be carried.
bool carry_activation(Node& fused, const Node& next);

}  // namespace falaj::kernels
