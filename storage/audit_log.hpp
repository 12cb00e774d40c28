// The audit log: append-only, hash-chained, its heads signed (Ed25519), its payloads sealed. One writer. Byte-exact format:
// FORMATS.md §5.
//
// What it proves: verify() needs only the directory (no KEK): any changed, missing, added or reordered byte up to the last signed
// head is found and named. After the last head, damage is found, but a forger who can write the files could also re-chain the
// tail or cut it off: heads are signed every `sign_every` entries and on close, and head() may be shown to a witness.
//
// Thread rules: AuditLog is guarded inside; append is cheap (memory), sync() writes and fsyncs everything appended so far, once
// for all who wait: call it from run_blocking before the audited effect becomes visible.
//
// Ways to get hurt: an entry that was appended but not synced dies with the process.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "runtime/base/clock.hpp"
#include "storage/digest.hpp"
#include "storage/seal.hpp"

namespace falaj::storage {

enum class Outcome : std::uint8_t { allowed = 0, denied = 1, failed = 2, note = 3 };  // note: the log speaks of itself
std::string_view to_string(Outcome outcome) noexcept;

struct AuditEntry {
  WallTime time;  // zero: the log's clock
  std::string principal, verb, target, tenant, purpose;
  Outcome outcome = Outcome::allowed;
  std::string reason, request_id;
  bool operator==(const AuditEntry&) const = default;
};

struct AuditHead {
  std::uint64_t size = 0;  // records it covers
  Digest chain;
  WallTime time;
  std::array<std::uint8_t, 64> signature{};
};

struct AuditOptions {
  std::uint64_t segment_bytes = 64ULL << 20;
  std::uint64_t sign_every = 1024;  // entries
};

class AuditLog {
 public:
  // Recovers: a last entry that was cut off by a crash is moved to torn-<index>.bin and a note entry says so. `corrupt`: damage that
  // no crash explains; run `falaj audit verify`.
  [[nodiscard]] static Result<std::unique_ptr<AuditLog>> open(const std::filesystem::path& dir, KeyProvider& provider, const Clock& clock,
                                                              AuditOptions options = {});
  ~AuditLog();  // close(), and its error is logged
  AuditLog(const AuditLog&) = delete;
  AuditLog& operator=(const AuditLog&) = delete;

  [[nodiscard]] Result<std::uint64_t> append(const AuditEntry& entry);  // its index
  [[nodiscard]] Status sync();
  [[nodiscard]] Status append_and_sync(const AuditEntry& entry);
  [[nodiscard]] Result<AuditHead> sign_head();  // signs, writes, syncs
  [[nodiscard]] Status close();
  [[nodiscard]] std::uint64_t size() const;  // records
  [[nodiscard]] std::string public_key_hex() const;
  [[nodiscard]] Status rewrap();  // after a rotation of the KEK

 private:
  struct State;
  explicit AuditLog(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct AuditVerdict {
  bool good = false;
  std::uint64_t records = 0, entries = 0, segments = 0, heads = 0;
  std::uint64_t after_last_head = 0;  // records not yet covered by a signature
  Digest chain;                       // at the end of what is good
  std::string log_id, public_key;     // hexadecimal
  // The first bad one:
  std::string bad_segment;  // file name
  std::uint64_t bad_index = 0, bad_offset = 0;
  std::string what;  // one line, with the remedy
};

// Any process may call it. While the writer lives (it holds the lock), an incomplete last record is one that is being written;
// otherwise it is bad.
// `trusted_key`: the public key in hexadecimal from another place; without it the one beside the log is used.
[[nodiscard]] Result<AuditVerdict> verify_audit(const std::filesystem::path& dir,
                                                const std::optional<std::string>& trusted_key = std::nullopt);

// Entries in order, decrypted; from index `from`. Returns at the first bad record with `corrupt`.
using AuditVisitor = std::function<bool(std::uint64_t index, const AuditEntry& entry)>;
[[nodiscard]] Status read_audit(const std::filesystem::path& dir, KeyProvider& provider, std::uint64_t from, const AuditVisitor& visit);

constexpr std::uint32_t kAuditFormat = 1;

}  // namespace falaj::storage
