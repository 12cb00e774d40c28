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
Result<Groups> groups_of(const OpCall& call) {
  const Shape& x = call.in(0).shape;
  if (x.rank() < 2) return invalid(format("the input {} needs a batch and channels", to_string(x)));
  Groups g;
  g.batch = x[0];
  g.channels = x[1];
  g.inner = x.elements(2, x.rank());
  g.groups = g.channels;
  if (call.node.op == "GroupNormalization") {
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
  FALAJ_ASSIGN([[maybe_unused]] auto g, groups_of(call));
  return {};
}
Result<KernelPtr> make_groups(const KernelCall& c) {
  FALAJ_ASSIGN(auto groups, groups_of(c));
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

// --- LRN --------------------------------------------------------------------------------------------------------------------

Status infer_lrn(InferCall& call) {
  if (call.in(0).shape.rank() < 2) return invalid("the input needs a batch and channels");
  FALAJ_ASSIGN(auto size, attr_int(call.node, "size"));
  if (size < 1) return invalid(format("attribute 'size' is {}", size));
  return infer_float(call);
}
Result<KernelPtr> make_lrn(const KernelCall& c) {
  FALAJ_ASSIGN(auto size, attr_int(c.node, "size"));
  FALAJ_ASSIGN(double alpha, attr_float(c.node, "alpha", static_cast<double>(0.0001F)));
  FALAJ_ASSIGN(double beta, attr_float(c.node, "beta", 0.75));
  FALAJ_ASSIGN(double bias, attr_float(c.node, "bias", 1.0));
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    return make_kernel([s = split_at(c.in(0).shape, 1), size, alpha, beta, bias](const Io& io) {
      for (std::int64_t i = 0; i < s.outer * s.size * s.inner; ++i) {
        std::int64_t channel = i / s.inner % s.size;
        T sum = 0;
        for (std::int64_t k = std::max<std::int64_t>(0, channel - (size - 1) / 2); k <= std::min(s.size - 1, channel + size / 2); ++k) {
          T x = io.input<T>(0)[i + (k - channel) * s.inner];
          sum += x * x;
        }
        io.output<T>(0)[i] = io.input<T>(0)[i] / std::pow(bias + alpha / static_cast<double>(size) * sum, beta);
      }
    });
  });
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

constexpr OpDef kOps[] = {
    {kOnnx, "InstanceNormalization", 3, 3, 1, 1, infer_groups, make_groups},
    {kOnnx, "GroupNormalization", 3, 3, 1, 1, infer_groups, make_groups},
    {kOnnx, "MeanVarianceNormalization", 1, 1, 1, 1, infer_mean_variance, make_mean_variance},
    {kOnnx, "LpNormalization", 1, 1, 1, 1, infer_lp, make_lp},
    {kOnnx, "LRN", 1, 1, 1, 1, infer_lrn, make_lrn},
    {kOnnx, "RMSNormalization", 2, 2, 1, 1, infer_rms, make_rms},
};

}  // namespace

std::span<const OpDef> channel_norm_ops() { return kOps; }

}  // namespace falaj::kernels
