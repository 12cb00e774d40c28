#include "storage/sealed_kv.hpp"

#include <algorithm>
#include <list>
#include <unordered_map>

#include "runtime/base/format.hpp"
#include "storage/files.hpp"

namespace falaj::storage {
namespace {

constexpr std::uint8_t kSubjectFormat = 2;  // beside kSealFormat: u8 format | subject id (32) | u32 generation | nonce | ciphertext | tag
constexpr std::size_t kSubjectHeader = 1 + 32 + 4;
constexpr std::size_t kHashBytes = 32;
constexpr std::size_t kSubjectClearMax = 12;
static_assert(32 - kSubjectClearMax >= 20);
constexpr std::uint16_t kKeysVersion = 1;
constexpr std::uint64_t kReserve = 1ULL << 20;

const Bytes& ring_key() {
  static const Bytes key = to_bytes("ring");
  return key;
}

const Bytes& name_key() {
  static const Bytes key = to_bytes("store");
  return key;
}

using SubjectId = Digest;  // clear prefix of the subject's name, then its HMAC: at least 160 bits of it

// The ids of one partition share their first bytes.
struct HashId {
  std::size_t operator()(const SubjectId& id) const noexcept {
    return static_cast<std::size_t>(get_le<std::uint64_t>(id.bytes.data() + 24));
  }
};

struct SubjectKey {
  std::uint32_t generation = 0;  // random; tells a key made after an erasure from the one that was erased
  std::array<std::uint8_t, kKeyBytes> key{};
};

Bytes subject_record_key(const SubjectId& id) {
  Bytes key = to_bytes("s");
  append(key, id.view());
  return key;
}

Bytes place_of(std::string_view table, ByteView stored_key, std::uint16_t version) {
  Bytes number;
  put_le(number, version);
  return make_aad({as_bytes(table), stored_key, number});
}

}  // namespace

// Unwrapped subject keys, the most recently used ones. `epoch` counts erasures: a reader that began before one must not put
// what it found back into the cache.
struct SealedKv::Subjects {
  explicit Subjects(std::size_t limit) : max(limit) {}
  std::optional<SubjectKey> find(const SubjectId& id) {
    const std::lock_guard guard(mutex);
    const auto found = index.find(id);
    if (found == index.end()) return std::nullopt;
    order.splice(order.begin(), order, found->second);
    return found->second->second;
  }
  void insert(const SubjectId& id, const SubjectKey& key, std::uint64_t seen_epoch) {
    const std::lock_guard guard(mutex);
    if (seen_epoch != epoch || max == 0) return;
    if (const auto found = index.find(id); found != index.end()) {
      found->second->second = key;
      return;
    }
    if (index.size() >= max) {
      index.erase(order.back().first);
      order.pop_back();
    }
    order.emplace_front(id, key);
    index.emplace(id, order.begin());
  }
  void erase(const SubjectId& id) {
    const std::lock_guard guard(mutex);
    ++epoch;
    if (const auto found = index.find(id); found != index.end()) {
      order.erase(found->second);
      index.erase(found);
    }
  }
  std::uint64_t now() {
    const std::lock_guard guard(mutex);
    return epoch;
  }

  std::mutex mutex;
  std::uint64_t epoch = 0;
  std::size_t max;
  std::list<std::pair<SubjectId, SubjectKey>> order;
  std::unordered_map<SubjectId, decltype(order)::iterator, HashId> index;
};

// What reads and writes share, over one transaction of the store below.
struct SealedOps {
  SealedKv& kv;
  ReadTxn& inner;
  std::uint64_t epoch;

  struct Opened {
    Bytes key;  // the real one
    Bytes value;
  };

  [[nodiscard]] Bytes stored_key(const TableOptions& options, std::string_view table, ByteView key) const {
    if (!options.hash_keys) return {key.begin(), key.end()};
    Bytes out(key.begin(), key.begin() + static_cast<std::ptrdiff_t>(std::min(key.size(), options.clear_prefix)));
    append(out, kv.index_->mac(make_aad({as_bytes(table), key})).view());
    return out;
  }

  [[nodiscard]] SubjectId subject_id(ByteView subject) const {
    const auto mac = kv.index_->mac(make_aad({as_bytes("falaj/subject/1"), subject}));
    const auto clear = std::min({kv.options_.subject_clear, subject.size(), kSubjectClearMax});
    SubjectId id;
    std::copy_n(subject.begin(), clear, id.bytes.begin());
    std::copy_n(mac.bytes.begin(), id.bytes.size() - clear, id.bytes.begin() + static_cast<std::ptrdiff_t>(clear));
    return id;
  }

