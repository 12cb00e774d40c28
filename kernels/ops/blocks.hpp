// Training of convolutional networks in blocks of channels: what lies between two convolutions stays as they want it, and a channel is a
// lane of whatever is done to it (ai.falaj's Block... ops). Made by use_blocks (kernels/blocks.cpp).
//
// Blocks of a value [N, C, H, W], of which C is a multiple of 16: [N, C / 16, H, W, 16], in f32 or in bfloat16. Whatever the type, it is
// computed in f32, statistics and sums of channels in f64; results are rounded once.
//
//   ToBlocks(x f32[N,C,H,W]) -> its blocks; attribute half: in bfloat16.      FromBlocks(x) -> f32[N,C,H,W]
//   BlockConv(x, w f32[M,C,h,w], bias f32[M]?) -> blocks; x may be plain f32; attributes of Conv, and half: what it gives is bfloat16
//   BlockConvDataGrad(dy, w, like) -> dx, and BlockConvWeightGrad(dy, x, like) -> dw f32: of `like` only the shape is read; where the input
//     of the convolution is plain f32, so are x and dx
//   BlockStatistics(x, running mean f32[C]?, running variance f32[C]?) -> f64[2,C] mean and variance of each channel, and the running ones
//     moved towards them (attribute momentum)
//   GivenStatistics(mean f32[C], variance f32[C]) -> f64[2,C]
//   BlockNorm(x, statistics, scale f32[C], shift f32[C], addend?) -> y; attributes epsilon, relu
//   BlockNormGrad(dy, x, statistics, scale, shift?) -> dx, dscale f32[C]?, dshift f32[C]?; attribute relu: y was Relu of it, for which
//     shift is needed; attribute fixed: the statistics are given ones, which x does not move
//
//   BlockSum(a, b?, mask?) -> a + b, where the mask is positive; attribute relu
//
//   ChannelSums(x) -> f32[C]
//
//   BlockPool(x) -> y, BlockMaxPoolGrad(dy, x, y) -> dx, BlockMeanPoolGrad(dy, x) -> dx, of x only the shape; attribute function: which
//     pool of ONNX, with its attributes
#pragma once
#include <cstdint>

#include "kernels/ops/conv.hpp"

namespace falaj::kernels {

constexpr std::int64_t kBlockChannels = 16;

Shape blocks_of(const Shape& plain);  // [N, C, H, W] -> [N, C / 16, H, W, 16]
Shape plain_of(const Shape& shape);   // and back; four dimensions stay as they are
inline bool is_blocks(const Shape& shape) { return shape.rank() == 5; }

// Of BlockConv and its gradients.
Result<ConvSpec> block_conv_spec(const OpCall& call);

// Of BlockPool and its gradients.
Result<Window> block_window(const OpCall& call);

// How the values of the other ops lie: planes of sixteen channels each.
struct Blocks {
  std::int64_t batch = 0, blocks = 0, pixels = 0;
  bool half = false;
  [[nodiscard]] std::int64_t channels() const { return blocks * kBlockChannels; }
  [[nodiscard]] std::int64_t elements() const { return batch * channels() * pixels; }
  [[nodiscard]] double count() const { return static_cast<double>(batch * pixels); }  // of a channel
};
Result<Blocks> blocks_in(const OpCall& call, std::size_t input);

}  // namespace falaj::kernels
