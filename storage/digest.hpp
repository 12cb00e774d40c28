// SHA-256, HMAC-SHA256 and comparison in constant time. OpenSSL is behind digest.cpp.
// Thread rules: a Sha256 or Hmac object is used by one thread at a time; HmacKey and the functions by any number.
#pragma once
#include <array>
#include <compare>
#include <memory>
#include <string>

#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::storage {

// A SHA-256 value: the name of a content.
struct Digest {
  std::array<std::uint8_t, 32> bytes{};
  auto operator<=>(const Digest&) const = default;
  [[nodiscard]] ByteView view() const { return bytes; }
  [[nodiscard]] std::string hex() const { return falaj::hex(bytes); }
  [[nodiscard]] static Result<Digest> from_hex(std::string_view text);
  [[nodiscard]] static Result<Digest> from_bytes(ByteView bytes);
};

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  Sha256& update(ByteView bytes);
  Sha256& update(std::string_view text) { return update(as_bytes(text)); }
  [[nodiscard]] Digest finish();      // and starts afresh
  [[nodiscard]] Digest peek() const;  // of what came so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};

[[nodiscard]] Digest sha256(ByteView bytes);
[[nodiscard]] inline Digest sha256(std::string_view text) { return sha256(as_bytes(text)); }

// A key made ready once, for many short messages.
class HmacKey {
 public:
  explicit HmacKey(ByteView key);
  ~HmacKey();
  HmacKey(HmacKey&&) noexcept;
  HmacKey& operator=(HmacKey&&) noexcept;
  [[nodiscard]] Digest mac(ByteView message) const;
  [[nodiscard]] Digest mac(std::string_view message) const { return mac(as_bytes(message)); }

 private:
  struct State;
  std::unique_ptr<State> state_;
};

[[nodiscard]] Digest hmac_sha256(ByteView key, ByteView message);

// True when equal; takes the same time wherever the first difference is. The lengths are not secret.
[[nodiscard]] bool equal_in_constant_time(ByteView a, ByteView b) noexcept;

}  // namespace falaj::storage

template <>
struct std::hash<falaj::storage::Digest> {
  std::size_t operator()(const falaj::storage::Digest& d) const noexcept {
    std::size_t out = 0;
    for (std::size_t i = 0; i < sizeof(out); ++i) out = out << 8 | d.bytes[i];
    return out;
  }
};
