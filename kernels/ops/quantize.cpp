// Affine quantisation: QuantizeLinear DequantizeLinear DynamicQuantizeLinear, per tensor, axis or block; MatMulInteger QLinearMatMul.
#include "kernels/ops/quantize.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/convert.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels {

Status check_zero_point(const OpCall& call, std::size_t input, std::size_t of, std::int64_t each) {
  if (!call.has(input)) return {};
  FALAJ_TRY(check_same_dtype(call, input, of));
  auto n = call.in(input).shape.elements();
  if (n == 1 || n == each) return {};
  return invalid(format("zero point '{}' has {} elements; it must have 1 or {}", call.node.inputs[input], n, each));
}
std::vector<double> numbers_or_zero(const std::vector<ValueType>& types, std::size_t input, const Io& io) {
  if (input >= types.size() || types[input].dtype == DType::undefined) return {0};
  std::vector<double> values(static_cast<std::size_t>(types[input].shape.elements()));
  to_doubles(types[input].dtype, io.in[input], values.data(), static_cast<std::int64_t>(values.size()));
  return values;
}
std::vector<double> dequantised(const ValueType& type, const void* x, const std::vector<double>& zero) {
  std::vector<double> values(static_cast<std::size_t>(type.shape.elements()));
  to_doubles(type.dtype, x, values.data(), static_cast<std::int64_t>(values.size()));
  for (double& v : values) v -= zero[0];
  return values;
}

namespace {

// Which scale belongs to which element: strides over the scales, with blocks along one axis.
struct Granularity {
  Shape shape;
  Strides scale{};  // offset of the scale for each step of a dimension
  std::size_t axis = 0;
  std::int64_t block = 1;  // elements of the axis that share a scale

