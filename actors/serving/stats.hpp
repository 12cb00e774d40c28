// A gateway's counts in the words of the dialects: Open Inference Protocol repository index and statistics, and the metric names that
// dashboards made for Triton look for. Pure; what is counted is in traffic.hpp.
#pragma once
#include <string>
#include <string_view>

#include "runtime/base/metrics.hpp"
#include "runtime/cluster/view.hpp"

namespace falaj::serving {

[[nodiscard]] bool is_ready(const cluster::ClusterSnapshot& view, std::string_view deployment);  // it has a replica that answers
[[nodiscard]] bool all_ready(const cluster::ClusterSnapshot& view);
// JSON. `view` may be null: no cluster was seen yet.
std::string repository_index(const cluster::ClusterSnapshot* view, bool only_ready);
std::string statistics(const cluster::ClusterSnapshot* view, metrics::Registry& registry, std::string_view only);
// Prometheus text, to be appended to the registry's own.
std::string triton_metrics(const cluster::ClusterSnapshot* view, metrics::Registry& registry);

}  // namespace falaj::serving
