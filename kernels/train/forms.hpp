// Models come as they are exported for inference, or from a training mode: what has to be seen differently before they are trained, and
// while they are. The model that is exported in the end is never the one changed here.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "kernels/graph.hpp"
#include "kernels/ops.hpp"

namespace falaj::kernels {

// Exporters fold the transposition of a shared weight into a copy of it: what is looked up and what multiplies were one matrix.
struct Tie {
  std::string copy, source;  // copy = transposed source
};
struct DropoutPlace {
  std::string value;
  double share = 0.5;
};
struct TrainableForm {
  // Dropout passes, BatchNormalization by its running statistics, tied copies made from their source, transposed weights read as they lie.
  Graph graph;
  std::vector<Tie> ties;
  std::vector<DropoutPlace> dropouts;
};
Result<TrainableForm> trainable_form(const Graph& graph);

// Those that the metadata of a family's model name.
Result<std::vector<DropoutPlace>> dropouts_of_family(const Graph& graph);

// Turns the graph's BatchNormalizations to the statistics of the batch. The names of running statistics, and of the values that
// they become: pairwise.
struct Running {
  std::string name, next;
};
std::vector<Running> use_batch_statistics(Graph& graph);

Tensor transposed(const Tensor& matrix);  // f32

// The first value, in the order of computation, that has a NaN or an infinity: an input with the number of its row, an initialiser, or
// what a node made. "" when there is none.
Result<std::string> first_not_finite(const Graph& graph, std::span<const Tensor> inputs, std::span<const std::uint32_t> rows);

}  // namespace falaj::kernels
