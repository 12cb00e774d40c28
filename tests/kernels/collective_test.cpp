#include "kernels/collective/collective.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/collective/in_process.hpp"

namespace falaj::kernels {
namespace {

constexpr Instant kNever = Instant::max();

std::vector<std::vector<float>> random_shards(std::uint32_t count, std::size_t size, Random& random) {
  std::vector<std::vector<float>> shards(count, std::vector<float>(size));
  for (auto& shard : shards) {
    for (float& x : shard) x = static_cast<float>(random.normal() * std::pow(10.0, random.uniform() * 12 - 6));
  }
  return shards;
}

std::vector<float> left_fold(const std::vector<std::vector<float>>& shards, std::size_t size) {
  std::vector<float> sum(size, 0.0F);
  for (const auto& shard : shards) {
    for (std::size_t i = 0; i < size; ++i) sum[i] += shard[i];
  }
  return sum;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Outcome {
  int ended = 0;
  Status status;
  Communicator::Completion completion() {
    return [this](Status s) {
      ++ended;
      status = std::move(s);
    };
  }
};

// counts[r]: micro-shards of rank r; any contiguous assignment gives the same bits.
void check_fold(const std::vector<std::uint32_t>& counts, const std::vector<std::vector<float>>& shards, std::size_t size,
                std::uint64_t seed) {
  Random random(seed);
  CommunicatorOptions options;
  options.chunk_floats = 1 + random.below(size + 3);
  options.window = static_cast<std::uint32_t>(1 + random.below(5));
  const auto world = static_cast<std::uint32_t>(counts.size());
  InProcessRing ring(world, options, random.below(4));
  ASSERT_TRUE(ring.reform(Epoch(1)));
  std::vector<std::vector<float>> sums(world, std::vector<float>(size, 99.0F));
  std::vector<Outcome> outcomes(world);
  std::vector<std::uint32_t> order(world);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  for (const std::uint32_t rank : order) {
    const std::uint32_t first = std::accumulate(counts.begin(), counts.begin() + rank, 0U);
    std::vector<std::span<const float>> mine;
    for (std::uint32_t s = first; s < first + counts[rank]; ++s) mine.emplace_back(shards[s]);
    ASSERT_TRUE(ring.rank(rank).fold(7, std::move(mine), sums[rank], kNever, outcomes[rank].completion()));
    for (int i = 0; i < 3; ++i) ring.step(random);
  }
  ring.run(random);
  const auto expected = left_fold(shards, size);
  for (std::uint32_t rank = 0; rank < world; ++rank) {
    EXPECT_EQ(outcomes[rank].ended, 1) << "rank " << rank << " of " << world << " seed " << seed;
    EXPECT_TRUE(outcomes[rank].status.has_value());
    EXPECT_TRUE(same_bits(sums[rank], expected)) << "rank " << rank << " of " << world << " seed " << seed;
  }
}

TEST(Collective, FoldGivesTheSameBitsForEveryNumberOfRanks) {
  Random random(11);
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const std::size_t size = 1 + random.below(2000);
    const auto shards = random_shards(8, size, random);
    for (std::uint32_t world = 1; world <= 4; ++world) {
      std::vector<std::uint32_t> counts;
      for (std::uint32_t rank = 0; rank < world; ++rank) counts.push_back(shard_range(8, world, Rank(rank)).count);
      check_fold(counts, shards, size, seed);
    }
    check_fold({5, 0, 3}, shards, size, seed);
    check_fold({0, 1, 7}, shards, size, seed);
    check_fold({8, 0}, shards, size, seed);
    check_fold({1, 1, 1, 1, 1, 1, 1, 1}, shards, size, seed);
  }
}

TEST(Collective, AllReduceSumsAndAgreesOnAllRanks) {
  Random random(12);
  for (int round = 0; round < 60; ++round) {
    const auto world = static_cast<std::uint32_t>(1 + random.below(6));
    const std::size_t size = random.below(1500);
    CommunicatorOptions options;
    options.chunk_floats = 1 + random.below(400);
    options.window = static_cast<std::uint32_t>(1 + random.below(4));
    InProcessRing ring(world, options, random.below(3));
    ASSERT_TRUE(ring.reform(Epoch(1)));
    auto data = random_shards(world, size, random);
    const auto expected = left_fold(data, size);
    std::vector<Outcome> outcomes(world);
    for (std::uint32_t rank = 0; rank < world; ++rank)
      ASSERT_TRUE(ring.rank(rank).all_reduce(1, data[rank], kNever, outcomes[rank].completion()));
    ring.run(random);
    for (std::uint32_t rank = 0; rank < world; ++rank) {
      EXPECT_EQ(outcomes[rank].ended, 1);
      EXPECT_TRUE(same_bits(data[rank], data[0]));
      for (std::size_t i = 0; i < size; ++i) EXPECT_NEAR(data[rank][i], expected[i], 1e-5 * (1e6 + std::abs(expected[i])));
    }
  }
}

TEST(Collective, ReduceScatterThenAllGatherIsAllReduce) {
  Random random(13);
  for (std::uint32_t world = 1; world <= 5; ++world) {
    InProcessRing ring(world, {.chunk_floats = 16, .window = 2}, 2);
    ASSERT_TRUE(ring.reform(Epoch(1)));
    std::vector<std::vector<float>> data(world, std::vector<float>(203));
    for (std::uint32_t rank = 0; rank < world; ++rank) std::iota(data[rank].begin(), data[rank].end(), static_cast<float>(rank));
    std::vector<Outcome> outcomes(3 * world);
    for (std::uint32_t rank = 0; rank < world; ++rank) {
      ASSERT_TRUE(ring.rank(rank).reduce_scatter(1, data[rank], kNever, outcomes[rank].completion()));
    }
    ring.run(random);
    for (std::uint32_t rank = 0; rank < world; ++rank) {
      const auto mine = Communicator::segment(203, world, Rank(rank));
      for (std::size_t i = mine.offset; i < mine.offset + mine.count; ++i) {
        EXPECT_EQ(data[rank][i], static_cast<float>(world * i + world * (world - 1) / 2));
      }
      ASSERT_TRUE(ring.rank(rank).all_gather(2, data[rank], kNever, outcomes[world + rank].completion()));
    }
    ring.run(random);
    for (std::uint32_t rank = 0; rank < world; ++rank) {
      EXPECT_EQ(data[rank], data[0]);
      EXPECT_EQ(data[rank][202], static_cast<float>(world * 202 + world * (world - 1) / 2));
      if (rank == world - 1) data[rank].assign(203, 5.0F);
      ASSERT_TRUE(ring.rank(rank).broadcast(3, Rank(world - 1), data[rank], kNever, outcomes[2 * world + rank].completion()));
    }
    ring.run(random);
    for (const auto& values : data) EXPECT_EQ(values, std::vector<float>(203, 5.0F));
    for (const auto& outcome : outcomes) EXPECT_TRUE(outcome.ended == 1 && outcome.status.has_value());
  }
}

TEST(Collective, BarrierWaitsForTheLast) {
  Random random(14);
  InProcessRing ring(4);
  ASSERT_TRUE(ring.reform(Epoch(1)));
  std::vector<Outcome> outcomes(4);
  for (const std::uint32_t rank : {2U, 0U, 3U}) ASSERT_TRUE(ring.rank(rank).barrier(1, kNever, outcomes[rank].completion()));
  ring.run(random);
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome.ended, 0);
  ASSERT_TRUE(ring.rank(1).barrier(1, kNever, outcomes[1].completion()));
  ring.run(random);
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome.ended, 1);
}

