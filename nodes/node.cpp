#include "nodes/node.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <optional>

#include "actors/control/authority.hpp"
#include "actors/governance/audit.hpp"
#include "actors/governance/policy.hpp"
#include "actors/roles.hpp"
#include "actors/serving/gateway.hpp"
#include "messages/json.hpp"
#include "nodes/stores.hpp"
#include "nodes/version.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/base/process.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/cluster/transport.hpp"
#include "runtime/cluster/view.hpp"
#include "runtime/config.hpp"

namespace falaj::nodes {

using messages::NodeConfig;
using messages::Role;

namespace {

// Workers as child processes of this one.
class ChildWorkers final : public control::WorkerProcesses {
 public:
  ChildWorkers(NodeDir dir, std::string cluster, std::string node)
      : dir_(std::move(dir)), cluster_(std::move(cluster)), node_(std::move(node)) {}
  Result<net::SigningRequest> make_request(std::uint32_t slot) override {
    return net::make_signing_request(net::SpiffeId::worker(cluster_, node_, slot).value());
  }
  Result<pid_t> start(messages::WorkerSpec::Reader spec, std::uint32_t slot, const net::Credentials& credentials,
                      std::function<void(const std::string&)> on_exit) override {
    const auto base = dir_.workers() / std::to_string(slot);
    FALAJ_TRY(net::write_private_file(base.string() + ".crt", credentials.certificate_pem));
    FALAJ_TRY(net::write_private_file(base.string() + ".key", credentials.key_pem));
    ProcessSpec process;
    process.arguments = {self_executable(), "node",
                         "--dir",           dir_.root.string(),
                         "--slot",          std::to_string(slot),
                         "--job",           std::string(text(spec.getJob())),
                         "--run",           std::string(text(spec.getRun())),
                         "--index",         std::to_string(spec.getIndex())};
    process.log_file = base.string() + ".log";
    return processes_.start(process, [on_exit = std::move(on_exit)](const ProcessExit& exit) { on_exit(describe(exit)); });
  }
  void end(pid_t pid) override { processes_.signal(pid, SIGTERM); }
  [[nodiscard]] bool runs(pid_t pid) const override {
    const auto pids = processes_.running();
    return std::ranges::find(pids, pid) != pids.end();
  }
  void stop_all(const Clock& clock, Duration grace) { processes_.stop_all(clock, grace); }

 private:
  const NodeDir dir_;
  const std::string cluster_, node_;
  ProcessTable processes_;
};

}  // namespace

// Declared in the order they are made; destroyed in reverse.
struct Node::Parts {
  NodeDir dir;
  View<NodeConfig> config;
  std::string name;
  SystemClock clock;
  Instant started = clock.now();
  Incarnation incarnation{static_cast<std::uint64_t>(clock.wall().unix_ns)};
  metrics::Registry metrics;
  net::IdentityFiles identity_files;
  net::Identity identity;
  bool cluster_file_is_ours = false;
  std::atomic<int> fatal{0};  // exit code of a node that cannot go on
  std::unique_ptr<storage::FileKeyProvider> keys;
  std::shared_ptr<SealedStore> spool, control_kv, features_kv;
  std::unique_ptr<storage::ControlStore> control;
  std::shared_ptr<storage::ArtifactStore> artifacts;
  std::shared_ptr<storage::AuditLog> audit;
  std::shared_ptr<storage::FeatureRows> rows;
  std::shared_ptr<const net::CertificateAuthority> authority;
  std::shared_ptr<governance::RefusalQueue> refusals = std::make_shared<governance::RefusalQueue>();
  std::unique_ptr<governance::Policy> policy;
  cluster::ClusterViewHolder view;
  ChildWorkers workers;
  std::unique_ptr<Host> host;
  std::unique_ptr<cluster::LinkTransport> transport;
  std::unique_ptr<net::Links> links;
  std::unique_ptr<serving::Gateway> gateway;
  std::string address;  // of the links

  explicit Parts(NodeDir d, View<NodeConfig> c)
      : dir(std::move(d)),
        config(std::move(c)),
        name(text(config->getName())),
        identity_files(dir.certificate(), dir.key(), dir.authority()),
        workers(dir, std::string(text(config->getCluster())), name) {}

