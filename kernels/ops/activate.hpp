// The activations that products and convolutions can carry, on one number: their plain meaning.
#pragma once
#include <algorithm>
#include <cmath>
#include <numbers>
#include <type_traits>

#include "kernels/ops/matmul.hpp"

namespace falaj::kernels {

template <class T>
T activate(T x, Activation activation, double alpha) {
  if constexpr (std::is_floating_point_v<T>) {
    switch (activation) {
      case Activation::none:
        return x;
      case Activation::relu:
        return x < T{0} ? T{0} : x;
      case Activation::leaky_relu:
        return x < T{0} ? static_cast<T>(alpha) * x : x;
      case Activation::sigmoid:
        return x >= T{0} ? T{1} / (T{1} + std::exp(-x)) : std::exp(x) / (T{1} + std::exp(x));
      case Activation::tanh:
        return std::tanh(x);
      case Activation::gelu:
        return static_cast<T>(0.5) * x * (T{1} + std::erf(x * static_cast<T>(std::numbers::sqrt2 / 2)));
      case Activation::clip:
        return x < T{0} ? T{0} : x > static_cast<T>(alpha) ? static_cast<T>(alpha) : x;
      case Activation::hard_swish:
        return x * std::max(T{0}, std::min(T{1}, x / T{6} + static_cast<T>(0.5)));
      case Activation::swish:
        return x * activate(x, Activation::sigmoid, alpha);
    }
  }
  return x;
}

}  // namespace falaj::kernels
