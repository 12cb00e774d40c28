@0x81ce62694e8b4f78;
# Training. `training/jobs` on the control node runs one `training/job/<name>` for each job that is wanted; it asks node agents for worker
# processes, gathers them (`Rendezvous`), and watches them. Workers (`training/worker`) exchange gradient chunks with one another on the
# bulk lane. A new rendezvous epoch fences all chunks of older ones. A lost worker means: its link breaks, the job starts a new epoch with
# the survivors, which keep their process and state; a replacement takes the state from a survivor or from the newest checkpoint.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
using R = import "resources.capnp";
using E = import "envelope.capnp";
using G = import "registry.capnp";
$Cxx.namespace("falaj::messages");

struct WorkerHello {
  # worker -> training/job: here I am (again). Reply: WorkerTask.
  job @0 :Text;
  run @1 :Text;
  index @2 :UInt32;
  node @3 :Text;
  address @4 :E.Address;
  listen @5 :Text;     # host:port of the worker's own links
  step @6 :UInt64;     # newest state it holds in memory; 0: none
  fold @7 :UInt32;
  pid @8 :UInt32;
  ready @9 :Bool;      # it has the data: it may be called to a rendezvous. False: it asks for its task only
  steps @10 :List(UInt64);  # of each fit, when ready
}

struct WorkerTask {
  spec @0 :R.TrainingJob;
  run @1 :Text;
  snapshot @2 :Text;   # digest
  fold @3 :UInt32;     # the fit that runs now
  model @4 :Text;      # artifact digest of the model to start from (family onnx)
}

struct PeerInfo {
  index @0 :UInt32;
  node @1 :Text;       # name of the worker's own links
  address @2 :E.Address;
  listen @3 :Text;
}

struct Revoke {
  # training/job -> every worker: the running epoch has ended, `epoch` is being formed. The worker drops what is not committed. Reply:
  # RevokeReply, when it is at rest.
  epoch @0 :UInt64;
}

struct RevokeReply {
  fold @0 :UInt32;
  step @1 :UInt64;     # committed, of that fit
  holds @2 :Bool;      # it has a state of that fit in memory
}

struct PeerHello {
  # worker -> the next one of the ring and the one that holds the state, until it answers: the link is up. Reply: Empty.
  epoch @0 :UInt64;
  rank @1 :UInt32;
}

struct Rendezvous {
  # training/job -> every worker of the new epoch. Reply: RendezvousReply when it holds the state of `step` of `fold`.
  epoch @0 :UInt64;
  peers @1 :List(PeerInfo);  # in the order of ranks
  rank @2 :UInt32;
  fold @3 :UInt32;           # which fit: 0..folds-1 are cross-validation, `folds` is the final one
  step @4 :UInt64;           # everybody goes on from here
  source @5 :UInt32;         # rank that holds this state; equal to peers' size: the checkpoint `checkpoint`, or the start
  checkpoint @6 :Text;       # digest; empty: initial state from the seed
}

struct RendezvousReply {
  step @0 :UInt64;
}

struct Go {
  # training/job -> workers: all have answered, begin.
  epoch @0 :UInt64;
}

struct GradientChunk {
  # worker -> the next worker of the ring, bulk lane, a tell. A chunk of kernels/collective with its header.
  epoch @0 :UInt64;
  sequence @1 :UInt64;  # of the operation: the step
  from @2 :UInt32;      # rank
  kind @3 :UInt8;       # CollectiveKind
  chunk @4 :UInt32;
  hop @5 :UInt32;
  count @6 :UInt32;     # floats in `content`
  content @7 :Data;     # float32, little-endian
}

struct FetchState {
  # worker -> worker: a piece of the training state (parameters, then optimizer). Reply: StateChunk.
  epoch @0 :UInt64;
  offset @1 :UInt64;
}

struct StateChunk {
  step @0 :UInt64;
  total @1 :UInt64;  # bytes of the whole
  offset @2 :UInt64;
  content @3 :Data;
}

struct StepReport {
  # rank 0 -> training/job, after each committed step (coalesced to at most one in 20 ms, and always the last).
  epoch @0 :UInt64;
  fold @1 :UInt32;
  step @2 :UInt64;
  steps @3 :UInt64;      # of this fit
  samples @4 :UInt64;    # counted so far in this fit
  loss @5 :Float64;      # mean over the step's samples
  validationLoss @6 :Float64 = nan;
  checkpoint @7 :Text;   # digest, when one was completed
  checkpointStep @8 :UInt64;
}

