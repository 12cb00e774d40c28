#include "nodes/launcher.hpp"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <map>
#include <mutex>

#include "actors/governance/policy.hpp"
#include "messages/control.capnp.h"
#include "nodes/client.hpp"
#include "nodes/node.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/base/process.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/config.hpp"

namespace falaj::nodes {
namespace {

using messages::Role;

// A process of this directory's launcher? Its command line says so; the pid alone may have been reused.
bool is_launcher(pid_t pid, const ClusterDir& dir) {
  if (pid <= 0) return false;
  const auto text = net::read_text_file(format("/proc/{}/cmdline", pid));
  if (!text) return false;
  return text->find(std::string("\0launcher\0", 10)) != std::string::npos &&
         text->find(fs::absolute(dir.root).string()) != std::string::npos;
}

std::vector<std::string> node_names(const ClusterDir& dir) {
  std::vector<std::string> names;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(dir.root / "nodes", none)) {
    if (fs::exists(NodeDir{entry.path()}.config())) names.push_back(entry.path().filename());
  }
  std::ranges::sort(names);
  return names;
}

constexpr Duration kTryAgain = std::chrono::seconds(1);

class Launcher {
 public:
  explicit Launcher(ClusterDir dir) : dir_(std::move(dir)), timers_(clock_) {}

  Status start() {
    for (const auto& name : node_names(dir_)) {
      FALAJ_ASSIGN(auto config, read_config(dir_.node(name)));
      nodes_.emplace(name, Entry{std::move(config), 0, 0, {}});
    }
    const std::scoped_lock lock(mutex_);
    for (auto& [name, entry] : nodes_) FALAJ_TRY(start_node(name, entry));
    return write();
  }

  void stop() {
    {
      const std::scoped_lock lock(mutex_);
      stopping_ = true;
    }
    timers_.stop();
    processes_.stop_all(clock_, std::chrono::seconds(12));
    std::error_code none;
    fs::remove(dir_.file(), none);
  }

 private:
  struct Entry {
    View<messages::NodeConfig> config;
    pid_t pid = 0;
    std::uint32_t restarts = 0;
    Instant started;
  };

  Status start_node(const std::string& name, Entry& entry) {  // mutex held
    ProcessSpec spec;
    spec.arguments = {self_executable(), "node", "--dir", dir_.node(name).root.string(), "--by-launcher"};
    spec.log_file = dir_.node(name).log().string();
    FALAJ_ASSIGN(entry.pid, processes_.start(spec, [this, name](const ProcessExit& exit) { ended(name, exit); }));
    entry.started = clock_.now();
    return {};
  }

  void ended(const std::string& name, const ProcessExit& exit) {
    const std::scoped_lock lock(mutex_);
    auto& entry = nodes_.at(name);
    entry.pid = 0;
    if (stopping_) return;
    log::warn("launcher", "node ended; starting it again", {{"node", name}, {"how", describe(exit)}});
    // At once after a long life, ever later after short ones.
    const bool quick = clock_.now() - entry.started < std::chrono::seconds(2);
    quick_deaths_[name] = quick ? std::min(quick_deaths_[name] + 1, 6) : 0;
    const Duration wait = quick ? std::chrono::milliseconds(50) * (1 << quick_deaths_[name]) : Duration::zero();
    timers_.at(clock_.now() + wait, [this, name] { restart(name); });
  }

  // What a full disk or a full process table forbids now is tried again: it has room one day.
  void restart(const std::string& name) {
    const std::scoped_lock lock(mutex_);
    if (stopping_) return;
    auto& entry = nodes_.at(name);
    if (auto done = start_node(name, entry); !done) {
      log::error("launcher", "cannot start node; trying again", {{"node", name}, {"reason", done.error().message}});
      timers_.at(clock_.now() + kTryAgain, [this, name] { restart(name); });
      return;
    }
    ++entry.restarts;
    publish();
  }

  void publish() {  // mutex held
    auto done = write();
    if (done) return;
    log::error("launcher", "cannot write cluster.json; trying again", {{"reason", done.error().message}});
    timers_.at(clock_.now() + kTryAgain, [this] {
      const std::scoped_lock lock(mutex_);
      if (!stopping_) publish();
    });
  }

