// What the classical models of ai.onnx.ml do with their scores at the end.
#pragma once
#include <cstdint>

#include "kernels/ops.hpp"

namespace falaj::kernels {

enum class PostTransform : std::uint8_t { none, softmax, logistic, softmax_zero, probit };
Result<PostTransform> post_transform(const Node& node);  // the attribute of that name
// classlabels_strings, where that is given, else the whole numbers of attribute `numbers`, which has not one name in all ops.
Result<Tensor> class_labels(const Node& node, std::string_view numbers = "classlabels_ints");
float logistic(float x);
void apply(PostTransform post, float* scores, std::int64_t n);

}  // namespace falaj::kernels
