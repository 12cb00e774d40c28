// Integers and bits: Mod BitShift BitwiseAnd BitwiseOr BitwiseXor BitwiseNot, the boolean Xor, and the variadic Sum and Mean.
#include <algorithm>
#include <cmath>
#include <functional>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

Status infer_pair(InferCall& call) {
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN(Shape shape, broadcast(call.in(0).shape, aligned_second(call)));
  return set_output(call, 0, call.in(0).dtype, shape);
}
Status infer_integers(InferCall& call) {
  if (!is_int(call.in(0).dtype)) return invalid(format("input 0 is {}; it must be an integer type", to_string(call.in(0).dtype)));
  return infer_pair(call);
}
Status infer_mod(InferCall& call) {
  if (!is_int(call.in(0).dtype) && !is_float(call.in(0).dtype))
    return invalid(format("input 0 is {}; it must be a number", to_string(call.in(0).dtype)));
  return infer_pair(call);
}

// fmod = 0: the sign of the divisor (Python's %); fmod = 1: that of the dividend (C's). By zero: 0.
template <class T>
T modulo(T a, T b, bool truncated) {
  if constexpr (std::is_floating_point_v<T>) {
    T r = std::fmod(a, b);
    return !truncated && r != 0 && (r < 0) != (b < 0) ? r + b : r;
  } else {
    if (b == 0) return 0;
    if constexpr (std::is_signed_v<T>) {
      if (b == -1) return 0;
      T r = static_cast<T>(a % b);
      return !truncated && r != 0 && (r < 0) != (b < 0) ? static_cast<T>(r + b) : r;
    } else {
      return static_cast<T>(a % b);
    }
  }
}
Result<KernelPtr> make_mod(const KernelCall& c) {
  FALAJ_ASSIGN(auto fmod, attr_int(c.node, "fmod", 0));
  return dispatch<double, std::int64_t, std::uint64_t>(
      c.in(0).dtype, [&]<class T>() { return binary_kernel<T>(c, [fmod](T a, T b) -> T { return modulo(a, b, fmod != 0); }); });
}

// Bits beyond the width are gone; in their own types, for widening would keep what a left shift loses only until it is narrowed.
Result<KernelPtr> make_shift(const KernelCall& c) {
  FALAJ_ASSIGN(auto direction, attr_string(c.node, "direction"));
  if (direction != "LEFT" && direction != "RIGHT")
    return invalid(format("attribute 'direction' is '{}'; it must be LEFT or RIGHT", direction));
  return dispatch<std::uint8_t, std::uint16_t, std::uint32_t, std::uint64_t>(c.in(0).dtype, [&]<class T>() {
    return binary_kernel<T>(c, [left = direction == "LEFT"](T a, T b) -> T {
      if (b >= sizeof(T) * 8) return 0;
      auto wide = static_cast<std::uint64_t>(a);
      return static_cast<T>(left ? wide << b : wide >> b);
    });
  });
}

template <class F>
Result<KernelPtr> bitwise(const KernelCall& c, F f) {
  return dispatch<std::int32_t, std::int64_t, std::uint64_t>(
      c.in(0).dtype, [&]<class T>() { return binary_kernel<T>(c, [f](T a, T b) -> T { return f(a, b); }); });
}
Result<KernelPtr> make_bit_and(const KernelCall& c) { return bitwise(c, std::bit_and<>{}); }
Result<KernelPtr> make_bit_or(const KernelCall& c) { return bitwise(c, std::bit_or<>{}); }
Result<KernelPtr> make_bit_xor(const KernelCall& c) { return bitwise(c, std::bit_xor<>{}); }
Status infer_bit_not(InferCall& call) {
  if (!is_int(call.in(0).dtype)) return invalid(format("input 0 is {}; it must be an integer type", to_string(call.in(0).dtype)));
  return infer_same(call);
}
Result<KernelPtr> make_bit_not(const KernelCall& c) {
  return dispatch<std::int32_t, std::int64_t, std::uint64_t>(c.in(0).dtype,
                                                             [&]<class T>() { return unary_kernel<T>(c, [](T x) -> T { return ~x; }); });
}

Status infer_xor(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::boolean}));
  return infer_pair(call);
}
Result<KernelPtr> make_xor(const KernelCall& c) {
  return dispatch<bool>(c.in(0).dtype, [&]<class T>() { return binary_kernel<T>(c, [](T a, T b) -> bool { return a != b; }); });
}

// --- Sum, Mean of any number of operands -----------------------------------------------------------------------------------------

Status infer_total(InferCall& call) {
  FALAJ_TRY(infer_float(call));
  Shape shape = call.in(0).shape;
  for (std::size_t i = 1; i < call.inputs.size(); ++i) {
    FALAJ_TRY(check_same_dtype(call, 0, i));
    FALAJ_ASSIGN(shape, broadcast(shape, call.in(i).shape));
  }
  return set_output(call, 0, call.in(0).dtype, shape);
}
Result<KernelPtr> make_total(const KernelCall& c) {
  return dispatch<double>(c.in(0).dtype, [&]<class T>() {
    const Shape& out = c.outputs[0].shape;
    std::vector<Walk<2>> walks;
    for (const auto& input : c.inputs) walks.push_back(broadcast_walk<2>(out, {&out, &input.shape}));
    return make_kernel([walks, n = out.elements(), mean = c.node.op == "Mean"](const Io& io) {
      T* y = io.output<T>(0);
      std::fill_n(y, n, T{0});
      for (std::size_t k = 0; k < walks.size(); ++k) {
        walks[k]([&](const auto& at, std::int64_t m, const auto& step) {
          for (std::int64_t i = 0; i < m; ++i) y[at[0] + i * step[0]] += io.input<T>(k)[at[1] + i * step[1]];
        });
      }
      if (!mean) return;
      for (std::int64_t i = 0; i < n; ++i) y[i] /= static_cast<T>(walks.size());
    });
  });
}
Status grad_total(GradientCall& g) {
  std::string dy = g.dy();
  auto n = static_cast<double>(g.node().inputs.size());
  if (g.node().op == "Mean") dy = g.add("Mul", {dy, g.constant(1.0 / n, g.output_type(0).dtype)});
  for (std::size_t i = 0; i < g.node().inputs.size(); ++i) {
    if (g.wants(i)) g.set(i, reduce_to_input(g, dy, i));
  }
  return {};
}

constexpr OpDef kOps[] = {
    {kOnnx, "Mod", 2, 2, 1, 1, infer_mod, make_mod},
    {kOnnx, "BitShift", 2, 2, 1, 1, infer_integers, make_shift},
    {kOnnx, "BitwiseAnd", 2, 2, 1, 1, infer_integers, make_bit_and},
    {kOnnx, "BitwiseOr", 2, 2, 1, 1, infer_integers, make_bit_or},
    {kOnnx, "BitwiseXor", 2, 2, 1, 1, infer_integers, make_bit_xor},
    {kOnnx, "BitwiseNot", 1, 1, 1, 1, infer_bit_not, make_bit_not},
    {kOnnx, "Xor", 2, 2, 1, 1, infer_xor, make_xor},
    {kOnnx, "Sum", 1, kVariadic, 1, 1, infer_total, make_total, grad_total},
    {kOnnx, "Mean", 1, kVariadic, 1, 1, infer_total, make_total, grad_total},
};

}  // namespace

std::span<const OpDef> bits_ops() { return kOps; }

}  // namespace falaj::kernels
