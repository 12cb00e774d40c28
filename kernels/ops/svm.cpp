// Support vector machines of ai.onnx.ml: SVMRegressor and SVMClassifier, as scikit-learn's exporter writes them.
//
// Without support vectors both are linear. A classifier with them has a machine for each pair of classes, and the class that wins most
// pairs wins; with prob_a and prob_b each pair's score becomes a probability (Platt), and those of all pairs one for each class: Wu, Lin
// and Weng, "Probability Estimates for Multi-class Classification by Pairwise Coupling", JMLR 2004, second approach, with LibSVM's bounds
// and end, so that results agree with what the model gave where it was trained.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/ops/common.hpp"
#include "kernels/ops/post_transform.hpp"

namespace falaj::kernels {
namespace {

enum class KernelKind : std::uint8_t { linear, poly, rbf, sigmoid };

struct Machine {
  KernelKind kind = KernelKind::linear;
  double gamma = 0, coef0 = 0, degree = 0;
  std::vector<float> coefficients, vectors, rho;  // vectors: [count][features]
  std::int64_t rows = 0, features = 0, count = 0;
  PostTransform post = PostTransform::none;

  template <class T>
  double kernel(const T* x, const float* v) const {
    double sum = 0;
    for (std::int64_t f = 0; f < features; ++f) {
      const double a = static_cast<double>(x[f]);
      const double b = static_cast<double>(v[f]);
      sum += kind == KernelKind::rbf ? (a - b) * (a - b) : a * b;
    }
    switch (kind) {
      case KernelKind::linear:
        return sum;
      case KernelKind::poly:
        return std::pow(gamma * sum + coef0, degree);
      case KernelKind::rbf:
        return std::exp(-gamma * sum);
      case KernelKind::sigmoid:
        return std::tanh(gamma * sum + coef0);
    }
    return sum;
  }
};

Result<KernelKind> kernel_kind(const Node& node) {
  FALAJ_ASSIGN(const auto name, attr_string(node, "kernel_type", "LINEAR"));
  if (name == "LINEAR") return KernelKind::linear;
  if (name == "POLY") return KernelKind::poly;
  if (name == "RBF") return KernelKind::rbf;
  if (name == "SIGMOID") return KernelKind::sigmoid;
  return invalid(format("kernel_type '{}' is none of LINEAR, POLY, RBF, SIGMOID", name));
}

// `count`: support vectors; 0: linear, with coefficients for each of `targets`.
Result<Machine> machine(const OpCall& call, std::int64_t count, std::int64_t targets, std::int64_t coefficients_each) {
  FALAJ_TRY(check_number(call, 0));
  const Shape& in = call.in(0).shape;
  if (in.rank() != 1 && in.rank() != 2) return invalid(format("the input {} must be [features] or [rows, features]", to_string(in)));
  Machine m;
  m.rows = in.rank() == 1 ? 1 : in[0];
  m.features = in.back();
  m.count = count;
  FALAJ_ASSIGN(m.post, post_transform(call.node));
  FALAJ_ASSIGN(m.coefficients, attr_floats(call.node, "coefficients"));
  FALAJ_ASSIGN(m.rho, attr_floats(call.node, "rho"));
  if (m.rho.empty()) return invalid("rho is empty: it needs a number for each machine");
  std::int64_t wanted = 0;
  if (count == 0) {
    if (__builtin_mul_overflow(targets, m.features, &wanted) || wanted != static_cast<std::int64_t>(m.coefficients.size()))
      return invalid(format("{} coefficients do not fit {} features and {} targets", m.coefficients.size(), m.features, targets));
    return m;
  }
  FALAJ_ASSIGN(m.kind, kernel_kind(call.node));
  FALAJ_ASSIGN(const auto params, attr_floats(call.node, "kernel_params", std::vector<float>{}));
  if (!params.empty() && params.size() != 3) return invalid(format("kernel_params has {} numbers: gamma, coef0, degree", params.size()));
  if (!params.empty()) {
    m.gamma = static_cast<double>(params[0]);
    m.coef0 = static_cast<double>(params[1]);
    m.degree = static_cast<double>(params[2]);
  }
  FALAJ_ASSIGN(m.vectors, attr_floats(call.node, "support_vectors"));
  if (__builtin_mul_overflow(count, m.features, &wanted) || wanted != static_cast<std::int64_t>(m.vectors.size()))
    return invalid(format("{} numbers are not {} support vectors of {} features", m.vectors.size(), count, m.features));
  if (__builtin_mul_overflow(count, coefficients_each, &wanted) || wanted != static_cast<std::int64_t>(m.coefficients.size()))
    return invalid(format("{} coefficients for {} support vectors; {} are needed", m.coefficients.size(), count, wanted));
  return m;
}

// --- SVMRegressor -----------------------------------------------------------------------------------------------------------

Result<Machine> regressor(const OpCall& call) {
  FALAJ_ASSIGN(const auto supports, attr_int(call.node, "n_supports", 0));
  if (supports < 0) return invalid(format("n_supports is {}", supports));
  return machine(call, supports, 1, 1);
}
Status infer_regressor(InferCall& call) {
  FALAJ_ASSIGN(const auto m, regressor(call));
  return set_output(call, 0, DType::f32, {m.rows, 1});
}
Result<KernelPtr> make_regressor(const KernelCall& c) {
  FALAJ_ASSIGN(auto m, regressor(c));
  FALAJ_ASSIGN(const auto one_class, attr_int(c.node, "one_class", 0));
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() {
    return make_kernel([m, one_class](const Io& io) {
      for (std::int64_t r = 0; r < m.rows; ++r) {
        const T* x = io.input<T>(0) + r * m.features;
        double sum = static_cast<double>(m.rho[0]);
        for (std::int64_t j = 0; j < m.count; ++j)
          sum += static_cast<double>(m.coefficients[static_cast<std::size_t>(j)]) * m.kernel(x, m.vectors.data() + j * m.features);
        if (m.count == 0) sum += m.kernel(x, m.coefficients.data());
        float& y = io.output<float>(0)[r];
        y = one_class != 0 ? (sum > 0 ? 1.0F : -1.0F) : static_cast<float>(sum);
        apply(m.post, &y, 1);
      }
    });
  });
}

// --- SVMClassifier ----------------------------------------------------------------------------------------------------------

struct Classifier {
  Machine machine;
  Tensor labels;
  std::int64_t classes = 0, pairs = 0;
  std::vector<std::int64_t> begins;  // of each class among the support vectors, and the end
  std::vector<float> prob_a, prob_b;
  bool all_positive = false;  // of the coefficients