  [[nodiscard]] Bytes subject_aad(ByteView place, ByteView header) const {
    return make_aad({as_bytes("falaj/subject-seal/1"), as_bytes(kv.store_), place, header});
  }

  [[nodiscard]] Result<std::optional<SubjectKey>> stored_subject(const SubjectId& id) const {
    const auto record_key = subject_record_key(id);
    FALAJ_ASSIGN(const auto record, inner.get(kKeysTable, record_key));
    if (!record) return std::optional<SubjectKey>{};
    const auto plain = kv.ring_->open(place_of(kKeysTable, record_key, record->version), record->bytes);
    if (!plain) return within(format("table {}, key {}", kKeysTable, printable(record_key)), plain.error());
    if (plain->size() != 4 + kKeyBytes)
      return error(ErrorCode::corrupt, format("table {}, key {}: no subject key", kKeysTable, printable(record_key)));
    SubjectKey out{.generation = get_le<std::uint32_t>(plain->data())};
    std::copy_n(plain->begin() + 4, kKeyBytes, out.key.begin());
    return std::optional<SubjectKey>(out);
  }

  // Nothing: sealed under an erased key.
  [[nodiscard]] Result<std::optional<Bytes>> unseal(ByteView place, ByteView sealed) const {
    if (sealed.empty() || sealed[0] != kSubjectFormat) {
      auto plain = kv.ring_->open(place, sealed);
      if (!plain && plain.error().code == ErrorCode::not_found) return std::optional<Bytes>{};
      if (!plain) return std::move(plain).error();
      return std::optional<Bytes>(std::move(*plain));
    }
    if (sealed.size() < kSubjectHeader) return error(ErrorCode::corrupt, "the sealed bytes are cut short");
    FALAJ_ASSIGN(const auto id, Digest::from_bytes(sealed.subspan(1, 32)));
    const auto generation = get_le<std::uint32_t>(sealed.data() + 33);
    auto key = kv.subjects_->find(id);
    if (!key || key->generation != generation) {
      FALAJ_ASSIGN(key, stored_subject(id));
      if (!key || key->generation != generation) return std::optional<Bytes>{};
      kv.subjects_->insert(id, *key, epoch);
    }
    FALAJ_ASSIGN(auto plain, aes_open(key->key, subject_aad(place, sealed.first(kSubjectHeader)), sealed.subspan(kSubjectHeader)));
    return std::optional<Bytes>(std::move(plain));
  }

  // Nothing: erased.
  [[nodiscard]] Result<std::optional<Opened>> open(const TableOptions& options, std::string_view table, const Item& item) const {
    const auto bad = [&](Error why) { return within(format("table {}, key {}", table, printable(item.key)), std::move(why)); };
    auto plain = unseal(place_of(table, item.key, item.version), item.value);
    if (!plain) return bad(std::move(plain).error());
    if (!*plain) {
      kv.erased_met_.fetch_add(1, std::memory_order_relaxed);
      return std::optional<Opened>{};
    }
    Opened out;
    if (!options.hash_keys) {
      out.key.assign(item.key.begin(), item.key.end());
      out.value = std::move(**plain);
      return std::optional(std::move(out));
    }
    Cut cut(**plain);
    const auto hidden = cut.take(cut.number<std::uint16_t>());
    if (!cut.ok() || item.key.size() < kHashBytes) return bad(error(ErrorCode::corrupt, "the sealed value holds no key"));
    append(out.key, item.key.first(item.key.size() - kHashBytes));
    append(out.key, hidden);
    append(out.value, cut.rest());
    return std::optional(std::move(out));
  }

  [[nodiscard]] Result<std::optional<Value>> get(std::string_view table, ByteView key) const {
    FALAJ_TRY(check_key(table, key));
    const auto& options = kv.options_for(table);
    const auto stored = stored_key(options, table, key);
    FALAJ_ASSIGN(const auto found, inner.get(table, stored));
    if (!found) return std::optional<Value>{};
    FALAJ_ASSIGN(auto opened, open(options, table, Item{.key = stored, .value = found->bytes, .version = found->version}));
    if (!opened) return std::optional<Value>{};
    return std::optional(Value{.bytes = std::move(opened->value), .version = found->version});
  }

