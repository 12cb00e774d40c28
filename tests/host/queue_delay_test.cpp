// Admission by expected delay, on a queue of one server in virtual time.
#include "runtime/host/queue_delay.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>

namespace falaj {
namespace {

using std::chrono::milliseconds;
constexpr Duration kTime = milliseconds(100);  // that each ask has
constexpr std::size_t kShort = 16;

// Each ask takes a millisecond. What comes is let in as a mailbox does it.
class Server {
 public:
  void offer(Instant now) {
    serve_until(now);
    if (queue_.size() < kShort) {
      delay_.is_short();
    } else if (delay_.too_long(now, now + kTime, milliseconds(queue_.size()))) {
      ++refused;
      return;
    }
    queue_.push_back(now);
  }
  void serve_until(Instant now) {
    while (!queue_.empty()) {
      const Instant end = std::max(free_at_, queue_.front()) + milliseconds(1);
      if (end > now) return;
      longest = std::max(longest, end - queue_.front());
      queue_.pop_front();
      free_at_ = end;
      ++answered;
    }
  }

  std::size_t answered = 0, refused = 0;
  Duration longest{};

 private:
  QueueDelay delay_;
  std::deque<Instant> queue_;
  Instant free_at_{};
};

TEST(QueueDelay, ABurstMayFillTwoThirdsOfItsTime) {
  Server server;
  for (int i = 0; i < 200; ++i) server.offer(Instant{});
  server.serve_until(Instant{} + milliseconds(200));
  EXPECT_EQ(server.answered, 67U);
  EXPECT_EQ(server.longest, milliseconds(67));
}

TEST(QueueDelay, AQueueThatStandsIsHeldToAThirdAndTheServerStaysBusy) {
  Server server;
  Instant now{};
  const auto offer_for = [&](milliseconds span) {
    for (const Instant end = now + span; now < end; now += std::chrono::microseconds(100)) server.offer(now);  // ten times too many
  };
  offer_for(milliseconds(300));
  const auto before = server.answered;
  server.longest = {};
  offer_for(milliseconds(10'000));
  EXPECT_EQ(server.answered - before, 10'000U);
  EXPECT_LE(server.longest, milliseconds(35));
  EXPECT_GE(server.longest, milliseconds(32));
}

TEST(QueueDelay, ABurstAfterAQuietTimeIsABurstAgain) {
  Server server;
  Instant now{};
  for (; now < Instant{} + milliseconds(500); now += std::chrono::microseconds(100)) server.offer(now);
  now += milliseconds(200);
  server.serve_until(now);
  const auto before = server.answered;
  for (int i = 0; i < 200; ++i) server.offer(now);
  server.serve_until(now + milliseconds(200));
  EXPECT_EQ(server.answered - before, 67U);
}

}  // namespace
}  // namespace falaj
