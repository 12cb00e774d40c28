// A Kv whose values, and keys where asked, lie sealed in the Kv below. Its own table there is "keys": the ring of data keys, and
// the subjects' keys, which are wrapped by the ring.
//
// Keys. A table keeps the first `clear_prefix` bytes of a key as they are and the rest, when hash_keys is set, as HMAC-SHA256; the
// real key lies inside the sealed value. get and erase work as ever. A scan whose prefix is no longer than clear_prefix is as
// cheap as before; a longer one reads all of the clear part and filters. A scan of hashed keys comes in no useful order within
// one clear prefix, and refuses `from`.
//
// Subjects. Where a table names the subject of a key, the value is sealed under a key of that subject's own; erase_subject()
// destroys it, and every value sealed under it, in whatever table or backup, can be read by nobody. To get and scan such values are
// as if they were not there; erased_met() counts the meetings.
//
// Ways to get hurt:
//  - A table's options are part of its format: changing them makes its keys unfindable. They are given in code, once.
//  - LMDB's freed pages keep old bytes until they are reused. A shredded subject key may lie there, wrapped, for a while;
//    backups should leave out the table "keys" and keep that apart, for a short time.
#pragma once
#include <atomic>
#include <mutex>

#include "storage/digest.hpp"
#include "storage/kv.hpp"
#include "storage/seal.hpp"

namespace falaj::storage {

struct TableOptions {
  bool hash_keys = true;
  std::size_t clear_prefix = 0;                             // bytes
  std::function<Bytes(ByteView key)> subject_of = nullptr;  // null or an empty result: the store's key
};

struct SealedOptions {
  std::map<std::string, TableOptions, std::less<>> tables;  // others: `other`
  TableOptions other{};
  // Of a subject's name, in clear at the front of its id (at most 12 bytes): subjects that are written together lie together then.
  std::size_t subject_clear = 0;
  std::size_t subject_cache = 65536;  // unwrapped subject keys held in memory
};

class SealedKv final : public Kv {
 public:
  // `store` names it in the AAD of every value: it may never change. Both references outlive the SealedKv.
  [[nodiscard]] static Result<std::unique_ptr<SealedKv>> open(Kv& inner, std::string store, KeyProvider& provider,
                                                              SealedOptions options = {});
  ~SealedKv() override;
  [[nodiscard]] Result<std::unique_ptr<ReadTxn>> read() override;
  [[nodiscard]] Result<std::unique_ptr<WriteTxn>> write() override;
  [[nodiscard]] Status sync() override { return inner_.sync(); }

  [[nodiscard]] Result<bool> erase_subject(ByteView subject);  // false: it had no key
  [[nodiscard]] Status rotate_key();                           // new values get a new data key
  [[nodiscard]] Status rewrap();                               // after a rotation of the KEK
  // A keyed name of 16 bytes, stable for this store: for what must be findable but not readable in a clear prefix.
  [[nodiscard]] std::array<std::uint8_t, 16> tag(std::string_view text) const;
  // For tools: every value of a table as it was sealed (hashed tables: u16 length, hidden part of the key, value), with the key as it
  // lies below; nothing for values of erased keys. Ends with the first bad one. Needs no TableOptions.
  [[nodiscard]] Status inspect(std::string_view table,
                               const std::function<bool(ByteView stored_key, const std::optional<Bytes>& plain)>& visit);
  [[nodiscard]] static Result<std::optional<std::string>> store_name(ReadTxn& inner);  // nothing: not a sealed store
  [[nodiscard]] std::uint64_t erased_met() const { return erased_met_.load(std::memory_order_relaxed); }

 private:
  friend class SealedRead;
  friend class SealedWrite;
  friend struct SealedOps;
  struct Subjects;
  SealedKv(Kv& inner, std::string store, SealedOptions options);
  [[nodiscard]] const TableOptions& options_for(std::string_view table) const;

  Kv& inner_;
  std::string store_;
  SealedOptions options_;
  std::unique_ptr<Keyring> ring_;
  std::unique_ptr<HmacKey> index_;
  std::unique_ptr<Subjects> subjects_;
  // Held through a write transaction and what follows its commit in memory (caches, counts): the store below lets the next writer
  // in before that.
  std::mutex writer_;
  // Under writer_:
  std::uint64_t sealed_ = 0;    // messages since open
  std::uint64_t reserved_ = 0;  // of them covered by what the ring on disk has counted
  bool ring_dirty_ = false;     // the ring in memory is newer than the one on disk
  mutable std::atomic<std::uint64_t> erased_met_{0};
};

constexpr std::string_view kKeysTable = "keys";

}  // namespace falaj::storage
