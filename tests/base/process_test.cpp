#include "runtime/base/process.hpp"

#include <gtest/gtest.h>

#include <csignal>
#include <future>

namespace falaj {
namespace {

using namespace std::chrono_literals;

ProcessSpec shell(const std::string& script) { return {{"/bin/sh", "-c", script}, {}, true}; }

bool wait_until_none_runs(const ProcessTable& table) {
  const SystemClock clock;
  for (const auto end = clock.now() + 20s; clock.now() < end;) {
    if (table.running().empty()) return true;
  }
  return false;
}

TEST(ProcessTable, TellsHowEachEnded) {
  std::promise<ProcessExit> left;
  std::promise<ProcessExit> killed;
  ProcessTable table;
  ASSERT_TRUE(table.start(shell("exit 3"), [&](ProcessExit exit) { left.set_value(exit); }));
  const auto pid = table.start(shell("exec sleep 100"), [&](ProcessExit exit) { killed.set_value(exit); });
  ASSERT_TRUE(pid);
  EXPECT_EQ(left.get_future().get().code, 3);
  table.signal(*pid, SIGTERM);
  const auto how = killed.get_future().get();
  EXPECT_EQ(how.code, -1);
  EXPECT_EQ(how.signal, SIGTERM);
  EXPECT_TRUE(wait_until_none_runs(table));
}

// A launcher starts one again while the news of another's end waits for the launcher's lock.
TEST(ProcessTable, StartsAChildWhileTheEndOfAnotherIsStillBeingTold) {
  std::mutex held;
  std::promise<void> told;
  ProcessTable table;
  {
    const std::scoped_lock lock(held);
    ASSERT_TRUE(table.start(shell("exit 0"), [&](ProcessExit) {
      const std::scoped_lock wait(held);
      told.set_value();
    }));
    ASSERT_TRUE(wait_until_none_runs(table));
    ASSERT_TRUE(table.start(shell("exit 0"), [](ProcessExit) {}));
  }
  told.get_future().get();
  ASSERT_TRUE(wait_until_none_runs(table));
  ASSERT_TRUE(table.start(shell("exit 0"), [](ProcessExit) {}));
}

TEST(ProcessTable, EndsWhatStillRunsWhenItGoes) {
  std::vector<pid_t> pids;
  {
    ProcessTable table;
    for (int i = 0; i < 4; ++i) pids.push_back(table.start(shell("exec sleep 100"), [](ProcessExit) {}).value());
  }
  for (const auto pid : pids) EXPECT_EQ(kill(pid, 0), -1) << pid;
}

}  // namespace
}  // namespace falaj
