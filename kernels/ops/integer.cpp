// The reference of integer products, convolutions, sums and pools: plain loops over the rule that integer.hpp states.
#include "kernels/ops/integer.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/ops/channels_last.hpp"
#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

Result<std::int32_t> byte_attr(const Node& node, std::string_view name, std::int64_t fallback) {
  FALAJ_ASSIGN(const auto value, attr_int(node, name, fallback));
  if (value < 0 || value > 255) return invalid(format("attribute '{}' is {}; it must be 0 to 255", name, value));
  return static_cast<std::int32_t>(value);
}

float ended(const Requantise& end, float v) { return end.relu && !(v > 0.0F) ? 0.0F : v; }

Status set_result(InferCall& call, const Requantise& end, const Shape& shape) {
  return set_output(call, 0, end.to_u8 ? DType::u8 : DType::f32, shape);
}

// multiplier and offset, one for each result column; what is added, like the result.
Status check_ends(const OpCall& call, std::int64_t columns, const Shape& out) {
  for (const std::size_t i : {2U, 3U}) {
    FALAJ_TRY(check_dtype(call, i, {DType::f32}));
    if (call.in(i).shape != Shape{columns})
      return invalid(format("'{}' has shape {}; it must be [{}]", call.node.inputs[i], to_string(call.in(i).shape), columns));
  }
  if (!call.has(4)) return {};
  FALAJ_TRY(check_dtype(call, 4, {DType::u8}));
  if (call.in(4).shape != out)
    return invalid(format("what is added has shape {}; it must be {}", to_string(call.in(4).shape), to_string(out)));
  return {};
}

struct Ends {
  Requantise end;
  const float* multiplier;
  const float* offset;
  const std::uint8_t* addend;
  void* y;
  Ends(const Requantise& e, const Io& io)
      : end(e),
        multiplier(io.input<float>(2)),
        offset(io.input<float>(3)),
        addend(e.has_addend ? io.input<std::uint8_t>(4) : nullptr),
        y(io.out[0]) {}
  void put(std::int64_t at, std::int64_t column, std::int32_t sum) const {
    float first = offset[column];
    if (addend != nullptr) first = std::fma(static_cast<float>(addend[at] - end.addend_zero), end.addend_scale, first);
    const float v = std::fma(static_cast<float>(sum), multiplier[column], first);
    if (end.to_u8) {
      static_cast<std::uint8_t*>(y)[at] = requantised(end, v);
    } else {
      static_cast<float*>(y)[at] = ended(end, v);
    }
  }
};

Status infer_matmul(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::u8}));
  FALAJ_TRY(check_dtype(call, 1, {DType::i8}));
  FALAJ_ASSIGN(const auto spec, integer_product(call));
  Shape out = call.in(0).shape;
  out[out.rank() - 1] = spec.n;
  FALAJ_TRY(check_ends(call, spec.n, out));
  return set_result(call, spec.end, out);
}
Result<KernelPtr> make_matmul(const KernelCall& call) {
  FALAJ_ASSIGN(const auto spec, integer_product(call));
  return make_kernel([spec](const Io& io) {
    const auto* x = io.input<std::uint8_t>(0);
    const auto* w = io.input<std::int8_t>(1);
    const Ends ends(spec.end, io);
    for (std::int64_t i = 0; i < spec.m; ++i) {
      for (std::int64_t j = 0; j < spec.n; ++j) {
        std::int32_t sum = 0;
        for (std::int64_t k = 0; k < spec.k; ++k) sum += (x[i * spec.k + k] - spec.x_zero) * w[k * spec.w_row + j * spec.w_col];
        ends.put(i * spec.n + j, j, sum);
      }
    }
  });
}

