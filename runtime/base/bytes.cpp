#include "runtime/base/bytes.hpp"

#include <array>
#include <cstring>

namespace falaj {
namespace {

constexpr std::string_view kHex = "0123456789abcdef";
constexpr std::string_view kBase64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

constexpr std::array<std::uint32_t, 256> crc32c_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78U : 0U);
    table[i] = crc;
  }
  return table;
}
constexpr auto kCrcTable = crc32c_table();

int nibble(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string hex(ByteView bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const auto b : bytes) {
    out.push_back(kHex[b >> 4]);
    out.push_back(kHex[b & 15]);
  }
  return out;
}

Result<Bytes> from_hex(std::string_view text) {
  if (text.size() % 2 != 0) return invalid("hexadecimal text has an odd number of digits");
  Bytes out;
  out.reserve(text.size() / 2);
  for (std::size_t i = 0; i < text.size(); i += 2) {
    const int high = nibble(text[i]);
    const int low = nibble(text[i + 1]);
    if (high < 0 || low < 0) return invalid("not a hexadecimal digit at offset " + std::to_string(i));
    out.push_back(static_cast<std::uint8_t>(high << 4 | low));
  }
  return out;
}

std::string base64url(ByteView bytes) {
  std::string out;
  std::uint32_t acc = 0;
  int bits = 0;
  for (const auto b : bytes) {
    acc = acc << 8 | b;
    for (bits += 8; bits >= 6; bits -= 6) out.push_back(kBase64[acc >> (bits - 6) & 63]);
  }
  if (bits > 0) out.push_back(kBase64[acc << (6 - bits) & 63]);
  return out;
}

Result<Bytes> from_base64url(std::string_view text) {
  Bytes out;
  std::uint32_t acc = 0;
  int bits = 0;
  for (const char c : text) {
    const auto digit = kBase64.find(c);
    if (digit == std::string_view::npos) return invalid("not a base64url character");
    acc = acc << 6 | static_cast<std::uint32_t>(digit);
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      out.push_back(static_cast<std::uint8_t>(acc >> bits & 255));
    }
  }
  return out;
}

#if defined(__x86_64__)
// The processor's own instruction for this polynomial, where it has it: ten times the table.
__attribute__((target("sse4.2"))) static std::uint32_t crc32c_fast(ByteView bytes, std::uint32_t crc) noexcept {
  std::uint64_t wide = crc;
  while (bytes.size() >= 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data(), 8);
    wide = __builtin_ia32_crc32di(wide, word);
    bytes = bytes.subspan(8);
  }
  crc = static_cast<std::uint32_t>(wide);
  for (const auto b : bytes) crc = __builtin_ia32_crc32qi(crc, b);
  return crc;
}
#endif

std::uint32_t crc32c(ByteView bytes, std::uint32_t seed) noexcept {
  std::uint32_t crc = ~seed;
#if defined(__x86_64__)
  static const bool fast = __builtin_cpu_supports("sse4.2") != 0;
  if (fast) return ~crc32c_fast(bytes, crc);
#endif
  for (const auto b : bytes) crc = kCrcTable[(crc ^ b) & 255] ^ crc >> 8;
  return ~crc;
}

bool is_utf8(std::string_view text) noexcept {
  std::size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    std::size_t extra = 0;
    std::uint32_t code = 0;
    if (lead < 0x80) {
      ++i;
      continue;
    }
    if (lead >> 5 == 6)
      extra = 1, code = lead & 31;
    else if (lead >> 4 == 14)
      extra = 2, code = lead & 15;
    else if (lead >> 3 == 30)
      extra = 3, code = lead & 7;
    else
      return false;
    if (extra >= text.size() - i) return false;
    for (std::size_t k = 1; k <= extra; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if (next >> 6 != 2) return false;
      code = code << 6 | (next & 63);
    }
    constexpr std::array<std::uint32_t, 4> smallest = {0, 0x80, 0x800, 0x10000};
    if (code < smallest[extra] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return false;
    i += extra + 1;
  }
  return true;
}

}  // namespace falaj
