// `training/worker`: one rank of a job, in its own process. Says hello to the job, reads the snapshot, and then follows the job's
// rendezvous: each epoch is a ring of workers that step together, sum their gradients over their own links, and commit.
//
// Invariants: a step is committed when its sum is complete here, and all of it or nothing; what was not committed when the epoch was
// revoked is dropped and computed again. A message of a smaller epoch is refused or ignored. While control is away the ring goes on.
#pragma once
#include <functional>
#include <string>
#include <string_view>

#include "actors/training/learner.hpp"
#include "runtime/host/actor.hpp"

namespace falaj::training {

// The wiring's way to other workers. Returns at once; thread-safe.
class WorkerLinks {
 public:
  virtual ~WorkerLinks() = default;
  virtual void connect(const std::string& link_name, const std::string& host_port) = 0;  // keeps a link until forget()
  virtual void forget(const std::string& /*link_name*/) {}
};

struct WorkerOptions {
  std::string job;  // WorkerSpec.job: the job is the actor training/job/<job> on the control node
  std::string run;
  std::uint32_t index = 0;
  std::string control_node;  // link name
  std::string listen;        // host:port of this process's own links, for its peers
  std::uint32_t pid = 0;
  std::string principal;         // SPIFFE id of this process, for reads that need a purpose
  WorkerLinks* links = nullptr;  // not null; outlives the actor
  CourseMaker make_course = training::make_course;
  std::function<void()> on_finished;                       // the job needs this process no more: end it. On the actor's turn
  Duration collective_timeout = std::chrono::seconds(60);  // a bound only: lost peers are seen by their links
};

ChildSpec worker(WorkerOptions options);

}  // namespace falaj::training
