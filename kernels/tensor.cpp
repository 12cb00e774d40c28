#include "kernels/tensor.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

constexpr std::size_t kAlign = 64;
// From here on memory is asked for in large pages: to get 50 MB by pages of 4 KiB takes longer than to fill them.
constexpr std::size_t kLarge = std::size_t{2} << 20;
constexpr std::size_t kLargePage = std::size_t{2} << 20;

[[noreturn]] void broken(const std::string& what) { throw std::logic_error(what); }

std::shared_ptr<void> allocate(DType dtype, std::size_t elements) {
  if (dtype == DType::string) {
    return {new std::string[elements > 0 ? elements : 1], [](void* p) { delete[] static_cast<std::string*>(p); }};
  }
  std::size_t bytes = std::max<std::size_t>(elements * size_of(dtype), 1);
  if (bytes >= kLarge) {
    void* data = ::operator new(bytes, std::align_val_t{kLargePage});
    madvise(data, bytes, MADV_HUGEPAGE);  // a hint: where it is refused, the pages are small
    return {data, [](void* p) { ::operator delete(p, std::align_val_t{kLargePage}); }};
  }
  void* data = ::operator new(bytes, std::align_val_t{kAlign});
  return {data, [](void* p) { ::operator delete(p, std::align_val_t{kAlign}); }};
}

}  // namespace

std::string_view to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::undefined:
      return "undefined";
    case DType::f32:
      return "float32";
    case DType::f64:
      return "float64";
    case DType::i64:
      return "int64";
    case DType::i32:
      return "int32";
    case DType::u8:
      return "uint8";
    case DType::i8:
      return "int8";
    case DType::boolean:
      return "bool";
    case DType::string:
      return "string";
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
    case DType::i16:
      return "int16";
    case DType::u16:
      return "uint16";
    case DType::u32:
      return "uint32";
    case DType::u64:
      return "uint64";
    case DType::f8e4m3fn:
      return "float8e4m3fn";
    case DType::f8e4m3fnuz:
      return "float8e4m3fnuz";
    case DType::f8e5m2:
      return "float8e5m2";
    case DType::f8e5m2fnuz:
      return "float8e5m2fnuz";
    case DType::i4:
      return "int4";
    case DType::u4:
      return "uint4";
  }
  return "undefined";
}

namespace {
// By TensorProto.DataType; the complex types (14, 15) are not carried.
constexpr std::array kCodes = {DType::undefined,  DType::f32,    DType::u8,         DType::i8,        DType::u16,  DType::i16,
                               DType::i32,        DType::i64,    DType::string,     DType::boolean,   DType::f16,  DType::f64,
                               DType::u32,        DType::u64,    DType::undefined,  DType::undefined, DType::bf16, DType::f8e4m3fn,
                               DType::f8e4m3fnuz, DType::f8e5m2, DType::f8e5m2fnuz, DType::u4,        DType::i4};
}  // namespace

DType dtype_of_code(std::int64_t onnx_code) noexcept {
  return onnx_code < 0 || onnx_code >= static_cast<std::int64_t>(kCodes.size()) ? DType::undefined
                                                                                : kCodes[static_cast<std::size_t>(onnx_code)];
}
std::int32_t code_of(DType dtype) noexcept {
  if (dtype == DType::undefined) return 0;
  return static_cast<std::int32_t>(std::ranges::find(kCodes, dtype) - kCodes.begin());
}

std::size_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::undefined:
      return 0;
    case DType::f32:
    case DType::i32:
    case DType::u32:
      return 4;
    case DType::f64:
    case DType::i64:
    case DType::u64:
      return 8;
    case DType::u8:
    case DType::i8:
    case DType::boolean:
    case DType::f8e4m3fn:
    case DType::f8e4m3fnuz:
    case DType::f8e5m2:
    case DType::f8e5m2fnuz:
    case DType::i4:
    case DType::u4:
      return 1;
    case DType::string:
      return sizeof(std::string);
    case DType::bf16:
    case DType::f16:
    case DType::i16:
    case DType::u16:
      return 2;
  }
  return 0;
}

Shape::Shape(std::span<const std::int64_t> dims) : rank_(dims.size()) {
  if (dims.size() > kRankMax) broken(format("a shape of rank {} (at most {})", dims.size(), kRankMax));
  std::ranges::copy(dims, dims_.begin());
}

void Shape::push_back(std::int64_t dim) { insert(rank_, dim); }

void Shape::insert(std::size_t at, std::int64_t dim) {
  if (rank_ == kRankMax || at > rank_) broken(format("no dimension {} in a shape of rank {} (at most {})", at, rank_, kRankMax));
  std::copy_backward(dims_.begin() + static_cast<std::ptrdiff_t>(at), dims_.begin() + static_cast<std::ptrdiff_t>(rank_),
                     dims_.begin() + static_cast<std::ptrdiff_t>(rank_) + 1);
  dims_[at] = dim;
  ++rank_;
}