  Status write() {  // mutex held
    const auto message = Message::build<messages::ClusterFile>(
        [this](messages::ClusterFile::Builder b) {
          b.setLauncher(static_cast<std::uint32_t>(getpid()));
          auto list = b.initNodes(static_cast<unsigned>(nodes_.size()));
          unsigned i = 0;
          for (const auto& [name, entry] : nodes_) {
            auto node = list[i++];
            node.setName(name);
            node.setRoles(entry.config->getRoles());
            node.setPid(static_cast<std::uint32_t>(entry.pid));
            node.setListen(entry.config->getListen());
            node.setRestarts(entry.restarts);
            if (text(entry.config->getControlNode()) == name) {
              b.setCluster(entry.config->getCluster());
              b.setControlNode(name);
              b.setControlAddress(entry.config->getListen());
            }
            if (!text(entry.config->getHttp()).empty()) b.setHttp(entry.config->getHttp());
            if (!text(entry.config->getHttps()).empty()) b.setHttps(entry.config->getHttps());
          }
        },
        512);
    return write_cluster_file(dir_, *message.view<messages::ClusterFile>());
  }

  ClusterDir dir_;
  SystemClock clock_;
  std::mutex mutex_;
  bool stopping_ = false;
  std::map<std::string, Entry> nodes_;
  std::map<std::string, int> quick_deaths_;
  TimerThread timers_;
  ProcessTable processes_;
};

// The launcher as a process of its own session, so that it outlives this one and its terminal.
Status start_in_background(const ClusterDir& dir) {
  const std::string self = self_executable();
  const std::string root = fs::absolute(dir.root).string();
  const std::string log = (dir.root / "launcher.log").string();
  const pid_t pid = fork();
  if (pid < 0) return failed("cannot start the launcher: no process");
  if (pid == 0) {
    setsid();
    if (fork() != 0) _exit(0);
    const int out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    const int in = open("/dev/null", O_RDONLY);
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    close_range(3, ~0U, 0);
    execl(self.c_str(), self.c_str(), "launcher", "--dir", root.c_str(), nullptr);
    _exit(127);
  }
  waitpid(pid, nullptr, 0);
  return {};
}

// Until `ready` says yes, looking every 20 ms.
template <class F>
bool wait_for(const Clock& clock, Duration timeout, F ready) {
  std::mutex mutex;
  std::condition_variable never;
  std::unique_lock lock(mutex);
  const auto end = clock.now() + timeout;
  while (!ready()) {
    if (clock.now() >= end) return false;
    never.wait_for(lock, std::chrono::milliseconds(20), [] { return false; });
  }
  return true;
}

std::string last_lines(const fs::path& file) {
  const auto text = net::read_text_file(file, 64U << 20);
  if (!text) return {};
  auto from = text->size();
  for (int lines = 0; from > 0 && lines < 4; --from) {
    if ((*text)[from - 1] == '\n') ++lines;
  }
  return text->substr(from);
}

Status wait_registered(const ClusterDir& dir, const Clock& clock, Duration timeout) {
  const auto names = node_names(dir);
  std::string missing;
  std::unique_ptr<Client> client;
  const bool good = wait_for(clock, timeout, [&] {
    if (!client) {
      if (!fs::exists(dir.node("control").root / "ready") || !fs::exists(dir.file())) return false;
      ClientOptions options;
      options.dir = dir;
      options.connect_timeout = std::chrono::seconds(1);
      auto connected = Client::connect(options);
      if (!connected) return false;
      client = std::move(connected).value();
    }
    const auto status = client->ask<messages::ClusterStatus>("control/membership", Message::build<messages::GetStatus>());
    if (!status) return false;
    missing.clear();
    for (const auto& name : names) {
      bool found = false;
      for (const auto node : (*status)->getView().getNodes()) found = found || (node.getUp() && text(node.getName()) == name);
      if (!found) missing = name;
    }
    return missing.empty();
  });
  if (good) return {};
  const auto who = missing.empty() ? std::string("control") : missing;
  return failed(format("node {} did not come up; its log ends:\n{}", who, last_lines(dir.node(who).log())));
}

}  // namespace

