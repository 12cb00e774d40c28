// How the commands for model files run them: on how many threads, in which precision.
#pragma once
#include <string>
#include <string_view>

#include "kernels/plan.hpp"
#include "nodes/cli.hpp"
#include "runtime/base/result.hpp"

namespace falaj::nodes {

constexpr unsigned kThreadsMax = 256;
Result<unsigned> usable_threads(unsigned threads);  // of --threads: 1 to kThreadsMax, 0 for as many as the machine has

struct RunOptions {
  std::string precision = "f32";
  unsigned threads = 1;
};
void add_run_options(CLI::App& command, RunOptions& a);  // --threads, --precision f32|bf16
// `bf16`: products and convolutions by known weights take their operands rounded; others are f32.
kernels::CompileOptions compile_options(std::string_view precision, unsigned threads);

}  // namespace falaj::nodes
