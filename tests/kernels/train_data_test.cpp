// Preprocessing, sampling and splitting: what must not depend on who does it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "kernels/train/preprocess.hpp"
#include "kernels/train/sampler.hpp"
#include "kernels/train/split.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels {
namespace {

constexpr float kMissing = std::numeric_limits<float>::quiet_NaN();

Table small_table() {
  return {{{"x", ColumnKind::numeric}, {"c", ColumnKind::categorical}},
          {NumericColumn{1, 2, kMissing, 4, 1000}, CategoricalColumn{"b", "a", "", "a", "z"}}};
}

TEST(TrainPreprocess, FitsTrainingRowsOnly) {
  const auto fit = fit_preprocessing(small_table(), std::vector<std::uint32_t>{0, 1, 2, 3});
  ASSERT_TRUE(fit) << fit.error().message;
  const auto& x = std::get<NumericFit>(fit->fits[0]);
  EXPECT_NEAR(x.mean, 7.0 / 3, 1e-12);
  EXPECT_NEAR(x.deviation, std::sqrt(21.0 / 3 - 49.0 / 9), 1e-12);
  EXPECT_TRUE(x.indicator);
  EXPECT_EQ(std::get<CategoricalFit>(fit->fits[1]).vocabulary, (std::vector<std::string>{"a", "b"}));
  FitOptions options;
  options.category_rows_min = 2;
  options.missing_indicators = false;
  const auto strict = fit_preprocessing(small_table(), std::vector<std::uint32_t>{0, 1, 2, 3}, options);
  EXPECT_EQ(std::get<CategoricalFit>(strict->fits[1]).vocabulary, std::vector<std::string>{"a"});
  EXPECT_FALSE(std::get<NumericFit>(strict->fits[0]).indicator);
}

TEST(TrainPreprocess, PartsMergeToTheSameBits) {
  Random random(3);
  Table table{{{"x", ColumnKind::numeric}, {"c", ColumnKind::categorical}}, {NumericColumn{}, CategoricalColumn{}}};
  std::vector<std::uint32_t> rows(2000);
  std::iota(rows.begin(), rows.end(), 0U);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const float x = static_cast<float>(random.normal() * std::pow(10.0, random.uniform() * 20 - 10));
    std::get<NumericColumn>(table.values[0]).push_back(random.chance(0.1) ? kMissing : x);
    std::get<CategoricalColumn>(table.values[1]).push_back(random.chance(0.1) ? "" : "k" + std::to_string(random.below(50)));
  }
  const auto whole = fit_preprocessing(table, rows);
  ASSERT_TRUE(whole);
  for (int round = 0; round < 5; ++round) {
    std::shuffle(rows.begin(), rows.end(), random);
    PreprocessFitter merged(table.columns);
    for (std::size_t part = 0; part < 4; ++part) {
      PreprocessFitter fitter(table.columns);
      ASSERT_TRUE(fitter.add(table, std::span(rows).subspan(part * 500, 500)));
      const auto sent = PreprocessFitter::decode(fitter.encode());
      ASSERT_TRUE(sent) << sent.error().message;
      ASSERT_TRUE(merged.merge(*sent));
    }
    EXPECT_TRUE(*merged.finish() == *whole);
  }
  Bytes bytes = PreprocessFitter(table.columns).encode();
  for (std::size_t cut = 0; cut < bytes.size(); cut += 97) EXPECT_FALSE(PreprocessFitter::decode(ByteView(bytes).first(cut)));
}

TEST(TrainPreprocess, ConstantAndEmptyColumnsDoNotDivideByZero) {
  Table table{{{"k", ColumnKind::numeric}, {"none", ColumnKind::numeric}}, {NumericColumn(10, 123456.7F), NumericColumn(10, kMissing)}};
  const auto fit = fit_preprocessing(table, std::vector<std::uint32_t>{0, 1, 2});
  ASSERT_TRUE(fit);
  EXPECT_EQ(std::get<NumericFit>(fit->fits[0]).deviation, 1.0);
  EXPECT_NEAR(std::get<NumericFit>(fit->fits[0]).mean, 123456.7, 0.01);
  EXPECT_EQ(std::get<NumericFit>(fit->fits[1]).mean, 0.0);
  EXPECT_FALSE(std::get<NumericFit>(fit->fits[1]).indicator);
}

TEST(TrainPreprocess, BadTablesAreNamed) {
  Table table = small_table();
  table.columns[1].name = "x";
  EXPECT_NE(check(table).error().message.find("'x'"), std::string::npos);
  table = small_table();
  std::get<NumericColumn>(table.values[0]).pop_back();
  EXPECT_FALSE(check(table));
  EXPECT_FALSE(fit_preprocessing(small_table(), std::vector<std::uint32_t>{99}));
  EXPECT_FALSE(fit_preprocessing(small_table(), {}));
}

