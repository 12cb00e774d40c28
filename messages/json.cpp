#include "messages/json.hpp"

#include <capnp/compat/json.h>
#include <kj/exception.h>

#include "runtime/base/bytes.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"

namespace falaj {
namespace {

// The codec says what it missed but not where: a syntax pass of our own finds the place. It accepts exactly RFC 8259 text
// within the depth limit, so that the codec behind it meets well-formed input only.
class Syntax {
 public:
  explicit Syntax(std::string_view text) : text_(text) {}

  Status check() {
    FALAJ_TRY(value(0));
    space();
    if (at_ != text_.size()) return fault("expected the end of the text");
    return {};
  }

 private:
  [[nodiscard]] char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) {
    if (peek() != c || at_ == text_.size()) return false;
    ++at_;
    return true;
  }
  void space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }

  [[nodiscard]] Error fault(std::string_view what) const {
    std::size_t line = 1;
    std::size_t column = 1;
    for (const char c : text_.substr(0, at_)) {
      column = c == '\n' ? 1 : column + 1;
      line += c == '\n' ? 1 : 0;
    }
    return invalid(format("JSON:{}:{}: {}", line, column, what));
  }

  Status value(int depth) {
    if (depth > limits::kNestingMax) return fault(format("nested deeper than {} levels", limits::kNestingMax));
    space();
    switch (peek()) {
      case '{':
        return object(depth);
      case '[':
        return array(depth);
      case '"':
        return string();
      case 't':
        return word("true");
      case 'f':
        return word("false");
      case 'n':
        return word("null");
      default:
        return number();
    }
  }

  Status object(int depth) {
    ++at_;
    space();
    if (take('}')) return {};
    while (true) {
      space();
      if (peek() != '"') return fault("expected a field name in double quotes");
      FALAJ_TRY(string());
      space();
      if (!take(':')) return fault("expected ':'");
      FALAJ_TRY(value(depth + 1));
      space();
      if (take('}')) return {};
      if (!take(',')) return fault("expected ',' or '}'");
    }
  }

  Status array(int depth) {
    ++at_;
    space();
    if (take(']')) return {};
    while (true) {
      FALAJ_TRY(value(depth + 1));
      space();
      if (take(']')) return {};
      if (!take(',')) return fault("expected ',' or ']'");
    }
  }

  Status string() {
    ++at_;
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '"') {
        ++at_;
        return {};
      }
      if (static_cast<unsigned char>(c) < 0x20) return fault("control character inside a string: escape it");
      if (c == '\\') {
        FALAJ_TRY(escape());
      } else {
        ++at_;
      }
    }
    return fault("the string does not end");
  }

  Status escape() {
    ++at_;
    if (take('u')) {
      std::uint32_t code = 0;
      FALAJ_TRY(hex4(code));
      if (code >= 0xDC00 && code < 0xE000) return fault("lone surrogate in a \\u escape");
      if (code >= 0xD800 && code < 0xDC00) {
        std::uint32_t low = 0;
        if (!take('\\') || !take('u')) return fault("lone surrogate in a \\u escape");
        FALAJ_TRY(hex4(low));
        if (low < 0xDC00 || low >= 0xE000) return fault("lone surrogate in a \\u escape");
      }
      return {};
    }
    if (at_ == text_.size() || std::string_view("\"\\/bfnrt").find(peek()) == std::string_view::npos) return fault("unknown escape");
    ++at_;
    return {};
  }

  Status hex4(std::uint32_t& code) {
    for (int i = 0; i < 4; ++i) {
      const auto digit = std::string_view("0123456789abcdef").find(static_cast<char>(peek() | (peek() >= 'A' && peek() <= 'F' ? 0x20 : 0)));
      if (at_ == text_.size() || digit == std::string_view::npos) return fault("expected four hexadecimal digits after \\u");
      code = code << 4 | static_cast<std::uint32_t>(digit);
      ++at_;
    }
    return {};
  }

  Status word(std::string_view expected) {
    if (!text_.substr(at_).starts_with(expected)) return fault("expected a value");
    at_ += expected.size();
    return {};
  }

  bool digits() {
    const auto start = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > start;
  }

  Status number() {
    take('-');
    if (!take('0') && !digits()) return fault("expected a value");
    if (take('.') && !digits()) return fault("expected digits after the decimal point");
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      if (!digits()) return fault("expected digits in the exponent");
    }
    return {};
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

std::string one_line(kj::StringPtr description) {
  std::string out(description.cStr(), description.size());
  for (auto& c : out) c = c == '\n' ? ' ' : c;
  return out;
}

}  // namespace

std::string to_json(capnp::DynamicStruct::Reader value, JsonStyle style) {
  capnp::JsonCodec codec;
  codec.setPrettyPrint(style == JsonStyle::pretty);
  const auto text = codec.encode(value, value.getSchema());
  return {text.cStr(), text.size()};
}

Status from_json(std::string_view json, capnp::DynamicStruct::Builder into) {
  if (json.size() > limits::kMessageBytesMax) {
    return invalid(format("JSON of {} bytes is over the limit of {}", json.size(), limits::kMessageBytesMax));
  }
  if (!is_utf8(json)) return invalid("JSON: not UTF-8");
  FALAJ_TRY(Syntax(json).check());
  if (json[json.find_first_not_of(" \t\r\n")] != '{') return invalid("JSON:1:1: expected an object");
  try {
    capnp::JsonCodec codec;
    codec.setMaxNestingDepth(static_cast<std::size_t>(limits::kNestingMax) + 2);
    codec.setRejectUnknownFields(true);
    codec.decode(kj::arrayPtr(json.data(), json.size()), into);
  } catch (const kj::Exception& e) {
    return invalid("JSON: " + one_line(e.getDescription()));
  }
  return {};
}

}  // namespace falaj
