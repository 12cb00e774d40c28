// shards/<type>: the actors of one type's keys on one node, and the way to those of others.
#include <algorithm>
#include <map>
#include <set>

#include "actors/shards/shards.hpp"
#include "messages/envelope.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/log.hpp"
#include "runtime/host/ask_any.hpp"

namespace falaj::shards {
namespace {

using namespace std::chrono_literals;
using falaj::ErrorCode;
using falaj::Lane;
using messages::Empty;
using messages::EntityState;
using messages::GiveState;
using messages::KeepPartitions;
using messages::MovePartitions;
using messages::ShardCall;
using messages::ShardsChanged;
using messages::TakeEntities;

constexpr Duration kGiveWithin = 1s;
constexpr Duration kTakeWithin = 2s;
constexpr std::size_t kTakeBytes = 1U << 20;  // in one message, if no state is larger by itself
constexpr std::size_t kStateBytesMax = 8U << 20;
constexpr Duration kArrivedKept = 30s;
constexpr std::size_t kRestAtOnce = 256;  // idle actors that are asked in one go

struct Entity {
  std::string child;
  ActorRef actor;
  std::uint16_t partition = 0;
  std::uint64_t epoch = 0;
  Instant used{};
  std::uint64_t calls = 0;  // passed to it
  std::size_t open = 0;     // of these, not answered yet
};

struct Arrived {  // what another node held, until the map says that it is ours
  std::uint16_t partition = 0;
  std::uint64_t epoch = 0;
  Message state;
  Instant when{};
};

struct Source {  // of what is given to another node
  std::string key;
  ActorRef actor;
  Message state;  // where there is no actor
};

struct Given {
  std::string key;
  Message state;
};

std::set<std::uint16_t> set_of(capnp::List<std::uint16_t>::Reader list) {
  std::set<std::uint16_t> out;
  for (const auto partition : list) out.insert(partition);
  return out;
}

class Region final : public ActorOf<Region> {
 public:
  static constexpr std::string_view kType = "node/shards/type";
  static void handlers(Handlers<Region>& on) {
    on.message<ShardCall>(&Region::call);
    on.message<ShardsChanged>(&Region::changed);
    on.message<MovePartitions>(&Region::move);
    on.message<KeepPartitions>(&Region::keep);
    on.message<TakeEntities>(&Region::take);
  }
  Region(Type type, std::shared_ptr<cluster::ShardHolder> place) : type_(std::move(type)), place_(std::move(place)) {}

  void on_start(Context& ctx) override { ctx.start(let_go_for_ever(ctx)); }

  void on_down(Context&, const Down& down) override {
    std::erase_if(entities_, [&](const auto& entry) { return entry.second.actor.address() == down.who; });
  }

 private:
  // ---- whose it is ----------------------------------------------------------------------------------------------------------------

  [[nodiscard]] std::optional<cluster::ShardSnapshot::Owner> owner(const cluster::ShardSnapshot& map, std::uint16_t partition) const {
    return map.owner(type_.name, partition);
  }
  [[nodiscard]] static bool mine(Context& ctx, const cluster::ShardSnapshot::Owner& owner) {
    return owner.node == ctx.node_name() && owner.incarnation == ctx.self().address().incarnation;
  }
  // May this node answer for that partition, now and with that epoch?
  [[nodiscard]] bool holds(Context& ctx, std::uint16_t partition, std::uint64_t epoch) const {
    const auto map = place_->get();
    const auto now = map ? owner(*map, partition) : std::nullopt;
    if (!now || !mine(ctx, *now) || now->epoch != epoch) return false;
    return place_->leased(ctx.now()) || fault::planted("lease-not-looked-at");
  }

  // ---- questions --------------------------------------------------------------------------------------------------------------------

