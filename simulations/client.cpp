#include "simulations/client.hpp"

#include "runtime/base/format.hpp"

namespace falaj::simulations {
namespace {

constexpr std::string_view kName = "client";

struct Pending {
  int ends = 0;
};

}  // namespace

Client::Client(Cluster& cluster, Verdict& verdict) : cluster_(cluster), verdict_(verdict) {
  auto& world = cluster.world();
  world.add_node(std::string(kName));
  world.introduce(kName, format("spiffe://{}/person/admin", kCluster), false);
}

void Client::ask(const Question& to, Message message, Done done) {
  auto& world = cluster_.world();
  auto& host = world.host(kName);
  ++asked_;
  const auto pending = std::make_shared<Pending>();
  const auto what = format("the question to {} on {}", to.actor, to.machine);
  SendOptions options;
  options.timeout = to.timeout;
  options.scope = std::make_shared<const Scope>(Scope{format("spiffe://{}/person/admin", kCluster), "default", to.purpose, {}, {}});
  host.ask(host.at(ActorAddress{node_id(to.machine), {}, {}, to.actor}), std::move(message), options,
           [this, alive = alive_, pending, what, done = std::move(done)](Result<Message> answer) {
             if (!*alive) return;
             if (++pending->ends > 1) return verdict_.fail(what + " ended twice");
             if (answer.has_value()) ++answered_;
             done(answer);
           });
  world.at(world.now() + to.timeout + std::chrono::milliseconds(100), [this, pending, what] {
    if (pending->ends == 0) verdict_.fail(what + " did not end by its deadline");
  });
}

}  // namespace falaj::simulations