void Shape::erase(std::size_t at) {
  if (at >= rank_) broken(format("no dimension {} in a shape of rank {}", at, rank_));
  std::copy(dims_.begin() + static_cast<std::ptrdiff_t>(at) + 1, dims_.begin() + static_cast<std::ptrdiff_t>(rank_),
            dims_.begin() + static_cast<std::ptrdiff_t>(at));
  --rank_;
}

bool Shape::is_static() const {
  return std::none_of(begin(), end(), [](std::int64_t d) { return d < 0; });
}

std::int64_t Shape::elements() const { return elements(0, rank_); }

std::int64_t Shape::elements(std::size_t from, std::size_t to) const {
  std::int64_t n = 1;
  for (std::size_t i = from; i < to; ++i) n *= dims_[i];
  return n;
}

bool Shape::operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.rank(); ++i) {
    if (i > 0) text += ", ";
    text += shape[i] < 0 ? std::string("?") : format("{}", shape[i]);
  }
  return text + "]";
}

Result<std::size_t> byte_size(DType dtype, const Shape& shape) {
  std::size_t total = size_of(dtype);
  bool zero = false;
  for (std::int64_t d : shape) {
    if (d < 0) return invalid(format("shape {} has an unknown or negative dimension", to_string(shape)));
    if (d == 0) {
      zero = true;
    } else if (__builtin_mul_overflow(total, static_cast<std::size_t>(d), &total) || total > kTensorBytesMax) {
      return invalid(format("shape {} of {} needs more than {} bytes", to_string(shape), to_string(dtype), kTensorBytesMax));
    }
  }
  return zero ? 0 : total;
}

Tensor::Tensor(DType dtype, const Shape& shape) : Tensor(uninitialised(dtype, shape)) {
  if (dtype != DType::string && bytes() > 0) std::memset(data_, 0, bytes());
}

Tensor Tensor::uninitialised(DType dtype, const Shape& shape) {
  auto bytes = byte_size(dtype, shape);
  if (!bytes.has_value()) broken(bytes.error().message);
  Tensor t;
  t.dtype_ = dtype;
  t.shape_ = shape;
  t.storage_ = allocate(dtype, static_cast<std::size_t>(shape.elements()));
  t.data_ = t.storage_.get();
  return t;
}

Tensor Tensor::adopt(DType dtype, const Shape& shape, std::shared_ptr<void> storage, void* data) {
  Tensor t = view(dtype, shape, data);
  t.storage_ = std::move(storage);
  return t;
}

Tensor Tensor::view(DType dtype, const Shape& shape, void* data) {
  Tensor t;
  t.dtype_ = dtype;
  t.shape_ = shape;
  t.data_ = data;
  return t;
}

Tensor Tensor::const_view(DType dtype, const Shape& shape, const void* data) { return view(dtype, shape, const_cast<void*>(data)); }

void Tensor::check(DType wanted) const {
  if (wanted != dtype_) broken(format("a tensor of {} read as {}", to_string(dtype_), to_string(wanted)));
}

Tensor Tensor::clone() const {
  if (empty()) return {};
  Tensor t = uninitialised(dtype_, shape_);
  if (dtype_ == DType::string) {
    std::ranges::copy(data<std::string>(), t.mutable_data<std::string>().begin());
  } else if (bytes() > 0) {
    std::memcpy(t.data_, data_, bytes());
  }
  return t;
}

Tensor Tensor::reshaped(const Shape& shape) const {
  if (shape.elements() != shape_.elements()) broken(format("{} cannot be reshaped to {}", to_string(shape_), to_string(shape)));
  Tensor t = *this;
  t.shape_ = shape;
  return t;
}

Tensor Tensor::rows(std::int64_t first, std::int64_t count) const {
  if (shape_.rank() == 0 || first < 0 || count < 0 || first > shape_[0] - count) {
    broken(format("no rows {}..{} in a tensor of shape {}", first, first + count, to_string(shape_)));
  }
  Tensor t = *this;
  t.shape_[0] = count;
  auto row_bytes = static_cast<std::size_t>(shape_.elements(1, shape_.rank())) * size_of(dtype_);
  t.data_ = static_cast<std::byte*>(data_) + static_cast<std::size_t>(first) * row_bytes;
  return t;
}

bool equal_bits(const Tensor& a, const Tensor& b) {
  if (a.dtype() != b.dtype() || a.shape() != b.shape()) return false;
  if (a.empty()) return true;
  if (a.dtype() == DType::string) return std::ranges::equal(a.data<std::string>(), b.data<std::string>());
  return a.bytes() == 0 || std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

}  // namespace falaj::kernels
