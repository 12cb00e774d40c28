// What a job's words make of its fit: each of them changes it, and none makes it depend on the number of workers, on threads, or on where
// a run was taken up again.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "actors/features/snapshot.hpp"
#include "actors/training/learner.hpp"
#include "kernels/collective/collective.hpp"
#include "kernels/onnx/onnx.hpp"
#include "messages/features.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"

namespace falaj::training {
namespace {

using messages::FeatureView;
using messages::FieldType;
using messages::Row;
using messages::TrainingJob;
using Change = std::function<void(TrainingJob::Builder)>;

constexpr std::uint32_t kRows = 240, kBatch = 24, kMicroShards = 6;

// y is near 3 x1 - 2 x2, with some far off; `bad` rows have an x1 whose square is no float.
Bytes table(std::uint32_t bad = 0) {
  const auto view = Message::build<FeatureView>([](FeatureView::Builder b) {
    b.setName("points");
    b.setEntity("id");
    auto fields = b.initField(3);
    for (unsigned i = 0; i < 3; ++i) {
      fields[i].setName(i == 0 ? "x1" : i == 1 ? "x2" : "y");
      fields[i].setType(FieldType::FLOAT32);
    }
  });
  features::SnapshotWriter writer(*view.view<FeatureView>());
  Random random(5);
  for (std::uint32_t n = 0; n < kRows; ++n) {
    const auto x1 = static_cast<float>(random.normal());
    const auto x2 = static_cast<float>(random.normal());
    const float off = n % 17 == 0 ? 30.0F : 0.0F;
    const auto row = Message::build<Row>([&](Row::Builder b) {
      b.setEntity(format("e{:04}", n));
      auto values = b.initValues(3);
      values[0].setFloat32(n < bad ? 3e38F : x1);
      values[1].setFloat32(x2);
      values[2].setFloat32(3 * x1 - 2 * x2 + off + 0.1F * static_cast<float>(random.normal()));
    });
    writer.add(*row.view<Row>());
  }
  writer.finish();
  return writer.take(writer.ready());
}

// x1, x2 -> Gemm, BatchNormalization, Relu, Dropout, Gemm: without the standardising of our families.
Bytes imported() {
  using namespace kernels;
  Graph graph;
  graph.name = "imported";
  graph.add_input("x1", DType::f32, {-1, 1});
  graph.add_input("x2", DType::f32, {-1, 1});
  Random random(9);
  const auto weights = [&](const char* name, Shape shape) {
    Tensor out(DType::f32, shape);
    for (float& w : out.mutable_data<float>()) w = static_cast<float>(random.normal()) * 0.3F;
    return graph.add_initializer(name, std::move(out));
  };
  const auto filled = [&](const char* name, float value) {
    Tensor out(DType::f32, {8});
    std::ranges::fill(out.mutable_data<float>(), value);
    return graph.add_initializer(name, std::move(out));
  };
  using Names = std::vector<std::string>;
  const auto x = graph.add("Concat", Names{"x1", "x2"}, {{"axis", std::int64_t{1}}});
  const auto h = graph.add("Gemm", Names{x, weights("w1", {2, 8}), filled("b1", 0)});
  const auto n = graph.add("BatchNormalization", Names{h, filled("scale", 1), filled("shift", 0), filled("mean", 0), filled("var", 1)});
  const auto r = graph.add("Relu", Names{n});
  const auto d = graph.add("Dropout", Names{r, graph.add_initializer("share", Tensor::scalar<float>(0.5F))});
  graph.add("Gemm", Names{d, weights("w2", {8, 1}), graph.add_initializer("b2", Tensor::vector<float>({0}))}, {}, "y");
  graph.add_output("y", DType::f32, {-1, 1});
  auto bytes = export_onnx(graph);
  EXPECT_TRUE(bytes.has_value()) << bytes.error().message;
  return std::move(bytes).value();
}

Message job_of(const Change& change) {
  return Message::build<TrainingJob>([&](TrainingJob::Builder b) {
    b.setName("points");
    b.setLabel("y");
    auto model = b.initModel();
    model.setFamily("mlp");
    model.initHidden(1).set(0, 16);
    b.setEpochs(4);
    b.setGlobalBatch(kBatch);
    b.setMicroShards(kMicroShards);
    if (change) change(b);
  });
}

void to_imported(TrainingJob::Builder b) {
  b.initModel().setFamily("onnx");
  b.getModel().setOnnx("imported");
}

Result<std::unique_ptr<Learner>> learner_of(const Change& change, const Bytes& snapshot) {
  const Message job = job_of(change);
  const auto spec = job.view<TrainingJob>();
  FALAJ_ASSIGN(const auto course, make_course(*spec, snapshot, text(spec->getModel().getFamily()) == "onnx" ? imported() : Bytes()));
  return course->learner(0);
}

// Steps of `ranks` learners, their contributions summed in the order of micro-shards; where `again` is given, each is made anew from the
// state of the first before that step.
struct Fit {
  std::vector<std::unique_ptr<Learner>> ranks;
  Status status;