TEST(TrainSampler, EveryRowOnceAnEpochWhateverTheWorkers) {
  std::vector<std::uint32_t> rows(101);
  std::iota(rows.begin(), rows.end(), 1000U);
  Sampler sampler({.global_batch = 16, .micro_shards = 8, .seed = 4}, rows);
  EXPECT_EQ(sampler.steps_per_epoch(), 7U);
  std::vector<std::vector<std::uint32_t>> epochs;
  for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<std::uint32_t> seen;
    for (std::uint64_t step = epoch * 7; step < (epoch + 1) * 7; ++step) {
      for (std::uint32_t shard = 0; shard < 8; ++shard) {
        const auto part = sampler.micro_shard(step, shard);
        seen.insert(seen.end(), part.begin(), part.end());
      }
    }
    epochs.push_back(seen);
    std::ranges::sort(seen);
    EXPECT_EQ(seen, rows);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  // Any step can be asked for at any time: a resumed run sees the same rows.
  Sampler other({.global_batch = 16, .micro_shards = 8, .seed = 4}, rows);
  const auto late = other.batch(20);
  EXPECT_TRUE(std::ranges::equal(late, std::span<const std::uint32_t>(epochs[2]).subspan(96)));
  EXPECT_EQ(late.size(), 5U);
}

TEST(TrainSampler, ThePermutationNeverChanges) {
  EXPECT_EQ(permutation(8, 42, 0), permutation(8, 42, 0));
  EXPECT_NE(permutation(100, 42, 0), permutation(100, 42, 1));
  EXPECT_NE(permutation(100, 42, 0), permutation(100, 43, 0));
  EXPECT_EQ(permutation(0, 1, 1).size(), 0U);
  EXPECT_FALSE(check(SamplerSpec{.global_batch = 0}));
  EXPECT_FALSE(check(SamplerSpec{.micro_shards = 0}));
}

TEST(TrainSplit, KeepsTheSharesOfEveryStratum) {
  std::vector<float> labels(1000, 0.0F);
  for (std::size_t i = 0; i < 300; ++i) labels[i * 3] = 1.0F;
  const auto strata = strata_of(labels, false);
  const auto split = stratified_split({.validation = 0.1, .test = 0.2, .seed = 9}, 1000, strata);
  ASSERT_TRUE(split);
  EXPECT_EQ(split->test.size(), 200U);
  EXPECT_EQ(split->validation.size(), 100U);
  EXPECT_EQ(std::ranges::count_if(split->test, [&](auto row) { return labels[row] == 1.0F; }), 60);
  std::set<std::uint32_t> all(split->train.begin(), split->train.end());
  all.insert(split->validation.begin(), split->validation.end());
  all.insert(split->test.begin(), split->test.end());
  EXPECT_EQ(all.size(), 1000U);
  EXPECT_NE(stratified_split({.seed = 10}, 1000, strata)->test, stratified_split({.seed = 11}, 1000, strata)->test);
  EXPECT_FALSE(stratified_split({.validation = 0.5, .test = 0.5}, 1000, strata));
}

TEST(TrainSplit, FollowsKeysNotPositions) {
  std::vector<std::string> keys;
  for (int i = 0; i < 50; ++i) keys.push_back("A" + std::to_string(i));
  const auto split = stratified_split({.test = 0.3, .seed = 1}, 50, {}, ids_of(keys));
  std::set<std::string> tested;
  for (const auto row : split->test) tested.insert(keys[row]);
  std::ranges::reverse(keys);
  const auto turned = stratified_split({.test = 0.3, .seed = 1}, 50, {}, ids_of(keys));
  for (const auto row : turned->test) EXPECT_TRUE(tested.contains(keys[row]));
}

TEST(TrainSplit, FoldsCoverEveryRowOnce) {
  std::vector<std::uint32_t> strata(103);
  for (std::size_t i = 0; i < strata.size(); ++i) strata[i] = i % 4 == 0 ? 1 : 0;
  const auto folds = k_fold(10, 0.1, 7, 103, strata);
  ASSERT_TRUE(folds);
  std::vector<int> tested(103, 0);
  for (const Split& fold : *folds) {
    for (const auto row : fold.test) ++tested[row];
    EXPECT_TRUE(fold.test.size() == 10 || fold.test.size() == 11);
    EXPECT_EQ(fold.test.size() + fold.train.size() + fold.validation.size(), 103U);
  }
  EXPECT_EQ(tested, std::vector<int>(103, 1));
  EXPECT_FALSE(k_fold(1, 0, 7, 103, strata));
}

TEST(TrainSplit, RegressionStrataAreBands) {
  std::vector<float> labels(100);
  std::iota(labels.begin(), labels.end(), 0.0F);
  const auto strata = strata_of(labels, true);
  EXPECT_EQ(strata.front(), 0U);
  EXPECT_EQ(strata.back(), 4U);
}

}  // namespace
}  // namespace falaj::kernels
