// The scheduler's queues: no job is lost or run twice, and no worker sleeps on while there is work.
#include "runtime/host/run_queues.hpp"

#include <gtest/gtest.h>

#include <array>
#include <set>

#include "runtime/base/thread.hpp"
#include "tests/host/fixtures.hpp"

namespace falaj {
namespace {

struct Job {
  std::atomic<int> runs{0};
};

// Workers that count what they take, until each has taken a null's stand-in.
class Crew {
 public:
  explicit Crew(std::size_t workers) {
    queues.open(workers);
    for (std::size_t i = 0; i < workers; ++i) {
      threads_.emplace_back("worker", [this, i] {
        for (;;) {
          auto* job = static_cast<Job*>(queues.take(i));
          if (job == &end_) return;
          job->runs.fetch_add(1, std::memory_order_relaxed);
          if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == wanted_.load(std::memory_order_acquire)) all_done_.open();
        }
      });
    }
  }
  ~Crew() {
    for (std::size_t i = 0; i < threads_.size(); ++i) queues.push(&end_);
    threads_.clear();
  }
  void want(int jobs) { wanted_.store(jobs, std::memory_order_release); }
  bool wait() { return all_done_.wait(); }
  RunQueues queues;

 private:
  Job end_;
  std::atomic<int> done_{0};
  std::atomic<int> wanted_{0};
  test::Gate all_done_;
  std::vector<Thread> threads_;
};

TEST(RunQueues, EachJobIsTakenOnceWhoeverPushesIt) {
  constexpr int kPushers = 3;
  constexpr int kEach = 20'000;
  std::vector<Job> jobs(kPushers * kEach);
  {
    Crew crew(4);
    crew.want(kPushers * kEach);
    std::vector<Thread> pushers;
    for (int p = 0; p < kPushers; ++p) {
      pushers.emplace_back("pusher", [&, p] {
        for (int i = 0; i < kEach; ++i) {
          auto& job = jobs[static_cast<std::size_t>(p * kEach + i)];
          if (i % 3 == 0) {
            crew.queues.push_to(static_cast<std::size_t>(i) % 4, &job);
          } else {
            crew.queues.push(&job);
          }
        }
      });
    }
    EXPECT_TRUE(crew.wait());
  }
  for (const auto& job : jobs) ASSERT_EQ(job.runs.load(), 1);
}

// One job at a time, each pushed when all workers are on their way to sleep: a lost wake-up would show as a wait of many milliseconds,
// and here as a test that does not end in time.
TEST(RunQueues, NoWakeUpIsLost) {
  std::array<Job, 2000> jobs;
  RunQueues queues;
  queues.open(2);
  test::Gate over;
  std::atomic<int> turn{0};
  Job end;
  const auto work = [&](std::size_t self) {
    for (;;) {
      auto* job = static_cast<Job*>(queues.take(self));
      if (job == &end) return;
      job->runs.fetch_add(1);
      const int next = turn.fetch_add(1) + 1;
      if (next == static_cast<int>(jobs.size())) {
        over.open();
      } else {
        queues.push(&jobs[static_cast<std::size_t>(next)]);  // the other one is parked, or just now parking
      }
    }
  };
  {
    Thread a("worker", [&] { work(0); });
    Thread b("worker", [&] { work(1); });
    queues.push(jobs.data());
    EXPECT_TRUE(over.wait());
    queues.push(&end);
    queues.push(&end);
  }
  for (const auto& job : jobs) ASSERT_EQ(job.runs.load(), 1);
}

TEST(RunQueues, OneInFrontOfABusyWorkerIsStolenInTheEnd) {
  RunQueues queues;
  queues.open(2);
  Job job;
  queues.push_front(0, &job);  // wakes nobody; worker 0 is busy and never comes
  EXPECT_EQ(queues.take(1), &job);
}

TEST(RunQueues, WhatWasPutInFrontLastComesFirst) {
  RunQueues queues;
  queues.open(2);
  std::array<Job, 4> jobs;
  queues.push_to(0, jobs.data());
  queues.push_front(0, &jobs[1]);
  queues.push_front(0, &jobs[2]);
  queues.push_back(0, &jobs[3]);
  for (const std::size_t expected : {2, 1, 0, 3}) EXPECT_EQ(queues.take_own(0), &jobs.at(expected));
  EXPECT_EQ(queues.take_own(0), nullptr);
}

// Workers that pass jobs on to themselves while others look for some to steal: none is lost, none is in two hands.
TEST(RunQueues, JobsInFrontAreStolenWholeOrNotAtAll) {
  constexpr std::size_t kWorkers = 3;
  constexpr int kPasses = 20'000;
  RunQueues queues;
  queues.open(kWorkers);
  struct Ball {
    std::atomic<int> holders{0};
    std::atomic<int> passes{0};
  };
  std::array<Ball, 5> balls;
  std::atomic<std::size_t> open{balls.size()};
  std::atomic<int> clashes{0};
  test::Gate over;
  Ball end;
  {
    std::vector<Thread> workers;
    for (std::size_t self = 0; self < kWorkers; ++self) {
      workers.emplace_back("worker", [&, self] {
        for (;;) {
          auto* ball = static_cast<Ball*>(queues.take(self));
          if (ball == &end) return;
          if (ball->holders.fetch_add(1) != 0) ++clashes;
          const int passes = ++ball->passes;
          ball->holders.fetch_sub(1);
          if (passes < kPasses) {
            queues.push_front(self, ball);
          } else if (open.fetch_sub(1) == 1) {
            over.open();
          }
        }
      });
    }
    for (auto& ball : balls) queues.push(&ball);
    EXPECT_TRUE(over.wait());
    for (std::size_t i = 0; i < kWorkers; ++i) queues.push(&end);
  }
  EXPECT_EQ(clashes.load(), 0);
  for (const auto& ball : balls) EXPECT_EQ(ball.passes.load(), kPasses);
}

TEST(RunQueues, UrgentBeforeAllOthersButNotForEver) {
  RunQueues queues;
  queues.open(2);
  std::array<Job, 3> ordinary;
  std::array<Job, 20> urgent;
  for (auto& job : ordinary) queues.push_to(0, &job);
  for (auto& job : urgent) queues.push_to(0, &job, true);
  std::size_t next_urgent = 0;
  std::size_t next_ordinary = 0;
  std::vector<std::size_t> ordinary_at;
  for (std::size_t i = 0; i < ordinary.size() + urgent.size(); ++i) {
    const auto* job = queues.take_own(0);
    if (next_ordinary < ordinary.size() && job == &ordinary.at(next_ordinary)) {
      ordinary_at.push_back(i);
      ++next_ordinary;
    } else {
      ASSERT_EQ(job, &urgent.at(next_urgent++)) << i;
    }
  }
  EXPECT_EQ(queues.take_own(0), nullptr);
  EXPECT_EQ(ordinary_at, (std::vector<std::size_t>{8, 17, 22}));  // after each eight urgent ones, and at the end
}

TEST(RunQueues, AThiefTakesWhatIsUrgentFirst) {
  RunQueues queues;
  queues.open(2);
  std::array<Job, 3> jobs;
  queues.push_to(0, jobs.data());
  queues.push_to(0, &jobs[1], true);
  queues.push_to(0, &jobs[2]);
  EXPECT_EQ(queues.take(1), &jobs[1]);
  EXPECT_EQ(queues.take(1), &jobs[2]);
  EXPECT_EQ(queues.take(1), jobs.data());
}

TEST(RunQueues, TheExpressTakesUrgentJobsAndItsOwnOnly) {
  RunQueues queues;
  queues.open(3, true);
  ASSERT_TRUE(queues.is_express(2));
  ASSERT_FALSE(queues.is_express(1));
  std::array<Job, 6> jobs;
  queues.push_to(0, jobs.data());
  queues.push_to(2, &jobs[1]);     // as the scheduler ends it
  queues.push_front(2, &jobs[2]);  // what its actors have woken is for others
  queues.push_back(2, &jobs[3]);
  queues.push(&jobs[4], true);
  queues.push_to(0, &jobs[5], true);
  EXPECT_EQ(queues.take(2), &jobs[4]);
  EXPECT_EQ(queues.take(2), &jobs[5]);
  EXPECT_EQ(queues.take(2), &jobs[1]);
  EXPECT_EQ(queues.take_own(2), nullptr);
  std::set<const void*> rest;
  for (int i = 0; i < 3; ++i) rest.insert(queues.take(static_cast<std::size_t>(i) % 2));
  EXPECT_EQ(rest, (std::set<const void*>{jobs.data(), &jobs[2], &jobs[3]}));
}

// All ordinary workers hold their threads: what is urgent is done all the same.
TEST(RunQueues, TheExpressGoesOnWhileAllOthersAreBusy) {
  RunQueues queues;
  queues.open(2, true);
  test::Gate held;
  test::Gate let_go;
  test::Gate done;
  Job blocking;
  Job quick;
  Job end;
  const auto work = [&](std::size_t self) {
    for (;;) {
      auto* job = static_cast<Job*>(queues.take(self));
      if (job == &end) return;
      if (job == &blocking) {
        held.open();
        EXPECT_TRUE(let_go.wait());
      } else {
        done.open();
      }
    }
  };
  Thread ordinary("worker", [&] { work(0); });
  Thread express("express", [&] { work(1); });
  queues.push(&blocking);
  ASSERT_TRUE(held.wait());
  queues.push(&quick, true);
  EXPECT_TRUE(done.wait());
  let_go.open();
  queues.push_to(0, &end);
  queues.push_to(1, &end);
}

TEST(RunQueues, FrontBeforeBack) {
  RunQueues queues;
  queues.open(1);
  std::array<Job, 3> jobs;
  queues.push(&jobs[0]);
  queues.push_back(0, &jobs[1]);
  queues.push_front(0, &jobs[2]);
  EXPECT_EQ(queues.take(0), &jobs[2]);
  EXPECT_EQ(queues.take(0), jobs.data());
  EXPECT_EQ(queues.take_own(0), &jobs[1]);
  EXPECT_EQ(queues.take_own(0), nullptr);
}

}  // namespace
}  // namespace falaj
