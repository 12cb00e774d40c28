// Tensors: a type, a shape and bytes. A Tensor is a handle: copies share the bytes; clone() copies them.
//
// Storage is 64-byte aligned and reference counted, or borrowed from the caller (view): the caller then keeps it alive and in
// place for as long as the Tensor or anything that was given it is in use. Strings are std::string objects.
//
// Ways to get hurt: writing through one handle changes all that share its bytes; a const_view is for inputs only.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "runtime/base/result.hpp"

namespace falaj::kernels {

// Kernels are written for f32, f64, i64 and i32 (and where it matters for others); the rest is computed in a wider type and
// narrowed again (make_reference in ops.hpp). i4 and u4 take one byte each in memory, whatever a file packs.
enum class DType : std::uint8_t {
  undefined,
  f32,
  f64,
  i64,
  i32,
  u8,
  i8,
  boolean,
  string,
  bf16,
  f16,
  i16,
  u16,
  u32,
  u64,
  f8e4m3fn,
  f8e4m3fnuz,
  f8e5m2,
  f8e5m2fnuz,
  i4,
  u4
};

std::string_view to_string(DType dtype) noexcept;
DType dtype_of_code(std::int64_t onnx_code) noexcept;  // TensorProto.DataType, which attributes hold; undefined: unknown
std::int32_t code_of(DType dtype) noexcept;
std::size_t size_of(DType dtype) noexcept;  // bytes of one element; sizeof(std::string) for strings, 0 for undefined
constexpr bool is_float(DType d) { return d == DType::f32 || d == DType::f64 || d == DType::bf16 || d == DType::f16; }
constexpr bool is_float8(DType d) { return d >= DType::f8e4m3fn && d <= DType::f8e5m2fnuz; }
constexpr bool is_signed_int(DType d) { return d == DType::i64 || d == DType::i32 || d == DType::i16 || d == DType::i8 || d == DType::i4; }
constexpr bool is_unsigned_int(DType d) {
  return d == DType::u64 || d == DType::u32 || d == DType::u16 || d == DType::u8 || d == DType::u4;
}
constexpr bool is_int(DType d) { return is_signed_int(d) || is_unsigned_int(d); }

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<std::int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<std::uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct DTypeOf<std::int8_t> {
  static constexpr DType value = DType::i8;
};
template <>
struct DTypeOf<bool> {
  static constexpr DType value = DType::boolean;
};
template <>
struct DTypeOf<std::string> {
  static constexpr DType value = DType::string;
};
template <>
struct DTypeOf<std::int16_t> {
  static constexpr DType value = DType::i16;
};
template <>
struct DTypeOf<std::uint16_t> {
  static constexpr DType value = DType::u16;
};
template <>
struct DTypeOf<std::uint32_t> {
  static constexpr DType value = DType::u32;
};
template <>
struct DTypeOf<std::uint64_t> {
  static constexpr DType value = DType::u64;
};
template <class T>
constexpr DType dtype_of = DTypeOf<std::remove_cv_t<T>>::value;

constexpr std::size_t kRankMax = 8;
constexpr std::size_t kTensorBytesMax = std::size_t{1} << 35;  // 32 GiB: a shape that asks for more is an error of the model

// Sizes of the dimensions, outermost first; rank 0 is a scalar. -1 means unknown and occurs in graph types only.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const std::int64_t> dims);  // asserts rank <= kRankMax: check sizes from outside first

  [[nodiscard]] std::size_t rank() const { return rank_; }
  [[nodiscard]] bool empty() const { return rank_ == 0; }
  std::int64_t operator[](std::size_t i) const { return dims_[i]; }
  std::int64_t& operator[](std::size_t i) { return dims_[i]; }
  [[nodiscard]] std::int64_t back() const { return dims_[rank_ - 1]; }
  [[nodiscard]] const std::int64_t* begin() const { return dims_.data(); }
  [[nodiscard]] const std::int64_t* end() const { return dims_.data() + rank_; }
  [[nodiscard]] std::span<const std::int64_t> dims() const { return {dims_.data(), rank_}; }
  void push_back(std::int64_t dim);
  void insert(std::size_t at, std::int64_t dim);
  void erase(std::size_t at);

