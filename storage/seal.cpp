#include "storage/seal.hpp"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>

#include "runtime/base/format.hpp"
#include "storage/digest.hpp"
#include "storage/files.hpp"

namespace falaj::storage {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kKekIdMax = 64;
constexpr std::uint32_t kIndexKey = 0;

void must(int rc, const char* what) {
  if (rc != 1) throw std::runtime_error(std::string("OpenSSL: ") + what + " failed");
}

const EVP_CIPHER* cipher() {
  static EVP_CIPHER* const aes = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);  // once: a fetch costs more than a short message
  return aes;
}

struct FreeCtx {
  void operator()(EVP_CIPHER_CTX* ctx) const { EVP_CIPHER_CTX_free(ctx); }
};

EVP_CIPHER_CTX* context() {
  thread_local const std::unique_ptr<EVP_CIPHER_CTX, FreeCtx> ctx(EVP_CIPHER_CTX_new());
  must(ctx != nullptr ? 1 : 0, "EVP_CIPHER_CTX_new");
  return ctx.get();
}

int length(std::size_t n) { return static_cast<int>(n); }

std::string kek_id_of(ByteView key) { return sha256(std::string("falaj kek id") + std::string(as_text(key))).hex().substr(0, 16); }

Result<Secret> read_kek(const fs::path& path) {
  struct stat info{};
  if (::stat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return error(ErrorCode::not_found, format("the key file {} does not exist: falaj init makes one", path.string()));
    return errno_error(errno, "stat", path);
  }
  if ((info.st_mode & 077) != 0)
    return error(ErrorCode::denied, format("the key file {} can be read by others: chmod 600 {}", path.string(), path.string()));
  FALAJ_ASSIGN(auto bytes, read_file(path, 4096));
  if (bytes.size() != kKeyBytes)
    return error(ErrorCode::corrupt,
                 format("the key file {} has {} bytes, not {}: restore it from its backup", path.string(), bytes.size(), kKeyBytes));
  Secret out{ByteView(bytes)};
  OPENSSL_cleanse(bytes.data(), bytes.size());
  return out;
}

}  // namespace

// --- Secret ---------------------------------------------------------------------------------------------------------

Secret::Secret(ByteView bytes) {
  if (bytes.size() != kKeyBytes) throw std::invalid_argument("a key has 32 bytes");
  std::ranges::copy(bytes, bytes_.begin());
}
Secret::~Secret() { OPENSSL_cleanse(bytes_.data(), bytes_.size()); }
Secret::Secret(Secret&& other) noexcept : bytes_(other.bytes_) { OPENSSL_cleanse(other.bytes_.data(), other.bytes_.size()); }
Secret& Secret::operator=(Secret&& other) noexcept {
  if (this != &other) {
    bytes_ = other.bytes_;
    OPENSSL_cleanse(other.bytes_.data(), other.bytes_.size());
  }
  return *this;
}

namespace {
constinit thread_local Random* g_random = nullptr;
}

SimulatedEntropy::SimulatedEntropy(Random& random) noexcept : before_(std::exchange(g_random, &random)) {}
SimulatedEntropy::~SimulatedEntropy() { g_random = before_; }

Secret Secret::random() {
  Secret out;
  if (g_random != nullptr) {
    random_bytes(out.bytes_);
    return out;
  }
  must(RAND_priv_bytes(out.bytes_.data(), length(out.bytes_.size())), "RAND_priv_bytes");
  return out;
}

void random_bytes(std::span<std::uint8_t> out) {
  if (g_random != nullptr) {
    for (auto& byte : out) byte = static_cast<std::uint8_t>(g_random->next());
    return;
  }
  must(RAND_bytes(out.data(), length(out.size())), "RAND_bytes");
}

std::string random_name() {
  std::array<std::uint8_t, 16> bytes{};
  random_bytes(bytes);
  return hex(bytes);
}

// --- AES-256-GCM ----------------------------------------------------------------------------------------------------

