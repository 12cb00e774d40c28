// Flat bytes for the few values of this box that are stored or sent (checkpoints, parts of a fit): little endian, a checksum at the
// end. The formats carry their own version numbers. A Reader never reads beyond its bytes: after the first short read all reads give
// zeros, and finish() says so.
#pragma once
#include <bit>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "runtime/base/bytes.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/result.hpp"

namespace falaj::kernels {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie in memory");

class Writer {
 public:
  template <class T>
    requires std::is_arithmetic_v<T>
  void number(T value) {
    raw(&value, sizeof value);
  }
  void text(std::string_view value) {
    number(static_cast<std::uint64_t>(value.size()));
    raw(value.data(), value.size());
  }
  void floats(std::span<const float> values) {
    number(static_cast<std::uint64_t>(values.size()));
    raw(values.data(), values.size_bytes());
  }
  Bytes finish() {
    number(crc32c(bytes_));
    return std::move(bytes_);
  }

 private:
  void raw(const void* data, std::size_t size) {
    const auto* from = static_cast<const std::uint8_t*>(data);
    bytes_.insert(bytes_.end(), from, from + size);
  }
  Bytes bytes_;
};

class Reader {
 public:
  static Result<Reader> open(ByteView bytes, std::string_view what) {
    std::uint32_t sum = 0;
    if (bytes.size() < sizeof sum) return error(ErrorCode::corrupt, format("{}: {} bytes are too few", what, bytes.size()));
    std::memcpy(&sum, bytes.data() + bytes.size() - sizeof sum, sizeof sum);
    bytes = bytes.first(bytes.size() - sizeof sum);
    if (crc32c(bytes) != sum) return error(ErrorCode::corrupt, format("{}: the checksum does not fit the bytes", what));
    return Reader(bytes, what);
  }
  template <class T>
    requires std::is_arithmetic_v<T>
  T number() {
    T value{};
    if (take(sizeof value)) std::memcpy(&value, rest_.data() - sizeof value, sizeof value);
    return value;
  }
  std::string text() {
    const auto size = number<std::uint64_t>();
    if (!take(size)) return {};
    return {reinterpret_cast<const char*>(rest_.data()) - size, size};
  }
  std::vector<float> floats() {
    const auto count = number<std::uint64_t>();
    if (count > rest_.size() / sizeof(float) || !take(count * sizeof(float))) {
      ok_ = false;
      return {};
    }
    std::vector<float> values(count);
    if (count > 0) std::memcpy(values.data(), rest_.data() - count * sizeof(float), count * sizeof(float));
    return values;
  }
  [[nodiscard]] bool ok() const noexcept { return ok_; }
  Status finish() const {
    if (ok_ && rest_.empty()) return {};
    return error(ErrorCode::corrupt, format("{}: {}", what_, ok_ ? "bytes are left over" : "it ends too early"));
  }

 private:
  Reader(ByteView bytes, std::string_view what) : rest_(bytes), what_(what) {}
  bool take(std::uint64_t size) {
    if (!ok_ || size > rest_.size()) {
      ok_ = false;
      return false;
    }
    rest_ = rest_.subspan(size);
    return true;
  }
  ByteView rest_;
  std::string what_;
  bool ok_ = true;
};

}  // namespace falaj::kernels
