#include "nodes/bench.hpp"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "nodes/cli.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/process.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::nodes {

void say(std::string_view progress) { std::fprintf(stderr, "bench: %.*s\n", static_cast<int>(progress.size()), progress.data()); }

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  const auto middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

Result<double> rate(const BenchPlan& plan, std::string_view name, const std::function<Status(std::uint64_t units)>& run) {
  const auto timed = [&](std::uint64_t units) -> Result<double> {
    const auto begin = plan.clock.now();
    FALAJ_TRY(run(units));
    return std::max(std::chrono::duration<double>(plan.clock.now() - begin).count(), 1e-9);
  };
  std::uint64_t units = 16;
  for (;;) {
    FALAJ_ASSIGN(const auto seconds, timed(units));
    if (seconds * 5 >= plan.seconds) {
      units = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(static_cast<double>(units) * plan.seconds / seconds));
      break;
    }
    units *= seconds * 50 < plan.seconds ? 8 : 2;
  }
  std::vector<double> rates;
  for (unsigned i = 0; i < plan.rounds; ++i) {
    FALAJ_ASSIGN(const auto seconds, timed(units));
    rates.push_back(static_cast<double>(units) / seconds);
  }
  const auto middle = median(rates);
  std::ranges::sort(rates);
  say(format("{}: {:.4g} a second (of {} rounds {:.4g} to {:.4g})", name, middle, plan.rounds, rates.front(), rates.back()));
  return middle;
}

void print_figures(const BenchPlan& plan, const std::vector<Figure>& figures, const Figures& ours, const std::vector<Peer>& peers) {
  std::vector<std::pair<std::string, const Figures*>> sides = {{"falaj", &ours}};
  for (const auto& peer : peers) sides.emplace_back(peer.name, &peer.figures);
  std::vector<std::vector<std::string>> rows = {{"", "unit"}};
  for (const auto& [side, values] : sides) rows.front().push_back(side);
  for (const auto& figure : figures) {
    net::JsonWriter w;
    w.begin_object().key("name").string(figure.name).key("unit").string(figure.unit);
    std::vector<std::string> row = {figure.name, figure.unit};
    for (const auto& [side, values] : sides) {
      const auto found = values->find(figure.name);
      w.key(side);
      if (found == values->end()) {
        w.null();
        row.emplace_back("-");
      } else {
        w.number(found->second);
        row.push_back(found->second < 100 ? format("{:.2f}", found->second) : format("{:.0f}", found->second));
      }
    }
    w.end_object();
    if (plan.json) print(w.text());
    rows.push_back(std::move(row));
  }
  if (!plan.json) print(table(rows));
}

namespace {

// Of tests/peers, or beside this program; empty: not there.
std::string peer_program(std::string_view file) {
  std::error_code none;
  const auto own = fs::path(self_executable()).parent_path();
  for (const auto& candidate : {own / file, own / "../../tests/peers" / file, fs::path("tests/peers") / file}) {
    if (fs::exists(candidate, none)) return candidate.string();
  }
  return {};
}

// What it prints, "name value" a line.
Figures run_peer(std::string_view name, const std::vector<std::string>& arguments) {
  Figures figures;
  std::string out = (fs::temp_directory_path() / "falaj-peer.XXXXXX").string();
  const int fd = mkstemp(out.data());
  if (fd < 0) return figures;
  close(fd);
  ProcessTable processes;
  Gate ended;
  ProcessExit how;
  ProcessSpec spec;
  spec.arguments = arguments;
  spec.log_file = out;
  const auto started = processes.start(spec, [&](ProcessExit exit) {
    how = exit;
    ended.open();
  });
  if (started && ended.wait(std::chrono::minutes(10)) && how.code == 0 && how.signal == 0) {
    std::ifstream lines(out);
    std::string line;
    while (std::getline(lines, line)) {
      std::istringstream words(line);
      std::string figure;
      double value = 0;
      if (words >> figure >> value) figures[figure] = value;
    }
  }
  if (figures.empty()) {
    std::ifstream text(out);
    std::string first;
    std::getline(text, first);
    say(format("{} is left out: {}", name, first.empty() ? "its program cannot be run here" : first));
  }
  std::error_code none;
  fs::remove(out, none);
  return figures;
}

}  // namespace

std::vector<Peer> run_peers(const BenchPlan& plan, const std::string& part, const std::string& keys) {
  const auto seconds = format("{}", plan.seconds);
  const auto rounds = std::to_string(plan.rounds);
  std::vector<std::string> words = {part, seconds, rounds};
  if (!keys.empty()) words.push_back(keys);
  const auto run = [&](std::string_view name, std::vector<std::string> program) {
    if (plan.pin) program.insert(program.begin(), {"env", "FALAJ_BENCH_PIN=1", "taskset", "-c", "0"});
    program.insert(program.end(), words.begin(), words.end());
    return plan.beside(name) ? run_peer(name, program) : Figures{};
  };
  std::vector<Peer> peers = {{"erlang", run("erlang", {"/bin/sh", peer_program("erlang.sh")})},
                             {"caf", run("caf", {peer_program("bench_caf")})}};
  if (plan.beside("ray") && plan.pin) {
    say("ray is left out: its processes are its own to place");
    peers.push_back({"ray", {}});
  } else if (plan.beside("ray")) {
    std::error_code none;
    const auto python = fs::path(self_executable()).parent_path() / "../python-peers/bin/python";
    peers.push_back(
        {"ray", run_peer("ray", {fs::exists(python, none) ? python.string() : "python3", peer_program("ray_actors.py"), seconds, rounds})});
  }
  return peers;
}

void Gate::open() {
  const std::scoped_lock lock(mutex_);
  open_ = true;
  changed_.notify_all();  // under the lock: whoever waits may drop this object as soon as it is free
}

bool Gate::wait(Duration patience) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, patience, [this] { return open_; });
}

}  // namespace falaj::nodes