  template <class F>
  void each(F f) const {  // f(element, scale)
    std::array<std::int64_t, kRankMax> index{};
    std::int64_t n = shape.elements();
    for (std::int64_t i = 0; i < n; ++i) {
      std::int64_t at = 0;
      for (std::size_t d = 0; d < shape.rank(); ++d) at += (d == axis ? index[d] / block : index[d]) * scale[d];
      f(i, at);
      for (std::size_t d = shape.rank(); d-- > 0;) {
        if (++index[d] < shape[d]) break;
        index[d] = 0;
      }
    }
  }
};
Result<Granularity> granularity(const OpCall& call) {
  Granularity g;
  g.shape = call.in(0).shape;
  const Shape& scale = call.in(1).shape;
  if (call.has(2) && call.in(2).shape.elements() != scale.elements())
    return invalid(format("zero points {} must have the shape of the scales {}", to_string(call.in(2).shape), to_string(scale)));
  if (scale.elements() == 1 && scale.rank() <= 1) return g;
  FALAJ_ASSIGN(auto axis, attr_int(call.node, "axis", 1));
  FALAJ_ASSIGN(auto block, attr_int(call.node, "block_size", 0));
  FALAJ_ASSIGN(axis, normal_axis(axis, g.shape.rank()));
  g.axis = static_cast<std::size_t>(axis);
  std::int64_t size = g.shape[g.axis];
  if (scale.rank() == 1 && block == 0) {
    if (scale[0] != size) return invalid(format("{} scales for axis {} of {}", scale[0], axis, to_string(g.shape)));
    g.scale[g.axis] = 1;
    return g;
  }
  if (scale.rank() != g.shape.rank() || block < 0) return invalid(format("scales {} do not fit {}", to_string(scale), to_string(g.shape)));
  for (std::size_t d = 0; d < scale.rank(); ++d) {
    if (d != g.axis && scale[d] != g.shape[d]) return invalid(format("scales {} do not fit {}", to_string(scale), to_string(g.shape)));
  }
  std::int64_t parts = std::max<std::int64_t>(scale[g.axis], 1);
  g.block = block > 0 ? block : (size + parts - 1) / parts;
  if ((size + g.block - 1) / std::max<std::int64_t>(g.block, 1) != scale[g.axis]) return invalid("the blocks do not fit the scales");
  g.scale = row_major(scale);
  return g;
}

bool is_quantised(DType d) { return is_float8(d) || (is_int(d) && size_of(d) <= 2); }

Status infer_quantize(InferCall& call) {
  if (!is_float(call.in(0).dtype) && call.in(0).dtype != DType::i32) return invalid("the input must be float or int32");
  if (!is_float(call.in(1).dtype) && call.in(1).dtype != DType::i32) return invalid("the scale must be float");
  FALAJ_ASSIGN([[maybe_unused]] auto g, granularity(call));
  FALAJ_ASSIGN(auto code, attr_int(call.node, "output_dtype", 0));
  DType out = call.has(2) ? call.in(2).dtype : (code != 0 ? dtype_of_code(code) : DType::u8);
  if (code != 0 && dtype_of_code(code) != out) return invalid("output_dtype is not the type of the zero point");
  if (!is_quantised(out)) return Error{ErrorCode::unimplemented, format("quantised values of type {} are not supported", to_string(out))};
  return set_output(call, 0, out, call.in(0).shape);
}

std::pair<double, double> range_of(DType dtype) {
  switch (dtype) {
    case DType::i8:
      return {-128, 127};
    case DType::u8:
      return {0, 255};
    case DType::i16:
      return {-32768, 32767};
    case DType::u16:
      return {0, 65535};
    case DType::i4:
      return {-8, 7};
    case DType::u4:
      return {0, 15};
    default:
      return {std::numeric_limits<double>::lowest(), std::numeric_limits<double>::max()};
  }
}

// The quotient is taken in the scale's precision (f32, or less), as the standard's reference does: ties fall as they do there.
Result<KernelPtr> make_quantize(const KernelCall& c) {
  FALAJ_ASSIGN(auto g, granularity(c));
  FALAJ_ASSIGN(auto saturate, attr_int(c.node, "saturate", 1));
  std::vector<ValueType> types(c.inputs.begin(), c.inputs.end());
  for (auto& type : types) type.constant = nullptr;
  return make_kernel([g, types, out = c.outputs[0].dtype, saturate = saturate != 0](const Io& io) {
    auto x = numbers_or_zero(types, 0, io);
    auto scale = numbers_or_zero(types, 1, io);
    auto zero = numbers_or_zero(types, 2, io);
    auto [low, high] = range_of(out);
    g.each([&](std::int64_t i, std::int64_t s) {
      auto at = static_cast<std::size_t>(i);
      auto k = static_cast<std::size_t>(s);
      double v =
          types[1].dtype == DType::f64 ? x[at] / scale[k] : static_cast<double>(static_cast<float>(x[at]) / static_cast<float>(scale[k]));
      if (!is_float8(out)) v = std::clamp(std::nearbyint(v) + zero[zero.size() == 1 ? 0 : k], low, high);
      x[at] = v;
    });
    convert_elements(DType::f64, x.data(), out, io.out[0], static_cast<std::int64_t>(x.size()), saturate);
  });
}

Status infer_dequantize(InferCall& call) {
  if (!is_quantised(call.in(0).dtype) && call.in(0).dtype != DType::i32)
    return invalid(format("the input is {}; it must be quantised values", to_string(call.in(0).dtype)));
  FALAJ_TRY(check_float(call, 1));
  if (call.has(2)) FALAJ_TRY(check_same_dtype(call, 0, 2));
  FALAJ_ASSIGN([[maybe_unused]] auto g, granularity(call));
  return set_output(call, 0, call.in(1).dtype, call.in(0).shape);
}
Result<KernelPtr> make_dequantize(const KernelCall& c) {
  FALAJ_ASSIGN(auto g, granularity(c));
  std::vector<ValueType> types(c.inputs.begin(), c.inputs.end());
  for (auto& type : types) type.constant = nullptr;
  return make_kernel([g, types, out = c.outputs[0].dtype](const Io& io) {
    auto x = numbers_or_zero(types, 0, io);
    auto scale = numbers_or_zero(types, 1, io);
    auto zero = numbers_or_zero(types, 2, io);
    g.each([&](std::int64_t i, std::int64_t s) {
      auto k = static_cast<std::size_t>(s);
      double& v = x[static_cast<std::size_t>(i)];
      v = (v - zero[zero.size() == 1 ? 0 : k]) * scale[k];
    });
    convert_elements(DType::f64, x.data(), out, io.out[0], static_cast<std::int64_t>(x.size()));
  });
}

Status infer_dynamic(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::f32}));
  FALAJ_TRY(set_output(call, 0, DType::u8, call.in(0).shape));
  FALAJ_TRY(set_output(call, 1, DType::f32, {}));
  return set_output(call, 2, DType::u8, {});
}
Result<KernelPtr> make_dynamic(const KernelCall& c) {
  return make_kernel([n = c.in(0).shape.elements(), outputs = c.outputs.size()](const Io& io) {
    const auto* x = io.input<float>(0);
    float low = 0;
    float high = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      low = std::min(low, x[i]);
      high = std::max(high, x[i]);
    }
    float scale = (high - low) / 255.0F;
    float zero = scale == 0 ? 0 : std::nearbyint(std::clamp((0 - low) / scale, 0.0F, 255.0F));
    for (std::int64_t i = 0; i < n; ++i) {
      float v = scale == 0 ? zero : std::nearbyint(x[i] / scale) + zero;
      io.output<std::uint8_t>(0)[i] = static_cast<std::uint8_t>(std::clamp(v, 0.0F, 255.0F));
    }
    if (outputs > 1 && io.out[1] != nullptr) *io.output<float>(1) = scale;
    if (outputs > 2 && io.out[2] != nullptr) *io.output<std::uint8_t>(2) = static_cast<std::uint8_t>(zero);
  });
}

