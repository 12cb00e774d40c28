// `falaj demo`: the whole system once through, with real processes and real kills: raw data to answered requests.
#pragma once
#include <string>

#include "nodes/layout.hpp"

namespace falaj::nodes {

struct DemoOptions {
  std::string dir;       // empty: a new directory under the system's temporary one
  std::string examples;  // configs/examples
  std::string json;      // file for the table as one JSON object
  bool keep = false;     // leave the cluster up
  std::uint64_t http_requests = 10'000;
  std::uint64_t actor_requests = 10'000;
};

Status run_demo(const DemoOptions& options);

}  // namespace falaj::nodes