  [[nodiscard]] bool linear() const { return machine.count == 0; }
  [[nodiscard]] bool has_probabilities() const { return !linear() && !prob_a.empty(); }
  [[nodiscard]] std::int64_t width() const {  // of the scores
    if (linear() || has_probabilities()) return classes;
    return classes == 2 ? 2 : pairs;
  }
  [[nodiscard]] std::size_t scratch_floats() const {
    return static_cast<std::size_t>(machine.count + 2 * classes + pairs + 2) + static_cast<std::size_t>(2 * classes * classes);
  }
};

Result<Classifier> classifier(const OpCall& call) {
  Classifier c;
  FALAJ_ASSIGN(c.labels, class_labels(call.node));
  c.classes = static_cast<std::int64_t>(c.labels.elements());
  if (c.classes < 1 || c.classes > 4096) return invalid(format("{} class labels", c.classes));
  c.pairs = c.classes * (c.classes - 1) / 2;
  FALAJ_ASSIGN(const auto each, attr_ints(call.node, "vectors_per_class", std::vector<std::int64_t>{}));
  c.begins.push_back(0);
  for (const auto n : each) {
    if (n < 0 || n > (std::int64_t{1} << 32)) return invalid(format("vectors_per_class has {}", n));
    c.begins.push_back(c.begins.back() + n);
  }
  FALAJ_ASSIGN(c.machine, machine(call, c.begins.back(), c.classes, c.classes - 1));
  c.all_positive = std::ranges::all_of(c.machine.coefficients, [](float w) { return w >= 0; });
  if (c.linear()) return c;
  if (static_cast<std::int64_t>(each.size()) != c.classes || c.classes < 2)
    return invalid(format("vectors_per_class has {} numbers for {} class labels", each.size(), c.classes));
  if (static_cast<std::int64_t>(c.machine.rho.size()) != c.pairs)
    return invalid(format("rho has {} numbers; {} pairs of classes need {}", c.machine.rho.size(), c.pairs, c.pairs));
  FALAJ_ASSIGN(c.prob_a, attr_floats(call.node, "prob_a", std::vector<float>{}));
  FALAJ_ASSIGN(c.prob_b, attr_floats(call.node, "prob_b", std::vector<float>{}));
  const auto n = static_cast<std::int64_t>(c.prob_a.size());
  if (c.prob_a.size() != c.prob_b.size() || (n != 0 && n != c.pairs))
    return invalid(format("prob_a has {} numbers and prob_b {}; both need {} or none", n, c.prob_b.size(), c.pairs));
  return c;
}

Status infer_classifier(InferCall& call) {
  FALAJ_ASSIGN(const auto c, classifier(call));
  FALAJ_TRY(set_output(call, 0, c.labels.dtype(), {c.machine.rows}));
  return set_output(call, 1, DType::f32, {c.machine.rows, c.width()});
}

// r[i][j]: how probable class i is if it is i or j. p: of each class; q is work of the same size as r.
void couple(const float* r, std::int64_t k, float* p, float* q) {
  const auto at = [k](std::int64_t i, std::int64_t j) { return i * k + j; };
  for (std::int64_t i = 0; i < k; ++i) {
    p[i] = 1.0F / static_cast<float>(k);
    q[at(i, i)] = 0;
    for (std::int64_t j = 0; j < k; ++j) {
      if (j == i) continue;
      q[at(i, i)] += r[at(j, i)] * r[at(j, i)];
      q[at(i, j)] = -r[at(j, i)] * r[at(i, j)];
    }
  }
  const auto times_p = [&](std::int64_t i) { return std::inner_product(p, p + k, q + at(i, 0), 0.0F); };
  const auto quadratic = [&] {
    float sum = 0;
    for (std::int64_t i = 0; i < k; ++i) sum += p[i] * times_p(i);
    return sum;
  };
  const float small = 0.005F / static_cast<float>(k);
  for (std::int64_t round = 0; round < std::max<std::int64_t>(100, k); ++round) {
    const float whole = quadratic();
    float worst = 0;
    for (std::int64_t i = 0; i < k; ++i) worst = std::max(worst, std::abs(times_p(i) - whole));
    if (!(worst >= small)) return;
    for (std::int64_t i = 0; i < k; ++i) {  // each class in turn by the others, then all to the sum one
      const float step = (quadratic() - times_p(i)) / q[at(i, i)];
      p[i] += step;
      for (std::int64_t j = 0; j < k; ++j) p[j] /= 1.0F + step;
    }
  }
}

// Scores of all pairs of one row, and how many each class won.
template <class T>
void compare_pairs(const Classifier& c, const T* x, float* kernels, float* scores, float* votes) {
  const Machine& m = c.machine;
  for (std::int64_t j = 0; j < m.count; ++j) kernels[j] = static_cast<float>(m.kernel(x, m.vectors.data() + j * m.features));
  std::fill_n(votes, c.classes, 0.0F);
  const auto part = [&](std::int64_t of, std::int64_t against) {
    const float* w = m.coefficients.data() + against * m.count;
    double sum = 0;
    for (auto v = c.begins[static_cast<std::size_t>(of)]; v < c.begins[static_cast<std::size_t>(of) + 1]; ++v)
      sum += static_cast<double>(w[v]) * static_cast<double>(kernels[v]);
    return sum;
  };
  std::size_t pair = 0;
  for (std::int64_t i = 0; i < c.classes; ++i) {
    for (std::int64_t j = i + 1; j < c.classes; ++j, ++pair) {
      scores[pair] = static_cast<float>(static_cast<double>(m.rho[pair]) + part(i, j - 1) + part(j, i));
      votes[scores[pair] > 0 ? i : j] += 1;
    }
  }
}

void estimate(const Classifier& c, const float* scores, float* probabilities, float* work) {
  const auto k = c.classes;
  std::size_t pair = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    for (std::int64_t j = i + 1; j < k; ++j, ++pair) {
      const float sure = 1.0F - logistic(scores[pair] * c.prob_a[pair] + c.prob_b[pair]);
      work[i * k + j] = std::clamp(sure, 1e-7F, 1.0F - 1e-7F);
      work[j * k + i] = 1.0F - work[i * k + j];
    }
  }
  couple(work, k, probabilities, work + k * k);
}