// --- products of integers -------------------------------------------------------------------------------------------------------

// Types as MatMul sees them, for its shape rules.
struct Product {
  std::int64_t m = 0, k = 0, n = 0;
  Shape out, batch;
  Strides a{}, b{};
};
Result<Product> matrix_product(const Shape& a_given, const Shape& b_given) {
  Shape a = a_given;
  Shape b = b_given;
  if (a.rank() == 0 || b.rank() == 0) return invalid("the operands of a product need dimensions");
  bool row = a.rank() == 1;
  bool column = b.rank() == 1;
  if (row) a.insert(0, 1);
  if (column) b.push_back(1);
  Product p;
  p.m = a[a.rank() - 2];
  p.k = a.back();
  p.n = b.back();
  if (b[b.rank() - 2] != p.k) return invalid(format("{} and {} cannot be multiplied", to_string(a_given), to_string(b_given)));
  Shape a_batch(a.dims().first(a.rank() - 2));
  Shape b_batch(b.dims().first(b.rank() - 2));
  FALAJ_ASSIGN(p.batch, broadcast(a_batch, b_batch));
  p.a = broadcast_strides(a_batch, p.batch);
  p.b = broadcast_strides(b_batch, p.batch);
  p.out = p.batch;
  if (!row) p.out.push_back(p.m);
  if (!column) p.out.push_back(p.n);
  return p;
}
void multiply(const Product& p, const double* a, const double* b, double* y) {
  std::int64_t number = 0;
  Walk<2>(p.batch, {p.a, p.b})([&](const auto& at, std::int64_t count, const auto& step) {
    for (std::int64_t i = 0; i < count; ++i, ++number) {
      const double* left = a + (at[0] + i * step[0]) * p.m * p.k;
      const double* right = b + (at[1] + i * step[1]) * p.k * p.n;
      double* to = y + number * p.m * p.n;
      std::fill_n(to, p.m * p.n, 0.0);
      for (std::int64_t r = 0; r < p.m; ++r) {
        for (std::int64_t k = 0; k < p.k; ++k) {
          for (std::int64_t c = 0; c < p.n; ++c) to[r * p.n + c] += left[r * p.k + k] * right[k * p.n + c];
        }
      }
    }
  });
}
// Values less their zero points: one for all, one for each row (of the left) or column (of the right).
std::vector<double> shifted(const ValueType& type, const void* x, const std::vector<double>& zero, bool rows) {
  auto values = dequantised(type, x, {0});
  std::size_t width = type.shape.rank() == 0 ? 1 : static_cast<std::size_t>(type.shape.back());
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] -= zero.size() == 1 ? zero[0] : zero[(rows ? i / width : i % width) % zero.size()];
  return values;
}
Status check_operands(const OpCall& call, std::size_t a, std::size_t b, std::size_t a_zero, std::size_t b_zero) {
  FALAJ_TRY(check_dtype(call, a, {DType::u8, DType::i8}));
  FALAJ_TRY(check_dtype(call, b, {DType::u8, DType::i8}));
  const Shape& left = call.in(a).shape;
  FALAJ_TRY(check_zero_point(call, a_zero, a, left.rank() < 2 ? 1 : left[left.rank() - 2]));
  return check_zero_point(call, b_zero, b, call.in(b).shape.rank() < 2 ? 1 : call.in(b).shape.back());
}

