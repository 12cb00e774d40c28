#include "actors/training/words.hpp"

#include <algorithm>

#include "runtime/base/format.hpp"
#include "runtime/base/thread.hpp"

namespace falaj::training {
namespace {

using messages::TrainingJob;

// The count of rows is summed as a float (learner.cpp): exact far beyond this.
constexpr std::uint64_t kBatchMax = 1U << 24;

Result<kernels::FamilySpec> family_of(messages::ModelSpec::Reader spec) {
  if (text(spec.getFamily()) == "onnx") return kernels::FamilySpec{};
  FALAJ_ASSIGN(const auto family, kernels::parse_family(text(spec.getFamily())));
  auto out = kernels::default_spec(family);
  if (spec.getHidden().size() > 0) out.hidden.clear();
  for (const auto size : spec.getHidden()) out.hidden.push_back(size);
  std::string activation(text(spec.getActivation()));
  if (!activation.empty()) activation[0] = static_cast<char>(activation[0] - 'a' + 'A');
  out.activation = activation;
  out.dropout = static_cast<double>(spec.getDropout());
  if (spec.getEmbedding() > 0) out.embedding_width = spec.getEmbedding();
  for (const auto size : spec.getImage()) out.image.push_back(size);
  if (spec.getHeads() > 0) out.heads = spec.getHeads();
  out.vocabulary = spec.getVocabulary();
  out.tied = spec.getTied();
  FALAJ_TRY(kernels::check(out));
  return out;
}

Result<kernels::FitSpec> fit_of(TrainingJob::Reader job) {
  kernels::FitSpec out;
  out.epochs = job.getEpochs();
  out.sampler = {.global_batch = job.getGlobalBatch(), .micro_shards = job.getMicroShards(), .seed = job.getSeed(), .shuffle = true};
  const auto spec = job.getOptimizer();
  FALAJ_ASSIGN(out.optimizer.kind, kernels::optimizer_kind(text(spec.getName())));
  out.optimizer.learning_rate = spec.getLearningRate();
  out.optimizer.weight_decay = spec.getWeightDecay();
  out.optimizer.beta1 = spec.getBeta1();
  out.optimizer.beta2 = spec.getBeta2();
  out.optimizer.epsilon = spec.getEpsilon();
  out.optimizer.momentum = out.optimizer.kind == kernels::OptimizerKind::sgd ? spec.getMomentum() : 0.0;
  out.optimizer.nesterov = spec.getNesterov();
  out.optimizer.clip_norm = spec.getClipNorm();
  out.patience = job.getPatience();
  FALAJ_TRY(kernels::check(out));
  if (out.sampler.global_batch > kBatchMax)
    return invalid(format("global_batch is {}, at most {} is possible", out.sampler.global_batch, kBatchMax));
  return out;
}

Status read_schedule(messages::OptimizerSpec::Reader spec, Material& into) {
  const auto name = text(spec.getSchedule());
  if (name == "cosine") into.schedule.kind = kernels::ScheduleKind::warmup_cosine;
  if (name == "step") into.schedule.kind = kernels::ScheduleKind::step;
  into.schedule.warmup_steps = spec.getWarmupSteps();
  into.schedule.every = spec.getEvery();
  into.schedule.gamma = spec.getGamma();
  if (name == "step" && spec.getEvery() == 0)
    return invalid("optimizer: schedule `step` needs `every`, the steps between drops of the rate");
  if (name == "plateau") into.plateau = kernels::Plateau{.gamma = spec.getGamma(), .patience = spec.getPlateauEpochs()};
  return {};
}

}  // namespace

Status read_words(TrainingJob::Reader job, Material& into) {
  const auto model = job.getModel();
  FALAJ_ASSIGN(into.family, family_of(model));
  FALAJ_ASSIGN(into.fit, fit_of(job));
  FALAJ_TRY(read_schedule(job.getOptimizer(), into));
  const bool imported = text(model.getFamily()) == "onnx";
  if (!imported && (model.getDropoutNodes() || model.getBatchStatistics()))
    return invalid("model: `dropout_nodes` and `batch_statistics` are for the family onnx");
  auto& how = into.how;
  for (const auto name : job.getFreeze()) how.frozen.emplace_back(text(name));
  how.batch_statistics = model.getBatchStatistics();
  how.dropout = model.getDropoutNodes();
  how.bf16 = text(job.getPrecision()) == "bf16";
  how.threads = job.getThreads() > 0 ? job.getThreads() : hardware_threads();
  FALAJ_ASSIGN(how.regression.loss, kernels::parse_loss(text(job.getLoss())));
  how.regression.huber_delta = job.getHuberDelta();
  into.skip_not_finite = text(job.getNotFinite()) == "skip";
  return {};
}

}  // namespace falaj::training
