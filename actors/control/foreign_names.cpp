// control/foreign: whose a name is.
#include <map>

#include "actors/control/foreign.hpp"
#include "messages/control.capnp.h"
#include "messages/control_internal.capnp.h"
#include "messages/envelope.capnp.h"
#include "messages/foreign.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"

namespace falaj::control {
namespace {

using namespace messages;
using falaj::ErrorCode;
using falaj::Lane;

constexpr std::size_t kHoldersMax = 16384;
constexpr auto kEndWithin = std::chrono::seconds(1);  // who does not answer by then is lost

// Who has a name, or had it last: remembered, so that what was older stays out.
struct Holder {
  std::string principal;
  std::string node;
  std::uint64_t generation = 0;
  ActorRef desk;  // node/foreign there; empty: nobody has the name now
};

class Names final : public ActorOf<Names> {
 public:
  static constexpr std::string_view kType = "control/foreign";
  static void handlers(Handlers<Names>& on) {
    on.message<ClaimName>(&Names::claim);
    on.message<ReleaseName>(&Names::release);
  }

  void on_down(Context& ctx, const Down& down) override {
    for (auto& [name, holder] : holders_) {
      if (holder.desk && holder.desk.address() == down.who) let_go(ctx, name, holder);
    }
  }

 private:
  Task<> claim(Context& ctx, Msg<ClaimName> m) {
    const std::string name(text(m->getName()));
    const auto generation = m->getGeneration();
    const auto desk = m.from();
    if (desk.address().node != node_id(text(m->getNode())))
      co_return m.refuse(error(ErrorCode::denied, "a node claims names for itself only"));
    if (auto room = make_room(name); !room) co_return m.refuse(room.error());
    auto& holder = holders_[name];
    if (holder.desk && holder.principal != text(m->getPrincipal()))
      co_return m.refuse(error(ErrorCode::conflict, format("{} is hosted by {} already", name, holder.principal)));
    if (generation < holder.generation)
      co_return m.refuse(error(ErrorCode::gone, format("{} is hosted by a newer incarnation ({})", name, holder.generation)));
    // First it is written down, so that what is older is refused from now on; then the old one ends.
    const Holder old =
        std::exchange(holder, Holder{std::string(text(m->getPrincipal())), std::string(text(m->getNode())), generation, desk});
    ctx.watch(desk);
    if (old.desk && (old.generation != generation || old.desk.address() != desk.address())) co_await end(ctx, name, old);
    if (!holds(name, generation, desk)) co_return m.refuse(error(ErrorCode::gone, format("{} has been taken over meanwhile", name)));
    if (m->getRunning()) {
      const auto ready = Message::build<ActorReady>([&](ActorReady::Builder b) {
        b.setName(name);
        b.setNode(m->getNode());
        b.setIncarnation(m->getIncarnation());
      });
      auto asked = ctx.ask<Empty>(ctx.find("control/membership"), ready);
      const auto done = co_await asked;
      // Not yet, whatever it was: the node tells it again.
      if (!done) co_return m.refuse(error(ErrorCode::overloaded, done.error().message));
    }
    m.reply(Message::build<Empty>());
  }

  Task<> end(Context& ctx, std::string name, Holder old) {
    drop(ctx, name);
    const auto message = Message::build<EndHosted>([&](EndHosted::Builder b) {
      b.setName(name);
      b.setGeneration(old.generation);
    });
    auto asked = ctx.ask<Empty>(old.desk, message, {.timeout = kEndWithin});
    const auto ended = co_await asked;
    if (!ended)
      log::warn("control", "an actor may outlive its name", {{"actor", name}, {"node", old.node}, {"reason", ended.error().message}});
  }

  [[nodiscard]] bool holds(const std::string& name, std::uint64_t generation, const ActorRef& desk) const {
    const auto found = holders_.find(name);
    return found != holders_.end() && found->second.generation == generation && found->second.desk &&
           found->second.desk.address() == desk.address();
  }

  void release(Context& ctx, Msg<ReleaseName> m) {
    const std::string name(text(m->getName()));
    if (holds(name, m->getGeneration(), m.from())) let_go(ctx, name, holders_[name]);
    m.reply(Message::build<Empty>());
  }

  void let_go(Context& ctx, const std::string& name, Holder& holder) {
    holder.desk = {};
    drop(ctx, name);
  }

  static void drop(Context& ctx, const std::string& name) {
    ctx.tell(ctx.find("control/membership"), Message::build<DropActor>([&](DropActor::Builder b) { b.setName(name); }));
  }

  Status make_room(const std::string& name) {
    if (holders_.size() < kHoldersMax || holders_.contains(name)) return {};
    std::erase_if(holders_, [](const auto& entry) { return !entry.second.desk; });
    if (holders_.size() < kHoldersMax) return {};
    return error(ErrorCode::overloaded, format("programs host {} actors already", kHoldersMax));
  }

  std::map<std::string, Holder, std::less<>> holders_;
};

}  // namespace

ChildSpec foreign_names() {
  ChildSpec spec;
  spec.id = "control/foreign";
  spec.name = spec.id;
  spec.make = [] { return std::make_unique<Names>(); };
  return spec;
}

}  // namespace falaj::control
