// Sealing: AES-256-GCM under data keys, which lie wrapped by a key-encryption key (KEK) that only a KeyProvider holds.
//
// Rotation of the KEK re-wraps the data keys and touches no data. Rotation of a data key makes a new current one; what was
// sealed before stays readable, and is sealed anew when it is next written. Nonces are 96 random bits; a data key is
// retired after 2^30 messages, far below the 2^32 that NIST SP 800-38D allows for random nonces.
//
// Thread rules: all functions and const members may be called from any thread; Keyring is guarded inside.
//
// Ways to get hurt: whoever loses the KEK loses the data. Back it up apart from them (`falaj init` says so).
#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "runtime/base/bytes.hpp"
#include "runtime/base/random.hpp"
#include "runtime/base/result.hpp"

namespace falaj::storage {

constexpr std::size_t kKeyBytes = 32;
constexpr std::size_t kNonceBytes = 12;
constexpr std::size_t kTagBytes = 16;
constexpr std::uint64_t kMessagesPerKeyMax = 1ULL << 30;

// A key in memory; wiped when destroyed, never printed, never copied by accident.
class Secret {
 public:
  Secret() = default;
  explicit Secret(ByteView bytes);  // exactly kKeyBytes
  ~Secret();
  Secret(Secret&& other) noexcept;
  Secret& operator=(Secret&& other) noexcept;
  [[nodiscard]] static Secret random();
  [[nodiscard]] Secret clone() const { return Secret(view()); }
  [[nodiscard]] ByteView view() const { return bytes_; }

 private:
  std::array<std::uint8_t, kKeyBytes> bytes_{};
};

void random_bytes(std::span<std::uint8_t> out);  // from the operating system's generator; for keys, nonces, tokens
std::string random_name();                       // 32 hexadecimal digits; for temporary files

// Keys and nonces made by this thread come from `random` while this lives: for simulations, whose runs must repeat. Such keys are no
// secret.
class SimulatedEntropy {
 public:
  explicit SimulatedEntropy(Random& random) noexcept;
  ~SimulatedEntropy();
  SimulatedEntropy(const SimulatedEntropy&) = delete;
  SimulatedEntropy& operator=(const SimulatedEntropy&) = delete;

 private:
  Random* before_;
};

// nonce | ciphertext | tag.
Bytes aes_seal(ByteView key, ByteView aad, ByteView plain);
// `corrupt` when key, AAD or a byte of it is not the one it was sealed with.
Result<Bytes> aes_open(ByteView key, ByteView aad, ByteView sealed);
// Joins the parts with their lengths, so that no two lists of parts give the same AAD.
Bytes make_aad(std::initializer_list<ByteView> parts);

// Holder of KEKs: a file now; PKCS#11 or a KMS wrap and unwrap inside their device, which is why the KEK itself is no part of this.
class KeyProvider {
 public:
  virtual ~KeyProvider() = default;
  struct Wrapped {
    std::string kek_id;  // which KEK; at most 64 bytes
    Bytes bytes;
  };
  [[nodiscard]] virtual Result<Wrapped> wrap(ByteView secret, ByteView aad) = 0;         // under the current KEK
  [[nodiscard]] virtual Result<Bytes> unwrap(const Wrapped& wrapped, ByteView aad) = 0;  // `denied`: that KEK is not held
  [[nodiscard]] virtual std::string current_kek_id() const = 0;
};

// A 32-byte key in a file that only its owner may read; "<path>.previous", when there, still unwraps.
class FileKeyProvider final : public KeyProvider {
 public:
  [[nodiscard]] static Status create(const std::filesystem::path& path);  // conflict: it exists
  [[nodiscard]] static Result<std::unique_ptr<FileKeyProvider>> open(const std::filesystem::path& path);
  // KEK rotation: rotate(), then rewrap() of every Keyring, then forget_previous().
  [[nodiscard]] static Status rotate(const std::filesystem::path& path);
  [[nodiscard]] static Status forget_previous(const std::filesystem::path& path);

  [[nodiscard]] Result<Wrapped> wrap(ByteView secret, ByteView aad) override;
  [[nodiscard]] Result<Bytes> unwrap(const Wrapped& wrapped, ByteView aad) override;
  [[nodiscard]] std::string current_kek_id() const override { return current_id_; }

 private:
  std::map<std::string, Secret> keys_;
  std::string current_id_;
};

// The data keys of one store. It is bytes (wrapped keys only) that the store keeps where it keeps its own things.
class Keyring {
 public:
  // A new ring: an index key (for HMACs, never rotated) and data key 1.
  [[nodiscard]] static Result<std::unique_ptr<Keyring>> create(std::string store, KeyProvider& provider);
  [[nodiscard]] static Result<std::unique_ptr<Keyring>> load(std::string store, KeyProvider& provider, ByteView bytes);
  [[nodiscard]] Bytes bytes() const;  // FORMATS.md §3

  [[nodiscard]] std::uint32_t current() const;
  [[nodiscard]] Result<Secret> key(std::uint32_t id) const;  // not_found: unknown or erased
  [[nodiscard]] const Secret& index_key() const { return index_; }
  [[nodiscard]] const std::string& store() const { return store_; }

  // After each of these the caller stores bytes() before it uses the result.
  [[nodiscard]] Status rotate();                         // a new current data key
  [[nodiscard]] Status rewrap();                         // all keys under the provider's current KEK
  [[nodiscard]] Status erase(std::uint32_t id);          // what it sealed can be read by nobody any more
  [[nodiscard]] Status reserve(std::uint64_t messages);  // counts messages ahead on the current key; rotates where it would overflow

  // Sealed form: u8 format (1) | u32 key id | nonce | ciphertext | tag. The AAD covers store, `place`, key id.
  [[nodiscard]] Result<Bytes> seal(ByteView place, ByteView plain) const;
  [[nodiscard]] Result<Bytes> open(ByteView place, ByteView sealed) const;

 private:
  struct Entry {
    Secret secret;
    KeyProvider::Wrapped wrapped;
    std::uint64_t reserved = 0;
  };
  Keyring(std::string store, KeyProvider& provider) : store_(std::move(store)), provider_(provider) {}
  [[nodiscard]] Bytes entry_aad(std::uint32_t id) const;
  [[nodiscard]] Result<Entry> make_entry(std::uint32_t id, Secret secret);
  [[nodiscard]] Status rotate_locked();

  std::string store_;
  KeyProvider& provider_;
  mutable std::mutex mutex_;
  std::map<std::uint32_t, Entry> entries_;  // 0: the index key
  std::uint32_t current_ = 0;
  Secret index_;
};

// A ring in a file of its own, for stores that are no Kv: made when it is not there, `reserve` messages counted ahead (0: nothing is
// written). Several processes may do this at once.
[[nodiscard]] Result<std::unique_ptr<Keyring>> open_keyring_file(const std::filesystem::path& path, const std::string& store,
                                                                 KeyProvider& provider, std::uint64_t reserve);
[[nodiscard]] Status rewrap_keyring_file(const std::filesystem::path& path, const std::string& store, KeyProvider& provider);

constexpr std::uint8_t kSealFormat = 1;
constexpr std::uint16_t kKeyringFormat = 1;

}  // namespace falaj::storage
