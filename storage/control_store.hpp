// The control store: a small, strongly consistent map of everything that is wanted and known about the cluster (nodes, jobs, models,
// deployments, policies). One global revision counts the transactions; compare-and-set on revisions; watches; leases.
//
// It is an interface, because several control nodes will share an etcd; open_control_store() gives the one over a Kv. All keys and values
// are also held in memory (control state is small), so get and list touch no disk.
//
// Thread rules: guarded inside; commit, grant, revoke and expire may touch the disk: run_blocking. Watch callbacks run on the
// committing thread, in order of revision, one at a time, after the commit is durable: they must be short (post a message) and must not
// call the store.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/ids.hpp"
#include "storage/kv.hpp"

namespace falaj::storage {

using LeaseId = Id<struct LeaseIdTag>;  // 0: none
using WatchId = Id<struct WatchIdTag>;

struct KeyValue {
  std::string key;
  Bytes value;
  Revision created{};   // of the put that made it
  Revision modified{};  // of the newest put
  LeaseId lease{};
  bool operator==(const KeyValue&) const = default;
};

// True when the key's newest put has this revision; revision 0: the key does not exist.
struct Condition {
  std::string key;
  Revision modified{};
};

struct Write {
  std::string key;
  std::optional<Bytes> value;  // nothing: delete
  LeaseId lease{};             // the key goes when the lease does
};

struct Transaction {
  std::vector<Condition> conditions;  // all must hold, otherwise `conflict`, and nothing is changed
  std::vector<Write> writes;          // one revision for all of them
};

struct Event {
  Revision revision{};
  std::string key;
  std::optional<KeyValue> now;  // nothing: deleted
};

struct Listing {
  Revision revision{};          // watch from revision + 1 to miss nothing
  std::vector<KeyValue> items;  // in key order
};

class ControlStore {
 public:
  virtual ~ControlStore() = default;
  // The new revision. `conflict` names key, expected and actual revision.
  [[nodiscard]] virtual Result<Revision> commit(const Transaction& transaction) = 0;
  [[nodiscard]] virtual Result<std::optional<KeyValue>> get(std::string_view key) = 0;
  [[nodiscard]] virtual Result<Listing> list(std::string_view prefix) = 0;
  [[nodiscard]] virtual Revision revision() const = 0;

  // Events of keys with the prefix, from revision `from` on (first those of the past, inside this call). `gone`: compacted; list, then
  // watch from the listing's revision + 1.
  using Watcher = std::function<void(const Event&)>;
  [[nodiscard]] virtual Result<WatchId> watch(std::string_view prefix, Revision from, Watcher watcher) = 0;
  virtual void unwatch(WatchId id) = 0;  // no call is running or will run after it returns
  [[nodiscard]] virtual Result<std::vector<Event>> events(std::string_view prefix, Revision from) = 0;
  [[nodiscard]] virtual Status compact(Revision upto) = 0;  // forget events up to and with this revision

  // A lease lives for `ttl` after its grant, its last keep_alive, or the opening of the store. expire() ends those that are due (call it
  // from a timer) and tells how many.
  [[nodiscard]] virtual Result<LeaseId> grant(Duration ttl) = 0;
  [[nodiscard]] virtual Status keep_alive(LeaseId lease) = 0;  // not_found: it has ended
  [[nodiscard]] virtual Status revoke(LeaseId lease) = 0;
  [[nodiscard]] virtual Result<std::size_t> expire() = 0;

  // Single-key forms. nullopt: whatever is there.
  [[nodiscard]] Result<Revision> put(std::string key, Bytes value, std::optional<Revision> expected = std::nullopt, LeaseId lease = {});
  [[nodiscard]] Result<Revision> erase(std::string key, std::optional<Revision> expected = std::nullopt);
};

struct ControlOptions {
  std::uint64_t events_kept = 10'000;  // revisions of history for watchers that come back
  std::size_t value_bytes_max = 4U << 20;
  std::size_t writes_max = 1024;  // in one transaction
};

// Uses the tables "control", "control.log", "control.lease", "control.meta" of `kv` (a SealedKv in production). Both references outlive the
// store.
[[nodiscard]] Result<std::unique_ptr<ControlStore>> open_control_store(Kv& kv, const Clock& clock, ControlOptions options = {});

}  // namespace falaj::storage
