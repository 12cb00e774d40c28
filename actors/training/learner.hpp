// What the training worker needs of a model: one Learner is one fit of a job (a cross-validation fold, or the final one). The worker
// knows ranks, epochs and links; the Learner knows rows, gradients and the optimizer, and nothing of other processes.
//
// Invariants: two Learners made from the same (spec, data, fold), and brought to the same step by the same sums, have the same
// state() bit by bit; so have those that loaded it. Whether to stop early follows from the state alone, so every rank decides the same.
//
// Thread rules: all verbs may take long (call them where blocking is allowed) and one thread at a time is inside a Learner.
// step(), done() and progress() may be read between the calls.
#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "messages/training.capnp.h"
#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::training {

// Micro-shards [first, first + count) of each global batch.
struct Shards {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

struct Progress {
  std::uint64_t step = 0;     // committed
  std::uint64_t steps = 0;    // of this fit, if it does not stop early
  std::uint64_t samples = 0;  // rows that went into committed steps, as counted by the ranks that had them
  double loss = 0;            // mean over the last step's rows
  double validation_loss = std::numeric_limits<double>::quiet_NaN();
};

struct Outcome {
  std::map<std::string, double, std::less<>> metrics;  // on held-out rows
  std::vector<std::uint64_t> confusion;                // binary: tn, fp, fn, tp; more classes: rows are actual, columns predicted
  std::string weights_digest;                          // SHA-256 of the parameters, hex
  Bytes model;                                         // ONNX; of the final fit only
};

class Learner {
 public:
  virtual ~Learner() = default;
  // Floats of one micro-shard's contribution: the gradient, then what else must be summed over ranks (loss, rows).
  [[nodiscard]] virtual std::size_t width() const = 0;
  // contributions[i] gets the sums over micro-shard shards.first + i of the present step; each has width() floats.
  virtual Status contribute(Shards shards, std::span<std::vector<float>> contributions) = 0;
  // The sum over all micro-shards: one optimizer step, and at the end of an epoch the validation.
  virtual Status commit(std::span<float> sum) = 0;
  [[nodiscard]] virtual bool done() const = 0;
  [[nodiscard]] virtual Progress progress() const = 0;
  // All that is needed to go on from here.
  [[nodiscard]] virtual Bytes state() const = 0;
  virtual Status load(ByteView state) = 0;
  // Held-out evaluation; `final_fit`: with the model.
  virtual Result<Outcome> finish(bool final_fit) = 0;
};

// The data of a job, read once by each worker process; makes the Learners. Immutable, shared by threads.
class Course {
 public:
  virtual ~Course() = default;
  [[nodiscard]] virtual std::vector<std::uint64_t> steps() const = 0;  // of each fit; the last is the final one
  [[nodiscard]] virtual Result<std::unique_ptr<Learner>> learner(std::uint32_t fold) const = 0;
};

// From the content of a snapshot artifact. `model`: ONNX bytes for the family onnx, otherwise empty. Blocking.
using CourseMaker = std::function<Result<std::shared_ptr<const Course>>(messages::TrainingJob::Reader spec, Bytes snapshot, Bytes model)>;

// Fits of a job: the cross-validation folds, and the final one.
std::uint32_t fits_of(messages::TrainingJob::Reader spec);

// The real one, over kernels/train.
Result<std::shared_ptr<const Course>> make_course(messages::TrainingJob::Reader spec, Bytes snapshot, Bytes model);

// A model (ONNX) on the rows that the job holds out of the snapshot. Blocking.
Result<std::map<std::string, double, std::less<>>> evaluate_model(messages::TrainingJob::Reader spec, Bytes snapshot, Bytes model);

}  // namespace falaj::training
