#include "storage/store_tools.hpp"

#include <algorithm>
#include <map>

#include "runtime/base/clock.hpp"
#include "runtime/base/format.hpp"
#include "storage/artifact_store.hpp"
#include "storage/audit_log.hpp"
#include "storage/files.hpp"
#include "storage/lmdb_kv.hpp"
#include "storage/sealed_kv.hpp"

namespace falaj::storage {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kShownMax = 200;

// A verdict about a store is a report; that the store cannot be looked at (no right, newer format) is an error.
bool is_verdict(const Error& error) { return error.code == ErrorCode::corrupt || error.code == ErrorCode::not_found; }

Result<std::unique_ptr<Kv>> open_kv(const fs::path& dir) { return open_lmdb_kv(dir, {.mode = LmdbOptions::Mode::inspect}); }

Status check_sealed(Kv& kv, KeyProvider& provider) {
  std::vector<std::string> tables;
  std::optional<std::string> name;
  {
    FALAJ_ASSIGN(const auto txn, kv.read());
    FALAJ_ASSIGN(name, SealedKv::store_name(*txn));
    FALAJ_ASSIGN(tables, txn->tables());
  }
  if (!name) return {};
  FALAJ_ASSIGN(const auto sealed, SealedKv::open(kv, *name, provider));
  for (const auto& table : tables) {
    if (table == kKeysTable) continue;
    FALAJ_TRY(sealed->inspect(table, [](ByteView, const std::optional<Bytes>&) { return true; }));
  }
  return {};
}

Status check_kv(const fs::path& dir, KeyProvider* provider, StoreReport& report) {
  FALAJ_ASSIGN(const auto kv, open_kv(dir));
  {
    FALAJ_ASSIGN(const auto txn, kv->read());
    FALAJ_ASSIGN(const auto tables, txn->tables());
    for (const auto& table : tables) {
      FALAJ_ASSIGN(const auto count, txn->count(table));
      report.counts.push_back({table, count});
    }
  }
  return provider == nullptr ? Status{} : check_sealed(*kv, *provider);
}

Status check_artifacts(const fs::path& dir, KeyProvider* provider, StoreReport& report) {
  FALAJ_ASSIGN(const auto names, artifact_files(dir));
  report.counts = {{"artifacts", names.manifests}, {"chunks", names.chunks}};
  if (!names.first_bad.empty()) return error(ErrorCode::corrupt, names.first_bad);
  if (provider == nullptr) return {};
  const SystemClock clock;
  FALAJ_ASSIGN(const auto store, ArtifactStore::inspect(dir, *provider, clock));
  FALAJ_ASSIGN(const auto manifests, store->list());
  for (const auto& manifest : manifests) FALAJ_TRY(store->verify(manifest.id));
  return {};
}

Status check_audit(const fs::path& dir, KeyProvider* provider, StoreReport& report) {
  FALAJ_ASSIGN(const auto verdict, verify_audit(dir));
  report.counts = {{"records", verdict.records}, {"entries", verdict.entries}, {"heads", verdict.heads}, {"segments", verdict.segments}};
  if (!verdict.good) {
    return error(ErrorCode::corrupt,
                 format("{}: record {} at byte {}: {}", verdict.bad_segment, verdict.bad_index, verdict.bad_offset, verdict.what));
  }
  if (provider == nullptr) return {};
  return read_audit(dir, *provider, 0, [](std::uint64_t, const AuditEntry&) { return true; });
}

std::string shown(ByteView bytes) {
  const bool text = std::ranges::all_of(bytes, [](std::uint8_t c) { return c >= 32 && c < 127; });
  if (text) return std::string(as_text(bytes.first(std::min(bytes.size(), kShownMax)))) + (bytes.size() > kShownMax ? "..." : "");
  return "0x" + hex(bytes.first(std::min(bytes.size(), kShownMax / 2))) + (bytes.size() > kShownMax / 2 ? "..." : "");
}

Status dump_kv(const fs::path& dir, KeyProvider* provider, const std::function<void(std::string_view)>& line) {
  FALAJ_ASSIGN(const auto kv, open_kv(dir));
  std::vector<std::string> tables;
  std::optional<std::string> name;
  {
    FALAJ_ASSIGN(const auto txn, kv->read());
    FALAJ_ASSIGN(tables, txn->tables());
    FALAJ_ASSIGN(name, SealedKv::store_name(*txn));
  }
  std::unique_ptr<SealedKv> sealed;
  if (name && provider != nullptr) {
    FALAJ_ASSIGN(sealed, SealedKv::open(*kv, *name, *provider));
  }
  for (const auto& table : tables) {
    if (sealed && table != kKeysTable) {
      FALAJ_TRY(sealed->inspect(table, [&](ByteView key, const std::optional<Bytes>& plain) {
        line(format("{}\t{}\t{}\t{}", table, printable(key), plain ? plain->size() : 0, plain ? shown(*plain) : "(erased)"));
        return true;
      }));
      continue;
    }
    FALAJ_ASSIGN(const auto txn, kv->read());
    FALAJ_TRY(txn->scan(table, {}, [&](const Item& item) {
      const bool show = !name && provider != nullptr;
      line(format("{}\t{}\t{}\tv{}{}", table, printable(item.key), item.value.size(), item.version, show ? "\t" + shown(item.value) : ""));
      return true;
    }));
  }
  return {};
}

Status dump_artifacts(const fs::path& dir, KeyProvider* provider, const std::function<void(std::string_view)>& line) {
  if (provider == nullptr) {
    FALAJ_ASSIGN(const auto names, artifact_files(dir));
    for (const auto& id : names.ids) line(format("artifact\t{}", id.hex()));
    return {};
  }
  const SystemClock clock;
  FALAJ_ASSIGN(const auto store, ArtifactStore::inspect(dir, *provider, clock));
  FALAJ_ASSIGN(const auto manifests, store->list());
  for (const auto& m : manifests) {
    line(format("artifact\t{}\tsha256:{}\t{} bytes\t{} chunks\t{}\ttenant={}\tpurpose={}\tresidency={}", m.id.hex(), m.digest.hex(), m.size,
                m.chunks.size(), m.meta.media_type, m.meta.tenant, m.meta.purpose, m.meta.residency));
  }
  return {};
}

Status dump_audit(const fs::path& dir, KeyProvider* provider, const std::function<void(std::string_view)>& line) {
  if (provider == nullptr) {
    FALAJ_ASSIGN(const auto verdict, verify_audit(dir));
    line(format("audit\t{} records\t{} entries\t{} heads\t{} segments\tchain {}", verdict.records, verdict.entries, verdict.heads,
                verdict.segments, verdict.chain.hex()));
    return {};
  }
  return read_audit(dir, *provider, 0, [&](std::uint64_t index, const AuditEntry& e) {
    line(format("{}\t{}\t{}\t{}\t{}\ttenant={}\tpurpose={}\t{}\t{}\t{}", index, e.time.unix_ns, e.principal, e.verb, e.target, e.tenant,
                e.purpose, to_string(e.outcome), e.reason, e.request_id));
    return true;
  });
}

}  // namespace

