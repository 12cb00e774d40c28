#include "actors/control/membership.hpp"

#include <algorithm>

#include "actors/control/suspicion.hpp"
#include "actors/control/witness.hpp"
#include "actors/governance/audit.hpp"
#include "messages/control_internal.capnp.h"
#include "messages/envelope.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/log.hpp"

namespace falaj::control {
namespace {

using namespace messages;
using falaj::ErrorCode;
using falaj::Lane;

constexpr std::string_view kEpochKey = "control/epoch";
constexpr std::string_view kPartitionsKey = "control/partitions";
constexpr std::string_view kKnownKey = "control/members";
constexpr Duration kGather = std::chrono::milliseconds(5);
constexpr Duration kAllKnowWithin = std::chrono::seconds(1);
constexpr Duration kLookAgain = std::chrono::milliseconds(200);     // at a node that is suspected
constexpr Duration kAnswerWithin = std::chrono::milliseconds(400);  // of a node that is accused

struct Member {
  View<Register> info;  // as it registered
  ActorRef agent;
  bool up = false;
  bool watched = false;  // on_down has not come yet
  bool looking = false;  // look_after() runs
  Suspicion suspicion;
};

struct Placed {
  std::string node;
  Incarnation incarnation;
};

class Membership final : public ActorOf<Membership> {
 public:
  static constexpr std::string_view kType = "control/membership";
  static void handlers(Handlers<Membership>& on) {
    on.message<Register>(&Membership::enter);
    on.message<ActorReady>(&Membership::ready);
    on.message<DropActor>(&Membership::drop);
    on.message<PublishResources>(&Membership::publish_resources);
    on.message<DealPartitions>(&Membership::deal);
    on.message<RevocationsChanged>(&Membership::revocations_changed);
    on.message<Accuse>(&Membership::accused);
    on.message<DrainNode>(&Membership::drain);
    on.message<ForgetNode>(&Membership::forget);
    on.message<GetStatus>(&Membership::status);
  }
  explicit Membership(MembershipOptions options) : options_(std::move(options)) {}

  void on_start(Context&) override {
    const auto stored = options_.store->get(kPartitionsKey);
    if (!stored.has_value()) throw std::runtime_error(stored.error().message);
    if (stored->has_value()) read_partitions((*stored)->value);
    read_known();
    view_ = Message::build<ClusterView>([this](ClusterView::Builder b) { fill(b); }, 1024);
  }

  void on_down(Context& ctx, const Down& down) override {
    for (auto& [name, member] : members_) {
      if (!(member.agent.address() == down.who)) continue;
      member.watched = false;
      suspect(ctx, name, down.reason.message);
      return;
    }
  }

 private:
  // One node name a line, then 256 bytes of indices.
  void read_partitions(const Bytes& bytes) {
    std::string name;
    const auto table = bytes.size() >= limits::kPartitions ? bytes.size() - limits::kPartitions : 0;
    for (std::size_t i = 0; i < table; ++i) {
      if (bytes[i] != '\n') {
        name.push_back(static_cast<char>(bytes[i]));
      } else {
        feature_nodes_.push_back(std::exchange(name, {}));
      }
    }
    partitions_.assign(bytes.begin() + static_cast<std::ptrdiff_t>(table), bytes.end());
  }

  [[nodiscard]] static Incarnation incarnation_of(const Member& member) { return Incarnation(member.info->getNode().getIncarnation()); }

  void read_known() {
    const auto stored = options_.store->get(kKnownKey);
    if (!stored.has_value()) throw std::runtime_error(stored.error().message);
    if (!stored->has_value()) return;
    known_revision_ = (*stored)->modified;
    const auto message = message_from_bytes(TypeId(capnp::typeId<KnownNodes>()), (*stored)->value);
    const auto list = message.has_value() ? message->open<KnownNodes>() : Result<View<KnownNodes>>(message.error());
    if (!list.has_value()) throw std::runtime_error(format("{}: {}", kKnownKey, list.error().message));
    for (const auto node : (*list)->getNodes()) known_.insert_or_assign(std::string(text(node.getName())), node.getDraining());
  }

  // ---- who is here ------------------------------------------------------------------------------------------------------------------

