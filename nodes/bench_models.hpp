// A model as tables of customers have them: 20 columns, 13 numbers and 7 categories, of made-up rows.
#pragma once
#include <string>
#include <vector>

#include "kernels/train/families.hpp"

namespace falaj::nodes {

struct BenchModel {
  kernels::Table table;
  std::vector<float> labels;
  kernels::TargetSpec target;
  kernels::Graph graph;  // wide and deep, untrained
};
Result<BenchModel> make_bench_model(std::size_t rows);
// The i-th row as the body of an Open Inference Protocol request.
std::string request_body(const kernels::Table& table, std::size_t row);

}  // namespace falaj::nodes
