// Boosted trees as a Learner: see material.hpp.
#include <algorithm>

#include "actors/training/material.hpp"
#include "kernels/trees/booster.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/thread.hpp"
#include "storage/digest.hpp"

namespace falaj::training {
namespace {

namespace trees = kernels::trees;
constexpr std::size_t kThreadsMax = 16;

class TreeLearner final : public Learner {
 public:
  static Result<std::unique_ptr<Learner>> make(std::shared_ptr<const Material> material, trees::Spec spec, std::uint32_t fold) {
    const kernels::Split& split = material->splits[fold];
    kernels::TargetSpec target = material->target;
    if (target.task == kernels::Task::regression) {
      // Mean and deviation of the label are fitted on the training part, as everything else is.
      FALAJ_ASSIGN(target, kernels::fit_target(material->target.name, material->labels, split.train));
      target.task = kernels::Task::regression;
    }
    if (split.validation.empty()) spec.patience = 0;
    FALAJ_ASSIGN(const auto labels, kernels::encode_labels(target, material->labels));
    const std::size_t threads = std::min(hardware_threads(), kThreadsMax);
    FALAJ_ASSIGN(auto booster, trees::Booster::make(spec, target, material->table, labels, split.train, split.validation, threads));
    return std::unique_ptr<Learner>(new TreeLearner(std::move(material), spec, fold, std::move(booster)));
  }

  // A float that nobody needs: sums of nothing are not provided for.
  [[nodiscard]] std::size_t width() const override { return 1; }
  Status contribute(Shards shards, std::span<std::vector<float>> contributions) override {
    for (std::uint32_t i = 0; i < shards.count; ++i) std::ranges::fill(contributions[i], 0.0F);
    return {};
  }
  Status commit(std::span<float>) override {
    FALAJ_TRY(booster_->step());
    loss_ = booster_->training_loss();
    return {};
  }
  [[nodiscard]] bool done() const override { return booster_->done(); }
  [[nodiscard]] Progress progress() const override {
    const std::uint64_t rounds = booster_->rounds();
    return {rounds, spec_.rounds, rounds * split().train.size(), loss_, booster_->validation_loss()};
  }
  [[nodiscard]] Bytes state() const override { return booster_->state(); }
  Status load(ByteView state) override {
    FALAJ_TRY(booster_->load(state));
    loss_ = booster_->training_loss();
    return {};
  }

  Result<Outcome> finish(bool final_fit) override {
    Outcome out;
    out.weights_digest = storage::sha256(trees::encode(booster_->forest().trees)).hex();
    if (!split().test.empty()) {
      FALAJ_ASSIGN(const auto evaluation, booster_->evaluate(split().test));
      note(evaluation, out);
    }
    if (final_fit) {
      FALAJ_ASSIGN(auto graph, booster_->graph());
      FALAJ_ASSIGN(out.model, export_model(*material_, std::move(graph)));
    }
    return out;
  }

 private:
  TreeLearner(std::shared_ptr<const Material> material, const trees::Spec& spec, std::uint32_t fold,
              std::unique_ptr<trees::Booster> booster)
      : material_(std::move(material)), spec_(spec), fold_(fold), booster_(std::move(booster)) {}
  [[nodiscard]] const kernels::Split& split() const { return material_->splits[fold_]; }

  const std::shared_ptr<const Material> material_;
  const trees::Spec spec_;
  const std::uint32_t fold_;
  const std::unique_ptr<trees::Booster> booster_;
  double loss_ = 0;  // after the last round
};

class TreeCourse final : public Course {
 public:
  TreeCourse(std::shared_ptr<const Material> material, const trees::Spec& spec) : material_(std::move(material)), spec_(spec) {}
  [[nodiscard]] std::vector<std::uint64_t> steps() const override {
    return std::vector<std::uint64_t>(material_->splits.size(), spec_.rounds);
  }
  [[nodiscard]] Result<std::unique_ptr<Learner>> learner(std::uint32_t fold) const override {
    if (fold >= material_->splits.size()) return invalid(format("there are {} fits, no fit {}", material_->splits.size(), fold));
    return TreeLearner::make(material_, spec_, fold);
  }

 private:
  const std::shared_ptr<const Material> material_;
  const trees::Spec spec_;
};

}  // namespace

Result<std::shared_ptr<const Course>> tree_course(messages::TrainingJob::Reader job, std::shared_ptr<const Material> material) {
  if (job.getWorkers() > 1)
    return invalid(
        format("workers is {}: boosted_trees are grown by one worker (which uses the threads of its machine)", job.getWorkers()));
  const auto given = job.getModel().getTrees();
  const trees::Spec spec{.rounds = given.getRounds(),
                         .leaves = given.getLeaves(),
                         .learning_rate = given.getLearningRate(),
                         .rows_min = given.getRowsMin(),
                         .hessian_min = given.getHessianMin(),
                         .l2 = given.getL2(),
                         .gain_min = given.getGainMin(),
                         .column_share = given.getColumnShare(),
                         .row_share = given.getRowShare(),
                         .bins = given.getBins(),
                         .patience = job.getPatience(),
                         .seed = job.getSeed()};
  FALAJ_TRY(trees::check(spec));
  return std::make_shared<const TreeCourse>(std::move(material), spec);
}

}  // namespace falaj::training