  void enter(Context& ctx, Msg<Register> m) {
    const std::string name(text(m->getNode().getName()));
    const Incarnation incarnation(m->getNode().getIncarnation());
    if (m.from().address().node != node_id(name)) return m.refuse(error(ErrorCode::denied, "a node can register only itself"));
    // A view without resources would make nodes forget the feature views and deployments that they serve.
    if (!resources_)
      return m.refuse(error(ErrorCode::overloaded, "control is starting and has not read its resources yet; register again"));
    const auto known = members_.find(name);
    if (known != members_.end() && incarnation_of(known->second) > incarnation) {
      return m.refuse(error(ErrorCode::gone, format("node {} is known with a newer incarnation", name)));
    }
    const bool again = known != members_.end() && known->second.up && incarnation_of(known->second) == incarnation;
    const bool watched = again && known->second.watched && known->second.agent.address() == m.from().address();
    auto view = m.message().open<Register>();
    if (!view) return m.refuse(view.error());
    std::erase_if(placed_, [&](const auto& entry) { return entry.second.node == name; });
    for (const auto actor : m->getRunning()) placed_[std::string(text(actor.getName()))] = Placed{name, incarnation};
    members_.insert_or_assign(name, Member{std::move(view).value(), m.from(), true, true, false, {}});
    if (!watched) ctx.watch(m.from());
    if (!again) log::info("control", "node up", {{"node", name}, {"incarnation", incarnation.value()}});
    if (known_.emplace(name, false).second) keep_known(ctx);
    changed(ctx);
    refresh();
    m.reply(view_);
  }

  // ---- who is lost ------------------------------------------------------------------------------------------------------------------

  // Control's own evidence.
  void suspect(Context& ctx, const std::string& name, const std::string& why) {
    Member& member = members_.at(name);
    if (!member.up || member.suspicion.suspected()) return;
    member.suspicion.lost(ctx.now());
    log::info("control", "node suspected", {{"node", name}, {"reason", why}});
    if (!judge(ctx, name, why)) look_after(ctx, name, why);
    if (deciding() != told_deciding_) changed(ctx);
  }

  void accused(Context& ctx, Msg<Accuse> m) {
    const std::string name(text(m->getNode()));
    const auto witness = witness_of(m.from().address().node);
    m.reply(Message::build<Empty>());
    const auto known = members_.find(name);
    if (witness.empty() || known == members_.end() || incarnation_of(known->second) != Incarnation(m->getIncarnation())) return;
    known->second.suspicion.accuse(witness, ctx.now());
    const std::string why(text(m->getReason()));
    if (known->second.up && !judge(ctx, name, why)) look_after(ctx, name, why);
  }

  std::string witness_of(NodeId node) const {
    const auto found = std::ranges::find_if(members_, [node](const auto& entry) { return node_id(entry.first) == node; });
    return found == members_.end() ? std::string() : found->first;
  }

  // True: it is down now.
  bool judge(Context& ctx, const std::string& name, const std::string& why) {
    Member& member = members_.at(name);
    if (!member.up) return true;
    std::size_t others = 0;
    std::size_t lost = 0;
    for (const auto& [other, one] : members_) {
      if (!one.up || other == ctx.node_name()) continue;
      ++others;
      if (one.suspicion.suspected()) ++lost;
    }
    Suspicion::Court court;
    court.counts = [&](const std::string& witness) {
      const auto found = members_.find(witness);
      return found != members_.end() && found->second.up && !found->second.suspicion.suspected() && !leaving(witness);
    };
    court.witnesses = std::ranges::any_of(
        members_, [&](const auto& entry) { return entry.first != name && entry.first != ctx.node_name() && court.counts(entry.first); });
    court.many = lost > 1 && lost * 2 > others;
    if (!member.suspicion.dead(ctx.now(), court)) return false;
    member.up = false;
    std::erase_if(placed_, [&](const auto& entry) { return entry.second.node == name; });
    log::warn("control", "node down", {{"node", name}, {"reason", why}});
    buried_.push_back(member.agent);
    changed(ctx);
    return true;
  }

  // Asks a node that is suspected or accused, until it answers, registers again or is taken for dead.
  void look_after(Context& ctx, const std::string& name, const std::string& why) {
    Member& member = members_.at(name);
    if (std::exchange(member.looking, true)) return;
    ctx.start(look(ctx, name, incarnation_of(member), why));
  }

  Task<> look(Context& ctx, std::string name, Incarnation incarnation, std::string why) {
    const auto there = ctx.at(ActorAddress{node_id(name), incarnation, {}, std::string(kWitness)});
    for (;;) {
      auto asked = ctx.ask<Empty>(there, Message::build<Ping>(), {.lane = Lane::control, .timeout = kAnswerWithin});
      const auto answer = co_await asked;
      const auto known = members_.find(name);
      if (known == members_.end() || incarnation_of(known->second) != incarnation || !known->second.looking) co_return;
      Member& member = known->second;
      if (answer.has_value() && member.watched) {
        member.suspicion.heard();
      } else if (!answer.has_value() && answer.error().code != ErrorCode::overloaded) {
        suspect(ctx, name, why);
      }
      if (!member.up || judge(ctx, name, why) || !(member.suspicion.suspected() || member.suspicion.accused(ctx.now()))) {
        member.looking = false;
        if (deciding() != told_deciding_) changed(ctx);
        co_return;
      }
      co_await ctx.sleep(kLookAgain);
    }
  }

