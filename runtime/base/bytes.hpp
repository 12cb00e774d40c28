// Byte spans and helpers. Ownership: ByteView borrows, Bytes owns.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/result.hpp"

namespace falaj {

using Bytes = std::vector<std::uint8_t>;
using ByteView = std::span<const std::uint8_t>;

inline ByteView as_bytes(std::string_view text) { return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}; }
inline std::string_view as_text(ByteView bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
inline Bytes to_bytes(std::string_view text) { return {text.begin(), text.end()}; }

std::string hex(ByteView bytes);                // lower case
Result<Bytes> from_hex(std::string_view text);  // even length, either case
std::string base64url(ByteView bytes);          // RFC 4648 §5, no padding
Result<Bytes> from_base64url(std::string_view text);
std::uint32_t crc32c(ByteView bytes, std::uint32_t seed = 0) noexcept;  // Castagnoli; checksum of stored values
bool is_utf8(std::string_view text) noexcept;

}  // namespace falaj
