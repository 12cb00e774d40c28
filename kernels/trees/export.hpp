// A forest as an ONNX graph of the form of families.hpp: raw columns in, TreeEnsembleRegressor (ai.onnx.ml 3) for the scores, the
// outputs of the task.
//
// TreeEnsemble compares numbers only. A split of categories becomes a number, 0 or 1, that a table says for each category: a column's
// LabelEncoder gives the row of its table, and a column of the table is there for each set that some split asks for.
#pragma once
#include "kernels/train/families.hpp"
#include "kernels/trees/tree.hpp"

namespace falaj::kernels::trees {

// `fitted`: for the columns and what the metadata say of them, in the order of the forest's bins.
Result<Graph> export_forest(const Forest& forest, const Preprocessing& fitted, const TargetSpec& target);

}  // namespace falaj::kernels::trees
