#include "actors/control/foreign.hpp"

#include <algorithm>
#include <map>

#include "actors/governance/audit.hpp"
#include "actors/governance/policy.hpp"
#include "messages/envelope.capnp.h"
#include "messages/foreign.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/host/ask_any.hpp"

namespace falaj::control {
namespace {

using namespace messages;
using falaj::ErrorCode;
using falaj::Lane;

constexpr std::string_view kPrefix = "foreign/";
constexpr std::size_t kNameMax = 200;
constexpr std::string_view kCallVerb = "actors.call";

// ---- the actor of a program -----------------------------------------------------------------------------------------------------------

class Hosted final : public Actor {
 public:
  Hosted(std::string type, ActorAddress program, std::size_t questions_max)
      : type_(std::move(type)), address_(std::move(program)), questions_max_(questions_max) {}

  [[nodiscard]] std::string_view type() const override { return type_; }
  [[nodiscard]] const HandlerTable& table() const override {
    static const Table everything;
    return everything;
  }

  void on_start(Context& ctx) override {
    program_ = ctx.at(address_);
    ctx.watch(program_);
  }

  void on_down(Context& ctx, const Down& down) override {
    log::info("foreign", "the program is gone", {{"actor", address_.name}, {"reason", down.reason.message}});
    ctx.stop();
  }

 private:
  struct Table : HandlerTable {
    Table() {
      add({TypeId{}, "a message", kCallVerb, [](Actor& actor, Context& ctx, Message& m, Inbound& in) {
             return std::optional(static_cast<Hosted&>(actor).pass(ctx, std::move(m), std::move(in)));
           }});
    }
  };

  Task<> pass(Context& ctx, Message message, Inbound inbound) {
    const auto options = inbound.options();
    if (!inbound.wants_reply()) {
      ctx.tell(program_, std::move(message), options);
      co_return;
    }
    if (questions_ >= questions_max_)
      co_return inbound.refuse(error(ErrorCode::overloaded, format("the program has {} questions to answer already", questions_)));
    ++questions_;
    AskAny asked(ctx, program_, std::move(message), options);
    auto answer = co_await asked;
    --questions_;
    if (!answer.has_value()) co_return inbound.refuse(std::move(answer).error());
    inbound.reply(std::move(answer).value());
  }

  const std::string type_;
  const ActorAddress address_;
  const std::size_t questions_max_;
  ActorRef program_;
  std::size_t questions_ = 0;
};

// ---- node/foreign -----------------------------------------------------------------------------------------------------------------------

struct Hosting {
  std::string principal;
  ActorAddress program;  // its incarnation is the generation of the name
  std::string child;
  ActorAddress actor;
  bool looking = false;  // control is being asked about it
  std::vector<Msg<EndHosted>> ending;
  std::vector<Msg<UnregisterActor>> leaving;
};

class Desk final : public ActorOf<Desk> {
 public:
  static constexpr std::string_view kType = governance::kForeignDesk;
  static void handlers(Handlers<Desk>& on) {
    on.message<RegisterActor>(&Desk::enter);
    on.message<UnregisterActor>(&Desk::leave);
    on.message<EndHosted>(&Desk::end);
  }
  explicit Desk(ForeignOptions options) : options_(std::move(options)) {}

  void on_down(Context& ctx, const Down& down) override {
    const auto found = std::ranges::find_if(hosted_, [&](const auto& entry) { return entry.second.actor == down.who; });
    if (found == hosted_.end()) return;
    const auto name = found->first;
    auto hosting = std::move(found->second);
    hosted_.erase(found);
    // Untold, control learns of it from the program that claims the name next.
    ctx.tell(names(ctx), Message::build<ReleaseName>([&](ReleaseName::Builder b) {
               b.setName(name);
               b.setGeneration(hosting.program.incarnation.value());
             }));
    for (auto& waiting : hosting.ending) waiting.reply(Message::build<Empty>());
    for (auto& waiting : hosting.leaving) waiting.reply(Message::build<Empty>());
    log::info("foreign", "ended", {{"actor", name}, {"principal", hosting.principal}});
  }

 private:
  // ---- who wants to be found --------------------------------------------------------------------------------------------------------

