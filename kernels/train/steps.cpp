#include "kernels/train/steps.hpp"

#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/collective/float_mode.hpp"
#include "runtime/base/format.hpp"

namespace falaj::kernels {

Status check(const StepsSpec& spec) {
  FALAJ_TRY(check(spec.sampler));
  FALAJ_TRY(check(spec.optimizer));
  if (spec.steps == 0 || spec.steps > 1'000'000'000) return invalid(format("steps is {}, it must be 1 to 1000000000", spec.steps));
  if (spec.accumulate == 0 || spec.accumulate > 65536) return invalid(format("accumulate is {}, it must be 1 to 65536", spec.accumulate));
  const bool gamma = spec.schedule.gamma > 0 && spec.schedule.gamma <= 1 && spec.plateau_spec.gamma > 0 && spec.plateau_spec.gamma <= 1;
  if (!gamma) return invalid("gamma must be larger than 0, and at most 1");
  if (spec.schedule.kind == ScheduleKind::step && spec.schedule.every == 0)
    return invalid("a step schedule needs the steps between its drops");
  return {};
}

namespace {

// A run of steps, between two of which it can be taken down and set up again.
class Run {
 public:
  Run(Trainer& trainer, const DataSet& data, const StepsSpec& spec)
      : trainer_(trainer),
        data_(data),
        spec_(spec),
        sampler_(spec.sampler, rows_of(data)),
        optimizer_(spec.optimizer, trainer.parameters().size(), {}, trainer.tensor_sizes()),
        sum_(trainer.parameters().size()),
        part_(spec.accumulate > 1 ? sum_.size() : 0) {
    state_.plateau = spec.plateau_spec;
  }

  Status set_up(const StepsState& from) {
    if (from.step > spec_.steps) return invalid(format("the checkpoint is of step {}, the run has {}", from.step, spec_.steps));
    FALAJ_TRY(trainer_.load(from.parameters));
    FALAJ_TRY(trainer_.load_statistics(from.statistics));
    std::uint64_t skipped = 0;
    for (const StepReport& report : from.reports) {
      skipped += report.skipped() ? 1 : 0;
      skipped_here_ = report.skipped() ? skipped_here_ + 1 : 0;
    }
    FALAJ_TRY(optimizer_.load(from.step - skipped, from.optimizer));
    state_.step = from.step;
    state_.plateau.factor = from.plateau.factor;
    state_.plateau.best = from.plateau.best;
    state_.plateau.bad = from.plateau.bad;
    state_.plateau.any = from.plateau.any;
    state_.epoch_loss = from.epoch_loss;
    state_.epoch_count = from.epoch_count;
    state_.reports = from.reports;
    return {};
  }

  const StepsState& taken_down() {
    state_.parameters.assign(trainer_.parameters().begin(), trainer_.parameters().end());
    state_.optimizer.assign(optimizer_.state().begin(), optimizer_.state().end());
    state_.statistics = trainer_.statistics();
    return state_;
  }

  [[nodiscard]] std::uint64_t done() const { return state_.step; }

  Result<StepReport> step() {
    const std::vector<float> statistics = spec_.skip_not_finite ? trainer_.statistics() : std::vector<float>();
    double loss = 0;
    double count = 0;
    Batch last;
    for (std::uint32_t k = 0; k < spec_.accumulate; ++k) FALAJ_TRY(add_batch(k, loss, count, last));
    if (count == 0) return invalid(format("step {}: no label of its rows counts", state_.step + 1));
    StepReport report{state_.step + 1, loss / count, 0, 0};
    const double factor = spec_.schedule.factor(state_.step) * state_.plateau.factor;
    report.learning_rate = spec_.optimizer.learning_rate * factor;
    report.gradient_norm =
        std::isfinite(loss) ? optimizer_.step(trainer_.parameters(), sum_, factor, trainer_.team(), static_cast<float>(1.0 / count)) : loss;
    if (report.skipped()) {
      if (!spec_.skip_not_finite) return not_finite(trainer_, data_, last.rows, last.key, state_.step + 1);
      if (skipped_here_ + 1 == kSkippedMax) return too_many_skipped(state_.step + 1);
      FALAJ_TRY(trainer_.load_statistics(statistics));
    }
    skipped_here_ = report.skipped() ? skipped_here_ + 1 : 0;
    ++state_.step;
    return report;
  }
  void keep(const StepReport& report) { state_.reports.push_back(report); }

 private:
  static std::vector<std::uint32_t> rows_of(const DataSet& data) {
    std::vector<std::uint32_t> rows(data.rows());
    std::iota(rows.begin(), rows.end(), 0U);
    return rows;
  }

  struct Batch {
    std::span<const std::uint32_t> rows;  // of the sampler, until it is asked for the next
    std::uint64_t key = 0;
  };

  Status add_batch(std::uint32_t k, double& loss, double& count, Batch& now) {
    const std::uint64_t batch = state_.step * spec_.accumulate + k;
    now = {sampler_.batch(batch), spec_.sampler.seed + batch};
    const auto& [taken, key] = now;
    FALAJ_ASSIGN(const double share, trainer_.gradient(data_, taken, k == 0 ? std::span(sum_) : std::span(part_), key));
    const FlushDenormals mode;
    for (std::size_t i = 0; k > 0 && i < sum_.size(); ++i) sum_[i] += part_[i];
    // The last sum's norm is looked at by the optimizer, which changes nothing where it is no number.
    const bool whole = std::isfinite(share) && (k + 1 == spec_.accumulate || std::isfinite(global_norm(sum_, trainer_.team())));
    if (!whole && !spec_.skip_not_finite) return not_finite(trainer_, data_, taken, key, state_.step + 1);
    const double here = trainer_.compared(data_, taken);
    loss += whole ? share : std::numeric_limits<double>::quiet_NaN();
    count += here;
    state_.epoch_loss += whole ? share : 0;
    state_.epoch_count += whole ? here : 0;
    if ((batch + 1) % sampler_.steps_per_epoch() == 0) {
      if (spec_.plateau && state_.epoch_count > 0) state_.plateau.update(state_.epoch_loss / state_.epoch_count);
      state_.epoch_loss = state_.epoch_count = 0;
    }
    return {};
  }

  Trainer& trainer_;
  const DataSet& data_;
  const StepsSpec& spec_;
  Sampler sampler_;
  Optimizer optimizer_;
  std::vector<float> sum_, part_;
  std::uint64_t skipped_here_ = 0;  // the last steps, one after the other
  StepsState state_;
};

}  // namespace

Status train_steps(Trainer& trainer, const DataSet& data, const StepsSpec& spec, const std::function<Status(const StepReport&)>& on_step,
                   const Checkpoints& checkpoints) {
  FALAJ_TRY(check(spec));
  if (data.rows() == 0) return invalid("there are no rows to train on");
  Run run(trainer, data, spec);
  if (checkpoints.from != nullptr) FALAJ_TRY(run.set_up(*checkpoints.from));
  while (run.done() < spec.steps) {
    FALAJ_ASSIGN(const StepReport report, run.step());
    FALAJ_TRY(on_step(report));
    if (checkpoints.every == 0) continue;
    run.keep(report);
    if (run.done() % checkpoints.every == 0) FALAJ_TRY(checkpoints.save(run.taken_down()));
  }
  return {};
}

}  // namespace falaj::kernels
