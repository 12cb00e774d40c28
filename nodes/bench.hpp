// What the parts of `falaj bench` share: how long a measurement lasts, medians, and the figures as they are printed.
#pragma once
#include <algorithm>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/result.hpp"

namespace falaj::nodes {

struct BenchPlan {
  double seconds = 1;  // of each round
  unsigned rounds = 5;
  bool json = false;
  bool pin = false;                  // actors, links: each process keeps to a processor of its own, of the peers too
  std::vector<std::string> against;  // erlang, caf, ray
  double times = 10;                 // overload: of what can be answered
  unsigned deadline_ms = 100;        // overload: of each request
  std::string dir;                   // http: a running cluster, with `model`; empty: a node of its own
  std::string model;
  SystemClock clock;

  [[nodiscard]] bool beside(std::string_view peer) const { return std::ranges::find(against, peer) != against.end(); }
};

void say(std::string_view progress);  // to standard error

double median(std::vector<double> values);  // 0 when empty

// Units a second, the median of the rounds. `run` does so many units and returns when they are done; how many make a round is found by
// trying, which warms up too.
Result<double> rate(const BenchPlan& plan, std::string_view name, const std::function<Status(std::uint64_t units)>& run);

using Figures = std::map<std::string, double, std::less<>>;

struct Figure {
  std::string name;
  std::string unit;
};

// The same figures of another system.
struct Peer {
  std::string name;
  Figures figures;
};

// One JSON object a line, or a table. A figure that a side lacks is null.
void print_figures(const BenchPlan& plan, const std::vector<Figure>& figures, const Figures& ours, const std::vector<Peer>& peers = {});

// The peers that the plan names, measured now, one after the other, on `part`: actors or links (with the certificates in `keys`). Erlang
// and CAF are always listed, without figures when they were not asked for, are not installed or fail; then standard error says so.
std::vector<Peer> run_peers(const BenchPlan& plan, const std::string& part, const std::string& keys = {});

// Opened once, from any thread.
class Gate {
 public:
  void open();
  [[nodiscard]] bool wait(Duration patience = std::chrono::minutes(5));

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

Status bench_actors(const BenchPlan& plan);
Status bench_links(const BenchPlan& plan);
Status bench_lanes(const BenchPlan& plan);
Status bench_overload(const BenchPlan& plan);
Status bench_http(const BenchPlan& plan);
Status bench_kernels(const BenchPlan& plan);
Status serve_bench_links(const std::string& dir, bool pin);  // the other process of links, lanes and overload

}  // namespace falaj::nodes
