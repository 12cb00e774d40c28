// Normalisations: LayerNormalization and BatchNormalization (with fixed statistics, or with the batch's own), with their gradients.
// Gradients compute mean and deviation again rather than ask the forward node for outputs that exports leave out.
//
// ai.falaj's BatchNormalization is what training puts in the place of ai.onnx's: always by the batch's statistics, and the running
// variance moves towards the unbiased one, as PyTorch has it.
#include <algorithm>
#include <cmath>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

constexpr double kEpsilon = static_cast<double>(1e-5F);

struct LayerSplit {
  std::int64_t rows, width;
};

Result<LayerSplit> layer_split(const OpCall& call, std::size_t x) {
  const Shape& in = call.in(x).shape;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
  return LayerSplit{in.elements(0, static_cast<std::size_t>(axis)), in.elements(static_cast<std::size_t>(axis), in.rank())};
}

Status infer_layer_norm(InferCall& call) {
  FALAJ_TRY(infer_float(call));
  FALAJ_ASSIGN(auto s, layer_split(call, 0));
  for (std::size_t i : {1U, 2U}) {
    if (!call.has(i)) continue;
    FALAJ_TRY(check_same_dtype(call, 0, i));
    if (call.in(i).shape.elements() != s.width)
      return invalid(format("'{}' has shape {}; it must have {} elements", call.node.inputs[i], to_string(call.in(i).shape), s.width));
  }
  Shape reduced = call.in(0).shape;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, reduced.rank()));
  for (auto d = static_cast<std::size_t>(axis); d < reduced.rank(); ++d) reduced[d] = 1;
  FALAJ_TRY(set_output(call, 1, call.in(0).dtype, reduced));
  return set_output(call, 2, call.in(0).dtype, reduced);
}

struct Moments {
  double mean, inverse_deviation;
};
template <class T>
Moments moments(const T* x, std::int64_t n, double epsilon) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]);
  double mean = n == 0 ? 0 : sum / static_cast<double>(n);
  double square = 0;
  for (std::int64_t i = 0; i < n; ++i) square += (static_cast<double>(x[i]) - mean) * (static_cast<double>(x[i]) - mean);
  return {mean, 1.0 / std::sqrt((n == 0 ? 0 : square / static_cast<double>(n)) + epsilon)};
}

Result<KernelPtr> make_layer_norm(const KernelCall& c) {
  FALAJ_ASSIGN(auto s, layer_split(c, 0));
  FALAJ_ASSIGN(double epsilon, attr_float(c.node, "epsilon", kEpsilon));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel([s, epsilon, has_bias = c.has(2), outputs = c.outputs.size()](const Io& io) {
      const T* x = io.input<T>(0);
      const T* scale = io.input<T>(1);
      const T* bias = has_bias ? io.input<T>(2) : nullptr;
      T* y = io.output<T>(0);
      for (std::int64_t r = 0; r < s.rows; ++r, x += s.width, y += s.width) {
        auto m = moments(x, s.width, epsilon);
        for (std::int64_t i = 0; i < s.width; ++i) {
          T normal = static_cast<T>((static_cast<double>(x[i]) - m.mean) * m.inverse_deviation);
          y[i] = normal * scale[i] + (bias != nullptr ? bias[i] : T{0});
        }
        if (outputs > 1 && io.out[1] != nullptr) io.output<T>(1)[r] = static_cast<T>(m.mean);
        if (outputs > 2 && io.out[2] != nullptr) io.output<T>(2)[r] = static_cast<T>(m.inverse_deviation);
      }
    });
  });
}

