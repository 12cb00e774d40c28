#include "actors/control/agent.hpp"

#include <algorithm>

#include "actors/governance/audit.hpp"
#include "messages/control_internal.capnp.h"
#include "messages/envelope.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/base/retry.hpp"

namespace falaj::control {
namespace {

using namespace messages;
using falaj::ErrorCode;
using falaj::Lane;
using std::chrono::milliseconds;

constexpr std::size_t kSpansMax = 8192;  // in one answer

struct Running {
  Message spec;  // EnsureActor
  std::uint64_t generation = 0;
  pid_t pid = 0;  // of a worker process
  std::uint32_t slot = 0;
};

class Agent final : public ActorOf<Agent> {
 public:
  static constexpr std::string_view kType = "node/agent";
  static void handlers(Handlers<Agent>& on) {
    on.message<ClusterView>(&Agent::view_changed);
    on.message<EnsureActor>(&Agent::ensure);
    on.message<StopActor>(&Agent::stop_actor);
    on.message<ActorReady>(&Agent::child_ready);
    on.message<ProcessEnded>(&Agent::process_ended);
    on.message<GetNodeStats>(&Agent::stats);
    on.message<GetActors>(&Agent::actors);
    on.message<StartTrace>(&Agent::start_trace);
    on.message<StopTrace>(&Agent::stop_trace);
    on.message<GetSpans>(&Agent::spans);
  }
  explicit Agent(AgentOptions options) : options_(std::move(options)) {}

  void on_start(Context& ctx) override { ctx.start(register_for_ever(ctx)); }

  void on_down(Context& ctx, const Down& down) override {
    if (down.who.name == "control/membership" || down.who.node == node_id(options_.control_node)) {
      log::warn("agent", "control lost; going on with the last view", {{"reason", down.reason.message}});
      ctx.start(register_for_ever(ctx));
    }
  }

  void on_stop(Context&) override {
    for (const auto& [name, running] : running_) {
      if (running.pid != 0) options_.workers->end(running.pid);
    }
  }

 private:
  Message registration() {
    auto mine = options_.self.view<Register>();
    return Message::build<Register>([&](Register::Builder b) {
      b.setNode(mine->getNode());
      const auto fixed = mine->getRunning();
      auto list = b.initRunning(fixed.size() + static_cast<unsigned>(running_.size()));
      unsigned i = 0;
      for (const auto actor : fixed) list.setWithCaveats(i++, actor);
      for (const auto& [name, running] : running_) {
        list[i].setName(name);
        list[i++].setGeneration(running.generation);
      }
    });
  }

  // Until control has taken us in; called at start and whenever control was lost.
  Task<> register_for_ever(Context& ctx) {
    if (registering_) co_return;
    registering_ = true;
    RetryDelay wait(milliseconds(20), milliseconds(500));
    for (;;) {
      const auto membership = ctx.at(ActorAddress{node_id(options_.control_node), {}, {}, "control/membership"});
      SendOptions options;
      options.lane = Lane::control;
      options.timeout = std::chrono::seconds(2);
      auto asked = ctx.ask<ClusterView>(membership, registration(), options);
      auto view = co_await asked;
      if (view) {
        take_view(ctx, view->message());
        ctx.watch(membership);
        break;
      }
      log::debug("agent", "control does not answer yet", {{"reason", view.error().message}});
      co_await ctx.sleep(wait.next(ctx.random()));
    }
    registering_ = false;
  }

  void take_view(Context& ctx, const Message& message) {
    auto opened = message.open<ClusterView>();
    if (!opened) return;
    std::vector<std::string> entries;
    for (const auto entry : (*opened)->getRevoked()) entries.emplace_back(text(entry));
    if (entries != revoked_ && options_.revoke) ctx.start(write_revoked(ctx, std::move(entries)));
    auto snapshot = std::make_shared<const cluster::ClusterSnapshot>(std::move(opened).value());
    const auto self = options_.self.view<Register>();
    const auto me = snapshot->node(text(self->getNode().getName()));
    const bool buried = me && !me->getUp() && me->getIncarnation() == self->getNode().getIncarnation();
    if (options_.view->set(snapshot)) options_.on_view(std::move(snapshot));
    if (buried) ctx.start(register_for_ever(ctx));  // taken for dead, and not
  }