  [[nodiscard]] bool leaving(const std::string& name) const {
    const auto found = known_.find(name);
    return found != known_.end() && found->second;
  }

  [[nodiscard]] std::size_t here() const {
    return static_cast<std::size_t>(
        std::ranges::count_if(members_, [](const auto& m) { return m.second.up && !m.second.suspicion.suspected(); }));
  }
  [[nodiscard]] bool deciding() const { return here() * 2 >= known_.size(); }

  // ---- who leaves -------------------------------------------------------------------------------------------------------------------

  Task<> drain(Context& ctx, Msg<DrainNode> m) {
    const std::string name(text(m->getNode()));
    const bool on = !m->getUndo();
    if (!known_.contains(name)) co_return m.refuse(error(ErrorCode::not_found, format("no node '{}'; falaj status shows them", name)));
    auto audited = governance::audit_ask(ctx, governance::record_of(m.scope(), m.trace(), ctx.node_name(), "nodes.drain", "node/" + name));
    if (const auto kept = co_await std::move(audited); !kept) co_return m.refuse(within("not audited, so not done", kept.error()));
    const auto known = known_.find(name);
    if (known == known_.end()) co_return m.refuse(error(ErrorCode::not_found, format("no node '{}' any more", name)));
    if (std::exchange(known->second, on) != on) {
      log::info("control", on ? "node leaves" : "node stays", {{"node", name}});
      changed(ctx);
      keep_known(ctx);
    }
    auto waiting = kept(ctx);
    const auto stored = co_await std::move(waiting);
    stored.has_value() ? m.reply(Message::build<Empty>()) : m.refuse(stored.error());
  }

  Task<> forget(Context& ctx, Msg<ForgetNode> m) {
    const std::string name(text(m->getNode()));
    if (auto may = forgettable(name); !may) co_return m.refuse(may.error());
    auto audited = governance::audit_ask(ctx, governance::record_of(m.scope(), m.trace(), ctx.node_name(), "nodes.forget", "node/" + name));
    if (const auto kept = co_await std::move(audited); !kept) co_return m.refuse(within("not audited, so not done", kept.error()));
    if (auto may = forgettable(name); !may) co_return m.refuse(may.error());
    known_.erase(name);
    members_.erase(name);
    changed(ctx);
    keep_known(ctx);
    auto waiting = kept(ctx);
    const auto stored = co_await std::move(waiting);
    stored.has_value() ? m.reply(Message::build<Empty>()) : m.refuse(stored.error());
  }

  Status forgettable(const std::string& name) const {
    if (!known_.contains(name)) return error(ErrorCode::not_found, format("no node '{}'; falaj status shows them", name));
    if (const auto member = members_.find(name); member != members_.end() && member->second.up) {
      return error(ErrorCode::conflict, format("node {} is up; end it first", name));
    }
    if (std::ranges::find(feature_nodes_, name) != feature_nodes_.end()) {
      return error(ErrorCode::conflict, format("node {} holds feature partitions, whose rows nobody else has; start it again", name));
    }
    return {};
  }

  // ---- what is known for good -------------------------------------------------------------------------------------------------------

  // One writer; what changes while it writes is written next.
  void keep_known(Context& ctx) {
    ++known_wanted_;
    if (!std::exchange(keeping_, true)) ctx.start(write_known(ctx));
  }

  Task<> write_known(Context& ctx) {
    while (known_stored_ != known_wanted_) {
      const auto wanted = known_wanted_;
      const auto message = Message::build<KnownNodes>([this](KnownNodes::Builder b) {
        auto list = b.initNodes(static_cast<unsigned>(known_.size()));
        unsigned i = 0;
        for (const auto& [name, draining] : known_) {
          list[i].setName(name);
          list[i++].setDraining(draining);
        }
      });
      auto* store = options_.store;
      auto write = ctx.blocking([store, revision = known_revision_, bytes = Bytes(message.bytes().begin(), message.bytes().end())] {
        return store->put(std::string(kKnownKey), bytes, revision);
      });
      const auto done = co_await write;
      if (done.has_value()) {
        known_revision_ = *done;
        known_stored_ = wanted;
        continue;
      }
      log::error("control", "the list of nodes cannot be stored", {{"reason", done.error().message}});
      co_await ctx.sleep(std::chrono::milliseconds(500));
    }
    keeping_ = false;
  }

