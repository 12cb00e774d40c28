// falaj: one program. The commands are in cli_*.cpp; the parts of a node in node.cpp.
#include <cstdio>
#include <exception>

#include "nodes/cli.hpp"
#include "nodes/node.hpp"
#include "nodes/version.hpp"
#include "runtime/base/log.hpp"

int main(int argc, char** argv) {
  using namespace falaj::nodes;
  block_signals();
  CLI::App app("Falaj turns your own servers into a machine-learning platform: features, training, registry, serving, governance.",
               "falaj");
  app.set_version_flag("--version", kVersion);
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done; 1 failed; 2 wrong use or invalid input; 3 the node gave up; 4 denied; 5 not found; 6 conflict or a gate said "
      "no;\n"
      "7 unreachable, overloaded or too late; 8 damaged data; 9 disk full.\n\n"
      "A cluster on this machine, and a look at it:\n"
      "  falaj up --dir ./falaj && falaj status --dir ./falaj && falaj down --dir ./falaj");
  // Commands speak for themselves; nodes configure the log anew.
  falaj::log::Options log_options;
  log_options.level = falaj::log::Level::warn;
  falaj::log::configure(log_options);
  Cli cli;
  add_cluster_commands(app, cli);
  add_leave_commands(app, cli);
  add_resource_commands(app, cli);
  add_feature_commands(app, cli);
  add_training_commands(app, cli);
  add_model_commands(app, cli);
  add_model_file_commands(app, cli);
  add_request_commands(app, cli);
  add_look_commands(app, cli);
  add_trace_command(app, cli);
  add_bench_command(app, cli);
  add_simulate_commands(app, cli);
  add_demo_command(app, cli);
  add_completion_command(app, cli);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  try {
    const auto done = cli.chosen ? cli.chosen() : falaj::Status{};
    if (done) return cli.code;
    std::fprintf(stderr, "falaj: %s\n", falaj::to_string(done.error()).c_str());
    return cli.code != 0 ? cli.code : exit_code(done.error().code);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "falaj: internal error: %s\n", e.what());
    return 1;
  }
}
