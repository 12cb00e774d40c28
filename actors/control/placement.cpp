#include "actors/control/placement.hpp"

#include <capnp/any.h>

#include <algorithm>

#include "actors/control/agent.hpp"
#include "messages/envelope.capnp.h"
#include "messages/registry.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"

namespace falaj::control {

using namespace messages;
using falaj::ErrorCode;
using falaj::Lane;

namespace {

// A node that died is given this long to come back before its replicas are placed elsewhere, as long as another replica answers.
constexpr auto kReturnGrace = std::chrono::seconds(3);
constexpr std::string_view kPrefix = "placement/";
constexpr std::string_view kReplicas = "serving/replica/";

Message status_message(std::string_view phase, std::string_view why, std::uint32_t ready, std::uint32_t wanted) {
  return Message::build<ResourceStatus>([&](ResourceStatus::Builder b) {
    b.setPhase(std::string(phase));
    b.setMessage(std::string(why));
    b.setReady(ready);
    b.setWanted(wanted);
  });
}

}  // namespace

void Placer::load() {
  const auto listing = store_.list(kPrefix);
  if (!listing.has_value()) throw std::runtime_error(listing.error().message);
  for (const auto& item : listing->items) {
    const auto stored = message_from_bytes(TypeId(capnp::typeId<ActorPlacement>()), item.value);
    if (!stored.has_value()) throw std::runtime_error(item.key + ": " + stored.error().message);
    const auto placement = stored->open<ActorPlacement>();
    if (!placement.has_value()) throw std::runtime_error(item.key + ": " + placement.error().message);
    const auto actor = (*placement)->getActor();
    Placed placed;
    placed.deployment = text(actor.getReplica().getDeployment().getName());
    placed.index = actor.getReplica().getIndex();
    placed.generation = actor.getGeneration();
    placed.node = text((*placement)->getNode());
    placed.spec = Message::build<EnsureActor>(
        [&](EnsureActor::Builder b) {
          b.setActor(actor);
          b.getActor().setEpoch(epoch_.value());
        },
        128);
    placed_.insert_or_assign(std::string(text(actor.getName())), std::move(placed));
  }
}

Task<> Placer::begin(Context& ctx) {
  const auto view = view_.get();
  if (!view) co_return;
  for (auto& [name, placed] : placed_) {
    const auto node = view->node(placed.node);
    const bool up = node && node->getUp();
    if (!up && !placed.node_down) placed.node_down_since = ctx.now();
    placed.node_down = !up;
    if (!up || Incarnation(node->getIncarnation()) != placed.confirmed_by) placed.confirmed = false;
  }
  // A node that was away comes back with what has been placed elsewhere meanwhile, or is wanted no more.
  std::vector<std::pair<std::string, std::string>> strays;
  for (const auto entry : view->view().getDirectory()) {
    const std::string name(text(entry.getName()));
    if (fault::planted("strays-forgotten")) break;
    if (name.starts_with(kReplicas) && !placed_.contains(name)) strays.emplace_back(name, text(entry.getNode()));
  }
  for (const auto& [name, node] : strays) {
    const auto done = co_await stop(ctx, name, node);
    if (done) log::info("control", "stopped a stray", {{"actor", name}, {"node", node}});
  }
}

Task<Result<Placer::Target>> Placer::resolve(Context& ctx, Message record) {
  const auto view = record.view<ResourceRecord>();
  const auto wanted = view->getResource().getDeployment();
  const auto question = Message::build<GetVersion>([&](GetVersion::Builder b) {
    b.setModel(wanted.getModel());
    b.setTenant(wanted.getOwner().getTenant());
    b.setVersion(wanted.getVersion());
    if (wanted.getVersion() == 0) b.setAlias(wanted.getAlias());
  });
  auto asked = ctx.ask<ModelVersionInfo>(ctx.find("mlops/registry"), question);
  const auto found = co_await asked;
  if (!found) co_return found.error();
  co_return Target{(*found)->getVersion(), std::string(text((*found)->getArtifact()))};
}

std::string Placer::pick_node(std::string_view deployment, const cluster::ClusterSnapshot& view) const {
  std::string best;
  std::pair<std::size_t, std::size_t> least{};
  for (const auto& node : view.open_nodes_with(Role::SERVING)) {
    std::pair<std::size_t, std::size_t> load{};  // of this deployment first, then of all
    for (const auto& [name, placed] : placed_) {
      if (placed.node != node) continue;
      ++load.second;
      if (placed.deployment == deployment) ++load.first;
    }
    if (best.empty() || load < least) {
      best = node;
      least = load;
    }
  }
  return best;
}

// When all is well but uneven (the nodes did not come up together), a replica to move: one from a node that holds at least two more than
// another. Else empty. While a move is under way there is one placement too many, and no second move.
std::string Placer::crowded(std::string_view deployment, std::size_t count, const cluster::ClusterSnapshot& view) const {
  std::map<std::string, std::vector<std::string>> by_node;
  for (const auto& node : view.open_nodes_with(Role::SERVING)) by_node[node];
  std::size_t all = 0;
  for (const auto& [name, placed] : placed_) {
    if (placed.deployment != deployment) continue;
    const auto node = by_node.find(placed.node);
    if (node == by_node.end() || placed.node_down || !ready(name, view)) return {};
    node->second.push_back(name);
    ++all;
  }
  if (by_node.empty() || all != count) return {};
  const auto fewer = [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); };
  const auto [least, most] = std::ranges::minmax_element(by_node, fewer);
  return most->second.size() >= least->second.size() + 2 ? most->second.back() : std::string();
}