struct PeerLost {
  # worker -> training/job: my link to this rank broke, or it missed a deadline.
  epoch @0 :UInt64;
  rank @1 :UInt32;
  reason @2 :Text;
}

struct FitDone {
  # rank 0 -> training/job. Reply: Empty; then a Rendezvous for the next fold, or the end.
  epoch @0 :UInt64;
  fold @1 :UInt32;
  steps @2 :UInt64;
  samples @3 :UInt64;
  metrics @4 :List(G.Metric);     # on the held-out rows of this fold
  weightsDigest @5 :Text;
  artifact @6 :Text;              # the final fit's ONNX file
  confusion @7 :List(UInt64);     # tn, fp, fn, tp of a binary label
}

struct FitFailed {
  # any rank -> training/job: this fit cannot go on, and doing it again would not help (bad label, gradients that are not finite).
  epoch @0 :UInt64;
  fold @1 :UInt32;
  reason @2 :Text;
}

struct JobFinished {
  # training/job -> worker: end your process.
  run @0 :Text;
}

# --- control/resources -> training/jobs ----------------------------------------------------------------------------------------------

struct RunJob {
  # This job is wanted. A generation greater than the last one starts a new run (and ends the one that runs); the same or a smaller
  # one changes nothing. Reply: Empty when it is on disk.
  job @0 :R.TrainingJob;
  generation @1 :UInt64;
}

struct StopJob {
  # Ends the run of this job, if one runs. Reply: Empty when that is on disk.
  job @0 :Text;
  tenant @1 :Text = "default";
  reason @2 :Text;
}

# --- runs: what `falaj runs` and `falaj train` show -------------------------------------------------------------------------------

struct RunInfo {
  run @0 :Text;
  job @1 :Text;
  owner @2 :R.Owner;
  phase @3 :Text;          # pending, snapshot, starting, running, finished, failed, stopped
  message @4 :Text;
  fold @5 :UInt32;
  folds @6 :UInt32;
  step @7 :UInt64;
  steps @8 :UInt64;
  totalStep @9 :UInt64;    # over all fits
  totalSteps @10 :UInt64;
  samples @11 :UInt64;
  loss @12 :Float64;
  recoveries @13 :UInt32;  # workers lost and survived
  workers @14 :List(WorkerInfo);
  metrics @15 :List(G.Metric);  # final fit; cross-validation as cv_auc_mean, cv_auc_std, ...
  startedNs @16 :Int64;
  finishedNs @17 :Int64;
  snapshot @18 :Text;
  artifact @19 :Text;
  version @20 :UInt64;     # in the registry
  weightsDigest @21 :Text;
  lastRecoveryMs @22 :Float64;  # detection to first new step
  confusion @23 :List(UInt64);
  losses @24 :List(Float64);    # a thinned curve of at most 256 points
}

struct WorkerInfo {
  index @0 :UInt32;
  node @1 :Text;
  pid @2 :UInt32;
  up @3 :Bool;
}

struct GetRun $A.verb("runs.read") {
  run @0 :Text;
  job @1 :Text;  # the newest run of this job, when run is empty
}

struct ListRuns $A.verb("runs.read") {
  job @0 :Text;
}

struct RunList {
  runs @0 :List(RunInfo);
}

# --- what training/jobs and training/job keep ---------------------------------------------------------------------------------------

struct JobRecord {
  job @0 :R.TrainingJob;
  generation @1 :UInt64;
  run @2 :Text;        # the newest
}

struct RunRecord {
  sequence @0 :UInt64;   # grows with each write: an older one never replaces a newer one
  info @1 :RunInfo;
  spec @2 :R.TrainingJob;
  epoch @3 :UInt64;      # of rendezvous; the next one is greater, also after a restart
  checkpoint @4 :Text;
  checkpointFold @5 :UInt32;
  checkpointStep @6 :UInt64;
  fits @7 :List(FitDone);
  placements @8 :List(Placement);
  model @9 :Text;        # artifact of the model to start from
  rows @10 :UInt64;
  generation @11 :UInt64;  # of the job
  steps @12 :List(UInt64); # of each fit
}

struct Placement {
  node @0 :Text;
  generation @1 :UInt64;  # of the worker process with this index
}

struct StopRun {
  # training/jobs -> training/job. Reply: Empty when it is on disk that the run was stopped.
  reason @0 :Text;
}