  Fit(const Change& change, const Bytes& snapshot, std::uint32_t count, std::uint64_t again = ~0ULL) {
    const auto make = [&] {
      for (std::uint32_t r = 0; r < count; ++r) {
        auto made = learner_of(change, snapshot);
        ASSERT_TRUE(made.has_value()) << made.error().message;
        ranks.push_back(std::move(made).value());
      }
    };
    const auto load = [&](const Bytes& state) {
      for (const auto& rank : ranks) EXPECT_TRUE(rank->load(state).has_value());
    };
    make();
    while (!ranks.empty() && !ranks[0]->done() && status) {
      if (ranks[0]->progress().step == again) {
        const auto state = ranks[0]->state();
        ranks.clear();
        make();
        load(state);
        again = ~0ULL;
      }
      status = step();
    }
  }

  Status step() {
    std::vector<float> sum(ranks[0]->width(), 0.0F);
    for (std::uint32_t r = 0; r < ranks.size(); ++r) {
      const auto range = kernels::shard_range(kMicroShards, static_cast<std::uint32_t>(ranks.size()), Rank(r));
      std::vector<std::vector<float>> parts(range.count, std::vector<float>(sum.size()));
      FALAJ_TRY(ranks[r]->contribute({range.first, range.count}, parts));
      for (const auto& part : parts) {
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
      }
    }
    for (const auto& rank : ranks) {
      auto mine = sum;
      FALAJ_TRY(rank->commit(mine));
    }
    return {};
  }