Status infer_conv(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::u8}));
  FALAJ_TRY(check_dtype(call, 1, {DType::i8}));
  FALAJ_ASSIGN(const auto spec, integer_conv(call));
  const Shape out = channels_last(conv_shape(spec.conv));
  FALAJ_TRY(check_ends(call, spec.conv.maps, out));
  return set_result(call, spec.end, out);
}
Result<KernelPtr> make_conv(const KernelCall& call) {
  FALAJ_ASSIGN(const auto spec, integer_conv(call));
  return make_kernel([spec](const Io& io) {
    const ConvSpec& s = spec.conv;
    const std::int64_t depth = s.channels / s.groups;
    const std::int64_t share = s.maps / s.groups;
    const std::int64_t places = s.window.kernel_elements();
    const std::int64_t out = s.window.out_elements();
    const auto* w = io.input<std::int8_t>(1);
    const Ends ends(spec.end, io);
    std::vector<Meeting> met;
    for (std::int64_t pixel = 0; pixel < s.batch * out; ++pixel) {
      meetings(s.window, pixel % out, met);
      const auto* x = io.input<std::uint8_t>(0) + pixel / out * s.window.in_elements() * s.channels;
      for (std::int64_t m = 0; m < s.maps; ++m) {
        std::int32_t sum = 0;
        for (const Meeting& at : met) {
          const auto* from = x + at.in * s.channels + m / share * depth;
          for (std::int64_t c = 0; c < depth; ++c) sum += (from[c] - spec.x_zero) * w[(m * depth + c) * places + at.kernel];
        }
        ends.put(pixel * s.maps + m, m, sum);
      }
    }
  });
}

Status infer_add(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::u8}));
  FALAJ_TRY(check_dtype(call, 1, {DType::u8}));
  FALAJ_ASSIGN([[maybe_unused]] const auto spec, integer_add(call));
  if (call.in(0).shape != call.in(1).shape)
    return invalid(format("{} and {} must be the same", to_string(call.in(0).shape), to_string(call.in(1).shape)));
  return set_output(call, 0, DType::u8, call.in(0).shape);
}
Result<KernelPtr> make_add(const KernelCall& call) {
  FALAJ_ASSIGN(const auto spec, integer_add(call));
  return make_kernel([spec, n = call.in(0).shape.elements()](const Io& io) {
    const auto* a = io.input<std::uint8_t>(0);
    const auto* b = io.input<std::uint8_t>(1);
    auto* y = io.output<std::uint8_t>(0);
    for (std::int64_t i = 0; i < n; ++i) {
      const float second = static_cast<float>(b[i] - spec.b_zero) * spec.b_scale;
      y[i] = requantised(spec.end, std::fma(static_cast<float>(a[i] - spec.a_zero), spec.a_scale, second));
    }
  });
}

Status infer_max_pool(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::u8}));
  if (call.in(0).shape.rank() != 4) return invalid(format("{} must be [N, H, W, C]", to_string(call.in(0).shape)));
  FALAJ_ASSIGN(const auto window, integer_window(call));
  const Shape& in = call.in(0).shape;
  return set_output(call, 0, DType::u8, {in[0], window.out[0], window.out[1], in[3]});
}
Result<KernelPtr> make_max_pool(const KernelCall& call) {
  FALAJ_ASSIGN(auto window, integer_window(call));
  return make_kernel([window, in = call.in(0).shape](const Io& io) {
    const std::int64_t channels = in[3];
    const std::int64_t out = window.out_elements();
    std::vector<Meeting> met;
    for (std::int64_t pixel = 0; pixel < in[0] * out; ++pixel) {
      meetings(window, pixel % out, met);
      const auto* x = io.input<std::uint8_t>(0) + pixel / out * window.in_elements() * channels;
      auto* y = io.output<std::uint8_t>(0) + pixel * channels;
      std::fill_n(y, channels, std::uint8_t{0});
      for (const Meeting& at : met) {
        for (std::int64_t c = 0; c < channels; ++c) y[c] = std::max(y[c], x[at.in * channels + c]);
      }
    }
  });
}

