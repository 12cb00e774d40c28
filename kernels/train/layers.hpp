// Layers as nodes of a graph, from standard ops of opset 17, and their parameters with initial values.
//
// Every parameter draws from its own stream, Random(seed).split(name): the same name and shape start the same, whatever else is in the
// model. Sizes in and out are the callers' to know: nothing here looks at shapes.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/graph.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels {

// He, Zhang, Ren, Sun: "Delving Deep into Rectifiers" (2015), uniform; embeddings: normal with deviation 0.3.
enum class Start : std::uint8_t { zeros, ones, weights, embedding };

class Layers {
 public:
  Layers(Graph& graph, std::string activation, std::uint64_t seed) : graph_(graph), activation_(std::move(activation)), random_(seed) {}

  // Ops of activations that need no spelling out, and Gelu, which opset 17 has not: it is written as 0.5 x (1 + erf(x / sqrt 2)).
  static bool knows_activation(std::string_view name);

  std::string parameter(const std::string& name, const Shape& shape, Start start, std::size_t fan_in);
  std::string constant(std::string_view name, Tensor value);  // the same one for each call with that name
  std::string activate(const std::string& x, std::string_view output = {});
  // Over the last dimension of a value of any rank: x W + b.
  std::string linear(const std::string& name, const std::string& x, std::size_t in, std::size_t out, Start start = Start::weights);
  // [N, in, h, w] to [N, out, h / stride, w / stride], rounded up; odd kernels, no bias.
  std::string convolution(const std::string& name, const std::string& x, std::size_t in, std::size_t out, std::int64_t kernel,
                          std::int64_t stride);
  std::string channel_bias(const std::string& name, const std::string& x, std::size_t channels);
  std::string channel_scale(const std::string& name, const std::string& x, std::size_t channels, Start start);
  std::string layer_norm(const std::string& name, const std::string& x, std::size_t width);
  // Vaswani et al., "Attention Is All You Need" (2017), §3.2.2, of [N, tokens, width] with itself; `heads` divides `width`.
  // causal_tokens: how many tokens there are, of which each sees itself and those before it; 0: each sees all.
  std::string self_attention(const std::string& name, const std::string& x, std::size_t width, std::size_t heads,
                             std::size_t causal_tokens = 0);

 private:
  Graph& graph_;
  const std::string activation_;
  Random random_;
};

}  // namespace falaj::kernels
