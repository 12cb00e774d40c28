#include "kernels/convert.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace falaj::kernels {
namespace {

// A float of 16 bits with `kMantissa` bits after the point.
template <int kMantissa, int kExponentBits>
std::uint16_t small_float(double value) noexcept {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000U : 0U);
  constexpr auto kInfinity = static_cast<std::uint16_t>(((1U << kExponentBits) - 1U) << kMantissa);
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | kInfinity | (1U << (kMantissa - 1)));
  double size = std::abs(value);
  if (std::isinf(size)) return static_cast<std::uint16_t>(sign | kInfinity);
  int exponent = 0;
  std::frexp(size, &exponent);  // size = m * 2^exponent, m in [0.5, 1)
  int scale = std::max(exponent - 1, 1 - kBias);
  double units = std::nearbyint(std::ldexp(size, kMantissa - scale));  // rounds to nearest, ties to even
  auto bits = static_cast<std::uint32_t>(units);
  // A normal number's leading bit adds one to its exponent field, and so does a round up to the next power of two.
  std::uint32_t code = bits == 0 ? 0 : static_cast<std::uint32_t>((scale + kBias - 1)) * (1U << kMantissa) + bits;
  return static_cast<std::uint16_t>(sign | std::min<std::uint32_t>(code, kInfinity));
}

struct Float8 {
  std::array<double, 256> value{};
  unsigned largest = 0;  // code of the largest finite value
  bool infinity = false;
  std::uint8_t nan = 0;
  bool signed_zero = true;
};
Float8 make_float8(int mantissa, int bias, bool infinity, bool fnuz) {
  Float8 f;
  f.infinity = infinity;
  f.signed_zero = !fnuz;
  f.nan = fnuz ? 0x80 : 0x7F;
  for (unsigned code = 0; code < 256; ++code) {
    unsigned field = (code & 0x7FU) >> mantissa;
    unsigned part = code & ((1U << mantissa) - 1U);
    double size =
        field == 0 ? std::ldexp(part, 1 - bias - mantissa) : std::ldexp((1U << mantissa) + part, static_cast<int>(field) - bias - mantissa);
    bool top = field == (0x7FU >> mantissa);
    double special = std::numeric_limits<double>::quiet_NaN();
    if (fnuz) {
      if (code == 0x80) size = special;
    } else if (infinity && top) {
      size = part == 0 ? std::numeric_limits<double>::infinity() : special;
    } else if (!infinity && (code & 0x7FU) == 0x7FU) {
      size = special;
    }
    f.value[code] = (code & 0x80U) != 0 ? -size : size;
    if (code < 0x80 && std::isfinite(size)) f.largest = code;
  }
  return f;
}
const Float8& float8(DType dtype) {
  static const Float8 kE4m3fn = make_float8(3, 7, false, false);
  static const Float8 kE4m3fnuz = make_float8(3, 8, false, true);
  static const Float8 kE5m2 = make_float8(2, 15, true, false);
  static const Float8 kE5m2fnuz = make_float8(2, 16, false, true);
  switch (dtype) {
    case DType::f8e4m3fn:
      return kE4m3fn;
    case DType::f8e4m3fnuz:
      return kE4m3fnuz;
    case DType::f8e5m2:
      return kE5m2;
    default:
      return kE5m2fnuz;
  }
}

}  // namespace

double half_to_double(std::uint16_t bits) noexcept {
  unsigned field = (bits >> 10) & 0x1FU;
  unsigned part = bits & 0x3FFU;
  double size = field == 0 ? std::ldexp(part, -24) : std::ldexp(1024U + part, static_cast<int>(field) - 25);
  if (field == 31) size = part == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  return (bits & 0x8000U) != 0 ? -size : size;
}
std::uint16_t half_from_double(double value) noexcept { return small_float<10, 5>(value); }
double bfloat16_to_double(std::uint16_t bits) noexcept {
  return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16));
}
std::uint16_t bfloat16_from_double(double value) noexcept { return small_float<7, 8>(value); }
double float8_to_double(DType dtype, std::uint8_t bits) noexcept { return float8(dtype).value[bits]; }

