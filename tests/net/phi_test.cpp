#include "runtime/net/phi.hpp"

#include <gtest/gtest.h>

#include "runtime/base/random.hpp"

namespace falaj::net {
namespace {

using namespace std::chrono_literals;

constexpr PhiDetector::Options kOptions{100ms, 100ms, 900ms, 10.0};

TEST(Phi, GrowsWithSilence) {
  Instant now{};
  PhiDetector detector(kOptions, now);
  for (int i = 0; i < 100; ++i) detector.heartbeat(now += 100ms);
  double last = detector.phi(now);
  EXPECT_LT(last, 0.2);
  for (int ms = 50; ms <= 900; ms += 50) {
    const double phi = detector.phi(now + ms * 1ms);
    EXPECT_GT(phi, last);
    last = phi;
  }
  EXPECT_FALSE(detector.suspect(now + 600ms));
  EXPECT_TRUE(detector.suspect(now + 800ms));
}

TEST(Phi, TakesAnUnpunctualPeerForAliveButNotForEver) {
  Instant now{};
  Random random(1);
  PhiDetector detector(kOptions, now);
  for (int i = 0; i < 200; ++i) {
    const auto gap = std::chrono::milliseconds(20 + random.below(560));
    EXPECT_FALSE(detector.suspect(now + gap)) << i;
    detector.heartbeat(now += gap);
  }
  EXPECT_LT(detector.phi(now + 800ms), 10.0);
  EXPECT_TRUE(detector.suspect(now + 900ms));
}

TEST(Phi, ForgivesOwnStandstill) {
  Instant now{};
  PhiDetector detector(kOptions, now);
  for (int i = 0; i < 20; ++i) detector.heartbeat(now += 100ms);
  now += 5s;
  EXPECT_TRUE(detector.suspect(now));
  detector.forgive(4900ms);
  EXPECT_FALSE(detector.suspect(now));
  EXPECT_TRUE(detector.suspect(now + 900ms));
}

TEST(Phi, IsFiniteFarOut) {
  PhiDetector detector({100ms, 1ms, 1h, 10.0}, Instant{});
  EXPECT_LE(detector.phi(Instant{} + 100h), 300.0);
  EXPECT_GE(detector.phi(Instant{}), 0.0);
}

}  // namespace
}  // namespace falaj::net
