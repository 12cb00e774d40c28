#include "nodes/run_options.hpp"

#include <algorithm>

#include "runtime/base/format.hpp"
#include "runtime/base/thread.hpp"

namespace falaj::nodes {

Result<unsigned> usable_threads(unsigned threads) {
  if (threads > kThreadsMax) return invalid(format("--threads is {}; it must be at most {}", threads, kThreadsMax));
  return threads > 0 ? threads : std::min(static_cast<unsigned>(hardware_threads()), kThreadsMax);
}

void add_run_options(CLI::App& command, RunOptions& a) {
  command.add_option("--threads", a.threads, "0: as many as there are; the answers do not depend on it")
      ->capture_default_str()
      ->type_name("T");
  command
      .add_option("--precision", a.precision,
                  "f32, or bf16: products and convolutions by known weights take their operands rounded to bfloat16")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
}

kernels::CompileOptions compile_options(std::string_view precision, unsigned threads) {
  kernels::CompileOptions options;
  if (precision == "bf16") options.backends = kernels::backends_after(kernels::bf16_backend());
  options.threads = threads;
  return options;
}

}  // namespace falaj::nodes