  // The links read the list once a second. Entries are never taken out of it: that a view came late does no harm.
  Task<> write_revoked(Context& ctx, std::vector<std::string> entries) {
    auto write = ctx.blocking([revoke = options_.revoke, entries] { return revoke(entries); });
    const auto done = co_await write;
    if (done) {
      revoked_ = std::move(entries);
    } else {
      log::error("agent", "cannot write the revocation list", {{"reason", done.error().message}});
    }
  }

  void view_changed(Context& ctx, Msg<ClusterView> m) {
    take_view(ctx, m.message());
    m.reply(Message::build<Empty>());
  }

  Task<> ensure(Context& ctx, Msg<EnsureActor> m) {
    const auto spec = m->getActor();
    const std::string name(text(spec.getName()));
    if (spec.getEpoch() < epoch_) co_return m.refuse(error(ErrorCode::gone, "a newer control has spoken"));
    epoch_ = spec.getEpoch();
    const auto known = running_.find(name);
    if (known != running_.end()) {
      if (known->second.generation == spec.getGeneration()) co_return m.reply(Message::build<Empty>());
      if (known->second.generation > spec.getGeneration())
        co_return m.refuse(error(ErrorCode::gone, format("{} runs with a newer generation", name)));
      end(ctx, name, known->second);
    }
    Status started;
    if (spec.isWorker()) {
      started = co_await start_worker(ctx, m);
    } else {
      started = start_replica(ctx, m);
    }
    if (!started) co_return m.refuse(started.error());
    log::info("agent", "started", {{"actor", name}, {"generation", spec.getGeneration()}});
    m.reply(Message::build<Empty>());
  }

  Status start_replica(Context& ctx, const Msg<EnsureActor>& m) {
    const auto spec = m->getActor();
    FALAJ_ASSIGN(auto child, options_.make_replica(m.message()));
    const std::string name(text(spec.getName()));
    child.id = name;
    child.name = name;
    ctx.spawn(std::move(child));
    running_[name] = Running{m.message(), spec.getGeneration(), 0, 0};
    return {};
  }

  // A worker is a process of its own, with its own certificate: sticky device errors end it, never the node.
  Task<Status> start_worker(Context& ctx, const Msg<EnsureActor>& m) {
    const auto spec = m->getActor();
    const std::string name(text(spec.getName()));
    if (options_.workers == nullptr) co_return error(ErrorCode::denied, format("node {} has not the role `compute`", ctx.node_name()));
    // Who asks again while this waits for the certificate must not get a second process of that name.
    if (!starting_.emplace(name, spec.getGeneration()).second) co_return error(ErrorCode::overloaded, format("{} is being started", name));
    auto starting = certify_and_run(ctx, m, name);
    auto started = co_await std::move(starting);
    if (is_starting(name, spec.getGeneration())) starting_.erase(name);
    co_return started;
  }