Bytes aes_seal(ByteView key, ByteView aad, ByteView plain) {
  Bytes out(kNonceBytes + plain.size() + kTagBytes);
  random_bytes(std::span(out).first(kNonceBytes));
  auto* ctx = context();
  int n = 0;
  must(EVP_EncryptInit_ex2(ctx, cipher(), key.data(), out.data(), nullptr), "EVP_EncryptInit");
  must(EVP_EncryptUpdate(ctx, nullptr, &n, aad.data(), length(aad.size())), "AES-GCM AAD");
  if (!plain.empty()) must(EVP_EncryptUpdate(ctx, out.data() + kNonceBytes, &n, plain.data(), length(plain.size())), "AES-GCM");
  must(EVP_EncryptFinal_ex(ctx, out.data() + kNonceBytes + plain.size(), &n), "AES-GCM");
  must(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, kTagBytes, out.data() + kNonceBytes + plain.size()), "AES-GCM tag");
  return out;
}

Result<Bytes> aes_open(ByteView key, ByteView aad, ByteView sealed) {
  if (sealed.size() < kNonceBytes + kTagBytes) return error(ErrorCode::corrupt, "the sealed bytes are cut short");
  const auto text = sealed.subspan(kNonceBytes, sealed.size() - kNonceBytes - kTagBytes);
  auto tag = Bytes(sealed.end() - kTagBytes, sealed.end());
  Bytes out(text.size());
  auto* ctx = context();
  int n = 0;
  must(EVP_DecryptInit_ex2(ctx, cipher(), key.data(), sealed.data(), nullptr), "EVP_DecryptInit");
  must(EVP_DecryptUpdate(ctx, nullptr, &n, aad.data(), length(aad.size())), "AES-GCM AAD");
  if (!text.empty()) must(EVP_DecryptUpdate(ctx, out.data(), &n, text.data(), length(text.size())), "AES-GCM");
  must(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, kTagBytes, tag.data()), "AES-GCM tag");
  std::uint8_t rest = 0;
  if (EVP_DecryptFinal_ex(ctx, &rest, &n) != 1) {
    OPENSSL_cleanse(out.data(), out.size());
    return error(ErrorCode::corrupt, "the seal does not open: the bytes were changed, moved, or sealed with another key");
  }
  return out;
}

Bytes make_aad(std::initializer_list<ByteView> parts) {
  Bytes out;
  for (const auto part : parts) {
    put_le(out, static_cast<std::uint32_t>(part.size()));
    append(out, part);
  }
  return out;
}

// --- FileKeyProvider ------------------------------------------------------------------------------------------------

Status FileKeyProvider::create(const fs::path& path) {
  if (fs::exists(path))
    return error(ErrorCode::conflict, format("the key file {} exists; data may be sealed under it, so it is not replaced", path.string()));
  return replace_file(path, Secret::random().view());
}

Result<std::unique_ptr<FileKeyProvider>> FileKeyProvider::open(const fs::path& path) {
  auto out = std::make_unique<FileKeyProvider>();
  FALAJ_ASSIGN(auto current, read_kek(path));
  out->current_id_ = kek_id_of(current.view());
  out->keys_.emplace(out->current_id_, std::move(current));
  const fs::path previous = path.string() + ".previous";
  if (fs::exists(previous)) {
    FALAJ_ASSIGN(auto key, read_kek(previous));
    auto id = kek_id_of(key.view());
    out->keys_.emplace(std::move(id), std::move(key));
  }
  return out;
}

Status FileKeyProvider::rotate(const fs::path& path) {
  const fs::path previous = path.string() + ".previous";
  if (fs::exists(previous)) {
    return error(ErrorCode::conflict,
                 format("{} is there: a rotation has not been finished; re-wrap all stores, then forget it", previous.string()));
  }
  FALAJ_ASSIGN(const auto current, read_kek(path));
  FALAJ_TRY(replace_file(previous, current.view()));  // first: at no moment is the old key in no file
  return replace_file(path, Secret::random().view());
}

Status FileKeyProvider::forget_previous(const fs::path& path) {
  const fs::path previous = path.string() + ".previous";
  if (::unlink(previous.c_str()) != 0 && errno != ENOENT) return errno_error(errno, "remove", previous);
  return sync_dir(path.has_parent_path() ? path.parent_path() : fs::path("."));
}

Result<KeyProvider::Wrapped> FileKeyProvider::wrap(ByteView secret, ByteView aad) {
  return Wrapped{.kek_id = current_id_, .bytes = aes_seal(keys_.at(current_id_).view(), aad, secret)};
}

