// Counters, gauges and latency histograms of one node, exposed as Prometheus text. Handles are cheap to use from any thread
// (relaxed atomics), are looked up once and stay valid as long as the Registry.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/base/clock.hpp"

namespace falaj::metrics {

class Counter {
 public:
  void add(std::uint64_t by = 1) noexcept { value_.fetch_add(by, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t value() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

class Gauge {
 public:
  void set(double v) noexcept { value_.store(v, std::memory_order_relaxed); }
  void add(double by) noexcept;
  [[nodiscard]] double value() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

// Log-linear buckets (HdrHistogram's idea: Gil Tene), 1 us to 137 s in 8 steps for each power of two: error at most 12.5 %.
class Histogram {
 public:
  void record(Duration value) noexcept;
  [[nodiscard]] std::uint64_t count() const noexcept { return count_.load(std::memory_order_relaxed); }
  [[nodiscard]] double sum_seconds() const noexcept;
  [[nodiscard]] double quantile_seconds(double q) const noexcept;  // 0 when empty

  static constexpr int kSteps = 8;
  static constexpr int kPowers = 27;
  static constexpr int kBuckets = kSteps * kPowers + 1;
  static double upper_seconds(int bucket) noexcept;
  [[nodiscard]] std::uint64_t bucket(int index) const noexcept {
    return buckets_[static_cast<std::size_t>(index)].load(std::memory_order_relaxed);
  }

 private:
  std::array<std::atomic<std::uint64_t>, kBuckets> buckets_{};
  std::atomic<std::uint64_t> count_{0};
  std::atomic<std::uint64_t> sum_ns_{0};
};

using Labels = std::vector<std::pair<std::string, std::string>>;

class Registry {
 public:
  Registry();
  ~Registry();
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  // The same name and labels give the same handle. `help` of the first call wins. Names: falaj_<thing>_<unit>.
  Counter& counter(std::string_view name, std::string_view help, const Labels& labels = {});
  Gauge& gauge(std::string_view name, std::string_view help, const Labels& labels = {});
  Histogram& histogram(std::string_view name, std::string_view help, const Labels& labels = {});

  [[nodiscard]] std::string prometheus() const;  // text format 0.0.4

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace falaj::metrics
