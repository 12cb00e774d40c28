// What a run is, in memory and on disk: RunRecord as a value, and the RunInfo that people see.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "messages/message.hpp"
#include "messages/training.capnp.h"
#include "runtime/base/clock.hpp"
#include "storage/kv.hpp"

namespace falaj::training {

using Metrics = std::map<std::string, double, std::less<>>;

struct FitResult {
  std::uint32_t fold = 0;
  std::uint64_t steps = 0, samples = 0;
  Metrics metrics;
  std::string weights_digest, artifact;
  std::vector<std::uint64_t> confusion;
};

struct WorkerSlot {
  std::string node;              // where its process was asked for; empty: nowhere yet
  std::uint64_t generation = 0;  // of the process
  std::uint32_t pid = 0;
  bool up = false;
};

namespace phase {
inline constexpr const char* kPending = "pending";
inline constexpr const char* kSnapshot = "snapshot";
inline constexpr const char* kStarting = "starting";
inline constexpr const char* kRunning = "running";
inline constexpr const char* kFinished = "finished";
inline constexpr const char* kFailed = "failed";
inline constexpr const char* kStopped = "stopped";
}  // namespace phase

struct RunState {
  std::uint64_t sequence = 0;
  std::string run, tenant = "default", residency, name;
  std::uint64_t generation = 0;  // of the job
  Message spec;                  // TrainingJob
  std::string phase = phase::kPending, message;
  std::string snapshot, model;  // digests
  std::uint64_t rows = 0;
  std::uint64_t epoch = 0;
  std::string checkpoint;
  std::uint32_t checkpoint_fold = 0;
  std::uint64_t checkpoint_step = 0;
  std::vector<FitResult> fits;  // done, in order; the next fold is fits.size()
  std::vector<std::uint64_t> fit_steps;
  std::vector<WorkerSlot> workers;
  std::uint64_t step = 0, steps = 0, samples = 0;  // of the present fit
  double loss = 0;
  std::vector<double> losses;
  std::uint32_t recoveries = 0;
  double last_recovery_ms = 0;
  std::int64_t started_ns = 0, finished_ns = 0;
  std::uint64_t version = 0;

  [[nodiscard]] messages::TrainingJob::Reader job() const { return *spec.view<messages::TrainingJob>(); }
  [[nodiscard]] std::uint32_t fold() const { return static_cast<std::uint32_t>(fits.size()); }
  [[nodiscard]] bool over() const { return phase == phase::kFinished || phase == phase::kFailed || phase == phase::kStopped; }
  // Metrics of the final fit, and cv_<name>_mean and cv_<name>_std of the folds.
  [[nodiscard]] Metrics metrics() const;
  void note_loss(double value);  // keeps the curve at 256 points at most

  void write(messages::RunInfo::Builder out) const;
  [[nodiscard]] Message info() const;    // RunInfo
  [[nodiscard]] Message record() const;  // RunRecord
  // RegisterVersion: the final fit's model with its lineage.
  [[nodiscard]] Message version_message(const std::string& build, const std::string& by) const;
  static RunState read(messages::RunRecord::Reader record);

 private:
  std::uint64_t loss_stride_ = 1, loss_seen_ = 0;
};

// Blocking. An older record never replaces a newer one: writes of one run may overtake one another on the pool.
Status save_run(storage::Kv& store, const std::string& run, std::uint64_t sequence, const Message& record);
Result<RunState> load_run(storage::Kv& store, const std::string& run);  // not_found

}  // namespace falaj::training