Status infer_average(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::u8}));
  FALAJ_ASSIGN([[maybe_unused]] const auto end, requantise_of(call, kNoFill));
  const Shape& in = call.in(0).shape;
  if (in.rank() != 4) return invalid(format("{} must be [N, H, W, C]", to_string(in)));
  if (in[1] * in[2] > kDepthMax) return Error{ErrorCode::unimplemented, "a plane of more than 65536 places"};
  return set_output(call, 0, DType::u8, {in[0], 1, 1, in[3]});
}
Result<KernelPtr> make_average(const KernelCall& call) {
  FALAJ_ASSIGN(const auto end, requantise_of(call, kNoFill));
  FALAJ_ASSIGN(const auto x_zero, byte_attr(call.node, "x_zero", 0));
  FALAJ_ASSIGN(const auto scale, attr_float(call.node, "scale"));
  return make_kernel([end, x_zero, scale = static_cast<float>(scale), in = call.in(0).shape](const Io& io) {
    const std::int64_t places = in[1] * in[2];
    for (std::int64_t n = 0; n < in[0]; ++n) {
      for (std::int64_t c = 0; c < in[3]; ++c) {
        std::int32_t sum = 0;
        for (std::int64_t p = 0; p < places; ++p) sum += io.input<std::uint8_t>(0)[(n * places + p) * in[3] + c] - x_zero;
        io.output<std::uint8_t>(0)[n * in[3] + c] = requantised(end, static_cast<float>(sum) * scale);
      }
    }
  });
}

Status infer_quantize(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::f32}));
  FALAJ_TRY(check_dtype(call, 1, {DType::f32}));
  FALAJ_ASSIGN([[maybe_unused]] const auto end, requantise_of(call, kNoFill));
  if (call.in(0).shape.rank() != 4 || call.in(1).shape.elements() != 1) return invalid("x must be [N, C, H, W], the scale one number");
  return set_output(call, 0, DType::u8, channels_last(call.in(0).shape));
}
Result<KernelPtr> make_quantize(const KernelCall& call) {
  FALAJ_ASSIGN(const auto end, requantise_of(call, kNoFill));
  return make_kernel([end, in = call.in(0).shape](const Io& io) {
    const float scale = *io.input<float>(1);
    const std::int64_t places = in[2] * in[3];
    const float* x = io.input<float>(0);
    for (std::int64_t i = 0; i < in[0] * in[1]; ++i) {
      auto* y = io.output<std::uint8_t>(0) + i / in[1] * places * in[1] + i % in[1];
      for (std::int64_t p = 0; p < places; ++p) y[p * in[1]] = requantised(end, *x++ / scale);
    }
  });
}

constexpr OpDef kOps[] = {
    {kFalaj, "QMatMul", 4, 5, 1, 1, infer_matmul, make_matmul},
    {kFalaj, "QConv", 4, 5, 1, 1, infer_conv, make_conv},
    {kFalaj, "QAdd", 2, 2, 1, 1, infer_add, make_add, nullptr, Placement::in_place},
    {kFalaj, "QMaxPool", 1, 1, 1, 1, infer_max_pool, make_max_pool},
    {kFalaj, "QGlobalAveragePool", 1, 1, 1, 1, infer_average, make_average},
    {kFalaj, "Quantize", 2, 2, 1, 1, infer_quantize, make_quantize},
};

}  // namespace

std::span<const OpDef> integer_ops() { return kOps; }

std::uint8_t requantised(const Requantise& end, float v) {
  v = v > end.low ? v : end.low;
  v = v < end.high ? v : end.high;
  return static_cast<std::uint8_t>(static_cast<std::int32_t>(std::nearbyint(v)) + end.y_zero);
}