TEST(Collective, ALostRankIsNamedAtTheDeadline) {
  Random random(15);
  InProcessRing ring(4, {.chunk_floats = 10});
  ASSERT_TRUE(ring.reform(Epoch(3)));
  const Instant deadline{std::chrono::seconds(5)};
  std::vector<std::vector<float>> data(4, std::vector<float>(100, 1.0F));
  std::vector<Outcome> outcomes(4);
  ring.kill(2);
  std::vector<WaitReport> reports;
  for (const std::uint32_t rank : {0U, 1U, 3U})
    ASSERT_TRUE(ring.rank(rank).all_reduce(1, data[rank], deadline, outcomes[rank].completion()));
  ring.run(random);
  for (const std::uint32_t rank : {0U, 1U, 3U}) {
    const auto waiting = ring.rank(rank).waiting();
    ASSERT_EQ(waiting.size(), 1U);
    reports.push_back(waiting[0]);
    EXPECT_NE(std::ranges::find(waiting[0].missing, Rank(2)), waiting[0].missing.end());
  }
  EXPECT_EQ(name_missing(4, reports), std::vector<Rank>{Rank(2)});
  EXPECT_EQ(reports[2].missing, (std::vector<Rank>{Rank(0), Rank(1), Rank(2)}));  // nothing reaches rank 3, whose predecessor is dead
  for (const std::uint32_t rank : {0U, 1U, 3U}) {
    ring.rank(rank).tick(deadline - std::chrono::nanoseconds(1));
    EXPECT_EQ(outcomes[rank].ended, 0);
    ring.rank(rank).tick(deadline);
    EXPECT_EQ(outcomes[rank].ended, 1);
    EXPECT_EQ(outcomes[rank].status.error().code, ErrorCode::deadline);
    EXPECT_TRUE(ring.rank(rank).idle());
  }
  EXPECT_NE(outcomes[3].status.error().message.find("rank 3 of 4 still waits for rank 0, 1, 2"), std::string::npos)
      << outcomes[3].status.error().message;
}

