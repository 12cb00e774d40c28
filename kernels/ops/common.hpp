// What op families share: inference helpers, walks over broadcast operands, kernels from lambdas, dispatch on element types.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {

// The families; ops.cpp puts them into the one list.
std::span<const OpDef> arithmetic_ops();
std::span<const OpDef> activation_ops();
std::span<const OpDef> logic_ops();
std::span<const OpDef> matmul_ops();
std::span<const OpDef> halves_ops();
std::span<const OpDef> blocks_ops();
std::span<const OpDef> reduce_ops();
std::span<const OpDef> shape_ops();
std::span<const OpDef> slice_ops();
std::span<const OpDef> gather_ops();
std::span<const OpDef> softmax_ops();
std::span<const OpDef> attention_ops();
std::span<const OpDef> norm_ops();
std::span<const OpDef> loss_ops();
std::span<const OpDef> encoder_ops();
std::span<const OpDef> linear_ops();
std::span<const OpDef> svm_ops();
std::span<const OpDef> math_ops();
std::span<const OpDef> bits_ops();
std::span<const OpDef> scatter_ops();
std::span<const OpDef> layout_ops();
std::span<const OpDef> select_ops();
std::span<const OpDef> conv_ops();
std::span<const OpDef> pool_ops();
std::span<const OpDef> resize_ops();
std::span<const OpDef> region_ops();
std::span<const OpDef> recurrent_ops();
std::span<const OpDef> signal_ops();
std::span<const OpDef> quantize_ops();
std::span<const OpDef> channel_norm_ops();
std::span<const OpDef> criterion_ops();
std::span<const OpDef> update_ops();
std::span<const OpDef> einsum_ops();
std::span<const OpDef> text_ops();
std::span<const OpDef> sequence_ops();
std::span<const OpDef> control_ops();
std::span<const OpDef> tree_ops();

// --- inference ------------------------------------------------------------------------------------------------------------
Result<std::int64_t> normal_axis(std::int64_t axis, std::size_t rank);  // negative counts from the end; in [0, rank)
Result<Shape> broadcast(const Shape& a, const Shape& b);
// Shape of input 1 as it broadcasts to input 0: before opset 7 an attribute says at which axis it starts.
Shape aligned_second(const OpCall& call);
Status check_dtype(const OpCall& call, std::size_t input, std::initializer_list<DType> allowed);
Status check_same_dtype(const OpCall& call, std::size_t a, std::size_t b);
Status set_output(InferCall& call, std::size_t i, DType dtype, const Shape& shape);  // checks the size
// The integers of an input that must be known when the plan is made.
Result<std::vector<std::int64_t>> known_ints(const OpCall& call, std::size_t input, std::string_view what);
Result<double> known_scalar(const OpCall& call, std::size_t input, std::string_view what);
// Axes from input 1 (newer opsets) or the attribute `axes` (older ones), normalised and sorted; `given` tells whether there were any.
Result<std::vector<std::int64_t>> known_axes(const OpCall& call, std::size_t rank, bool& given);

Status infer_same(InferCall& call);     // output 0 like input 0, any dtype
Status infer_float(InferCall& call);    // the same, floats of any width
Status infer_numeric(InferCall& call);  // the same, numbers of any width
Status check_float(const OpCall& call, std::size_t input);
Status check_number(const OpCall& call, std::size_t input);
Status infer_like_second(InferCall& call);  // output 0 has the dtype of input 0 and the shape of input 1
Status infer_grad(InferCall& call);         // dy, then values: all inputs and outputs pairwise alike (output i like input i + 1)

// --- walks ----------------------------------------------------------------------------------------------------------------
using Strides = std::array<std::int64_t, kRankMax>;
Strides row_major(const Shape& shape);
Strides broadcast_strides(const Shape& operand, const Shape& out);  // 0 where the operand is repeated; operand must broadcast to out

// Visits all positions of `dims` in row-major order with the offsets of K operands; neighbouring dimensions that every operand
// walks evenly are joined. f(offsets, count, steps) is called for each innermost run.
template <std::size_t K>
class Walk {
 public:
  using Offsets = std::array<std::int64_t, K>;
  Walk(const Shape& dims, const std::array<Strides, K>& strides) {
    for (std::size_t d = 0; d < dims.rank(); ++d) {
      if (dims[d] == 1) continue;
      Offsets step;
      for (std::size_t k = 0; k < K; ++k) step[k] = strides[k][d];
      if (rank_ > 0 && joins(step, dims[d])) {
        size_[rank_ - 1] *= dims[d];
        step_[rank_ - 1] = step;
      } else {
        size_[rank_] = dims[d];
        step_[rank_++] = step;
      }
    }
    if (rank_ == 0) {
      size_[0] = 1;
      step_[0] = {};
      rank_ = 1;
    }
    empty_ = dims.elements() == 0;
  }

  template <class F>
  void operator()(F&& f) const {
    if (empty_) return;
    Offsets at{};
    std::array<std::int64_t, kRankMax> index{};
    const std::size_t last = rank_ - 1;
    while (true) {
      f(at, size_[last], step_[last]);
      std::size_t d = last;
      while (d-- > 0) {
        for (std::size_t k = 0; k < K; ++k) at[k] += step_[d][k];
        if (++index[d] < size_[d]) break;
        for (std::size_t k = 0; k < K; ++k) at[k] -= step_[d][k] * size_[d];
        index[d] = 0;
      }
      if (d == static_cast<std::size_t>(-1)) return;
    }
  }

