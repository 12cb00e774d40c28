#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/train/optimizer.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels {
namespace {

std::vector<float> gradients_at(int t) {
  return {0.1F * static_cast<float>(t + 1), -0.3F / static_cast<float>(t + 1), t % 2 == 0 ? 0.05F : -0.05F};
}

std::vector<float> run(OptimizerSpec spec, std::vector<std::uint8_t> decay = {}) {
  std::vector<float> parameters = {1.0F, -2.0F, 0.5F};
  Optimizer optimizer(spec, 3, std::move(decay));
  for (int t = 0; t < 5; ++t) {
    auto gradients = gradients_at(t);
    optimizer.step(parameters, gradients);
  }
  return parameters;
}

void expect_near(const std::vector<float>& got, const std::vector<double>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], wanted[i], 1e-6) << i;
}

// Expected values: the published formulas in double precision.
TEST(TrainOptimizer, FollowsTheFormulas) {
  OptimizerSpec spec{.learning_rate = 0.01, .weight_decay = 0.1};
  expect_near(run(spec), {0.9465993042736577, -1.946098917407737, 0.48320009440157});
  spec.kind = OptimizerKind::sgd;
  spec.momentum = 0.9;
  expect_near(run(spec), {0.9552343829981981, -1.951664517291495, 0.49221585604759904});
  spec.nesterov = true;
  expect_near(run(spec), {0.9398261269123699, -1.9398124499389962, 0.4900198228695868});
}

TEST(TrainOptimizer, DecayFollowsTheMask) {
  const OptimizerSpec with{.learning_rate = 0.01, .weight_decay = 0.1};
  OptimizerSpec without = with;
  without.weight_decay = 0;
  const auto mixed = run(with, {1, 0, 1});
  EXPECT_EQ(mixed[0], run(with)[0]);
  EXPECT_EQ(mixed[1], run(without)[1]);
}

// Sums of gradients with the factor that makes means of them: as if they had been multiplied before.
TEST(TrainOptimizer, TakesSumsOfGradientsTimesAScale) {
  Random random(8);
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adam, OptimizerKind::sgd, OptimizerKind::lamb}) {
    for (const double clip : {0.0, 0.5}) {
      OptimizerSpec spec = default_optimizer(kind);
      spec.clip_norm = clip;
      constexpr std::size_t kCount = 45;
      Optimizer means(spec, kCount);
      Optimizer sums(spec, kCount);
      std::vector<float> a(kCount, 0.5F);
      std::vector<float> b = a;
      for (int t = 0; t < 3; ++t) {
        std::vector<float> sum(kCount);
        for (float& g : sum) g = static_cast<float>(random.normal() * 7);
        const float scale = 1.0F / 7;
        std::vector<float> mean = sum;
        for (float& g : mean) g *= scale;
        EXPECT_EQ(means.step(a, mean), sums.step(b, sum, 1.0, nullptr, scale));
        EXPECT_EQ(a, b) << to_string(kind) << ", clipped to " << clip;
      }
    }
  }
}

// Many parameters at a time move as each would by itself: simulations and machines without vectors get the same bits.
TEST(TrainOptimizer, ManyParametersMoveAsOneDoes) {
  Random random(7);
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adam}) {
    OptimizerSpec spec = default_optimizer(kind);
    spec.weight_decay = 0.03;
    constexpr std::size_t kCount = 29;
    std::vector<std::uint8_t> decay(kCount);
    for (auto& d : decay) d = random.chance(0.5) ? 1 : 0;
    std::vector<float> together(kCount);
    for (float& p : together) p = static_cast<float>(random.normal());
    std::vector<float> alone = together;
    Optimizer all(spec, kCount, decay);
    std::vector<Optimizer> each;
    for (std::size_t i = 0; i < kCount; ++i) each.emplace_back(spec, 1, std::vector<std::uint8_t>{decay[i]});
    for (int step = 0; step < 20; ++step) {
      std::vector<float> gradients(kCount);
      for (float& g : gradients) g = static_cast<float>(random.normal());
      for (std::size_t i = 0; i < kCount; ++i) {
        std::vector<float> own = {gradients[i]};
        each[i].step(std::span(alone).subspan(i, 1), own);
      }
      all.step(together, gradients);
      ASSERT_EQ(together, alone) << "step " << step;
    }
  }
}

TEST(TrainOptimizer, ClipsByTheGlobalNormAndSkipsWhatIsNotFinite) {
  OptimizerSpec spec{.kind = OptimizerKind::sgd, .learning_rate = 1.0, .weight_decay = 0.0, .clip_norm = 1.0};
  Optimizer optimizer(spec, 2);
  std::vector<float> parameters = {0.0F, 0.0F};
  std::vector<float> gradients = {3.0F, 4.0F};
  EXPECT_DOUBLE_EQ(optimizer.step(parameters, gradients), 5.0);
  EXPECT_NEAR(parameters[0], -0.6, 1e-6);
  EXPECT_NEAR(parameters[1], -0.8, 1e-6);
  gradients = {std::numeric_limits<float>::quiet_NaN(), 1.0F};
  const auto before = parameters;
  EXPECT_FALSE(std::isfinite(optimizer.step(parameters, gradients)));
  EXPECT_EQ(parameters, before);
  EXPECT_EQ(optimizer.steps(), 1U);
}

TEST(TrainOptimizer, StateGoesOnWhereItStopped) {
  const OptimizerSpec spec{.learning_rate = 0.01};
  std::vector<float> whole = {1.0F, -2.0F, 0.5F};
  std::vector<float> resumed = whole;
  Optimizer a(spec, 3);
  Optimizer b(spec, 3);
  for (int t = 0; t < 3; ++t) {
    auto g = gradients_at(t);
    a.step(whole, g);
    g = gradients_at(t);
    b.step(resumed, g);
  }
  Optimizer c(spec, 3);
  ASSERT_TRUE(c.load(b.steps(), b.state()));
  for (int t = 3; t < 6; ++t) {
    auto g = gradients_at(t);
    a.step(whole, g);
    g = gradients_at(t);
    c.step(resumed, g);
  }
  EXPECT_EQ(std::memcmp(whole.data(), resumed.data(), 12), 0);
  EXPECT_FALSE(c.load(1, std::vector<float>(5)));
}

TEST(TrainOptimizer, Schedules) {
  const Schedule s{ScheduleKind::warmup_cosine, 10, 110, 0.1};
  EXPECT_DOUBLE_EQ(s.factor(0), 0.1);
  EXPECT_DOUBLE_EQ(s.factor(9), 1.0);
  EXPECT_NEAR(s.factor(60), 0.55, 1e-12);
  EXPECT_NEAR(s.factor(110), 0.1, 1e-12);
  EXPECT_NEAR(s.factor(1000), 0.1, 1e-12);
  EXPECT_EQ(Schedule{}.factor(123), 1.0);
}

TEST(TrainOptimizer, RefusesNonsense) {
  EXPECT_TRUE(check(OptimizerSpec{}));
  EXPECT_FALSE(check(OptimizerSpec{.learning_rate = 0}));
  EXPECT_FALSE(check(OptimizerSpec{.learning_rate = std::nan("")}));
  EXPECT_FALSE(check(OptimizerSpec{.beta1 = 1.0}));
  EXPECT_FALSE(check(OptimizerSpec{.nesterov = true}));
  EXPECT_FALSE(optimizer_kind("rmsprop"));
}

}  // namespace
}  // namespace falaj::kernels
