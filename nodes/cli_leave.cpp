// drain, forget: nodes that leave, for a while or for good.
#include <algorithm>

#include "messages/control.capnp.h"
#include "messages/envelope.capnp.h"
#include "messages/shards.capnp.h"
#include "nodes/cli.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/cluster/shards.hpp"

namespace falaj::nodes {
namespace {

using namespace messages;
using namespace std::chrono_literals;
using falaj::ErrorCode;

struct LeaveArguments {
  std::string node;
  bool undo = false;
  std::uint32_t wait = 60;
};

struct Load {
  std::size_t replicas = 0;
  std::size_t workers = 0;
  std::size_t partitions = 0;  // of features
  std::size_t keys = 0;        // partitions of actors by key, while there is another node to have them
  bool up = false;
  bool others = false;
};

std::size_t keys_of(ShardMap::Reader map, const std::string& name) {
  std::size_t count = 0;
  for (const auto type : map.getTypes()) {
    for (std::size_t p = 0; p < type.getOwners().size(); ++p) {
      if (const auto owner = cluster::shard_owner(map, type, p); owner && owner->node == name) ++count;
    }
  }
  return count;
}

Result<Load> load_of(Client& client, const std::string& name) {
  FALAJ_ASSIGN(const auto status, client.ask<ClusterStatus>("control/membership", Message::build<GetStatus>()));
  const auto view = status->getView();
  Load load;
  for (const auto entry : view.getDirectory()) {
    if (text(entry.getNode()) == name && text(entry.getName()).starts_with("serving/replica/")) ++load.replicas;
  }
  const auto shards = view.getFeatureNodes();
  for (const auto owner : view.getPartitions()) {
    if (owner < shards.size() && text(shards[owner]) == name) ++load.partitions;
  }
  for (const auto node : view.getNodes()) {
    const bool same = text(node.getName()) == name;
    load.up = load.up || (same && node.getUp());
    load.others = load.others || (!same && node.getUp() && !node.getDraining());
  }
  if (load.up) {
    FALAJ_ASSIGN(const auto map, client.ask<ShardMap>("control/shards", Message::build<GetShards>()));
    if (load.others) load.keys = keys_of(*map, name);
    FALAJ_ASSIGN(const auto stats, client.ask<NodeStats>("node/agent/" + name, Message::build<GetNodeStats>(), 2s, name));
    load.workers = stats->getWorkers();
  }
  return load;
}

Status do_drain(Cli& cli, const LeaveArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  const auto message = Message::build<DrainNode>([&](DrainNode::Builder b) {
    b.setNode(a.node);
    b.setUndo(a.undo);
  });
  FALAJ_TRY(client->ask<Empty>("control/membership", message));
  if (a.undo) {
    print(format("node {} takes new work again", a.node));
    return {};
  }
  print(format("node {} takes nothing new", a.node));
  const auto limit = client->clock().now() + std::chrono::seconds(a.wait);
  std::string said;
  for (;;) {
    FALAJ_ASSIGN(const auto load, load_of(*client, a.node));
    if (!load.up || (load.replicas == 0 && load.workers == 0 && load.keys == 0)) {
      if (load.partitions != 0) {
        print(format("node {} holds {} of {} feature partitions, which do not move: their rows are away while it is", a.node,
                     load.partitions, limits::kPartitions));
      }
      print(load.up ? format("node {} is empty: it can be stopped", a.node) : format("node {} is down", a.node));
      return {};
    }
    auto waiting = format("waiting: {} replicas and {} partitions of keys to move, {} training workers to end", load.replicas, load.keys,
                          load.workers);
    if (waiting != said) print(waiting);
    said = std::move(waiting);
    if (client->clock().now() >= limit) {
      return error(ErrorCode::deadline,
                   format("node {} still has {} replicas, {} partitions of keys and {} training workers after {} s; it stays marked as "
                          "leaving: ask again, or `falaj drain --undo {}`",
                          a.node, load.replicas, load.keys, load.workers, a.wait, a.node));
    }
    client->pause(200ms);
  }
}

Status do_forget(Cli& cli, const LeaveArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_TRY(client->ask<Empty>("control/membership", Message::build<ForgetNode>([&](ForgetNode::Builder b) { b.setNode(a.node); })));
  print(format("node {} is forgotten", a.node));
  return {};
}

}  // namespace

void add_leave_commands(CLI::App& app, Cli& cli) {
  const auto a = std::make_shared<LeaveArguments>();
  auto* drain = app.add_subcommand("drain", "Move away from a node what can move, and place nothing new there: before a restart");
  cli.with_client(*drain);
  drain->add_option("node", a->node, "Name of the node")->required();
  drain->add_flag("--undo", a->undo, "It takes new work again");
  drain->add_option("--wait", a->wait, "Seconds to wait until it is empty")->capture_default_str()->check(CLI::Range(0U, 86400U));
  drain->footer(
      "Examples:\n  falaj drain --dir ./falaj serving-1\n  falaj drain --dir ./falaj --undo serving-1\nReplicas are ready elsewhere before "
      "they end here; locks and other actors by key move with what they hold; training workers stay until their run ends. Rolling restart: "
      "drain,\nrestart and --undo one node after the other.");
  cli.runs(*drain, [&cli, a] { return do_drain(cli, *a); });

  auto* forget = app.add_subcommand("forget", "Take a node that is down, and stays so, out of the cluster's list");
  cli.with_client(*forget);
  forget->add_option("node", a->node, "Name of the node")->required();
  forget->footer(
      "Example:\n  falaj forget --dir ./falaj compute-7\nControl places nothing anew while fewer than half of the nodes it knows are "
      "there. Its "
      "certificate stays good: `falaj revoke`\ntakes that back.");
  cli.runs(*forget, [&cli, a] { return do_forget(cli, *a); });
}

}  // namespace falaj::nodes
