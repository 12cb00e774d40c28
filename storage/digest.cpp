#include "storage/digest.hpp"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <stdexcept>

namespace falaj::storage {
namespace {

struct FreeCtx {
  void operator()(EVP_MD_CTX* ctx) const { EVP_MD_CTX_free(ctx); }
};
using Ctx = std::unique_ptr<EVP_MD_CTX, FreeCtx>;

// OpenSSL's digests fail only where memory or the library itself is broken: that is no Result.
void must(int rc) {
  if (rc != 1) throw std::runtime_error("OpenSSL: SHA-256 is not available");
}

const EVP_MD* algorithm() {
  static EVP_MD* const md = EVP_MD_fetch(nullptr, "SHA256", nullptr);  // fetched once: a fetch for each use costs more than the digest
  return md;
}

Ctx fresh() {
  Ctx ctx(EVP_MD_CTX_new());
  must(ctx != nullptr && EVP_DigestInit_ex2(ctx.get(), algorithm(), nullptr) == 1 ? 1 : 0);
  return ctx;
}

Digest result_of(EVP_MD_CTX* ctx) {
  Digest out;
  must(EVP_DigestFinal_ex(ctx, out.bytes.data(), nullptr));
  return out;
}

EVP_MD_CTX* scratch() {
  thread_local const Ctx ctx(EVP_MD_CTX_new());
  return ctx.get();
}

}  // namespace

Result<Digest> Digest::from_hex(std::string_view text) {
  if (text.size() != 64) return invalid("a SHA-256 digest has 64 hexadecimal digits");
  FALAJ_ASSIGN(const auto bytes, falaj::from_hex(text));
  return from_bytes(bytes);
}

Result<Digest> Digest::from_bytes(ByteView bytes) {
  Digest out;
  if (bytes.size() != out.bytes.size()) return invalid("a SHA-256 digest has 32 bytes");
  std::ranges::copy(bytes, out.bytes.begin());
  return out;
}

struct Sha256::State {
  Ctx ctx = fresh();
};
Sha256::Sha256() : state_(std::make_unique<State>()) {}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

Sha256& Sha256::update(ByteView bytes) {
  must(EVP_DigestUpdate(state_->ctx.get(), bytes.data(), bytes.size()));
  return *this;
}

Digest Sha256::finish() {
  const auto out = result_of(state_->ctx.get());
  must(EVP_DigestInit_ex2(state_->ctx.get(), algorithm(), nullptr));
  return out;
}

Digest Sha256::peek() const {
  must(EVP_MD_CTX_copy_ex(scratch(), state_->ctx.get()));
  return result_of(scratch());
}

Digest sha256(ByteView bytes) {
  must(EVP_DigestInit_ex2(scratch(), algorithm(), nullptr));
  must(EVP_DigestUpdate(scratch(), bytes.data(), bytes.size()));
  return result_of(scratch());
}

// HMAC (RFC 2104) from two digests that have already taken in the padded key.
struct HmacKey::State {
  Ctx inner = fresh();
  Ctx outer = fresh();
};

HmacKey::HmacKey(ByteView key) : state_(std::make_unique<State>()) {
  std::array<std::uint8_t, 64> block{};
  if (key.size() > block.size()) {
    std::ranges::copy(sha256(key).bytes, block.begin());
  } else {
    std::ranges::copy(key, block.begin());
  }
  for (auto& b : block) b ^= 0x36;
  must(EVP_DigestUpdate(state_->inner.get(), block.data(), block.size()));
  for (auto& b : block) b ^= 0x36 ^ 0x5c;
  must(EVP_DigestUpdate(state_->outer.get(), block.data(), block.size()));
  OPENSSL_cleanse(block.data(), block.size());
}
HmacKey::~HmacKey() = default;
HmacKey::HmacKey(HmacKey&&) noexcept = default;
HmacKey& HmacKey::operator=(HmacKey&&) noexcept = default;

Digest HmacKey::mac(ByteView message) const {
  auto* ctx = scratch();
  must(EVP_MD_CTX_copy_ex(ctx, state_->inner.get()));
  must(EVP_DigestUpdate(ctx, message.data(), message.size()));
  const auto inner = result_of(ctx);
  must(EVP_MD_CTX_copy_ex(ctx, state_->outer.get()));
  must(EVP_DigestUpdate(ctx, inner.bytes.data(), inner.bytes.size()));
  return result_of(ctx);
}

Digest hmac_sha256(ByteView key, ByteView message) { return HmacKey(key).mac(message); }

bool equal_in_constant_time(ByteView a, ByteView b) noexcept {
  return a.size() == b.size() && (a.empty() || CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0);
}

}  // namespace falaj::storage
