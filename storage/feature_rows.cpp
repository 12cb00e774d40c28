#include "storage/feature_rows.hpp"

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>

#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "storage/files.hpp"

namespace falaj::storage {
namespace {

// Key of a row: tag of the tenant (8) | tag of (tenant, view) (16) | partition, big-endian (2) | entity. All but the entity is in clear.
constexpr std::string_view kRows = "features.rows";
constexpr std::string_view kViews = "features.views";
constexpr std::size_t kTenantTag = 8;
constexpr std::size_t kViewTag = 16;
constexpr std::size_t kClear = kTenantTag + kViewTag + 2;
constexpr std::uint16_t kRowVersion = 1;
constexpr std::size_t kEntityBytesMax = kKeyBytesMax - kClear;
constexpr std::size_t kFieldsMax = 65535;

constexpr std::size_t kSubjectClear = kTenantTag + 2;

// Tenant, partition, entity: the partition puts the keys of subjects that are written together next to one another.
Bytes subject_of_key(ByteView key) {
  if (key.size() <= kClear) return {};
  Bytes out(key.begin(), key.begin() + kTenantTag);
  append(out, key.subspan(kTenantTag + kViewTag));
  return out;
}

// Field: u8 kind, then nothing, u8, i64, f32, f64, or u32 length and bytes; numbers little-endian.
struct PutField {
  Bytes& out;
  void operator()(std::monostate) const { out.push_back(0); }
  void operator()(bool v) const {
    out.push_back(1);
    out.push_back(v ? 1 : 0);
  }
  void operator()(std::int64_t v) const {
    out.push_back(2);
    put_le(out, v);
  }
  void operator()(float v) const {
    out.push_back(3);
    put_le(out, std::bit_cast<std::uint32_t>(v));
  }
  void operator()(double v) const {
    out.push_back(4);
    put_le(out, std::bit_cast<std::uint64_t>(v));
  }
  void operator()(const std::string& v) const {
    out.push_back(5);
    put_text(out, v);
  }
};

Bytes encode(const FeatureRow& row) {
  Bytes out;
  out.reserve(24 + row.fields.size() * 9);
  put_le(out, row.event_time.unix_ns);
  put_le(out, row.ingest_time.unix_ns);
  put_le(out, row.schema_version);
  put_le(out, static_cast<std::uint16_t>(row.fields.size()));
  for (const auto& field : row.fields) std::visit(PutField{out}, field);
  return out;
}

Error bad_row(std::string_view entity) {
  return error(ErrorCode::corrupt,
               format("table {}: the row of an entity ({} bytes of key) is not in its format; restore this store from a backup", kRows,
                      entity.size()));
}

Result<FeatureRow> decode(std::string_view entity, ByteView bytes, std::uint16_t version) {
  if (version > kRowVersion) return newer_format(format("table {}", kRows), version, kRowVersion);
  FeatureRow row;
  row.entity = entity;
  Cut cut(bytes);
  row.event_time.unix_ns = cut.number<std::int64_t>();
  row.ingest_time.unix_ns = cut.number<std::int64_t>();
  row.schema_version = cut.number<std::uint32_t>();
  const auto count = cut.number<std::uint16_t>();
  row.fields.reserve(std::min<std::size_t>(count, cut.rest().size()));
  for (std::uint16_t i = 0; i < count && cut.ok(); ++i) {
    switch (cut.number<std::uint8_t>()) {
      case 0:
        row.fields.emplace_back();
        break;
      case 1:
        row.fields.emplace_back(cut.number<std::uint8_t>() != 0);
        break;
      case 2:
        row.fields.emplace_back(cut.number<std::int64_t>());
        break;
      case 3:
        row.fields.emplace_back(std::bit_cast<float>(cut.number<std::uint32_t>()));
        break;
      case 4:
        row.fields.emplace_back(std::bit_cast<double>(cut.number<std::uint64_t>()));
        break;
      case 5:
        row.fields.emplace_back(cut.text());
        break;
      default:
        return bad_row(entity);
    }
  }
  if (!cut.done()) return bad_row(entity);
  return row;
}

std::string view_text(const ViewName& view) { return view.tenant + '\0' + view.view; }

}  // namespace

Partition partition_of(std::string_view entity) { return Partition(static_cast<std::uint16_t>(stable_hash(entity) % limits::kPartitions)); }

struct FeatureRows::State {
  SealedKv& kv;
  const Clock& clock;
  std::mutex mutex;
  std::map<ViewName, Bytes> prefixes;  // tags are HMACs: computed once for each view