  [[nodiscard]] Status scan(std::string_view table, ByteView prefix, ByteView from, const Visitor& visit) const {
    const auto& options = kv.options_for(table);
    if (options.hash_keys && from.size() > options.clear_prefix)
      return invalid(
          format("table {}: its keys are hashed behind {} bytes, so a scan cannot begin in the middle", table, options.clear_prefix));
    const auto clear = options.hash_keys ? prefix.first(std::min(prefix.size(), options.clear_prefix)) : prefix;
    Status inside;
    FALAJ_TRY(inner.scan(table, clear, from, [&](const Item& item) {
      auto opened = open(options, table, item);
      if (!opened) {
        inside = std::move(opened).error();
        return false;
      }
      if (!*opened) return true;
      const auto& [key, value] = **opened;
      if (key.size() < prefix.size() || !std::equal(prefix.begin(), prefix.end(), key.begin())) return true;
      return visit(Item{.key = key, .value = value, .version = item.version});
    }));
    return inside;
  }

  // Counting needs no opening where the prefix lies in clear; values of erased subjects are then counted too.
  [[nodiscard]] bool counts_below(std::string_view table, ByteView prefix) const {
    const auto& options = kv.options_for(table);
    return table != kKeysTable && (!options.hash_keys || prefix.size() <= options.clear_prefix);
  }

  [[nodiscard]] Result<std::vector<std::string>> tables() const {
    FALAJ_ASSIGN(auto names, inner.tables());
    std::erase(names, kKeysTable);
    return names;
  }
};

namespace {

// The plaintext of a hashed table begins with the part of the key that the stored key hides.
Bytes hide_key(const TableOptions& options, ByteView key, ByteView value) {
  if (!options.hash_keys) return {value.begin(), value.end()};
  Bytes out;
  const auto clear = std::min(key.size(), options.clear_prefix);
  out.reserve(2 + key.size() - clear + value.size());
  put_le(out, static_cast<std::uint16_t>(key.size() - clear));
  append(out, key.subspan(clear));
  append(out, value);
  return out;
}

Status not_keys(std::string_view table) {
  return table == kKeysTable ? Status(invalid("the table \"keys\" of a sealed store is its own")) : Status{};
}

}  // namespace

// What reading and writing transactions do alike.
template <class Base>
class SealedTxn : public Base {
 public:
  SealedTxn(SealedKv& kv, std::unique_ptr<Base> inner, std::uint64_t epoch) : inner_(std::move(inner)), ops_{kv, *inner_, epoch} {}
  Result<std::optional<Value>> get(std::string_view table, ByteView key) override {
    FALAJ_TRY(not_keys(table));
    return ops_.get(table, key);
  }
  using ReadTxn::scan;
  Status scan(std::string_view table, ByteView prefix, ByteView from, const Visitor& visit) override {
    FALAJ_TRY(not_keys(table));
    return ops_.scan(table, prefix, from, visit);
  }
  Result<std::vector<std::string>> tables() override { return ops_.tables(); }
  using ReadTxn::count;
  Result<std::uint64_t> count(std::string_view table, ByteView prefix) override {
    return ops_.counts_below(table, prefix) ? inner_->count(table, prefix) : ReadTxn::count(table, prefix);
  }

 protected:
  std::unique_ptr<Base> inner_;
  SealedOps ops_;
};

class SealedRead final : public SealedTxn<ReadTxn> {
 public:
  using SealedTxn::SealedTxn;
};

class SealedWrite final : public SealedTxn<WriteTxn> {
 public:
  SealedWrite(SealedKv& kv, std::unique_lock<std::mutex> writer, std::unique_ptr<WriteTxn> inner)
      : SealedTxn(kv, std::move(inner), kv.subjects_->now()), kv_(kv), writer_(std::move(writer)) {}
  ~SealedWrite() override { finish(); }

  Status put(std::string_view table, ByteView key, ByteView value, std::uint16_t version) override {
    FALAJ_TRY(not_keys(table));
    FALAJ_TRY(check_key(table, key));
    FALAJ_TRY(count_message());
    const auto& options = kv_.options_for(table);
    if (options.hash_keys && options.clear_prefix + kHashBytes > kKeyBytesMax)
      return invalid(format("table {}: the clear prefix is too long", table));
    const auto stored = ops_.stored_key(options, table, key);
    const auto place = place_of(table, stored, version);
    const auto plain = hide_key(options, key, value);
    const auto subject = options.subject_of ? options.subject_of(key) : Bytes{};
    if (subject.empty()) {
      FALAJ_ASSIGN(const auto sealed, kv_.ring_->seal(place, plain));
      return inner_->put(table, stored, sealed, version);
    }
    const auto id = ops_.subject_id(subject);
    FALAJ_ASSIGN(const auto subject_key, key_for(id));
    Bytes sealed;
    sealed.reserve(kSubjectHeader + kNonceBytes + plain.size() + kTagBytes);
    sealed.push_back(kSubjectFormat);
    append(sealed, id.view());
    put_le(sealed, subject_key.generation);
    append(sealed, aes_seal(subject_key.key, ops_.subject_aad(place, sealed), plain));
    return inner_->put(table, stored, sealed, version);
  }

