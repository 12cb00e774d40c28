// Rows by index: Gather, OneHot, ai.onnx.ml ArrayFeatureExtractor, and Gather's gradient, which adds rows in the order of the indices
// and so gives the same bits every time.
#include <algorithm>

#include "kernels/ops/common.hpp"
#include "kernels/ops/move.hpp"

namespace falaj::kernels {
namespace {

Result<std::int64_t> gather_axis(const OpCall& call, std::size_t data) {
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", 0));
  return normal_axis(axis, call.in(data).shape.rank());
}

Shape gather_shape(const Shape& data, const Shape& indices, std::int64_t axis) {
  Shape out(data.dims().first(static_cast<std::size_t>(axis)));
  for (std::int64_t d : indices) out.push_back(d);
  for (std::size_t i = static_cast<std::size_t>(axis) + 1; i < data.rank(); ++i) out.push_back(data[i]);
  return out;
}

Status check_gather(const OpCall& call, std::size_t data, std::size_t indices) {
  FALAJ_TRY(check_dtype(call, indices, {DType::i64, DType::i32}));
  FALAJ_ASSIGN([[maybe_unused]] auto axis, gather_axis(call, data));
  if (call.in(data).shape.rank() + call.in(indices).shape.rank() > kRankMax + 1) return invalid("the result has too many dimensions");
  return {};
}

Status infer_gather(InferCall& call) {
  FALAJ_TRY(check_gather(call, 0, 1));
  FALAJ_ASSIGN(auto axis, gather_axis(call, 0));
  return set_output(call, 0, call.in(0).dtype, gather_shape(call.in(0).shape, call.in(1).shape, axis));
}

// Index i of a run, or -1 (reported) when it names no row.
template <class I>
std::int64_t checked(const Io& io, const I* indices, std::int64_t i, std::int64_t size) {
  auto at = static_cast<std::int64_t>(indices[i]);
  if (at < 0) at += size;
  if (at >= 0 && at < size) return at;
  io.fail(format("index {} at position {} is outside [0, {})", static_cast<std::int64_t>(indices[i]), i, size));
  return -1;
}

template <class T, class I>
KernelPtr gather_kernel(const AxisSplit& s, std::int64_t count) {
  return make_kernel([s, count](const Io& io) {
    const T* x = io.input<T>(0);
    const I* indices = io.input<I>(1);
    T* y = io.output<T>(0);
    for (std::int64_t o = 0; o < s.outer; ++o) {
      for (std::int64_t i = 0; i < count; ++i, y += s.inner) {
        std::int64_t at = checked(io, indices, i, s.size);
        if (at < 0) return;
        move_run(x + (o * s.size + at) * s.inner, 1, y, 1, s.inner);
      }
    }
  });
}
Result<KernelPtr> make_gather(const KernelCall& c) {
  FALAJ_ASSIGN(auto axis, gather_axis(c, 0));
  auto s = split_at(c.in(0).shape, axis);
  std::int64_t count = c.in(1).shape.elements();
  return dispatch_moving(c.in(0).dtype, [&]<class T>() {
    return c.in(1).dtype == DType::i64 ? gather_kernel<T, std::int64_t>(s, count) : gather_kernel<T, std::int32_t>(s, count);
  });
}

// dy, indices, data (for its shape).
Status infer_gather_grad(InferCall& call) {
  FALAJ_TRY(check_gather(call, 2, 1));
  FALAJ_ASSIGN(auto axis, gather_axis(call, 2));
  if (call.in(0).shape != gather_shape(call.in(2).shape, call.in(1).shape, axis))
    return invalid("the gradient does not fit the gathered rows");
  return set_output(call, 0, call.in(0).dtype, call.in(2).shape);
}
template <class T, class I>
KernelPtr gather_grad_kernel(const AxisSplit& s, std::int64_t count) {
  return make_kernel([s, count](const Io& io) {
    const T* dy = io.input<T>(0);
    const I* indices = io.input<I>(1);
    T* dx = io.output<T>(0);
    std::fill_n(dx, s.outer * s.size * s.inner, T{0});
    for (std::int64_t o = 0; o < s.outer; ++o) {
      for (std::int64_t i = 0; i < count; ++i, dy += s.inner) {
        std::int64_t at = checked(io, indices, i, s.size);
        if (at < 0) return;
        T* row = dx + (o * s.size + at) * s.inner;
        for (std::int64_t j = 0; j < s.inner; ++j) row[j] += dy[j];
      }
    }
  });
}
Result<KernelPtr> make_gather_grad(const KernelCall& c) {
  FALAJ_ASSIGN(auto axis, gather_axis(c, 2));
  auto s = split_at(c.in(2).shape, axis);
  std::int64_t count = c.in(1).shape.elements();
  return dispatch_float(c.in(0).dtype, [&]<class T>() {
    return c.in(1).dtype == DType::i64 ? gather_grad_kernel<T, std::int64_t>(s, count) : gather_grad_kernel<T, std::int32_t>(s, count);
  });
}
Status grad_gather(GradientCall& g) {
  if (g.wants(0)) g.set(0, g.add_falaj("GatherGrad", {g.dy(), g.input(1), g.input(0)}, g.node().attributes));
  return {};
}

// --- OneHot ---------------------------------------------------------------------------------------------------------------

Result<std::pair<std::int64_t, std::int64_t>> one_hot_axis_depth(const OpCall& call) {
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", -1));
  FALAJ_ASSIGN(axis, normal_axis(axis, call.in(0).shape.rank() + 1));
  FALAJ_ASSIGN(double depth, known_scalar(call, 1, "depth"));
  if (!(depth >= 1 && depth <= 1e9)) return invalid(format("a depth of {} is not possible", depth));
  return std::pair{axis, static_cast<std::int64_t>(depth)};
}
Status infer_one_hot(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::i64, DType::i32, DType::f32}));
  if (call.in(2).shape != Shape{2}) return invalid(format("values has shape {}; it must be [2]: off, on", to_string(call.in(2).shape)));
  if (call.in(0).shape.rank() == kRankMax) return invalid("the result has too many dimensions");
  FALAJ_ASSIGN(auto where, one_hot_axis_depth(call));
  Shape out = call.in(0).shape;
  out.insert(static_cast<std::size_t>(where.first), where.second);
  return set_output(call, 0, call.in(2).dtype, out);
}
template <class T, class I>
KernelPtr one_hot_kernel(const AxisSplit& s) {
  return make_kernel([s](const Io& io) {
    const I* indices = io.input<I>(0);
    const T* values = io.input<T>(2);
    T* y = io.output<T>(0);
    std::fill_n(y, s.outer * s.size * s.inner, values[0]);
    for (std::int64_t o = 0; o < s.outer; ++o) {
      for (std::int64_t i = 0; i < s.inner; ++i) {
        auto raw = indices[o * s.inner + i];
        if (!(raw >= static_cast<I>(-s.size) && raw < static_cast<I>(s.size))) continue;  // outside, or NaN: all off
        auto at = static_cast<std::int64_t>(raw);
        if (at < 0) at += s.size;
        y[(o * s.size + at) * s.inner + i] = values[1];
      }
    }
  });
}
Result<KernelPtr> make_one_hot(const KernelCall& c) {
  FALAJ_ASSIGN(auto where, one_hot_axis_depth(c));
  auto s = split_at(c.outputs[0].shape, where.first);
  return dispatch_moving(c.in(2).dtype, [&]<class T>() {
    switch (c.in(0).dtype) {
      case DType::i64:
        return one_hot_kernel<T, std::int64_t>(s);
      case DType::i32:
        return one_hot_kernel<T, std::int32_t>(s);
      default:
        return one_hot_kernel<T, float>(s);
    }
  });
}

