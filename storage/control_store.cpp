#include "storage/control_store.hpp"

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <set>

#include "runtime/base/format.hpp"
#include "storage/files.hpp"

namespace falaj::storage {
namespace {

constexpr std::string_view kData = "control";
constexpr std::string_view kLog = "control.log";
constexpr std::string_view kLeases = "control.lease";
constexpr std::string_view kMeta = "control.meta";
constexpr std::uint16_t kVersion = 1;

Bytes number_key(std::uint64_t n) {  // big-endian: byte order is number order
  Bytes out;
  for (int shift = 56; shift >= 0; shift -= 8) out.push_back(static_cast<std::uint8_t>(n >> shift));
  return out;
}

Bytes encode(const KeyValue& kv) {
  Bytes out;
  put_text(out, kv.key);
  put_le(out, kv.created.value());
  put_le(out, kv.modified.value());
  put_le(out, kv.lease.value());
  put_text(out, as_text(kv.value));
  return out;
}

KeyValue decode(Cut& cut) {
  KeyValue out;
  out.key = cut.text();
  out.created = Revision(cut.number<std::uint64_t>());
  out.modified = Revision(cut.number<std::uint64_t>());
  out.lease = LeaseId(cut.number<std::uint64_t>());
  out.value = to_bytes(cut.text());
  return out;
}

Bytes encode(Revision revision, const std::vector<Event>& events) {
  Bytes out;
  put_le(out, revision.value());
  put_le(out, static_cast<std::uint32_t>(events.size()));
  for (const auto& event : events) {
    out.push_back(event.now ? 1 : 0);
    if (event.now) {
      append(out, encode(*event.now));
    } else {
      put_text(out, event.key);
    }
  }
  return out;
}

Error conflict(const Condition& condition, const KeyValue* found) {
  const auto wanted =
      condition.modified == Revision{} ? std::string("not to exist") : format("to have revision {}", condition.modified.value());
  const auto is = found == nullptr ? std::string("it does not exist") : format("it has revision {}", found->modified.value());
  return error(ErrorCode::conflict, format("key {}: expected {}, but {}; read it again, then decide again", condition.key, wanted, is));
}

}  // namespace

Result<Revision> ControlStore::put(std::string key, Bytes value, std::optional<Revision> expected, LeaseId lease) {
  Transaction transaction;
  if (expected) transaction.conditions.push_back({key, *expected});
  transaction.writes.push_back({.key = std::move(key), .value = std::move(value), .lease = lease});
  return commit(transaction);
}

Result<Revision> ControlStore::erase(std::string key, std::optional<Revision> expected) {
  Transaction transaction;
  if (expected) transaction.conditions.push_back({key, *expected});
  transaction.writes.push_back({.key = std::move(key), .value = std::nullopt, .lease = {}});
  return commit(transaction);
}

namespace {

class KvControlStore final : public ControlStore {
 public:
  KvControlStore(Kv& kv, const Clock& clock, ControlOptions options) : kv_(kv), clock_(clock), options_(options) {}

  Status load() {
    FALAJ_ASSIGN(const auto txn, kv_.read());
    FALAJ_ASSIGN(const auto meta, txn->get(kMeta, as_bytes("state")));
    if (meta) {
      FALAJ_TRY(known(kMeta, meta->version));
      Cut cut(meta->bytes);
      revision_ = Revision(cut.number<std::uint64_t>());
      compacted_ = Revision(cut.number<std::uint64_t>());
      next_lease_ = cut.number<std::uint64_t>();
      if (!cut.done()) return damaged(kMeta);
    }
    FALAJ_TRY(load_leases(*txn));
    FALAJ_TRY(load_data(*txn));
    return load_log(*txn);
  }

  Result<Revision> commit(const Transaction& transaction) override {
    const std::lock_guard committing(commit_mutex_);
    return commit_locked(transaction, std::nullopt);
  }

  Result<std::optional<KeyValue>> get(std::string_view key) override {
    const std::lock_guard guard(mutex_);
    const auto found = data_.find(key);
    return found == data_.end() ? std::optional<KeyValue>{} : std::optional(found->second);
  }

  Result<Listing> list(std::string_view prefix) override {
    const std::lock_guard guard(mutex_);
    Listing out{.revision = revision_, .items = {}};
    for (auto it = data_.lower_bound(prefix); it != data_.end() && it->first.starts_with(prefix); ++it) out.items.push_back(it->second);
    return out;
  }

