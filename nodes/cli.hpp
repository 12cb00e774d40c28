// What the commands of the CLI share. Each file cli_*.cpp adds its commands to the parser (CLI11) and does nothing until one is chosen.
//
// A command ends with a Status; main() prints its error to standard error and turns its code into the exit code below.
#pragma once
#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nodes/client.hpp"
#include "runtime/base/result.hpp"

namespace falaj::nodes {

// Exit codes, as documented in --help: 0 done; 1 failed; 2 wrong use or invalid input; 3 the node's actor tree gave up; 4 denied;
// 5 not found; 6 conflict, or a gate said no; 7 unreachable, overloaded or too late; 8 damaged data; 9 disk full.
int exit_code(ErrorCode code) noexcept;

class Cli {
 public:
  std::string dir;  // of the cluster: --dir, or FALAJ_DIR, or ./falaj
  std::string principal = "admin";
  std::string tenant;
  std::string purpose;
  std::string idempotency_key;
  std::string output = "table";    // table, json
  std::function<Status()> chosen;  // what the parsed command does
  int code = 0;                    // when the command itself knows better than its Status

  [[nodiscard]] ClusterDir cluster_dir() const { return {dir}; }
  [[nodiscard]] std::string own_tenant() const { return tenant.empty() ? "default" : tenant; }
  [[nodiscard]] bool json() const { return output == "json"; }
  Result<Client*> client();  // connects once

  // Options that many commands have.
  void with_dir(CLI::App& command);
  void with_client(CLI::App& command);  // --dir, --as, --tenant, --purpose
  void with_output(CLI::App& command);  // -o
  void with_key(CLI::App& command);     // --idempotency-key
  void runs(CLI::App& command, std::function<Status()> body);

 private:
  std::unique_ptr<Client> client_;
};

void print(std::string_view text);  // to standard output, with a newline
// Columns aligned, header in the first row.
std::string table(const std::vector<std::vector<std::string>>& rows);
bool output_is_terminal();

void add_cluster_commands(CLI::App& app, Cli& cli);     // init, up, down, node, launcher, token, join, principal
void add_leave_commands(CLI::App& app, Cli& cli);       // drain, forget
void add_resource_commands(CLI::App& app, Cli& cli);    // apply, get, delete, deploy
void add_feature_commands(CLI::App& app, Cli& cli);     // features ingest|get|snapshot|count|erase
void add_training_commands(CLI::App& app, Cli& cli);    // train, runs
void add_model_commands(CLI::App& app, Cli& cli);       // models
void add_model_file_commands(CLI::App& app, Cli& cli);  // model info|run
void add_request_commands(CLI::App& app, Cli& cli);     // predict, call
void add_look_commands(CLI::App& app, Cli& cli);        // status, top, actors, audit, store, version
void add_trace_command(CLI::App& app, Cli& cli);        // trace
void add_bench_command(CLI::App& app, Cli& cli);        // bench
void add_simulate_commands(CLI::App& app, Cli& cli);    // simulate faults
void add_demo_command(CLI::App& app, Cli& cli);         // demo
void add_completion_command(CLI::App& app, Cli& cli);   // completion; last: it walks the others

}  // namespace falaj::nodes
