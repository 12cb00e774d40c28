// Distillation: the loss is its formula, its gradient the loss's slope, its two ends are training by labels and by the teacher alone.
#include "kernels/train/soft_targets.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/train/steps.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels {
namespace {

Tensor draw(Random& random, const Shape& shape, float scale = 1.0F) {
  Tensor t(DType::f32, shape);
  for (float& v : t.mutable_data<float>()) v = static_cast<float>(random.normal()) * scale;
  return t;
}

constexpr std::int64_t kRows = 7;
Graph linear(std::int64_t outputs) {
  Random random(1);
  Graph g;
  g.add_input("x", DType::f32, {-1, 4});
  g.add_initializer("w", draw(random, {4, outputs}));
  g.add_initializer("b", draw(random, {outputs}));
  g.add_output(g.add("Gemm", {"x", "w", "b"}, {}, "y"), DType::f32, {-1, outputs});
  return g;
}

Tensor labels_of(Loss loss, std::int64_t outputs) {
  Random random(4);
  if (loss == Loss::cross_entropy) {
    Tensor out(DType::i64, {kRows});
    for (auto& label : out.mutable_data<std::int64_t>())
      label = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(outputs)));
    return out;
  }
  Tensor out = draw(random, {kRows, outputs});
  for (float& v : out.mutable_data<float>()) v = loss == Loss::bce ? (v > 0 ? 1.0F : 0.0F) : v;
  return out;
}

struct Rig {
  std::unique_ptr<Trainer> trainer;
  DataSet data;
  Tensor x, teacher, labels;
};
Rig rig(Loss loss, std::int64_t outputs, Distillation how) {
  Random random(2);
  Rig out;
  out.x = draw(random, {kRows, 4});
  out.teacher = draw(random, {kRows, outputs}, 2);
  out.labels = labels_of(loss, outputs);
  Objective hard{.loss = loss, .label_row = loss == Loss::cross_entropy ? Shape{} : Shape{outputs}};
  const auto objective = distilled(hard, how, {outputs});
  EXPECT_TRUE(objective) << objective.error().message;
  auto made = Trainer::make(linear(outputs), {.objective = *objective});
  EXPECT_TRUE(made) << made.error().message;
  out.trainer = std::move(*made);
  const auto labels = distilled_labels(hard, out.teacher, out.labels);
  EXPECT_TRUE(labels) << labels.error().message;
  auto data = out.trainer->prepare({out.x}, *labels);
  EXPECT_TRUE(data) << data.error().message;
  out.data = std::move(*data);
  return out;
}

using Row = std::vector<double>;
Row softmax(const Row& x) {
  const double top = std::ranges::max(x);
  Row out;
  double sum = 0;
  for (const double v : x) sum += std::exp(v - top);
  for (const double v : x) out.push_back(std::exp(v - top) / sum);
  return out;
}
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double cross(double p, double x) { return -p * std::log(sigmoid(x)) - (1 - p) * std::log(1 - sigmoid(x)); }

// As it stands at the head of soft_targets.hpp, in double.
double formula(Rig& rig, Loss loss, std::int64_t outputs, Distillation how, std::span<const float> w, std::span<const float> b) {
  double total = 0;
  const double t = how.temperature;
  for (std::int64_t row = 0; row < kRows; ++row) {
    Row z;
    Row teacher;
    for (std::int64_t k = 0; k < outputs; ++k) {
      double sum = static_cast<double>(b[static_cast<std::size_t>(k)]);
      for (std::int64_t i = 0; i < 4; ++i)
        sum += static_cast<double>(rig.x.data<float>()[static_cast<std::size_t>(row * 4 + i)]) *
               static_cast<double>(w[static_cast<std::size_t>(i * outputs + k)]);
      z.push_back(sum);
      teacher.push_back(static_cast<double>(rig.teacher.data<float>()[static_cast<std::size_t>(row * outputs + k)]));
    }
    Row cool;
    Row taught;
    for (std::size_t k = 0; k < z.size(); ++k) {
      cool.push_back(z[k] / t);
      taught.push_back(teacher[k] / t);
    }
    if (loss == Loss::cross_entropy) {
      const auto label = static_cast<std::size_t>(rig.labels.data<std::int64_t>()[static_cast<std::size_t>(row)]);
      total -= (1 - how.share) * std::log(softmax(z)[label]);
      for (std::size_t k = 0; k < z.size(); ++k) total -= how.share * t * t * softmax(taught)[k] * std::log(softmax(cool)[k]);
      continue;
    }
    for (std::size_t k = 0; k < z.size(); ++k) {
      const double label = static_cast<double>(rig.labels.data<float>()[static_cast<std::size_t>(row) * z.size() + k]);
      if (loss == Loss::bce) {
        total += how.share * t * t * cross(sigmoid(taught[k]), cool[k]) + (1 - how.share) * cross(label, z[k]);
      } else {
        total += how.share * (z[k] - teacher[k]) * (z[k] - teacher[k]) + (1 - how.share) * (z[k] - label) * (z[k] - label);
      }
    }
  }
  return total;
}