// dy, x, scale -> dx, dscale, dbias (shaped like scale).
Status infer_layer_norm_grad(InferCall& call) {
  FALAJ_ASSIGN([[maybe_unused]] auto s, layer_split(call, 1));
  FALAJ_TRY(set_output(call, 0, call.in(1).dtype, call.in(1).shape));
  FALAJ_TRY(set_output(call, 1, call.in(2).dtype, call.in(2).shape));
  return set_output(call, 2, call.in(2).dtype, call.in(2).shape);
}
Result<KernelPtr> make_layer_norm_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto s, layer_split(c, 1));
  FALAJ_ASSIGN(double epsilon, attr_float(c.node, "epsilon", kEpsilon));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel(
        [s, epsilon, outputs = c.outputs.size()](const Io& io) {
          const T* dy = io.input<T>(0);
          const T* x = io.input<T>(1);
          const T* scale = io.input<T>(2);
          T* dx = io.output<T>(0);
          auto* d_scale = reinterpret_cast<double*>(io.scratch);
          double* d_bias = d_scale + s.width;
          std::fill_n(d_scale, 2 * s.width, 0.0);
          for (std::int64_t r = 0; r < s.rows; ++r, dy += s.width, x += s.width) {
            auto m = moments(x, s.width, epsilon);
            double sum = 0;
            double dot = 0;
            for (std::int64_t i = 0; i < s.width; ++i) {
              double normal = (static_cast<double>(x[i]) - m.mean) * m.inverse_deviation;
              double d = static_cast<double>(dy[i]) * static_cast<double>(scale[i]);
              sum += d;
              dot += d * normal;
              d_scale[i] += static_cast<double>(dy[i]) * normal;
              d_bias[i] += static_cast<double>(dy[i]);
            }
            if (dx == nullptr) continue;
            auto n = static_cast<double>(s.width);
            for (std::int64_t i = 0; i < s.width; ++i) {
              double normal = (static_cast<double>(x[i]) - m.mean) * m.inverse_deviation;
              double d = static_cast<double>(dy[i]) * static_cast<double>(scale[i]);
              dx[r * s.width + i] = static_cast<T>(m.inverse_deviation * (d - sum / n - normal * dot / n));
            }
          }
          for (std::size_t k = 1; k < outputs; ++k) {
            if (io.out[k] != nullptr) std::copy_n(k == 1 ? d_scale : d_bias, s.width, io.output<T>(k));
          }
        },
        static_cast<std::size_t>(2 * s.width) * sizeof(double));
  });
}
Status grad_layer_norm(GradientCall& g) {
  auto d = g.add_many(kFalaj, "LayerNormalizationGrad", {g.dy(), g.input(0), g.input(1)}, g.node().attributes, 3);
  for (std::size_t i = 0; i < 3; ++i) {
    if (g.wants(i)) g.set(i, i == 2 ? g.add_falaj("ReshapeLike", {d[2], g.input(2)}) : d[i]);
  }
  return {};
}

// --- BatchNormalization -----------------------------------------------------------------------------------------------------

// x [N, C, ...], and scale, bias, mean, variance of [C] from input `first` on.
Status check_batch_norm(const OpCall& call, std::size_t x, std::size_t first, std::size_t count) {
  const Shape& in = call.in(x).shape;
  if (in.rank() < 2) return invalid(format("the input {} must have a batch and a channel dimension", to_string(in)));
  for (std::size_t i = first; i < first + count; ++i) {
    FALAJ_TRY(check_same_dtype(call, x, i));
    if (call.in(i).shape != Shape{in[1]})
      return invalid(format("'{}' has shape {}; it must be [{}]", call.node.inputs[i], to_string(call.in(i).shape), in[1]));
  }
  return {};
}
// Before opset 14 there was no attribute for it: more than one output meant training (6: unless is_test says otherwise).
Result<bool> trains(const OpCall& call) {
  if (call.node.domain == kFalaj) return true;
  if (call.opset >= 14) {
    FALAJ_ASSIGN(auto training, attr_int(call.node, "training_mode", 0));
    return training != 0;
  }
  if (call.opset == 6 && call.node.domain.empty()) {
    FALAJ_ASSIGN(auto test, attr_int(call.node, "is_test", 0));
    return test == 0;
  }
  return call.node.outputs.size() > 1;
}
Status infer_batch_norm(InferCall& call) {
  FALAJ_ASSIGN(bool training, trains(call));
  FALAJ_TRY(infer_float(call));
  FALAJ_TRY(check_batch_norm(call, 0, 1, 4));
  if (!training) return {};
  if (call.opset < 14 && call.node.domain != kFalaj)
    return Error{ErrorCode::unimplemented, "training before opset 14: export the model for inference"};
  for (std::size_t i : {1U, 2U}) FALAJ_TRY(set_output(call, i, call.in(3).dtype, call.in(3).shape));
  return {};
}
// Batch statistics, and the running ones moved towards them.
template <class T>
void batch_norm_training(const AxisSplit& s, double epsilon, double momentum, bool unbiased, std::size_t outputs, const Io& io) {
  double count = static_cast<double>(s.outer * s.inner);
  double correction = unbiased && count > 1 ? count / (count - 1) : 1.0;
  for (std::int64_t k = 0; k < s.size; ++k) {
    auto each = [&](auto f) {
      for (std::int64_t r = 0; r < s.outer; ++r) {
        for (std::int64_t i = 0; i < s.inner; ++i) f((r * s.size + k) * s.inner + i);
      }
    };
    const T* x = io.input<T>(0);
    double mean = 0;
    each([&](std::int64_t at) { mean += static_cast<double>(x[at]) / count; });
    double variance = 0;
    each([&](std::int64_t at) { variance += (static_cast<double>(x[at]) - mean) * (static_cast<double>(x[at]) - mean) / count; });
    double factor = static_cast<double>(io.input<T>(1)[k]) / std::sqrt(variance + epsilon);
    auto shift = static_cast<double>(io.input<T>(2)[k]);
    each([&](std::int64_t at) { io.output<T>(0)[at] = static_cast<T>((static_cast<double>(x[at]) - mean) * factor + shift); });
    auto moved = [&](std::size_t input, double now) {
      return static_cast<T>(static_cast<double>(io.input<T>(input)[k]) * momentum + now * (1 - momentum));
    };
    if (outputs > 1 && io.out[1] != nullptr) io.output<T>(1)[k] = moved(3, mean);
    if (outputs > 2 && io.out[2] != nullptr) io.output<T>(2)[k] = moved(4, variance * correction);
  }
}
Result<KernelPtr> make_batch_norm(const KernelCall& c) {
  FALAJ_ASSIGN(double epsilon, attr_float(c.node, "epsilon", kEpsilon));
  FALAJ_ASSIGN(double momentum, attr_float(c.node, "momentum", static_cast<double>(0.9F)));
  FALAJ_ASSIGN(bool training, trains(c));
  return dispatch_float(c.in(0).dtype, [&]<class T>() -> KernelPtr {
    if (training) {
      return make_kernel([s = split_at(c.in(0).shape, 1), epsilon, momentum, outputs = c.outputs.size(), ours = c.node.domain == kFalaj](
                             const Io& io) { batch_norm_training<T>(s, epsilon, momentum, ours, outputs, io); });
    }
    return make_kernel([s = split_at(c.in(0).shape, 1), epsilon](const Io& io) {
      const T* x = io.input<T>(0);
      T* y = io.output<T>(0);
      for (std::int64_t r = 0; r < s.outer; ++r) {
        for (std::int64_t k = 0; k < s.size; ++k, x += s.inner, y += s.inner) {
          T factor = io.input<T>(1)[k] / std::sqrt(io.input<T>(4)[k] + static_cast<T>(epsilon));
          T shift = io.input<T>(2)[k];
          T mean = io.input<T>(3)[k];
          for (std::int64_t i = 0; i < s.inner; ++i) y[i] = (x[i] - mean) * factor + shift;
        }
      }
    });
  });
}