  [[nodiscard]] bool is_static() const;         // no dimension is unknown
  [[nodiscard]] std::int64_t elements() const;  // product of the dimensions, 1 for a scalar
  [[nodiscard]] std::int64_t elements(std::size_t from, std::size_t to) const;
  bool operator==(const Shape& other) const;

 private:
  std::array<std::int64_t, kRankMax> dims_{};
  std::size_t rank_ = 0;
};

std::string to_string(const Shape& shape);  // [2, ?, 3]

// Bytes that a tensor needs, or why there can be no such tensor (negative dimension, product too large).
Result<std::size_t> byte_size(DType dtype, const Shape& shape);

class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, const Shape& shape);  // owning, zero bytes (empty strings)
  static Tensor uninitialised(DType dtype, const Shape& shape);
  // Bytes that somebody else allocated, kept alive by `storage`; `data` lies in it.
  static Tensor adopt(DType dtype, const Shape& shape, std::shared_ptr<void> storage, void* data);
  static Tensor view(DType dtype, const Shape& shape, void* data);              // borrows; strings: std::string*
  static Tensor const_view(DType dtype, const Shape& shape, const void* data);  // borrows; use as an input only
  template <class T>
  static Tensor of(const Shape& shape, std::span<const T> values);
  template <class T>
  static Tensor of(const Shape& shape, std::initializer_list<T> values);
  template <class T>
  static Tensor vector(std::initializer_list<T> values) {
    return of<T>({static_cast<std::int64_t>(values.size())}, values);
  }
  template <class T>
  static Tensor scalar(T value) {
    return of<T>({}, {value});
  }

  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] std::size_t elements() const { return static_cast<std::size_t>(shape_.elements()); }
  [[nodiscard]] std::size_t bytes() const { return elements() * size_of(dtype_); }
  [[nodiscard]] bool empty() const { return dtype_ == DType::undefined; }  // holds nothing (not: holds no elements)
  [[nodiscard]] bool borrowed() const { return !empty() && storage_ == nullptr; }
  [[nodiscard]] bool unique() const { return storage_ != nullptr && storage_.use_count() == 1; }

  // T must be the C++ type of dtype() (asserted).
  template <class T>
  [[nodiscard]] std::span<const T> data() const {
    check(dtype_of<T>);
    return {static_cast<const T*>(data_), elements()};
  }
  template <class T>
  [[nodiscard]] std::span<T> mutable_data() {
    check(dtype_of<T>);
    return {static_cast<T*>(data_), elements()};
  }
  [[nodiscard]] const void* raw() const { return data_; }
  [[nodiscard]] void* mutable_raw() { return data_; }

  [[nodiscard]] Tensor clone() const;
  [[nodiscard]] Tensor reshaped(const Shape& shape) const;                  // same bytes; asserts equal element count
  [[nodiscard]] Tensor rows(std::int64_t first, std::int64_t count) const;  // same bytes; a range of the first dimension

 private:
  void check(DType wanted) const;
  std::shared_ptr<void> storage_;
  void* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::undefined;
};

template <class T>
Tensor Tensor::of(const Shape& shape, std::span<const T> values) {
  Tensor t(dtype_of<T>, shape);
  auto out = t.mutable_data<T>();
  for (std::size_t i = 0; i < out.size() && i < values.size(); ++i) out[i] = values[i];
  return t;
}
template <class T>
Tensor Tensor::of(const Shape& shape, std::initializer_list<T> values) {
  return of<T>(shape, std::span<const T>(values.begin(), values.size()));
}

bool equal_bits(const Tensor& a, const Tensor& b);  // same type, shape and bytes (strings: same texts)

}  // namespace falaj::kernels
