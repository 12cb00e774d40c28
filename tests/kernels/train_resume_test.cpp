// A run of steps that is taken down anywhere goes on with the same bits; states that are damaged, newer or of another run are refused.
#include <gtest/gtest.h>

#include <cstring>

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

// A convolution, running statistics, dropout and a linear layer: everything that has a state of its own or draws.
Graph network() {
  Random random(1);
  Graph g;
  g.add_input("x", DType::f32, {-1, 2, 4, 4});
  g.add_initializer("filter", draw(random, {3, 2, 3, 3}, 0.3F));
  g.add_initializer("scale", Tensor::vector<float>({1, 2, 1}));
  g.add_initializer("shift", Tensor::vector<float>({0, 0.5F, 0}));
  g.add_initializer("mean", Tensor::vector<float>({0.25F, -1, 0}));
  g.add_initializer("variance", Tensor::vector<float>({1, 3, 2}));
  g.add_initializer("ratio", Tensor::scalar<float>(0.3F));
  g.add_initializer("training", Tensor::scalar<bool>(true));
  g.add_initializer("w", draw(random, {3, 2}));
  g.add_initializer("b", Tensor(DType::f32, {2}));
  g.add("Conv", {"x", "filter"}, {}, "c");
  g.add("BatchNormalization", {"c", "scale", "shift", "mean", "variance"}, {}, "n");
  g.add("Relu", {"n"}, {}, "r");
  g.add("GlobalAveragePool", {"r"}, {}, "p");
  g.add("Flatten", {"p"}, {}, "f");
  g.add("Dropout", {"f", "ratio", "training"}, {}, "d");
  g.add_output(g.add("Gemm", {"d", "w", "b"}, {}, "y"), DType::f32, {-1, 2});
  return g;
}

struct Rig {
  std::unique_ptr<Trainer> trainer;
  DataSet data;
};
Rig rig() {
  auto made = Trainer::make(network(), {.objective = Objective{.loss = Loss::cross_entropy}, .batch_statistics = true, .dropout = true});
  EXPECT_TRUE(made) << made.error().message;
  Random random(2);
  Tensor labels(DType::i64, {22});
  for (auto& label : labels.mutable_data<std::int64_t>()) label = static_cast<std::int64_t>(random.below(2));
  auto data = (*made)->prepare({draw(random, {22, 2, 4, 4})}, labels);
  EXPECT_TRUE(data) << data.error().message;
  return {std::move(*made), std::move(*data)};
}

StepsSpec spec_of(OptimizerKind kind, std::uint64_t steps) {
  StepsSpec spec;
  spec.optimizer = default_optimizer(kind);
  spec.optimizer.learning_rate = 0.05;
  if (kind == OptimizerKind::sgd) spec.optimizer.momentum = 0.9;
  spec.sampler = {.global_batch = 5, .seed = 9};
  spec.steps = steps;
  return spec;
}

struct Outcome {
  std::vector<StepReport> reports;
  std::vector<float> parameters, statistics;
  bool operator==(const Outcome&) const = default;
};

// `stop`: after so many steps the run ends, and another one, with a trainer and data of its own, takes up its last checkpoint.
Outcome run(const StepsSpec& spec, std::uint64_t every, std::uint64_t stop) {
  Outcome out;
  Bytes kept;
  const auto on_step = [&](const StepReport& report) -> Status {
    out.reports.push_back(report);
    return report.step == stop ? failed("killed") : Status{};
  };
  const auto save = [&](const StepsState& state) -> Status {
    kept = encode(state, {{"model", "m"}});
    return {};
  };
  auto first = rig();
  const auto ended = train_steps(*first.trainer, first.data, spec, on_step, {.every = every, .save = save});
  auto* last = &first;
  Rig second;
  if (stop != 0) {
    EXPECT_FALSE(ended) << "the run was to be killed";
    second = rig();
    last = &second;
    const auto state = decode_steps(kept, {{"model", "m"}});
    EXPECT_TRUE(state) << state.error().message;
    EXPECT_EQ(state->step, (stop - 1) / every * every) << "a step that was not finished is not in a checkpoint";
    out.reports = state->reports;
    stop = 0;
    const auto resumed = train_steps(*second.trainer, second.data, spec, on_step, {.from = &*state, .every = every, .save = save});
    EXPECT_TRUE(resumed) << resumed.error().message;
  } else {
    EXPECT_TRUE(ended) << ended.error().message;
  }
  out.parameters.assign(last->trainer->parameters().begin(), last->trainer->parameters().end());
  out.statistics = last->trainer->statistics();
  return out;
}