// dx, dscale and dbias, of dy, x and parameters of which the scale is the first.
Status infer_batch_norm_grads(InferCall& call, std::size_t parameters) {
  FALAJ_TRY(check_batch_norm(call, 1, 2, parameters));
  if (call.in(0).shape != call.in(1).shape) return invalid("the gradient does not fit the input");
  FALAJ_TRY(set_output(call, 0, call.in(1).dtype, call.in(1).shape));
  FALAJ_TRY(set_output(call, 1, call.in(2).dtype, call.in(2).shape));
  return set_output(call, 2, call.in(2).dtype, call.in(2).shape);
}

// dy, x, scale, mean, variance -> dx, dscale, dbias.
Status infer_batch_norm_grad(InferCall& call) { return infer_batch_norm_grads(call, 3); }
Result<KernelPtr> make_batch_norm_grad(const KernelCall& c) {
  FALAJ_ASSIGN(double epsilon, attr_float(c.node, "epsilon", kEpsilon));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel(
        [s = split_at(c.in(0).shape, 1), epsilon, outputs = c.outputs.size()](const Io& io) {
          const T* dy = io.input<T>(0);
          const T* x = io.input<T>(1);
          auto* d_scale = reinterpret_cast<double*>(io.scratch);
          double* d_bias = d_scale + s.size;
          std::fill_n(d_scale, 2 * s.size, 0.0);
          T* dx = io.output<T>(0);
          std::int64_t at = 0;
          for (std::int64_t r = 0; r < s.outer; ++r) {
            for (std::int64_t k = 0; k < s.size; ++k) {
              T inverse = T{1} / std::sqrt(io.input<T>(4)[k] + static_cast<T>(epsilon));
              T factor = io.input<T>(2)[k] * inverse;
              T mean = io.input<T>(3)[k];
              for (std::int64_t i = 0; i < s.inner; ++i, ++at) {
                if (dx != nullptr) dx[at] = dy[at] * factor;
                d_scale[k] += static_cast<double>(dy[at] * (x[at] - mean) * inverse);
                d_bias[k] += static_cast<double>(dy[at]);
              }
            }
          }
          for (std::size_t k = 1; k < outputs; ++k) {
            if (io.out[k] != nullptr) std::copy_n(k == 1 ? d_scale : d_bias, s.size, io.output<T>(k));
          }
        },
        static_cast<std::size_t>(2 * c.in(2).shape.elements()) * sizeof(double));
  });
}

