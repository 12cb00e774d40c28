// Rows of feature views, as one shard node stores them. Key: (tenant, view, partition, entity). The newest event time wins; ingest time
// decides nothing and is kept for point-in-time questions. Training and serving read through the same functions.
//
// Entity keys and values lie sealed, under a key for each (tenant, entity) unless subject_keys is off: erase_subject() makes
// all rows of an entity unreadable, in backups too.
//
// Thread rules: any thread; all calls may touch the disk. A put of n rows is one transaction; its cost is the pages it touches, so give it
// rows of few partitions at a time where there is a choice (rows of one partition lie together).
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/ids.hpp"
#include "storage/sealed_kv.hpp"

namespace falaj::storage {

using FieldValue = std::variant<std::monostate, bool, std::int64_t, float, double, std::string>;  // monostate: missing

struct FeatureRow {
  std::string entity;
  std::vector<FieldValue> fields;  // in the order of the view's schema
  WallTime event_time;
  WallTime ingest_time;
  std::uint32_t schema_version = 0;  // of the view
  bool operator==(const FeatureRow&) const = default;
};

struct ViewName {
  std::string tenant;
  std::string view;
  auto operator<=>(const ViewName&) const = default;
};

struct PutReport {
  std::uint64_t written = 0;
  std::uint64_t stale = 0;  // an equal or newer event time was there
};

struct FeatureRowsOptions {
  bool subject_keys = true;  // part of the format of a store: never change it for an existing one
};

Partition partition_of(std::string_view entity);  // stable for ever: stable_hash(entity) % limits::kPartitions

class FeatureRows {
 public:
  // What SealedKv::open must be given for the tables this uses.
  [[nodiscard]] static SealedOptions sealing(FeatureRowsOptions options = {});
  [[nodiscard]] static Result<std::unique_ptr<FeatureRows>> open(SealedKv& kv, const Clock& clock);
  ~FeatureRows();

  [[nodiscard]] Result<PutReport> put(const ViewName& view, std::span<const FeatureRow> rows);
  // ttl zero: no limit. A row whose event time is older than ttl is as if it were not there.
  [[nodiscard]] Result<std::optional<FeatureRow>> get(const ViewName& view, std::string_view entity, Duration ttl = Duration::zero());
  [[nodiscard]] Result<std::vector<std::optional<FeatureRow>>> get_many(const ViewName& view, std::span<const std::string> entities,
                                                                        Duration ttl = Duration::zero());
  // Rows of one partition in order of entity key. Holds that partition's rows in memory (1/256 of a view) while it runs.
  [[nodiscard]] Status scan(const ViewName& view, Partition partition, Duration ttl, const std::function<bool(const FeatureRow&)>& visit);
  [[nodiscard]] Result<bool> erase(const ViewName& view, std::string_view entity);
  [[nodiscard]] Result<std::uint64_t> erase_view(const ViewName& view);                        // rows gone
  [[nodiscard]] Result<bool> erase_subject(std::string_view tenant, std::string_view entity);  // all views; false: nothing was known
  [[nodiscard]] Result<std::uint64_t> count(const ViewName& view);                             // expired ones included
  [[nodiscard]] Result<std::uint64_t> count(const ViewName& view, Partition partition);
  [[nodiscard]] Result<std::vector<ViewName>> views();  // that have ever had a row

 private:
  struct State;
  explicit FeatureRows(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace falaj::storage
