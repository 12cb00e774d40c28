// Raw columns as a graph's inputs.
#pragma once
#include "kernels/graph.hpp"
#include "kernels/train/preprocess.hpp"

namespace falaj::kernels {

// The input for rows [first, first + count): the column of its name or, for the only input of a graph, all numeric columns in their
// order.
Result<Tensor> column_input(const ValueInfo& info, bool only, const Table& table, std::size_t first, std::size_t count);

}  // namespace falaj::kernels
