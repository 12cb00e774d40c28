#include "actors/serving/stats.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "actors/serving/traffic.hpp"
#include "runtime/base/format.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::serving {

namespace {

std::vector<std::string> deployments(const cluster::ClusterSnapshot* view) {
  std::vector<std::string> names;
  if (view == nullptr) return names;
  for (const auto resource : view->view().getResources()) {
    if (resource.isDeployment()) names.emplace_back(text(resource.getDeployment().getName()));
  }
  return names;
}

std::uint64_t nanoseconds(const metrics::Histogram& histogram) { return static_cast<std::uint64_t>(histogram.sum_seconds() * 1e9); }
std::uint64_t whole(const metrics::Gauge& gauge) { return static_cast<std::uint64_t>(std::llround(gauge.value())); }

std::string escaped(std::string_view label) {
  std::string out;
  for (const char c : label) {
    if (c == '"' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

void duration(net::JsonWriter& w, std::string_view key, std::uint64_t count, std::uint64_t ns) {
  w.key(key).begin_object().key("count").number(count).key("ns").number(ns).end_object();
}

void model_stats(net::JsonWriter& w, const std::string& name, const Traffic& t) {
  const auto bad = t.failed->value();
  const auto good = t.requests->value() - std::min(bad, t.requests->value());
  const auto executions = whole(*t.runs);
  const auto infer_ns = nanoseconds(*t.compute);
  w.begin_object().key("name").string(name).key("version").string(std::to_string(whole(*t.version)));
  w.key("last_inference").number(static_cast<std::uint64_t>(t.last->value() * 1e3));
  w.key("inference_count").number(t.rows->value()).key("execution_count").number(executions);
  w.key("inference_stats").begin_object();
  duration(w, "success", good, nanoseconds(*t.latency));
  duration(w, "fail", bad, 0);
  duration(w, "queue", good, nanoseconds(*t.queue));
  // Reading and writing tensors is within a request's time, not measured apart.
  duration(w, "compute_input", good, 0);
  duration(w, "compute_infer", good, infer_ns);
  duration(w, "compute_output", good, 0);
  duration(w, "cache_hit", 0, 0);
  duration(w, "cache_miss", 0, 0);
  w.end_object();
  w.key("response_stats").begin_object().end_object();
  w.key("batch_stats").begin_array().end_array().key("memory_usage").begin_array().end_array().end_object();
}

}  // namespace

bool is_ready(const cluster::ClusterSnapshot& view, std::string_view deployment) {
  return !view.ready_with_prefix(format("serving/replica/{}/", deployment)).empty();
}

bool all_ready(const cluster::ClusterSnapshot& view) {
  for (const auto& name : deployments(&view)) {
    if (!is_ready(view, name)) return false;
  }
  return true;
}

std::string repository_index(const cluster::ClusterSnapshot* view, bool only_ready) {
  net::JsonWriter w;
  w.begin_array();
  for (const auto& name : deployments(view)) {
    const bool ready = is_ready(*view, name);
    if (only_ready && !ready) continue;
    w.begin_object().key("name").string(name).key("state").string(ready ? "READY" : "UNAVAILABLE");
    w.key("reason").string(ready ? "" : "no replica is ready").end_object();
  }
  w.end_array();
  return std::move(w).take();
}

std::string statistics(const cluster::ClusterSnapshot* view, metrics::Registry& registry, std::string_view only) {
  net::JsonWriter w;
  w.begin_object().key("model_stats").begin_array();
  for (const auto& name : deployments(view)) {
    if (only.empty() || only == name) model_stats(w, name, traffic_of(registry, name));
  }
  w.end_array().end_object();
  return std::move(w).take();
}

std::string triton_metrics(const cluster::ClusterSnapshot* view, metrics::Registry& registry) {
  struct Model {
    std::string labels;
    Traffic traffic;
  };
  std::vector<Model> models;
  for (const auto& name : deployments(view)) {
    const auto traffic = traffic_of(registry, name);
    models.push_back({format("model=\"{}\",version=\"{}\"", escaped(name), whole(*traffic.version)), traffic});
  }
  std::string out;
  const auto family = [&](std::string_view name, std::string_view type, std::string_view help, const auto& value) {
    out += format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
    for (const auto& model : models) out += format("{}{{{}}} {}\n", name, model.labels, value(model.traffic));
  };
  const auto us = [](const metrics::Histogram& histogram) { return nanoseconds(histogram) / 1000; };
  family("nv_inference_request_success", "counter", "Requests answered",
         [](const Traffic& t) { return t.requests->value() - std::min(t.failed->value(), t.requests->value()); });
  out += "# HELP nv_inference_request_failure Requests that failed, by reason\n# TYPE nv_inference_request_failure counter\n";
  for (const auto& model : models) {
    const auto& t = model.traffic;
    const auto known = t.refused->value() + t.faults->value();
    const auto line = [&](std::string_view reason, std::uint64_t count) {
      out += format("nv_inference_request_failure{{{},reason=\"{}\"}} {}\n", model.labels, reason, count);
    };
    line("REJECTED", t.refused->value());
    line("CANCELED", 0);
    line("BACKEND", t.faults->value());
    line("OTHER", t.failed->value() - std::min(known, t.failed->value()));
  }
  family("nv_inference_count", "counter", "Rows answered", [](const Traffic& t) { return t.rows->value(); });
  family("nv_inference_exec_count", "counter", "Runs of the model", [](const Traffic& t) { return whole(*t.runs); });
  family("nv_inference_pending_request_count", "gauge", "Requests under way", [](const Traffic& t) { return whole(*t.pending); });
  family("nv_inference_request_duration_us", "counter", "Time of requests", [&](const Traffic& t) { return us(*t.latency); });
  family("nv_inference_queue_duration_us", "counter", "Of this, in queues", [&](const Traffic& t) { return us(*t.queue); });
  family("nv_inference_compute_input_duration_us", "counter", "Of this, reading inputs (not measured apart)",
         [](const Traffic&) { return 0; });
  family("nv_inference_compute_infer_duration_us", "counter", "Of this, in the model", [&](const Traffic& t) { return us(*t.compute); });
  family("nv_inference_compute_output_duration_us", "counter", "Of this, writing outputs (not measured apart)",
         [](const Traffic&) { return 0; });
  return out;
}

}  // namespace falaj::serving
