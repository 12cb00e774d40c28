#include "kernels/train/layers.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>

#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

constexpr std::array<std::string_view, 7> kActivations = {"Relu", "Tanh", "Sigmoid", "Elu", "LeakyRelu", "Softplus", "Gelu"};

std::int64_t dim(std::size_t size) { return static_cast<std::int64_t>(size); }

}  // namespace

bool Layers::knows_activation(std::string_view name) { return std::ranges::find(kActivations, name) != kActivations.end(); }

std::string Layers::parameter(const std::string& name, const Shape& shape, Start start, std::size_t fan_in) {
  Tensor value(DType::f32, shape);
  Random random = random_.split(name);
  const bool rectified = activation_ == "Relu" || activation_ == "LeakyRelu" || activation_ == "Elu" || activation_ == "Gelu";
  const double bound = std::sqrt(3.0 * (rectified ? 2.0 : 1.0) / static_cast<double>(std::max<std::size_t>(fan_in, 1)));
  for (float& x : value.mutable_data<float>()) {
    switch (start) {
      case Start::zeros:
        break;
      case Start::ones:
        x = 1;
        break;
      case Start::weights:
        x = static_cast<float>((2.0 * random.uniform() - 1.0) * bound);
        break;
      case Start::embedding:
        x = static_cast<float>(0.3 * random.normal());
    }
  }
  return graph_.add_initializer(name, std::move(value));
}

std::string Layers::constant(std::string_view name, Tensor value) {
  if (graph_.initializers.find(name) != graph_.initializers.end()) return std::string(name);
  return graph_.add_initializer(name, std::move(value));
}

std::string Layers::activate(const std::string& x, std::string_view output) {
  if (activation_ != "Gelu") return graph_.add(activation_, {x}, {}, output);
  const auto number = [&](std::string_view name, double value) {
    Tensor scalar(DType::f32, {});
    scalar.mutable_data<float>()[0] = static_cast<float>(value);
    return constant(name, std::move(scalar));
  };
  const std::string scaled = graph_.add("Div", {x, number("falaj/sqrt2", std::numbers::sqrt2)});
  const std::string erf = graph_.add("Erf", {scaled});
  const std::string plus = graph_.add("Add", {erf, number("falaj/one", 1.0)});
  const std::string both = graph_.add("Mul", {x, plus});
  return graph_.add("Mul", {both, number("falaj/half_of", 0.5)}, {}, output);
}

std::string Layers::linear(const std::string& name, const std::string& x, std::size_t in, std::size_t out, Start start) {
  const std::string weight = parameter(name + "/weight", {dim(in), dim(out)}, start, in);
  const std::string bias = parameter(name + "/bias", {dim(out)}, Start::zeros, in);
  const std::string product = graph_.add("MatMul", {x, weight});
  return graph_.add("Add", {product, bias});
}

std::string Layers::convolution(const std::string& name, const std::string& x, std::size_t in, std::size_t out, std::int64_t kernel,
                                std::int64_t stride) {
  const auto window = static_cast<std::size_t>(kernel * kernel);
  const std::string weight = parameter(name + "/weight", {dim(out), dim(in), kernel, kernel}, Start::weights, in * window);
  const std::int64_t pad = kernel / 2;
  return graph_.add("Conv", {x, weight},
                    Attributes{{"kernel_shape", std::vector<std::int64_t>{kernel, kernel}},
                               {"strides", std::vector<std::int64_t>{stride, stride}},
                               {"pads", std::vector<std::int64_t>{pad, pad, pad, pad}}});
}

std::string Layers::channel_bias(const std::string& name, const std::string& x, std::size_t channels) {
  return graph_.add("Add", {x, parameter(name + "/bias", {dim(channels), 1, 1}, Start::zeros, channels)});
}

std::string Layers::channel_scale(const std::string& name, const std::string& x, std::size_t channels, Start start) {
  return graph_.add("Mul", {x, parameter(name + "/scale", {dim(channels), 1, 1}, start, channels)});
}

std::string Layers::layer_norm(const std::string& name, const std::string& x, std::size_t width) {
  const std::string scales = parameter(name + "/scale", {dim(width)}, Start::ones, width);
  const std::string shifts = parameter(name + "/shift", {dim(width)}, Start::zeros, width);
  return graph_.add("LayerNormalization", {x, scales, shifts}, Attributes{{"axis", std::int64_t{-1}}});
}

std::string Layers::self_attention(const std::string& name, const std::string& x, std::size_t width, std::size_t heads,
                                   std::size_t causal_tokens) {
  const std::size_t each = width / heads;
  const std::string apart = constant(format("falaj/heads{}x{}", heads, each), Tensor::vector<std::int64_t>({0, 0, dim(heads), dim(each)}));
  const std::string together = constant(format("falaj/width{}", width), Tensor::vector<std::int64_t>({0, 0, dim(width)}));
  const auto split = [&](const std::string& part, std::vector<std::int64_t> order) {
    const std::string projected = linear(name + "/" + part, x, width, width);
    const std::string shaped = graph_.add("Reshape", {projected, apart});
    return graph_.add("Transpose", {shaped}, Attributes{{"perm", std::move(order)}});
  };
  const std::string query = split("query", {0, 2, 1, 3});
  const std::string key = split("key", {0, 2, 3, 1});
  const std::string value = split("value", {0, 2, 1, 3});
  Tensor scale(DType::f32, {});
  scale.mutable_data<float>()[0] = static_cast<float>(1.0 / std::sqrt(static_cast<double>(each)));
  const std::string product = graph_.add("MatMul", {query, key});
  std::string scores = graph_.add("Mul", {product, constant(format("falaj/scale{}", each), std::move(scale))});
  if (causal_tokens > 0) {
    Tensor mask(DType::f32, {dim(causal_tokens), dim(causal_tokens)});
    for (std::size_t row = 0; row < causal_tokens; ++row) {
      for (std::size_t column = row + 1; column < causal_tokens; ++column)
        mask.mutable_data<float>()[row * causal_tokens + column] = -std::numeric_limits<float>::infinity();
    }
    scores = graph_.add("Add", {scores, constant(format("falaj/causal{}", causal_tokens), std::move(mask))});
  }
  const std::string shares = graph_.add("Softmax", {scores}, Attributes{{"axis", std::int64_t{-1}}});
  const std::string mixed = graph_.add("MatMul", {shares, value});
  const std::string back = graph_.add("Transpose", {mixed}, Attributes{{"perm", std::vector<std::int64_t>{0, 2, 1, 3}}});
  return linear(name + "/out", graph_.add("Reshape", {back, together}), width, width);
}

}  // namespace falaj::kernels