bool Placer::ready(const std::string& name, const cluster::ClusterSnapshot& view) const {
  const auto names = view.ready_with_prefix(name);
  return std::ranges::find(names, name) != names.end();
}

bool Placer::fits(const Placed& placed, const Target& target, Deployment::Reader wanted) const {
  const auto spec = placed.spec.view<EnsureActor>();
  const auto replica = spec->getActor().getReplica();
  return replica.getVersion() == target.version && text(replica.getArtifact()) == target.artifact &&
         capnp::AnyStruct::Reader(replica.getDeployment()) == capnp::AnyStruct::Reader(wanted);
}

Task<Status> Placer::place(Context& ctx, Message record, Target target, std::uint32_t index, std::string node) {
  const auto view = record.view<ResourceRecord>();
  const auto wanted = view->getResource().getDeployment();
  Placed placed;
  placed.deployment = text(wanted.getName());
  placed.index = index;
  // The revision that storing this brings: never given before, also when the placements that had the greatest are gone by now.
  placed.generation = store_.revision().value() + 1;
  placed.node = node;
  const std::string name = format("{}{}/{}.{}", kReplicas, placed.deployment, index, placed.generation);
  placed.spec = Message::build<EnsureActor>(
      [&](EnsureActor::Builder b) {
        auto actor = b.initActor();
        actor.setName(name);
        actor.setGeneration(placed.generation);
        actor.setEpoch(epoch_.value());
        auto replica = actor.initReplica();
        replica.setDeployment(wanted);
        replica.setVersion(target.version);
        replica.setArtifact(target.artifact);
        replica.setIndex(index);
      },
      128);
  const auto stored = Message::build<ActorPlacement>(
      [&](ActorPlacement::Builder b) {
        b.setNode(node);
        b.setActor(placed.spec.view<EnsureActor>()->getActor());
      },
      128);
  auto* store = &store_;
  auto write = ctx.blocking([store, key = std::string(kPrefix) + name, bytes = Bytes(stored.bytes().begin(), stored.bytes().end())] {
    return store->put(key, bytes, Revision(0));
  });
  const auto done = co_await write;
  if (!done) co_return done.error();
  placed_.insert_or_assign(name, std::move(placed));
  log::info("control", "placed", {{"actor", name}, {"node", node}, {"version", target.version}});
  co_return co_await ensure(ctx, name);
}

Task<Status> Placer::ensure(Context& ctx, std::string name) {
  const auto known = placed_.find(name);
  if (known == placed_.end() || known->second.confirmed) co_return Status{};
  const auto view = view_.get();
  const auto node = view->node(known->second.node);
  if (!node || !node->getUp()) co_return error(ErrorCode::unreachable, format("node {} is down", known->second.node));
  const Incarnation incarnation(node->getIncarnation());
  auto asked = ctx.ask<Empty>(ctx.find(agent_name(known->second.node)), known->second.spec, {.lane = Lane::control});
  const auto done = co_await asked;
  if (!done) co_return done.error();
  if (const auto still = placed_.find(name); still != placed_.end()) {
    still->second.confirmed = true;
    still->second.confirmed_by = incarnation;
  }
  co_return Status{};
}

