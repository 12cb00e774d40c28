#include "nodes/cli.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iterator>

namespace falaj::nodes {

int exit_code(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::invalid:
      return 2;
    case ErrorCode::denied:
      return 4;
    case ErrorCode::not_found:
      return 5;
    case ErrorCode::conflict:
      return 6;
    case ErrorCode::overloaded:
    case ErrorCode::unreachable:
    case ErrorCode::gone:
    case ErrorCode::deadline:
      return 7;
    case ErrorCode::corrupt:
      return 8;
    case ErrorCode::no_space:
      return 9;
    default:
      return 1;
  }
}

Result<Client*> Cli::client() {
  if (!client_) {
    ClientOptions options;
    options.dir = cluster_dir();
    options.principal = principal;
    options.tenant = tenant;
    options.purpose = purpose;
    options.idempotency_key = idempotency_key;
    FALAJ_ASSIGN(client_, Client::connect(options));
  }
  return client_.get();
}

void Cli::with_dir(CLI::App& command) {
  command.add_option("--dir,-d", dir, "Directory of the cluster")->envname("FALAJ_DIR")->type_name("DIR")->default_str("./falaj");
}

void Cli::with_client(CLI::App& command) {
  with_dir(command);
  command.add_option("--as", principal, "Principal to speak as: its certificate lies in DIR/principals")->capture_default_str();
  command.add_option("--tenant", tenant, "Tenant to speak for");
  command.add_option("--purpose", purpose, "Purpose of the reads");
}

void Cli::with_output(CLI::App& command) {
  command.add_option("--output,-o", output, "How to print: table or json")->check(CLI::IsMember({"table", "json"}))->capture_default_str();
}

void Cli::with_key(CLI::App& command) {
  command
      .add_option("--idempotency-key", idempotency_key,
                  "Carry this out once: sent again under the same key it is answered as the first time; other content is a conflict")
      ->type_name("KEY");
}

void Cli::runs(CLI::App& command, std::function<Status()> body) {
  command.callback([this, body = std::move(body)] {
    if (dir.empty()) dir = "falaj";
    chosen = body;
  });
}

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
  std::fflush(stdout);
}

std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows) {
    if (!out.empty()) out += '\n';
    for (std::size_t i = 0; i < row.size(); ++i) {
      // Names may come from anybody: none may steer the terminal.
      std::ranges::transform(row[i], std::back_inserter(out),
                             [](unsigned char c) { return c < 0x20 || c == 0x7f ? '?' : static_cast<char>(c); });
      if (i + 1 < row.size()) out.append(widths[i] - row[i].size() + 2, ' ');
    }
  }
  return out;
}

bool output_is_terminal() { return isatty(STDOUT_FILENO) == 1; }

}  // namespace falaj::nodes
