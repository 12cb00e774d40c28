// Models from files: the ONNX file, and what it keeps in other files of its folder; and arrays for a model's inputs.
#pragma once
#include <string>
#include <vector>

#include "kernels/graph.hpp"
#include "kernels/onnx/onnx.hpp"
#include "kernels/ops.hpp"
#include "nodes/cli.hpp"
#include "runtime/base/result.hpp"

namespace falaj::nodes {

// External data are mapped, not read; only regular files inside the model's folder are, whatever links or paths say. `others`: the files
// that they came from, relative to the folder.
Result<kernels::Graph> load_model(const std::string& path, std::vector<std::string>* others = nullptr);
// A whole file, mapped copy-on-write: what is in memory may be changed, the file never is.
Result<kernels::ModelBytes> map_model(const std::string& path);

// Whole, or not at all. `beside`: initialisers in PATH.data, as always where they are too large for one file (2 GiB).
Status write_model(const std::string& path, const kernels::Graph& graph, bool beside);
void add_external_data_option(CLI::App& command, bool& beside);
// What write_model would write, together (but for the name of the file beside): bytes, and what they deflate to.
struct ModelSize {
  std::uint64_t bytes = 0, packed = 0;
};
Result<ModelSize> model_size(const kernels::Graph& graph, bool beside);

std::string type_text(const kernels::ValueInfo& info);  // float32[N, 2]
// Values for the graph's inputs, in its order, from NAME=FILE each (array_files.hpp); sequences take several of one name.
Result<std::vector<kernels::Value>> read_inputs(const kernels::Graph& graph, const std::vector<std::string>& inputs);
// The same where each input is rows in its first dimension, as many for all. What else the graph's inputs leave open takes the arrays'
// sizes.
Result<std::vector<kernels::Tensor>> read_rows(kernels::Graph& graph, const std::vector<std::string>& inputs);

}  // namespace falaj::nodes
