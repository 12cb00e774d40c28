// Normalisations over parts of a tensor: InstanceNormalization GroupNormalization MeanVarianceNormalization LpNormalization LRN
// RMSNormalization.
#include <algorithm>
#include <cmath>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

// x [N, C, ...]; mean and deviation over each of `groups` of a sample's channels; scale and bias for each channel or each group.
struct Groups {
  std::int64_t batch = 0, channels = 0, groups = 0, inner = 0;
  bool per_group = false;  // scale and bias
  double epsilon = 0;
};
Result<Groups> groups_of(const OpCall& call, std::string_view op) {
  const Shape& x = call.in(0).shape;
  if (x.rank() < 2) return invalid(format("the input {} needs a batch and channels", to_string(x)));
  Groups g;
  g.batch = x[0];
  g.channels = x[1];
  g.inner = x.elements(2, x.rank());
  g.groups = g.channels;
  if (op == "GroupNormalization") {
    FALAJ_ASSIGN(g.groups, attr_int(call.node, "num_groups"));
    g.per_group = call.opset < 21;
  }
  if (g.groups < 1 || g.channels % g.groups != 0) {
    if (g.channels != 0) return invalid(format("{} groups of {} channels", g.groups, g.channels));
  }
  std::int64_t wanted = g.per_group ? g.groups : g.channels;
  for (std::size_t i : {1U, 2U}) {
    FALAJ_TRY(check_same_dtype(call, 0, i));
    if (call.in(i).shape != Shape{wanted})
      return invalid(format("'{}' has shape {}; it must be [{}]", call.node.inputs[i], to_string(call.in(i).shape), wanted));
  }
  FALAJ_ASSIGN(g.epsilon, attr_float(call.node, "epsilon", static_cast<double>(1e-5F)));
  return g;
}
Status infer_groups(InferCall& call) {
  FALAJ_TRY(infer_float(call));
  FALAJ_ASSIGN([[maybe_unused]] auto g, groups_of(call, call.node.op));
  return {};
}
Result<KernelPtr> make_groups(const KernelCall& c) {
  FALAJ_ASSIGN(auto groups, groups_of(c, c.node.op));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([g = groups](const Io& io) {
      std::int64_t channels = g.groups == 0 ? 0 : g.channels / g.groups;
      std::int64_t n = channels * g.inner;
      for (std::int64_t k = 0; k < g.batch * g.groups; ++k) {
        const T* x = io.input<T>(0) + k * n;
        T* y = io.output<T>(0) + k * n;
        T mean = 0;
        for (std::int64_t i = 0; i < n; ++i) mean += x[i];
        mean /= static_cast<T>(std::max<std::int64_t>(n, 1));
        T square = 0;
        for (std::int64_t i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
        T inverse = 1 / std::sqrt(square / static_cast<T>(std::max<std::int64_t>(n, 1)) + g.epsilon);
        for (std::int64_t i = 0; i < n; ++i) {
          std::int64_t group = k % g.groups;
          std::int64_t at = g.per_group ? group : group * channels + i / g.inner;
          y[i] = (x[i] - mean) * inverse * io.input<T>(1)[at] + io.input<T>(2)[at];
        }
      }
    });
  });
}

