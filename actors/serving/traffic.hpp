// What is counted of the requests for one deployment on one gateway node: written by serving/router, read by the HTTP gateway for
// statistics in the dialects' own words. Both find the same handles in the node's registry.
#pragma once
#include <string>

#include "runtime/base/metrics.hpp"
#include "runtime/base/result.hpp"

namespace falaj::serving {

struct Traffic {
  metrics::Counter* requests;
  metrics::Counter* failed;   // of these
  metrics::Counter* refused;  // of the failed: overloaded, past the deadline, nobody there
  metrics::Counter* faults;   // of the failed: ours
  metrics::Counter* retries;
  metrics::Histogram* latency;
  metrics::Histogram* queue;
  metrics::Histogram* compute;
  metrics::Counter* rows;
  metrics::Counter* unknown;  // categories in them
  metrics::Gauge* runs;       // by each request's share of its batch, hence a fraction
  metrics::Gauge* last;       // seconds since 1970
  metrics::Gauge* version;    // that answered last
  metrics::Gauge* pending;    // requests under way
};

Traffic traffic_of(metrics::Registry& registry, const std::string& deployment);
void count_failure(const Traffic& traffic, ErrorCode code);

}  // namespace falaj::serving
