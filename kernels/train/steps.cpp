#include "kernels/train/steps.hpp"

#include <cmath>
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

Error not_finite(Trainer& trainer, const DataSet& data, std::span<const std::uint32_t> rows, std::uint64_t key, std::uint64_t step) {
  auto where = trainer.first_not_finite(data, rows, key);
  const std::string first = !where ? where.error().message : where->empty() ? std::string("the sum of the gradients") : *where;
  return failed(
      format("step {}: no longer a number; the first to go bad is {}: lower the learning rate, clip the gradient's norm, or mend the data",
             step, first));
}

}  // namespace

Status train_steps(Trainer& trainer, const DataSet& data, const StepsSpec& spec, const std::function<Status(const StepReport&)>& on_step) {
  FALAJ_TRY(check(spec));
  if (data.rows() == 0) return invalid("there are no rows to train on");
  std::vector<std::uint32_t> rows(data.rows());
  std::iota(rows.begin(), rows.end(), 0U);
  Sampler sampler(spec.sampler, std::move(rows));
  Optimizer optimizer(spec.optimizer, trainer.parameters().size(), {}, trainer.tensor_sizes());
  Plateau plateau = spec.plateau_spec;
  std::vector<float> sum(trainer.parameters().size());
  std::vector<float> part(spec.accumulate > 1 ? sum.size() : 0);
  double epoch_loss = 0;
  double epoch_count = 0;
  for (std::uint64_t step = 0; step < spec.steps; ++step) {
    double loss = 0;
    double count = 0;
    for (std::uint32_t k = 0; k < spec.accumulate; ++k) {
      const std::uint64_t batch = step * spec.accumulate + k;
      const auto taken = sampler.batch(batch);
      FALAJ_ASSIGN(const double share, trainer.gradient(data, taken, k == 0 ? std::span(sum) : std::span(part), spec.sampler.seed + batch));
      const FlushDenormals mode;
      for (std::size_t i = 0; k > 0 && i < sum.size(); ++i) sum[i] += part[i];
      if (!std::isfinite(share) || !std::isfinite(global_norm(sum)))
        return not_finite(trainer, data, taken, spec.sampler.seed + batch, step + 1);
      const double here = trainer.compared(data, taken);
      loss += share;
      count += here;
      epoch_loss += share;
      epoch_count += here;
      if ((batch + 1) % sampler.steps_per_epoch() == 0) {
        if (spec.plateau && epoch_count > 0) plateau.update(epoch_loss / epoch_count);
        epoch_loss = epoch_count = 0;
      }
    }
    if (count == 0) return invalid(format("step {}: no label of its rows counts", step + 1));
    StepReport report{step + 1, loss / count, 0, 0};
    {
      const FlushDenormals mode;
      const auto scale = static_cast<float>(1.0 / count);
      for (float& g : sum) g *= scale;
    }
    const double factor = spec.schedule.factor(step) * plateau.factor;
    report.learning_rate = spec.optimizer.learning_rate * factor;
    report.gradient_norm = optimizer.step(trainer.parameters(), sum, factor);
    FALAJ_TRY(on_step(report));
  }
  return {};
}

}  // namespace falaj::kernels
