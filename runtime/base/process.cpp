#include "runtime/base/process.hpp"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <fstream>

#include "runtime/base/format.hpp"

namespace falaj {

std::string describe(const ProcessExit& exit) {
  if (exit.signal != 0) return format("ended by signal {} ({})", exit.signal, strsignal(exit.signal));
  return format("ended with status {}", exit.code);
}

std::string self_executable() {
  std::string path(4096, '\0');
  const auto size = readlink("/proc/self/exe", path.data(), path.size());
  path.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
  return path;
}

struct ProcessTable::State {
  struct Child {
    Thread waiter;
    bool ended = false;
    bool told = false;  // on_exit has returned: nothing holds the waiting thread up any more
  };
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::map<pid_t, Child> children;
  bool stopping = false;
};

namespace {

// After fork, in the child: only calls that are safe there.
[[noreturn]] void become(char* const* argv, int log, bool dies_with_parent, pid_t parent) {
  if (dies_with_parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(126);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (log >= 0) {
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
  }
  const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null >= 0) dup2(null, STDIN_FILENO);
  close_range(3, ~0U, 0);
  execv(argv[0], argv);
  _exit(127);
}

}  // namespace

ProcessTable::ProcessTable() : state_(std::make_unique<State>()) {}

ProcessTable::~ProcessTable() {
  std::map<pid_t, State::Child> children;  // joined at the end, without the lock that their threads take
  const std::scoped_lock lock(state_->mutex);
  state_->stopping = true;
  for (const auto& [pid, child] : state_->children) {
    if (!child.ended) kill(pid, SIGKILL);
  }
  children.swap(state_->children);
}

Result<pid_t> ProcessTable::start(const ProcessSpec& spec, std::function<void(ProcessExit)> on_exit) {
  std::vector<char*> argv;
  argv.reserve(spec.arguments.size() + 1);
  for (const auto& argument : spec.arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  int log = -1;
  if (!spec.log_file.empty()) {
    log = open(spec.log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0) return failed(format("{}: cannot be opened for writing: {}", spec.log_file, std::strerror(errno)));
  }
  const std::scoped_lock lock(state_->mutex);
  for (auto it = state_->children.begin(); it != state_->children.end();) {
    it = it->second.told ? state_->children.erase(it) : std::next(it);  // joins: on_exit may wait for a lock that our caller holds
  }
  // The child is forked by the thread that waits for it, because PR_SET_PDEATHSIG looks at the forking thread.
  struct Birth {
    std::mutex mutex;
    std::condition_variable born;
    pid_t pid = 0;
  };
  const auto birth = std::make_shared<Birth>();
  auto* state = state_.get();
  Thread waiter("wait", [birth, state, argv = argv.data(), log, dies = spec.dies_with_parent, on_exit = std::move(on_exit)] {
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid == 0) become(argv, log, dies, parent);
    {
      const std::scoped_lock guard(birth->mutex);
      birth->pid = pid;
    }
    birth->born.notify_one();
    if (pid < 0) return;
    siginfo_t info{};
    while (waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) < 0 && errno == EINTR) {
    }
    bool tell = false;
    {
      const std::scoped_lock guard(state->mutex);
      if (const auto found = state->children.find(pid); found != state->children.end()) found->second.ended = true;
      tell = !state->stopping;
    }
    state->changed.notify_all();
    if (tell) on_exit(info.si_code == CLD_EXITED ? ProcessExit{info.si_status, 0} : ProcessExit{-1, info.si_status});
    // Marked before it is reaped, so that nobody signals a recycled pid, and reaped at the end, so that no other child has its pid before.
    const std::scoped_lock guard(state->mutex);
    waitpid(pid, nullptr, 0);
    if (const auto found = state->children.find(pid); found != state->children.end()) found->second.told = true;
  });
  pid_t pid = 0;
  {
    std::unique_lock guard(birth->mutex);
    birth->born.wait(guard, [&] { return birth->pid != 0; });
    pid = birth->pid;
  }
  if (log >= 0) close(log);
  if (pid < 0) return failed(format("cannot start {}: {}", spec.arguments.front(), std::strerror(errno)));
  state_->children[pid] = State::Child{std::move(waiter), false, false};
  return pid;
}

void ProcessTable::signal(pid_t pid, int number) {
  const std::scoped_lock lock(state_->mutex);
  const auto found = state_->children.find(pid);
  if (found != state_->children.end() && !found->second.ended) kill(pid, number);
}

std::vector<pid_t> ProcessTable::running() const {
  const std::scoped_lock lock(state_->mutex);
  std::vector<pid_t> pids;
  for (const auto& [pid, child] : state_->children) {
    if (!child.ended) pids.push_back(pid);
  }
  return pids;
}

void ProcessTable::stop_all(const Clock& clock, Duration grace) {
  std::unique_lock lock(state_->mutex);
  state_->stopping = true;
  const auto all_ended = [this] { return std::ranges::all_of(state_->children, [](const auto& entry) { return entry.second.ended; }); };
  const auto send = [this](int number) {
    for (const auto& [pid, child] : state_->children) {
      if (!child.ended) kill(pid, number);
    }
  };
  send(SIGTERM);
  const auto end = clock.now() + grace;
  if (!state_->changed.wait_for(lock, end - clock.now(), all_ended)) {
    send(SIGKILL);
    state_->changed.wait(lock, all_ended);
  }
}

std::uint64_t resident_bytes(pid_t pid) {
  std::ifstream file(pid == 0 ? "/proc/self/statm" : format("/proc/{}/statm", pid));
  std::uint64_t total = 0;
  std::uint64_t resident = 0;
  file >> total >> resident;
  return resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

std::uint64_t peak_resident_bytes() {  // getrusage counts what the process was before exec, too
  std::ifstream file("/proc/self/status");
  std::string word;
  std::uint64_t kib = 0;
  while (file >> word) {
    if (word == "VmHWM:" && file >> kib) return kib * 1024;
  }
  return 0;
}

}  // namespace falaj