TEST(TrainResume, AKilledRunEndsWithTheBitsOfOneThatWasNot) {
  std::vector<StepsSpec> specs;
  for (const auto kind : {OptimizerKind::sgd, OptimizerKind::adam, OptimizerKind::adamw, OptimizerKind::lamb})
    specs.push_back(spec_of(kind, 13));
  specs[0].accumulate = 2;
  specs[1].schedule = {.kind = ScheduleKind::warmup_cosine, .warmup_steps = 3, .total_steps = 13};
  specs[2].plateau = true;
  specs[2].plateau_spec.patience = 0;
  specs[2].plateau_spec.threshold = 0.99;  // hardly anything counts as better: the rate falls
  for (const StepsSpec& spec : specs) {
    const auto whole = run(spec, 0, 0);
    ASSERT_EQ(whole.reports.size(), 13U);
    for (const std::uint64_t stop : {2, 5, 8, 13})
      EXPECT_EQ(run(spec, stop == 5 ? 4 : 1, stop), whole) << to_string(spec.optimizer.kind) << " at " << stop;
  }
  const auto plateau = run(specs[2], 0, 0);
  EXPECT_LT(plateau.reports.back().learning_rate, plateau.reports.front().learning_rate) << "or the plateau is not tested";
}

StepsState sample() {
  StepsState state{.step = 2, .parameters = {1, 2, 3}, .optimizer = {4, 5}, .statistics = {6}, .epoch_loss = 0.5, .epoch_count = 3};
  state.plateau.best = 7;
  state.plateau.any = true;
  state.reports = {{1, 0.1, 0.2, 0.3}, {2, 0.4, 0.5, 0.6}};
  return state;
}

TEST(TrainResume, OnlyWholeOnesOfTheSameRunAreTakenUp) {
  const StepsIdentity identity = {{"model", "abc"}, {"--lr", "0.1"}};
  const Bytes bytes = encode(sample(), identity);
  const auto again = decode_steps(bytes, identity);
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->reports, sample().reports);
  EXPECT_EQ(again->parameters, sample().parameters);
  EXPECT_EQ(again->plateau.best, 7);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const auto cut = decode_steps(ByteView(bytes).first(size), identity);
    ASSERT_FALSE(cut) << size;
    EXPECT_EQ(cut.error().code, ErrorCode::corrupt);
  }
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    Bytes other = bytes;
    other[at] ^= 0x10;
    EXPECT_FALSE(decode_steps(other, identity)) << at;
  }
  Bytes newer = bytes;
  newer[8] = 2;
  EXPECT_EQ(decode_steps(newer, identity).error().code, ErrorCode::unimplemented);
  const auto other = decode_steps(bytes, {{"model", "abc"}, {"--lr", "0.2"}});
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code, ErrorCode::conflict);
  EXPECT_NE(other.error().message.find("its --lr is 0.1, here it is 0.2"), std::string::npos) << other.error().message;
  EXPECT_EQ(decode_steps(bytes, {{"model", "abc"}}).error().code, ErrorCode::conflict);
}

TEST(TrainResume, StatesThatDoNotFitTheModelAreRefused) {
  const auto made = rig();
  const StepsState state = sample();
  const auto status = train_steps(*made.trainer, made.data, spec_of(OptimizerKind::adamw, 3),
                                  [](const StepReport&) -> Status { return {}; }, {.from = &state});
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("do not fit a model"), std::string::npos);
}

}  // namespace
}  // namespace falaj::kernels