std::uint8_t float8_from_double(DType dtype, double value, bool saturate) noexcept {
  const Float8& f = float8(dtype);
  auto sign = static_cast<std::uint8_t>(std::signbit(value) ? 0x80U : 0U);
  auto nan = static_cast<std::uint8_t>(f.signed_zero ? (sign | f.nan) : f.nan);
  if (std::isnan(value)) return nan;
  double size = std::abs(value);
  // Codes of positive values grow with the values.
  auto above = static_cast<unsigned>(std::upper_bound(f.value.begin(), f.value.begin() + f.largest + 1, size) - f.value.begin());
  unsigned code = above - 1;
  double step = f.value[f.largest] - f.value[f.largest - 1];
  if (code == f.largest && size >= f.value[code] + step / 2) {
    if (saturate) return static_cast<std::uint8_t>(sign | f.largest);
    return f.infinity ? static_cast<std::uint8_t>(sign | (f.largest + 1)) : nan;
  }
  if (code < f.largest) {
    double middle = (f.value[code] + f.value[above]) / 2;
    if (size > middle || (size == middle && (code & 1U) != 0)) code = above;
  }
  if (code == 0 && !f.signed_zero) return 0;
  return static_cast<std::uint8_t>(sign | code);
}

namespace {

constexpr std::int64_t kBlock = 256;

template <class T>
void widen(const void* x, std::int64_t n, double* y) {
  const T* from = static_cast<const T*>(x);
  for (std::int64_t i = 0; i < n; ++i) y[i] = static_cast<double>(from[i]);
}
template <class T>
void widen(const void* x, std::int64_t n, std::int64_t* y) {
  const T* from = static_cast<const T*>(x);
  for (std::int64_t i = 0; i < n; ++i) y[i] = static_cast<std::int64_t>(from[i]);
}
template <class T>
void narrow(const std::int64_t* x, std::int64_t n, void* y) {
  T* to = static_cast<T*>(y);
  for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(x[i]);
}
template <class T>
void narrow(const double* x, std::int64_t n, void* y) {
  T* to = static_cast<T*>(y);
  for (std::int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, bool>) {
      to[i] = x[i] != 0;
    } else if constexpr (std::is_integral_v<T>) {
      if (std::isnan(x[i])) {
        to[i] = 0;
      } else if (x[i] <= static_cast<double>(std::numeric_limits<T>::lowest())) {
        to[i] = std::numeric_limits<T>::lowest();
      } else if (x[i] >= static_cast<double>(std::numeric_limits<T>::max())) {
        to[i] = std::numeric_limits<T>::max();
      } else {
        to[i] = static_cast<T>(x[i]);
      }
    } else {
      to[i] = static_cast<T>(x[i]);
    }
  }
}

template <class W>
void load(DType from, const void* x, std::int64_t n, W* y) {
  switch (from) {
    case DType::f32:
      return widen<float>(x, n, y);
    case DType::f64:
      return widen<double>(x, n, y);
    case DType::i64:
      return widen<std::int64_t>(x, n, y);
    case DType::u64:
      return widen<std::uint64_t>(x, n, y);
    case DType::i32:
      return widen<std::int32_t>(x, n, y);
    case DType::u32:
      return widen<std::uint32_t>(x, n, y);
    case DType::i16:
      return widen<std::int16_t>(x, n, y);
    case DType::u16:
      return widen<std::uint16_t>(x, n, y);
    case DType::i8:
    case DType::i4:
      return widen<std::int8_t>(x, n, y);
    case DType::u8:
    case DType::u4:
      return widen<std::uint8_t>(x, n, y);
    case DType::boolean:
      return widen<bool>(x, n, y);
    case DType::f16:
      for (std::int64_t i = 0; i < n; ++i) y[i] = static_cast<W>(half_to_double(static_cast<const std::uint16_t*>(x)[i]));
      return;
    case DType::bf16:
      for (std::int64_t i = 0; i < n; ++i) y[i] = static_cast<W>(bfloat16_to_double(static_cast<const std::uint16_t*>(x)[i]));
      return;
    case DType::f8e4m3fn:
    case DType::f8e4m3fnuz:
    case DType::f8e5m2:
    case DType::f8e5m2fnuz:
      for (std::int64_t i = 0; i < n; ++i) y[i] = static_cast<W>(float8_to_double(from, static_cast<const std::uint8_t*>(x)[i]));
      return;
    case DType::string:
    case DType::undefined:
      break;
  }
  throw std::logic_error("only numbers are converted");
}