// --- ArrayFeatureExtractor: columns by index ----------------------------------------------------------------------------------

Status infer_extract(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 1, {DType::i64}));
  Shape out = call.in(0).shape;
  if (out.rank() == 0) return invalid("a scalar has no columns");
  if (out.rank() == 1) out.insert(0, 1);
  out[out.rank() - 1] = call.in(1).shape.elements();
  return set_output(call, 0, call.in(0).dtype, out);
}
Result<KernelPtr> make_extract(const KernelCall& c) {
  AxisSplit s = split_at(c.in(0).shape, static_cast<std::int64_t>(c.in(0).shape.rank()) - 1);
  std::int64_t count = c.in(1).shape.elements();
  return dispatch_moving(c.in(0).dtype, [&]<class T>() { return gather_kernel<T, std::int64_t>(s, count); });
}
Status grad_extract(GradientCall& g) {
  if (g.input_type(0).shape.rank() < 2) return Error{ErrorCode::unimplemented, "no gradient for a vector: give it a batch dimension"};
  std::string flat =
      g.add("Reshape", {g.input(1), g.graph().add_initializer(g.graph().fresh("shape"), Tensor::vector<std::int64_t>({-1}))});
  if (g.wants(0)) g.set(0, g.add_falaj("GatherGrad", {g.dy(), flat, g.input(0)}, attr("axis", std::int64_t{-1})));
  return {};
}

constexpr OpDef kOps[] = {
    {kOnnx, "Gather", 2, 2, 1, 1, infer_gather, make_gather, grad_gather},
    {kOnnx, "OneHot", 3, 3, 1, 1, infer_one_hot, make_one_hot},
    {kOnnxMl, "ArrayFeatureExtractor", 2, 2, 1, 1, infer_extract, make_extract, grad_extract},
    {kFalaj, "GatherGrad", 3, 3, 1, 1, infer_gather_grad, make_gather_grad, nullptr, Placement::own, 0b100},
};

}  // namespace

std::span<const OpDef> gather_ops() { return kOps; }

}  // namespace falaj::kernels
