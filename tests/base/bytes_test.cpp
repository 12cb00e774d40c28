#include "runtime/base/bytes.hpp"

#include <gtest/gtest.h>

#include <array>

namespace falaj {
namespace {

TEST(Bytes, Hex) {
  EXPECT_EQ(hex(as_bytes(std::string_view("\x00\xff\x1a", 3))), "00ff1a");
  EXPECT_EQ(from_hex("00fF1A").value(), (Bytes{0, 255, 26}));
  EXPECT_EQ(from_hex("").value(), Bytes{});
  EXPECT_EQ(from_hex("0").error().code, ErrorCode::invalid);
  EXPECT_EQ(from_hex("0g").error().code, ErrorCode::invalid);
}

// RFC 4648 §10, in the URL alphabet and without padding.
TEST(Bytes, Base64Url) {
  const std::array<std::pair<std::string_view, std::string_view>, 7> vectors = {
      {{"", ""}, {"f", "Zg"}, {"fo", "Zm8"}, {"foo", "Zm9v"}, {"foob", "Zm9vYg"}, {"fooba", "Zm9vYmE"}, {"foobar", "Zm9vYmFy"}}};
  for (const auto& [plain, coded] : vectors) {
    EXPECT_EQ(base64url(as_bytes(plain)), coded);
    EXPECT_EQ(from_base64url(coded).value(), to_bytes(plain));
  }
  EXPECT_EQ(base64url(as_bytes("\xfb\xff\xfe")), "-__-");
  EXPECT_FALSE(from_base64url("a+b/").has_value());
  EXPECT_FALSE(from_base64url("Zg==").has_value());
}

// RFC 3720 §B.4.
TEST(Bytes, Crc32c) {
  EXPECT_EQ(crc32c(as_bytes("123456789")), 0xE3069283U);
  EXPECT_EQ(crc32c(Bytes(32, 0)), 0x8A9136AAU);
  EXPECT_EQ(crc32c(Bytes(32, 0xFF)), 0x62A8AB43U);
  EXPECT_EQ(crc32c(as_bytes("56789"), crc32c(as_bytes("1234"))), 0xE3069283U);
  EXPECT_EQ(crc32c({}), 0U);
}

TEST(Bytes, Utf8) {
  for (const auto* good : {"", "a", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xF4\x8F\xBF\xBF", "\xED\x9F\xBF"})
    EXPECT_TRUE(is_utf8(good));
  // Stray continuation, truncated, overlong, surrogate, beyond U+10FFFF, bytes that never occur.
  for (const auto* bad : {"\x80", "\xC3", "\xC3(", "\xC0\x80", "\xE0\x80\x80", "\xF0\x80\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                          "\xFE", "\xF8\x88\x80\x80\x80"}) {
    EXPECT_FALSE(is_utf8(bad)) << hex(as_bytes(bad));
  }
}

}  // namespace
}  // namespace falaj
