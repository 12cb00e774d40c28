// Ops on 8-bit integers, of ai.falaj: what kernels/integers.cpp makes of quantised graphs. Images are [N, H, W, C].
//
//   QMatMul(x u8[..., K], w i8[K, N], multiplier f32[N], offset f32[N], addend u8[like y]?) -> y u8 or f32 [..., N]   (transB: w [N, K])
//   QConv(x u8[N, H, W, C], w i8[M, C / group, kernel...], multiplier f32[M], offset f32[M], addend?) -> y [N, H', W', M]
//   QAdd(a u8, b u8[same]) -> y u8        QMaxPool(x u8) -> y u8        QGlobalAveragePool(x u8[N, H, W, C]) -> y u8[N, 1, 1, C]
//   Quantize(x f32[N, C, H, W], scale f32[]) -> y u8[N, H, W, C]: QuantizeLinear and the change of layout in one
//
// The rule, the same on every instruction set, bit for bit:
//   sum = sum over k of (x[k] - x_zero) * w[k]       exact, in 32 bits: at most kDepthMax terms
//   v   = fma(float(sum), multiplier, offset)        float() rounds to nearest even, as fma does, once
//         with an addend: v = fma(float(sum), multiplier, fma(float(addend - addend_zero), addend_scale, offset))
//   f32: y = v, or with `relu` v > 0 ? v : 0
//   u8:  y = to_int(clamp(v, low - y_zero, high - y_zero)) + y_zero, to_int rounding to nearest even
// For u8 the result's scale has been divided out of multiplier, offset and addend_scale; a Relu is low = y_zero. ONNX's own chain
// (DequantizeLinear, product in f32, QuantizeLinear) rounds several times on the way: it gives the same quantum or the next.
// QAdd: v = fma(float(a - a_zero), a_scale, float(b - b_zero) * b_scale), then as above.
// QGlobalAveragePool: v = float(sum of (x - x_zero)) * scale, then as above.
#pragma once
#include <cstdint>

#include "kernels/ops/conv.hpp"

namespace falaj::kernels {

constexpr std::int64_t kDepthMax = 1 << 16;  // 65536 * 255 * 128 < 2^31: no sum overflows

// What happens to a complete sum.
struct Requantise {
  bool to_u8 = true;
  bool has_addend = false;
  bool relu = false;  // of f32 results
  std::int32_t y_zero = 0;
  float low = 0, high = 255;  // less y_zero
  float addend_scale = 0;
  std::int32_t addend_zero = 0;
};
Result<Requantise> requantise_of(const OpCall& call, std::size_t addend);

struct IntegerProduct {
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t w_row = 0, w_col = 0;  // strides of w: w[k][n] is at k * w_row + n * w_col
  std::int32_t x_zero = 0;
  Requantise end;
};
Result<IntegerProduct> integer_product(const OpCall& call);

struct IntegerConv {
  ConvSpec conv;
  std::int32_t x_zero = 0;
  Requantise end;
};
Result<IntegerConv> integer_conv(const OpCall& call);

struct IntegerAdd {
  std::int32_t a_zero = 0, b_zero = 0;
  float a_scale = 1, b_scale = 1;
  Requantise end;
};
Result<IntegerAdd> integer_add(const OpCall& call);

// x [N, H, W, C] of QMaxPool as a window over its plane.
Result<Window> integer_window(const OpCall& call);

std::uint8_t requantised(const Requantise& end, float v);  // the last step of the rule

std::span<const OpDef> integer_ops();  // the family

}  // namespace falaj::kernels