Result<std::vector<NodePlan>> local_plan() {
  std::vector<NodePlan> plan = {
      {"control", {Role::CONTROL, Role::GATEWAY}},
      {"compute-1", {Role::COMPUTE}},
      {"compute-2", {Role::COMPUTE}},
      {"features-1", {Role::FEATURES}},
      {"features-2", {Role::FEATURES}},
      {"serving-1", {Role::SERVING}},
      {"serving-2", {Role::SERVING}},
  };
  FALAJ_ASSIGN(const auto ports, free_ports(plan.size() + 2));
  for (std::size_t i = 0; i < plan.size(); ++i) {
    plan[i].listen = format("127.0.0.1:{}", ports[i]);
    if (i > 0) plan[i].control_address = plan[0].listen;
  }
  plan[0].http = format("127.0.0.1:{}", ports[plan.size()]);
  plan[0].https = format("127.0.0.1:{}", ports[plan.size() + 1]);
  return plan;
}

namespace {

// Rights are said once, in the cluster's directory: its nodes go by copies.
Status hand_out_rights(const ClusterDir& dir) {
  FALAJ_TRY(governance::Rights::load(dir.rights().string()));
  FALAJ_ASSIGN(const auto rights, config::read_file(dir.rights()));
  for (const auto& name : node_names(dir)) {
    const auto copy = dir.node(name).rights();
    const auto held = config::read_file(copy);
    if (!held || *held != rights) FALAJ_TRY(net::write_private_file(copy, rights));
  }
  return {};
}

}  // namespace

Status up(const ClusterDir& dir, const std::string& cluster, const Clock& clock, Duration timeout) {
  if (fs::exists(dir.file())) {
    const auto file = read_cluster_file(dir);
    if (file && is_launcher(static_cast<pid_t>((*file)->getLauncher()), dir)) {
      return error(ErrorCode::conflict,
                   format("a cluster runs from {} already; `falaj down --dir {}` ends it", dir.root.string(), dir.root.string()));
    }
  }
  if (!dir.exists()) FALAJ_TRY(init_cluster(dir, cluster, clock));
  if (node_names(dir).empty()) {
    FALAJ_ASSIGN(const auto plan, local_plan());
    for (const auto& node : plan) FALAJ_TRY(add_node(dir, node, clock));
  }
  FALAJ_TRY(hand_out_rights(dir));
  std::error_code none;
  fs::remove(dir.file(), none);
  for (const auto& name : node_names(dir)) fs::remove(dir.node(name).root / "ready", none);
  FALAJ_TRY(start_in_background(dir));
  auto done = wait_registered(dir, clock, timeout);
  if (!done) static_cast<void>(down(dir, clock, std::chrono::seconds(15)));  // the first error is the one to tell
  return done;
}

Status down(const ClusterDir& dir, const Clock& clock, Duration timeout) {
  FALAJ_ASSIGN(const auto file, read_cluster_file(dir));
  const auto pid = static_cast<pid_t>(file->getLauncher());
  if (pid == 0) {
    return error(ErrorCode::conflict,
                 format("no launcher runs {}: its control node was started by hand (pid {}); end each node with SIGTERM", dir.root.string(),
                        file->getNodes().size() > 0 ? file->getNodes()[0].getPid() : 0));
  }
  if (!is_launcher(pid, dir)) {
    std::error_code none;
    fs::remove(dir.file(), none);
    return error(ErrorCode::not_found, format("no cluster runs from {}", dir.root.string()));
  }
  kill(pid, SIGTERM);
  if (!wait_for(clock, timeout, [&] { return !is_launcher(pid, dir); })) return failed(format("the launcher (pid {}) does not end", pid));
  return {};
}

int run_launcher(const ClusterDir& dir) {
  Launcher launcher(dir);
  if (auto done = launcher.start(); !done) {
    log::error("launcher", "cannot start", {{"reason", to_string(done.error())}});
    launcher.stop();
    return 1;
  }
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT}) sigaddset(&set, number);
  int number = 0;
  sigwait(&set, &number);
  launcher.stop();
  return 0;
}

}  // namespace falaj::nodes
