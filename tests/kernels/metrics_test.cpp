#include "kernels/train/metrics.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "runtime/base/random.hpp"

namespace falaj::kernels {
namespace {

const std::vector<float> kScores = {0.6F, 0.3F, 0.0F, 0.0F, 0.8F, 0.9F, 0.6F, 0.7F, 0.5F, 0.9F,
                                    0.8F, 0.0F, 0.9F, 0.0F, 0.7F, 0.2F, 0.9F, 0.5F, 0.3F, 0.4F};
const std::vector<std::uint8_t> kPositive = {0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1};
const std::vector<double> kWeights = {3, 3, 3, 2, 3, 1, 2, 3, 3, 2, 2, 1, 2, 2, 3, 3, 1, 3, 2, 2};

TEST(Metrics, AucWithTiesAndWeightsAgreesWithScikitLearn) {
  EXPECT_NEAR(auc(kScores, kPositive), 0.5707070707070707, 1e-12);
  EXPECT_NEAR(auc(kScores, kPositive, kWeights), 0.5657142857142857, 1e-12);
  EXPECT_EQ(auc(kScores, std::vector<std::uint8_t>(20, 1)), 0.5);
  EXPECT_EQ(auc({}, {}), 0.5);
}

TEST(Metrics, AucIsTheShareOfOrderedPairs) {
  Random random(5);
  for (int round = 0; round < 50; ++round) {
    const std::size_t n = 2 + random.below(40);
    std::vector<float> scores(n);
    std::vector<std::uint8_t> positive(n);
    for (std::size_t i = 0; i < n; ++i) {
      scores[i] = static_cast<float>(random.below(6));
      positive[i] = random.chance(0.4) ? 1 : 0;
    }
    double right = 0;
    double pairs = 0;
    for (std::size_t p = 0; p < n; ++p) {
      for (std::size_t q = 0; q < n; ++q) {
        if (positive[p] == 0 || positive[q] != 0) continue;
        ++pairs;
        right += scores[p] > scores[q] ? 1.0 : scores[p] == scores[q] ? 0.5 : 0.0;
      }
    }
    EXPECT_NEAR(auc(scores, positive), pairs == 0 ? 0.5 : right / pairs, 1e-12);
  }
}

TEST(Metrics, BinaryMergesToTheWhole) {
  BinaryMetrics whole;
  BinaryMetrics left;
  BinaryMetrics right;
  for (std::size_t i = 0; i < kScores.size(); ++i) {
    whole.add(kScores[i], kPositive[i] != 0, kWeights[i]);
    (i % 3 == 0 ? left : right).add(kScores[i], kPositive[i] != 0, kWeights[i]);
  }
  left.merge(right);
  EXPECT_EQ(left.auc(), whole.auc());
  EXPECT_NEAR(left.log_loss(), whole.log_loss(), 1e-12);
  EXPECT_EQ(left.accuracy(), whole.accuracy());
  EXPECT_EQ(whole.weight(), 46);
  EXPECT_EQ(whole.true_positive + whole.false_negative, 25);
}

TEST(Metrics, Multiclass) {
  MulticlassMetrics a(3);
  MulticlassMetrics b(3);
  a.add(std::vector<float>{0.7F, 0.2F, 0.1F}, 0);
  a.add(std::vector<float>{0.1F, 0.2F, 0.7F}, 1);
  b.add(std::vector<float>{0.1F, 0.8F, 0.1F}, 1, 2.0);
  a.merge(b);
  EXPECT_DOUBLE_EQ(a.accuracy(), 0.75);
  EXPECT_DOUBLE_EQ(a.confusion(1, 2), 1.0);
  EXPECT_NEAR(a.log_loss(), -(std::log(0.7) + std::log(0.2) + 2 * std::log(0.8)) / 4, 1e-7);
  EXPECT_NEAR(a.macro_f1(), (1.0 + 0.8 + 0.0) / 3, 1e-12);
}

TEST(Metrics, Regression) {
  RegressionMetrics a;
  a.add(1, 2);
  a.add(3, 3, 2);
  RegressionMetrics b;
  b.add(5, 3);
  a.merge(b);
  EXPECT_NEAR(a.rmse(), std::sqrt(5.0 / 4), 1e-12);
  EXPECT_NEAR(a.mae(), 3.0 / 4, 1e-12);
  EXPECT_NEAR(a.r2(), 1 - 5.0 / 0.75, 1e-9);
}

}  // namespace
}  // namespace falaj::kernels
