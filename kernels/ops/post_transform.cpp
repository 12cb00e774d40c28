#include "kernels/ops/post_transform.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "runtime/base/format.hpp"

namespace falaj::kernels {

Result<PostTransform> post_transform(const Node& node) {
  FALAJ_ASSIGN(auto text, attr_string(node, "post_transform", "NONE"));
  if (text == "NONE") return PostTransform::none;
  if (text == "SOFTMAX") return PostTransform::softmax;
  if (text == "LOGISTIC") return PostTransform::logistic;
  if (text == "SOFTMAX_ZERO") return PostTransform::softmax_zero;
  if (text == "PROBIT") return PostTransform::probit;
  return invalid(format("attribute 'post_transform' is '{}'; it must be NONE, SOFTMAX, LOGISTIC, SOFTMAX_ZERO or PROBIT", text));
}

Result<Tensor> class_labels(const Node& node, std::string_view numbers) {
  if (node.attributes.contains("classlabels_strings")) {
    FALAJ_ASSIGN(auto list, attr_strings(node, "classlabels_strings"));
    return Tensor::of<std::string>({static_cast<std::int64_t>(list.size())}, std::span<const std::string>(list));
  }
  FALAJ_ASSIGN(auto list, attr_ints(node, numbers));
  return Tensor::of<std::int64_t>({static_cast<std::int64_t>(list.size())}, std::span<const std::int64_t>(list));
}

float logistic(float x) { return x >= 0 ? 1.0F / (1.0F + std::exp(-x)) : std::exp(x) / (1.0F + std::exp(x)); }

// The normal distribution's quantile function, by Newton's method on its cumulative function.
float probit(float p) {
  if (!(p > 0 && p < 1)) return p <= 0 ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity();
  double x = 0;
  for (int i = 0; i < 100; ++i) {
    double error = 0.5 * std::erfc(-x * std::numbers::sqrt2 / 2) - static_cast<double>(p);
    double density = std::exp(-x * x / 2) * std::numbers::inv_sqrtpi * std::numbers::sqrt2 / 2;
    double step = std::clamp(error / std::max(density, 1e-300), -1.0, 1.0);
    x -= step;
    if (std::abs(step) < 1e-12) break;
  }
  return static_cast<float>(x);
}

void apply(PostTransform post, float* scores, std::int64_t n) {
  if (post == PostTransform::probit) {
    for (std::int64_t i = 0; i < n; ++i) scores[i] = probit(scores[i]);
  } else if (post == PostTransform::logistic) {
    for (std::int64_t i = 0; i < n; ++i) scores[i] = logistic(scores[i]);
  } else if (post != PostTransform::none && n > 0) {
    bool keep_zero = post == PostTransform::softmax_zero;  // scores of exactly 0 stay 0
    float top = *std::max_element(scores, scores + n);
    float sum = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      if (keep_zero && std::abs(scores[i]) < 1e-7F) {
        scores[i] = 0;
      } else {
        scores[i] = std::exp(scores[i] - top);
        sum += scores[i];
      }
    }
    for (std::int64_t i = 0; i < n; ++i) scores[i] = sum == 0 ? 0 : scores[i] / sum;
  }
}

}  // namespace falaj::kernels
