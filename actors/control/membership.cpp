#include "actors/control/membership.hpp"

#include <algorithm>

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

struct Member {
  View<Register> info;  // as it registered
  ActorRef agent;
  bool up = false;
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
    on.message<GetStatus>(&Membership::status);
  }
  explicit Membership(MembershipOptions options) : options_(std::move(options)) {}

  void on_start(Context&) override {
    const auto stored = options_.store->get(kPartitionsKey);
    if (!stored.has_value()) throw std::runtime_error(stored.error().message);
    if (stored->has_value()) read_partitions((*stored)->value);
    view_ = Message::build<ClusterView>([this](ClusterView::Builder b) { fill(b); }, 1024);
  }

  void on_down(Context& ctx, const Down& down) override {
    for (auto& [name, member] : members_) {
      if (!member.up || node_id(name) != down.who.node || Incarnation(member.info->getNode().getIncarnation()) != down.who.incarnation)
        continue;
      member.up = false;
      std::erase_if(placed_, [&](const auto& entry) { return entry.second.node == name; });
      log::warn("control", "node down", {{"node", name}, {"reason", down.reason.message}});
      changed(ctx);
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

  void enter(Context& ctx, Msg<Register> m) {
    const std::string name(text(m->getNode().getName()));
    const Incarnation incarnation(m->getNode().getIncarnation());
    if (m.from().address().node != node_id(name)) return m.refuse(error(ErrorCode::denied, "a node can register only itself"));
    // A view without resources would make nodes forget the feature views and deployments that they serve.
    if (!resources_)
      return m.refuse(error(ErrorCode::overloaded, "control is starting and has not read its resources yet; register again"));
    const auto known = members_.find(name);
    if (known != members_.end() && Incarnation(known->second.info->getNode().getIncarnation()) > incarnation) {
      return m.refuse(error(ErrorCode::gone, format("node {} is known with a newer incarnation", name)));
    }
    const bool again =
        known != members_.end() && known->second.up && Incarnation(known->second.info->getNode().getIncarnation()) == incarnation;
    auto view = m.message().open<Register>();
    if (!view) return m.refuse(view.error());
    std::erase_if(placed_, [&](const auto& entry) { return entry.second.node == name; });
    for (const auto actor : m->getRunning()) placed_[std::string(text(actor.getName()))] = Placed{name, incarnation};
    members_.insert_or_assign(name, Member{std::move(view).value(), m.from(), true});
    if (!again) {
      ctx.watch(m.from());
      log::info("control", "node up", {{"node", name}, {"incarnation", incarnation.value()}});
    }
    changed(ctx);
    m.reply(view_);
  }

  void ready(Context& ctx, Msg<ActorReady> m) {
    const std::string node(text(m->getNode()));
    const auto member = members_.find(node);
    const Incarnation incarnation(m->getIncarnation());
    if (member == members_.end() || !member->second.up || Incarnation(member->second.info->getNode().getIncarnation()) != incarnation) {
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

  void publish_resources(Context& ctx, Msg<PublishResources> m) {
    const bool news = !resources_ || !std::ranges::equal(resources_.bytes(), m.message().bytes());
    resources_ = m.message();
    if (news) changed(ctx);
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
    m.reply(Message::build<ClusterStatus>([&](ClusterStatus::Builder b) { b.setView(*view_.view<ClusterView>()); }, 512));
  }

  // Builds the new view and tells every agent. Views are small: nodes, names, resources.
  void changed(Context& ctx) {
    ++revision_;
    view_ = Message::build<ClusterView>([this](ClusterView::Builder b) { fill(b); }, 1024);
    for (const auto& [name, member] : members_) {
      if (fault::planted("last-node-not-told") && name == members_.rbegin()->first) break;
      if (member.up) ctx.tell(member.agent, view_, {.lane = Lane::control});
    }
    ctx.tell(ctx.find("control/resources"), Message::build<ViewChanged>([this](ViewChanged::Builder b) { b.setRevision(revision_); }));
  }

  void fill(ClusterView::Builder b) {
    b.setCluster(options_.cluster);
    b.setEpoch(options_.epoch.value());
    b.setRevision(revision_);
    auto nodes = b.initNodes(static_cast<unsigned>(members_.size()));
    unsigned i = 0;
    for (const auto& [name, member] : members_) {
      nodes.setWithCaveats(i, member.info->getNode());
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
    if (resources_) {
      auto view = resources_.open<PublishResources>();
      if (view) b.setResources((*view)->getResources());
    }
  }

  MembershipOptions options_;
  std::uint64_t revision_ = 0;
  std::map<std::string, Member> members_;
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