// dy, x, scale -> dx, dscale, dbias; attributes: those of the forward node, its op and its opset.
Result<Groups> grad_groups(const OpCall& call) {
  FALAJ_ASSIGN(const auto op, attr_string(call.node, "function"));
  FALAJ_ASSIGN(const auto opset, attr_int(call.node, "forward_opset"));
  const std::array<ValueType, 3> forward = {call.in(1), call.in(2), call.in(2)};
  return groups_of(OpCall{call.node, forward, opset}, op);
}
Status infer_groups_grad(InferCall& call) {
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN([[maybe_unused]] auto g, grad_groups(call));
  if (call.in(0).shape != call.in(1).shape) return invalid("the gradient does not fit the input");
  FALAJ_TRY(set_output(call, 0, call.in(0).dtype, call.in(1).shape));
  FALAJ_TRY(set_output(call, 1, call.in(0).dtype, call.in(2).shape));
  return set_output(call, 2, call.in(0).dtype, call.in(2).shape);
}
Result<KernelPtr> make_groups_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto groups, grad_groups(c));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([g = groups, parameters = c.in(2).shape.elements()](const Io& io) {
      std::int64_t channels = g.groups == 0 ? 0 : g.channels / g.groups;
      std::int64_t n = channels * g.inner;
      std::vector<double> d_scale(static_cast<std::size_t>(parameters), 0.0);
      std::vector<double> d_bias = d_scale;
      for (std::int64_t k = 0; k < g.batch * g.groups; ++k) {
        const T* dy = io.input<T>(0) + k * n;
        const T* x = io.input<T>(1) + k * n;
        auto count = static_cast<T>(std::max<std::int64_t>(n, 1));
        T mean = 0;
        for (std::int64_t i = 0; i < n; ++i) mean += x[i] / count;
        T square = 0;
        for (std::int64_t i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean) / count;
        T inverse = 1 / std::sqrt(square + g.epsilon);
        auto at = [&](std::int64_t i) { return g.per_group ? k % g.groups : k % g.groups * channels + i / g.inner; };
        T sum = 0;
        T dot = 0;
        for (std::int64_t i = 0; i < n; ++i) {
          T normal = (x[i] - mean) * inverse;
          sum += dy[i] * io.input<T>(2)[at(i)];
          dot += dy[i] * io.input<T>(2)[at(i)] * normal;
          d_scale[static_cast<std::size_t>(at(i))] += dy[i] * normal;
          d_bias[static_cast<std::size_t>(at(i))] += dy[i];
        }
        for (std::int64_t i = 0; i < n && io.out[0] != nullptr; ++i) {
          T normal = (x[i] - mean) * inverse;
          io.output<T>(0)[k * n + i] = inverse * (dy[i] * io.input<T>(2)[at(i)] - sum / count - normal * dot / count);
        }
      }
      if (io.out[1] != nullptr) std::ranges::copy(d_scale, io.output<T>(1));
      if (io.out[2] != nullptr) std::ranges::copy(d_bias, io.output<T>(2));
    });
  });
}
Status grad_groups_of(GradientCall& g) {
  Attributes attributes = g.node().attributes;
  attributes.insert_or_assign("function", g.node().op);
  attributes.insert_or_assign("forward_opset", g.graph().opset(g.node().domain));
  const auto d = g.add_many(kFalaj, "GroupNormalizationGrad", {g.dy(), g.input(0), g.input(1)}, std::move(attributes), 3);
  for (std::size_t i = 0; i < 3; ++i) {
    if (g.wants(i)) g.set(i, d[i]);
  }
  return {};
}

// --- MeanVarianceNormalization ----------------------------------------------------------------------------------------------------

Result<Shape> moments_shape(const OpCall& call) {
  Shape kept = call.in(0).shape;
  FALAJ_ASSIGN(auto axes, attr_ints(call.node, "axes", std::vector<std::int64_t>{0, 2, 3}));
  for (auto axis : axes) {
    FALAJ_ASSIGN(axis, normal_axis(axis, kept.rank()));
    kept[static_cast<std::size_t>(axis)] = 1;
  }
  return kept;
}
Status infer_mean_variance(InferCall& call) {
  FALAJ_ASSIGN([[maybe_unused]] auto kept, moments_shape(call));
  return infer_float(call);
}
Result<KernelPtr> make_mean_variance(const KernelCall& c) {
  FALAJ_ASSIGN(Shape kept, moments_shape(c));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    const Shape& in = c.in(0).shape;
    auto m = kept.elements();
    double count = m == 0 ? 1 : static_cast<double>(in.elements()) / static_cast<double>(m);
    return make_kernel([walk = broadcast_walk<2>(in, {&in, &kept}), m, count](const Io& io) {
      const T* x = io.input<T>(0);
      T* y = io.output<T>(0);
      std::vector<double> mean(static_cast<std::size_t>(m), 0.0);
      std::vector<double> square(static_cast<std::size_t>(m), 0.0);
      auto each = [&](auto f) {
        walk([&](const auto& at, std::int64_t n, const auto& step) {
          for (std::int64_t i = 0; i < n; ++i) f(at[0] + i * step[0], static_cast<std::size_t>(at[1] + i * step[1]));
        });
      };
      each([&](std::int64_t i, std::size_t k) { mean[k] += x[i] / count; });
      each([&](std::int64_t i, std::size_t k) { square[k] += (x[i] - mean[k]) * (x[i] - mean[k]) / count; });
      each([&](std::int64_t i, std::size_t k) { y[i] = (x[i] - mean[k]) / (std::sqrt(square[k]) + 1e-9); });
    });
  });
}