  Revision revision() const override {
    const std::lock_guard guard(mutex_);
    return revision_;
  }

  Result<WatchId> watch(std::string_view prefix, Revision from, Watcher watcher) override {
    const std::lock_guard committing(commit_mutex_);  // no commit may fall between the past and the future
    FALAJ_ASSIGN(const auto past, events(prefix, from));
    for (const auto& event : past) watcher(event);
    const WatchId id(++next_watch_);
    watchers_.emplace(id, Watch{std::string(prefix), std::move(watcher)});
    return id;
  }

  void unwatch(WatchId id) override {
    const std::lock_guard committing(commit_mutex_);
    watchers_.erase(id);
  }

  Result<std::vector<Event>> events(std::string_view prefix, Revision from) override {
    const std::lock_guard guard(mutex_);
    if (from <= compacted_ && compacted_ != Revision{}) {
      return error(ErrorCode::gone,
                   format("revision {} is compacted, history begins at {}: list, then watch from the listing's revision + 1", from.value(),
                          compacted_.value() + 1));
    }
    std::vector<Event> out;
    auto it = std::ranges::lower_bound(log_, from, {}, [](const auto& entry) { return entry.front().revision; });
    for (; it != log_.end(); ++it) {
      for (const auto& event : *it) {
        if (event.key.starts_with(prefix)) out.push_back(event);
      }
    }
    return out;
  }

  Status compact(Revision upto) override {
    const std::lock_guard committing(commit_mutex_);
    upto = std::min(upto, revision_);
    if (upto <= compacted_) return {};
    FALAJ_ASSIGN(const auto txn, kv_.write());
    FALAJ_TRY(forget(*txn, upto));
    FALAJ_TRY(put_meta(*txn, revision_, upto, next_lease_));
    FALAJ_TRY(txn->commit());
    const std::lock_guard guard(mutex_);
    drop(upto);
    return {};
  }

  Result<LeaseId> grant(Duration ttl) override {
    if (ttl <= Duration::zero()) return invalid("a lease needs a time to live greater than zero");
    const std::lock_guard committing(commit_mutex_);
    const LeaseId id(next_lease_);
    FALAJ_ASSIGN(const auto txn, kv_.write());
    Bytes value;
    put_le(value, id.value());
    put_le(value, ttl.count());
    FALAJ_TRY(txn->put(kLeases, number_key(id.value()), value, kVersion));
    FALAJ_TRY(put_meta(*txn, revision_, compacted_, next_lease_ + 1));
    FALAJ_TRY(txn->commit());
    const std::lock_guard guard(mutex_);
    ++next_lease_;
    leases_.emplace(id, Lease{.ttl = ttl, .ends = clock_.now() + ttl, .keys = {}});
    return id;
  }

  Status keep_alive(LeaseId lease) override {
    const std::lock_guard guard(mutex_);
    const auto found = leases_.find(lease);
    if (found == leases_.end()) return no_lease(lease);
    found->second.ends = clock_.now() + found->second.ttl;
    return {};
  }

  Status revoke(LeaseId lease) override {
    const std::lock_guard committing(commit_mutex_);
    return end(lease);
  }

  Result<std::size_t> expire() override {
    const std::lock_guard committing(commit_mutex_);
    std::vector<LeaseId> due;
    {
      const std::lock_guard guard(mutex_);
      for (const auto& [id, lease] : leases_) {
        if (lease.ends <= clock_.now()) due.push_back(id);
      }
    }
    for (const auto id : due) FALAJ_TRY(end(id));
    return due.size();
  }

 private:
  struct Lease {
    Duration ttl{};
    Instant ends{};
    std::set<std::string> keys;
  };
  struct Watch {
    std::string prefix;
    Watcher call;
  };

  static Status known(std::string_view table, std::uint16_t version) {
    return version > kVersion ? Status(newer_format(format("table {}", table), version, kVersion)) : Status{};
  }
  static Error damaged(std::string_view table) {
    return error(ErrorCode::corrupt, format("table {}: a value is not in its format; restore this store from a backup", table));
  }
  static Error no_lease(LeaseId lease) { return error(ErrorCode::not_found, format("lease {} has ended: grant a new one", lease.value())); }

