// `training/job/<name>`: one run of one training job, from the snapshot to the registered model. It decides who trains together
// (the rendezvous epochs) and keeps what must survive it; workers do the work.
//
//   snapshot -> starting (worker processes are asked for, and say hello) -> running (fit after fit) -> registered -> finished
//
// Epochs: whenever the set of workers changes, or the next fit begins, a new epoch is formed: Revoke (everybody comes to rest and
// says what it holds), Rendezvous (ranks, and the step all go on from), Go. The epoch is on disk before anybody hears of it, so
// that a restarted control node fences its predecessor. Survivors keep process and state; a replacement joins as soon as it is ready.
#pragma once
#include <string>

#include "messages/training.capnp.h"
#include "runtime/cluster/view.hpp"
#include "runtime/host/actor.hpp"
#include "storage/kv.hpp"

namespace falaj::training {

struct JobsOptions {
  storage::Kv* store = nullptr;                        // tables training.jobs and training.runs; outlives the actors
  const cluster::ClusterViewHolder* view = nullptr;    // where compute nodes are; outlives the actors
  Epoch control_epoch;                                 // for node agents
  std::string build;                                   // of the falaj binary, for the lineage
  std::string principal;                               // SPIFFE id of this node: snapshots and models are made in its name
  Duration gather = std::chrono::seconds(10);          // then it begins with the workers that are there
  Duration revoke_timeout = std::chrono::seconds(20);  // a worker answers when its step has ended; the dead are seen by their links
  Duration rendezvous_timeout = std::chrono::seconds(30);
  std::uint32_t restarts_max = 10;  // epochs in a row that were lost without one new step; then the run fails
};

// The actor of a run whose record is in the store. Its parent is training/jobs, which it tells of each change (RunInfo).
ChildSpec job(JobsOptions options, std::string tenant, std::string name, std::string run, ActorRef jobs);

// What WorkerSpec.job and the actor's name say: "name", or "tenant/name" for another tenant than "default".
std::string job_key(std::string_view tenant, std::string_view name);

constexpr std::string_view kJobsTable = "training.jobs";  // job_key -> JobRecord
constexpr std::string_view kRunsTable = "training.runs";  // run -> RunRecord
constexpr std::uint16_t kTrainingFormat = 1;

}  // namespace falaj::training
