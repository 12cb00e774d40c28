#include "runtime/base/metrics.hpp"

#include <gtest/gtest.h>

namespace falaj::metrics {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

TEST(Metrics, HandlesAreShared) {
  Registry registry;
  auto& a = registry.counter("falaj_things_total", "things", {{"kind", "a"}});
  auto& same = registry.counter("falaj_things_total", "other words", {{"kind", "a"}});
  auto& other = registry.counter("falaj_things_total", "things", {{"kind", "b"}});
  EXPECT_EQ(&a, &same);
  EXPECT_NE(&a, &other);
  a.add();
  a.add(4);
  EXPECT_EQ(same.value(), 5U);
}

TEST(Metrics, PrometheusText) {
  Registry registry;
  registry.counter("falaj_c_total", "a counter", {{"k", "a\"b\\c\nd"}}).add(3);
  registry.gauge("falaj_g", "a gauge").set(1.5);
  registry.histogram("falaj_h_seconds", "a histogram").record(milliseconds(2));
  const auto text = registry.prometheus();
  EXPECT_NE(text.find("# HELP falaj_c_total a counter\n# TYPE falaj_c_total counter\nfalaj_c_total{k=\"a\\\"b\\\\c\\nd\"} 3\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("# TYPE falaj_g gauge\nfalaj_g 1.5\n"), std::string::npos) << text;
  EXPECT_NE(text.find("# TYPE falaj_h_seconds histogram\n"), std::string::npos);
  EXPECT_NE(text.find("falaj_h_seconds_bucket{le=\"+Inf\"} 1\n"), std::string::npos);
  EXPECT_NE(text.find("falaj_h_seconds_sum 0.002\nfalaj_h_seconds_count 1\n"), std::string::npos) << text;
}

TEST(Metrics, GaugeAdds) {
  Gauge gauge;
  gauge.add(2);
  gauge.add(-0.5);
  EXPECT_EQ(gauge.value(), 1.5);
}

TEST(Metrics, QuantilesAreWithinAnEighth) {
  Histogram histogram;
  EXPECT_EQ(histogram.quantile_seconds(0.5), 0.0);
  for (int us = 1; us <= 10000; ++us) histogram.record(microseconds(us));
  for (const double q : {0.1, 0.5, 0.9, 0.99}) {
    const double exact = q * 10000e-6;
    EXPECT_GE(histogram.quantile_seconds(q), exact * 0.99);
    EXPECT_LE(histogram.quantile_seconds(q), exact * 1.14);
  }
  EXPECT_EQ(histogram.count(), 10000U);
  EXPECT_NEAR(histogram.sum_seconds(), 50.005, 1e-6);
}

TEST(Metrics, HistogramTakesExtremes) {
  Histogram histogram;
  histogram.record(Duration(-5));
  histogram.record(Duration(0));
  histogram.record(std::chrono::hours(24));
  EXPECT_EQ(histogram.count(), 3U);
  EXPECT_LE(histogram.quantile_seconds(0), 3e-6);
  EXPECT_GT(histogram.quantile_seconds(1), 100.0);
}

}  // namespace
}  // namespace falaj::metrics
