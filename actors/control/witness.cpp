#include "actors/control/witness.hpp"

#include <algorithm>
#include <map>

#include "messages/control_internal.capnp.h"
#include "messages/envelope.capnp.h"
#include "runtime/base/ids.hpp"
#include "runtime/base/log.hpp"

namespace falaj::control {
namespace {

using namespace std::chrono_literals;
using falaj::Lane;
using messages::Accuse;
using messages::Empty;
using messages::Ping;

constexpr std::size_t kWatched = 3;
constexpr Duration kTick = 500ms;
constexpr Duration kAnswerWithin = 400ms;

struct Watched {
  Incarnation incarnation;
  ActorRef there;  // its witness
  bool lost = false;
  bool asking = false;
  std::string why;
};

class Witness final : public ActorOf<Witness> {
 public:
  static constexpr std::string_view kType = kWitness;
  static void handlers(Handlers<Witness>& on) { on.message<Ping>(&Witness::ping); }
  explicit Witness(WitnessOptions options) : options_(std::move(options)) {}

  void on_start(Context& ctx) override { tick(ctx); }

  void on_down(Context& ctx, const Down& down) override {
    for (auto& [name, one] : watched_) {
      if (node_id(name) != down.who.node || one.incarnation != down.who.incarnation || one.lost) continue;
      one.lost = true;
      one.why = down.reason.message;
      log::info("witness", "lost sight of a node", {{"node", name}, {"reason", one.why}});
      ctx.start(accuse(ctx, name));
    }
  }

 private:
  void ping(Context&, Msg<Ping> m) { m.reply(Message::build<Empty>()); }

  void tick(Context& ctx) {
    follow(ctx);
    for (auto& [name, one] : watched_) {
      if (!one.lost) continue;
      ctx.start(accuse(ctx, name));
      if (!one.asking) ctx.start(look_again(ctx, name, one.incarnation));
    }
    ctx.after(kTick, [this](Context& later) { tick(later); });
  }

  void follow(Context& ctx) {
    const auto view = options_.view->get();
    if (!view) return;
    const auto wanted = watched_by(*view, options_.node, options_.control_node);
    std::erase_if(watched_, [&](auto& entry) {
      const auto node = view->node(entry.first);
      const bool stays =
          std::ranges::find(wanted, entry.first) != wanted.end() && node && Incarnation(node->getIncarnation()) == entry.second.incarnation;
      if (!stays) ctx.unwatch(entry.second.there);
      return !stays;
    });
    for (const auto& name : wanted) {
      if (watched_.contains(name)) continue;
      const Incarnation incarnation(view->node(name)->getIncarnation());
      auto there = ctx.at(ActorAddress{node_id(name), incarnation, {}, std::string(kWitness)});
      watched_.emplace(name, Watched{incarnation, there, false, false, {}});
      ctx.watch(there);
    }
  }

  Task<> accuse(Context& ctx, std::string name) {
    const auto known = watched_.find(name);
    if (known == watched_.end() || !known->second.lost) co_return;
    const auto message = Message::build<Accuse>([&](Accuse::Builder b) {
      b.setNode(name);
      b.setIncarnation(known->second.incarnation.value());
      b.setReason(known->second.why);
    });
    const auto membership = ctx.at(ActorAddress{node_id(options_.control_node), {}, {}, "control/membership"});
    auto asked = ctx.ask<Empty>(membership, message, {.lane = Lane::control, .timeout = kTick});
    static_cast<void>(co_await asked);  // the next tick says it again
  }

  Task<> look_again(Context& ctx, std::string name, Incarnation incarnation) {
    watched_.at(name).asking = true;
    auto asked = ctx.ask<Empty>(watched_.at(name).there, Message::build<Ping>(), {.lane = Lane::control, .timeout = kAnswerWithin});
    const auto answer = co_await asked;
    const auto known = watched_.find(name);
    if (known == watched_.end() || known->second.incarnation != incarnation) co_return;
    known->second.asking = false;
    if (!answer.has_value()) co_return;
    known->second.lost = false;
    ctx.watch(known->second.there);
  }

  const WitnessOptions options_;
  std::map<std::string, Watched> watched_;  // by node
};

}  // namespace

std::vector<std::string> watched_by(const cluster::ClusterSnapshot& view, std::string_view node, std::string_view control_node) {
  std::vector<std::pair<std::uint64_t, std::string>> ring;
  for (const auto each : view.view().getNodes()) {
    const std::string name(text(each.getName()));
    if (each.getUp() && name != control_node && name != node) ring.emplace_back(stable_hash(name), name);
  }
  std::ranges::sort(ring);
  const auto next = std::ranges::upper_bound(ring, std::pair(stable_hash(node), std::string(node)));
  std::ranges::rotate(ring, next);
  std::vector<std::string> out;
  for (std::size_t i = 0; i < std::min(kWatched, ring.size()); ++i) out.push_back(std::move(ring[i].second));
  return out;
}

ChildSpec witness(WitnessOptions options) {
  ChildSpec spec;
  spec.id = spec.name = std::string(kWitness);
  spec.make = [options = std::move(options)] { return std::make_unique<Witness>(options); };
  return spec;
}

}  // namespace falaj::control