template <class W>
void store(DType to, const W* x, std::int64_t n, void* y, bool saturate) {
  switch (to) {
    case DType::f32:
      return narrow<float>(x, n, y);
    case DType::f64:
      return narrow<double>(x, n, y);
    case DType::i64:
      return narrow<std::int64_t>(x, n, y);
    case DType::u64:
      return narrow<std::uint64_t>(x, n, y);
    case DType::i32:
      return narrow<std::int32_t>(x, n, y);
    case DType::u32:
      return narrow<std::uint32_t>(x, n, y);
    case DType::i16:
      return narrow<std::int16_t>(x, n, y);
    case DType::u16:
      return narrow<std::uint16_t>(x, n, y);
    case DType::i8:
      return narrow<std::int8_t>(x, n, y);
    case DType::u8:
      return narrow<std::uint8_t>(x, n, y);
    case DType::boolean:
      return narrow<bool>(x, n, y);
    case DType::i4:
    case DType::u4:  // 4-bit types saturate from floats and integers alike, and floats round
      for (std::int64_t i = 0; i < n; ++i) {
        double low = to == DType::i4 ? -8 : 0;
        double high = to == DType::i4 ? 7 : 15;
        auto v = static_cast<double>(x[i]);
        v = std::isnan(v) ? 0 : std::clamp(std::nearbyint(v), low, high);
        static_cast<std::int8_t*>(y)[i] = static_cast<std::int8_t>(v);
      }
      return;
    case DType::f16:
      for (std::int64_t i = 0; i < n; ++i) static_cast<std::uint16_t*>(y)[i] = half_from_double(static_cast<double>(x[i]));
      return;
    case DType::bf16:
      for (std::int64_t i = 0; i < n; ++i) static_cast<std::uint16_t*>(y)[i] = bfloat16_from_double(static_cast<double>(x[i]));
      return;
    case DType::f8e4m3fn:
    case DType::f8e4m3fnuz:
    case DType::f8e5m2:
    case DType::f8e5m2fnuz:
      for (std::int64_t i = 0; i < n; ++i) static_cast<std::uint8_t*>(y)[i] = float8_from_double(to, static_cast<double>(x[i]), saturate);
      return;
    case DType::string:
    case DType::undefined:
      break;
  }
  throw std::logic_error("only numbers are converted");
}

}  // namespace

void convert_elements(DType from, const void* x, DType to, void* y, std::int64_t n, bool saturate) {
  if (from == to) {
    if (n > 0) std::memcpy(y, x, static_cast<std::size_t>(n) * size_of(to));
    return;
  }
  const auto* in = static_cast<const std::byte*>(x);
  auto* out = static_cast<std::byte*>(y);
  bool exact = is_int(from) || from == DType::boolean;  // through int64: doubles would lose digits of large integers
  std::array<double, kBlock> reals;
  std::array<std::int64_t, kBlock> integers;
  for (std::int64_t at = 0; at < n; at += kBlock) {
    std::int64_t count = std::min(kBlock, n - at);
    const auto* here = in + static_cast<std::size_t>(at) * size_of(from);
    auto* there = out + static_cast<std::size_t>(at) * size_of(to);
    if (exact && !(from == DType::u64 && (is_float(to) || is_float8(to)))) {
      load(from, here, count, integers.data());
      store(to, integers.data(), count, there, saturate);
    } else {
      load(from, here, count, reals.data());
      store(to, reals.data(), count, there, saturate);
    }
  }
}

void to_doubles(DType from, const void* x, double* y, std::int64_t n) { load(from, x, n, y); }

Tensor converted(const Tensor& tensor, DType to) {
  if (tensor.empty() || tensor.dtype() == to) return tensor;
  Tensor result = Tensor::uninitialised(to, tensor.shape());
  convert_elements(tensor.dtype(), tensor.raw(), to, result.mutable_raw(), tensor.shape().elements());
  return result;
}

}  // namespace falaj::kernels
