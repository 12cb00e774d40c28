// The stream for a seed is part of the contract: simulation digests and data order depend on it.
#include "runtime/base/random.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "runtime/base/clock.hpp"
#include "runtime/base/trace.hpp"

namespace falaj {
namespace {

TEST(Random, PinnedStream) {
  Random random(42);
  // SplitMix64(42) into xoshiro256**, computed independently.
  const std::array<std::uint64_t, 4> expected = {1546998764402558742ULL, 6990951692964543102ULL, 12544586762248559009ULL,
                                                 17057574109182124193ULL};
  for (const auto value : expected) EXPECT_EQ(random.next(), value);
}

TEST(Random, SplitIsIndependentOfUse) {
  const Random root(7);
  Random a = root.split("a");
  Random again = root.split("a");
  Random b = root.split("b");
  const auto first = a.next();
  EXPECT_EQ(first, again.next());
  EXPECT_NE(first, b.next());
}

TEST(Random, BelowIsUniform) {
  Random random(1);
  std::array<int, 10> counts{};
  for (int i = 0; i < 100000; ++i) ++counts[random.below(10)];
  for (const auto n : counts) EXPECT_NEAR(n, 10000, 500);  // five deviations
  EXPECT_EQ(random.below(1), 0U);
  EXPECT_LT(random.below(~0ULL), ~0ULL);
}

TEST(Random, UniformAndNormal) {
  Random random(2);
  double sum = 0;
  double squares = 0;
  constexpr int n = 100000;
  for (int i = 0; i < n; ++i) {
    const double u = random.uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    const double z = random.normal();
    ASSERT_TRUE(std::isfinite(z));
    sum += z;
    squares += z * z;
  }
  EXPECT_NEAR(sum / n, 0.0, 0.02);
  EXPECT_NEAR(squares / n, 1.0, 0.03);
}

TEST(Trace, RoundTripAndChild) {
  Random random(3);
  const auto root = new_trace(random, true);
  ASSERT_TRUE(root.valid());
  EXPECT_EQ(parse_traceparent(traceparent(root)), root);
  const auto child = child_of(root, random);
  EXPECT_EQ(child.trace_low, root.trace_low);
  EXPECT_EQ(child.trace_high, root.trace_high);
  EXPECT_NE(child.span, root.span);
  EXPECT_TRUE(child.sampled);
}

TEST(Trace, ParsesTheStandardsExample) {
  const auto context = parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(context->trace_high, 0x0af7651916cd43ddULL);
  EXPECT_EQ(context->trace_low, 0x8448eb211c80319cULL);
  EXPECT_EQ(context->span, 0xb7ad6b7169203331ULL);
  EXPECT_TRUE(context->sampled);
}

TEST(Trace, RefusesWhatTheStandardForbids) {
  for (const auto* bad :
       {"", "00", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra", "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01"}) {
    EXPECT_FALSE(parse_traceparent(bad).has_value()) << bad;
  }
}

TEST(Clock, ManualMovesOnlyWhenTold) {
  ManualClock clock;
  const auto start = clock.now();
  const auto wall = clock.wall();
  clock.advance(std::chrono::seconds(2));
  EXPECT_EQ(clock.now() - start, std::chrono::seconds(2));
  EXPECT_EQ(clock.wall().unix_ns - wall.unix_ns, 2'000'000'000);
}

TEST(Clock, SystemGoesOn) {
  const SystemClock clock;
  const auto first = clock.now();
  EXPECT_GE(clock.now(), first);
  EXPECT_GT(clock.wall().unix_ns, 1'600'000'000'000'000'000);
}

}  // namespace
}  // namespace falaj
