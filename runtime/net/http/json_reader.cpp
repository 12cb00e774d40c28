#include "runtime/net/http/json_reader.hpp"

#include <simdjson.h>

#include <bit>
#include <cstring>
#include <limits>

#include "runtime/base/format.hpp"
#include "runtime/base/json_syntax.hpp"

namespace falaj::net {

namespace dom = simdjson::dom;

// A JsonValue holds simdjson's element (a pointer to the document and an index into its tape) as plain words, so that the
// header needs no simdjson.
struct JsonAccess {
  static_assert(sizeof(dom::element) == 16 && std::is_trivially_copyable_v<dom::element>);
  static dom::element element(const JsonValue& value) { return std::bit_cast<dom::element>(value.ref_); }
  static JsonValue value(const dom::element& element) {
    JsonValue made;
    made.ref_ = std::bit_cast<std::array<std::uint64_t, 2>>(element);
    return made;
  }
  static bool nothing(const JsonValue& value) { return value.ref_[0] == 0; }
};

std::string_view to_string(JsonType type) noexcept {
  switch (type) {
    case JsonType::null:
      return "null";
    case JsonType::boolean:
      return "a boolean";
    case JsonType::number:
      return "a number";
    case JsonType::string:
      return "a string";
    case JsonType::array:
      return "an array";
    case JsonType::object:
      return "an object";
  }
  return "null";
}

namespace {

JsonType type_of(const dom::element& element) {
  switch (element.type()) {
    case dom::element_type::ARRAY:
      return JsonType::array;
    case dom::element_type::OBJECT:
      return JsonType::object;
    case dom::element_type::INT64:
    case dom::element_type::UINT64:
    case dom::element_type::DOUBLE:
      return JsonType::number;
    case dom::element_type::STRING:
      return JsonType::string;
    case dom::element_type::BOOL:
      return JsonType::boolean;
    case dom::element_type::NULL_VALUE:
      return JsonType::null;
  }
  return JsonType::null;
}

Error expected(std::string_view what, const JsonValue& found) {
  return invalid(format("JSON: expected {}, found {}", what, to_string(found.type())));
}

// A double that stands for an integer: 3.0 is 3.
bool integral(double value) {
  return value >= -9007199254740992.0 && value <= 9007199254740992.0 && value == static_cast<double>(static_cast<std::int64_t>(value));
}

}  // namespace

JsonType JsonValue::type() const { return JsonAccess::nothing(*this) ? JsonType::null : type_of(JsonAccess::element(*this)); }

bool JsonValue::is_integer() const { return as_int().has_value(); }

Result<bool> JsonValue::as_bool() const {
  if (type() != JsonType::boolean) return expected("a boolean", *this);
  return JsonAccess::element(*this).get_bool().value_unsafe();
}

Result<std::int64_t> JsonValue::as_int() const {
  if (type() != JsonType::number) return expected("an integer", *this);
  const auto element = JsonAccess::element(*this);
  std::int64_t value = 0;
  if (element.get_int64().get(value) == simdjson::SUCCESS) return value;
  double real = 0;
  if (element.is_double() && element.get_double().get(real) == simdjson::SUCCESS && integral(real)) return static_cast<std::int64_t>(real);
  return invalid(element.is_uint64() ? "JSON: integer too large" : "JSON: expected an integer, found a number with a fraction");
}

Result<std::uint64_t> JsonValue::as_uint() const {
  if (type() != JsonType::number) return expected("a non-negative integer", *this);
  const auto element = JsonAccess::element(*this);
  std::uint64_t value = 0;
  if (element.get_uint64().get(value) == simdjson::SUCCESS) return value;
  double real = 0;
  if (element.is_double() && element.get_double().get(real) == simdjson::SUCCESS && real >= 0 && integral(real))
    return static_cast<std::uint64_t>(real);
  return invalid("JSON: expected a non-negative integer");
}

Result<double> JsonValue::as_double() const {
  if (type() != JsonType::number) return expected("a number", *this);
  double value = 0;
  if (JsonAccess::element(*this).get_double().get(value) != simdjson::SUCCESS) return invalid("JSON: expected a number");
  return value;
}

Result<std::string_view> JsonValue::as_string() const {
  if (type() != JsonType::string) return expected("a string", *this);
  return JsonAccess::element(*this).get_string().value_unsafe();
}

std::optional<JsonValue> JsonValue::find(std::string_view key) const {
  if (type() != JsonType::object) return std::nullopt;
  dom::element found;
  const auto object = JsonAccess::element(*this).get_object().value_unsafe();
  if (object.at_key(key).get(found) != simdjson::SUCCESS) return std::nullopt;
  return JsonAccess::value(found);
}

Result<JsonValue> JsonValue::member(std::string_view key) const {
  if (type() != JsonType::object) return expected(format("an object with '{}'", key), *this);
  const auto found = find(key);
  if (!found.has_value()) return error(ErrorCode::not_found, format("JSON: member '{}' is missing", key));
  return *found;
}

std::size_t JsonValue::size() const {
  std::size_t count = 0;
  // simdjson stops counting at 0xFFFFFF: count beyond it ourselves.
  if (type() == JsonType::array) {
    count = JsonAccess::element(*this).get_array().value_unsafe().size();
  } else if (type() == JsonType::object) {
    count = JsonAccess::element(*this).get_object().value_unsafe().size();
  }
  if (count < 0xFFFFFF) return count;
  count = 0;
  for (auto it = begin(); it != end(); ++it) ++count;
  return count;
}

// --- iteration: simdjson's iterators are the same two words ---

namespace {

static_assert(sizeof(dom::array::iterator) == 16 && sizeof(dom::object::iterator) == 16);

template <class To, class From>
To same_words(const From& from) {
  To to;
  static_assert(sizeof(To) == sizeof(From));
  std::memcpy(static_cast<void*>(&to), static_cast<const void*>(&from), sizeof to);
  return to;
}

using Words = std::array<std::uint64_t, 2>;

}  // namespace

JsonValue::Iterator JsonValue::begin() const {
  Iterator it;
  if (type() == JsonType::array) it.ref_ = same_words<Words>(JsonAccess::element(*this).get_array().value_unsafe().begin());
  if (type() == JsonType::object) {
    it.object_ = true;
    it.ref_ = same_words<Words>(JsonAccess::element(*this).get_object().value_unsafe().begin());
  }
  return it;
}

JsonValue::Iterator JsonValue::end() const {
  Iterator it;
  if (type() == JsonType::array) it.ref_ = same_words<Words>(JsonAccess::element(*this).get_array().value_unsafe().end());
  if (type() == JsonType::object) {
    it.object_ = true;
    it.ref_ = same_words<Words>(JsonAccess::element(*this).get_object().value_unsafe().end());
  }
  return it;
}

std::string_view JsonValue::Iterator::key() const { return object_ ? same_words<dom::object::iterator>(ref_).key() : std::string_view(); }

JsonValue JsonValue::Iterator::operator*() const {
  return JsonAccess::value(object_ ? same_words<dom::object::iterator>(ref_).value() : *same_words<dom::array::iterator>(ref_));
}

JsonValue::Iterator& JsonValue::Iterator::operator++() {
  if (object_) {
    auto it = same_words<dom::object::iterator>(ref_);
    ref_ = same_words<Words>(++it);
  } else {
    auto it = same_words<dom::array::iterator>(ref_);
    ref_ = same_words<Words>(++it);
  }
  return *this;
}

// --- flattening ---

namespace {

template <class T>
Status append_scalar(const dom::element& element, std::vector<T>& out) {
  if constexpr (std::is_floating_point_v<T>) {
    double value = std::numeric_limits<double>::quiet_NaN();
    if (!element.is_null() && element.get_double().get(value) != simdjson::SUCCESS) return expected("a number", JsonAccess::value(element));
    if (std::is_same_v<T, float> && std::abs(value) > 3.4028235677973366e38)
      return invalid(format("JSON: {} does not fit a 32-bit float", value));
    out.push_back(static_cast<T>(value));
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (element.is_null()) {
      out.emplace_back();
      return {};
    }
    FALAJ_ASSIGN(const auto value, JsonAccess::value(element).as_string());
    out.emplace_back(value);
  } else {
    FALAJ_ASSIGN(const auto value, JsonAccess::value(element).as_int());
    out.push_back(value);
  }
  return {};
}

template <class T>
Status append_all(const dom::element& element, std::vector<T>& out, std::size_t count_max) {
  if (!element.is_array()) {
    if (out.size() >= count_max) return invalid(format("JSON: more than {} values", count_max));
    return append_scalar(element, out);
  }
  const auto array = element.get_array().value_unsafe();
  const auto wanted = out.size() + std::min<std::size_t>(array.size(), count_max);
  if (wanted > out.capacity()) out.reserve(std::max(wanted, out.capacity() * 2));
  for (const auto item : array) FALAJ_TRY(append_all(item, out, count_max));  // as deep as the parser lets documents be
  return {};
}

template <class T>
Status flatten_into(const JsonValue& value, std::vector<T>& out, std::size_t count_max) {
  if (JsonAccess::nothing(value)) return expected("numbers", value);
  return append_all(JsonAccess::element(value), out, out.size() + count_max);
}

}  // namespace

Status JsonValue::flatten(std::vector<float>& out, std::size_t count_max) const { return flatten_into(*this, out, count_max); }
Status JsonValue::flatten(std::vector<double>& out, std::size_t count_max) const { return flatten_into(*this, out, count_max); }
Status JsonValue::flatten(std::vector<std::int64_t>& out, std::size_t count_max) const { return flatten_into(*this, out, count_max); }
Status JsonValue::flatten(std::vector<std::string>& out, std::size_t count_max) const { return flatten_into(*this, out, count_max); }

// --- parsing ---

struct JsonReader::State {
  explicit State(const Options& o) : options(o) {}
  Options options;
  dom::parser parser;
};

JsonReader::JsonReader(const Options& options) : state_(std::make_unique<State>(options)) {}
JsonReader::JsonReader(JsonReader&&) noexcept = default;
JsonReader& JsonReader::operator=(JsonReader&&) noexcept = default;
JsonReader::~JsonReader() = default;

namespace {

// simdjson lets a lone low surrogate through, which is no UTF-8 afterwards.
bool escapes_surrogates(std::string_view text) {
  for (auto at = text.find("\\u"); at != text.npos; at = text.find("\\u", at + 2)) {
    if (at + 2 < text.size() && (text[at + 2] == 'd' || text[at + 2] == 'D')) return true;
  }
  return false;
}

}  // namespace

Result<JsonValue> JsonReader::parse(ByteView text) {
  const auto& options = state_->options;
  if (text.size() > options.bytes_max) return invalid(format("JSON: {} bytes; at most {} are read", text.size(), options.bytes_max));
  auto& parser = state_->parser;
  // The parser's memory follows the largest document so far; its depth limit is fixed when memory is made.
  if (parser.capacity() < text.size() || parser.max_depth() != options.depth_max) {
    const auto room = std::max<std::size_t>(text.size(), std::min<std::size_t>(parser.capacity() * 2, options.bytes_max));
    if (parser.allocate(std::max<std::size_t>(room, 4096), options.depth_max) != simdjson::SUCCESS)
      return error(ErrorCode::overloaded, "JSON: no memory");
  }
  dom::element root;
  const char* begin = text.empty() ? "" : reinterpret_cast<const char*>(text.data());  // no bytes may be at no place, but not for memcpy
  const auto code = parser.parse(begin, text.size(), true).get(root);
  if (code == simdjson::SUCCESS && !escapes_surrogates(as_text(text))) return JsonAccess::value(root);
  if (code == simdjson::MEMALLOC) return error(ErrorCode::overloaded, "JSON: no memory");
  // simdjson is fast because it does not know where it is; whoever sent an error can wait for a second, slow look.
  const auto flaw = find_json_flaw(as_text(text), options.depth_max);
  if (flaw.has_value()) return invalid(format("JSON, byte {}: {}", flaw->offset, flaw->what));
  if (code == simdjson::SUCCESS) return JsonAccess::value(root);
  return invalid(format("JSON: {}", simdjson::error_message(code)));
}

}  // namespace falaj::net