  Task<> enter(Context& ctx, Msg<RegisterActor> m) {
    const std::string name(text(m->getName()));
    const auto type = hosted_type(name);
    if (!type) co_return m.refuse(type.error());
    if (auto may = judge(ctx, m, *type); !may) co_return m.refuse(may.error());
    Hosting hosting{.principal = m.scope()->principal, .program = m.from().address()};
    hosting.program.actor = {};
    hosting.program.name = name;
    if (const auto known = hosted_.find(name); known != hosted_.end()) {
      if (known->second.principal != hosting.principal)
        co_return m.refuse(error(ErrorCode::conflict, format("{} is hosted by {} already", name, known->second.principal)));
      if (known->second.program == hosting.program && !entering_.contains(name)) co_return m.reply(Message::build<Empty>());
    }
    if (auto room = make_room(hosting.program); !room) co_return m.refuse(room.error());
    if (!entering_.emplace(name, 0).second) co_return m.refuse(error(ErrorCode::overloaded, format("{} is being registered", name)));
    auto record = governance::record_of(m.scope(), m.trace(), ctx.node_name(), governance::kRegisterVerb, name);
    auto running = run(ctx, name, *type, std::move(hosting), std::move(record));
    const auto runs = co_await std::move(running);
    entering_.erase(name);
    look_later(ctx);
    if (!runs) co_return m.refuse(runs.error());
    m.reply(Message::build<Empty>());
  }

  Status judge(Context& ctx, const Msg<RegisterActor>& m, std::string_view type) const {
    const auto view = options_.view->get();
    if (!view) return error(ErrorCode::overloaded, "this node does not know its cluster yet; ask again");
    // What a node passes on comes from an actor of that node: nothing could be sent to the program there.
    const auto from = m.from().address().node;
    bool from_node = !m.scope() || from == ctx.node();
    for (const auto node : view->view().getNodes()) from_node = from_node || node_id(text(node.getName())) == from;
    if (from_node) return error(ErrorCode::denied, "a program registers actors over a link of its own");
    if (options_.authorizer == nullptr) return error(ErrorCode::denied, "nobody has any right on this node: it was given no policy");
    return options_.authorizer->allow(*m.scope(), governance::kRegisterVerb, type, "RegisterActor");
  }

  Status make_room(const ActorAddress& program) const {
    const auto its = std::ranges::count_if(hosted_, [&](const auto& entry) { return entry.second.program.node == program.node; });
    if (hosted_.size() + entering_.size() < options_.names_max && static_cast<std::size_t>(its) < options_.names_of_a_program_max)
      return {};
    return error(ErrorCode::overloaded, format("a node hosts at most {} actors, {} of one program: register fewer, or at another node",
                                               options_.names_max, options_.names_of_a_program_max));
  }

  Task<Status> run(Context& ctx, std::string name, std::string type, Hosting hosting, governance::AuditRecord record) {
    auto audited = governance::audit_ask(ctx, std::move(record));
    if (const auto done = co_await std::move(audited); !done) co_return done.error();
    auto claimed = claim(ctx, name, hosting.principal, hosting.program.incarnation, false);
    if (const auto done = co_await std::move(claimed); !done) co_return done.error();
    if (const auto older = hosted_.find(name); older != hosted_.end()) {  // control did not know of it
      auto ended = ctx.ask<Empty>(ctx.self(), end_message(name, older->second.program.incarnation));
      if (const auto done = co_await ended; !done) co_return done.error();
    }
    if (entering_[name] >= hosting.program.incarnation.value())
      co_return error(ErrorCode::gone, format("{} has been taken over meanwhile", name));
    ChildSpec spec;
    spec.id = hosting.child = format("{}#{}", name, ++started_);
    spec.name = name;
    spec.restart = Restart::temporary;
    spec.make = [type = std::move(type), program = hosting.program, most = options_.questions_max] {
      return std::make_unique<Hosted>(type, program, most);
    };
    const auto actor = ctx.spawn(std::move(spec));
    hosting.actor = actor.address();
    ctx.watch(actor);
    log::info("foreign", "started", {{"actor", name}, {"principal", hosting.principal}});
    const auto child = hosting.child;
    const auto principal = hosting.principal;
    const auto generation = hosting.program.incarnation;
    hosted_.insert_or_assign(name, std::move(hosting));
    auto shown = claim(ctx, name, principal, generation, true);
    const auto done = co_await std::move(shown);
    const auto now = hosted_.find(name);
    if (now == hosted_.end() || now->second.child != child)
      co_return error(ErrorCode::gone, format("{} has ended before it was known", name));
    if (!done) {
      ctx.stop_child(child);
      co_return done.error();
    }
    co_return Status{};
  }

  void leave(Context& ctx, Msg<UnregisterActor> m) {
    const auto from = m.from().address();
    const auto found = hosted_.find(text(m->getName()));
    if (found == hosted_.end() || found->second.program.node != from.node || found->second.program.incarnation != from.incarnation)
      return m.refuse(error(ErrorCode::not_found, format("this program hosts no actor named {}", text(m->getName()))));
    found->second.leaving.push_back(std::move(m));
    ctx.stop_child(found->second.child);
  }

