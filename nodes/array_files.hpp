// Arrays of the commands `falaj model`: FILE.npy; FILE.npz or FILE.npz:ENTRY; FILE.csv or FILE.csv:COLUMN,COLUMN.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "kernels/graph.hpp"
#include "runtime/base/result.hpp"

namespace falaj::nodes {

struct ArraySource {
  enum class Kind : std::uint8_t { npy, npz, csv };
  Kind kind = Kind::npy;
  std::string file;
  std::vector<std::string> parts;  // the entry of an .npz; columns of a CSV file; empty: not said
};
// By the ending; what has neither of these is taken for .npy.
ArraySource array_source(std::string_view text);

// For one input of a model; without an entry, an .npz must have one of the input's name. Errors name file, entry, row and column.
Result<kernels::Tensor> read_array(std::string_view text, const kernels::ValueInfo& wanted);
// Without an entry, an .npz has `labels`, or one array alone.
Result<kernels::Tensor> read_label_array(std::string_view text);

}  // namespace falaj::nodes
