#include "runtime/base/thread.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <vector>

namespace falaj {
namespace {

using namespace std::chrono_literals;

TEST(Thread, JoinsWhenDestroyed) {
  std::atomic<int> ran{0};
  {
    const Thread thread("test", [&ran] { ++ran; });
  }
  EXPECT_EQ(ran.load(), 1);
}

TEST(BlockingPool, RunsEverythingThatItTook) {
  std::atomic<int> ran{0};
  int taken = 0;
  {
    BlockingPool pool("test", 3, 1000);
    for (int i = 0; i < 500; ++i) taken += pool.submit([&ran] { ++ran; }) ? 1 : 0;
  }
  EXPECT_EQ(taken, 500);
  EXPECT_EQ(ran.load(), 500);
}

TEST(BlockingPool, RefusesBeyondItsBound) {
  std::promise<void> started;
  std::promise<void> go;
  auto wait = go.get_future().share();
  BlockingPool pool("test", 1, 2);
  ASSERT_TRUE(pool.submit([&started, wait] {
    started.set_value();
    wait.wait();
  }));
  started.get_future().wait();
  EXPECT_TRUE(pool.submit([] {}));
  EXPECT_TRUE(pool.submit([] {}));
  EXPECT_FALSE(pool.submit([] {}));
  go.set_value();
  pool.stop();
  EXPECT_FALSE(pool.submit([] {}));
}

TEST(TimerThread, CallsInOrderOfTime) {
  const SystemClock clock;
  TimerThread timers(clock);
  std::promise<std::vector<int>> done;
  std::vector<int> order;
  const auto start = clock.now();
  timers.at(start + 30ms, [&] {
    order.push_back(3);
    done.set_value(order);
  });
  timers.at(start + 10ms, [&] { order.push_back(1); });
  timers.at(start + 20ms, [&] { order.push_back(2); });
  const auto cancelled = timers.at(start + 15ms, [&] { order.push_back(9); });
  timers.cancel(cancelled);
  timers.cancel(cancelled);
  auto result = done.get_future();
  ASSERT_EQ(result.wait_for(10s), std::future_status::ready);
  EXPECT_EQ(result.get(), (std::vector<int>{1, 2, 3}));
  EXPECT_GE(clock.now() - start, 30ms);
}

TEST(TimerThread, StopDropsWhatIsNotDue) {
  const SystemClock clock;
  std::atomic<bool> ran{false};
  TimerThread timers(clock);
  timers.at(clock.now() + 1h, [&ran] { ran = true; });
  timers.stop();
  EXPECT_FALSE(ran.load());
}

}  // namespace
}  // namespace falaj
