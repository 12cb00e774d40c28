#include "simulations/members.hpp"

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "actors/control/agent.hpp"
#include "actors/control/membership.hpp"
#include "actors/control/resources.hpp"
#include "actors/control/witness.hpp"
#include "runtime/base/format.hpp"
#include "runtime/cluster/view.hpp"
#include "runtime/host/sim_host.hpp"
#include "storage/memory_kv.hpp"

namespace falaj::simulations {
namespace {

using namespace std::chrono_literals;

struct Node {
  std::string name;
  cluster::ClusterViewHolder view;
};

class Members {
 public:
  explicit Members(const MembersPlan& plan) : plan_(plan), world_(plan.seed), random_(world_.random("members")) {
    world_.options().uneven = 0.5;
    for (unsigned i = 0; i < plan.nodes; ++i) {
      nodes_.push_back(std::make_unique<Node>());
      nodes_.back()->name = format("n{:03}", i);
    }
    world_.watch([this](const SimSeen& seen) {
      if (seen.delivery->from_outside) ++received_[std::string(seen.node)];
    });
  }

  MembersReport run() {
    start();
    MembersReport report;
    const auto begun = world_.now();
    if (!come_to_agree()) {
      report.trouble = "60 s after the start not everybody sees everybody: " + differs();
    } else {
      report.all_here = seconds(world_.now() - begun);
      world_.run_for(3s);  // witnesses have found whom to watch
      report.beats_with = beats_with();
      lose(report);
    }
    report.steps = world_.steps();
    report.digest = world_.digest();
    return report;
  }

 private:
  static double seconds(Duration d) { return std::chrono::duration<double>(d).count(); }
  [[nodiscard]] const std::string& control() const { return nodes_.front()->name; }

  void start() {
    for (auto& node : nodes_) {
      HostOptions base;
      base.blocking_threads = 1;
      world_.add_node(node->name, [this, n = node.get()](Host& host) { populate(*n, host); }, base);
      world_.introduce(node->name, format("spiffe://sim/node/{}", node->name), true);
    }
  }

  void populate(Node& node, Host& host) {
    if (node.name == control()) {
      store_ = storage::open_control_store(kv_, host.clock()).value();
      const auto epoch = control::next_epoch(*store_).value();
      host.spawn(control::membership({"sim", epoch, store_.get()}));
      host.spawn(control::resources({store_.get(), &node.view, epoch}));
    }
    control::AgentOptions agent;
    agent.self = Message::build<messages::Register>([&](messages::Register::Builder b) {
      auto info = b.initNode();
      info.setName(node.name);
      info.setIncarnation(host.incarnation().value());
      info.setAddress(node.name + ":7000");
    });
    agent.control_node = control();
    agent.view = &node.view;
    agent.on_view = [&host](const auto& snapshot) { host.set_directory(snapshot); };
    host.spawn(control::agent(std::move(agent)));
    host.spawn(control::witness({node.name, control(), &node.view}));
  }

  // A link beats while one of its ends needs it.
  std::size_t beats_with() {
    std::map<std::string, std::set<std::string>> with;
    for (const auto& node : nodes_) {
      for (const auto& peer : nodes_) {
        if (node == peer || !world_.host(node->name).waits_for(node_id(peer->name))) continue;
        with[node->name].insert(peer->name);
        with[peer->name].insert(node->name);
      }
    }
    with.erase(control());
    std::size_t most = 0;
    for (const auto& [name, peers] : with) most = std::max(most, peers.size());
    return most;
  }

  void lose(MembersReport& report) {
    while (lost_.size() < plan_.lost) lost_.insert(nodes_[1 + random_.below(nodes_.size() - 1)]->name);
    received_.clear();
    const auto when = world_.now();
    for (const auto& name : lost_) plan_.power ? world_.crash(name) : world_.kill(name);
    if (!come_to_agree()) report.trouble = "60 s after the loss: " + differs();
    report.agreed = seconds(world_.now() - when);
    report.by_control = received_[control()];
    for (const auto& [name, count] : received_) {
      if (name != control()) report.by_another = std::max(report.by_another, count);
    }
  }

  bool come_to_agree() {
    const auto limit = world_.now() + 60s;
    while (!differs().empty()) {
      if (world_.now() >= limit) return false;
      world_.run_for(10ms);
    }
    return true;
  }

  // Every survivor has control's view, in which just the survivors are up.
  std::string differs() {
    const auto wanted = nodes_.front()->view.get();
    if (!wanted) return "control has no view";
    if (wanted->view().getNodes().size() != nodes_.size()) return "control does not know all nodes";
    for (const auto each : wanted->view().getNodes()) {
      const std::string name(text(each.getName()));
      if (each.getUp() == lost_.contains(name)) return format("control takes {} for {}", name, each.getUp() ? "up" : "down");
    }
    for (const auto& node : nodes_) {
      if (lost_.contains(node->name)) continue;
      const auto view = node->view.get();
      if (!view || view->view().getRevision() != wanted->view().getRevision()) return node->name + " has another view than control";
    }
    return {};
  }

  const MembersPlan plan_;
  std::vector<std::unique_ptr<Node>> nodes_;
  storage::MemoryKv kv_;
  std::unique_ptr<storage::ControlStore> store_;
  SimWorld world_;
  Random random_;
  std::set<std::string> lost_;
  std::map<std::string, std::uint64_t> received_;
};

}  // namespace

MembersReport run_members(const MembersPlan& plan) { return Members(plan).run(); }

}  // namespace falaj::simulations