// --- LpNormalization ------------------------------------------------------------------------------------------------------------

Status infer_lp(InferCall& call) {
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, call.in(0).shape.rank()));
  FALAJ_ASSIGN(auto p, attr_int(call.node, "p", 2));
  if (p != 1 && p != 2) return invalid(format("attribute 'p' is {}; it must be 1 or 2", p));
  return infer_float(call);
}
Result<KernelPtr> make_lp(const KernelCall& c) {
  FALAJ_ASSIGN(auto axis, attr_int(c.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, c.in(0).shape.rank()));
  FALAJ_ASSIGN(auto p, attr_int(c.node, "p", 2));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([s = split_at(c.in(0).shape, axis), p](const Io& io) {
      for (std::int64_t o = 0; o < s.outer; ++o) {
        for (std::int64_t i = 0; i < s.inner; ++i) {
          std::int64_t first = o * s.size * s.inner + i;
          T norm = 0;
          for (std::int64_t k = 0; k < s.size; ++k) {
            T x = io.input<T>(0)[first + k * s.inner];
            norm += p == 1 ? std::abs(x) : x * x;
          }
          if (p == 2) norm = std::sqrt(norm);
          for (std::int64_t k = 0; k < s.size; ++k) {
            std::int64_t at = first + k * s.inner;
            io.output<T>(0)[at] = norm == 0 ? 0 : io.input<T>(0)[at] / norm;
          }
        }
      }
    });
  });
}

// dy, x -> dx.
Status infer_lp_grad(InferCall& call) {
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  if (call.in(0).shape != call.in(1).shape) return invalid("the gradient does not fit the input");
  return infer_lp(call);
}
Result<KernelPtr> make_lp_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto axis, attr_int(c.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, c.in(0).shape.rank()));
  FALAJ_ASSIGN(auto p, attr_int(c.node, "p", 2));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([s = split_at(c.in(0).shape, axis), p](const Io& io) {
      for (std::int64_t line = 0; line < s.outer * s.inner; ++line) {
        std::int64_t first = line / std::max<std::int64_t>(s.inner, 1) * s.size * s.inner + line % std::max<std::int64_t>(s.inner, 1);
        T norm = 0;
        T dot = 0;
        for (std::int64_t at = first, k = 0; k < s.size; ++k, at += s.inner) {
          T x = io.input<T>(1)[at];
          norm += p == 1 ? std::abs(x) : x * x;
          dot += io.input<T>(0)[at] * x;
        }
        if (p == 2) norm = std::sqrt(norm);
        for (std::int64_t at = first, k = 0; k < s.size; ++k, at += s.inner) {
          T x = io.input<T>(1)[at];
          T direction = p == 2 ? x / norm : (x > 0 ? 1.0 : (x < 0 ? -1.0 : 0.0));
          io.output<T>(0)[at] = norm == 0 ? 0 : (io.input<T>(0)[at] - direction * dot / norm) / norm;
        }
      }
    });
  });
}
Status grad_lp(GradientCall& g) {
  return g.set(0, g.add_falaj("LpNormalizationGrad", {g.dy(), g.input(0)}, g.node().attributes)), Status{};
}

// --- LRN --------------------------------------------------------------------------------------------------------------------

struct Neighbours {
  AxisSplit split{};
  std::int64_t size = 0;
  double alpha = 0, beta = 0, bias = 0;
  // f(j) for the elements whose squares count for element i.
  template <class F>
  void each(std::int64_t i, F&& f) const {
    window(i, (size - 1) / 2, size / 2, f);
  }
  // f(j) for the elements that the square of element i counts for.
  template <class F>
  void each_reached(std::int64_t i, F&& f) const {
    window(i, size / 2, (size - 1) / 2, f);
  }
  [[nodiscard]] double base(const double* x, std::int64_t i) const {
    double sum = 0;
    each(i, [&](std::int64_t j) { sum += x[j] * x[j]; });
    return bias + alpha / static_cast<double>(size) * sum;
  }
  [[nodiscard]] std::int64_t elements() const { return split.outer * split.size * split.inner; }

