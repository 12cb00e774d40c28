// Child processes: worker processes of a node, nodes of the local launcher. One thread waits for each child.
#pragma once
#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/result.hpp"
#include "runtime/base/thread.hpp"

namespace falaj {

struct ProcessSpec {
  std::vector<std::string> arguments;  // [0]: path of the program
  std::string log_file;                // standard output and error are appended; empty: inherited
  bool dies_with_parent = true;        // SIGKILL when the parent ends, however it ends
};

struct ProcessExit {
  int code = 0;  // exit status; -1: ended by a signal
  int signal = 0;
};

std::string describe(const ProcessExit& exit);

// Thread-safe.
class ProcessTable {
 public:
  ProcessTable();
  ~ProcessTable();  // kills what still runs, and waits for it
  ProcessTable(const ProcessTable&) = delete;
  ProcessTable& operator=(const ProcessTable&) = delete;

  // `on_exit` is called once, on a waiting thread; it must not block and must not call the table.
  Result<pid_t> start(const ProcessSpec& spec, std::function<void(ProcessExit)> on_exit);
  void signal(pid_t pid, int number);  // only a child of this table, and only while it runs
  [[nodiscard]] std::vector<pid_t> running() const;
  // SIGTERM to all, SIGKILL to what is left after `grace`; returns when all have ended.
  void stop_all(const Clock& clock, Duration grace);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string self_executable();                // path of this program
std::uint64_t resident_bytes(pid_t pid = 0);  // memory of a process (0: this one) that is not swapped out; 0 when there is none
std::uint64_t peak_resident_bytes();          // the most that this process ever had

}  // namespace falaj
