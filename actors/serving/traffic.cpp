#include "actors/serving/traffic.hpp"

namespace falaj::serving {

Traffic traffic_of(metrics::Registry& registry, const std::string& deployment) {
  const metrics::Labels labels = {{"deployment", deployment}};
  const auto counter = [&](std::string_view name, std::string_view help) { return &registry.counter(name, help, labels); };
  const auto gauge = [&](std::string_view name, std::string_view help) { return &registry.gauge(name, help, labels); };
  const auto histogram = [&](std::string_view name, std::string_view help) { return &registry.histogram(name, help, labels); };
  return Traffic{
      .requests = counter("falaj_serving_requests_total", "Requests answered or failed"),
      .failed = counter("falaj_serving_failed_total", "Requests that failed"),
      .refused = counter("falaj_serving_unserved_total", "Failed requests: overloaded, past the deadline, or no replica"),
      .faults = counter("falaj_serving_faults_total", "Failed requests: a fault of ours"),
      .retries = counter("falaj_serving_retries_total", "Requests asked of another replica"),
      .latency = histogram("falaj_serving_request_seconds", "Time from router to answer"),
      .queue = histogram("falaj_serving_queue_seconds", "Of this, in a replica's queue"),
      .compute = histogram("falaj_serving_infer_seconds", "Of this, in the model"),
      .rows = counter("falaj_serving_inferences_total", "Rows answered"),
      .unknown = counter("falaj_serving_unknown_values_total", "Categories in requests that the model does not know, taken as missing"),
      .runs = gauge("falaj_serving_executions", "Runs of the model for these rows, by each request's share of its batch"),
      .last = gauge("falaj_serving_last_seconds", "When a request was last answered, in seconds since 1970"),
      .version = gauge("falaj_serving_version", "Version of the model that answered last"),
      .pending = gauge("falaj_serving_pending", "Requests under way"),
  };
}

void count_failure(const Traffic& traffic, ErrorCode code) {
  traffic.failed->add();
  switch (code) {
    case ErrorCode::overloaded:
    case ErrorCode::deadline:
    case ErrorCode::unreachable:
    case ErrorCode::gone:
      traffic.refused->add();
      break;
    case ErrorCode::failed:
    case ErrorCode::corrupt:
    case ErrorCode::no_space:
      traffic.faults->add();
      break;
    default:
      break;  // the request's own fault
  }
}

}  // namespace falaj::serving
