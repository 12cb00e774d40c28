#include "kernels/train/json.hpp"

#include <algorithm>
#include <charconv>
#include <cstdint>

#include "runtime/base/format.hpp"

namespace falaj::kernels {

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string json_strings(std::span<const std::string> texts) {
  std::string out = "[";
  for (const std::string& text : texts) out += (out.size() > 1 ? "," : "") + json_string(text);
  return out + "]";
}

namespace {

void append_utf8(std::string& out, std::uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | (code >> 6));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xE0 | (code >> 12));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

// One string, its opening quote already read; false: it does not end, or an escape is not known.
bool read_string(std::string_view& rest, std::string& out) {
  while (!rest.empty()) {
    const char c = rest.front();
    rest.remove_prefix(1);
    if (c == '"') return true;
    if (c != '\\') {
      out += c;
      continue;
    }
    if (rest.empty()) return false;
    const char escape = rest.front();
    rest.remove_prefix(1);
    constexpr std::string_view kNames = "\"\\/bfnrt";
    constexpr std::string_view kValues = "\"\\/\b\f\n\r\t";
    if (const auto at = kNames.find(escape); at != std::string_view::npos) {
      out += kValues[at];
    } else if (std::uint32_t code = 0;
               escape == 'u' && rest.size() >= 4 && std::from_chars(rest.data(), rest.data() + 4, code, 16).ptr == rest.data() + 4) {
      append_utf8(out, code);
      rest.remove_prefix(4);
    } else {
      return false;
    }
  }
  return false;
}

}  // namespace

Result<std::vector<std::string>> read_json_strings(std::string_view text) {
  const auto bad = [&] { return invalid(format("'{}' is not a JSON list of strings", text.substr(0, 80))); };
  const auto skip = [](std::string_view& rest) { rest.remove_prefix(std::min(rest.find_first_not_of(" \t\r\n"), rest.size())); };
  std::string_view rest = text;
  std::vector<std::string> out;
  skip(rest);
  if (!rest.starts_with('[')) return bad();
  rest.remove_prefix(1);
  skip(rest);
  if (rest.starts_with(']')) return out;
  while (true) {
    skip(rest);
    if (!rest.starts_with('"')) return bad();
    rest.remove_prefix(1);
    if (!read_string(rest, out.emplace_back())) return bad();
    skip(rest);
    if (rest.starts_with(']')) return out;
    if (!rest.starts_with(',')) return bad();
    rest.remove_prefix(1);
  }
}

}  // namespace falaj::kernels