  Result<bool> erase(std::string_view table, ByteView key) override {
    FALAJ_TRY(not_keys(table));
    FALAJ_TRY(check_key(table, key));
    return inner_->erase(table, ops_.stored_key(kv_.options_for(table), table, key));
  }

  // Erases the key of a subject; what it sealed stays where it is, for ever unreadable.
  Result<bool> erase_subject(ByteView subject) {
    const auto id = ops_.subject_id(subject);
    erased_.push_back(id);
    return inner_->erase(kKeysTable, subject_record_key(id));
  }

  Status store_ring() {
    FALAJ_TRY(inner_->put(kKeysTable, ring_key(), kv_.ring_->bytes(), kKeysVersion));
    ring_stored_ = true;
    return {};
  }

  Status commit() override {
    auto status = commit_held();
    if (writer_.owns_lock()) writer_.unlock();
    return status;
  }
  void abort() noexcept override { finish(); }

 private:
  void finish() noexcept {
    inner_->abort();
    forget_made();
    if (writer_.owns_lock()) writer_.unlock();
  }
  Status commit_held() {
    auto status = inner_->commit();
    // Also after an error: whether it reached the disk may be unknown, and a forgotten cache entry costs one read.
    for (const auto& id : erased_) kv_.subjects_->erase(id);
    if (!status) {
      forget_made();
      return status;
    }
    if (ring_stored_) {
      kv_.ring_dirty_ = false;
      kv_.reserved_ = kv_.sealed_ + kReserve;
    }
    for (const auto& [id, key] : made_) kv_.subjects_->insert(id, key, ops_.epoch + (erased_.empty() ? 0 : erased_.size()));
    made_.clear();
    return {};
  }
  // A read within this transaction has put the new keys into the cache. If they are not stored now, nothing may be sealed with them.
  void forget_made() noexcept {
    for (const auto& [id, key] : made_) kv_.subjects_->erase(id);
    made_.clear();
  }
  // Messages are counted ahead in blocks, so that a crash can only make the count too high.
  Status count_message() {
    if (++kv_.sealed_ > kv_.reserved_ && !ring_stored_) {
      kv_.ring_dirty_ = true;
      FALAJ_TRY(kv_.ring_->reserve(kReserve));
    }
    return kv_.ring_dirty_ && !ring_stored_ ? store_ring() : Status{};
  }

  Result<SubjectKey> key_for(const SubjectId& id) {
    if (const auto made = made_.find(id); made != made_.end()) return made->second;
    if (const auto cached = kv_.subjects_->find(id)) return *cached;
    FALAJ_ASSIGN(const auto stored, ops_.stored_subject(id));
    if (stored) {
      kv_.subjects_->insert(id, *stored, ops_.epoch);
      return *stored;
    }
    SubjectKey fresh;
    Bytes plain(4 + kKeyBytes);
    random_bytes(plain);
    fresh.generation = get_le<std::uint32_t>(plain.data());
    std::copy_n(plain.begin() + 4, kKeyBytes, fresh.key.begin());
    FALAJ_TRY(count_message());
    const auto record_key = subject_record_key(id);
    FALAJ_ASSIGN(const auto sealed, kv_.ring_->seal(place_of(kKeysTable, record_key, kKeysVersion), plain));
    FALAJ_TRY(inner_->put(kKeysTable, record_key, sealed, kKeysVersion));
    made_.emplace(id, fresh);
    return fresh;
  }