 private:
  [[nodiscard]] bool joins(const Offsets& step, std::int64_t size) const {
    for (std::size_t k = 0; k < K; ++k) {
      if (step_[rank_ - 1][k] != step[k] * size) return false;
    }
    return true;
  }
  std::array<std::int64_t, kRankMax> size_{};
  std::array<Offsets, kRankMax> step_{};
  std::size_t rank_ = 0;
  bool empty_ = false;
};

// A walk over `out` by K operands that broadcast to it.
template <std::size_t K>
Walk<K> broadcast_walk(const Shape& out, const std::array<const Shape*, K>& operands) {
  std::array<Strides, K> strides;
  for (std::size_t k = 0; k < K; ++k) strides[k] = broadcast_strides(*operands[k], out);
  return Walk<K>(out, strides);
}

constexpr std::size_t kNoFill = static_cast<std::size_t>(-1);

// --- kernels --------------------------------------------------------------------------------------------------------------
template <class F>
class LambdaKernel final : public Kernel {
 public:
  LambdaKernel(F f, std::size_t scratch) : f_(std::move(f)), scratch_(scratch) {}
  void run(const Io& io) const override { f_(io); }
  [[nodiscard]] std::size_t scratch_bytes() const override { return scratch_; }

 private:
  F f_;
  std::size_t scratch_;
};
template <class F>
KernelPtr make_kernel(F f, std::size_t scratch = 0) {
  return std::make_unique<LambdaKernel<F>>(std::move(f), scratch);
}

Error no_kernel(DType dtype);

// make.template operator()<T>() for the T that dtype names, out of Ts; otherwise an error.
template <class... Ts, class F>
Result<KernelPtr> dispatch(DType dtype, F&& make) {
  Result<KernelPtr> result = no_kernel(dtype);
  static_cast<void>(((dtype == dtype_of<Ts> ? (result = make.template operator()<Ts>(), true) : false) || ...));
  return result;
}
template <class F>
Result<KernelPtr> dispatch_float(DType dtype, F&& make) {
  return dispatch<float, double>(dtype, std::forward<F>(make));
}
template <class F>
Result<KernelPtr> dispatch_numeric(DType dtype, F&& make) {
  return dispatch<float, double, std::int64_t, std::int32_t, std::uint64_t>(dtype, std::forward<F>(make));
}

// For ops that only move elements: a type of the right size stands for all of that size.
struct Raw16 {
  std::uint16_t bits;
};
template <class F>
Result<KernelPtr> dispatch_moving(DType dtype, F&& make) {
  switch (size_of(dtype)) {
    case 1:
      return make.template operator()<std::uint8_t>();
    case 2:
      return make.template operator()<Raw16>();
    case 4:
      return make.template operator()<std::uint32_t>();
    case 8:
      return make.template operator()<std::uint64_t>();
    default:
      break;
  }
  if (dtype == DType::string) return make.template operator()<std::string>();
  return no_kernel(dtype);
}

// y = f(x), elementwise.
template <class T, class F>
KernelPtr unary_kernel(const KernelCall& call, F f) {
  auto n = call.outputs[0].shape.elements();
  return make_kernel([n, f](const Io& io) {
    const T* x = io.input<T>(0);
    auto* y = io.output<decltype(f(T{}))>(0);
    for (std::int64_t i = 0; i < n; ++i) y[i] = f(x[i]);
  });
}

// y = f(a, b) with both operands broadcast to y.
template <class T, class F>
KernelPtr binary_kernel(const KernelCall& call, F f) {
  const Shape& out = call.outputs[0].shape;
  Shape second = aligned_second(call);
  auto walk = broadcast_walk<3>(out, {&out, &call.in(0).shape, &second});
  return make_kernel([walk, f](const Io& io) {
    const T* a = io.input<T>(0);
    const T* b = io.input<T>(1);
    auto* y = io.output<decltype(f(T{}, T{}))>(0);
    walk([&](const auto& at, std::int64_t n, const auto& step) {
      for (std::int64_t i = 0; i < n; ++i) y[at[0] + i * step[0]] = f(a[at[1] + i * step[1]], b[at[2] + i * step[2]]);
    });
  });
}

// y[i] = x[map[i]], or where map[i] is -1 the element at `fill` (null: zero, the empty string). Elements of any type.
Result<KernelPtr> mapped_kernel(DType dtype, std::vector<std::int64_t> map, std::size_t fill_input = kNoFill);
// An index of type i64 or i32.
inline std::int64_t index_at(const Io& io, std::size_t input, bool is_i64, std::int64_t i) {
  return is_i64 ? io.input<std::int64_t>(input)[i] : static_cast<std::int64_t>(io.input<std::int32_t>(input)[i]);
}
// A number attribute of a constant input, as doubles.
Result<std::vector<double>> known_numbers(const OpCall& call, std::size_t input, std::string_view what);

// Sizes around an axis: outer x axis x inner.
struct AxisSplit {
  std::int64_t outer, size, inner;
};
AxisSplit split_at(const Shape& shape, std::int64_t axis);

// Builders for gradients.
Attributes attr(std::string_view name, Attribute value);
// dy summed to the shape of the forward input i (skipped where it already has it).
std::string reduce_to_input(GradientCall& g, std::string dy, std::size_t i);

}  // namespace falaj::kernels