  // ---- control ------------------------------------------------------------------------------------------------------------------------

  void end(Context& ctx, Msg<EndHosted> m) {
    if (const auto entering = entering_.find(text(m->getName())); entering != entering_.end())
      entering->second = std::max(entering->second, m->getGeneration());
    const auto found = hosted_.find(text(m->getName()));
    if (found == hosted_.end() || found->second.program.incarnation.value() > m->getGeneration()) return m.reply(Message::build<Empty>());
    found->second.ending.push_back(std::move(m));
    ctx.stop_child(found->second.child);
  }

  static Message end_message(const std::string& name, Incarnation generation) {
    return Message::build<EndHosted>([&](EndHosted::Builder b) {
      b.setName(name);
      b.setGeneration(generation.value());
    });
  }

  [[nodiscard]] ActorRef names(Context& ctx) const {
    return ctx.at(ActorAddress{node_id(options_.control_node), {}, {}, "control/foreign"});
  }

  Task<Status> claim(Context& ctx, std::string name, std::string principal, Incarnation generation, bool running) {
    const auto message = Message::build<ClaimName>([&](ClaimName::Builder b) {
      b.setName(name);
      b.setNode(ctx.node_name());
      b.setIncarnation(ctx.self().address().incarnation.value());
      b.setPrincipal(principal);
      b.setGeneration(generation.value());
      b.setRunning(running);
    });
    auto asked = ctx.ask<Empty>(names(ctx), message);
    const auto done = co_await asked;
    if (!done) co_return done.error();
    co_return Status{};
  }

  // Control may have been started again, or have taken this node for dead: then it is told again.
  void look_later(Context& ctx) {
    if (looking_ || hosted_.empty()) return;
    looking_ = true;
    ctx.after(options_.look, [this](Context& c) {
      looking_ = false;
      look(c);
      look_later(c);
    });
  }

  void look(Context& ctx) {
    const auto view = options_.view->get();
    for (auto& [name, hosting] : hosted_) {
      const auto shown = view ? view->find(name) : std::nullopt;
      if (hosting.looking || entering_.contains(name) || (shown && shown->node == ctx.node())) continue;
      hosting.looking = true;
      ctx.start(claim_again(ctx, name, hosting.child, hosting.principal, hosting.program.incarnation));
    }
  }

  Task<> claim_again(Context& ctx, std::string name, std::string child, std::string principal, Incarnation generation) {
    auto claimed = claim(ctx, name, std::move(principal), generation, true);
    const auto done = co_await std::move(claimed);
    const auto now = hosted_.find(name);
    if (now == hosted_.end() || now->second.child != child) co_return;
    now->second.looking = false;
    if (done || (done.error().code != ErrorCode::gone && done.error().code != ErrorCode::conflict)) co_return;
    log::warn("foreign", "lost its name", {{"actor", name}, {"reason", done.error().message}});
    ctx.stop_child(child);
  }

  const ForeignOptions options_;
  std::map<std::string, Hosting, std::less<>> hosted_;
  std::map<std::string, std::uint64_t, std::less<>> entering_;  // being registered; up to which generation control has ended it meanwhile
  std::uint64_t started_ = 0;
  bool looking_ = false;
};

bool good_part(std::string_view part) {
  return !part.empty() && part.size() <= 63 && part.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789._-") == part.npos &&
         part.find_first_not_of('.') != part.npos;
}

}  // namespace

Result<std::string> hosted_type(std::string_view name) {
  const auto bad = [&] {
    return invalid(
        format("'{}': the name of an actor that a program hosts is foreign/SERVICE or foreign/SERVICE/MORE, parts of [a-z0-9._-]",
               name.substr(0, kNameMax)));
  };
  if (!name.starts_with(kPrefix) || name.size() > kNameMax) return bad();
  auto rest = name.substr(kPrefix.size());
  const auto service = rest.substr(0, rest.find('/'));
  for (;;) {
    const auto slash = rest.find('/');
    if (!good_part(rest.substr(0, slash))) return bad();
    if (slash == rest.npos) break;
    rest.remove_prefix(slash + 1);
  }
  return std::string(kPrefix) + std::string(service);
}

ChildSpec foreign(ForeignOptions options) {
  ChildSpec spec;
  spec.id = governance::kForeignDesk;
  spec.name = spec.id;
  spec.make = [options = std::move(options)] { return std::make_unique<Desk>(options); };
  return spec;
}

}  // namespace falaj::control