  Bytes tenant_tag(std::string_view tenant) const {
    const auto tag = kv.tag(format("tenant/{}", tenant));
    return {tag.begin(), tag.begin() + kTenantTag};
  }
  Bytes prefix(const ViewName& view) {
    const std::lock_guard guard(mutex);
    auto& out = prefixes[view];
    if (out.empty()) {
      out = tenant_tag(view.tenant);
      append(out, kv.tag("view/" + view_text(view)));
    }
    return out;
  }
  static void add_partition(Bytes& key, Partition partition) {
    key.push_back(static_cast<std::uint8_t>(partition.value() >> 8));
    key.push_back(static_cast<std::uint8_t>(partition.value()));
  }
  Bytes key(const Bytes& view_prefix, std::string_view entity) const {
    Bytes out;
    out.reserve(kClear + entity.size());
    append(out, view_prefix);
    add_partition(out, partition_of(entity));
    append(out, as_bytes(entity));
    return out;
  }
  [[nodiscard]] bool expired(const FeatureRow& row, Duration ttl) const {
    return ttl > Duration::zero() && row.event_time.unix_ns < clock.wall().unix_ns - ttl.count();
  }
  Status remember_view(WriteTxn& txn, const ViewName& view) {
    FALAJ_ASSIGN(const auto found, txn.get(kViews, as_bytes(view_text(view))));
    if (found) return {};
    Bytes value;
    put_text(value, view.tenant);
    put_text(value, view.view);
    return txn.put(kViews, as_bytes(view_text(view)), value, kRowVersion);
  }
  Result<std::optional<FeatureRow>> find(ReadTxn& txn, const Bytes& view_prefix, std::string_view entity) const {
    if (entity.empty() || entity.size() > kEntityBytesMax) return std::optional<FeatureRow>{};
    FALAJ_ASSIGN(const auto value, txn.get(kRows, key(view_prefix, entity)));
    if (!value) return std::optional<FeatureRow>{};
    FALAJ_ASSIGN(auto row, decode(entity, value->bytes, value->version));
    return std::optional(std::move(row));
  }
};

SealedOptions FeatureRows::sealing(FeatureRowsOptions options) {
  SealedOptions out;
  out.tables[std::string(kRows)] = {.hash_keys = true, .clear_prefix = kClear, .subject_of = nullptr};
  out.subject_clear = kSubjectClear;
  if (options.subject_keys) out.tables[std::string(kRows)].subject_of = subject_of_key;
  return out;
}

FeatureRows::FeatureRows(std::unique_ptr<State> state) : state_(std::move(state)) {}
FeatureRows::~FeatureRows() = default;

Result<std::unique_ptr<FeatureRows>> FeatureRows::open(SealedKv& kv, const Clock& clock) {
  std::unique_ptr<FeatureRows> out(
      new FeatureRows(std::unique_ptr<State>(new State{.kv = kv, .clock = clock, .mutex = {}, .prefixes = {}})));
  return out;
}

Result<PutReport> FeatureRows::put(const ViewName& view, std::span<const FeatureRow> rows) {
  const auto prefix = state_->prefix(view);
  for (const auto& row : rows) {
    if (row.entity.empty() || row.entity.size() > kEntityBytesMax)
      return invalid(format("an entity key of {} bytes; 1 to {} are allowed", row.entity.size(), kEntityBytesMax));
    if (row.fields.size() > kFieldsMax) return invalid(format("a row of {} fields; at most {}", row.fields.size(), kFieldsMax));
  }
  // By partition: rows of one partition share pages, and a commit costs as much as the pages it touches.
  std::vector<std::pair<Partition, const FeatureRow*>> order;
  order.reserve(rows.size());
  for (const auto& row : rows) order.emplace_back(partition_of(row.entity), &row);
  std::ranges::stable_sort(order, {}, &std::pair<Partition, const FeatureRow*>::first);
  PutReport report;
  FALAJ_ASSIGN(const auto txn, state_->kv.write());
  for (const auto& [partition, row] : order) {
    FALAJ_ASSIGN(const auto old, state_->find(*txn, prefix, row->entity));
    if (old && old->event_time >= row->event_time) {
      ++report.stale;
      continue;
    }
    FALAJ_TRY(txn->put(kRows, state_->key(prefix, row->entity), encode(*row), kRowVersion));
    ++report.written;
  }
  if (report.written == 0) return report;
  FALAJ_TRY(state_->remember_view(*txn, view));
  FALAJ_TRY(txn->commit());
  return report;
}

Result<std::optional<FeatureRow>> FeatureRows::get(const ViewName& view, std::string_view entity, Duration ttl) {
  FALAJ_ASSIGN(const auto txn, state_->kv.read());
  FALAJ_ASSIGN(auto row, state_->find(*txn, state_->prefix(view), entity));
  if (row && state_->expired(*row, ttl)) row.reset();
  return row;
}

Result<std::vector<std::optional<FeatureRow>>> FeatureRows::get_many(const ViewName& view, std::span<const std::string> entities,
                                                                     Duration ttl) {
  FALAJ_ASSIGN(const auto txn, state_->kv.read());
  const auto prefix = state_->prefix(view);
  std::vector<std::optional<FeatureRow>> out;
  out.reserve(entities.size());
  for (const auto& entity : entities) {
    FALAJ_ASSIGN(auto row, state_->find(*txn, prefix, entity));
    if (row && state_->expired(*row, ttl)) row.reset();
    out.push_back(std::move(row));
  }
  return out;
}

Status FeatureRows::scan(const ViewName& view, Partition partition, Duration ttl, const std::function<bool(const FeatureRow&)>& visit) {
  auto prefix = state_->prefix(view);
  State::add_partition(prefix, partition);
  std::vector<FeatureRow> rows;
  Status inside;
  {
    FALAJ_ASSIGN(const auto txn, state_->kv.read());
    FALAJ_TRY(txn->scan(kRows, prefix, [&](const Item& item) {
      auto row = decode(as_text(item.key.subspan(kClear)), item.value, item.version);
      if (!row) {
        inside = std::move(row).error();
        return false;
      }
      if (!state_->expired(*row, ttl)) rows.push_back(std::move(*row));
      return true;
    }));
  }
  FALAJ_TRY(std::move(inside));
  std::ranges::sort(rows, {}, &FeatureRow::entity);  // stored keys are HMACs: their order means nothing and differs between stores
  for (const auto& row : rows) {
    if (!visit(row)) break;
  }
  return {};
}

Result<bool> FeatureRows::erase(const ViewName& view, std::string_view entity) {
  if (entity.empty() || entity.size() > kEntityBytesMax) return false;
  FALAJ_ASSIGN(const auto txn, state_->kv.write());
  FALAJ_ASSIGN(const bool was, txn->erase(kRows, state_->key(state_->prefix(view), entity)));
  if (was) FALAJ_TRY(txn->commit());
  return was;
}

Result<std::uint64_t> FeatureRows::erase_view(const ViewName& view) {
  const auto prefix = state_->prefix(view);
  std::uint64_t gone = 0;
  for (;;) {  // in batches: one transaction over a large view would hold all its pages
    std::vector<Bytes> keys;
    FALAJ_ASSIGN(const auto txn, state_->kv.write());
    FALAJ_TRY(txn->scan(kRows, prefix, [&](const Item& item) {
      keys.emplace_back(item.key.begin(), item.key.end());
      return keys.size() < 4096;
    }));
    for (const auto& key : keys) {
      FALAJ_ASSIGN(const bool was, txn->erase(kRows, key));
      gone += was ? 1 : 0;
    }
    if (keys.size() < 4096) {
      FALAJ_ASSIGN([[maybe_unused]] const bool was, txn->erase(kViews, as_bytes(view_text(view))));
      FALAJ_TRY(txn->commit());
      return gone;
    }
    FALAJ_TRY(txn->commit());
  }
}

Result<bool> FeatureRows::erase_subject(std::string_view tenant, std::string_view entity) {
  if (entity.empty() || entity.size() > kEntityBytesMax) return false;
  FALAJ_ASSIGN(const auto names, views());
  auto subject = state_->tenant_tag(tenant);
  State::add_partition(subject, partition_of(entity));
  append(subject, as_bytes(entity));
  // The key first: from then on nothing of the subject can be read, whatever becomes of the rows.
  FALAJ_ASSIGN(bool known, state_->kv.erase_subject(subject));
  FALAJ_ASSIGN(const auto txn, state_->kv.write());
  for (const auto& view : names) {
    if (view.tenant != tenant) continue;
    FALAJ_ASSIGN(const bool was, txn->erase(kRows, state_->key(state_->prefix(view), entity)));
    known = known || was;
  }
  FALAJ_TRY(txn->commit());
  return known;
}

Result<std::uint64_t> FeatureRows::count(const ViewName& view) {
  FALAJ_ASSIGN(const auto txn, state_->kv.read());
  return txn->count(kRows, state_->prefix(view));
}

Result<std::uint64_t> FeatureRows::count(const ViewName& view, Partition partition) {
  auto prefix = state_->prefix(view);
  State::add_partition(prefix, partition);
  FALAJ_ASSIGN(const auto txn, state_->kv.read());
  return txn->count(kRows, prefix);
}

Result<std::vector<ViewName>> FeatureRows::views() {
  std::vector<ViewName> out;
  FALAJ_ASSIGN(const auto txn, state_->kv.read());
  FALAJ_TRY(txn->scan(kViews, {}, [&](const Item& item) {
    Cut cut(item.value);
    auto tenant = cut.text();
    auto name = cut.text();
    out.push_back({std::move(tenant), std::move(name)});
    return true;
  }));
  std::ranges::sort(out);
  return out;
}

}  // namespace falaj::storage