 private:
  template <class F>
  void window(std::int64_t i, std::int64_t before, std::int64_t after, F&& f) const {
    const std::int64_t channel = i / split.inner % split.size;
    for (std::int64_t k = std::max<std::int64_t>(0, channel - before); k <= std::min(split.size - 1, channel + after); ++k)
      f(i + (k - channel) * split.inner);
  }
};
Result<Neighbours> neighbours(const OpCall& call) {
  if (call.in(0).shape.rank() < 2) return invalid("the input needs a batch and channels");
  Neighbours n;
  n.split = split_at(call.in(0).shape, 1);
  FALAJ_ASSIGN(n.size, attr_int(call.node, "size"));
  if (n.size < 1) return invalid(format("attribute 'size' is {}", n.size));
  FALAJ_ASSIGN(n.alpha, attr_float(call.node, "alpha", static_cast<double>(0.0001F)));
  FALAJ_ASSIGN(n.beta, attr_float(call.node, "beta", 0.75));
  FALAJ_ASSIGN(n.bias, attr_float(call.node, "bias", 1.0));
  return n;
}

Status infer_lrn(InferCall& call) {
  FALAJ_ASSIGN([[maybe_unused]] const auto n, neighbours(call));
  return infer_float(call);
}
Result<KernelPtr> make_lrn(const KernelCall& c) {
  FALAJ_ASSIGN(const auto n, neighbours(c));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([n](const Io& io) {
      const auto* x = io.input<T>(0);
      for (std::int64_t i = 0; i < n.elements(); ++i) io.output<T>(0)[i] = x[i] / std::pow(n.base(x, i), n.beta);
    });
  });
}

// Inputs: x, dy.
Status infer_lrn_grad(InferCall& call) {
  FALAJ_TRY(infer_lrn(call));
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  return call.in(1).shape == call.in(0).shape ? Status{} : Status(invalid("the gradient does not fit the input"));
}
Result<KernelPtr> make_lrn_grad(const KernelCall& c) {
  FALAJ_ASSIGN(const auto n, neighbours(c));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([n](const Io& io) {
      const auto* x = io.input<T>(0);
      const auto* dy = io.input<T>(1);
      const double share = 2 * n.alpha * n.beta / static_cast<double>(n.size);
      for (std::int64_t i = 0; i < n.elements(); ++i) {
        double reached = 0;
        n.each_reached(i, [&](std::int64_t j) { reached += dy[j] * x[j] * std::pow(n.base(x, j), -n.beta - 1); });
        io.output<T>(0)[i] = dy[i] * std::pow(n.base(x, i), -n.beta) - share * x[i] * reached;
      }
    });
  });
}
Status grad_lrn(GradientCall& g) {
  g.set(0, g.add_falaj("LRNGrad", {g.input(0), g.dy()}, g.node().attributes));
  return {};
}

// --- RMSNormalization -----------------------------------------------------------------------------------------------------------

Status infer_rms(InferCall& call) {
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, call.in(0).shape.rank()));
  FALAJ_ASSIGN(Shape both, broadcast(call.in(0).shape, call.in(1).shape));
  if (both != call.in(0).shape) return invalid("the scale does not broadcast to the input");
  return infer_float(call);
}
Result<KernelPtr> make_rms(const KernelCall& c) {
  FALAJ_ASSIGN(auto axis, attr_int(c.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, c.in(0).shape.rank()));
  FALAJ_ASSIGN(double epsilon, attr_float(c.node, "epsilon", static_cast<double>(1e-5F)));
  const Shape& in = c.in(0).shape;
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([walk = broadcast_walk<2>(in, {&in, &c.in(1).shape}), width = in.elements(static_cast<std::size_t>(axis), in.rank()),
                        n = in.elements(), epsilon](const Io& io) {
      const T* x = io.input<T>(0);
      T* y = io.output<T>(0);
      for (std::int64_t row = 0; row < n; row += width) {
        T square = 0;
        for (std::int64_t i = row; i < row + width; ++i) square += x[i] * x[i];
        T inverse = 1 / std::sqrt(square / static_cast<T>(width) + epsilon);
        for (std::int64_t i = row; i < row + width; ++i) y[i] = x[i] * inverse;
      }
      walk([&](const auto& at, std::int64_t m, const auto& step) {
        for (std::int64_t i = 0; i < m; ++i) y[at[0] + i * step[0]] *= io.input<T>(1)[at[1] + i * step[1]];
      });
    });
  });
}

