// A training worker: a child process of its node, with its own certificate, host and links.
#pragma once
#include <cstdint>
#include <string>

#include "nodes/layout.hpp"

namespace falaj::nodes {

struct WorkerPlan {
  std::uint32_t slot = 0;  // number on its node; its name in the certificate
  std::string job;
  std::string run;
  std::uint32_t index = 0;  // among the job's workers
};

// Runs until the job needs it no more, or a signal; returns the process's exit code.
int run_worker(const NodeDir& dir, const WorkerPlan& plan);

}  // namespace falaj::nodes
