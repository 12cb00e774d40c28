#include "runtime/base/retry.hpp"

#include <gtest/gtest.h>

namespace falaj {
namespace {

using namespace std::chrono_literals;

TEST(RetryDelay, DoublesToItsBoundWithSomeJitter) {
  Random random(1);
  RetryDelay delay(10ms, 50ms);
  for (const Duration expected : {10ms, 20ms, 40ms, 50ms, 50ms}) {
    const auto next = delay.next(random);
    EXPECT_GE(next, expected);
    EXPECT_LE(next, expected + expected / 4);
  }
  delay.reset();
  EXPECT_LT(delay.next(random), 13ms);
}

}  // namespace
}  // namespace falaj
