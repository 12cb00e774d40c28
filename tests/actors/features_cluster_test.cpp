// Shards, fronts and snapshots on a simulated cluster.
#include <gtest/gtest.h>

#include "actors/artifacts/fetch.hpp"
#include "actors/features/csv.hpp"
#include "actors/features/snapshot.hpp"
#include "messages/envelope.capnp.h"
#include "tests/actors/features_support.hpp"

namespace falaj::features {
namespace {

using namespace std::chrono_literals;
using test::admin;
using test::as;
using test::Disk;
using test::make_view;
using test::must;
using test::scope;
using test::SmallCluster;

Message credit_view(const test::ViewSpec& spec = {}, bool personal = false) {
  return make_view("credit", "id", {{"amount", "float64", true}, {"city", "string", false, personal}}, spec);
}

std::string entity(int i) { return "applicant-" + std::to_string(i); }

Message rows_message(int begin, int end, double add = 0, std::int64_t event_time_ns = 0) {
  std::vector<CsvRow> rows;
  for (int i = begin; i < end; ++i) {
    CsvRow row;
    row.entity = entity(i);
    row.event_time_ns = event_time_ns;
    row.values = {static_cast<double>(i) + add,
                  i % 5 == 0 ? storage::FieldValue{} : storage::FieldValue{std::string("city ") + std::to_string(i % 7)}};
    rows.push_back(std::move(row));
  }
  return put_rows("default", "credit", rows);
}

Message get_message(const std::vector<std::string>& entities, const std::vector<std::string>& fields = {}) {
  return Message::build<messages::GetFeatures>([&](messages::GetFeatures::Builder out) {
    out.setView("credit");
    auto list = out.initEntities(static_cast<unsigned>(entities.size()));
    for (unsigned i = 0; i < list.size(); ++i) list.set(i, entities[i]);
    auto names = out.initFields(static_cast<unsigned>(fields.size()));
    for (unsigned i = 0; i < names.size(); ++i) names.set(i, fields[i]);
  });
}

Message snapshot_message() {
  return Message::build<messages::CreateSnapshot>([](messages::CreateSnapshot::Builder out) { out.setView("credit"); });
}

Result<std::uint64_t> put(SmallCluster& cluster, Message rows, const SendOptions& options = admin()) {
  FALAJ_ASSIGN(const auto reply, cluster.ask<messages::PutRowsReply>("gate", kFront, std::move(rows), options));
  return reply->getWritten();
}

ErrorCode code(const auto& result) { return result.has_value() ? ErrorCode::failed : result.error().code; }

class Clusters : public ::testing::TestWithParam<Disk> {};
INSTANTIATE_TEST_SUITE_P(Stores, Clusters, ::testing::Values(Disk::memory, Disk::lmdb),
                         [](const auto& p) { return p.param == Disk::memory ? "memory" : "lmdb"; });

TEST_P(Clusters, RowsAreWrittenReadCountedAndErased) {
  SmallCluster cluster({.disk = GetParam()});
  cluster.declare(credit_view());
  ASSERT_EQ(must(put(cluster, rows_message(0, 300))), 300U);

  const std::vector<std::string> wanted = {entity(7), "nobody", entity(5), entity(7), entity(299)};
  const auto features = must(cluster.ask<messages::Features>("gate", kFront, get_message(wanted)));
  ASSERT_EQ(features->getRows().size(), wanted.size());
  ASSERT_EQ(features->getFields().size(), 2U);
  for (unsigned i = 0; i < wanted.size(); ++i) EXPECT_EQ(text(features->getRows()[i].getEntity()), wanted[i]);
  EXPECT_EQ(features->getRows()[0].getValues()[0].getFloat64(), 7.0);
  EXPECT_EQ(text(features->getRows()[0].getValues()[1].getString()), "city 0");
  EXPECT_EQ(features->getRows()[1].getStatus(), messages::RowStatus::NOT_FOUND);
  EXPECT_EQ(features->getRows()[1].getValues().size(), 0U);
  EXPECT_TRUE(features->getRows()[2].getValues()[1].isMissing());

  const auto one = must(cluster.ask<messages::Features>("f1", kFront, get_message({entity(9)}, {"city"})));
  ASSERT_EQ(one->getRows()[0].getValues().size(), 1U);
  EXPECT_EQ(text(one->getRows()[0].getValues()[0].getString()), "city 2");

  const auto count = [&] {
    const auto reply = must(cluster.ask<messages::RowCount>(
        "gate", kFront, Message::build<messages::CountRows>([](messages::CountRows::Builder out) { out.setView("credit"); })));
    return reply->getRows();
  };
  EXPECT_EQ(count(), 300U);
  const auto erase = [&] {
    const auto reply = must(
        cluster.ask<messages::RowCount>("gate", kFront, Message::build<messages::DeleteEntity>([](messages::DeleteEntity::Builder out) {
                                          out.setView("credit");
                                          out.setEntity(entity(7));
                                        })));
    return reply->getRows();
  };
  EXPECT_EQ(erase(), 1U);
  EXPECT_EQ(erase(), 0U);
  EXPECT_EQ(count(), 299U);
}

TEST(Features, TheNewestEventTimeWinsAndOfOneMessageTheLastRow) {
  SmallCluster cluster({});
  cluster.declare(credit_view());
  const auto amount = [&] {
    const auto features = must(cluster.ask<messages::Features>("gate", kFront, get_message({entity(1)})));
    return features->getRows()[0].getValues()[0].getFloat64();
  };
  must(put(cluster, rows_message(1, 2, 10, 2'000'000'000)));
  must(put(cluster, rows_message(1, 2, 20, 1'000'000'000)));
  EXPECT_EQ(amount(), 11.0);
  must(put(cluster, rows_message(1, 2, 30)));  // now
  EXPECT_EQ(amount(), 31.0);
  CsvRow a{entity(1), 0, {1.0, {}}, 1}, b{entity(1), 0, {2.0, {}}, 2};
  cluster.world().run_for(1ms);
  must(put(cluster, put_rows("default", "credit", std::vector<CsvRow>{a, b})));
  EXPECT_EQ(amount(), 2.0);
}

TEST(Features, OldRowsExpireOnReadsAndInSnapshots) {
  SmallCluster cluster({});
  cluster.declare(credit_view({.ttl_seconds = 60}));
  must(put(cluster, rows_message(0, 10)));
  must(put(cluster, rows_message(10, 20, 0, 1'000'000'000)));  // of 1970
  const auto features = must(cluster.ask<messages::Features>("gate", kFront, get_message({entity(1), entity(11), entity(21)})));
  EXPECT_EQ(features->getRows()[0].getStatus(), messages::RowStatus::PRESENT);
  EXPECT_EQ(features->getRows()[1].getStatus(), messages::RowStatus::EXPIRED);
  EXPECT_EQ(features->getRows()[1].getValues().size(), 0U);
  EXPECT_EQ(features->getRows()[2].getStatus(), messages::RowStatus::NOT_FOUND);
}

TEST(Features, BadRowsAndQuestionsAreRefusedAndChangeNothing) {
  SmallCluster cluster({});
  cluster.declare(credit_view());
  CsvRow good{entity(1), 0, {1.0, {}}, 1}, bad{entity(2), 0, {storage::FieldValue{}, {}}, 2};
  const auto refused = put(cluster, put_rows("default", "credit", std::vector<CsvRow>{good, bad}));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::invalid);
  EXPECT_EQ(refused.error().message, "row 2: field 'amount': a value is required");
  const auto features = must(cluster.ask<messages::Features>("gate", kFront, get_message({entity(1)})));
  EXPECT_EQ(features->getRows()[0].getStatus(), messages::RowStatus::NOT_FOUND);
  EXPECT_EQ(code(cluster.ask<messages::Features>("gate", kFront, get_message({}))), ErrorCode::invalid);
  EXPECT_EQ(code(cluster.ask<messages::Features>("gate", kFront, get_message({""}))), ErrorCode::invalid);
  EXPECT_EQ(code(cluster.ask<messages::Features>("gate", kFront, get_message({"a"}, {"salary"}))), ErrorCode::invalid);
  EXPECT_EQ(code(put(cluster, put_rows("default", "unknown", std::vector<CsvRow>{good}))), ErrorCode::not_found);
  EXPECT_EQ(code(put(cluster, put_rows("default", "credit", {}))), ErrorCode::invalid);
}

TEST(Features, AFieldAddedLaterIsMissingInOldRowsAndAChangedOneIsNotMisread) {
  SmallCluster cluster({});
  cluster.declare(make_view("credit", "id", {{"amount", "float64"}}));
  must(put(cluster, put_rows("default", "credit", std::vector<CsvRow>{{entity(1), 0, {5.0}, 1}})));
  SmallCluster other({});
  other.declare(make_view("credit", "id", {{"amount", "float64"}, {"city", "string"}}));
  const storage::ViewName name{"default", "credit"};
  for (const auto& shard : cluster.shards()) {
    const auto row = must(cluster.rows(shard).get(name, entity(1)));
    if (!row) continue;
    const std::vector<storage::FeatureRow> rows{*row};
    must(other.rows(shard).put(name, rows));
    auto renamed = rows;
    renamed[0].schema_version ^= 1;
    renamed[0].event_time.unix_ns += 1;
    const auto features = must(other.ask<messages::Features>("gate", kFront, get_message({entity(1)})));
    EXPECT_EQ(features->getRows()[0].getValues()[0].getFloat64(), 5.0);
    EXPECT_TRUE(features->getRows()[0].getValues()[1].isMissing());
    must(other.rows(shard).put(name, renamed));
    const auto misread = other.ask<messages::Features>("gate", kFront, get_message({entity(1)}));
    ASSERT_FALSE(misread.has_value());
    EXPECT_NE(misread.error().message.find("written under other fields"), std::string::npos);
  }
}

// ---- who may -----------------------------------------------------------------------------------------------------------------

TEST(Features, PurposesAndTenantsAreEnforcedAndAudited) {
  SmallCluster cluster({.rights = R"(
[[grant]]
principal = "person/*"
verbs = ["features.*", "audit.read"]
[[grant]]
principal = "person/narrow"
verbs = ["features.read"]
)"});
  cluster.declare(credit_view());
  must(put(cluster, rows_message(0, 10)));
  const auto get = [&](const SendOptions& options) {
    return cluster.ask<messages::Features>("gate", kFront, get_message({entity(1)}), options);
  };
  EXPECT_TRUE(get(admin("credit")).has_value());
  EXPECT_EQ(code(get(admin("marketing"))), ErrorCode::denied);
  EXPECT_EQ(code(get(admin(""))), ErrorCode::denied);
  EXPECT_EQ(code(get(as(scope("spiffe://test/person/admin", "credit", "other")))), ErrorCode::denied) << "another tenant's view";
  EXPECT_EQ(code(get(as(scope("spiffe://test/service/unknown", "credit")))), ErrorCode::denied) << "no right";
  EXPECT_EQ(code(get(as(scope("spiffe://foreign/person/admin", "credit")))), ErrorCode::denied) << "another cluster";
  EXPECT_EQ(code(get(as(nullptr))), ErrorCode::denied) << "the node itself must name a purpose too";
  EXPECT_EQ(code(cluster.ask<messages::SnapshotInfo>("gate", kFront, snapshot_message(), admin("marketing"))), ErrorCode::denied);
  // Not even an administrator talks to a shard.
  const auto direct = cluster.ask<messages::ScanPage>("f1", shard_name("f1"),
                                                      Message::build<messages::ScanPartition>([](auto out) { out.setView("credit"); }));
  EXPECT_EQ(code(direct), ErrorCode::denied);
  ASSERT_TRUE(cluster.world().run_until([&] { return cluster.audited("features.read", false) == 6; }, 30s));
  EXPECT_EQ(cluster.audited("features.snapshot", false), 1U);
  EXPECT_EQ(cluster.audited("ScanPartition", false), 1U);
  EXPECT_EQ(cluster.audited("features.write", true), 1U);
  EXPECT_EQ(cluster.audited("features.read", true), 0U) << "no personal data in this view";
}

TEST(Features, ReadsOfPersonalDataAreAuditedWithACountAndWithoutNames) {
  SmallCluster cluster({});
  cluster.declare(credit_view({}, true));
  must(put(cluster, rows_message(0, 10)));
  must(cluster.ask<messages::Features>("gate", kFront, get_message({entity(1), entity(2), entity(3)})));
  must(cluster.ask<messages::Features>("gate", kFront, get_message({entity(1)}, {"amount"})));  // not the personal field
  ASSERT_TRUE(cluster.world().run_until([&] { return cluster.audited("features.read", true) == 1; }, 30s));
  const auto page = must(cluster.audit_page());
  bool seen = false;
  for (const auto entry : page->getEntries()) {
    EXPECT_EQ(std::string(text(entry.getTarget())).find("applicant"), std::string::npos);
    if (text(entry.getVerb()) != "features.read") continue;
    seen = true;
    EXPECT_EQ(text(entry.getTarget()), "credit (3 entities)");
    EXPECT_EQ(text(entry.getPrincipal()), "spiffe://test/person/admin");
    EXPECT_EQ(text(entry.getPurpose()), "credit");
    EXPECT_EQ(text(entry.getNode()), "gate");
  }
  EXPECT_TRUE(seen);
}

TEST(Features, WithAFullSpoolNothingIsDoneUnaudited) {
  SmallCluster cluster({.spool_max = 3});
  cluster.declare(credit_view());
  cluster.crash("control");
  int written = 0;
  while (put(cluster, rows_message(0, 1)).has_value() && written < 10) ++written;
  EXPECT_EQ(written, 3);
  EXPECT_EQ(code(put(cluster, rows_message(0, 1))), ErrorCode::overloaded);
  cluster.restart("control");
  ASSERT_TRUE(cluster.world().run_until([&] { return put(cluster, rows_message(0, 1)).has_value(); }, 30s));
  EXPECT_GE(cluster.audited("features.write", true), 3U);
}

// ---- faults -------------------------------------------------------------------------------------------------------------------

// Shards and links fail at moments drawn from the seed while rows are written: what was acknowledged is there afterwards.
TEST_P(Clusters, NoAcknowledgedRowIsLost) {
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    SmallCluster cluster({.disk = GetParam(), .seed = seed});
    cluster.declare(credit_view());
    auto random = cluster.world().random("faults");
    std::vector<int> acknowledged;
    for (int round = 0; round < 12; ++round) {
      const auto victim = cluster.shards()[random.below(2)];
      const auto when = cluster.world().now() + std::chrono::microseconds(random.below(4000));
      const auto kind = random.below(3);
      cluster.world().at(when, [&cluster, victim, kind] {
        if (kind == 0) cluster.crash(victim);
        if (kind == 1) cluster.world().reset("gate", victim);
      });
      for (int i = 0; i < 3; ++i) {
        const int first = (round * 3 + i) * 20;
        const auto done = put(cluster, rows_message(first, first + 20), as(scope("spiffe://test/person/admin"), 300ms));
        if (!done.has_value()) continue;
        for (int k = first; k < first + 20; ++k) acknowledged.push_back(k);
      }
      if (!cluster.world().running(victim)) cluster.restart(victim);
      cluster.world().run_for(200ms);
    }
    EXPECT_GT(acknowledged.size(), 200U) << "seed " << seed;
    for (const int i : acknowledged) {
      const auto features = must(cluster.ask<messages::Features>("gate", kFront, get_message({entity(i)})));
      ASSERT_EQ(features->getRows()[0].getStatus(), messages::RowStatus::PRESENT) << "seed " << seed << " row " << i;
      ASSERT_EQ(features->getRows()[0].getValues()[0].getFloat64(), static_cast<double>(i));
    }
  }
}

TEST(Features, ReadsWaitForAShardThatComesBack) {
  SmallCluster cluster({});
  cluster.declare(credit_view());
  must(put(cluster, rows_message(0, 40)));
  cluster.crash("f1");
  cluster.world().at(cluster.world().now() + 1500ms, [&] { cluster.restart("f1"); });
  std::vector<std::string> all;
  for (int i = 0; i < 40; ++i) all.push_back(entity(i));
  const auto features = must(cluster.ask<messages::Features>("gate", kFront, get_message(all)));
  for (unsigned i = 0; i < all.size(); ++i) EXPECT_EQ(features->getRows()[i].getStatus(), messages::RowStatus::PRESENT);
  cluster.crash("f2");
  const auto begin = cluster.world().now();
  EXPECT_FALSE(
      cluster.ask<messages::Features>("gate", kFront, get_message(all), as(scope("spiffe://test/person/admin", "credit"), 2s)).has_value());
  EXPECT_LE(cluster.world().now() - begin, 2100ms) << "an answer within the deadline";
}

TEST(Features, AShardRefusesPartitionsOfOthersAndTheFrontAsksTheOwner) {
  SmallCluster cluster({});
  cluster.declare(credit_view());
  cluster.move_all_to("f1");
  must(put(cluster, rows_message(0, 30)));
  cluster.move_all_to("f2");
  auto& host = cluster.world().host("f1");
  const auto refused =
      cluster.world().ask(host, host.find(shard_name("f1")), Message::build<messages::ShardGet>([](messages::ShardGet::Builder out) {
                            out.setView("credit");
                            out.initEntities(1).set(0, "a");
                          }));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::conflict);
  EXPECT_NE(refused.error().message.find("belongs to features/shard/f2"), std::string::npos);
  must(put(cluster, rows_message(30, 60)));
  const auto features = must(cluster.ask<messages::Features>("gate", kFront, get_message({entity(40)})));
  EXPECT_EQ(features->getRows()[0].getStatus(), messages::RowStatus::PRESENT);
}

// ---- snapshots -----------------------------------------------------------------------------------------------------------------

// Fetches an artifact the way a training worker does.
class Fetcher final : public ActorOf<Fetcher> {
 public:
  static constexpr std::string_view kType = "test/fetcher";
  static void handlers(Handlers<Fetcher>& on) { on.message<messages::GetManifest>(&Fetcher::get); }
  Task<> get(Context& ctx, Msg<messages::GetManifest> m) {
    std::string digest(text(m->getDigest()));
    artifacts::TransferOptions options;
    options.scope = m.scope();
    options.timeout = 20s;
    auto content = co_await artifacts::fetch_artifact(ctx, std::move(digest), options);
    if (!content.has_value()) co_return m.refuse(std::move(content).error());
    m.reply(Message::build<messages::Chunk>([&](messages::Chunk::Builder out) { out.setContent(falaj::data(*content)); },
                                            content->size() / 8 + 8));
  }
};

Result<Bytes> fetch(SmallCluster& cluster, const std::string& digest, const std::string& purpose = "credit") {
  auto& host = cluster.world().host("gate");
  if (!host.find("test/fetcher")) {
    ChildSpec spec;
    spec.id = spec.name = "test/fetcher";
    spec.make = [] { return std::make_unique<Fetcher>(); };
    host.spawn(spec);
  }
  auto answer = cluster.ask<messages::Chunk>(
      "gate", "test/fetcher", Message::build<messages::GetManifest>([&](messages::GetManifest::Builder out) { out.setDigest(digest); }),
      as(scope("spiffe://test/node/gate", purpose), 30s));
  if (!answer.has_value()) return std::move(answer).error();
  const auto content = bytes((*answer)->getContent());
  return Bytes(content.begin(), content.end());
}

TEST_P(Clusters, SnapshotsHoldAllRowsAndTheSameRowsGiveTheSameDigest) {
  const auto make = [](SmallCluster& cluster) {
    cluster.declare(credit_view());
    for (int i = 0; i < 3000; i += 500) must(put(cluster, rows_message(i, i + 500, 0, 5'000'000'000)));
    const auto info = must(
        cluster.ask<messages::SnapshotInfo>("gate", kFront, snapshot_message(), as(scope("spiffe://test/person/admin", "credit"), 60s)));
    EXPECT_EQ(info->getRows(), 3000U);
    return std::string(text(info->getDigest()));
  };
  SmallCluster one({.disk = GetParam(), .shards = 1, .seed = 5});
  SmallCluster two({.disk = GetParam(), .shards = 3, .seed = 6});
  const auto digest = make(one);
  EXPECT_EQ(digest, make(two)) << "whatever the number of shards and the time";
  const auto table = must(read_snapshot(must(fetch(two, digest))));
  ASSERT_EQ(table.entities.size(), 3000U);
  std::vector<std::string> sorted = table.entities;
  std::ranges::sort(sorted);
  EXPECT_EQ(std::ranges::unique(sorted).begin(), sorted.end());
  for (std::size_t i = 0; i < 3000; ++i) EXPECT_EQ(entity(static_cast<int>(std::get<double>(table.columns[0][i]))), table.entities[i]);
  EXPECT_EQ(code(fetch(two, digest, "marketing")), ErrorCode::denied);
  EXPECT_EQ(code(fetch(two, std::string(64, '0'))), ErrorCode::not_found);
  must(put(two, rows_message(0, 1, 0.5)));
  const auto changed =
      must(two.ask<messages::SnapshotInfo>("gate", kFront, snapshot_message(), as(scope("spiffe://test/person/admin", "credit"), 60s)));
  EXPECT_NE(std::string(text(changed->getDigest())), digest);
}

TEST(Snapshots, SurviveTheLossOfAShardAndOfControlWhileTheyAreMade) {
  SmallCluster cluster({});
  cluster.declare(credit_view());
  must(put(cluster, rows_message(0, 1000, 0, 5'000'000'000)));
  const auto options = as(scope("spiffe://test/person/admin", "credit"), 120s);
  const auto calm = must(cluster.ask<messages::SnapshotInfo>("gate", kFront, snapshot_message(), options));
  const auto in = [&](Duration after, std::function<void()> call) { cluster.world().at(cluster.world().now() + after, std::move(call)); };
  in(10ms, [&] { cluster.crash("f1"); });
  in(700ms, [&] { cluster.restart("f1"); });
  in(705ms, [&] { cluster.crash("control"); });
  in(1500ms, [&] { cluster.restart("control"); });
  const auto stormy = must(cluster.ask<messages::SnapshotInfo>("gate", kFront, snapshot_message(), options));
  EXPECT_EQ(text(stormy->getDigest()), text(calm->getDigest()));
  EXPECT_EQ(stormy->getRows(), 1000U);
}

TEST(Artifacts, AManifestNeedsItsChunks) {
  SmallCluster cluster({});
  const auto digest = std::string(64, 'a');
  const auto manifest = cluster.ask<messages::ArtifactInfo>("control", artifacts::kStore,
                                                            Message::build<messages::PutManifest>([&](messages::PutManifest::Builder out) {
                                                              auto info = out.initInfo();
                                                              info.setContent(digest);
                                                              info.setBytes(3);
                                                              auto chunk = info.initChunks(1);
                                                              chunk[0].setDigest(digest);
                                                              chunk[0].setBytes(3);
                                                            }));
  EXPECT_EQ(code(manifest), ErrorCode::not_found);
  const auto chunk =
      cluster.ask<messages::Empty>("control", artifacts::kStore, Message::build<messages::PutChunk>([&](messages::PutChunk::Builder out) {
                                     out.setDigest(digest);
                                     out.setContent(falaj::data(as_bytes("abc")));
                                   }));
  EXPECT_EQ(code(chunk), ErrorCode::invalid) << "content and digest must agree";
}

}  // namespace
}  // namespace falaj::features
