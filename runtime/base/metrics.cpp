#include "runtime/base/metrics.hpp"

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>

#include "runtime/base/format.hpp"

namespace falaj::metrics {

void Gauge::add(double by) noexcept {
  double seen = value_.load(std::memory_order_relaxed);
  while (!value_.compare_exchange_weak(seen, seen + by, std::memory_order_relaxed)) {
  }
}

void Histogram::record(Duration value) noexcept {
  const auto ns = static_cast<std::uint64_t>(std::max<Duration::rep>(value.count(), 0));
  const std::uint64_t us = std::max<std::uint64_t>(ns / 1000, 1);
  const int power = std::bit_width(us) - 1;
  int index = kBuckets - 1;
  if (power < kPowers) {
    const std::uint64_t step = power >= 3 ? (us >> (power - 3)) & 7 : (us << (3 - power)) & 7;
    index = power * kSteps + static_cast<int>(step);
  }
  buckets_[static_cast<std::size_t>(index)].fetch_add(1, std::memory_order_relaxed);
  sum_ns_.fetch_add(ns, std::memory_order_relaxed);
  count_.fetch_add(1, std::memory_order_relaxed);
}

double Histogram::sum_seconds() const noexcept { return static_cast<double>(sum_ns_.load(std::memory_order_relaxed)) * 1e-9; }

double Histogram::upper_seconds(int bucket) noexcept {
  const double base = static_cast<double>(1ULL << (bucket / kSteps));
  return base * (1.0 + (bucket % kSteps + 1) / static_cast<double>(kSteps)) * 1e-6;
}

double Histogram::quantile_seconds(double q) const noexcept {
  const std::uint64_t total = count();
  if (total == 0) return 0;
  const auto target = static_cast<std::uint64_t>(q * static_cast<double>(total - 1)) + 1;
  std::uint64_t seen = 0;
  for (int i = 0; i < kBuckets; ++i) {
    seen += bucket(i);
    if (seen >= target) return upper_seconds(i);
  }
  return upper_seconds(kBuckets - 1);
}

struct Registry::State {
  template <class T>
  using Family = std::map<Labels, std::unique_ptr<T>>;
  struct Entry {
    std::string help;
    Family<Counter> counters;
    Family<Gauge> gauges;
    Family<Histogram> histograms;
  };
  mutable std::mutex mutex;
  std::map<std::string, Entry, std::less<>> entries;

  template <class T>
  T& handle(Family<T> Entry::* family, std::string_view name, std::string_view help, const Labels& labels) {
    const std::scoped_lock lock(mutex);
    auto [entry, fresh] = entries.try_emplace(std::string(name));
    if (fresh) entry->second.help = help;
    auto& slot = (entry->second.*family)[labels];
    if (!slot) slot = std::make_unique<T>();
    return *slot;
  }
};

Registry::Registry() : state_(std::make_unique<State>()) {}
Registry::~Registry() = default;

Counter& Registry::counter(std::string_view name, std::string_view help, const Labels& labels) {
  return state_->handle(&State::Entry::counters, name, help, labels);
}
Gauge& Registry::gauge(std::string_view name, std::string_view help, const Labels& labels) {
  return state_->handle(&State::Entry::gauges, name, help, labels);
}
Histogram& Registry::histogram(std::string_view name, std::string_view help, const Labels& labels) {
  return state_->handle(&State::Entry::histograms, name, help, labels);
}

namespace {

std::string escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out.push_back('\\');
    if (c == '\n') {
      out += "\\n";
    } else {
      out.push_back(c);
    }
  }
  return out;
}

std::string braces(const Labels& labels, std::string_view extra = {}) {
  std::string out;
  for (const auto& [name, value] : labels) out += format("{}{}=\"{}\"", out.empty() ? "" : ",", name, escape(value));
  if (!extra.empty()) out += (out.empty() ? "" : ",") + std::string(extra);
  return out.empty() ? out : "{" + out + "}";
}

}  // namespace

std::string Registry::prometheus() const {
  const std::scoped_lock lock(state_->mutex);
  std::string out;
  for (const auto& [name, entry] : state_->entries) {
    const auto* type = !entry.histograms.empty() ? "histogram" : !entry.counters.empty() ? "counter" : "gauge";
    out += format("# HELP {} {}\n# TYPE {} {}\n", name, entry.help, name, type);
    for (const auto& [labels, value] : entry.counters) out += format("{}{} {}\n", name, braces(labels), value->value());
    for (const auto& [labels, value] : entry.gauges) out += format("{}{} {}\n", name, braces(labels), value->value());
    for (const auto& [labels, value] : entry.histograms) {
      std::uint64_t seen = 0;
      for (int i = 0; i < Histogram::kBuckets; ++i) {
        seen += value->bucket(i);
        if (i % Histogram::kSteps == Histogram::kSteps - 1) {
          out += format("{}_bucket{} {}\n", name, braces(labels, format("le=\"{:g}\"", Histogram::upper_seconds(i))), seen);
        }
      }
      out += format("{}_bucket{} {}\n", name, braces(labels, "le=\"+Inf\""), seen);
      out += format("{}_sum{} {:.9g}\n{}_count{} {}\n", name, braces(labels), value->sum_seconds(), name, braces(labels), seen);
    }
  }
  return out;
}

}  // namespace falaj::metrics
