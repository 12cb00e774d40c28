#include "storage/store_tools.hpp"

#include "storage/artifact_store.hpp"
#include "storage/audit_log.hpp"
#include "storage/feature_rows.hpp"
#include "storage/lmdb_kv.hpp"
#include "tests/storage/support.hpp"

namespace falaj::storage {
namespace {
using namespace test;

std::string dumped(const fs::path& dir, KeyProvider* provider) {
  std::string out;
  must(dump(dir, provider, [&](std::string_view line) { out += std::string(line) + "\n"; }));
  return out;
}
std::uint64_t count_of(const StoreReport& report, std::string_view name) {
  for (const auto& c : report.counts) {
    if (c.name == name) return c.count;
  }
  return ~0ULL;
}

TEST(StoreTools, ChecksAndDumpsEachKind) {
  Scratch dir;
  auto provider = key_file(dir / "kek");
  const ManualClock clock;
  {
    auto below = must(open_lmdb_kv(dir / "kv"));
    auto sealed = must(SealedKv::open(*below, "features", *provider, FeatureRows::sealing()));
    auto rows = must(FeatureRows::open(*sealed, clock));
    must(rows->put({"acme", "credit"},
                   std::vector<FeatureRow>{{.entity = "sara", .fields = {std::string("WORD")}, .event_time = {1}, .ingest_time = {1}}}));
    auto log = must(AuditLog::open(dir / "audit", *provider, clock));
    must(log->append_and_sync({.principal = "PERSON", .verb = "features.read"}));
    auto artifacts = must(ArtifactStore::open(dir / "artifacts", *provider, clock));
    must(artifacts->put(as_bytes("content"), {.media_type = "text/plain"}));
    // The owners are running meanwhile.
    for (const auto* name : {"kv", "audit", "artifacts"}) {
      for (auto* keys : {static_cast<KeyProvider*>(nullptr), static_cast<KeyProvider*>(provider.get())}) {
        if (keys != nullptr && std::string_view(name) == "kv") continue;  // LMDB: one environment in one process
        if (std::string_view(name) == "kv") continue;
        const auto report = must(check(dir / name, keys));
        EXPECT_TRUE(report.good) << report.first_bad;
        EXPECT_EQ(report.format_version, 1U);
      }
    }
  }
  auto report = must(check(dir / "kv", provider.get()));
  EXPECT_TRUE(report.good) << report.first_bad;
  EXPECT_EQ(count_of(report, "features.rows"), 1U);
  EXPECT_EQ(count_of(must(check(dir / "artifacts")), "chunks"), 1U);
  EXPECT_EQ(count_of(must(check(dir / "audit")), "entries"), 1U);
  EXPECT_EQ(dumped(dir / "kv", nullptr).find("WORD"), std::string::npos);
  EXPECT_NE(dumped(dir / "kv", nullptr).find("features.rows"), std::string::npos);
  EXPECT_NE(dumped(dir / "audit", provider.get()).find("PERSON"), std::string::npos);
  EXPECT_EQ(dumped(dir / "audit", nullptr).find("PERSON"), std::string::npos);
  EXPECT_NE(dumped(dir / "artifacts", provider.get()).find("text/plain"), std::string::npos);
  EXPECT_NE(dumped(dir / "artifacts", nullptr).find("artifact\t"), std::string::npos);

  for (const auto& entry : fs::recursive_directory_iterator(dir / "artifacts" / "chunks")) {
    if (!entry.is_regular_file()) continue;
    flip(entry.path(), 30, 1);
    report = must(check(dir / "artifacts"));
    EXPECT_FALSE(report.good);
    EXPECT_NE(report.first_bad.find(entry.path().filename().string()), std::string::npos);
  }
  for (const auto& entry : fs::directory_iterator(dir / "audit")) {
    if (entry.path().extension() == ".log") flip(entry.path(), 150, 1);
  }
  report = must(check(dir / "audit"));
  EXPECT_FALSE(report.good);
  EXPECT_NE(report.first_bad.find("record 0 at byte 128"), std::string::npos) << report.first_bad;

  // A flipped byte inside a sealed value.
  const auto file = dir / "kv" / "data.mdb";
  const auto bytes = slurp(file);
  const auto at = as_text(bytes).find(std::string("features.rows\0", 14));
  ASSERT_NE(at, std::string_view::npos);
  const auto value = at + 14 + 26 + 32 + kRecordHeaderBytes;
  flip(file, value + 20, 1);
  report = must(check(dir / "kv"));
  EXPECT_FALSE(report.good);
  EXPECT_NE(report.first_bad.find("table features.rows, key 0x"), std::string::npos) << report.first_bad;

  EXPECT_EQ(code_of(check(dir / "nothing")), ErrorCode::not_found);
  spit(dir / "kv" / "FORMAT", as_bytes("falaj kv 3\n"));
  EXPECT_EQ(code_of(check(dir / "kv")), ErrorCode::unimplemented);
}

}  // namespace
}  // namespace falaj::storage
