#include "nodes/worker_process.hpp"

#include <unistd.h>

#include <csignal>

#include "actors/training/worker.hpp"
#include "nodes/linked_host.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/cluster/view.hpp"

namespace falaj::nodes {
namespace {

class Dialler final : public training::WorkerLinks {
 public:
  explicit Dialler(net::Links& links) : links_(links) {}
  void connect(const std::string& link_name, const std::string& host_port) override {
    const auto peer = net::parse_peer_address(link_name, host_port);
    if (peer) links_.connect(*peer);
  }

 private:
  net::Links& links_;
};

Result<net::Identity> worker_identity(const NodeDir& dir, std::uint32_t slot) {
  const auto base = dir.workers() / std::to_string(slot);
  FALAJ_ASSIGN(auto identity, net::load_identity(base.string() + ".crt", base.string() + ".key", dir.authority()));
  identity.revocations = dir.revocations();
  return identity;
}

Status serve(const NodeDir& dir, const WorkerPlan& plan) {
  FALAJ_ASSIGN(const auto config, read_config(dir));
  FALAJ_ASSIGN(auto identity, worker_identity(dir, plan.slot));
  FALAJ_ASSIGN(const auto certificate, net::parse_certificate(identity.certificate_pem));
  SystemClock clock;
  HostOptions options;
  options.node_name = certificate.principal.link_name();
  options.threads = 1;
  options.blocking_threads = 2;  // one computes while the other writes a checkpoint
  FALAJ_ASSIGN(auto side, LinkedHost::make(std::string(text(config->getCluster())), std::move(identity), options, clock));
  auto& host = side->host();
  auto& links = side->links();
  host.set_directory(std::make_shared<const cluster::ControlDirectory>(text(config->getControlNode())));
  FALAJ_ASSIGN(const auto listen, parse_host_port("listen", text(config->getListen())));
  FALAJ_ASSIGN(const auto port, links.listen(listen.host, 0));
  // The control node itself may be the parent.
  const auto control_address = text(config->getControlAddress()).empty() ? text(config->getListen()) : text(config->getControlAddress());
  FALAJ_ASSIGN(const auto control, net::parse_peer_address(text(config->getControlNode()), control_address));
  links.connect(control);

  Dialler dialler(links);
  training::WorkerOptions worker;
  worker.job = plan.job;
  worker.run = plan.run;
  worker.index = plan.index;
  worker.control_node = text(config->getControlNode());
  worker.listen = format("{}:{}", listen.host, port);
  worker.pid = static_cast<std::uint32_t>(getpid());
  worker.principal = certificate.principal.uri();
  worker.links = &dialler;
  worker.on_finished = [] { kill(getpid(), SIGTERM); };
  host.on_fatal([](const Error& why) {
    log::error("worker", "the actor tree gave up", {{"reason", to_string(why)}});
    kill(getpid(), SIGTERM);
  });
  host.spawn(training::worker(std::move(worker)));
  log::info("worker", "up", {{"job", plan.job}, {"run", plan.run}, {"index", plan.index}});

  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT}) sigaddset(&set, number);
  int number = 0;
  sigwait(&set, &number);
  side.reset();  // its actors use what is declared after it
  return {};
}

}  // namespace

int run_worker(const NodeDir& dir, const WorkerPlan& plan) {
  const auto done = serve(dir, plan);
  if (done) return 0;
  log::error("worker", "cannot start", {{"reason", to_string(done.error())}});
  return 1;
}

}  // namespace falaj::nodes
