#include "actors/control/shards.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "actors/shards/shards.hpp"
#include "messages/envelope.capnp.h"
#include "messages/shards.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"

namespace falaj::control {
namespace {

using namespace messages;
using namespace std::chrono_literals;
using falaj::ErrorCode;
using falaj::Lane;

constexpr std::string_view kMapKey = "shards/map";
constexpr Duration kLease = 1s;
constexpr Duration kMargin = 150ms;  // clocks that run at different speeds, and the owner's last turn
constexpr Duration kSilent = 4s;     // without a lease, though nobody says that the node is down
constexpr Duration kTick = 50ms;
constexpr Duration kGather = 1s;   // after the first node that can have a type, others may come
constexpr Duration kSettled = 2s;  // a node gets partitions of others when it has been here for so long
constexpr Duration kMoveWithin = 4s;
constexpr std::size_t kMovedAtOnce = 32;
constexpr std::size_t kTypesMax = 64;
constexpr std::size_t kPartitionsMax = 4096;

struct Holder {  // of a partition; no name: nobody
  std::string node;
  Incarnation incarnation;
  std::uint64_t epoch = 0;
  [[nodiscard]] bool is(const std::string& name, Incarnation which) const { return node == name && incarnation == which; }
};

struct Kind {  // a type
  std::vector<Holder> partitions;
  std::optional<Instant> seen;  // first declared to this control
  std::set<std::uint16_t> moving;
  Instant rest{};  // no planned move before
};

struct Hosted {
  std::size_t partitions = 0;
  bool reserve = false;
};

struct Node {
  Incarnation incarnation;
  ActorRef keeper;
  Instant since{};  // it has leases without a gap
  std::map<std::string, Hosted, std::less<>> types;
};

struct Move {
  std::string type;
  std::string from, to;
  Incarnation from_incarnation, to_incarnation;
  std::vector<std::uint16_t> partitions;
  std::uint64_t epoch = 0;
};

class Shards final : public ActorOf<Shards> {
 public:
  static constexpr std::string_view kType = "control/shards";
  static void handlers(Handlers<Shards>& on) {
    on.message<RenewLease>(&Shards::renew);
    on.message<GetShards>(&Shards::show);
  }
  explicit Shards(const ShardsOptions& options) : options_(options) {}

  void on_start(Context& ctx) override {
    started_ = ctx.now();
    load();
    note_owners();
    published_ = write();
    ctx.start(run(ctx));
  }

 private:
  using Lifetime = std::pair<std::string, Incarnation>;  // of a node

  // ---- leases -----------------------------------------------------------------------------------------------------------------------

  void renew(Context& ctx, Msg<RenewLease> m) {
    const std::string name(text(m->getNode()));
    const Incarnation incarnation(m->getIncarnation());
    if (m.from().address().node != node_id(name)) return m.refuse(error(ErrorCode::denied, "a node asks for its own lease only"));
    auto& node = nodes_[name];
    if (node.incarnation > incarnation) return m.refuse(error(ErrorCode::gone, format("node {} is known with a newer incarnation", name)));
    if (losing_.contains({name, incarnation})) return m.refuse(error(ErrorCode::overloaded, "what the node had is being given to others"));
    const auto now = ctx.now();
    const bool gap = node.incarnation != incarnation || lease_end(name, incarnation) <= now;
    node.incarnation = incarnation;
    node.keeper = m.from();
    if (gap) node.since = now;
    node.types.clear();
    for (const auto type : m->getTypes()) declare(now, node, type);
    leases_[{name, incarnation}] = now + kLease + kMargin;
    const bool news = m->getRevision() != published_.view<ShardMap>()->getRevision();
    m.reply(Message::build<Lease>(
        [&](Lease::Builder b) {
          b.setForMs(static_cast<std::uint32_t>(kLease / 1ms));
          b.setControlEpoch(options_.epoch.value());
          if (news) b.setMap(*published_.view<ShardMap>());
        },
        news ? published_.bytes().size() / 8 + 16 : 8));
  }

