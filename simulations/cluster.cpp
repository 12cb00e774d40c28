#include "simulations/cluster.hpp"

#include <algorithm>

#include "actors/governance/audit.hpp"
#include "actors/roles.hpp"
#include "actors/training/worker.hpp"
#include "messages/control_internal.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"

namespace falaj::simulations {
namespace {

using messages::Role;
using namespace std::chrono_literals;

constexpr std::string_view kVersion = "simulated";

// One key-encryption key that is never lost: what the keys' file is to a node.
class OneKey final : public storage::KeyProvider {
 public:
  Result<Wrapped> wrap(ByteView secret, ByteView aad) override { return Wrapped{current_kek_id(), storage::aes_seal(key_, aad, secret)}; }
  Result<Bytes> unwrap(const Wrapped& wrapped, ByteView aad) override { return storage::aes_open(key_, aad, wrapped.bytes); }
  [[nodiscard]] std::string current_kek_id() const override { return "sim"; }

 private:
  Bytes key_ = Bytes(storage::kKeyBytes, 7);
};

// Signs whatever it is given: certificates belong to the links, and these are simulated.
class Authority final : public ActorOf<Authority> {
 public:
  static constexpr std::string_view kType = "control/authority";
  static void handlers(Handlers<Authority>& on) { on.message<messages::SignWorker>(&Authority::sign); }

 private:
  void sign(Context&, Msg<messages::SignWorker> m) {
    m.reply(Message::build<messages::Signed>([&](messages::Signed::Builder b) { b.setCertificate(m->getCertificateRequest()); }));
  }
};

ChildSpec authority() {
  ChildSpec spec;
  spec.id = spec.name = "control/authority";
  spec.make = [] { return std::make_unique<Authority>(); };
  return spec;
}

class NoLinks final : public training::WorkerLinks {
 public:
  void connect(const std::string&, const std::string&) override {}
};

std::vector<Role> roles_of(unsigned index, unsigned nodes) {
  std::vector<Role> roles;
  if (index == 0) roles = {Role::CONTROL, Role::GATEWAY};
  if (nodes == 1 || (index == 1 && nodes < 4)) {
    roles.insert(roles.end(), {Role::FEATURES, Role::COMPUTE, Role::SERVING});
    return roles;
  }
  if (index == 0) return roles;
  if (index % 3 == 1) return {Role::FEATURES, Role::COMPUTE};
  if (index % 3 == 2) return {Role::FEATURES, Role::SERVING, Role::GATEWAY};
  return {Role::COMPUTE, Role::SERVING};
}

}  // namespace

// What one boot of a machine makes, in the order of making.
struct Boot {
  std::shared_ptr<storage::SealedKv> spool, control_kv, features_kv;
  std::unique_ptr<storage::ControlStore> control;
  std::shared_ptr<storage::ArtifactStore> artifacts;
  std::shared_ptr<storage::AuditLog> audit;
  std::shared_ptr<storage::FeatureRows> rows;
  cluster::ClusterViewHolder view;
};

struct Cluster::Machine {
  std::string name;
  std::vector<Role> roles;
  storage::MemoryKv spool, control, features;  // the disks
  std::shared_ptr<governance::RefusalQueue> refusals = std::make_shared<governance::RefusalQueue>();
  std::unique_ptr<governance::Policy> policy;
  std::unique_ptr<Workers> workers;
  std::unique_ptr<Boot> boot;
  std::uint64_t boots = 0;
  double slowness = 1;

  [[nodiscard]] std::string volume() const { return "/" + name; }
  [[nodiscard]] bool has(Role role) const { return std::ranges::find(roles, role) != roles.end(); }
};

// Worker processes as nodes of the simulation.
class Cluster::Workers final : public control::WorkerProcesses {
 public:
  Workers(Cluster& cluster, Machine& machine)
      : cluster_(cluster), machine_(machine), random_(cluster.world().random("workers/" + machine.name)) {}

  Result<net::SigningRequest> make_request(std::uint32_t slot) override { return net::SigningRequest{format("request {}", slot), "key"}; }

