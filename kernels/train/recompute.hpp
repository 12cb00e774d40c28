// Memory of a training step: what the backward pass can cheaply compute once more need not be kept from the forward pass.
#pragma once
#include <cstddef>

#include "kernels/graph.hpp"

namespace falaj::kernels {

// Of a graph whose first `forward` nodes are the forward pass, and the others the backward one, in their order: a Relu of
// BatchNormalization by the batch's statistics, or of a sum of such and of other values, is computed again right before the backward pass
// first reads it, from what is kept for other reasons. The same kernels on the same values: no bit of any output changes.
void recompute(Graph& graph, std::size_t forward);

}  // namespace falaj::kernels