  Status load_leases(ReadTxn& txn) {
    Status status;
    FALAJ_TRY(txn.scan(kLeases, {}, [&](const Item& item) {
      status = known(kLeases, item.version);
      Cut cut(item.value);
      const LeaseId id(cut.number<std::uint64_t>());
      const Duration ttl(cut.number<std::int64_t>());
      if (status && !cut.done()) status = damaged(kLeases);
      leases_.emplace(id, Lease{.ttl = ttl, .ends = clock_.now() + ttl, .keys = {}});
      return status.has_value();
    }));
    return status;
  }

  Status load_data(ReadTxn& txn) {
    Status status;
    FALAJ_TRY(txn.scan(kData, {}, [&](const Item& item) {
      status = known(kData, item.version);
      Cut cut(item.value);
      auto kv = decode(cut);
      if (status && (!cut.done() || as_text(item.key) != kv.key)) status = damaged(kData);
      if (!status) return false;
      if (const auto lease = leases_.find(kv.lease); lease != leases_.end()) lease->second.keys.insert(kv.key);
      auto key = kv.key;
      data_.emplace(std::move(key), std::move(kv));
      return true;
    }));
    return status;
  }

  Status load_log(ReadTxn& txn) {
    Status status;
    FALAJ_TRY(txn.scan(kLog, {}, [&](const Item& item) {
      status = known(kLog, item.version);
      Cut cut(item.value);
      const Revision revision(cut.number<std::uint64_t>());
      const auto count = cut.number<std::uint32_t>();
      std::vector<Event> events;
      for (std::uint32_t i = 0; i < count && cut.ok(); ++i) {
        Event event{.revision = revision, .key = {}, .now = {}};
        if (cut.number<std::uint8_t>() != 0) {
          event.now = decode(cut);
          event.key = event.now->key;
        } else {
          event.key = cut.text();
        }
        events.push_back(std::move(event));
      }
      if (status && (!cut.done() || events.empty())) status = damaged(kLog);
      if (status) log_.push_back(std::move(events));
      return status.has_value();
    }));
    std::ranges::sort(log_, {}, [](const auto& entry) { return entry.front().revision; });  // a sealed store gives them in no order
    return status;
  }

  Status admit(const Transaction& transaction) const {
    if (transaction.writes.size() > options_.writes_max)
      return invalid(format("{} writes in one transaction; at most {}", transaction.writes.size(), options_.writes_max));
    std::set<std::string_view> seen;
    for (const auto& write : transaction.writes) {
      FALAJ_TRY(check_key(kData, as_bytes(write.key)));
      if (!seen.insert(write.key).second) return invalid(format("key {} is written twice in one transaction", write.key));
      if (write.value && write.value->size() > options_.value_bytes_max)
        return invalid(format("key {}: a value of {} bytes; at most {}", write.key, write.value->size(), options_.value_bytes_max));
      if (write.lease != LeaseId{} && !leases_.contains(write.lease)) return no_lease(write.lease);
    }
    for (const auto& condition : transaction.conditions) {
      const auto found = data_.find(condition.key);
      const auto actual = found == data_.end() ? Revision{} : found->second.modified;
      if (actual != condition.modified) return conflict(condition, found == data_.end() ? nullptr : &found->second);
    }
    return {};
  }

  // Only commit_mutex_ holders change data_, so reading it here needs no mutex_. Disk first, then memory, then watchers.
  Result<Revision> commit_locked(const Transaction& transaction, std::optional<LeaseId> ending) {
    FALAJ_TRY(admit(transaction));
    const Revision next(revision_.value() + 1);
    std::vector<Event> events;
    for (const auto& write : transaction.writes) {
      const auto found = data_.find(write.key);
      if (!write.value && found == data_.end()) continue;
      Event event{.revision = next, .key = write.key, .now = {}};
      if (write.value)
        event.now = KeyValue{.key = write.key,
                             .value = *write.value,
                             .created = found == data_.end() ? next : found->second.created,
                             .modified = next,
                             .lease = write.lease};
      events.push_back(std::move(event));
    }
    if (events.empty() && !ending) return revision_;
    const auto revision = events.empty() ? revision_ : next;
    const Revision keep_from(revision.value() > options_.events_kept ? revision.value() - options_.events_kept : 0);
    const auto compacted = std::max(compacted_, keep_from);
    FALAJ_TRY(store(events, revision, compacted, ending));
    {
      const std::lock_guard guard(mutex_);
      for (const auto& event : events) remember(event);
      if (ending) leases_.erase(*ending);
      revision_ = revision;
      if (!events.empty()) log_.push_back(events);
      drop(compacted);
    }
    for (const auto& [id, watch] : watchers_) {
      for (const auto& event : events) {
        if (event.key.starts_with(watch.prefix)) watch.call(event);
      }
    }
    return revision;
  }

