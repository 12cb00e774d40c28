// Models from files: the ONNX file, and what it keeps in other files of its folder.
#pragma once
#include <string>

#include "kernels/graph.hpp"
#include "runtime/base/result.hpp"

namespace falaj::nodes {

// External data are mapped, not read; only regular files inside the model's folder are, whatever links or paths say.
Result<kernels::Graph> load_model(const std::string& path);

}  // namespace falaj::nodes
