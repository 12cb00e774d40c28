// Which tensors of a graph must be cut when channels of a layer's output go: a walk from the layer to the layers that take them in.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/graph.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

// `axis` of an initialiser has `block` neighbouring elements for each channel.
struct ChannelSlice {
  std::string name;
  std::size_t axis = 0;
  std::int64_t block = 1;
};
struct ChannelGroup {
  std::size_t node = 0;  // the layer whose output channels these are
  std::string weights;
  std::size_t axis = 0;  // of the weights: output channels
  std::int64_t channels = 0;
  std::vector<ChannelSlice> slices;  // the weights first
};

// A use of a layer's weights: Gemm, MatMul by a matrix, Conv without groups.
struct LayerUse {
  std::size_t node = 0;
  std::string weights;
  std::size_t out_axis = 0;
  std::size_t in_axis = 0;
  bool image = false;  // channels are dimension 1; else the last one
};
std::vector<LayerUse> layers_of(const Graph& graph);

// What goes with the channels of `layer`, or why they cannot go.
Result<ChannelGroup> channel_group(const Graph& graph, const LayerUse& layer);

}  // namespace falaj::kernels