  void declare(Instant now, Node& node, HostedType::Reader type) {
    const std::string name(text(type.getName()));
    const std::size_t partitions = type.getPartitions();
    if (name.empty() || partitions == 0 || partitions > kPartitionsMax || node.types.size() >= kTypesMax) return;
    if (!kinds_.contains(name) && kinds_.size() >= kTypesMax) return;
    auto& kind = kinds_[name];
    if (kind.partitions.empty()) {
      kind.partitions.resize(partitions);
      open_ = true;
    }
    if (kind.partitions.size() != partitions) {
      log::warn("control", "a node counts the partitions of a type otherwise",
                {{"type", name}, {"its", partitions}, {"ours", kind.partitions.size()}});
      return;
    }
    if (!kind.seen) kind.seen = now;
    node.types.emplace(name, Hosted{partitions, type.getReserve()});
  }

  // By this clock. A lease that an earlier control may have granted ends like one of the moment of the start.
  [[nodiscard]] Instant lease_end(const std::string& node, Incarnation incarnation) const {
    const auto found = leases_.find({node, incarnation});
    return found == leases_.end() ? started_ + kLease + kMargin : found->second;
  }
  [[nodiscard]] bool leased(Instant now, const std::string& node, Incarnation incarnation) const {
    const auto found = leases_.find({node, incarnation});
    return found != leases_.end() && found->second - kMargin > now;
  }

  void show(Context&, Msg<GetShards> m) { m.reply(published_); }

  // ---- who gets what ----------------------------------------------------------------------------------------------------------------

  [[nodiscard]] bool lost(Instant now, const std::string& node, Incarnation incarnation, const cluster::ClusterSnapshot& view) const {
    const auto end = lease_end(node, incarnation);
    if (now < end) return false;
    if (now - end > kSilent) return true;
    const auto known = nodes_.find(node);
    if (known != nodes_.end() && known->second.incarnation > incarnation) return true;
    const auto seen = view.node(node);
    return seen && (!seen->getUp() || Incarnation(seen->getIncarnation()) > incarnation);
  }

  // Nodes that may be given partitions of the type, and how many they have. Reserves only where there is nobody else.
  [[nodiscard]] std::map<std::string, std::size_t> candidates(Instant now, const std::string& type, const cluster::ClusterSnapshot& view,
                                                              Duration settled) const {
    std::map<std::string, std::size_t> firm, reserve;
    for (const auto& [name, node] : nodes_) {
      const auto hosted = node.types.find(type);
      if (hosted == node.types.end() || !leased(now, name, node.incarnation) || now - node.since < settled) continue;
      const auto seen = view.node(name);
      if (!seen || !seen->getUp() || seen->getDraining() || Incarnation(seen->getIncarnation()) != node.incarnation) continue;
      (hosted->second.reserve ? reserve : firm).emplace(name, 0);
    }
    auto& out = firm.empty() ? reserve : firm;
    for (const auto& holder : kinds_.at(type).partitions) {
      if (const auto found = out.find(holder.node); found != out.end() && nodes_.at(holder.node).incarnation == holder.incarnation)
        ++found->second;
    }
    return std::move(out);
  }

  static std::map<std::string, std::size_t>::iterator least(std::map<std::string, std::size_t>& counts, const std::string& type,
                                                            std::size_t partition) {
    return std::ranges::min_element(counts, {}, [&](const auto& entry) {
      return std::pair(entry.second, stable_hash(format("{}/{}/{}", entry.first, type, partition)));
    });
  }

  // What nobody has, or a lost node had. True: the map has changed.
  bool assign(Instant now, const cluster::ClusterSnapshot& view) {
    const bool any = std::ranges::any_of(owners_, [&](const auto& owner) { return lost(now, owner.first, owner.second, view); });
    if (!any && !open_) return false;
    bool changed = false;
    for (auto& [type, kind] : kinds_) {
      if (!kind.seen || now - *kind.seen < kGather) continue;
      std::optional<std::map<std::string, std::size_t>> counts;
      for (std::size_t p = 0; p < kind.partitions.size(); ++p) {
        auto& holder = kind.partitions[p];
        if (!holder.node.empty() && !lost(now, holder.node, holder.incarnation, view)) continue;
        if (!counts) counts = candidates(now, type, view, kSettled);  // one that was just started may be about to fall again
        if (counts->empty()) counts = candidates(now, type, view, Duration(0));
        if (counts->empty()) break;
        const auto to = least(*counts, type, p);
        if (!holder.node.empty()) losing_.emplace(holder.node, holder.incarnation);
        holder = Holder{to->first, nodes_.at(to->first).incarnation, next_epoch_};
        ++to->second;
        changed = true;
      }
      if (changed) ++next_epoch_;
    }
    return changed;
  }