Status infer_matmul_integer(InferCall& call) {
  FALAJ_TRY(check_operands(call, 0, 1, 2, 3));
  FALAJ_ASSIGN(auto p, matrix_product(call.in(0).shape, call.in(1).shape));
  return set_output(call, 0, DType::i32, p.out);
}
Result<KernelPtr> make_matmul_integer(const KernelCall& c) {
  FALAJ_ASSIGN(auto p, matrix_product(c.in(0).shape, c.in(1).shape));
  std::vector<ValueType> types(c.inputs.begin(), c.inputs.end());
  for (auto& type : types) type.constant = nullptr;
  return make_kernel([p, types](const Io& io) {
    auto a = shifted(types[0], io.in[0], numbers_or_zero(types, 2, io), true);
    auto b = shifted(types[1], io.in[1], numbers_or_zero(types, 3, io), false);
    std::vector<double> y(static_cast<std::size_t>(p.out.elements()));
    multiply(p, a.data(), b.data(), y.data());
    convert_elements(DType::f64, y.data(), DType::i32, io.out[0], static_cast<std::int64_t>(y.size()));
  });
}

// a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero
Status infer_qlinear_matmul(InferCall& call) {
  FALAJ_TRY(check_operands(call, 0, 3, 2, 5));
  FALAJ_TRY(check_dtype(call, 7, {DType::u8, DType::i8}));
  for (std::size_t i : {1U, 4U, 6U}) FALAJ_TRY(check_float(call, i));
  if (call.in(1).shape.elements() != 1 || call.in(6).shape.elements() != 1 || call.in(7).shape.elements() != 1)
    return Error{ErrorCode::unimplemented, "scales for each row are not supported"};
  std::int64_t scales = call.in(4).shape.elements();
  if (scales != 1 && scales != call.in(3).shape.back()) return invalid("the scales of b must be one, or one for each column");
  FALAJ_ASSIGN(auto p, matrix_product(call.in(0).shape, call.in(3).shape));
  return set_output(call, 0, call.in(7).dtype, p.out);
}
Result<KernelPtr> make_qlinear_matmul(const KernelCall& c) {
  FALAJ_ASSIGN(auto p, matrix_product(c.in(0).shape, c.in(3).shape));
  std::vector<ValueType> types(c.inputs.begin(), c.inputs.end());
  for (auto& type : types) type.constant = nullptr;
  return make_kernel([p, types, out = c.outputs[0].dtype](const Io& io) {
    auto a = shifted(types[0], io.in[0], numbers_or_zero(types, 2, io), true);
    auto b = shifted(types[3], io.in[3], numbers_or_zero(types, 5, io), false);
    std::vector<double> y(static_cast<std::size_t>(p.out.elements()));
    multiply(p, a.data(), b.data(), y.data());
    double a_scale = numbers_or_zero(types, 1, io)[0];
    auto b_scale = numbers_or_zero(types, 4, io);
    double y_scale = numbers_or_zero(types, 6, io)[0];
    double zero = numbers_or_zero(types, 7, io)[0];
    for (std::size_t i = 0; i < y.size(); ++i) {
      double scale = a_scale * b_scale[b_scale.size() == 1 ? 0 : i % static_cast<std::size_t>(p.n)] / y_scale;
      y[i] = std::nearbyint(y[i] * scale) + zero;
    }
    convert_elements(DType::f64, y.data(), out, io.out[0], static_cast<std::int64_t>(y.size()));
  });
}

constexpr OpDef kOps[] = {
    {kOnnx, "QuantizeLinear", 2, 3, 1, 1, infer_quantize, make_quantize},
    {kOnnx, "DequantizeLinear", 2, 3, 1, 1, infer_dequantize, make_dequantize},
    {kOnnx, "DynamicQuantizeLinear", 1, 1, 1, 3, infer_dynamic, make_dynamic},
    {kOnnx, "MatMulInteger", 2, 4, 1, 1, infer_matmul_integer, make_matmul_integer},
    {kOnnx, "QLinearMatMul", 8, 8, 1, 1, infer_qlinear_matmul, make_qlinear_matmul},
};

}  // namespace

std::span<const OpDef> quantize_ops() { return kOps; }

}  // namespace falaj::kernels