TEST(Collective, NameMissingPrefersTheSilent) {
  EXPECT_EQ(name_missing(3, {}), (std::vector<Rank>{Rank(0), Rank(1), Rank(2)}));
  const std::vector<WaitReport> all = {{Rank(0), 1, {Rank(1), Rank(2)}}, {Rank(1), 1, {Rank(2)}}, {Rank(2), 1, {Rank(2), Rank(1)}}};
  EXPECT_EQ(name_missing(3, all), std::vector<Rank>{Rank(2)});
}

TEST(Collective, SurvivorsReformAndStaleChunksAreIgnored) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    Random random(seed);
    InProcessRing ring(3, {.chunk_floats = 8, .window = 3}, 4);
    ASSERT_TRUE(ring.reform(Epoch(1)));
    const auto shards = random_shards(8, 100, random);
    std::vector<std::vector<float>> sums(3, std::vector<float>(100));
    std::vector<Outcome> first(3);
    const auto start = [&](std::uint32_t index, std::uint32_t world, std::uint32_t rank, Outcome& outcome) {
      const ShardRange range = shard_range(8, world, Rank(rank));
      std::vector<std::span<const float>> mine;
      for (std::uint32_t s = range.first; s < range.first + range.count; ++s) mine.emplace_back(shards[s]);
      ASSERT_TRUE(ring.rank(index).fold(1, std::move(mine), sums[index], kNever, outcome.completion()));
    };
    for (std::uint32_t rank = 0; rank < 3; ++rank) start(rank, 3, rank, first[rank]);
    for (std::uint64_t i = random.below(30); i > 0; --i) ring.step(random);
    ring.kill(1);
    ASSERT_TRUE(ring.reform(Epoch(2)));  // chunks of epoch 1 are still on their way
    for (const std::uint32_t index : {0U, 2U}) {
      EXPECT_EQ(first[index].ended, 1);
      if (!first[index].status) {
        EXPECT_EQ(first[index].status.error().code, ErrorCode::gone);
      }
    }
    std::vector<Outcome> second(2);
    start(0, 2, 0, second[0]);
    for (std::uint64_t i = random.below(10); i > 0; --i) ring.step(random);
    start(2, 2, 1, second[1]);
    ring.run(random);
    const auto expected = left_fold(shards, 100);
    EXPECT_TRUE(second[0].status.has_value() && second[1].status.has_value());
    EXPECT_EQ(second[0].ended + second[1].ended, 2) << seed;
    EXPECT_TRUE(same_bits(sums[0], expected) && same_bits(sums[2], expected));
  }
}

