// node/shards: the lease and the map.
#include <algorithm>
#include <stdexcept>

#include "actors/shards/shards.hpp"
#include "messages/envelope.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/base/retry.hpp"

namespace falaj::shards {
namespace {

using namespace std::chrono_literals;
using falaj::Lane;
using messages::Lease;
using messages::RenewLease;
using messages::ShardMap;
using messages::ShardsChanged;

constexpr Duration kRenewEvery = 250ms;
constexpr Duration kAnswerWithin = 400ms;

class Keeper final : public ActorOf<Keeper> {
 public:
  static constexpr std::string_view kType = "node/shards";
  static void handlers(Handlers<Keeper>& on) { on.message<ShardMap>(&Keeper::map_changed); }
  Keeper(ShardsOptions options, std::shared_ptr<cluster::ShardHolder> place) : options_(std::move(options)), place_(std::move(place)) {}

  void on_start(Context& ctx) override {
    for (const auto& type : options_.types) ctx.spawn(region(type, place_));
    ctx.start(renew_for_ever(ctx));
  }

 private:
  Task<> renew_for_ever(Context& ctx) {
    RetryDelay wait(50ms, 400ms);
    for (;;) {
      const auto control = ctx.at(ActorAddress{node_id(options_.control_node), {}, {}, "control/shards"});
      const auto question = renewal(ctx);
      const auto sent = ctx.now();
      auto asked = ctx.ask<Lease>(control, question, {.lane = Lane::control, .timeout = kAnswerWithin});
      const auto lease = co_await asked;
      Duration pause = kRenewEvery;
      if (lease.has_value()) {
        wait.reset();
        take(ctx, sent, **lease);
      } else {
        pause = wait.next(ctx.random());
        log::debug("shards", "no lease", {{"reason", lease.error().message}});
      }
      co_await ctx.sleep(pause);
    }
  }

  Message renewal(Context& ctx) const {
    return Message::build<RenewLease>([&](RenewLease::Builder b) {
      b.setNode(ctx.node_name());
      b.setIncarnation(ctx.self().address().incarnation.value());
      // What an older control said is asked for again: it may have begun moves that this one knows nothing of.
      if (const auto held = place_->get(); held && held->map().getControlEpoch() == control_epoch_)
        b.setRevision(held->map().getRevision());
      const auto is_control = std::ranges::find(options_.roles, messages::Role::CONTROL) != options_.roles.end();
      std::vector<const Type*> mine;
      for (const auto& type : options_.types) {
        if (!type.role || std::ranges::find(options_.roles, *type.role) != options_.roles.end()) mine.push_back(&type);
      }
      auto list = b.initTypes(static_cast<unsigned>(mine.size()));
      for (unsigned i = 0; i < mine.size(); ++i) {
        list[i].setName(mine[i]->name);
        list[i].setPartitions(mine[i]->partitions);
        list[i].setReserve(!mine[i]->role && is_control);
      }
    });
  }

  // The map first: a lease is good for what the newest map says.
  void take(Context& ctx, Instant sent, Lease::Reader lease) {
    control_epoch_ = std::max(control_epoch_, lease.getControlEpoch());
    if (lease.hasMap()) learn(Message::copy_of<ShardMap>(lease.getMap()));
    const auto held = place_->get();
    if (lease.getControlEpoch() < control_epoch_ || !held || held->map().getControlEpoch() != control_epoch_) return;
    const bool again = !place_->leased(ctx.now());
    place_->lease(std::max(place_->leased_until(), sent + std::chrono::milliseconds(lease.getForMs())));
    if (again || lease.hasMap()) tell_all(ctx);
    if (!std::exchange(watching_, true)) watch_end(ctx);
  }

  void map_changed(Context& ctx, Msg<ShardMap> m) {
    if (m->getControlEpoch() >= control_epoch_ && learn(m.message())) tell_all(ctx);
  }

  bool learn(const Message& message) {
    auto map = message.open<ShardMap>();
    return map.has_value() && place_->set(std::make_shared<const cluster::ShardSnapshot>(std::move(map).value()));
  }

  void watch_end(Context& ctx) {
    const auto left = place_->leased_until() - ctx.now();
    if (left > Duration(0)) {
      ctx.after(left, [this](Context& later) { watch_end(later); });
      return;
    }
    watching_ = false;
    log::info("shards", "the lease has ended; answering for nobody until control answers");
    tell_all(ctx);
  }

  void tell_all(Context& ctx) {
    for (const auto& type : options_.types)
      ctx.tell(ctx.find(region_name(type.name)), Message::build<ShardsChanged>(), {.lane = Lane::control});
  }

  const ShardsOptions options_;
  const std::shared_ptr<cluster::ShardHolder> place_;
  std::uint64_t control_epoch_ = 0;
  bool watching_ = false;  // watch_end() comes
};

}  // namespace

std::string region_name(std::string_view type) { return "shards/" + std::string(type); }

Type singleton(std::string_view name, std::optional<messages::Role> role, std::function<std::unique_ptr<Actor>(Birth)> make) {
  Type type;
  type.name = "singleton/" + std::string(name);
  type.make = std::move(make);
  type.partitions = 1;
  type.role = role;
  type.single = true;
  return type;
}

ChildSpec shards(ShardsOptions options) {
  for (const auto& type : options.types) {
    if (type.name.empty() || type.partitions == 0 || !type.make || type.single != type.name.starts_with("singleton/"))
      throw std::invalid_argument(format("type '{}' of actors by key: it needs a name, partitions and a factory", type.name));
  }
  ChildSpec spec;
  spec.id = spec.name = "node/shards";
  spec.make = [options = std::move(options), place = std::make_shared<cluster::ShardHolder>()] {
    return std::make_unique<Keeper>(options, place);
  };
  return spec;
}

}  // namespace falaj::shards