  Task<Status> kept(Context& ctx) {
    const auto wanted = known_wanted_;
    const auto limit = ctx.now() + limits::kAskDefault / 2;
    while (known_stored_ < wanted) {
      if (ctx.now() >= limit) co_return error(ErrorCode::overloaded, "control's disk is slow or full; try again");
      co_await ctx.sleep(std::chrono::milliseconds(5));
    }
    co_return Status{};
  }

  // ---- what runs where ----------------------------------------------------------------------------------------------------------------

  void ready(Context& ctx, Msg<ActorReady> m) {
    const std::string node(text(m->getNode()));
    const auto member = members_.find(node);
    const Incarnation incarnation(m->getIncarnation());
    if (member == members_.end() || !member->second.up || incarnation_of(member->second) != incarnation) {
      return m.refuse(error(ErrorCode::gone, format("node {} is not up with that incarnation", node)));
    }
    placed_[std::string(text(m->getName()))] = Placed{node, incarnation};
    changed(ctx);
    m.reply(Message::build<Empty>());
  }

  void drop(Context& ctx, Msg<DropActor> m) {
    if (placed_.erase(std::string(text(m->getName()))) != 0) changed(ctx);
    m.reply(Message::build<Empty>());
  }

  // Whose resource was applied may ask any node for it next: answered when each node that is up has the view, or did not say so in time
  // (it is dead then, or about to be declared so).
  Task<> publish_resources(Context& ctx, Msg<PublishResources> m) {
    const bool news = !resources_ || !std::ranges::equal(resources_.bytes(), m.message().bytes());
    resources_ = m.message();
    if (news) {
      stale_ = true;
      new_view(ctx);
      auto told = ctx.ask_all<Empty>(listeners(), view_, 0, {.lane = Lane::control, .timeout = kAllKnowWithin});
      co_await told;
    }
    m.reply(Message::build<Empty>());
  }

  Task<> deal(Context& ctx, Msg<DealPartitions> m) {
    if (!partitions_.empty()) co_return m.reply(Message::build<Empty>());
    std::vector<std::string> nodes;
    for (const auto& [name, member] : members_) {
      if (!member.up) continue;
      for (const auto role : member.info->getNode().getRoles()) {
        if (role == Role::FEATURES) nodes.push_back(name);
      }
    }
    if (nodes.empty())
      co_return m.refuse(error(ErrorCode::overloaded, "no node with the role `features` is up; start one and apply the view again"));
    Bytes stored;
    for (const auto& name : nodes) {
      stored.insert(stored.end(), name.begin(), name.end());
      stored.push_back('\n');
    }
    std::vector<std::uint8_t> owners;
    owners.reserve(limits::kPartitions);
    for (std::uint16_t p = 0; p < limits::kPartitions; ++p) owners.push_back(static_cast<std::uint8_t>(p % nodes.size()));
    stored.insert(stored.end(), owners.begin(), owners.end());
    auto* store = options_.store;
    auto write = ctx.blocking([store, stored = std::move(stored)] { return store->put(std::string(kPartitionsKey), stored, Revision(0)); });
    const auto done = co_await write;
    if (!done) co_return m.refuse(done.error());
    feature_nodes_ = std::move(nodes);
    partitions_ = std::move(owners);
    changed(ctx);
    m.reply(Message::build<Empty>());
  }

  void revocations_changed(Context& ctx, Msg<RevocationsChanged> m) {
    changed(ctx);
    m.reply(Message::build<Empty>());
  }

  void status(Context&, Msg<GetStatus> m) {
    refresh();
    m.reply(Message::build<ClusterStatus>([&](ClusterStatus::Builder b) { b.setView(*view_.view<ClusterView>()); }, 512));
  }

  // What changes within a moment (many nodes lost or registering at once) becomes one view.
  void changed(Context& ctx) {
    stale_ = true;
    if (std::exchange(telling_, true)) return;
    ctx.after(kGather, [this](Context& later) {
      if (!telling_) return;  // told meanwhile
      new_view(later);
      for (const auto& agent : listeners()) later.tell(agent, view_, {.lane = Lane::control});
    });
  }

  void refresh() {
    if (!std::exchange(stale_, false)) return;
    ++revision_;
    view_ = Message::build<ClusterView>([this](ClusterView::Builder b) { fill(b); }, 1024);
  }