TEST(Collective, ManyBucketsInterleaveAndCompletionsMayStartMore) {
  Random random(16);
  InProcessRing ring(3, {.chunk_floats = 5, .window = 2}, 2);
  ASSERT_TRUE(ring.reform(Epoch(1)));
  std::vector<std::vector<float>> data(30, std::vector<float>(40, 1.0F));
  int ended = 0;
  std::function<void(std::uint32_t, std::uint64_t)> start = [&](std::uint32_t rank, std::uint64_t sequence) {
    ASSERT_TRUE(ring.rank(rank).all_reduce(sequence, data[rank * 10 + sequence], kNever, [&, rank, sequence](const Status& status) {
      EXPECT_TRUE(status.has_value());
      ++ended;
      if (sequence >= 3 && sequence < 9) start(rank, sequence + 1);
    }));
  };
  for (std::uint32_t rank = 0; rank < 3; ++rank) {
    for (std::uint64_t sequence = 0; sequence < 4; ++sequence) start(rank, sequence);
  }
  ring.run(random);
  EXPECT_EQ(ended, 30);
  for (const auto& values : data) EXPECT_EQ(values, std::vector<float>(40, 3.0F));
}

class Recorder final : public PeerLinks {
 public:
  bool send(Rank, const ChunkHeader& header, std::span<const float>) override {
    sent.push_back(header);
    return true;
  }
  std::vector<ChunkHeader> sent;
};

TEST(Collective, WrongChunksEndTheOperation) {
  const std::vector<float> ten(10, 1.0F);
  const auto outcome_of = [&](ChunkHeader header, std::size_t floats, Rank from) {
    Recorder links;
    Communicator self(links);
    EXPECT_TRUE(self.reform(Epoch(1), Rank(1), 3));
    std::vector<float> sum(10);
    Outcome outcome;
    EXPECT_TRUE(self.fold(1, {ten}, sum, kNever, outcome.completion()));
    self.on_chunk(from, header, std::span(ten).first(floats));
    return outcome.ended == 0 ? ErrorCode::failed : outcome.status.error().code;
  };
  const ChunkHeader good{Epoch(1), 1, CollectiveKind::fold, 0, 1, 10};
  EXPECT_EQ(outcome_of(good, 10, Rank(0)), ErrorCode::failed);  // goes on
  auto bad = good;
  bad.chunk = 1;
  EXPECT_EQ(outcome_of(bad, 10, Rank(0)), ErrorCode::corrupt);
  bad = good, bad.hop = 2;
  EXPECT_EQ(outcome_of(bad, 10, Rank(0)), ErrorCode::corrupt);
  bad = good, bad.count = 9;
  EXPECT_EQ(outcome_of(bad, 10, Rank(0)), ErrorCode::corrupt);
  EXPECT_EQ(outcome_of(good, 9, Rank(0)), ErrorCode::corrupt);
  EXPECT_EQ(outcome_of(good, 10, Rank(2)), ErrorCode::corrupt);
  bad = good, bad.kind = CollectiveKind::all_reduce;
  EXPECT_EQ(outcome_of(bad, 10, Rank(0)), ErrorCode::corrupt);
}

TEST(Collective, EarlyChunksAreBoundedAndMisuseIsRefused) {
  Recorder links;
  Communicator self(links, {.early_bytes_max = 4096});
  const std::vector<float> payload(100, 1.0F);
  Outcome outcome;
  EXPECT_FALSE(self.barrier(1, kNever, outcome.completion()));  // no ring yet
  EXPECT_FALSE(self.reform(Epoch(1), Rank(2), 2));
  for (std::uint32_t i = 0; i < 100; ++i) self.on_chunk(Rank(0), {Epoch(2), 1, CollectiveKind::fold, i, 1, 100}, payload);
  EXPECT_GT(self.ignored(), 80U);
  ASSERT_TRUE(self.reform(Epoch(2), Rank(1), 2));
  EXPECT_FALSE(self.reform(Epoch(2), Rank(1), 2));
  ASSERT_TRUE(self.barrier(5, kNever, outcome.completion()));
  EXPECT_FALSE(self.barrier(5, kNever, outcome.completion()));
  EXPECT_FALSE(self.barrier(4, kNever, outcome.completion()));
  self.abort(error(ErrorCode::failed, "the job was stopped"));
  EXPECT_EQ(outcome.ended, 1);
  EXPECT_NE(outcome.status.error().message.find("the job was stopped"), std::string::npos);
  const auto before = self.ignored();
  self.on_chunk(Rank(0), {Epoch(2), 5, CollectiveKind::barrier, 0, 1, 0}, {});
  EXPECT_EQ(self.ignored(), before + 1);
}

}  // namespace
}  // namespace falaj::kernels
