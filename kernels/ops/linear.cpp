// Linear models of ai.onnx.ml: LinearClassifier and LinearRegressor, as scikit-learn's exporter writes them.
#include <algorithm>
#include <cmath>

#include "kernels/ops/common.hpp"
#include "kernels/ops/post_transform.hpp"

namespace falaj::kernels {
namespace {

struct LinearModel {
  std::vector<float> weights;  // [targets][features]
  std::vector<float> bias;     // [targets]
  std::int64_t rows = 0, features = 0, targets = 0;
  PostTransform post = PostTransform::none;

  template <class T>
  void scores(const T* x, float* out) const {
    for (std::int64_t t = 0; t < targets; ++t) {
      float sum = bias[static_cast<std::size_t>(t)];
      const float* w = weights.data() + t * features;
      for (std::int64_t f = 0; f < features; ++f) sum += static_cast<float>(x[f]) * w[f];
      out[t] = sum;
    }
  }
};

Result<LinearModel> linear_model(const OpCall& call, std::optional<std::int64_t> targets) {
  FALAJ_TRY(check_number(call, 0));
  const Shape& in = call.in(0).shape;
  if (in.rank() != 1 && in.rank() != 2) return invalid(format("the input {} must be [features] or [rows, features]", to_string(in)));
  LinearModel m;
  m.rows = in.rank() == 1 ? 1 : in[0];
  m.features = in.back();
  FALAJ_ASSIGN(m.weights, attr_floats(call.node, "coefficients"));
  FALAJ_ASSIGN(m.bias, attr_floats(call.node, "intercepts", std::vector<float>{}));
  FALAJ_ASSIGN(m.post, post_transform(call.node));
  auto n = static_cast<std::int64_t>(m.weights.size());
  m.targets = targets ? *targets : (m.features > 0 ? n / m.features : 0);
  std::int64_t wanted = 0;
  if (m.targets < 1 || __builtin_mul_overflow(m.targets, m.features, &wanted) || wanted != n) {
    return invalid(format("{} coefficients do not fit {} features", n, m.features));
  }
  if (m.bias.empty()) m.bias.assign(static_cast<std::size_t>(m.targets), 0.0F);
  if (static_cast<std::int64_t>(m.bias.size()) != m.targets)
    return invalid(format("{} intercepts for {} targets", m.bias.size(), m.targets));
  return m;
}

Status infer_regressor(InferCall& call) {
  FALAJ_ASSIGN(auto targets, attr_int(call.node, "targets", 1));
  FALAJ_ASSIGN(auto m, linear_model(call, targets));
  return set_output(call, 0, DType::f32, {m.rows, m.targets});
}
Result<KernelPtr> make_regressor(const KernelCall& c) {
  FALAJ_ASSIGN(auto targets, attr_int(c.node, "targets", 1));
  FALAJ_ASSIGN(auto m, linear_model(c, targets));
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() {
    return make_kernel([m](const Io& io) {
      for (std::int64_t r = 0; r < m.rows; ++r) {
        float* y = io.output<float>(0) + r * m.targets;
        m.scores(io.input<T>(0) + r * m.features, y);
        apply(m.post, y, m.targets);
      }
    });
  });
}

// One row of coefficients and two labels is a binary model: its score is that of the second label.
bool is_binary(const LinearModel& m, const Tensor& classes) { return m.targets == 1 && classes.elements() == 2; }

Result<std::pair<LinearModel, Tensor>> classifier(const OpCall& call) {
  FALAJ_ASSIGN(auto m, linear_model(call, {}));
  FALAJ_ASSIGN(Tensor classes, class_labels(call.node));
  if (!is_binary(m, classes) && static_cast<std::int64_t>(classes.elements()) != m.targets) {
    return invalid(format("{} class labels for {} rows of coefficients", classes.elements(), m.targets));
  }
  return std::pair{std::move(m), std::move(classes)};
}
Status infer_classifier(InferCall& call) {
  FALAJ_ASSIGN(auto model, classifier(call));
  FALAJ_TRY(set_output(call, 0, model.second.dtype(), {model.first.rows}));
  return set_output(call, 1, DType::f32, {model.first.rows, static_cast<std::int64_t>(model.second.elements())});
}

template <class T, class L>
KernelPtr classifier_kernel(const LinearModel& m, const Tensor& classes) {
  auto labels = classes.data<L>();
  return make_kernel(
      [m, list = std::vector<L>(labels.begin(), labels.end()), binary = is_binary(m, classes)](const Io& io) {
        auto width = static_cast<std::int64_t>(list.size());
        auto* kept = reinterpret_cast<float*>(io.scratch);
        for (std::int64_t r = 0; r < m.rows; ++r) {
          m.scores(io.input<T>(0) + r * m.features, kept);
          std::size_t best = 0;
          if (binary) {
            best = kept[0] > 0 ? 1 : 0;
            float positive = kept[0];
            bool odds = m.post == PostTransform::logistic;
            kept[1] = odds ? logistic(positive) : positive;
            kept[0] = odds ? 1.0F - kept[1] : -positive;
            if (!odds) apply(m.post, kept, 2);
          } else {
            best = static_cast<std::size_t>(std::max_element(kept, kept + width) - kept);
            apply(m.post, kept, width);
          }
          if (io.out[0] != nullptr) io.output<L>(0)[r] = list[best];
          if (io.out[1] != nullptr) std::copy_n(kept, width, io.output<float>(1) + r * width);
        }
      },
      (classes.elements() + 2) * sizeof(float));
}
Result<KernelPtr> make_classifier(const KernelCall& c) {
  FALAJ_ASSIGN(auto model, classifier(c));
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() {
    return model.second.dtype() == DType::i64 ? classifier_kernel<T, std::int64_t>(model.first, model.second)
                                              : classifier_kernel<T, std::string>(model.first, model.second);
  });
}

constexpr OpDef kOps[] = {
    {kOnnxMl, "LinearClassifier", 1, 1, 2, 2, infer_classifier, make_classifier},
    {kOnnxMl, "LinearRegressor", 1, 1, 1, 1, infer_regressor, make_regressor},
};

}  // namespace

std::span<const OpDef> linear_ops() { return kOps; }

}  // namespace falaj::kernels