Result<Requantise> requantise_of(const OpCall& call, std::size_t addend) {
  Requantise end;
  FALAJ_ASSIGN(const auto to, attr_int(call.node, "to", code_of(DType::u8)));
  const DType result = dtype_of_code(to);
  if (result != DType::u8 && result != DType::f32) return invalid(format("results are uint8 or float32, not {}", to_string(result)));
  end.to_u8 = result == DType::u8;
  FALAJ_ASSIGN(const auto relu, attr_int(call.node, "relu", 0));
  end.relu = relu != 0;
  FALAJ_ASSIGN(end.y_zero, byte_attr(call.node, "y_zero", 0));
  FALAJ_ASSIGN(const auto low, byte_attr(call.node, "low", 0));
  FALAJ_ASSIGN(const auto high, byte_attr(call.node, "high", 255));
  end.low = static_cast<float>(low - end.y_zero);
  end.high = static_cast<float>(high - end.y_zero);
  end.has_addend = call.has(addend);
  FALAJ_ASSIGN(const auto scale, attr_float(call.node, "addend_scale", 1.0));
  end.addend_scale = static_cast<float>(scale);
  FALAJ_ASSIGN(end.addend_zero, byte_attr(call.node, "addend_zero", 0));
  return end;
}

Result<IntegerProduct> integer_product(const OpCall& call) {
  IntegerProduct p;
  const Shape& x = call.in(0).shape;
  const Shape& w = call.in(1).shape;
  if (x.empty() || w.rank() != 2) return invalid(format("{} and {} cannot be multiplied", to_string(x), to_string(w)));
  FALAJ_ASSIGN(const auto transposed, attr_int(call.node, "transB", 0));
  p.k = x.back();
  p.m = x.elements(0, x.rank() - 1);
  p.n = w[transposed != 0 ? 0 : 1];
  p.w_row = transposed != 0 ? 1 : w[1];
  p.w_col = transposed != 0 ? w[1] : 1;
  if (w[transposed != 0 ? 1 : 0] != p.k) return invalid(format("{} and {} cannot be multiplied", to_string(x), to_string(w)));
  if (p.k > kDepthMax) return Error{ErrorCode::unimplemented, format("{} terms in a sum; at most {} are exact", p.k, kDepthMax)};
  FALAJ_ASSIGN(p.x_zero, byte_attr(call.node, "x_zero", 0));
  FALAJ_ASSIGN(p.end, requantise_of(call, 4));
  return p;
}

Result<IntegerConv> integer_conv(const OpCall& call) {
  IntegerConv c;
  std::array<ValueType, 2> types = {call.in(0), call.in(1)};
  types[0].shape = channels_first(types[0].shape);
  FALAJ_ASSIGN(c.conv, conv_spec(OpCall{call.node, types, call.opset}, 0, 1));
  const std::int64_t terms = c.conv.channels / c.conv.groups * c.conv.window.kernel_elements();
  if (c.conv.window.rank() != 2) return Error{ErrorCode::unimplemented, "only two spatial dimensions"};
  if (terms > kDepthMax) return Error{ErrorCode::unimplemented, format("{} terms in a sum; at most {} are exact", terms, kDepthMax)};
  FALAJ_ASSIGN(c.x_zero, byte_attr(call.node, "x_zero", 0));
  FALAJ_ASSIGN(c.end, requantise_of(call, 4));
  return c;
}

Result<IntegerAdd> integer_add(const OpCall& call) {
  IntegerAdd a;
  FALAJ_ASSIGN(a.a_zero, byte_attr(call.node, "a_zero", 0));
  FALAJ_ASSIGN(a.b_zero, byte_attr(call.node, "b_zero", 0));
  FALAJ_ASSIGN(const auto first, attr_float(call.node, "a_scale"));
  FALAJ_ASSIGN(const auto second, attr_float(call.node, "b_scale"));
  a.a_scale = static_cast<float>(first);
  a.b_scale = static_cast<float>(second);
  FALAJ_ASSIGN(a.end, requantise_of(call, kNoFill));
  return a;
}

Result<Window> integer_window(const OpCall& call) {
  const Shape first = channels_first(call.in(0).shape);
  FALAJ_ASSIGN(const auto kernel, attr_ints(call.node, "kernel_shape"));
  return sliding_window(call, first.dims().subspan(2), kernel);
}

}  // namespace falaj::kernels
