#include "storage/audit_signer.hpp"

#include <openssl/evp.h>

#include <stdexcept>
#include <string>

namespace falaj::storage::audit {
namespace {

struct FreeMd {
  void operator()(EVP_MD_CTX* ctx) const { EVP_MD_CTX_free(ctx); }
};
using Md = std::unique_ptr<EVP_MD_CTX, FreeMd>;

void must(bool good, const char* what) {
  if (!good) throw std::runtime_error(std::string("OpenSSL: ") + what + " failed");
}

}  // namespace

void Signer::Free::operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }

Signer::Signer(ByteView secret) : key_(EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, secret.data(), secret.size())) {
  must(key_ != nullptr, "Ed25519 key");
  std::size_t n = public_.size();
  must(EVP_PKEY_get_raw_public_key(key_.get(), public_.data(), &n) == 1, "Ed25519 public key");
}

Signature Signer::sign(ByteView bytes) const {
  const Md md(EVP_MD_CTX_new());
  Signature out{};
  std::size_t n = out.size();
  must(md != nullptr && EVP_DigestSignInit(md.get(), nullptr, nullptr, nullptr, key_.get()) == 1, "Ed25519");
  must(EVP_DigestSign(md.get(), out.data(), &n, bytes.data(), bytes.size()) == 1, "Ed25519");
  return out;
}

bool signature_good(const PublicKey& key, ByteView bytes, const Signature& signature) {
  const auto free_key = [](EVP_PKEY* it) { EVP_PKEY_free(it); };
  const std::unique_ptr<EVP_PKEY, decltype(free_key)> pkey(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, key.data(), key.size()),
                                                           free_key);
  const Md md(EVP_MD_CTX_new());
  if (pkey == nullptr || md == nullptr || EVP_DigestVerifyInit(md.get(), nullptr, nullptr, nullptr, pkey.get()) != 1) return false;
  return EVP_DigestVerify(md.get(), signature.data(), signature.size(), bytes.data(), bytes.size()) == 1;
}

}  // namespace falaj::storage::audit
