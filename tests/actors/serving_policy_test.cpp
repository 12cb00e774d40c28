// When requests run together (a pure function), and whom bearer tokens stand for.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "actors/serving/batch_policy.hpp"
#include "actors/serving/token_book.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"

namespace falaj::serving {
namespace {

using namespace std::chrono_literals;

constexpr Instant at(Duration since) { return Instant(since); }

RunTime costs(Duration base, Duration per_row) {
  RunTime time;
  time.learn(1, base);
  for (int i = 0; i < 200; ++i) time.learn(101, base + 100 * per_row);
  return time;
}

TEST(BatchPolicy, WithoutDelayRunsWhatIsThere) {
  const std::vector<Waiting> queue = {{.rows = 1, .arrival = at(0ms)}, {.rows = 2, .arrival = at(1ms)}};
  const auto decision = decide(queue, {.max_batch = 64, .max_delay = 0ms}, {}, at(1ms));
  EXPECT_EQ(decision.run, 2U);
  EXPECT_TRUE(decision.refuse.empty());
}

TEST(BatchPolicy, WaitsForOthersButNotLongerThanTheDelay) {
  const std::vector<Waiting> queue = {{.rows = 1, .arrival = at(10ms)}};
  const BatchLimits limits{.max_batch = 4, .max_delay = 5ms};
  const auto early = decide(queue, limits, {}, at(12ms));
  EXPECT_EQ(early.run, 0U);
  EXPECT_EQ(early.wait_until, at(15ms));
  EXPECT_EQ(decide(queue, limits, {}, at(15ms)).run, 1U);
}

TEST(BatchPolicy, AFullBatchLeavesAtOnce) {
  const std::vector<Waiting> queue(5, Waiting{.rows = 2, .arrival = at(0ms)});
  EXPECT_EQ(decide(queue, {.max_batch = 4, .max_delay = 1s}, {}, at(0ms)).run, 2U);
  const std::vector<Waiting> large = {{.rows = 100, .arrival = at(0ms)}, {.rows = 1, .arrival = at(0ms)}};
  EXPECT_EQ(decide(large, {.max_batch = 4, .max_delay = 1s}, {}, at(0ms)).run, 1U) << "larger than a batch: alone";
}

TEST(BatchPolicy, ADeadlineMakesItsBatchLeaveEarlier) {
  const std::vector<Waiting> queue = {{.rows = 1, .arrival = at(0ms)}, {.rows = 1, .arrival = at(0ms), .deadline = at(20ms)}};
  const auto time = costs(4ms, 0ms);
  const BatchLimits limits{.max_batch = 8, .max_delay = 100ms};
  const auto decision = decide(queue, limits, time, at(1ms));
  EXPECT_EQ(decision.run, 0U);
  EXPECT_EQ(decision.wait_until, at(15ms));
  EXPECT_EQ(decide(queue, limits, time, at(15ms)).run, 2U);
}

TEST(BatchPolicy, WhatWouldBeLateIsRefused) {
  const std::vector<Waiting> queue = {{.rows = 1, .arrival = at(0ms), .deadline = at(3ms)},
                                      {.rows = 1, .arrival = at(0ms), .deadline = at(30ms)}};
  auto time = costs(4ms, 0ms);
  const auto decision = decide(queue, {}, time, at(0ms));
  EXPECT_EQ(decision.refuse, std::vector<std::size_t>{0});
  EXPECT_EQ(decision.run, 1U);
  for (int i = 0; i < 20; ++i) time.doubt();
  EXPECT_TRUE(decide(queue, {}, time, at(0ms)).refuse.empty()) << "one slow run is not believed for ever";
}

// For any queue: progress, the bound, order, and nothing that can be met is refused.
TEST(BatchPolicy, HoldsItsPromisesOnRandomQueues) {
  Random random(7);
  for (int round = 0; round < 3000; ++round) {
    const BatchLimits limits{.max_batch = static_cast<std::int64_t>(1 + random.below(16)),
                             .max_delay = Duration(random.below(5) * 1'000'000)};
    const auto time = costs(Duration(1 + random.below(3'000'000)), Duration(random.below(100'000)));
    const auto now = at(Duration(100'000'000));
    std::vector<Waiting> queue(1 + random.below(20));
    for (auto& waiting : queue) {
      waiting.rows = static_cast<std::int64_t>(1 + random.below(6));
      waiting.arrival = now - Duration(random.below(6'000'000));
      if (random.chance(0.5)) waiting.deadline = now + Duration(random.below(10'000'000));
    }
    const auto decision = decide(queue, limits, time, now);
    ASSERT_LE(decision.considered, queue.size());
    ASSERT_LE(decision.run + decision.refuse.size(), decision.considered);
    ASSERT_TRUE(std::is_sorted(decision.refuse.begin(), decision.refuse.end()));
    for (const auto i : decision.refuse) ASSERT_GT(now + time.estimate(queue[i].rows), queue[i].deadline);
    std::int64_t rows = 0;
    std::size_t taken = 0;
    for (std::size_t i = 0; i < decision.considered && taken < decision.run; ++i) {
      if (std::ranges::find(decision.refuse, i) != decision.refuse.end()) continue;
      rows += queue[i].rows;
      ++taken;
    }
    ASSERT_TRUE(rows <= limits.max_batch || taken <= 1) << rows;
    ASSERT_TRUE(decision.run > 0 || !decision.refuse.empty() || (decision.wait_until > now && decision.wait_until < Instant::max()));
    if (decision.run == 0 && decision.wait_until != Instant::max()) {
      ASSERT_LE(decision.wait_until, now + limits.max_delay);
    }
  }
}

std::string sum_of(std::string_view token) { return storage::sha256(token).hex(); }
constexpr WallTime kNow{1'700'000'000'000'000'000};  // 2023-11-14

TEST(TokenBook, KnowsTokensByTheirSums) {
  const auto book = TokenBook::parse(format("[[token]]\nsha256 = \"{}\"\nprincipal = \"service/scoring\"\n[[token]]\nsha256 = \"{}\"\n"
                                            "principal = \"person/ann\"\nexpires = \"2023-11-14\"\n[[token]]\nsha256 = \"{}\"\n"
                                            "principal = \"person/bob\"\nexpires = \"2023-11-15\"\n",
                                            sum_of("good"), sum_of("old"), sum_of("fresh")),
                                     "tokens.toml");
  ASSERT_TRUE(book) << book.error().message;
  EXPECT_EQ(book->principal_of("good", kNow).value(), "service/scoring");
  EXPECT_EQ(book->principal_of("fresh", kNow).value(), "person/bob");
  EXPECT_EQ(book->principal_of("old", kNow).error().code, ErrorCode::denied);
  EXPECT_EQ(book->principal_of("", kNow).error().code, ErrorCode::denied);
  EXPECT_EQ(book->principal_of(sum_of("good"), kNow).error().code, ErrorCode::denied);
}

TEST(TokenBook, RefusesWhatCannotBeMeant) {
  const auto refused = [](std::string_view toml) { return TokenBook::parse(toml, "tokens.toml").error().message; };
  EXPECT_NE(refused("[[token]]\nsha256 = \"12\"\nprincipal = \"person/a\"\n").find("64 hex digits"), std::string::npos);
  const auto with = [](std::string_view rest) { return format("[[token]]\nsha256 = \"{}\"\n{}\n", sum_of("t"), rest); };
  EXPECT_NE(refused(with("principal = \"node/control\"")).find("path such as"), std::string::npos);
  EXPECT_NE(refused(with("principal = \"spiffe://c/person/a\"")).find("path such as"), std::string::npos);
  EXPECT_NE(refused(with("principal = \"person/a\"\nexpires = \"2023-02-30\"")).find("YYYY-MM-DD"), std::string::npos);
  EXPECT_NE(refused(with("principal = \"person/a\"\nexpire = \"2023-02-01\"")).find("expires"), std::string::npos);
  EXPECT_NE(refused(with("principal = \"person/a\"") + with("principal = \"person/b\"")).find("twice"), std::string::npos);
}

TEST(TokenBook, ExpiresToTheSecond) {
  const auto book = TokenBook::parse(
      format("[[token]]\nsha256 = \"{}\"\nprincipal = \"person/a\"\nexpires = \"2023-11-14T22:13:20Z\"\n", sum_of("t")), "t");
  ASSERT_TRUE(book) << book.error().message;
  EXPECT_TRUE(book->principal_of("t", WallTime{kNow.unix_ns - 1}));
  EXPECT_FALSE(book->principal_of("t", kNow));
}

TEST(TokenFile, TakesGrantsBesideWhatItHolds) {
  const std::filesystem::path path = testing::TempDir() + "falaj_grant_test.toml";
  std::filesystem::remove(path);
  ASSERT_TRUE(grant_token(path, "one", "service/scoring", WallTime{kNow.unix_ns + 1'000'000'000}));
  ASSERT_TRUE(grant_token(path, "two", "person/ann", std::nullopt));
  TokenFile file(path);
  EXPECT_EQ(file.principal_of("one", kNow).value(), "service/scoring");
  EXPECT_FALSE(file.principal_of("one", WallTime{kNow.unix_ns + 1'000'000'000}));
  EXPECT_EQ(file.principal_of("two", WallTime{kNow.unix_ns * 2}).value(), "person/ann");
  EXPECT_EQ(grant_token(path, "two", "person/bob", std::nullopt).error().code, ErrorCode::invalid);
  for (const auto* bad : {"", "node/control", "person/a\"\n", "person/a b", "spiffe://c/person/a"})
    EXPECT_EQ(grant_token(path, "three", bad, std::nullopt).error().code, ErrorCode::invalid) << bad;
  EXPECT_EQ(file.principal_of("two", kNow).value(), "person/ann");
}

TEST(TokenFile, FollowsItsFileAndKeepsTheLastGoodOne) {
  const auto path = testing::TempDir() + "falaj_tokens_test.toml";
  std::filesystem::remove(path);
  TokenFile file(path);
  EXPECT_TRUE(file.load());
  EXPECT_FALSE(file.principal_of("t", kNow));
  const auto write = [&path](std::string_view toml, int age_s) {
    std::ofstream(path) << toml;
    std::filesystem::last_write_time(path, std::filesystem::file_time_type(std::chrono::seconds(1'000'000 - age_s)));
  };
  write(format("[[token]]\nsha256 = \"{}\"\nprincipal = \"person/a\"\n", sum_of("t")), 20);
  EXPECT_EQ(file.principal_of("t", kNow).value(), "person/a");
  write("nonsense", 10);
  EXPECT_EQ(file.principal_of("t", kNow).value(), "person/a");
  std::filesystem::remove(path);
  EXPECT_FALSE(file.principal_of("t", kNow));
}

}  // namespace
}  // namespace falaj::serving
