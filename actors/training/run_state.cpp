#include "actors/training/run_state.hpp"

#include <cmath>

#include "actors/training/job.hpp"
#include "actors/training/learner.hpp"
#include "messages/registry.capnp.h"
#include "runtime/base/format.hpp"

namespace falaj::training {
namespace {

using messages::RegisterVersion;
using messages::RunInfo;
using messages::RunRecord;
using messages::TrainingJob;

constexpr std::size_t kLossPoints = 256;

template <class List>
void write_metrics(List out, const Metrics& metrics) {
  unsigned i = 0;
  for (const auto& [name, value] : metrics) {
    out[i].setName(name);
    out[i++].setValue(value);
  }
}

template <class List>
Metrics read_metrics(List list) {
  Metrics out;
  for (const auto metric : list) out.emplace(text(metric.getName()), metric.getValue());
  return out;
}

template <class List, class T>
void write_numbers(List out, const std::vector<T>& values) {
  for (unsigned i = 0; i < out.size(); ++i) out.set(i, values[i]);
}

unsigned size_of(const auto& container) { return static_cast<unsigned>(container.size()); }

std::string string(capnp::Text::Reader reader) { return std::string(text(reader)); }

}  // namespace

Metrics RunState::metrics() const {
  Metrics out;
  const std::size_t folds = fits_of(job()) - 1;
  std::map<std::string, std::vector<double>> values;
  for (const auto& fit : fits) {
    if (fit.fold >= folds) {
      out.insert(fit.metrics.begin(), fit.metrics.end());
    } else {
      for (const auto& [metric, value] : fit.metrics) values[metric].push_back(value);
    }
  }
  for (const auto& [metric, of_folds] : values) {
    const auto count = static_cast<double>(of_folds.size());
    double sum = 0;
    for (const double value : of_folds) sum += value;
    double squares = 0;
    for (const double value : of_folds) squares += (value - sum / count) * (value - sum / count);
    out["cv_" + metric + "_mean"] = sum / count;
    out["cv_" + metric + "_std"] = std::sqrt(squares / count);
  }
  return out;
}

void RunState::note_loss(double value) {
  if (loss_seen_++ % loss_stride_ != 0) return;
  losses.push_back(value);
  if (losses.size() < kLossPoints) return;
  for (std::size_t i = 0; i * 2 < losses.size(); ++i) losses[i] = losses[i * 2];
  losses.resize((losses.size() + 1) / 2);
  loss_stride_ *= 2;
}

void RunState::write(RunInfo::Builder out) const {
  out.setRun(run);
  out.setJob(name);
  out.initOwner().setTenant(tenant);
  out.getOwner().setResidency(residency);
  out.setPhase(phase);
  out.setMessage(message);
  const std::uint32_t all = fits_of(job());
  out.setFold(std::min(fold(), all - 1));
  out.setFolds(all - 1);
  out.setStep(step);
  out.setSteps(steps);
  std::uint64_t done = 0, samples_done = 0;
  for (const auto& fit : fits) {
    done += fit.steps;
    samples_done += fit.samples;
  }
  const bool between = fits.size() == all;
  out.setTotalStep(between ? done : done + step);
  std::uint64_t total = done;
  for (std::size_t i = fits.size(); i < all; ++i) total += i < fit_steps.size() ? fit_steps[i] : steps;
  out.setTotalSteps(total);
  out.setSamples(between ? samples_done : samples_done + samples);
  out.setLoss(loss);
  out.setRecoveries(recoveries);
  auto list = out.initWorkers(size_of(workers));
  for (unsigned i = 0; i < list.size(); ++i) {
    list[i].setIndex(i);
    list[i].setNode(workers[i].node);
    list[i].setPid(workers[i].pid);
    list[i].setUp(workers[i].up);
  }
  const Metrics shown = metrics();
  write_metrics(out.initMetrics(size_of(shown)), shown);
  out.setStartedNs(started_ns);
  out.setFinishedNs(finished_ns);
  out.setSnapshot(snapshot);
  out.setVersion(version);
  out.setLastRecoveryMs(last_recovery_ms);
  if (between) {
    out.setArtifact(fits.back().artifact);
    out.setWeightsDigest(fits.back().weights_digest);
    write_numbers(out.initConfusion(size_of(fits.back().confusion)), fits.back().confusion);
  }
  write_numbers(out.initLosses(size_of(losses)), losses);
}

Message RunState::info() const {
  return Message::build<RunInfo>([this](RunInfo::Builder b) { write(b); }, 512);
}

Message RunState::record() const {
  return Message::build<RunRecord>(
      [this](RunRecord::Builder b) {
        b.setSequence(sequence);
        write(b.initInfo());
        b.setSpec(job());
        b.setEpoch(epoch);
        b.setCheckpoint(checkpoint);
        b.setCheckpointFold(checkpoint_fold);
        b.setCheckpointStep(checkpoint_step);
        auto list = b.initFits(size_of(fits));
        for (unsigned i = 0; i < list.size(); ++i) {
          list[i].setFold(fits[i].fold);
          list[i].setSteps(fits[i].steps);
          list[i].setSamples(fits[i].samples);
          write_metrics(list[i].initMetrics(size_of(fits[i].metrics)), fits[i].metrics);
          list[i].setWeightsDigest(fits[i].weights_digest);
          list[i].setArtifact(fits[i].artifact);
          write_numbers(list[i].initConfusion(size_of(fits[i].confusion)), fits[i].confusion);
        }
        auto placements = b.initPlacements(size_of(workers));
        for (unsigned i = 0; i < placements.size(); ++i) {
          placements[i].setNode(workers[i].node);
          placements[i].setGeneration(workers[i].generation);
        }
        b.setModel(model);
        b.setRows(rows);
        b.setGeneration(generation);
        write_numbers(b.initSteps(size_of(fit_steps)), fit_steps);
      },
      1024);
}

Message RunState::version_message(const std::string& build, const std::string& by) const {
  const auto model_job = job();
  const FitResult& fit = fits.back();
  return Message::build<RegisterVersion>(
      [&](RegisterVersion::Builder b) {
        auto version_info = b.initInfo();
        version_info.setModel(model_job.getRegisterAs().size() > 0 ? model_job.getRegisterAs() : model_job.getName());
        version_info.initOwner().setTenant(tenant);
        version_info.getOwner().setResidency(residency);
        version_info.setArtifact(fit.artifact);
        auto lineage = version_info.initLineage();
        lineage.setSnapshot(snapshot);
        lineage.setJob(name);
        lineage.setRun(run);
        lineage.setSeed(model_job.getSeed());
        lineage.setBuild(build);
        lineage.setRows(rows);
        lineage.setWeightsDigest(fit.weights_digest);
        lineage.setView(model_job.getView());
        lineage.setLabel(model_job.getLabel());
        lineage.setJobSpec(model_job);
        const Metrics all = metrics();
        write_metrics(version_info.initMetrics(size_of(all)), all);
        version_info.setCreatedBy(by);
      },
      512);
}

RunState RunState::read(RunRecord::Reader record) {
  RunState s;
  const auto info = record.getInfo();
  s.sequence = record.getSequence();
  s.run = string(info.getRun());
  s.name = string(info.getJob());
  s.tenant = string(info.getOwner().getTenant());
  s.residency = string(info.getOwner().getResidency());
  s.generation = record.getGeneration();
  s.spec = Message::copy_of<TrainingJob>(record.getSpec());
  s.phase = string(info.getPhase());
  s.message = string(info.getMessage());
  s.snapshot = string(info.getSnapshot());
  s.model = string(record.getModel());
  s.rows = record.getRows();
  s.epoch = record.getEpoch();
  s.checkpoint = string(record.getCheckpoint());
  s.checkpoint_fold = record.getCheckpointFold();
  s.checkpoint_step = record.getCheckpointStep();
  for (const auto fit : record.getFits()) {
    FitResult one{fit.getFold(),
                  fit.getSteps(),
                  fit.getSamples(),
                  read_metrics(fit.getMetrics()),
                  string(fit.getWeightsDigest()),
                  string(fit.getArtifact()),
                  {}};
    for (const auto count : fit.getConfusion()) one.confusion.push_back(count);
    s.fits.push_back(std::move(one));
  }
  for (const auto steps : record.getSteps()) s.fit_steps.push_back(steps);
  for (const auto placement : record.getPlacements())
    s.workers.push_back({string(placement.getNode()), placement.getGeneration(), 0, false});
  s.step = info.getStep();
  s.steps = info.getSteps();
  s.samples = info.getSamples();
  for (const auto& fit : s.fits) s.samples -= std::min(s.samples, fit.samples);
  s.loss = info.getLoss();
  for (const double loss : info.getLosses()) s.losses.push_back(loss);
  s.recoveries = info.getRecoveries();
  s.last_recovery_ms = info.getLastRecoveryMs();
  s.started_ns = info.getStartedNs();
  s.finished_ns = info.getFinishedNs();
  s.version = info.getVersion();
  return s;
}

namespace {

Result<std::optional<Message>> stored(storage::ReadTxn& txn, const std::string& run) {
  FALAJ_ASSIGN(const auto value, txn.get(kRunsTable, as_bytes(run)));
  if (!value) return std::optional<Message>{};
  if (value->version > kTrainingFormat) {
    return error(ErrorCode::unimplemented, format("run {} was written by a newer falaj (format {}, this one reads {}); use that one", run,
                                                  value->version, kTrainingFormat));
  }
  FALAJ_ASSIGN(auto message, message_from_bytes(TypeId(capnp::typeId<RunRecord>()), value->bytes));
  return std::optional<Message>(std::move(message));
}

}  // namespace

Status save_run(storage::Kv& store, const std::string& run, std::uint64_t sequence, const Message& record) {
  FALAJ_ASSIGN(auto txn, store.write());
  FALAJ_ASSIGN(const auto before, stored(*txn, run));
  if (before) {
    FALAJ_ASSIGN(const auto old, before->open<RunRecord>());
    if (old->getSequence() >= sequence) return {};
  }
  FALAJ_TRY(txn->put(kRunsTable, as_bytes(run), record.bytes(), kTrainingFormat));
  return txn->commit();
}

Result<RunState> load_run(storage::Kv& store, const std::string& run) {
  FALAJ_ASSIGN(auto txn, store.read());
  FALAJ_ASSIGN(const auto found, stored(*txn, run));
  if (!found) return error(ErrorCode::not_found, format("there is no run {}; `falaj runs list` shows them", run));
  FALAJ_ASSIGN(const auto record, found->open<RunRecord>());
  return RunState::read(*record);
}

}  // namespace falaj::training