std::string_view to_string(StoreKind kind) noexcept {
  switch (kind) {
    case StoreKind::kv:
      return "kv";
    case StoreKind::artifacts:
      return "artifacts";
    case StoreKind::audit:
      return "audit";
  }
  return "?";
}

Result<StoreKind> kind_of(const fs::path& dir) {
  auto found = read_format(dir);
  if (!found && found.error().code == ErrorCode::not_found)
    return error(ErrorCode::not_found, format("{} is no store of falaj: it has no file FORMAT", dir.string()));
  if (!found) return found.error();
  for (const auto kind : {StoreKind::kv, StoreKind::artifacts, StoreKind::audit}) {
    if (to_string(kind) == found->kind) return kind;
  }
  return error(ErrorCode::unimplemented,
               format("{} holds a store of kind \"{}\", unknown to this build: upgrade this node, or the file FORMAT is damaged",
                      dir.string(), found->kind));
}

Result<StoreReport> check(const fs::path& dir, KeyProvider* provider) {
  StoreReport report;
  FALAJ_ASSIGN(report.kind, kind_of(dir));
  FALAJ_ASSIGN(const auto form, read_format(dir));
  report.format_version = form.version;
  Status status;
  switch (report.kind) {
    case StoreKind::kv:
      status = check_kv(dir, provider, report);
      break;
    case StoreKind::artifacts:
      status = check_artifacts(dir, provider, report);
      break;
    case StoreKind::audit:
      status = check_audit(dir, provider, report);
      break;
  }
  if (!status && !is_verdict(status.error())) return status.error();
  if (!status) {
    report.good = false;
    report.first_bad = status.error().message;
  }
  return report;
}

Status dump(const fs::path& dir, KeyProvider* provider, const std::function<void(std::string_view)>& line) {
  FALAJ_ASSIGN(const auto kind, kind_of(dir));
  switch (kind) {
    case StoreKind::kv:
      return dump_kv(dir, provider, line);
    case StoreKind::artifacts:
      return dump_artifacts(dir, provider, line);
    case StoreKind::audit:
      return dump_audit(dir, provider, line);
  }
  return {};
}

}  // namespace falaj::storage
