// Reads JSON from outside (bodies of requests) within limits: a document is parsed and checked whole, then walked.
//
//   JsonReader reader;                               // keep it: its memory is used again
//   FALAJ_ASSIGN(auto root, reader.parse(body));     // `invalid`: "JSON, byte 17: expected ':'..."
//   FALAJ_ASSIGN(auto inputs, root.member("inputs"));
//
// Ways to get hurt: a JsonValue points into its JsonReader and dies with the next parse().
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "runtime/base/bytes.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/result.hpp"

namespace falaj::net {

enum class JsonType : std::uint8_t { null, boolean, number, string, array, object };
std::string_view to_string(JsonType type) noexcept;

// A place in a parsed document. Cheap to copy. Accessors return `invalid` naming what was found instead.
class JsonValue {
 public:
  [[nodiscard]] JsonType type() const;
  [[nodiscard]] bool is_null() const { return type() == JsonType::null; }
  [[nodiscard]] bool is_integer() const;  // a number without fraction that fits int64

  [[nodiscard]] Result<bool> as_bool() const;
  [[nodiscard]] Result<std::int64_t> as_int() const;
  [[nodiscard]] Result<std::uint64_t> as_uint() const;
  [[nodiscard]] Result<double> as_double() const;            // integers too
  [[nodiscard]] Result<std::string_view> as_string() const;  // unescaped; lives as long as the document

  // Objects. member: `not_found` naming the key; find: nullopt when absent or when this is no object.
  [[nodiscard]] Result<JsonValue> member(std::string_view key) const;
  [[nodiscard]] std::optional<JsonValue> find(std::string_view key) const;
  // Objects and arrays.
  [[nodiscard]] std::size_t size() const;
  class Iterator;
  [[nodiscard]] Iterator begin() const;  // of an array: values; of an object: values, with Iterator::key(); else empty
  [[nodiscard]] Iterator end() const;

  // A number or any nesting of arrays of numbers, flattened in row-major order and appended to `out`. null counts as NaN for
  // float and double; for integers it is `invalid`, as is a number that does not fit. At most `count_max` numbers.
  Status flatten(std::vector<float>& out, std::size_t count_max) const;
  Status flatten(std::vector<double>& out, std::size_t count_max) const;
  Status flatten(std::vector<std::int64_t>& out, std::size_t count_max) const;
  // Strings, same rule; null counts as "".
  Status flatten(std::vector<std::string>& out, std::size_t count_max) const;

 private:
  friend class JsonReader;
  friend class Iterator;
  friend struct JsonAccess;
  std::array<std::uint64_t, 2> ref_{};  // the parser's reference into its tape; zero: null
};

class JsonValue::Iterator {
 public:
  [[nodiscard]] std::string_view key() const;  // "" in an array
  JsonValue operator*() const;
  Iterator& operator++();
  bool operator==(const Iterator& other) const noexcept { return ref_ == other.ref_; }

 private:
  friend class JsonValue;
  std::array<std::uint64_t, 2> ref_{};
  bool object_ = false;
};

class JsonReader {
 public:
  struct Options {
    std::size_t bytes_max = limits::kHttpBodyBytesMax;
    std::size_t depth_max = 64;
  };
  JsonReader() : JsonReader(Options{}) {}
  explicit JsonReader(const Options& options);
  JsonReader(JsonReader&&) noexcept;
  JsonReader& operator=(JsonReader&&) noexcept;
  ~JsonReader();

  // The text is copied; numbers must be in JSON's grammar (no NaN, no Infinity). Duplicate keys: the first counts.
  Result<JsonValue> parse(ByteView text);
  Result<JsonValue> parse(std::string_view text) { return parse(as_bytes(text)); }

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace falaj::net