  Task<> call(Context& ctx, Msg<ShardCall> m) {
    const auto map = place_->get();
    const auto partitions = map ? map->partitions(type_.name) : 0;
    if (partitions == 0) co_return m.refuse(error(ErrorCode::overloaded, format("no node has {} yet; ask again", type_.name)));
    const auto partition = cluster::shard_partition(text(m->getKey()), partitions);
    const auto at = owner(*map, partition);
    if (!at)
      co_return m.refuse(error(ErrorCode::overloaded, format("nobody has partition {} of {} yet; ask again", partition, type_.name)));
    if (m->getPassed() && m->getEpoch() < at->epoch)
      co_return m.refuse(error(ErrorCode::gone, format("partition {} of {} has another owner now; ask again", partition, type_.name)));
    if (m->getPassed() && m->getEpoch() > at->epoch)
      co_return m.refuse(
          error(ErrorCode::overloaded, format("{} has not heard yet whose partition {} is; ask again", ctx.node_name(), partition)));
    if (mine(ctx, *at)) {
      auto answering = answer(ctx, std::move(m), partition, at->epoch);
      co_await std::move(answering);
    } else if (m->getPassed()) {
      m.refuse(error(ErrorCode::gone, format("partition {} of {} is not on {}; ask again", partition, type_.name, ctx.node_name())));
    } else {
      auto passing = pass_on(ctx, std::move(m), *at);
      co_await std::move(passing);
    }
  }

  Task<> pass_on(Context& ctx, Msg<ShardCall> m, cluster::ShardSnapshot::Owner to) {
    const auto there = ctx.at(ActorAddress{node_id(to.node), to.incarnation, {}, region_name(type_.name)});
    auto message = Message::build<ShardCall>(
        [&](ShardCall::Builder b) {
          b.setKey(m->getKey());
          b.setTypeId(m->getTypeId());
          b.setBody(m->getBody());
          b.setPassed(true);
          b.setEpoch(to.epoch);
        },
        m->getBody().size() / 8 + 64);
    if (!m.wants_reply()) {
      ctx.tell(there, std::move(message), m.options());
      co_return;
    }
    AskAny asked(ctx, there, std::move(message), m.options());
    auto reply = co_await asked;
    if (!reply.has_value()) co_return m.refuse(std::move(reply).error());
    m.reply(std::move(reply).value());
  }

  Task<> answer(Context& ctx, Msg<ShardCall> m, std::uint16_t partition, std::uint64_t epoch) {
    if (!holds(ctx, partition, epoch))
      co_return m.refuse(
          error(ErrorCode::overloaded, format("{} may not answer until control has answered it; ask again", ctx.node_name())));
    if (frozen_.contains(partition))
      co_return m.refuse(error(ErrorCode::overloaded, format("partition {} of {} is being moved; ask again", partition, type_.name)));
    auto body = message_from_bytes(TypeId(m->getTypeId()), bytes(m->getBody()));
    if (!body.has_value()) co_return m.refuse(std::move(body).error());
    const std::string key(text(m->getKey()));
    auto* entity = find_or_start(ctx, key, partition, epoch);
    if (entity == nullptr)
      co_return m.refuse(
          error(ErrorCode::overloaded, format("{} has {} actors of {} already", ctx.node_name(), entities_.size(), type_.name)));
    ++entity->calls;
    entity->used = ctx.now();
    if (!m.wants_reply()) {
      ctx.tell(entity->actor, std::move(body).value(), m.options());
      co_return;
    }
    ++entity->open;
    const auto child = entity->child;
    AskAny asked(ctx, entity->actor, std::move(body).value(), m.options());
    auto reply = co_await asked;
    if (const auto found = entities_.find(key); found != entities_.end() && found->second.child == child) --found->second.open;
    if (!holds(ctx, partition, epoch))
      co_return m.refuse(error(ErrorCode::unreachable, format("partition {} of {} was taken away meanwhile; whether it was done is unknown",
                                                              partition, type_.name)));
    if (!reply.has_value()) co_return m.refuse(std::move(reply).error());
    m.reply(std::move(reply).value());
  }

