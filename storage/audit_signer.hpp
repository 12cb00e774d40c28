// Ed25519 for the heads of the audit log (RFC 8032, by OpenSSL). Private to storage/. Thread-safe once made.
#pragma once
#include <array>
#include <memory>

#include "storage/digest.hpp"

struct evp_pkey_st;  // OpenSSL's EVP_PKEY

namespace falaj::storage::audit {

using PublicKey = std::array<std::uint8_t, 32>;
using Signature = std::array<std::uint8_t, 64>;

class Signer {
 public:
  explicit Signer(ByteView secret);  // 32 bytes; throws std::runtime_error where OpenSSL fails
  [[nodiscard]] const PublicKey& public_key() const { return public_; }
  [[nodiscard]] Signature sign(ByteView bytes) const;

 private:
  struct Free {
    void operator()(evp_pkey_st* key) const;
  };
  std::unique_ptr<evp_pkey_st, Free> key_;
  PublicKey public_{};
};

bool signature_good(const PublicKey& key, ByteView bytes, const Signature& signature);

}  // namespace falaj::storage::audit