Result<Bytes> FileKeyProvider::unwrap(const Wrapped& wrapped, ByteView aad) {
  const auto found = keys_.find(wrapped.kek_id);
  if (found == keys_.end()) {
    return error(ErrorCode::denied,
                 format("sealed under the key {}, which the key file does not hold (it holds {}): restore the right key file",
                        wrapped.kek_id, current_id_));
  }
  return aes_open(found->second.view(), aad, wrapped.bytes);
}

// --- Keyring --------------------------------------------------------------------------------------------------------

Bytes Keyring::entry_aad(std::uint32_t id) const {
  Bytes number;
  put_le(number, id);
  return make_aad({as_bytes("falaj/data-key/1"), as_bytes(store_), number});
}

Result<Keyring::Entry> Keyring::make_entry(std::uint32_t id, Secret secret) {
  Entry entry;
  FALAJ_ASSIGN(entry.wrapped, provider_.wrap(secret.view(), entry_aad(id)));
  entry.secret = std::move(secret);
  return entry;
}

Result<std::unique_ptr<Keyring>> Keyring::create(std::string store, KeyProvider& provider) {
  std::unique_ptr<Keyring> ring(new Keyring(std::move(store), provider));
  FALAJ_ASSIGN(auto index, ring->make_entry(kIndexKey, Secret::random()));
  ring->index_ = index.secret.clone();
  ring->entries_.emplace(kIndexKey, std::move(index));
  FALAJ_TRY(ring->rotate());
  return ring;
}

Result<std::unique_ptr<Keyring>> Keyring::load(std::string store, KeyProvider& provider, ByteView bytes) {
  const auto bad = [&](std::string_view why) {
    return error(ErrorCode::corrupt, format("the keys of store {}: {}; restore them from a backup", store, why));
  };
  if (bytes.size() < 14) return bad("cut short");
  if (crc32c(bytes.first(bytes.size() - 4)) != get_le<std::uint32_t>(bytes.data() + bytes.size() - 4))
    return bad("they fail their checksum");
  Cut cut(bytes.first(bytes.size() - 4));
  const auto version = cut.number<std::uint16_t>();
  if (version != kKeyringFormat) return newer_format("the keys of store " + store, version, kKeyringFormat);
  std::unique_ptr<Keyring> ring(new Keyring(store, provider));
  ring->current_ = cut.number<std::uint32_t>();
  const auto count = cut.number<std::uint32_t>();
  for (std::uint32_t i = 0; i < count && cut.ok(); ++i) {
    const auto id = cut.number<std::uint32_t>();
    Entry entry;
    entry.reserved = cut.number<std::uint64_t>();
    entry.wrapped.kek_id = cut.text();
    const auto wrapped = cut.text();
    entry.wrapped.bytes = to_bytes(wrapped);
    if (!cut.ok() || entry.wrapped.kek_id.size() > kKekIdMax) return bad("not in their format");
    auto secret = provider.unwrap(entry.wrapped, ring->entry_aad(id));
    if (!secret) return within("the keys of store " + store, secret.error());
    if (secret->size() != kKeyBytes) return bad("a key of another length");
    entry.secret = Secret(*secret);
    OPENSSL_cleanse(secret->data(), secret->size());
    if (id == kIndexKey) ring->index_ = entry.secret.clone();
    ring->entries_.emplace(id, std::move(entry));
  }
  if (!cut.done() || !ring->entries_.contains(kIndexKey) || !ring->entries_.contains(ring->current_) || ring->current_ == kIndexKey)
    return bad("not in their format");
  return ring;
}

Bytes Keyring::bytes() const {
  const std::lock_guard guard(mutex_);
  Bytes out;
  put_le(out, kKeyringFormat);
  put_le(out, current_);
  put_le(out, static_cast<std::uint32_t>(entries_.size()));
  for (const auto& [id, entry] : entries_) {
    put_le(out, id);
    put_le(out, entry.reserved);
    put_text(out, entry.wrapped.kek_id);
    put_text(out, as_text(entry.wrapped.bytes));
  }
  put_le(out, crc32c(out));
  return out;
}

std::uint32_t Keyring::current() const {
  const std::lock_guard guard(mutex_);
  return current_;
}