  Result<pid_t> start(messages::WorkerSpec::Reader spec, std::uint32_t slot, const net::Credentials&,
                      std::function<void(const std::string&)> on_exit) override {
    const auto pid = next_pid_++;
    Process process{.node = {},
                    .boot = machine_.boots,
                    .slot = slot,
                    .job = std::string(text(spec.getJob())),
                    .run = std::string(text(spec.getRun())),
                    .index = spec.getIndex(),
                    .on_exit = std::move(on_exit)};
    processes_.emplace(pid, std::move(process));
    const auto delay = 20ms + std::chrono::milliseconds(random_.below(400));
    auto& world = cluster_.world();
    world.at(world.now() + delay, [this, pid] { run(pid); });
    return pid;
  }
  void end(pid_t pid) override {
    auto& world = cluster_.world();
    world.at(world.now() + 1ms, [this, pid] { stop(pid, "signal 15"); });
  }
  [[nodiscard]] bool runs(pid_t pid) const override { return processes_.contains(pid); }

  void stop(pid_t pid, const std::string& how) {
    const auto found = processes_.find(pid);
    if (found == processes_.end()) return;
    auto process = std::move(found->second);
    processes_.erase(found);
    if (!process.node.empty()) {
      cluster_.world().kill(process.node);
      if (cluster_.on_end) cluster_.on_end(process.node);
    }
    if (process.boot == machine_.boots && cluster_.up(machine_.name)) process.on_exit(how);
  }
  bool stop_node(const std::string& node) {
    for (const auto& [pid, process] : processes_) {
      if (process.node != node) continue;
      stop(pid, "signal 9");
      return true;
    }
    return false;
  }
  // With its machine.
  void drop_all(bool power) {
    for (auto& [pid, process] : processes_) {
      if (process.node.empty()) continue;
      power ? cluster_.world().crash(process.node) : cluster_.world().kill(process.node);
      if (cluster_.on_end) cluster_.on_end(process.node);
    }
    processes_.clear();
  }
  [[nodiscard]] std::vector<std::string> nodes() const {
    std::vector<std::string> out;
    for (const auto& [pid, process] : processes_) {
      if (!process.node.empty()) out.push_back(process.node);
    }
    return out;
  }

 private:
  struct Process {
    std::string node;  // empty: it has not started yet
    std::uint64_t boot = 0;
    std::uint32_t slot = 0;
    std::string job, run;
    std::uint32_t index = 0;
    std::function<void(const std::string&)> on_exit;
  };

  void run(pid_t pid) {
    const auto found = processes_.find(pid);
    if (found == processes_.end()) return;
    auto& process = found->second;
    const auto id = net::SpiffeId::worker(kCluster, machine_.name, process.slot).value();
    process.node = id.link_name();
    auto& world = cluster_.world();
    plans_[process.node] = [this, pid, principal = id.uri()](Host& host) { populate(pid, principal, host); };
    if (started_.insert(process.node).second) {
      HostOptions base;
      base.blocking_threads = 2;
      world.add_node(process.node, [this, node = process.node](Host& host) { plans_.at(node)(host); }, base);
      world.introduce(process.node, id.uri(), true);
    } else {
      world.restart(process.node);
    }
    world.slow(process.node, machine_.slowness);
    cluster_.join_cuts(machine_.name, process.node);
  }

  void populate(pid_t pid, const std::string& principal, Host& host) {
    const auto& process = processes_.at(pid);
    host.set_directory(std::make_shared<const cluster::ControlDirectory>(kControlNode));
    training::WorkerOptions options;
    options.job = process.job;
    options.run = process.run;
    options.index = process.index;
    options.control_node = kControlNode;
    options.pid = static_cast<std::uint32_t>(pid);
    options.principal = principal;
    options.links = &links_;
    options.on_finished = [this, pid] {
      if (cluster_.closing_) return;
      auto& world = cluster_.world();
      world.at(world.now(), [this, pid] { stop(pid, "exit 0"); });
    };
    host.on_fatal([this, pid](const Error&) {
      if (cluster_.closing_) return;
      auto& world = cluster_.world();
      world.at(world.now(), [this, pid] { stop(pid, "exit 3"); });
    });
    host.spawn(training::worker(std::move(options)));
  }