  Task<Status> certify_and_run(Context& ctx, const Msg<EnsureActor>& m, std::string name) {
    const auto spec = m->getActor();
    if (fault::rarely("worker-not-started", 0.25)) co_return error(ErrorCode::overloaded, "no process can be started just now");
    const auto slot = free_slot();
    const auto request = options_.workers->make_request(slot);
    if (!request) co_return request.error();
    const auto question = Message::build<SignWorker>(
        [&](SignWorker::Builder b) {
          b.setIndex(slot);
          b.setNode(ctx.node_name());
          b.setCertificateRequest(data(as_bytes(request->csr_pem)));
        },
        256);
    const auto authority = ctx.at(ActorAddress{node_id(options_.control_node), {}, {}, "control/authority"});
    auto asked = ctx.ask<Signed>(authority, question, {.lane = Lane::control});
    const auto certificate = co_await asked;
    if (!certificate) co_return certificate.error();
    if (!is_starting(name, spec.getGeneration())) co_return error(ErrorCode::gone, format("{} was stopped before it ran", name));
    const net::Credentials credentials{std::string(as_text(bytes((*certificate)->getCertificate()))), request->key_pem};
    // The exit comes on a waiting thread: it becomes a message like any other.
    const auto self = ctx.self();
    const auto pid = options_.workers->start(spec.getWorker(), slot, credentials, [self, name](const std::string& how) {
      auto delivery = std::make_unique<Delivery>();
      delivery->lane = Lane::control;
      delivery->body = Message::build<ProcessEnded>([&](ProcessEnded::Builder b) {
        b.setName(name);
        b.setHow(how);
      });
      self.get()->deliver(std::move(delivery));
    });
    if (!pid) co_return pid.error();
    running_[name] = Running{m.message(), spec.getGeneration(), *pid, slot};
    co_return Status{};
  }

  [[nodiscard]] bool is_starting(const std::string& name, std::uint64_t generation) const {
    const auto found = starting_.find(name);
    return found != starting_.end() && found->second == generation;
  }

  // Counted up for ever: a slot is not used again while an old process may still be dying.
  std::uint32_t free_slot() { return next_slot_++; }

  void process_ended(Context&, Msg<ProcessEnded> m) {
    const std::string name(text(m->getName()));
    log::warn("agent", "worker process ended", {{"worker", name}, {"how", text(m->getHow())}});
    const auto known = running_.find(name);
    // A newer process of that name may already run.
    if (known != running_.end() && known->second.pid != 0 && !options_.workers->runs(known->second.pid)) running_.erase(known);
  }

  void end(Context& ctx, const std::string& name, const Running& running) {
    if (running.pid != 0) {
      options_.workers->end(running.pid);
    } else {
      ctx.stop_child(name);
    }
  }

  void stop_actor(Context& ctx, Msg<StopActor> m) {
    if (m->getEpoch() < epoch_) return m.refuse(error(ErrorCode::gone, "a newer control has spoken"));
    epoch_ = m->getEpoch();
    const std::string name(text(m->getName()));
    starting_.erase(name);
    const auto known = running_.find(name);
    if (known != running_.end()) {
      end(ctx, name, known->second);
      running_.erase(known);
      log::info("agent", "stopped", {{"actor", name}});
    }
    m.reply(Message::build<Empty>());
  }

  // A replica says that it can answer: control puts it into the directory.
  Task<> child_ready(Context& ctx, Msg<ActorReady> m) {
    const auto membership = ctx.at(ActorAddress{node_id(options_.control_node), {}, {}, "control/membership"});
    auto asked = ctx.ask<Empty>(membership, m.message(), {.lane = Lane::control});
    const auto done = co_await asked;
    if (!done) co_return m.refuse(done.error());  // the replica says it again
    m.reply(Message::build<Empty>());
  }

  void stats(Context&, Msg<GetNodeStats> m) {
    m.reply(Message::build<NodeStats>([this](NodeStats::Builder b) {
      options_.fill_stats(b);
      b.setWorkers(static_cast<std::uint32_t>(std::ranges::count_if(running_, [](const auto& one) { return one.second.pid != 0; })));
    }));
  }

  // ---- tracing ----------------------------------------------------------------------------------------------------------------------

  static Message clock_of(Context& ctx) {
    return Message::build<TraceClock>([&](TraceClock::Builder b) { b.setWallNs(ctx.wall().unix_ns); });
  }

  Task<> start_trace(Context& ctx, Msg<StartTrace> m) {
    if (auto ready = may_trace(); !ready) co_return m.refuse(ready.error());
    auto audited =
        governance::audit_ask(ctx, governance::record_of(m.scope(), m.trace(), ctx.node_name(), "cluster.trace", ctx.node_name()));
    if (const auto kept = co_await std::move(audited); !kept) co_return m.refuse(within("not audited, so not done", kept.error()));
    options_.tracer->start(ctx.now(), milliseconds(m->getForMs()), m->getSpansMax());
    m.reply(clock_of(ctx));
  }