  Status store(const std::vector<Event>& events, Revision revision, Revision compacted, std::optional<LeaseId> ending) {
    FALAJ_ASSIGN(const auto txn, kv_.write());
    for (const auto& event : events) {
      if (event.now) {
        FALAJ_TRY(txn->put(kData, as_bytes(event.key), encode(*event.now), kVersion));
      } else {
        FALAJ_ASSIGN(const bool was, txn->erase(kData, as_bytes(event.key)));
        if (!was)
          return error(ErrorCode::corrupt, format("table {}, key {}: in memory but not on disk; restart this node", kData, event.key));
      }
    }
    if (!events.empty()) FALAJ_TRY(txn->put(kLog, number_key(revision.value()), encode(revision, events), kVersion));
    if (ending) {
      FALAJ_ASSIGN([[maybe_unused]] const bool was, txn->erase(kLeases, number_key(ending->value())));
    }
    FALAJ_TRY(forget(*txn, compacted));
    FALAJ_TRY(put_meta(*txn, revision, compacted, next_lease_));
    return txn->commit();
  }

  Status forget(WriteTxn& txn, Revision upto) {
    for (const auto& entry : log_) {
      if (entry.front().revision > upto) break;
      FALAJ_ASSIGN([[maybe_unused]] const bool was, txn.erase(kLog, number_key(entry.front().revision.value())));
    }
    return {};
  }

  void drop(Revision upto) {
    compacted_ = std::max(compacted_, upto);
    while (!log_.empty() && log_.front().front().revision <= upto) log_.pop_front();
  }

  static Status put_meta(WriteTxn& txn, Revision revision, Revision compacted, std::uint64_t next_lease) {
    Bytes value;
    put_le(value, revision.value());
    put_le(value, compacted.value());
    put_le(value, next_lease);
    return txn.put(kMeta, as_bytes("state"), value, kVersion);
  }

  void remember(const Event& event) {
    if (const auto old = data_.find(event.key); old != data_.end()) {
      if (const auto lease = leases_.find(old->second.lease); lease != leases_.end()) lease->second.keys.erase(event.key);
    }
    if (!event.now) {
      data_.erase(event.key);
      return;
    }
    if (const auto lease = leases_.find(event.now->lease); lease != leases_.end()) lease->second.keys.insert(event.key);
    data_.insert_or_assign(event.key, *event.now);
  }

  Status end(LeaseId id) {
    const auto found = leases_.find(id);
    if (found == leases_.end()) return no_lease(id);
    Transaction transaction;
    for (const auto& key : found->second.keys) transaction.writes.push_back({.key = key, .value = std::nullopt, .lease = {}});
    // A lease may hold more keys than a caller's transaction may; they still go at once.
    const auto limit = std::exchange(options_.writes_max, transaction.writes.size());
    const auto done = commit_locked(transaction, id);
    options_.writes_max = limit;
    if (!done) return done.error();
    return {};
  }

  Kv& kv_;
  const Clock& clock_;
  ControlOptions options_;
  // Order: commit_mutex_ before mutex_. The first serialises commits and watch calls, the second guards what is below.
  std::mutex commit_mutex_;
  std::map<WatchId, Watch> watchers_;  // under commit_mutex_
  std::uint64_t next_watch_ = 0;       // under commit_mutex_
  mutable std::mutex mutex_;
  std::map<std::string, KeyValue, std::less<>> data_;
  std::deque<std::vector<Event>> log_;
  std::map<LeaseId, Lease> leases_;
  Revision revision_{};
  Revision compacted_{};
  std::uint64_t next_lease_ = 1;
};

}  // namespace

Result<std::unique_ptr<ControlStore>> open_control_store(Kv& kv, const Clock& clock, ControlOptions options) {
  auto store = std::make_unique<KvControlStore>(kv, clock, options);
  FALAJ_TRY(store->load());
  return std::unique_ptr<ControlStore>(std::move(store));
}

}  // namespace falaj::storage
