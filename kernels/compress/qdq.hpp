// Writes quantised graphs: QuantizeLinear and DequantizeLinear around products and convolutions (the QDQ form of ONNX, which onnxruntime
// and others read too). Activations are u8 with one scale for each tensor; weights s8, symmetric, one scale for each output channel; biases
// of convolutions and Gemm i32 of the products' scale.
#pragma once
#include <map>
#include <set>
#include <string>
#include <vector>

#include "kernels/compress/calibrate.hpp"

namespace falaj::kernels {

// A product or convolution by known weights.
struct Layer {
  std::string output;  // its first output, which names it
  std::string name;    // for people
  std::string op;
  std::size_t weight_bytes = 0;  // in f32
};

// The graph that quantisation starts from: constants are folded, BatchNormalization by fixed statistics is in the convolutions' weights.
Result<Graph> prepare_for_quantisation(const Graph& graph);
// Those that can be quantised, in the order of computation.
Result<std::vector<Layer>> quantisable_layers(const Graph& prepared);

// What is quantised when the layers in `chosen` are: value to the value whose range it shares (itself, or what a pool or a reshape reads).
Result<std::map<std::string, std::string>> quantised_values(const Graph& prepared, const std::set<std::string>& chosen);
// The quantised graph. `ranges` has those of all values that quantised_values names on its right side.
Result<Graph> write_quantised(const Graph& prepared, const std::set<std::string>& chosen, const std::map<std::string, Range>& ranges);

}  // namespace falaj::kernels
