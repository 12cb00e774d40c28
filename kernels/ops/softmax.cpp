// Softmax and LogSoftmax along an axis, and their gradients (from the output).
#include <algorithm>
#include <cmath>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

// Before opset 13 everything from the axis on was one line.
Result<AxisSplit> softmax_split(const OpCall& c) {
  bool flat = c.opset < 13 && c.node.domain.empty();
  const Shape& in = c.in(0).shape;
  FALAJ_ASSIGN(auto axis, attr_int(c.node, "axis", flat ? 1 : -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, in.rank()));
  if (!flat) return split_at(in, axis);
  auto a = static_cast<std::size_t>(axis);
  return AxisSplit{in.elements(0, a), in.elements(a, in.rank()), 1};
}
Status infer_softmax(InferCall& call) {
  FALAJ_ASSIGN([[maybe_unused]] auto split, softmax_split(call));
  return infer_float(call);
}

// f(offset of the first element) for each line along the axis.
template <class F>
void for_lines(const AxisSplit& s, F f) {
  if (s.size == 0) return;
  for (std::int64_t o = 0; o < s.outer; ++o) {
    for (std::int64_t i = 0; i < s.inner; ++i) f(o * s.size * s.inner + i);
  }
}

template <class T>
KernelPtr softmax_kernel(const AxisSplit& s, bool log_form) {
  return make_kernel([s, log_form](const Io& io) {
    const T* x = io.input<T>(0);
    T* y = io.output<T>(0);
    for_lines(s, [&](std::int64_t at) {
      T top = x[at];
      for (std::int64_t k = 1; k < s.size; ++k) top = std::max(top, x[at + k * s.inner]);
      T sum = 0;
      for (std::int64_t k = 0; k < s.size; ++k) {
        T e = std::exp(x[at + k * s.inner] - top);
        sum += e;
        if (!log_form) y[at + k * s.inner] = e;
      }
      T log_sum = log_form ? std::log(sum) : T{0};
      for (std::int64_t k = 0; k < s.size; ++k) {
        T& to = y[at + k * s.inner];
        to = log_form ? x[at + k * s.inner] - top - log_sum : to / sum;
      }
    });
  });
}

template <class T>
KernelPtr softmax_grad_kernel(const AxisSplit& s, bool log_form) {
  return make_kernel([s, log_form](const Io& io) {
    const T* dy = io.input<T>(0);
    const T* y = io.input<T>(1);
    T* dx = io.output<T>(0);
    for_lines(s, [&](std::int64_t at) {
      T sum = 0;
      for (std::int64_t k = 0; k < s.size; ++k) sum += log_form ? dy[at + k * s.inner] : dy[at + k * s.inner] * y[at + k * s.inner];
      for (std::int64_t k = 0; k < s.size; ++k) {
        std::int64_t p = at + k * s.inner;
        dx[p] = log_form ? dy[p] - std::exp(y[p]) * sum : y[p] * (dy[p] - sum);
      }
    });
  });
}

template <bool kLog>
Result<KernelPtr> make_softmax(const KernelCall& c) {
  FALAJ_ASSIGN(auto split, softmax_split(c));
  return dispatch_float(c.in(0).dtype, [&]<class T>() { return softmax_kernel<T>(split, kLog); });
}
template <bool kLog>
Result<KernelPtr> make_softmax_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto split, softmax_split(c));
  return dispatch_float(c.in(0).dtype, [&]<class T>() { return softmax_grad_kernel<T>(split, kLog); });
}
Status grad_softmax(GradientCall& g) {
  return g.set(0, g.add_falaj(g.node().op + "Grad", {g.dy(), g.output(0)}, g.node().attributes)), Status{};
}

constexpr OpDef kOps[] = {
    {kOnnx, "Softmax", 1, 1, 1, 1, infer_softmax, make_softmax<false>, grad_softmax, Placement::own},
    {kOnnx, "LogSoftmax", 1, 1, 1, 1, infer_softmax, make_softmax<true>, grad_softmax, Placement::own},
    {kFalaj, "SoftmaxGrad", 2, 2, 1, 1, infer_softmax, make_softmax_grad<false>, nullptr, Placement::own},
    {kFalaj, "LogSoftmaxGrad", 2, 2, 1, 1, infer_softmax, make_softmax_grad<true>, nullptr, Placement::own},
};

}  // namespace

std::span<const OpDef> softmax_ops() { return kOps; }

}  // namespace falaj::kernels
