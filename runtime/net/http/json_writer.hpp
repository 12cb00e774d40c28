// Writes JSON by appending to a string; commas are its business, pairing begin and end is yours.
//
//   JsonWriter w;
//   w.begin_object().key("model").string(name).key("shape").array(shape).end_object();
//
// Floats take the shortest text that reads back to the same value; NaN and infinities have no JSON and are written as null.
#pragma once
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/base/bytes.hpp"

namespace falaj::net {

class JsonWriter {
 public:
  JsonWriter() { out_.reserve(256); }
  explicit JsonWriter(std::size_t reserve) { out_.reserve(reserve); }

  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }
  JsonWriter& key(std::string_view name);
  JsonWriter& string(std::string_view text);  // bytes that are not UTF-8 become U+FFFD
  JsonWriter& boolean(bool value);
  JsonWriter& null();
  template <std::integral T>
    requires(!std::same_as<T, bool>)
  JsonWriter& number(T value) {
    separate();
    return append(value);
  }
  template <std::floating_point T>
  JsonWriter& number(T value) {
    separate();
    return append(value);
  }
  template <class T>
  JsonWriter& array(std::span<const T> values) {
    begin_array();
    for (const T& value : values) {
      separate();
      append(value);
    }
    return end_array();
  }
  JsonWriter& raw(std::string_view json);  // a value that is JSON already

  [[nodiscard]] const std::string& text() const noexcept { return out_; }
  [[nodiscard]] std::string take() && { return std::move(out_); }
  [[nodiscard]] Bytes bytes() const { return to_bytes(out_); }
  void clear() noexcept {
    out_.clear();
    comma_ = false;
  }

 private:
  JsonWriter& open(char c) {
    separate();
    out_ += c;
    comma_ = false;
    return *this;
  }
  JsonWriter& close(char c) {
    out_ += c;
    comma_ = true;
    return *this;
  }
  void separate() {
    if (comma_) out_ += ',';
    comma_ = true;
  }
  template <class T>
  JsonWriter& append(T value) {
    if constexpr (std::floating_point<T>) {
      if (!std::isfinite(value)) {
        out_ += "null";
        return *this;
      }
    }
    char buffer[40];
    char* end = nullptr;
    if constexpr (std::floating_point<T>) {
      // Without an exponent many readers take it for an integer, and one of more than 64 bits for an error.
      end = std::abs(value) >= T(1e15) ? std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr
                                       : std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
    } else {
      end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
    }
    out_.append(buffer, end);
    return *this;
  }

  std::string out_;
  bool comma_ = false;
};

void append_json_string(std::string& out, std::string_view text);  // quoted and escaped
inline std::string json_text(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

}  // namespace falaj::net
