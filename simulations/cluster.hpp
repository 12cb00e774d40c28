// A cluster of simulated machines: the actors of real nodes (actors/roles.hpp) over memory stores, a simulated disk, and SimWorld's
// network and time. A machine keeps its disks through crashes; everything else of it is made anew at each boot, as by a process.
//
// Thread rules: one thread, the one that made it: randomness, files and kernels of that thread are the simulation's meanwhile.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "actors/control/agent.hpp"
#include "actors/governance/policy.hpp"
#include "actors/shards/shards.hpp"
#include "kernels/plan.hpp"
#include "runtime/cluster/view.hpp"
#include "runtime/host/sim_host.hpp"
#include "storage/disk.hpp"
#include "storage/memory_disk.hpp"
#include "storage/memory_kv.hpp"
#include "storage/seal.hpp"

namespace falaj::simulations {

inline constexpr std::string_view kCluster = "sim";
inline constexpr std::string_view kControlNode = "n0";

// A clock-free, entropy-free thread for as long as it lives.
struct Sandbox {
  explicit Sandbox(const SimWorld& world) : entropy(world.random("entropy")), seal(entropy), files(disk) {}
  Random entropy;
  storage::MemoryDisk disk;
  storage::SimulatedEntropy seal;
  storage::DiskScope files;
  kernels::ReferenceKernels kernels;
};

class Cluster {
 public:
  // `more_types`: of actors by key, on each machine, beside those of real nodes.
  Cluster(std::uint64_t seed, unsigned nodes, std::vector<shards::Type> more_types = {});
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  void start_all();  // once, after the hooks were set
  [[nodiscard]] SimWorld& world() { return *world_; }
  [[nodiscard]] const std::vector<std::string>& names() const { return names_; }
  [[nodiscard]] bool up(const std::string& name) const { return world_->running(name); }
  [[nodiscard]] bool has(const std::string& name, messages::Role role) const;
  [[nodiscard]] std::vector<std::string> with(messages::Role role) const;
  // Training workers that run now, of one machine or (empty) of all.
  [[nodiscard]] std::vector<std::string> workers(const std::string& machine = {}) const;
  [[nodiscard]] std::shared_ptr<const cluster::ClusterSnapshot> view(const std::string& name) const;  // null: down, or none yet
  // Its audit log and a key to read it with, for checks.
  [[nodiscard]] std::string audit_dir() const { return "/" + std::string(kControlNode) + "/audit"; }
  [[nodiscard]] storage::KeyProvider& keys() { return *keys_; }
  [[nodiscard]] Result<Bytes> artifact(const std::string& digest) const;  // from the control machine's store
  [[nodiscard]] std::uint64_t spooled(const std::string& name);           // audit entries that wait on this machine

  // -- faults of machines; each leaves the disks as such a fault does
  void power_off(const std::string& name);
  void kill(const std::string& name);  // the process: what the system holds for it stays
  void kill_worker(const std::string& worker);
  void restart(const std::string& name);
  void set_full(const std::string& name, bool full);
  // -- faults of the network between machines: their workers' links are theirs
  void cut(const std::string& from, const std::string& to);
  void heal(const std::string& a, const std::string& b);
  void clog(const std::string& from, const std::string& to, Instant until);
  void lag(const std::string& from, const std::string& to, Duration extra);
  void slow(const std::string& name, double factor);

  // -- for whoever watches
  std::function<void(const std::string& machine, const cluster::ClusterSnapshot&)> on_view;
  std::function<void(const std::string& machine, Host&)> on_boot;  // after its actors were started
  std::function<void(const std::string& node)> on_end;             // a machine or a worker is gone
  std::function<void(const std::string& machine, const Error&)> on_boot_failed;

 private:
  struct Machine;
  class Workers;
  void begin(Machine& machine, Host& host);
  Status boot(Machine& machine, Host& host);
  Status open_stores(Machine& machine, Host& host);
  void end(Machine& machine, bool power);
  void join_cuts(const std::string& machine, const std::string& worker);
  Machine& machine(const std::string& name) const { return *machines_.at(name); }
  std::vector<std::string> nodes_of(const std::string& name) const;  // itself and its workers

  std::vector<std::string> names_;
  std::unique_ptr<storage::KeyProvider> keys_;
  ManualClock clock_;  // of audit entries about refusals
  std::unique_ptr<SimWorld> world_;
  Sandbox sandbox_;
  Random crashes_;
  bool closing_ = false;
  std::map<std::string, std::unique_ptr<Machine>> machines_;
  std::set<std::pair<std::string, std::string>> cuts_;  // between machines, by direction
  const std::vector<shards::Type> more_types_;
};

}  // namespace falaj::simulations