// By the batch's statistics: dy, x, scale -> dx, dscale, dbias. They depend on x too.
Status infer_batch_norm_training_grad(InferCall& call) { return infer_batch_norm_grads(call, 1); }
Result<KernelPtr> make_batch_norm_training_grad(const KernelCall& c) {
  FALAJ_ASSIGN(double epsilon, attr_float(c.node, "epsilon", kEpsilon));
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return make_kernel([s = split_at(c.in(1).shape, 1), epsilon, outputs = c.outputs.size()](const Io& io) {
      const T* dy = io.input<T>(0);
      const T* x = io.input<T>(1);
      auto count = static_cast<double>(s.outer * s.inner);
      for (std::int64_t k = 0; k < s.size; ++k) {
        auto each = [&](auto f) {
          for (std::int64_t r = 0; r < s.outer; ++r) {
            for (std::int64_t i = 0; i < s.inner; ++i) f((r * s.size + k) * s.inner + i);
          }
        };
        double mean = 0;
        each([&](std::int64_t at) { mean += static_cast<double>(x[at]) / count; });
        double variance = 0;
        each([&](std::int64_t at) { variance += (static_cast<double>(x[at]) - mean) * (static_cast<double>(x[at]) - mean) / count; });
        double inverse = 1.0 / std::sqrt(variance + epsilon);
        double sum = 0;
        double dot = 0;
        each([&](std::int64_t at) {
          sum += static_cast<double>(dy[at]);
          dot += static_cast<double>(dy[at]) * (static_cast<double>(x[at]) - mean) * inverse;
        });
        if (io.out[0] != nullptr) {
          double factor = static_cast<double>(io.input<T>(2)[k]) * inverse;
          each([&](std::int64_t at) {
            double normal = (static_cast<double>(x[at]) - mean) * inverse;
            io.output<T>(0)[at] = static_cast<T>(factor * (static_cast<double>(dy[at]) - sum / count - normal * dot / count));
          });
        }
        if (outputs > 1 && io.out[1] != nullptr) io.output<T>(1)[k] = static_cast<T>(dot);
        if (outputs > 2 && io.out[2] != nullptr) io.output<T>(2)[k] = static_cast<T>(sum);
      }
    });
  });
}
Status grad_batch_norm(GradientCall& g) {
  FALAJ_ASSIGN(auto training, attr_int(g.node(), "training_mode", 0));
  if (training != 0 || g.node().domain == kFalaj) {
    auto by_batch = g.add_many(kFalaj, "BatchNormalizationTrainingGrad", {g.dy(), g.input(0), g.input(1)}, g.node().attributes, 3);
    for (std::size_t i = 0; i < 3; ++i) {
      if (g.wants(i)) g.set(i, by_batch[i]);
    }
    for (std::size_t i = 3; i < 5; ++i) {  // the running statistics do not enter the result
      if (g.wants(i)) g.set(i, g.add_falaj("ZerosLike", {g.input(i)}));
    }
    return {};
  }
  auto d = g.add_many(kFalaj, "BatchNormalizationGrad", {g.dy(), g.input(0), g.input(1), g.input(3), g.input(4)}, g.node().attributes, 3);
  for (std::size_t i = 0; i < 3; ++i) {
    if (g.wants(i)) g.set(i, d[i]);
  }
  return {};
}

constexpr OpDef kOps[] = {
    {kOnnx, "LayerNormalization", 2, 3, 1, 3, infer_layer_norm, make_layer_norm, grad_layer_norm},
    {kOnnx, "BatchNormalization", 5, 5, 1, 5, infer_batch_norm, make_batch_norm, grad_batch_norm},
    {kFalaj, "BatchNormalization", 5, 5, 1, 3, infer_batch_norm, make_batch_norm, grad_batch_norm},
    {kFalaj, "LayerNormalizationGrad", 3, 3, 1, 3, infer_layer_norm_grad, make_layer_norm_grad},
    {kFalaj, "BatchNormalizationGrad", 5, 5, 1, 3, infer_batch_norm_grad, make_batch_norm_grad},
    {kFalaj, "BatchNormalizationTrainingGrad", 3, 3, 1, 3, infer_batch_norm_training_grad, make_batch_norm_training_grad},
};

}  // namespace

std::span<const OpDef> norm_ops() { return kOps; }

}  // namespace falaj::kernels