  [[nodiscard]] Bytes state() const { return ranks[0]->state(); }
  [[nodiscard]] Outcome outcome() const { return ranks[0]->finish(true).value(); }
};

struct Case {
  const char* name;
  Change change;
};

class Words : public ::testing::TestWithParam<Case> {};

// Each differs from a plain job, and is the same for any number of workers and from any checkpoint.
TEST_P(Words, MakeAFitOfTheirOwnWhoeverComputesIt) {
  const auto snapshot = table();
  const Change& change = GetParam().change;
  const bool onnx = std::string_view(GetParam().name).starts_with("imported");
  const Fit plain(onnx ? Change(to_imported) : Change(), snapshot, 1);
  const Fit alone(change, snapshot, 1);
  ASSERT_TRUE(alone.status) << alone.status.error().message;
  EXPECT_NE(alone.outcome().weights_digest, plain.outcome().weights_digest) << "the word changes nothing";
  for (const std::uint32_t ranks : {2U, 3U}) {
    const Fit fit(change, snapshot, ranks, 13);
    ASSERT_TRUE(fit.status) << fit.status.error().message;
    EXPECT_EQ(fit.state(), alone.state()) << ranks;
    EXPECT_EQ(fit.outcome().model, alone.outcome().model) << ranks;
  }
}

INSTANTIATE_TEST_SUITE_P(Each, Words,
                         ::testing::Values(Case{"adam", [](TrainingJob::Builder b) { b.initOptimizer().setName("adam"); }},
                                           Case{"lamb", [](TrainingJob::Builder b) { b.initOptimizer().setName("lamb"); }},
                                           Case{"nesterov",
                                                [](TrainingJob::Builder b) {
                                                  auto o = b.initOptimizer();
                                                  o.setName("sgd");
                                                  o.setNesterov(true);
                                                }},
                                           Case{"step",
                                                [](TrainingJob::Builder b) {
                                                  auto o = b.initOptimizer();
                                                  o.setSchedule("step");
                                                  o.setEvery(7);
                                                }},
                                           Case{"plateau",
                                                [](TrainingJob::Builder b) {
                                                  auto o = b.initOptimizer();
                                                  o.setSchedule("plateau");
                                                  o.setLearningRate(0.5);  // so large that an epoch is worse than the one before it
                                                  o.setPlateauEpochs(0);
                                                }},
                                           Case{"plateau_without_validation",
                                                [](TrainingJob::Builder b) {
                                                  b.setValidationFraction(0);
                                                  auto o = b.initOptimizer();
                                                  o.setSchedule("plateau");
                                                  o.setLearningRate(0.5);
                                                  o.setPlateauEpochs(0);
                                                }},
                                           Case{"bf16", [](TrainingJob::Builder b) { b.setPrecision("bf16"); }},
                                           Case{"l1", [](TrainingJob::Builder b) { b.setLoss("l1"); }},
                                           Case{"huber", [](TrainingJob::Builder b) { b.setLoss("huber"); }},
                                           Case{"imported_frozen",
                                                [](TrainingJob::Builder b) {
                                                  to_imported(b);
                                                  b.initFreeze(1).set(0, "w1");
                                                }},
                                           Case{"imported_dropout",
                                                [](TrainingJob::Builder b) {
                                                  to_imported(b);
                                                  b.getModel().setDropoutNodes(true);
                                                }},
                                           Case{"imported_batch_statistics",
                                                [](TrainingJob::Builder b) {
                                                  to_imported(b);
                                                  b.getModel().setBatchStatistics(true);
                                                  b.setPatience(2);
                                                }}),
                         [](const auto& one) { return std::string(one.param.name); });

TEST(TrainingWords, ThreadsChangeNoBit) {
  const auto snapshot = table();
  const Fit one({}, snapshot, 1);
  for (const std::uint32_t threads : {0U, 3U}) {
    const Fit fit([&](TrainingJob::Builder b) { b.setThreads(threads); }, snapshot, 1);
    EXPECT_EQ(fit.state(), one.state()) << threads;
  }
}

TEST(TrainingWords, WhatIsFrozenStaysAndTheRestMoves) {
  const Fit fit(
      [](TrainingJob::Builder b) {
        to_imported(b);
        b.initFreeze(1).set(0, "w1");
      },
      table(), 2);
  const auto before = kernels::import_onnx(imported(), "before");
  const auto after = kernels::import_onnx(fit.outcome().model, "after");
  ASSERT_TRUE(before.has_value() && after.has_value());
  const auto same = [&](const char* name) {
    const auto a = before->initializers.find(name)->second.data<float>();
    const auto b = after->initializers.find(name)->second.data<float>();
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  };
  EXPECT_TRUE(same("w1"));
  EXPECT_TRUE(same("mean")) << "running statistics are kept unless the job says so";
  EXPECT_FALSE(same("w2"));
}

// One step over a whole batch moves a running mean by (1 - momentum) of the way to the batch's mean: of all rows, whatever shards they were
// in.
TEST(TrainingWords, RunningStatisticsAreThoseOfTheWholeBatch) {
  const auto snapshot = table();
  const auto job = [](std::uint32_t shards) {
    return [shards](TrainingJob::Builder b) {
      to_imported(b);
      b.getModel().setBatchStatistics(true);
      b.setMicroShards(shards);
      b.setEpochs(1);
      b.setTestFraction(0);
      b.setValidationFraction(0);
      b.setGlobalBatch(kRows);
      b.initOptimizer().setLearningRate(1e-9);
    };
  };
  const auto means = [&](std::uint32_t shards) {
    auto learner = learner_of(job(shards), snapshot).value();
    std::vector<std::vector<float>> parts(shards, std::vector<float>(learner->width()));
    EXPECT_TRUE(learner->contribute({0, shards}, parts).has_value());
    std::vector<float> sum(learner->width(), 0.0F);
    for (const auto& part : parts) {
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    }
    EXPECT_TRUE(learner->commit(sum).has_value());
    const auto graph = kernels::import_onnx(learner->finish(true).value().model, "trained").value();
    const auto mean = graph.initializers.find("mean")->second.data<float>();
    return std::vector<float>(mean.begin(), mean.end());
  };
  const auto whole = means(1);
  const auto cut = means(6);
  double moved = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    EXPECT_NEAR(cut[i], whole[i], 1e-6) << i;
    moved += std::fabs(static_cast<double>(whole[i]));
  }
  EXPECT_GT(moved, 1e-4);
}

TEST(TrainingWords, AStepWithoutANumberEndsTheRunOrIsLeftOutAndCounted) {
  const auto snapshot = table(1);
  const auto job = [](bool skip) {
    return [skip](TrainingJob::Builder b) {
      to_imported(b);
      b.setTestFraction(0);
      b.setValidationFraction(0);
      b.setNotFinite(skip ? "skip" : "stop");
    };
  };
  const Fit stopped(job(false), snapshot, 2);
  ASSERT_FALSE(stopped.status);
  EXPECT_NE(stopped.status.error().message.find("no longer a number; the first to go bad is"), std::string::npos)
      << stopped.status.error().message;
  const Fit alone(job(true), snapshot, 1);
  ASSERT_TRUE(alone.status) << alone.status.error().message;
  EXPECT_EQ(alone.outcome().metrics.at("skipped_steps"), 4) << "the bad row is in one batch of each of four epochs";
  EXPECT_TRUE(std::isfinite(alone.ranks[0]->progress().loss));
  EXPECT_EQ(alone.ranks[0]->progress().samples, 4 * kRows);
  const Fit two(job(true), snapshot, 2, 25);
  EXPECT_EQ(two.state(), alone.state());
}

TEST(TrainingWords, StepsThatAreAllWithoutANumberEndTheRun) {
  const Fit fit(
      [](TrainingJob::Builder b) {
        to_imported(b);
        b.setEpochs(50);
        b.setNotFinite("skip");
      },
      table(kRows), 1);
  ASSERT_FALSE(fit.status);
  EXPECT_NE(fit.status.error().message.find("100 steps one after the other"), std::string::npos) << fit.status.error().message;
}

TEST(TrainingWords, WhatDoesNotFitIsSaid) {
  const auto snapshot = table();
  const auto why = [&](const Change& change) {
    const auto made = learner_of(change, snapshot);
    return made.has_value() ? std::string() : made.error().message;
  };
  EXPECT_NE(why([](TrainingJob::Builder b) { b.initOptimizer().setSchedule("step"); }).find("needs `every`"), std::string::npos);
  EXPECT_NE(why([](TrainingJob::Builder b) { b.getModel().setDropoutNodes(true); }).find("family onnx"), std::string::npos);
  EXPECT_NE(why([](TrainingJob::Builder b) { b.initFreeze(1).set(0, "nothing"); }).find("nothing"), std::string::npos);
  EXPECT_NE(why([](TrainingJob::Builder b) {
              auto o = b.initOptimizer();
              o.setName("sgd");
              o.setMomentum(0);
              o.setNesterov(true);
            }).find("momentum"),
            std::string::npos);
}

}  // namespace
}  // namespace falaj::training