Result<Secret> Keyring::key(std::uint32_t id) const {
  const std::lock_guard guard(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end() || id == kIndexKey)
    return error(ErrorCode::not_found, format("store {} has no data key {}: it was erased", store_, id));
  return found->second.secret.clone();
}

Status Keyring::rotate() {
  const std::lock_guard guard(mutex_);
  return rotate_locked();
}

Status Keyring::rotate_locked() {
  const auto id = entries_.rbegin()->first + 1;
  FALAJ_ASSIGN(auto entry, make_entry(id, Secret::random()));
  entries_.emplace(id, std::move(entry));
  current_ = id;
  return {};
}

Status Keyring::rewrap() {
  const std::lock_guard guard(mutex_);
  std::map<std::uint32_t, KeyProvider::Wrapped> fresh;
  for (const auto& [id, entry] : entries_) {
    FALAJ_ASSIGN(auto wrapped, provider_.wrap(entry.secret.view(), entry_aad(id)));
    fresh.emplace(id, std::move(wrapped));
  }
  for (auto& [id, wrapped] : fresh) entries_.at(id).wrapped = std::move(wrapped);
  return {};
}

Status Keyring::erase(std::uint32_t id) {
  const std::lock_guard guard(mutex_);
  if (id == kIndexKey || !entries_.contains(id)) return error(ErrorCode::not_found, format("store {} has no data key {}", store_, id));
  if (id == current_) FALAJ_TRY(rotate_locked());
  entries_.erase(id);
  return {};
}

Status Keyring::reserve(std::uint64_t messages) {
  const std::lock_guard guard(mutex_);
  if (entries_.at(current_).reserved + messages > kMessagesPerKeyMax) FALAJ_TRY(rotate_locked());
  entries_.at(current_).reserved += messages;
  return {};
}

Result<Bytes> Keyring::seal(ByteView place, ByteView plain) const {
  const auto id = current();
  FALAJ_ASSIGN(const auto secret, key(id));
  Bytes out;
  out.push_back(kSealFormat);
  put_le(out, id);
  append(out, aes_seal(secret.view(), make_aad({as_bytes("falaj/seal/1"), as_bytes(store_), place, ByteView(out).subspan(1, 4)}), plain));
  return out;
}

Result<Bytes> Keyring::open(ByteView place, ByteView sealed) const {
  if (sealed.size() < 5) return error(ErrorCode::corrupt, "the sealed bytes are cut short");
  if (sealed[0] != kSealFormat) return newer_format("a sealed value of store " + store_, sealed[0], kSealFormat);
  FALAJ_ASSIGN(const auto secret, key(get_le<std::uint32_t>(sealed.data() + 1)));
  return aes_open(secret.view(), make_aad({as_bytes("falaj/seal/1"), as_bytes(store_), place, sealed.subspan(1, 4)}), sealed.subspan(5));
}

Result<std::unique_ptr<Keyring>> open_keyring_file(const fs::path& path, const std::string& store, KeyProvider& provider,
                                                   std::uint64_t reserve) {
  std::optional<DirLock> lock;
  if (reserve > 0) {
    FALAJ_ASSIGN(lock, DirLock::take(path.parent_path(), path.filename().string() + ".lock", DirLock::Kind::exclusive, DirLock::Wait::yes));
  }
  auto bytes = read_file(path, 1U << 20);
  if (!bytes && (bytes.error().code != ErrorCode::not_found || reserve == 0)) return bytes.error();
  auto opened = bytes ? Keyring::load(store, provider, *bytes) : Keyring::create(store, provider);
  if (!opened) return within(path.string(), opened.error());
  if (reserve > 0) {
    FALAJ_TRY((*opened)->reserve(reserve));
    FALAJ_TRY(replace_file(path, (*opened)->bytes()));
  }
  return opened;
}

Status rewrap_keyring_file(const fs::path& path, const std::string& store, KeyProvider& provider) {
  FALAJ_ASSIGN(const auto lock,
               DirLock::take(path.parent_path(), path.filename().string() + ".lock", DirLock::Kind::exclusive, DirLock::Wait::yes));
  FALAJ_ASSIGN(const auto bytes, read_file(path, 1U << 20));
  FALAJ_ASSIGN(const auto ring, Keyring::load(store, provider, bytes));
  FALAJ_TRY(ring->rewrap());
  return replace_file(path, ring->bytes());
}

}  // namespace falaj::storage
