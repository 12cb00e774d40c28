// Cuts a graph for training: which initialisers are parameters, what is computed before any of them (once for a data set), and what
// has to be differentiated.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "kernels/graph.hpp"
#include "kernels/ops.hpp"

namespace falaj::kernels {

struct Cut {
  std::string logits;
  ValueType logits_type;                // at a batch of kSampleRows
  std::vector<std::string> parameters;  // sorted by name
  std::vector<ValueInfo> boundary;      // what crosses: first dimension -1, the rows
  Graph prefix;                         // raw inputs -> boundary values that are not raw inputs themselves
  Graph rest;                           // boundary -> logits; parameters are initialisers
};
constexpr std::int64_t kSampleRows = 2;

// A name, or the beginning of one before a *.
bool stands_for(std::string_view pattern, std::string_view name);

// logits empty: the metadata's, else what feeds the last Sigmoid or Softmax, else the first output. trainable empty: by use, see cut.cpp.
// frozen: names that are not trained, whatever they are used for; one may end in *, which stands for any rest.
Result<Cut> cut_for_training(const Graph& graph, std::string_view logits, const std::vector<std::string>& trainable,
                             const std::vector<std::string>& frozen = {});
// The value of which a model is trained and measured, by the same rule.
Result<std::string> logits_of(const Graph& graph, std::string_view wanted = {});

}  // namespace falaj::kernels