  // ---- its actors ---------------------------------------------------------------------------------------------------------------------

  // Null: there is no room.
  Entity* find_or_start(Context& ctx, const std::string& key, std::uint16_t partition, std::uint64_t epoch) {
    const auto known = entities_.find(key);
    if (known != entities_.end() && known->second.epoch == epoch) return &known->second;
    if (known != entities_.end()) {
      ctx.stop_child(known->second.child);
      entities_.erase(known);
    }
    if (entities_.size() >= type_.actors_max) return nullptr;
    Birth birth{key, epoch, owned_since(partition, epoch, ctx.now()), std::nullopt, place_};
    if (const auto arrived = arrived_.find(key); arrived != arrived_.end()) {
      if (arrived->second.epoch == epoch) birth.state = std::move(arrived->second.state);
      arrived_.erase(arrived);
    }
    ChildSpec spec;
    spec.id = format("{}#{}", key, ++started_);
    spec.restart = Restart::temporary;
    spec.shutdown = 1s;
    spec.make = [make = type_.make, birth = std::move(birth)] { return make(birth); };
    Entity entity{.child = spec.id, .partition = partition, .epoch = epoch, .used = ctx.now()};
    entity.actor = ctx.spawn(std::move(spec));
    ctx.watch(entity.actor);
    return &entities_.emplace(key, std::move(entity)).first->second;
  }

  Instant owned_since(std::uint16_t partition, std::uint64_t epoch, Instant now) {
    auto& [known, since] = since_[partition];
    if (std::exchange(known, epoch) != epoch) since = now;
    return since;
  }

  void changed(Context& ctx, Msg<ShardsChanged>) {
    const auto map = place_->get();
    if (!map) return;
    for (std::uint16_t p = 0; p < map->partitions(type_.name); ++p) {
      if (const auto at = owner(*map, p); at && mine(ctx, *at)) owned_since(p, at->epoch, ctx.now());
    }
    if (map->map().getControlEpoch() != control_epoch_) {  // what an older one began, this one knows nothing of
      control_epoch_ = map->map().getControlEpoch();
      frozen_.clear();
    }
    const auto lost = [&](std::uint16_t partition, std::uint64_t epoch) {
      const auto at = owner(*map, partition);
      return !at || !mine(ctx, *at) || at->epoch != epoch;
    };
    for (auto it = entities_.begin(); it != entities_.end();) {
      const bool ends = lost(it->second.partition, it->second.epoch) || (type_.single && !place_->leased(ctx.now()));
      if (ends) ctx.stop_child(it->second.child);
      it = ends ? entities_.erase(it) : std::next(it);
    }
    std::erase_if(frozen_, [&](std::uint16_t partition) {
      const auto at = owner(*map, partition);
      return !at || !mine(ctx, *at);
    });
    if (!type_.single) return;
    const auto at = owner(*map, 0);
    if (at && holds(ctx, 0, at->epoch) && frozen_.empty()) static_cast<void>(find_or_start(ctx, {}, 0, at->epoch));
  }

  // Those that were not asked for a while and hold nothing. They are started again when somebody asks.
  Task<> let_go_for_ever(Context& ctx) {
    if (type_.single) co_return;
    for (;;) {
      co_await ctx.sleep(type_.idle / 4);
      const auto now = ctx.now();
      std::erase_if(arrived_, [&](const auto& entry) { return now - entry.second.when > kArrivedKept && !arrives(ctx, entry.second); });
      std::vector<std::string> idle;
      for (const auto& [key, entity] : entities_) {
        if (entity.open == 0 && now - entity.used > type_.idle && idle.size() < kRestAtOnce) idle.push_back(key);
      }
      for (const auto& key : idle) {
        auto going = let_go(ctx, key);
        co_await std::move(going);
      }
    }
  }