  Cluster& cluster_;
  Machine& machine_;
  Random random_;
  NoLinks links_;
  pid_t next_pid_ = 100;
  std::map<pid_t, Process> processes_;
  std::map<std::string, std::function<void(Host&)>> plans_;
  std::set<std::string> started_;
};

Cluster::Cluster(std::uint64_t seed, unsigned nodes, std::vector<shards::Type> more_types)
    : keys_(std::make_unique<OneKey>()),
      world_(std::make_unique<SimWorld>(seed)),
      sandbox_(*world_),
      crashes_(world_->random("disks")),
      more_types_(std::move(more_types)) {
  for (unsigned i = 0; i < nodes; ++i) {
    const auto name = format("n{}", i);
    names_.push_back(name);
    auto& m = machines_[name];
    m = std::make_unique<Machine>();
    m->name = name;
    m->roles = roles_of(i, nodes);
    m->workers = std::make_unique<Workers>(*this, *m);
  }
}

Cluster::~Cluster() {
  // The world first: its actors use the rest.
  closing_ = true;
  for (auto& [name, m] : machines_) {
    sandbox_.disk.power_off(m->volume());
    // It signs a last time when it is closed, by its node's clock, which goes with the world. There is no disk left to say so on.
    if (m->boot && m->boot->audit) static_cast<void>(m->boot->audit->close());
  }
  world_.reset();
}

bool Cluster::has(const std::string& name, Role role) const { return machine(name).has(role); }

std::vector<std::string> Cluster::with(Role role) const {
  std::vector<std::string> out;
  for (const auto& name : names_) {
    if (has(name, role)) out.push_back(name);
  }
  return out;
}

std::vector<std::string> Cluster::workers(const std::string& name) const {
  if (!name.empty()) return machine(name).workers->nodes();
  std::vector<std::string> out;
  for (const auto& each : names_) std::ranges::copy(machine(each).workers->nodes(), std::back_inserter(out));
  return out;
}

std::vector<std::string> Cluster::nodes_of(const std::string& name) const {
  std::vector<std::string> out;
  if (machines_.contains(name)) out = machine(name).workers->nodes();
  out.push_back(name);
  return out;
}

// A new worker is cut off from whom its machine is, and from nobody else.
void Cluster::join_cuts(const std::string& name, const std::string& worker) {
  for (const auto& other : names_) {
    for (const auto& node : nodes_of(other)) {
      if (node == worker) continue;
      world_->heal(worker, node);
      if (cuts_.contains({name, other})) world_->cut(worker, node);
      if (cuts_.contains({other, name})) world_->cut(node, worker);
    }
  }
}

std::shared_ptr<const cluster::ClusterSnapshot> Cluster::view(const std::string& name) const {
  const auto& m = machine(name);
  return m.boot ? m.boot->view.get() : nullptr;
}

Result<Bytes> Cluster::artifact(const std::string& digest) const {
  const auto& m = machine(std::string(kControlNode));
  if (!m.boot || !m.boot->artifacts) return error(ErrorCode::unreachable, "control is down");
  FALAJ_ASSIGN(const auto id, storage::Digest::from_hex(digest));
  return m.boot->artifacts->read_all(id);
}

std::uint64_t Cluster::spooled(const std::string& name) {
  const auto& m = machine(name);
  if (!m.boot || !m.boot->spool) return 0;
  const auto txn = m.boot->spool->read();
  if (!txn.has_value()) return 0;
  const auto count = (*txn)->count(governance::kSpoolTable);
  return count.has_value() ? *count : 0;
}

// ---- boot -----------------------------------------------------------------------------------------------------------------------

void Cluster::start_all() {
  for (const auto& name : names_) {
    auto& m = machine(name);
    m.policy = std::make_unique<governance::Policy>(governance::PolicyOptions{
        std::string(kCluster), governance::Rights::parse(governance::default_rights_toml(), "rights.toml").value(), &clock_, m.refusals});
    HostOptions base;
    base.authorizer = m.policy.get();
    world_->add_node(name, [this, &m](Host& host) { begin(m, host); }, base);
  }
}

void Cluster::begin(Machine& m, Host& host) {
  ++m.boots;
  m.boot = std::make_unique<Boot>();
  if (auto booted = boot(m, host); !booted) {
    world_->at(world_->now(), [this, &m, boots = m.boots, why = booted.error()] {
      if (m.boots != boots) return;
      kill(m.name);
      if (on_boot_failed) on_boot_failed(m.name, why);
    });
    return;
  }
  host.on_fatal([this, &m, boots = m.boots](const Error&) {
    if (closing_) return;
    world_->at(world_->now(), [this, &m, boots] {
      if (m.boots == boots) kill(m.name);
    });
  });
  if (on_boot) on_boot(m.name, host);
}

Status Cluster::open_stores(Machine& m, Host& host) {
  auto& b = *m.boot;
  storage::SealedOptions spool_options;
  governance::add_audit_tables(spool_options);
  FALAJ_ASSIGN(b.spool, storage::SealedKv::open(m.spool, "spool", *keys_, std::move(spool_options)));
  if (m.has(Role::CONTROL)) {
    FALAJ_ASSIGN(b.control_kv, storage::SealedKv::open(m.control, "control", *keys_));
    FALAJ_ASSIGN(b.control, storage::open_control_store(*b.control_kv, host.clock()));
    FALAJ_ASSIGN(b.artifacts, storage::ArtifactStore::open(m.volume() + "/artifacts", *keys_, host.clock()));
    FALAJ_ASSIGN(b.audit, storage::AuditLog::open(audit_dir(), *keys_, host.clock()));
  }
  if (m.has(Role::FEATURES)) {
    FALAJ_ASSIGN(b.features_kv, storage::SealedKv::open(m.features, "features", *keys_, storage::FeatureRows::sealing()));
    FALAJ_ASSIGN(b.rows, storage::FeatureRows::open(*b.features_kv, host.clock()));
  }
  return {};
}

Status Cluster::boot(Machine& m, Host& host) {
  FALAJ_TRY(open_stores(m, host));
  auto& b = *m.boot;
  actors::NodeParts parts;
  parts.name = m.name;
  parts.cluster = kCluster;
  parts.control_node = kControlNode;
  parts.address = m.name + ":7000";
  parts.version = kVersion;
  parts.roles = m.roles;
  parts.incarnation = host.incarnation();
  parts.view = &b.view;
  parts.refusals = m.refusals;
  parts.authorizer = m.policy.get();
  parts.spool = b.spool;
  parts.control_kv = b.control_kv;
  parts.control = b.control.get();
  parts.artifacts = b.artifacts;
  parts.audit = b.audit;
  parts.audit_dir = audit_dir();
  parts.keys = keys_.get();
  if (m.has(Role::CONTROL)) parts.authority = authority();
  parts.rows = b.rows;
  parts.workers = m.workers.get();
  parts.more_types = more_types_;
  parts.on_view = [this, &m, &host](const std::shared_ptr<const cluster::ClusterSnapshot>& snapshot) {
    host.set_directory(snapshot);
    if (on_view) on_view(m.name, *snapshot);
  };
  parts.fill_stats = [&m](messages::NodeStats::Builder s) { s.setNode(m.name); };
  return actors::start(host, parts);
}

// ---- faults ---------------------------------------------------------------------------------------------------------------------

void Cluster::end(Machine& m, bool power) {
  if (!up(m.name)) return;
  // Nothing of the process may write any more: its destructors are no part of a crash.
  sandbox_.disk.power_off(m.volume());
  m.workers->drop_all(power);
  power ? world_->crash(m.name) : world_->kill(m.name);
  m.boot.reset();
  static_cast<void>(m.refusals->take_all());
  if (power) {
    for (auto* kv : {&m.spool, &m.control, &m.features}) kv->crash(crashes_);
    sandbox_.disk.power_on(m.volume(), crashes_);
  } else {
    sandbox_.disk.resume(m.volume());
  }
  if (on_end) on_end(m.name);
}

void Cluster::power_off(const std::string& name) { end(machine(name), true); }
void Cluster::kill(const std::string& name) { end(machine(name), false); }

void Cluster::kill_worker(const std::string& worker) {
  for (const auto& name : names_) {
    if (machine(name).workers->stop_node(worker)) return;
  }
}

void Cluster::restart(const std::string& name) {
  if (!up(name)) world_->restart(name);
}

void Cluster::set_full(const std::string& name, bool full) {
  auto& m = machine(name);
  for (auto* kv : {&m.spool, &m.control, &m.features}) kv->set_bytes_max(full ? 0 : ~0ULL);
  sandbox_.disk.set_full(m.volume(), full);
}

void Cluster::cut(const std::string& from, const std::string& to) {
  cuts_.emplace(from, to);
  for (const auto& a : nodes_of(from)) {
    for (const auto& b : nodes_of(to)) world_->cut(a, b);
  }
}

void Cluster::heal(const std::string& a, const std::string& b) {
  cuts_.erase({a, b});
  cuts_.erase({b, a});
  for (const auto& x : nodes_of(a)) {
    for (const auto& y : nodes_of(b)) world_->heal(x, y);
  }
}

void Cluster::clog(const std::string& from, const std::string& to, Instant until) {
  for (const auto& a : nodes_of(from)) {
    for (const auto& b : nodes_of(to)) world_->clog(a, b, until);
  }
}

void Cluster::lag(const std::string& from, const std::string& to, Duration extra) { world_->lag(from, to, extra); }

void Cluster::slow(const std::string& name, double factor) {
  machine(name).slowness = factor;
  for (const auto& node : nodes_of(name)) world_->slow(node, factor);
}

}  // namespace falaj::simulations
