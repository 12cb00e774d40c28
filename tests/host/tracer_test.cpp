// Recording what actors handle: bounded by count and by time, each span given once.
#include "runtime/host/tracer.hpp"

#include <gtest/gtest.h>

namespace falaj {
namespace {

using namespace std::chrono_literals;

TracedSpan at(Duration when) {
  TracedSpan span;
  span.begin = Instant(when);
  return span;
}

TEST(Tracer, RecordsOnlyBetweenStartAndStop) {
  Tracer tracer;
  tracer.record(at(1s));
  EXPECT_FALSE(tracer.on());
  tracer.start(Instant(1s), 10s, 100);
  EXPECT_TRUE(tracer.on());
  tracer.record(at(2s));
  tracer.stop();
  tracer.record(at(3s));
  const auto spans = tracer.take(10);
  ASSERT_EQ(spans.size(), 1U);
  EXPECT_EQ(spans[0].begin, Instant(2s));
}

TEST(Tracer, EndsByItselfAfterItsTime) {
  Tracer tracer;
  tracer.start(Instant(1s), 10s, 100);
  tracer.record(at(10s));
  tracer.record(at(11s));
  EXPECT_FALSE(tracer.on());
  EXPECT_EQ(tracer.take(10).size(), 1U);
}

TEST(Tracer, CountsWhatHasNoRoomAndGivesEachSpanOnce) {
  Tracer tracer;
  tracer.start(Instant(0s), 10s, 3);
  for (int i = 0; i < 5; ++i) tracer.record(at(std::chrono::seconds(i)));
  EXPECT_EQ(tracer.dropped(), 2U);
  EXPECT_EQ(tracer.take(2).size(), 2U);
  EXPECT_EQ(tracer.left(), 1U);
  EXPECT_EQ(tracer.take(2).size(), 1U);
  EXPECT_EQ(tracer.take(2).size(), 0U);
  tracer.start(Instant(0s), 10s, 3);
  EXPECT_EQ(tracer.dropped(), 0U);
}

TEST(Tracer, NobodyCanAskForMoreThanItHasRoomFor) {
  Tracer tracer;
  tracer.start(Instant(0s), 24h, 1'000'000'000);
  tracer.record(at(Tracer::kLongest));
  EXPECT_FALSE(tracer.on());
}

}  // namespace
}  // namespace falaj
