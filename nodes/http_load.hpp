// A small closed-loop HTTP/1.1 load generator over loopback: some connections, each sending its next request when the last was answered.
// For the demo and for `falaj bench`; not a general client.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/result.hpp"

namespace falaj::nodes {

struct LoadPlan {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;
  std::string path;
  std::vector<std::string> bodies;  // sent in turn; JSON
  std::uint64_t requests = 1000;
  unsigned connections = 4;
  std::function<void(std::uint64_t done)> progress;  // from the connections' threads, about every hundredth
};

struct LoadReport {
  std::uint64_t answered = 0;  // with status 200
  std::uint64_t failed = 0;    // any other status, or a broken connection
  double seconds = 0;
  std::vector<double> latency_us;  // sorted, of the answered
  std::string first_failure;
  [[nodiscard]] double per_second() const { return seconds > 0 ? static_cast<double>(answered) / seconds : 0; }
};

double percentile(const std::vector<double>& sorted, double q);  // 0 when empty

LoadReport run_load(const LoadPlan& plan, const Clock& clock);

}  // namespace falaj::nodes