  void stop_trace(Context& ctx, Msg<StopTrace> m) {
    if (auto ready = may_trace(); !ready) return m.refuse(ready.error());
    options_.tracer->stop();
    m.reply(clock_of(ctx));
  }

  void spans(Context& ctx, Msg<GetSpans> m) {
    if (auto ready = may_trace(); !ready) return m.refuse(ready.error());
    const auto taken = options_.tracer->take(std::clamp<std::size_t>(m->getLimit(), 1, kSpansMax));
    const auto shift = ctx.wall().unix_ns - ctx.now().time_since_epoch().count();  // from the steady clock to the wall's
    m.reply(Message::build<Spans>(
        [&](Spans::Builder b) {
          auto list = b.initSpans(static_cast<unsigned>(taken.size()));
          for (unsigned i = 0; i < taken.size(); ++i) write_span(list[i], taken[i], shift);
          b.setLeft(static_cast<std::uint32_t>(options_.tracer->left()));
          b.setDropped(options_.tracer->dropped());
        },
        32 * taken.size() + 16));
  }

  Status may_trace() const { return options_.tracer != nullptr ? Status{} : error(ErrorCode::unimplemented, "this node cannot be traced"); }

  static void write_span(Span::Builder out, const TracedSpan& span, std::int64_t shift) {
    out.setBeginNs(span.begin.time_since_epoch().count() + shift);
    out.setWaitedNs(static_cast<std::uint64_t>(span.waited.count()));
    out.setHandledNs(static_cast<std::uint64_t>(span.handled.count()));
    out.setActor(span.actor.value());
    out.setName(span.name);
    out.setKind(std::string(span.kind));
    out.setMessage(std::string(span.message));
    out.setFrom(span.from);
    out.setTraceHigh(span.trace.trace_high);
    out.setTraceLow(span.trace.trace_low);
    out.setSpan(span.trace.span);
  }

  void actors(Context&, Msg<GetActors> m) {
    const auto [actors, letters] = options_.look();
    m.reply(Message::build<ActorTree>(
        [&](ActorTree::Builder b) {
          auto list = b.initActors(static_cast<unsigned>(actors.size()));
          for (unsigned i = 0; i < actors.size(); ++i) {
            list[i].setId(actors[i].id.value());
            list[i].setParent(actors[i].parent.value());
            list[i].setType(actors[i].type);
            list[i].setName(actors[i].name);
            list[i].setRestarts(actors[i].restarts);
            list[i].setMailbox(static_cast<std::uint32_t>(actors[i].mailbox));
            list[i].setHandled(actors[i].handled);
          }
          auto dead = b.initDeadLetters(static_cast<unsigned>(letters.size()));
          for (unsigned i = 0; i < letters.size(); ++i) {
            dead[i].setWhenNs(letters[i].when.unix_ns);
            dead[i].setTo(to_string(letters[i].to));
            dead[i].setTypeId(letters[i].type.value());
            dead[i].setReason(letters[i].reason);
          }
        },
        1024));
  }

  AgentOptions options_;
  std::map<std::string, Running> running_;
  std::vector<std::string> revoked_;               // entries of the last view that was written down
  std::map<std::string, std::uint64_t> starting_;  // workers whose certificate is under way: generation
  std::uint64_t epoch_ = 0;
  std::uint32_t next_slot_ = 0;
  bool registering_ = false;
};

}  // namespace

std::string agent_name(std::string_view node) { return "node/agent/" + std::string(node); }

ChildSpec agent(AgentOptions options) {
  ChildSpec spec;
  const auto self = options.self.view<Register>();
  spec.id = "node/agent";
  spec.name = agent_name(text(self->getNode().getName()));
  spec.make = [options = std::move(options)] { return std::make_unique<Agent>(options); };
  return spec;
}

}  // namespace falaj::control