// dy, x, scale -> dx, and dscale as large as x (the caller sums it).
Status infer_rms_grad(InferCall& call) {
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_TRY(check_same_dtype(call, 1, 2));
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, call.in(1).shape.rank()));
  FALAJ_ASSIGN(Shape both, broadcast(call.in(1).shape, call.in(2).shape));
  if (both != call.in(1).shape || call.in(0).shape != both) return invalid("the gradient, the input and the scale do not fit");
  FALAJ_TRY(set_output(call, 0, call.in(0).dtype, both));
  return set_output(call, 1, call.in(0).dtype, both);
}
Result<KernelPtr> make_rms_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto axis, attr_int(c.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, c.in(1).shape.rank()));
  FALAJ_ASSIGN(double epsilon, attr_float(c.node, "epsilon", static_cast<double>(1e-5F)));
  const Shape& in = c.in(1).shape;
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel(
        [walk = broadcast_walk<2>(in, {&in, &c.in(2).shape}), width = in.elements(static_cast<std::size_t>(axis), in.rank()),
         n = in.elements(), epsilon, two = c.outputs.size() > 1](const Io& io) {
          const T* x = io.input<T>(1);
          auto* d = reinterpret_cast<double*>(io.scratch);  // dy times the scale
          walk([&](const auto& at, std::int64_t m, const auto& step) {
            for (std::int64_t i = 0; i < m; ++i)
              d[at[0] + i * step[0]] = io.input<T>(0)[at[0] + i * step[0]] * io.input<T>(2)[at[1] + i * step[1]];
          });
          for (std::int64_t row = 0; row < n; row += width) {
            T square = 0;
            T dot = 0;
            for (std::int64_t i = row; i < row + width; ++i) {
              square += x[i] * x[i];
              dot += d[i] * x[i];
            }
            T inverse = 1 / std::sqrt(square / static_cast<T>(width) + epsilon);
            for (std::int64_t i = row; i < row + width; ++i) {
              if (io.out[0] != nullptr) io.output<T>(0)[i] = inverse * (d[i] - x[i] * inverse * inverse * dot / static_cast<T>(width));
              if (two && io.out[1] != nullptr) io.output<T>(1)[i] = io.input<T>(0)[i] * x[i] * inverse;
            }
          }
        },
        static_cast<std::size_t>(in.elements()) * sizeof(double));
  });
}
Status grad_rms(GradientCall& g) {
  const auto d = g.add_many(kFalaj, "RMSNormalizationGrad", {g.dy(), g.input(0), g.input(1)}, g.node().attributes, 2);
  if (g.wants(0)) g.set(0, d[0]);
  if (g.wants(1)) g.set(1, reduce_to_input(g, d[1], 1));
  return {};
}

constexpr OpDef kOps[] = {
    {kOnnx, "InstanceNormalization", 3, 3, 1, 1, infer_groups, make_groups, grad_groups_of},
    {kOnnx, "GroupNormalization", 3, 3, 1, 1, infer_groups, make_groups, grad_groups_of},
    {kOnnx, "MeanVarianceNormalization", 1, 1, 1, 1, infer_mean_variance, make_mean_variance},
    {kOnnx, "LpNormalization", 1, 1, 1, 1, infer_lp, make_lp, grad_lp},
    {kOnnx, "LRN", 1, 1, 1, 1, infer_lrn, make_lrn, grad_lrn},
    {kFalaj, "LRNGrad", 2, 2, 1, 1, infer_lrn_grad, make_lrn_grad},
    {kOnnx, "RMSNormalization", 2, 2, 1, 1, infer_rms, make_rms, grad_rms},
    {kFalaj, "GroupNormalizationGrad", 3, 3, 1, 3, infer_groups_grad, make_groups_grad},
    {kFalaj, "LpNormalizationGrad", 2, 2, 1, 1, infer_lp_grad, make_lp_grad},
    {kFalaj, "RMSNormalizationGrad", 3, 3, 1, 2, infer_rms_grad, make_rms_grad},
};

}  // namespace

std::span<const OpDef> channel_norm_ops() { return kOps; }

}  // namespace falaj::kernels
