#include "nodes/training_view.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "nodes/cli.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {

using messages::GetRun;
using messages::RunInfo;

namespace {

// The loss curve in one line of block characters.
std::string sparkline(capnp::List<double>::Reader losses) {
  static constexpr const char* kBlocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  if (losses.size() == 0) return {};
  constexpr unsigned kWidth = 48;
  double low = losses[0];
  double high = losses[0];
  for (const auto loss : losses) {
    low = std::min(low, loss);
    high = std::max(high, loss);
  }
  std::string out;
  const auto width = std::min(kWidth, losses.size());
  for (unsigned i = 0; i < width; ++i) {
    const auto loss = losses[i * losses.size() / width];
    out += kBlocks[high > low ? static_cast<int>((loss - low) / (high - low) * 7.0) : 0];
  }
  return out;
}

std::string progress_line(RunInfo::Reader run) {
  unsigned up = 0;
  for (const auto worker : run.getWorkers()) up += worker.getUp() ? 1 : 0;
  return format("{}  fit {}/{}  step {}/{}  loss {:.4f}  workers {}  recoveries {}", text(run.getPhase()),
                std::min(run.getFold() + 1, run.getFolds()), run.getFolds(), run.getTotalStep(), run.getTotalSteps(), run.getLoss(), up,
                run.getRecoveries());
}

bool over(RunInfo::Reader run) {
  const auto phase = text(run.getPhase());
  return phase == "finished" || phase == "failed" || phase == "stopped";
}

}  // namespace

std::string metric_text(RunInfo::Reader run, std::string_view name) {
  for (const auto metric : run.getMetrics()) {
    if (text(metric.getName()) == name) return format("{:.4f}", metric.getValue());
  }
  return "-";
}

std::string run_name(std::string_view job, std::uint64_t revision) { return format("{}-{}", job, revision); }

Result<View<RunInfo>> follow_run(Client& client, const std::string& run_id, const std::function<void(RunInfo::Reader)>& look) {
  const bool terminal = isatty(STDERR_FILENO) == 1;
  std::uint64_t shown = 0;
  auto patience = client.clock().now() + std::chrono::seconds(60);
  for (;;) {
    auto run = client.ask<RunInfo>("training/jobs", Message::build<GetRun>([&](GetRun::Builder b) { b.setRun(run_id); }));
    if (!run) {
      if (run.error().code == ErrorCode::denied || client.clock().now() > patience) return run.error();
      client.pause(std::chrono::milliseconds(50));
      continue;
    }
    patience = client.clock().now() + std::chrono::seconds(60);
    look(**run);
    if (terminal) {
      std::fprintf(stderr, "\r\033[K%s %s", progress_line(**run).c_str(), sparkline((*run)->getLosses()).c_str());
      std::fflush(stderr);
    } else if (const auto tenth = (*run)->getTotalSteps() == 0 ? 0 : (*run)->getTotalStep() * 10 / (*run)->getTotalSteps(); tenth > shown) {
      shown = tenth;
      std::fprintf(stderr, "%s\n", progress_line(**run).c_str());
    }
    if (over(**run)) {
      if (terminal) std::fprintf(stderr, "\r\033[K");
      return run;
    }
    client.pause(std::chrono::milliseconds(50));
  }
}

std::string describe_run(RunInfo::Reader run) {
  std::vector<std::vector<std::string>> rows = {
      {"run", std::string(text(run.getRun()))},
      {"job", std::string(text(run.getJob()))},
      {"phase", std::string(text(run.getPhase()))},
      {"steps", format("{} of {}", run.getTotalStep(), run.getTotalSteps())},
      {"loss", format("{:.5f}  {}", run.getLoss(), sparkline(run.getLosses()))},
      {"recoveries", format("{}", run.getRecoveries())},
      {"snapshot", std::string(text(run.getSnapshot()))},
      {"weights", std::string(text(run.getWeightsDigest()))},
      {"version", run.getVersion() == 0 ? "-" : std::to_string(run.getVersion())},
  };
  if (!text(run.getMessage()).empty()) rows.push_back({"message", std::string(text(run.getMessage()))});
  for (const auto metric : run.getMetrics()) rows.push_back({std::string(text(metric.getName())), format("{:.4f}", metric.getValue())});
  if (run.getConfusion().size() == 4) {
    const auto c = run.getConfusion();
    rows.push_back({"confusion", format("tn {}  fp {}  fn {}  tp {}", c[0], c[1], c[2], c[3])});
  }
  if (run.getRecoveries() > 0) rows.push_back({"last recovery", format("{:.0f} ms", run.getLastRecoveryMs())});
  return table(rows);
}

}  // namespace falaj::nodes