  // One step towards an even deal, away from nodes that leave; nothing: it is even, or something moves already.
  std::optional<Move> plan(Instant now, const std::string& type, const Kind& kind, const cluster::ClusterSnapshot& view) const {
    if (!kind.moving.empty() || now < kind.rest || !kind.seen) return std::nullopt;
    auto counts = candidates(now, type, view, kSettled);
    if (counts.empty()) return std::nullopt;
    const auto to = std::ranges::min_element(counts, {}, [](const auto& entry) { return entry.second; });
    std::map<std::string, std::size_t> have;
    for (const auto& holder : kind.partitions) {
      if (!holder.node.empty() && leased(now, holder.node, holder.incarnation)) ++have[holder.node];
    }
    std::string from;
    std::size_t excess = 0;
    for (const auto& [name, count] : have) {
      if (name == to->first) continue;
      const auto stays = counts.find(name);
      if (stays == counts.end() && !leaves(name, type, view, counts)) continue;  // it came lately
      const auto surplus = stays == counts.end() ? count : (count > to->second + 1 ? (count - to->second) / 2 : 0);
      if (surplus > excess) {
        excess = surplus;
        from = name;
      }
    }
    if (excess == 0) return std::nullopt;
    Move move{type, from, to->first, nodes_.at(from).incarnation, nodes_.at(to->first).incarnation, {}, 0};
    const auto most = std::min({excess, kMovedAtOnce, std::max<std::size_t>(1, kind.partitions.size() / counts.size())});
    for (std::size_t p = 0; p < kind.partitions.size() && move.partitions.size() < most; ++p) {
      if (kind.partitions[p].is(from, move.from_incarnation)) move.partitions.push_back(static_cast<std::uint16_t>(p));
    }
    if (move.partitions.empty()) return std::nullopt;
    return move;
  }

  // It is to have nothing of the type: it leaves, cannot have it any more, or is a reserve that is not needed.
  [[nodiscard]] bool leaves(const std::string& name, const std::string& type, const cluster::ClusterSnapshot& view,
                            const std::map<std::string, std::size_t>& counts) const {
    const auto seen = view.node(name);
    const auto& node = nodes_.at(name);
    const auto hosted = node.types.find(type);
    if ((seen && seen->getDraining()) || hosted == node.types.end()) return true;
    const auto other = nodes_.find(counts.begin()->first);
    return hosted->second.reserve && other != nodes_.end() && !other->second.types.at(type).reserve;
  }

  std::vector<Move> plan_all(Instant now, const cluster::ClusterSnapshot& view) {
    std::vector<Move> moves;
    const auto found = situation(now, view);
    if (found == even_) return moves;
    bool waits = false;
    for (auto& [type, kind] : kinds_) {
      waits = waits || !kind.moving.empty() || now < kind.rest;
      auto move = plan(now, type, kind, view);
      if (!move) continue;
      move->epoch = next_epoch_++;
      kind.moving.insert(move->partitions.begin(), move->partitions.end());
      moves.push_back(std::move(*move));
    }
    if (moves.empty() && !waits) even_ = found;
    return moves;
  }

  // All that a plan depends on.
  [[nodiscard]] std::string situation(Instant now, const cluster::ClusterSnapshot& view) const {
    auto out = format("{} {} {}", view.view().getEpoch(), view.view().getRevision(), revision_);
    for (const auto& [name, node] : nodes_) {
      out += format(" {} {} {}{}", name, node.incarnation.value(), leased(now, name, node.incarnation), now - node.since >= kSettled);
    }
    return out;
  }

  // ---- the loop ---------------------------------------------------------------------------------------------------------------------

  Task<> run(Context& ctx) {
    for (;;) {
      co_await ctx.sleep(kTick);
      const auto view = options_.view->get();
      if (!view || !view->view().getDeciding()) continue;
      const auto now = ctx.now();
      bool changed = finish_moves(now);
      changed = assign(now, *view) || changed;
      auto moves = changed ? std::vector<Move>() : plan_all(now, *view);
      if (changed || !moves.empty()) {
        auto storing = store_and_tell(ctx);
        co_await std::move(storing);
      }
      for (auto& move : moves) ctx.start(carry_out(ctx, std::move(move)));
      for (auto& move : std::exchange(stayed_, {})) ctx.start(give_up(ctx, std::move(move)));
      std::erase_if(leases_, [&](const auto& entry) { return now - entry.second > 10min; });
    }
  }