  SealedKv& kv_;
  std::unique_lock<std::mutex> writer_;
  std::unordered_map<SubjectId, SubjectKey, HashId> made_;
  std::vector<SubjectId> erased_;
  bool ring_stored_ = false;
};

SealedKv::SealedKv(Kv& inner, std::string store, SealedOptions options)
    : inner_(inner),
      store_(std::move(store)),
      options_(std::move(options)),
      subjects_(std::make_unique<Subjects>(options_.subject_cache)) {}
SealedKv::~SealedKv() = default;

const TableOptions& SealedKv::options_for(std::string_view table) const {
  const auto found = options_.tables.find(table);
  return found == options_.tables.end() ? options_.other : found->second;
}

Result<std::unique_ptr<SealedKv>> SealedKv::open(Kv& inner, std::string store, KeyProvider& provider, SealedOptions options) {
  std::unique_ptr<SealedKv> kv(new SealedKv(inner, std::move(store), std::move(options)));
  std::optional<Value> stored;
  bool empty = false;
  {
    FALAJ_ASSIGN(const auto txn, inner.read());
    FALAJ_ASSIGN(stored, txn->get(kKeysTable, ring_key()));
    FALAJ_ASSIGN(const auto names, txn->tables());
    empty = names.empty();
    FALAJ_ASSIGN(const auto name, store_name(*txn));
    if (name && *name != kv->store_) return invalid(format("this is the sealed store \"{}\", not \"{}\"", *name, kv->store_));
  }
  if (stored) {
    FALAJ_ASSIGN(kv->ring_, Keyring::load(kv->store_, provider, stored->bytes));
  } else {
    if (!empty)
      return error(ErrorCode::corrupt,
                   format("store {}: it holds data, but its keys (table keys, key ring) are gone; restore them from a backup", kv->store_));
    FALAJ_ASSIGN(kv->ring_, Keyring::create(kv->store_, provider));
    FALAJ_ASSIGN(const auto txn, inner.write());
    FALAJ_TRY(txn->put(kKeysTable, ring_key(), kv->ring_->bytes(), kKeysVersion));
    FALAJ_TRY(txn->put(kKeysTable, name_key(), as_bytes(kv->store_), kKeysVersion));
    FALAJ_TRY(txn->commit());
  }
  kv->index_ = std::make_unique<HmacKey>(kv->ring_->index_key().view());
  return kv;
}

Result<std::unique_ptr<ReadTxn>> SealedKv::read() {
  const auto epoch = subjects_->now();  // before the snapshot: an erasure between the two makes us remember less, never more
  FALAJ_ASSIGN(auto inner, inner_.read());
  return std::unique_ptr<ReadTxn>(std::make_unique<SealedRead>(*this, std::move(inner), epoch));
}

Result<std::unique_ptr<WriteTxn>> SealedKv::write() {
  std::unique_lock writer(writer_);
  FALAJ_ASSIGN(auto inner, inner_.write());
  return std::unique_ptr<WriteTxn>(std::make_unique<SealedWrite>(*this, std::move(writer), std::move(inner)));
}

Result<bool> SealedKv::erase_subject(ByteView subject) {
  std::unique_lock writer(writer_);
  FALAJ_ASSIGN(auto inner, inner_.write());
  SealedWrite txn(*this, std::move(writer), std::move(inner));
  FALAJ_ASSIGN(const bool known, txn.erase_subject(subject));
  FALAJ_TRY(txn.commit());
  return known;
}

Status SealedKv::rotate_key() {
  std::unique_lock writer(writer_);
  FALAJ_ASSIGN(auto inner, inner_.write());
  SealedWrite txn(*this, std::move(writer), std::move(inner));
  ring_dirty_ = true;
  FALAJ_TRY(ring_->rotate());
  FALAJ_TRY(ring_->reserve(kReserve));
  FALAJ_TRY(txn.store_ring());
  return txn.commit();
}

Status SealedKv::rewrap() {
  std::unique_lock writer(writer_);
  FALAJ_ASSIGN(auto inner, inner_.write());
  SealedWrite txn(*this, std::move(writer), std::move(inner));
  ring_dirty_ = true;
  FALAJ_TRY(ring_->rewrap());
  FALAJ_TRY(ring_->reserve(kReserve));
  FALAJ_TRY(txn.store_ring());
  return txn.commit();
}

Status SealedKv::inspect(std::string_view table, const std::function<bool(ByteView stored_key, const std::optional<Bytes>& plain)>& visit) {
  const auto epoch = subjects_->now();
  FALAJ_ASSIGN(const auto inner, inner_.read());
  const SealedOps ops{*this, *inner, epoch};
  Status inside;
  FALAJ_TRY(inner->scan(table, {}, [&](const Item& item) {
    const auto plain = ops.unseal(place_of(table, item.key, item.version), item.value);
    if (!plain) {
      inside = within(format("table {}, key {}", table, printable(item.key)), plain.error());
      return false;
    }
    return visit(item.key, *plain);
  }));
  return inside;
}

Result<std::optional<std::string>> SealedKv::store_name(ReadTxn& inner) {
  FALAJ_ASSIGN(const auto name, inner.get(kKeysTable, name_key()));
  if (!name) return std::optional<std::string>{};
  return std::optional(std::string(as_text(name->bytes)));
}

std::array<std::uint8_t, 16> SealedKv::tag(std::string_view text) const {
  const auto digest = index_->mac(make_aad({as_bytes("falaj/tag/1"), as_bytes(text)}));
  std::array<std::uint8_t, 16> out{};
  std::copy_n(digest.bytes.begin(), out.size(), out.begin());
  return out;
}

}  // namespace falaj::storage