TEST(SoftTargets, TheLossIsItsFormulaAndTheGradientItsSlope) {
  for (const Loss loss : {Loss::cross_entropy, Loss::bce, Loss::mse}) {
    for (const std::int64_t outputs : {std::int64_t{3}, std::int64_t{1}}) {
      for (const Distillation how :
           {Distillation{}, Distillation{.temperature = 1, .share = 1}, Distillation{.temperature = 7, .share = 0}}) {
        auto made = rig(loss, outputs, how);
        ASSERT_NE(made.trainer, nullptr);
        std::vector<std::uint32_t> rows(kRows);
        std::iota(rows.begin(), rows.end(), 0U);
        std::vector<float> gradient(made.trainer->parameters().size());
        const auto told = made.trainer->gradient(made.data, rows, gradient);
        ASSERT_TRUE(told) << told.error().message;
        const auto named = [&](const std::string& name) {
          const auto at = std::ranges::find(made.trainer->layout(), name, &Parameter::name);
          return std::as_const(*made.trainer).parameters().subspan(at->offset, at->count);
        };
        const auto now = [&] { return formula(made, loss, outputs, how, named("w"), named("b")); };
        const std::string what = format("{} of {} outputs, T {}, share {}", to_string(loss), outputs, how.temperature, how.share);
        EXPECT_NEAR(*told, now(), 1e-4 * (1 + std::abs(now()))) << what;
        EXPECT_EQ(made.trainer->compared(made.data, rows), static_cast<double>(loss == Loss::cross_entropy ? kRows : kRows * outputs));
        for (std::size_t i = 0; i < gradient.size(); ++i) {
          const float before = made.trainer->parameters()[i];
          made.trainer->parameters()[i] = before + 1e-3F;
          const double above = now();
          made.trainer->parameters()[i] = before - 1e-3F;
          const double below = now();
          made.trainer->parameters()[i] = before;
          EXPECT_NEAR(gradient[i], (above - below) / 2e-3, 0.01 + 0.01 * std::abs(static_cast<double>(gradient[i]))) << what;
        }
      }
    }
  }
}

TEST(SoftTargets, WhatDoesNotFitIsRefused) {
  const Objective hard{.loss = Loss::cross_entropy};
  EXPECT_FALSE(distilled(hard, {.temperature = 0}, {3}));
  EXPECT_FALSE(distilled(hard, {.temperature = std::nan("")}, {3}));
  EXPECT_FALSE(distilled(hard, {.share = 1.5}, {3}));
  EXPECT_FALSE(distilled(hard, {}, {3, 4}));
  EXPECT_FALSE(distilled({.loss = Loss::huber}, {}, {3}));
  Random random(1);
  const auto refused = [&](const Tensor& teacher, const Tensor& labels) {
    const auto made = distilled_labels(hard, teacher, labels);
    return made ? std::string() : made.error().message;
  };
  Tensor teacher = draw(random, {2, 3});
  EXPECT_NE(refused(teacher, Tensor::vector<std::int64_t>({0, 3})).find("row 1: label 3"), std::string::npos);
  EXPECT_NE(refused(teacher, Tensor::vector<std::int64_t>({0, kIgnoredLabel})).find("row 1: a label that counts as nothing"),
            std::string::npos);
  EXPECT_NE(refused(teacher, Tensor::vector<std::int64_t>({0, 1, 2})).find("for 3 rows"), std::string::npos);
  teacher.mutable_data<float>()[4] = std::nanf("");
  EXPECT_NE(refused(teacher, Tensor::vector<std::int64_t>({0, 1})).find("row 1: the teacher's answer is nan"), std::string::npos);
  const auto objective = distilled(hard, {}, {5});
  const auto made = Trainer::make(linear(3), {.objective = *objective});
  ASSERT_FALSE(made);
  EXPECT_NE(made.error().message.find("the teacher has 5 outputs, the model 3"), std::string::npos) << made.error().message;
}

}  // namespace
}  // namespace falaj::kernels