  // What was decided is wanted from now on: it is stored, however often that fails, and then told. What changes meanwhile comes next.
  Task<> store_and_tell(Context& ctx) {
    ++revision_;
    note_owners();
    const auto map = write();
    for (;;) {
      auto* store = options_.store;
      auto putting =
          ctx.blocking([store, bytes = Bytes(map.bytes().begin(), map.bytes().end())] { return store->put(std::string(kMapKey), bytes); });
      const auto done = co_await putting;
      if (done.has_value()) break;
      log::error("control", "the map of keys cannot be stored", {{"reason", done.error().message}});
      co_await ctx.sleep(500ms);
    }
    published_ = map;
    losing_.clear();
    for (const auto& [name, node] : nodes_) {
      if (node.keeper && ctx.now() - lease_end(name, node.incarnation) < kSilent)
        ctx.tell(node.keeper, published_, {.lane = Lane::control});
    }
  }

  // ---- moves that the owner is asked for ----------------------------------------------------------------------------------------------

  Task<> carry_out(Context& ctx, Move move) {
    log::info("control", "partitions move", {{"type", move.type}, {"from", move.from}, {"to", move.to}, {"count", move.partitions.size()}});
    const auto there = ctx.at(ActorAddress{node_id(move.from), move.from_incarnation, {}, falaj::shards::region_name(move.type)});
    const auto question = Message::build<MovePartitions>(
        [&](MovePartitions::Builder b) {
          auto list = b.initPartitions(static_cast<unsigned>(move.partitions.size()));
          for (unsigned i = 0; i < move.partitions.size(); ++i) list.set(i, move.partitions[i]);
          b.setEpoch(move.epoch);
          b.setNode(move.to);
          b.setIncarnation(move.to_incarnation.value());
          b.setControlEpoch(options_.epoch.value());
        },
        64);
    auto asked = ctx.ask<Empty>(there, question, {.lane = Lane::control, .timeout = kMoveWithin});
    const auto done = co_await asked;
    if (done.has_value()) {
      moved_.push_back(std::move(move));
      co_return;
    }
    log::info("control", "partitions do not move", {{"type", move.type}, {"from", move.from}, {"reason", done.error().message}});
    auto staying = give_up(ctx, std::move(move));
    co_await std::move(staying);
  }

  // Until the owner has heard that it keeps them, or is none any more.
  Task<> give_up(Context& ctx, Move move) {
    const auto there = ctx.at(ActorAddress{node_id(move.from), move.from_incarnation, {}, falaj::shards::region_name(move.type)});
    const auto message = Message::build<KeepPartitions>(
        [&](KeepPartitions::Builder b) {
          auto list = b.initPartitions(static_cast<unsigned>(move.partitions.size()));
          for (unsigned i = 0; i < move.partitions.size(); ++i) list.set(i, move.partitions[i]);
          b.setEpoch(move.epoch);
        },
        64);
    for (;;) {
      auto asked = ctx.ask<Empty>(there, message, {.lane = Lane::control, .timeout = 500ms});
      const auto done = co_await asked;
      const auto& partitions = kinds_.at(move.type).partitions;
      const bool still =
          std::ranges::any_of(move.partitions, [&](std::uint16_t p) { return partitions[p].is(move.from, move.from_incarnation); });
      if (done.has_value() || !still) break;
      co_await ctx.sleep(200ms);
    }
    auto& kind = kinds_.at(move.type);
    for (const auto partition : move.partitions) kind.moving.erase(partition);
    kind.rest = ctx.now() + 1s;
  }

