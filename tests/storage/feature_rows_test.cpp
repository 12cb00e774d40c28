#include "storage/feature_rows.hpp"

#include <algorithm>
#include <chrono>
#include <set>

#include "runtime/base/limits.hpp"
#include "runtime/base/thread.hpp"
#include "storage/lmdb_kv.hpp"
#include "storage/memory_kv.hpp"
#include "tests/storage/support.hpp"

namespace falaj::storage {
namespace {
using namespace test;
using namespace std::chrono_literals;

const ViewName kView{"acme", "credit"};

FeatureRow row(std::string entity, std::int64_t event_ns, std::string word = "x") {
  return {.entity = std::move(entity),
          .fields = {std::monostate{}, true, std::int64_t{-7}, 1.5F, -2.25, std::move(word)},
          .event_time = WallTime{event_ns},
          .ingest_time = WallTime{event_ns + 1},
          .schema_version = 3};
}

class Rows : public testing::Test {
 public:
  Rows() {
    provider = key_file(dir / "kek");
    sealed = must(SealedKv::open(below, "features", *provider, FeatureRows::sealing()));
    rows = must(FeatureRows::open(*sealed, clock));
  }
  Scratch dir;
  ManualClock clock;
  MemoryKv below;
  std::unique_ptr<FileKeyProvider> provider;
  std::unique_ptr<SealedKv> sealed;
  std::unique_ptr<FeatureRows> rows;
};

TEST_F(Rows, NewestEventTimeWinsAndAllTypesComeBack) {
  const std::vector<FeatureRow> batch = {row("a", 10, "old"), row("b", 10), row("a", 20, "new"), row("a", 15, "between")};
  const auto report = must(rows->put(kView, batch));
  EXPECT_EQ(report.written, 3U);
  EXPECT_EQ(report.stale, 1U);
  EXPECT_EQ(*must(rows->get(kView, "a")), row("a", 20, "new"));
  EXPECT_FALSE(must(rows->get(kView, "c")).has_value());
  EXPECT_FALSE(must(rows->get({"acme", "other"}, "a")).has_value());
  EXPECT_FALSE(must(rows->get({"other", "credit"}, "a")).has_value());
  const auto again = must(rows->put(kView, std::vector{row("a", 20, "same time")}));
  EXPECT_EQ(again.stale, 1U);
  EXPECT_EQ(must(rows->count(kView)), 2U);
  const std::vector<std::string> entities = {"b", "zzz", "a"};
  const auto many = must(rows->get_many(kView, entities));
  EXPECT_TRUE(many[0] && !many[1] && many[2]);
  EXPECT_EQ(must(rows->views()), std::vector{kView});
  EXPECT_EQ(code_of(rows->put(kView, std::vector{row("", 1)})), ErrorCode::invalid);
  EXPECT_EQ(code_of(rows->put(kView, std::vector{row("good", 1), row(std::string(1000, 'x'), 1)})), ErrorCode::invalid);
  EXPECT_FALSE(must(rows->get(kView, "good")).has_value());  // the batch is one transaction
}

TEST_F(Rows, NothingIsSealedWithTheKeyOfASubjectWhoseCommitFailed) {
  below.fail_next_commit(error(ErrorCode::no_space, "full"));
  EXPECT_EQ(code_of(rows->put(kView, std::vector{row("a", 10), row("a", 20)})), ErrorCode::no_space);
  must(rows->put(kView, std::vector{row("a", 30)}));
  rows.reset();
  sealed = must(SealedKv::open(below, "features", *provider, FeatureRows::sealing()));
  rows = must(FeatureRows::open(*sealed, clock));
  EXPECT_EQ(must(rows->get(kView, "a")), row("a", 30));
}

TEST_F(Rows, TimeToLiveIsAppliedOnReads) {
  const auto now = clock.wall().unix_ns;
  must(rows->put(kView, std::vector{row("a", now)}));
  clock.advance(10s);
  EXPECT_TRUE(must(rows->get(kView, "a", 10s)).has_value());
  clock.advance(1ns);
  EXPECT_FALSE(must(rows->get(kView, "a", 10s)).has_value());
  EXPECT_TRUE(must(rows->get(kView, "a")).has_value());
  int seen = 0;
  must(rows->scan(kView, partition_of("a"), 10s, [&](const FeatureRow&) { return ++seen > 0; }));
  EXPECT_EQ(seen, 0);
}

TEST_F(Rows, ScansPartitionsInKeyOrderAndEachRowOnce) {
  std::vector<FeatureRow> batch;
  for (int i = 0; i < 2000; ++i) batch.push_back(row("entity-" + std::to_string(i), 1));
  must(rows->put(kView, batch));
  must(rows->put({"acme", "other"}, std::span(batch).first(100)));
  std::set<std::string> all;
  std::uint64_t counted = 0;
  for (std::uint16_t p = 0; p < limits::kPartitions; ++p) {
    std::string before;
    must(rows->scan(kView, Partition(p), 0s, [&](const FeatureRow& r) {
      EXPECT_LT(before, r.entity);
      EXPECT_EQ(partition_of(r.entity), Partition(p));
      before = r.entity;
      all.insert(r.entity);
      return true;
    }));
    counted += must(rows->count(kView, Partition(p)));
  }
  EXPECT_EQ(all.size(), 2000U);
  EXPECT_EQ(counted, 2000U);
  EXPECT_EQ(partition_of("entity-1"), Partition(static_cast<std::uint16_t>(stable_hash("entity-1") % 256)));
  EXPECT_EQ(must(rows->erase_view(kView)), 2000U);
  EXPECT_EQ(must(rows->count(kView)), 0U);
  EXPECT_EQ(must(rows->count({"acme", "other"})), 100U);
  EXPECT_EQ(must(rows->views()).size(), 1U);
}

TEST_F(Rows, ErasesARowOrASubject) {
  const ViewName second{"acme", "fraud"};
  const ViewName foreign{"rival", "credit"};
  for (const auto& view : {kView, second, foreign}) must(rows->put(view, std::vector{row("sara", 1), row("omar", 1)}));
  EXPECT_TRUE(must(rows->erase(kView, "omar")));
  EXPECT_FALSE(must(rows->erase(kView, "omar")));
  EXPECT_TRUE(must(rows->get(second, "omar")).has_value());
  EXPECT_TRUE(must(rows->erase_subject("acme", "sara")));
  EXPECT_FALSE(must(rows->erase_subject("acme", "sara")));
  EXPECT_FALSE(must(rows->get(kView, "sara")).has_value());
  EXPECT_FALSE(must(rows->get(second, "sara")).has_value());
  EXPECT_TRUE(must(rows->get(foreign, "sara")).has_value());
  EXPECT_EQ(must(rows->count(second)), 1U);
  must(rows->put(kView, std::vector{row("sara", 1, "again")}));
  EXPECT_EQ(*must(rows->get(kView, "sara")), row("sara", 1, "again"));
}

// A writer must never meet the key of a subject that another has just erased.
TEST_F(Rows, ErasingAndWritingAtOnceLosesNoRow) {
  constexpr int kRounds = 300;
  {
    std::vector<Thread> threads;
    threads.emplace_back("erase", [&] {
      for (int i = 0; i < kRounds; ++i) (void)must(rows->erase_subject("acme", "sara"));
    });
    threads.emplace_back("read", [&] {
      for (int i = 0; i < kRounds; ++i) (void)must(rows->get(kView, "sara"));
    });
    for (int i = 0; i < kRounds; ++i) must(rows->put(kView, std::vector{row("sara", i + 1)}));
  }
  const auto last = row("sara", kRounds + 1);
  must(rows->put(kView, std::vector{last}));
  EXPECT_EQ(*must(rows->get(kView, "sara")), last);
}

// Rate figures go to the log; the bars are for an optimised build on an idle machine, so here they only guard against collapse.
TEST(FeatureRowsOnDisk, HoldsNothingInClearAndIsFast) {
  Scratch dir;
  auto provider = key_file(dir / "kek");
  const std::string marker = "MARKER-ENTITY-";
#ifdef FALAJ_SANITIZED
  constexpr int kBatches = 20;
#else
  constexpr int kBatches = 100;
#endif
  {
    auto below = must(open_lmdb_kv(dir / "kv"));
    auto sealed = must(SealedKv::open(*below, "features", *provider, FeatureRows::sealing()));
    const SystemClock clock;
    auto rows = must(FeatureRows::open(*sealed, clock));
    std::vector<FeatureRow> all;
    for (int i = 0; i < kBatches * 512; ++i) all.push_back(row(marker + std::to_string(i), 1, marker));
    const ViewName view{"MARKER-TENANT", "MARKER-VIEW"};
    const auto load = [&] {
      for (std::size_t at = 0; at < all.size(); at += 512) must(rows->put(view, std::span(all).subspan(at, 512)));
    };
    const auto begin = clock.now();
    load();
    const auto unsorted = clock.now();
    must(rows->erase_view(view));
    std::ranges::stable_sort(all, {}, [](const FeatureRow& r) { return partition_of(r.entity); });
    const auto start = clock.now();
    load();
    const auto written = clock.now();
    constexpr int kReads = kBatches * 500;
    auto random = random_for("reads");
    for (int i = 0; i < kReads; ++i) {
      ASSERT_TRUE(must(rows->get(view, marker + std::to_string(random.below(kBatches * 512)))).has_value());
    }
    const auto read = clock.now();
    const auto rate = [](int n, Duration d) { return static_cast<double>(n) / std::chrono::duration<double>(d).count(); };
    std::cerr << "writes/s in any order " << rate(kBatches * 512, unsorted - begin) << ", by partition "
              << rate(kBatches * 512, written - start) << ", reads/s " << rate(kReads, read - written) << "\n";
    EXPECT_GT(rate(kReads, read - written), 2000);
    EXPECT_GT(rate(kBatches * 512, written - start), 500);
  }
  EXPECT_TRUE(files_with(dir / "kv", "MARKER-").empty());
}

}  // namespace
}  // namespace falaj::storage
