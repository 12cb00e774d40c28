#include "runtime/base/json_syntax.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "runtime/base/bytes.hpp"
#include "runtime/base/format.hpp"

namespace falaj {
namespace {

class Checker {
 public:
  Checker(std::string_view text, std::size_t depth_max) : text_(text), depth_max_(depth_max) {}

  std::optional<JsonFlaw> run() {
    value(1);
    if (!flaw_) {
      blank();
      if (at_ < text_.size()) flaw("text after the end of the document");
    }
    if (!flaw_ && !is_utf8(text_)) utf8_flaw();
    return flaw_;
  }

 private:
  [[nodiscard]] bool more() const { return at_ < text_.size(); }
  [[nodiscard]] char peek() const { return more() ? text_[at_] : '\0'; }
  void flaw(std::string what) {
    if (!flaw_) flaw_ = JsonFlaw{at_, more() ? std::move(what) : "the document ends too early: " + what};
  }
  void blank() {
    while (more() && (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t')) ++at_;
  }
  bool digits() {
    const auto begin = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > begin;
  }
  void word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) return flaw(format("expected {}", expected));
    at_ += expected.size();
  }

  void value(std::size_t depth) {
    blank();
    if (depth > depth_max_) return flaw(format("nested deeper than {}", depth_max_));
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

  void number() {
    const auto begin = at_;
    if (peek() == '-') ++at_;
    const bool zero = peek() == '0';
    const auto first = at_;
    if (!digits()) {
      at_ = begin;
      return flaw("expected a value");
    }
    if (zero && at_ > first + 1) {
      at_ = begin;
      return flaw("a number with a leading zero");
    }
    if (peek() == '.') {
      ++at_;
      if (!digits()) return flaw("expected a digit");
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      if (!digits()) return flaw("expected a digit");
    }
    // Good JSON, but more than the machine's numbers hold.
    const std::string literal(text_.substr(begin, at_ - begin));
    const bool whole = literal.find_first_of(".eE") == std::string::npos;
    const std::size_t length = at_ - first;
    const bool wide = length > 20 || (length >= 19 && (literal[0] == '-' ? literal.substr(1) > "9223372036854775808" || length > 19
                                                                         : length == 20 && literal > "18446744073709551615"));
    at_ = whole && wide ? begin : at_;
    if (whole && wide) return flaw("an integer of more than 64 bits; write it with an exponent");
    if (!std::isfinite(std::strtod(literal.c_str(), nullptr))) {
      at_ = begin;
      flaw("a number too large for a double");
    }
  }

  void string() {
    for (++at_; more(); ++at_) {
      const char c = peek();
      if (c == '"') {
        ++at_;
        return;
      }
      if (static_cast<unsigned char>(c) < 0x20) return flaw("an unescaped control character in a string");
      if (c != '\\') continue;
      ++at_;
      if (peek() == 'u') {
        unicode_escape();
        if (flaw_) return;
      } else if (!more() || std::string_view("\"\\/bfnrt").find(peek()) == std::string_view::npos) {
        return flaw("an unknown escape");
      }
    }
    flaw("expected '\"'");
  }

  // On the 'u'; ends on the last hex digit.
  void unicode_escape() {
    const auto unit = hex4();
    if (flaw_ || unit < 0xD800 || unit >= 0xE000) return;
    if (unit < 0xDC00 && text_.substr(at_ + 1, 2) == "\\u") {
      at_ += 2;
      const auto low = hex4();
      if (flaw_ || (low >= 0xDC00 && low < 0xE000)) return;
    }
    flaw("a lone surrogate in a \\u escape");
  }

  std::uint32_t hex4() {
    std::uint32_t unit = 0;
    for (int i = 0; i < 4; ++i) {
      ++at_;
      const auto digit =
          more() ? std::string_view("0123456789abcdef").find(peek() >= 'A' && peek() <= 'F' ? static_cast<char>(peek() + 32) : peek())
                 : std::string_view::npos;
      if (digit == std::string_view::npos) {
        flaw("expected four hex digits");
        return 0;
      }
      unit = unit << 4 | static_cast<std::uint32_t>(digit);
    }
    return unit;
  }

  void array(std::size_t depth) {
    ++at_;
    blank();
    if (peek() == ']' && more()) {
      ++at_;
      return;
    }
    for (;;) {
      value(depth + 1);
      if (flaw_) return;
      blank();
      const char c = peek();
      if (c != ',' && c != ']') return flaw("expected ',' or ']'");
      ++at_;
      if (c == ']') return;
    }
  }

  void object(std::size_t depth) {
    ++at_;
    blank();
    if (peek() == '}') {
      ++at_;
      return;
    }
    for (;;) {
      blank();
      if (peek() != '"') return flaw("expected a member's name in quotes");
      string();
      if (flaw_) return;
      blank();
      if (peek() != ':') return flaw("expected ':'");
      ++at_;
      value(depth + 1);
      if (flaw_) return;
      blank();
      const char c = peek();
      if (c != ',' && c != '}') return flaw("expected ',' or '}'");
      ++at_;
      if (c == '}') return;
    }
  }

  void utf8_flaw() {
    std::size_t good = 0;
    std::size_t bad = text_.size();
    while (bad - good > 1) {  // the longest prefix that is UTF-8, to within one character
      const auto middle = good + (bad - good) / 2;
      bool whole = false;
      for (std::size_t back = 0; back < 4 && back <= middle && !whole; ++back) whole = is_utf8(text_.substr(0, middle - back));
      (whole ? good : bad) = middle;
    }
    while (!is_utf8(text_.substr(0, good))) --good;
    at_ = good;
    flaw_ = JsonFlaw{at_, "not UTF-8"};
  }

  std::string_view text_;
  std::size_t depth_max_;
  std::size_t at_ = 0;
  std::optional<JsonFlaw> flaw_;
};

}  // namespace

std::optional<JsonFlaw> find_json_flaw(std::string_view text, std::size_t depth_max) { return Checker(text, depth_max).run(); }

std::pair<std::size_t, std::size_t> line_and_column(std::string_view text, std::size_t offset) {
  const auto before = text.substr(0, offset);
  const auto newline = before.rfind('\n');
  return {static_cast<std::size_t>(std::ranges::count(before, '\n')) + 1, before.size() - (newline == before.npos ? 0 : newline + 1) + 1};
}

}  // namespace falaj