  // The new owner holds what was in them. Dead meanwhile, or the old one: what is lost is assigned like all that is lost.
  bool finish_moves(Instant now) {
    bool changed = false;
    for (auto& move : std::exchange(moved_, {})) {
      auto& kind = kinds_.at(move.type);
      const auto to = nodes_.find(move.to);
      const bool there = to != nodes_.end() && to->second.incarnation == move.to_incarnation && leased(now, move.to, move.to_incarnation);
      if (!there) {
        stayed_.push_back(std::move(move));
        continue;
      }
      for (const auto partition : move.partitions) {
        auto& holder = kind.partitions[partition];
        kind.moving.erase(partition);
        if (!holder.is(move.from, move.from_incarnation) || holder.epoch >= move.epoch) continue;
        holder = Holder{move.to, move.to_incarnation, move.epoch};
        changed = true;
      }
    }
    return changed;
  }

  void note_owners() {
    owners_.clear();
    open_ = false;
    for (const auto& [type, kind] : kinds_) {
      for (const auto& holder : kind.partitions) {
        open_ = open_ || holder.node.empty();
        if (!holder.node.empty()) owners_.emplace(holder.node, holder.incarnation);
      }
    }
  }

  // ---- the map ------------------------------------------------------------------------------------------------------------------------

  void load() {
    const auto stored = options_.store->get(kMapKey);
    if (!stored.has_value()) throw std::runtime_error(stored.error().message);
    if (!stored->has_value()) return;
    const auto message = message_from_bytes(TypeId(capnp::typeId<ShardMap>()), (*stored)->value);
    const auto map = message.has_value() ? message->open<ShardMap>() : Result<View<ShardMap>>(message.error());
    if (!map.has_value()) throw std::runtime_error(format("{}: {}", kMapKey, map.error().message));
    revision_ = (*map)->getRevision();
    next_epoch_ = (*map)->getNextEpoch();
    for (const auto type : (*map)->getTypes()) {
      auto& kind = kinds_[std::string(text(type.getName()))];
      kind.partitions.resize(type.getOwners().size());
      for (std::size_t p = 0; p < kind.partitions.size(); ++p) {
        if (const auto owner = cluster::shard_owner(**map, type, p); owner)
          kind.partitions[p] = Holder{std::string(owner->node), owner->incarnation, owner->epoch};
      }
    }
  }

  [[nodiscard]] Message write() const {
    std::map<Lifetime, std::uint16_t> index;
    for (const auto& owner : owners_) index.emplace(owner, 0);
    return Message::build<ShardMap>(
        [&](ShardMap::Builder b) {
          b.setRevision(revision_);
          b.setNextEpoch(next_epoch_);
          b.setControlEpoch(options_.epoch.value());
          auto nodes = b.initNodes(static_cast<unsigned>(index.size()));
          std::uint16_t next = 0;
          for (auto& [node, number] : index) {
            nodes[next].setName(node.first);
            nodes[next].setIncarnation(node.second.value());
            number = ++next;
          }
          auto types = b.initTypes(static_cast<unsigned>(kinds_.size()));
          unsigned t = 0;
          for (const auto& [name, kind] : kinds_) {
            auto type = types[t++];
            type.setName(name);
            auto owners = type.initOwners(static_cast<unsigned>(kind.partitions.size()));
            auto epochs = type.initEpochs(static_cast<unsigned>(kind.partitions.size()));
            for (unsigned p = 0; p < kind.partitions.size(); ++p) {
              const auto& holder = kind.partitions[p];
              owners.set(p, holder.node.empty() ? 0 : index.at({holder.node, holder.incarnation}));
              epochs.set(p, holder.epoch);
            }
          }
        },
        1024);
  }

  const ShardsOptions options_;
  Instant started_{};
  std::uint64_t revision_ = 1;
  std::uint64_t next_epoch_ = 1;
  std::map<std::string, Kind> kinds_;
  std::map<std::string, Node> nodes_;
  std::map<Lifetime, Instant> leases_;  // until when, with the margin
  std::set<Lifetime> owners_;           // of any partition
  bool open_ = false;                   // some have none
  std::string even_;                    // the situation in which there was nothing to plan
  std::set<Lifetime> losing_;           // they get no lease until the next map is told
  std::vector<Move> moved_;             // their new owners hold everything
  std::vector<Move> stayed_;            // their new owners have gone: the old ones are to go on
  Message published_;                   // stored
};

}  // namespace

ChildSpec shards(ShardsOptions options) {
  ChildSpec spec;
  spec.id = spec.name = "control/shards";
  spec.make = [options] { return std::make_unique<Shards>(options); };
  return spec;
}

}  // namespace falaj::control