  // Its state has not been asked for yet, but is this node's.
  [[nodiscard]] bool arrives(Context& ctx, const Arrived& arrived) const {
    const auto map = place_->get();
    const auto at = map ? owner(*map, arrived.partition) : std::nullopt;
    return at && mine(ctx, *at) && at->epoch == arrived.epoch;
  }

  Task<> let_go(Context& ctx, std::string key) {
    const auto known = entities_.find(key);
    if (known == entities_.end()) co_return;
    const auto child = known->second.child;
    const auto calls = known->second.calls;
    AskAny asked(ctx, known->second.actor, Message::build<GiveState>(), {.timeout = kGiveWithin});
    const auto state = co_await asked;
    const auto now = entities_.find(key);
    if (now == entities_.end() || now->second.child != child || now->second.calls != calls) co_return;
    now->second.used = ctx.now();  // one that holds something is asked again when it has been idle once more
    if (state.has_value() || !holds_nothing(state.error())) co_return;
    ctx.stop_child(child);
    entities_.erase(now);
  }

  static bool holds_nothing(const Error& why) { return why.code == ErrorCode::not_found || why.code == ErrorCode::unimplemented; }

  // ---- moving ---------------------------------------------------------------------------------------------------------------------------

  Task<> move(Context& ctx, Msg<MovePartitions> m) {
    const auto partitions = set_of(m->getPartitions());
    const auto map = place_->get();
    if (!map || map->map().getControlEpoch() != m->getControlEpoch())
      co_return m.refuse(error(ErrorCode::gone, format("{} does not know control of epoch {}", ctx.node_name(), m->getControlEpoch())));
    for (const auto partition : partitions) {
      const auto at = owner(*map, partition);
      if (!at || !mine(ctx, *at) || at->epoch >= m->getEpoch())
        co_return m.refuse(error(ErrorCode::gone, format("partition {} of {} is not on {}", partition, type_.name, ctx.node_name())));
      if (frozen_.contains(partition))
        co_return m.refuse(error(ErrorCode::overloaded, format("partition {} is being moved already", partition)));
    }
    frozen_.insert(partitions.begin(), partitions.end());
    moving_ = m->getEpoch();
    const auto to = ctx.at(ActorAddress{node_id(text(m->getNode())), Incarnation(m->getIncarnation()), {}, region_name(type_.name)});
    auto giving = give_all(ctx, partitions, m->getEpoch(), to);
    const auto done = co_await std::move(giving);
    if (!done.has_value()) {
      unfreeze(ctx, partitions);
      co_return m.refuse(done.error());
    }
    m.reply(Message::build<Empty>());
  }

  Task<Status> give_all(Context& ctx, std::set<std::uint16_t> partitions, std::uint64_t epoch, ActorRef to) {
    std::vector<Source> all;
    for (const auto& [key, entity] : entities_) {
      if (partitions.contains(entity.partition)) all.push_back({key, entity.actor, {}});
    }
    for (const auto& [key, arrived] : arrived_) {  // what came here and was not asked for yet goes on
      if (partitions.contains(arrived.partition) && arrives(ctx, arrived)) all.push_back({key, {}, arrived.state});
    }
    std::vector<Given> batch;
    std::size_t size = 0;
    bool first = true;
    for (auto& source : all) {
      if (source.actor) {
        AskAny asked(ctx, source.actor, Message::build<GiveState>(), {.timeout = kGiveWithin});
        auto state = co_await asked;
        if (!state.has_value() && !holds_nothing(state.error()) && state.error().code != ErrorCode::gone) co_return state.error();
        if (!state.has_value()) continue;
        source.state = std::move(state).value();
      }
      if (source.state.bytes().size() > kStateBytesMax)
        co_return error(ErrorCode::failed, format("what {}/{} holds is more than {} bytes", type_.name, source.key, kStateBytesMax));
      size += source.state.bytes().size() + source.key.size();
      batch.push_back({std::move(source.key), std::move(source.state)});
      if (size < kTakeBytes) continue;
      auto sending = give(ctx, to, partitions, epoch, first, std::exchange(batch, {}));
      const auto done = co_await std::move(sending);
      if (!done.has_value()) co_return done.error();
      first = false;
      size = 0;
    }
    auto sending = give(ctx, to, partitions, epoch, first, std::move(batch));
    const auto done = co_await std::move(sending);
    co_return done;
  }