// Which class; two labels under one threshold are told apart as the specification's reference does.
std::size_t winner(const Classifier& c, const float* votes) {
  const auto best = static_cast<std::size_t>(std::max_element(votes, votes + c.classes) - votes);
  const bool threshold = c.machine.rho.size() == 1 && c.classes == 2 && !c.has_probabilities();
  return threshold && c.all_positive && votes[best] >= 0.5F ? 1 : best;
}

template <class T, class L>
KernelPtr classifier_kernel(Classifier c) {
  const auto scratch = c.scratch_floats() * sizeof(float);
  return make_kernel(
      [c = std::move(c)](const Io& io) {
        const Machine& m = c.machine;
        auto* kernels = reinterpret_cast<float*>(io.scratch);
        float* votes = kernels + m.count;
        float* scores = votes + c.classes;  // of pairs, or of classes
        float* work = scores + c.pairs + c.classes + 2;
        const auto labels = c.labels.data<L>();
        for (std::int64_t r = 0; r < m.rows; ++r) {
          const T* x = io.input<T>(0) + r * m.features;
          if (c.linear()) {
            for (std::int64_t i = 0; i < c.classes; ++i)
              scores[i] = static_cast<float>(static_cast<double>(m.rho[0]) + m.kernel(x, m.coefficients.data() + i * m.features));
          } else {
            compare_pairs(c, x, kernels, scores, votes);
          }
          if (io.out[0] != nullptr) io.output<L>(0)[r] = labels[winner(c, c.linear() ? scores : votes)];
          if (io.out[1] == nullptr) continue;
          float* y = io.output<float>(1) + r * c.width();
          if (c.has_probabilities()) {
            estimate(c, scores, y, work);
          } else if (!c.linear() && c.classes == 2) {
            y[0] = -scores[0];
            y[1] = scores[0];
          } else {
            std::copy_n(scores, c.width(), y);
          }
          apply(m.post, y, c.width());
        }
      },
      scratch);
}
Result<KernelPtr> make_classifier(const KernelCall& call) {
  FALAJ_ASSIGN(auto c, classifier(call));
  return dispatch_numeric(call.in(0).dtype, [&]<class T>() {
    return c.labels.dtype() == DType::i64 ? classifier_kernel<T, std::int64_t>(c) : classifier_kernel<T, std::string>(c);
  });
}

constexpr OpDef kOps[] = {
    {kOnnxMl, "SVMClassifier", 1, 1, 2, 2, infer_classifier, make_classifier},
    {kOnnxMl, "SVMRegressor", 1, 1, 1, 1, infer_regressor, make_regressor},
};

}  // namespace

std::span<const OpDef> svm_ops() { return kOps; }

}  // namespace falaj::kernels