Task<Status> Placer::stop(Context& ctx, std::string name, std::string node) {
  const auto drop = Message::build<DropActor>([&](DropActor::Builder b) { b.setName(name); });
  auto dropped = ctx.ask<Empty>(ctx.find("control/membership"), drop);
  static_cast<void>(co_await dropped);  // routers stop choosing it first; what follows goes out all the same
  const auto message = Message::build<StopActor>([&](StopActor::Builder b) {
    b.setName(name);
    b.setEpoch(epoch_.value());
  });
  auto asked = ctx.ask<Empty>(ctx.find(agent_name(node)), message, {.lane = Lane::control});
  const auto done = co_await asked;
  if (!done) co_return done.error();
  co_return Status{};
}

Task<> Placer::retire(Context& ctx, std::string name) {
  const auto known = placed_.find(name);
  if (known == placed_.end()) co_return;
  if (!known->second.node_down) {
    const auto done = co_await stop(ctx, name, known->second.node);
    if (!done) co_return;  // the next look tries again
  }
  auto* store = &store_;
  auto write = ctx.blocking([store, key = std::string(kPrefix) + name] { return store->erase(key); });
  const auto done = co_await write;
  if (done || done.error().code == ErrorCode::not_found) placed_.erase(name);
}

Task<Message> Placer::deployment(Context& ctx, Message record) {
  const auto stored = record.view<ResourceRecord>();
  const auto wanted = stored->getResource().getDeployment();
  const std::string name(text(wanted.getName()));
  const auto count = wanted.getReplicas();
  const auto view = view_.get();
  if (!view) co_return status_message("pending", "the cluster's view is not known yet", 0, count);
  const auto target = co_await resolve(ctx, record);
  if (!target) co_return status_message("pending", target.error().message, 0, count);

  std::string trouble;
  std::uint32_t ready_count = 0;
  std::vector<std::string> surplus;
  const auto healthy = view->ready_with_prefix(format("{}{}/", kReplicas, name)).size();
  const auto moves = crowded(name, count, *view);
  for (std::uint32_t index = 0; index < count; ++index) {
    std::string current;  // the newest that fits
    std::vector<std::string> old;
    for (const auto& [actor, placed] : placed_) {
      if (placed.deployment != name || placed.index != index) continue;
      const auto node = view->node(placed.node);
      const bool gone = placed.node_down ? healthy == 0 || ctx.now() - placed.node_down_since > kReturnGrace : node && node->getDraining();
      const bool lost = gone && !pick_node(name, *view).empty();
      if (fits(placed, *target, wanted) && !lost && actor != moves &&
          (current.empty() || placed.generation > placed_.at(current).generation)) {
        if (!current.empty()) old.push_back(current);
        current = actor;
      } else {
        old.push_back(actor);
      }
    }
    Status done;
    if (current.empty()) {
      const auto node = pick_node(name, *view);
      if (node.empty()) {
        trouble = "no node with the role `serving` is up";
        continue;
      }
      done = co_await place(ctx, record, *target, index, node);
    } else {
      done = co_await ensure(ctx, current);
      if (ready(current, *view)) {
        ++ready_count;
        surplus.insert(surplus.end(), old.begin(), old.end());
      } else {
        // The old one serves until the new one can; but what lies on a dead node serves nobody.
        std::ranges::copy_if(old, std::back_inserter(surplus), [this](const auto& actor) { return placed_.at(actor).node_down; });
      }
    }
    if (!done) trouble = done.error().message;
  }
  for (const auto& [actor, placed] : placed_) {
    if (placed.deployment == name && placed.index >= count) surplus.push_back(actor);
  }
  for (const auto& actor : surplus) co_await retire(ctx, actor);
  const auto phase = ready_count == count ? "ready" : ready_count > 0 ? "degraded" : "pending";
  co_return status_message(phase, trouble, ready_count, count);
}

Task<> Placer::remove_others(Context& ctx, std::set<std::string> deployments) {
  std::vector<std::string> surplus;
  for (const auto& [actor, placed] : placed_) {
    if (!deployments.contains(placed.deployment)) surplus.push_back(actor);
  }
  for (const auto& actor : surplus) co_await retire(ctx, actor);
}

}  // namespace falaj::control