  static Task<Status> give(Context& ctx, ActorRef to, const std::set<std::uint16_t>& partitions, std::uint64_t epoch, bool first,
                           std::vector<Given> batch) {
    const auto message = Message::build<TakeEntities>(
        [&](TakeEntities::Builder b) {
          auto list = b.initPartitions(static_cast<unsigned>(partitions.size()));
          unsigned i = 0;
          for (const auto partition : partitions) list.set(i++, partition);
          b.setEpoch(epoch);
          b.setFirst(first);
          auto entities = b.initEntities(static_cast<unsigned>(batch.size()));
          for (i = 0; i < batch.size(); ++i) {
            entities[i].setKey(batch[i].key);
            entities[i].setTypeId(batch[i].state.type().value());
            entities[i].setBody(data(batch[i].state.bytes()));
          }
        },
        512);
    auto asked = ctx.ask<Empty>(to, message, {.timeout = kTakeWithin});
    const auto done = co_await asked;
    if (!done.has_value()) co_return done.error();
    co_return Status{};
  }

  void keep(Context& ctx, Msg<KeepPartitions> m) {
    if (m->getEpoch() == moving_) unfreeze(ctx, set_of(m->getPartitions()));
    m.reply(Message::build<Empty>());
  }

  void unfreeze(Context& ctx, const std::set<std::uint16_t>& partitions) {
    for (const auto partition : partitions) frozen_.erase(partition);
    log::info("shards", "partitions stay", {{"type", type_.name}, {"count", partitions.size()}, {"node", ctx.node_name()}});
  }

  void take(Context& ctx, Msg<TakeEntities> m) {
    const auto partitions = set_of(m->getPartitions());
    if (m->getFirst()) {
      std::erase_if(arrived_, [&](const auto& entry) { return partitions.contains(entry.second.partition); });
    }
    if (arrived_.size() + m->getEntities().size() > type_.actors_max)
      return m.refuse(error(ErrorCode::overloaded, format("{} has no room for so many actors of {}", ctx.node_name(), type_.name)));
    std::map<std::string, Arrived> fresh;
    for (const auto entity : m->getEntities()) {
      auto state = message_from_bytes(TypeId(entity.getTypeId()), bytes(entity.getBody()));
      if (!state.has_value()) return m.refuse(state.error());
      const std::string key(text(entity.getKey()));
      fresh.insert_or_assign(key,
                             Arrived{cluster::shard_partition(key, type_.partitions), m->getEpoch(), std::move(state).value(), ctx.now()});
    }
    for (auto& [key, arrived] : fresh) arrived_.insert_or_assign(key, std::move(arrived));
    m.reply(Message::build<Empty>());
  }

  const Type type_;
  const std::shared_ptr<cluster::ShardHolder> place_;
  std::map<std::string, Entity, std::less<>> entities_;
  std::map<std::string, Arrived> arrived_;
  std::set<std::uint16_t> frozen_;
  std::map<std::uint16_t, std::pair<std::uint64_t, Instant>> since_;  // epoch in which this node has or had it, and since when
  std::uint64_t moving_ = 0;                                          // epoch of the newest move from here
  std::uint64_t control_epoch_ = 0;
  std::uint64_t started_ = 0;
};

}  // namespace

ChildSpec region(Type type, std::shared_ptr<cluster::ShardHolder> place) {
  ChildSpec spec;
  spec.id = spec.name = region_name(type.name);
  spec.make = [type = std::move(type), place = std::move(place)] { return std::make_unique<Region>(type, place); };
  return spec;
}

}  // namespace falaj::shards