  [[nodiscard]] bool has(Role role) const {
    for (const auto r : config->getRoles()) {
      if (r == role) return true;
    }
    return false;
  }

  // A control node lies in its cluster's directory: D/nodes/<name>.
  [[nodiscard]] ClusterDir cluster_dir() const { return {fs::absolute(dir.root).lexically_normal().parent_path().parent_path()}; }
  Result<net::CertificateInfo> check_certificate(const net::Identity& of) const;
  void renew_identity();
  void control_refuses(const net::PeerAddress& peer, const Error& why);
  void give_up(int exit_code);
  Status open_stores();
  Status make_host();
  Status start_actors();
  Status start_gateway();
  Status write_ready_file() const;
  Status write_cluster_file() const;
  void view_changed(const std::shared_ptr<const cluster::ClusterSnapshot>& snapshot);
  void fill_stats(messages::NodeStats::Builder b) const;
};

Result<net::CertificateInfo> Node::Parts::check_certificate(const net::Identity& of) const {
  const auto file = dir.certificate().string();
  auto own = net::parse_certificate(of.certificate_pem);
  if (!own) return within(file, own.error());
  if (own->validity.not_after > clock.wall()) return own;
  return error(ErrorCode::denied, format("{}: this certificate has expired; make a token with `falaj token` and join again", file));
}

// A certificate that was renewed on disk is what this node shows from now on; connections that are there go on.
void Node::Parts::renew_identity() {
  const auto renew = [this]() -> Status {
    FALAJ_ASSIGN(auto fresh, identity_files.load_if_changed());
    if (!fresh.has_value()) return {};
    fresh->revocations = dir.revocations();
    FALAJ_ASSIGN(const auto own, check_certificate(*fresh));
    FALAJ_TRY(links->reload_identity(*fresh));
    if (gateway) FALAJ_TRY(gateway->reload_identity(*fresh));
    log::info("node", "certificate renewed", {{"serial", own.serial}});
    return {};
  };
  if (const auto done = renew(); !done)
    log::warn("node", "the files of this node's certificate have changed, but cannot be used; it goes on with the old ones",
              {{"reason", done.error().message}});
}

// Before this node belonged to the cluster, that control does not know it will not change by waiting. Later it may be a disturbance, or
// somebody else at control's address: the node goes on with what it has.
void Node::Parts::control_refuses(const net::PeerAddress& peer, const Error& why) {
  if (peer.name != text(config->getControlNode()) || why.code != ErrorCode::denied || view.get()) return;
  log::error("node", "control and this node do not accept one another; stopping", {{"reason", why.message}});
  give_up(4);
}

// Wakes run() as a signal does.
void Node::Parts::give_up(int exit_code) {
  int none = 0;
  if (fatal.compare_exchange_strong(none, exit_code)) kill(getpid(), SIGUSR1);
}

Status Node::Parts::open_stores() {
  FALAJ_ASSIGN(keys, storage::FileKeyProvider::open(dir.kek()));
  storage::SealedOptions spool_options;
  spool_options.tables[std::string(governance::kSpoolTable)] = storage::TableOptions{.hash_keys = false, .clear_prefix = 16};
  FALAJ_ASSIGN(spool, SealedStore::open(dir, "spool", *keys, std::move(spool_options)));
  if (has(Role::CONTROL)) {
    FALAJ_ASSIGN(control_kv, SealedStore::open(dir, "control", *keys));
    FALAJ_ASSIGN(control, storage::open_control_store(control_kv->kv(), clock));
    FALAJ_ASSIGN(auto artifact_store, storage::ArtifactStore::open(dir.artifacts(), *keys, clock));
    artifacts = std::move(artifact_store);
    FALAJ_ASSIGN(auto audit_log, storage::AuditLog::open(dir.audit(), *keys, clock));
    audit = std::move(audit_log);
    FALAJ_ASSIGN(auto loaded, net::CertificateAuthority::load(cluster_dir().ca()));
    authority = std::make_shared<const net::CertificateAuthority>(std::move(loaded));
  }
  if (has(Role::FEATURES)) {
    FALAJ_ASSIGN(features_kv, SealedStore::open(dir, "features", *keys, storage::FeatureRows::sealing()));
    FALAJ_ASSIGN(auto opened, storage::FeatureRows::open(features_kv->kv(), clock));
    rows = std::move(opened);
  }
  return {};
}

Status Node::Parts::make_host() {
  FALAJ_ASSIGN(auto rights, governance::Rights::load(dir.rights().string()));
  policy = std::make_unique<governance::Policy>(
      governance::PolicyOptions{std::string(text(config->getCluster())), std::move(rights), &clock, refusals, &metrics});
  HostOptions options;
  options.node_name = name;
  options.incarnation = incarnation;
  options.seed = entropy_seed();
  options.threads = config->getThreads() != 0 ? config->getThreads() : std::clamp<std::size_t>(hardware_threads(), 1, 8);
  options.clock = &clock;
  options.metrics = &metrics;
  options.authorizer = policy.get();
  host = make_caf_host(options);

  transport = std::make_unique<cluster::LinkTransport>(*host);
  net::LinkOptions link_options;
  link_options.cluster = text(config->getCluster());
  link_options.name = name;
  link_options.incarnation = incarnation;
  link_options.identity = identity;
  link_options.seed = entropy_seed();
  FALAJ_ASSIGN(links, net::Links::create(std::move(link_options), clock, metrics, *transport));
  transport->attach(*links);
  host->set_transport(transport.get());
  FALAJ_ASSIGN(const auto listen, parse_host_port("listen", text(config->getListen())));
  FALAJ_ASSIGN(const auto port, links->listen(listen.host, listen.port));
  address = format("{}:{}", listen.host, port);
  if (!has(Role::CONTROL)) {
    transport->on_failed_dial([this](const net::PeerAddress& peer, const Error& why) { control_refuses(peer, why); });
    FALAJ_ASSIGN(const auto control_peer, net::parse_peer_address(text(config->getControlNode()), text(config->getControlAddress())));
    links->connect(control_peer);
  }
  return {};
}

Status Node::Parts::start_actors() {
  actors::NodeParts parts;
  parts.name = name;
  parts.cluster = text(config->getCluster());
  parts.control_node = text(config->getControlNode());
  parts.address = address;
  parts.version = kVersion;
  parts.residency = text(config->getResidency());
  for (const auto role : config->getRoles()) parts.roles.push_back(role);
  parts.incarnation = incarnation;
  parts.cores = static_cast<std::uint32_t>(hardware_threads());
  parts.pid = static_cast<std::uint32_t>(getpid());
  parts.view = &view;
  parts.refusals = refusals;
  parts.authorizer = policy.get();
  parts.spool = as_kv(spool);
  if (has(Role::CONTROL)) {
    parts.control_kv = as_kv(control_kv);
    parts.control = control.get();
    parts.artifacts = artifacts;
    parts.audit = audit;
    parts.audit_dir = dir.audit();
    parts.keys = keys.get();
    FALAJ_ASSIGN(auto rights, config::read_file(dir.rights()));
    parts.authority =
        control::authority({authority, control.get(), name, address, std::string(text(config->getHttps())), std::move(rights)});
  }
  parts.rows = rows;
  parts.workers = &workers;
  parts.on_view = [this](const std::shared_ptr<const cluster::ClusterSnapshot>& snapshot) { view_changed(snapshot); };
  parts.revoke = [list = std::make_shared<net::RevocationList>(dir.revocations())](const std::vector<std::string>& entries) -> Status {
    for (const auto& entry : entries) FALAJ_TRY(list->add(entry, "told by control"));
    return {};
  };
  parts.fill_stats = [this](messages::NodeStats::Builder b) { fill_stats(b); };
  return actors::start(*host, parts);
}

void Node::Parts::view_changed(const std::shared_ptr<const cluster::ClusterSnapshot>& snapshot) {
  host->set_directory(snapshot);
  for (const auto peer : snapshot->view().getNodes()) {
    const auto peer_name = text(peer.getName());
    if (peer_name == name || peer_name == text(config->getControlNode()) || text(peer.getAddress()).empty()) continue;
    const auto where = net::parse_peer_address(peer_name, text(peer.getAddress()));
    // One side dials, so that no pair of connections has to be thrown away.
    if (where && name < peer_name) links->connect(*where);
  }
}

void Node::Parts::fill_stats(messages::NodeStats::Builder b) const {
  const auto actors = host->actors();
  std::uint64_t waiting = 0;
  std::uint64_t handled = 0;
  for (const auto& actor : actors) {
    waiting += actor.mailbox;
    handled += actor.handled;
  }
  b.setNode(name);
  b.setActors(static_cast<std::uint32_t>(actors.size()));
  b.setMailbox(waiting);
  b.setHandled(handled);
  b.setDeadLetters(host->dead_letters().size());
  b.setResidentBytes(resident_bytes());
  b.setUptimeNs(static_cast<std::uint64_t>((clock.now() - started).count()));
  if (gateway) gateway->fill_stats(b);
}

Status Node::Parts::start_gateway() {
  if (!has(Role::GATEWAY)) return {};
  serving::GatewayOptions options;
  options.cluster = text(config->getCluster());
  options.http = text(config->getHttp());
  options.https = text(config->getHttps());
  options.identity = identity;
  options.tokens = dir.tokens().string();
  options.version = kVersion;
  options.host = host.get();
  options.view = &view;
  FALAJ_ASSIGN(gateway, serving::Gateway::start(std::move(options)));
  return {};
}

Status Node::Parts::write_ready_file() const { return net::write_private_file(dir.root / "ready", format("{} {}\n", getpid(), address)); }

// So that commands on this machine find a control node that no launcher started.
Status Node::Parts::write_cluster_file() const {
  const auto message = Message::build<messages::ClusterFile>(
      [this](messages::ClusterFile::Builder b) {
        b.setCluster(config->getCluster());
        b.setControlNode(name);
        b.setControlAddress(address);
        b.setHttp(config->getHttp());
        b.setHttps(config->getHttps());
        auto self = b.initNodes(1)[0];
        self.setName(name);
        self.setRoles(config->getRoles());
        self.setPid(static_cast<std::uint32_t>(getpid()));
        self.setListen(address);
      },
      256);
  return nodes::write_cluster_file(cluster_dir(), *message.view<messages::ClusterFile>());
}

Node::Node(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Node::~Node() {
  auto& p = *parts_;
  if (p.gateway) p.gateway->stop();
  if (p.host) {
    const auto left = p.host->shutdown(limits::kShutdown);
    for (const auto& type : left) log::warn("node", "still alive at the deadline", {{"actor", type}});
  }
  p.workers.stop_all(p.clock, std::chrono::seconds(5));
  if (p.links) p.links->stop();
  std::error_code ignored;
  fs::remove(p.dir.root / "ready", ignored);
  if (p.cluster_file_is_ours) fs::remove(p.cluster_dir().file(), ignored);
}

const std::string& Node::name() const { return parts_->name; }

Result<std::unique_ptr<Node>> Node::start(const NodeDir& dir, bool by_launcher) {
  FALAJ_ASSIGN(auto config, read_config(dir));
  std::unique_ptr<Node> node(new Node(std::make_unique<Parts>(dir, std::move(config))));
  auto& p = *node->parts_;
  FALAJ_ASSIGN(p.identity, p.identity_files.load());
  p.identity.revocations = dir.revocations();
  FALAJ_TRY(p.check_certificate(p.identity));
  FALAJ_TRY(p.open_stores());
  FALAJ_TRY(p.make_host());
  FALAJ_TRY(p.start_actors());
  FALAJ_TRY(p.start_gateway());
  FALAJ_TRY(p.write_ready_file());
  if (!by_launcher && p.has(messages::Role::CONTROL)) {
    FALAJ_TRY(p.write_cluster_file());
    p.cluster_file_is_ours = true;
  }
  log::info("node", "up", {{"address", p.address}, {"pid", static_cast<std::int64_t>(getpid())}, {"version", kVersion}});
  return node;
}

void block_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) sigaddset(&set, number);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

int Node::run() {
  auto& p = *parts_;
  p.host->on_fatal([&p](const Error& why) {
    log::error("node", "the actor tree gave up", {{"reason", to_string(why)}});
    p.give_up(3);
  });
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT, SIGUSR1}) sigaddset(&set, number);
  constexpr timespec kLook{1, 0};
  int number = -1;
  while ((number = sigtimedwait(&set, nullptr, &kLook)) < 0) p.renew_identity();
  log::info("node", "stopping", {{"signal", number}});
  return p.fatal;
}

}  // namespace falaj::nodes