  // For all who are up; the others of this node hear of it here.
  void new_view(Context& ctx) {
    telling_ = false;
    refresh();
    if (const bool now = deciding(); now != std::exchange(told_deciding_, now)) {
      log::warn("control", now ? "half of the nodes are here: deciding" : "fewer than half of the nodes are here: deciding nothing",
                {{"here", here()}, {"known", known_.size()}});
    }
    // Should one live after all, it learns so, and registers again.
    for (const auto& agent : std::exchange(buried_, {})) ctx.tell(agent, view_, {.lane = Lane::control});
    ctx.tell(ctx.find("control/resources"), Message::build<ViewChanged>([this](ViewChanged::Builder b) { b.setRevision(revision_); }));
  }

  [[nodiscard]] std::vector<ActorRef> listeners() const {
    std::vector<ActorRef> out;
    for (const auto& [name, member] : members_) {
      if (fault::planted("last-node-not-told") && name == members_.rbegin()->first) break;
      if (member.up) out.push_back(member.agent);
    }
    return out;
  }

  void fill(ClusterView::Builder b) {
    b.setCluster(options_.cluster);
    b.setEpoch(options_.epoch.value());
    b.setRevision(revision_);
    auto nodes = b.initNodes(static_cast<unsigned>(members_.size()));
    unsigned i = 0;
    for (const auto& [name, member] : members_) {
      nodes.setWithCaveats(i, member.info->getNode());
      nodes[i].setDraining(leaving(name));
      nodes[i++].setUp(member.up);
    }
    auto directory = b.initDirectory(static_cast<unsigned>(placed_.size()));
    i = 0;
    for (const auto& [name, place] : placed_) {
      directory[i].setName(name);
      directory[i].setNode(place.node);
      directory[i++].setReady(true);
    }
    auto owners = b.initPartitions(static_cast<unsigned>(partitions_.size()));
    for (unsigned p = 0; p < partitions_.size(); ++p) owners.set(p, partitions_[p]);
    auto shards = b.initFeatureNodes(static_cast<unsigned>(feature_nodes_.size()));
    for (unsigned n = 0; n < feature_nodes_.size(); ++n) shards.set(n, feature_nodes_[n]);
    if (const auto stored = options_.store->list("revoked/"); stored.has_value()) {
      auto entries = b.initRevoked(static_cast<unsigned>(stored->items.size()));
      for (unsigned n = 0; n < entries.size(); ++n) entries.set(n, std::string(as_text(stored->items[n].value)));
    }
    b.setKnown(static_cast<std::uint32_t>(known_.size()));
    b.setDeciding(deciding());
    if (resources_) {
      auto view = resources_.open<PublishResources>();
      if (view) b.setResources((*view)->getResources());
    }
  }

  MembershipOptions options_;
  std::uint64_t revision_ = 0;
  std::map<std::string, Member> members_;
  std::map<std::string, bool> known_;  // ever registered, not forgotten; true: it is to leave
  Revision known_revision_;            // of its record
  std::uint64_t known_wanted_ = 0;     // versions of known_
  std::uint64_t known_stored_ = 0;
  bool keeping_ = false;
  bool told_deciding_ = false;
  std::vector<ActorRef> buried_;          // agents of nodes that are down since the last telling
  bool stale_ = false;                    // view_ is
  bool telling_ = false;                  // all hear of it soon
  std::map<std::string, Placed> placed_;  // the directory
  std::vector<std::string> feature_nodes_;
  std::vector<std::uint8_t> partitions_;  // indices into feature_nodes_
  Message resources_;
  Message view_;
};

}  // namespace

Result<Epoch> next_epoch(storage::ControlStore& store) {
  FALAJ_ASSIGN(const auto stored, store.get(kEpochKey));
  std::uint64_t epoch = 0;
  if (stored) {
    for (const auto digit : as_text(stored->value)) epoch = epoch * 10 + static_cast<std::uint64_t>(digit - '0');
  }
  ++epoch;
  if (fault::planted("epoch-not-stored")) return Epoch(epoch);
  auto written = store.put(std::string(kEpochKey), to_bytes(std::to_string(epoch)), stored ? stored->modified : Revision(0));
  if (!written) return written.error();
  return Epoch(epoch);
}

ChildSpec membership(MembershipOptions options) {
  ChildSpec spec;
  spec.id = "control/membership";
  spec.name = spec.id;
  spec.make = [options = std::move(options)] { return std::make_unique<Membership>(options); };
  return spec;
}

}  // namespace falaj::control
