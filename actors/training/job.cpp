#include "actors/training/job.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "actors/control/agent.hpp"
#include "actors/training/learner.hpp"
#include "actors/training/run_state.hpp"
#include "actors/training/wire.hpp"
#include "messages/control.capnp.h"
#include "messages/envelope.capnp.h"
#include "messages/features.capnp.h"
#include "messages/registry.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"

namespace falaj::training {
namespace {

using namespace std::chrono_literals;
using messages::CreateSnapshot;
using messages::Empty;
using messages::EnsureActor;
using messages::FitDone;
using messages::FitFailed;
using messages::GetVersion;
using messages::Go;
using messages::JobFinished;
using messages::ModelVersionInfo;
using messages::PeerLost;
using messages::Rendezvous;
using messages::RendezvousReply;
using messages::Revoke;
using messages::RevokeReply;
using messages::SnapshotInfo;
using messages::StepReport;
using messages::StopActor;
using messages::StopRun;
using messages::WorkerHello;
using messages::WorkerTask;

constexpr Duration kRetryMin = 50ms;
constexpr Duration kRetryMax = 1s;
constexpr Duration kHelloWithin = 15s;  // a process that was started and has not said hello by then is started again
constexpr Duration kSweep = 1s;
constexpr Duration kSnapshotTimeout = 120s;

// A worker process that has said hello.
struct Member {
  ActorRef ref;
  ActorAddress address;
  std::string link, listen;
  bool ready = false;
  bool answered = false;  // in the stage that runs
  bool holds = false;     // state of the present fit
  std::uint64_t step = 0;
};

enum class Stage : std::uint8_t { idle, saving, revoking, meeting, running };

class Job final : public ActorOf<Job> {
 public:
  static constexpr std::string_view kType = "training/job";
  static void handlers(Handlers<Job>& on) {
    on.message<WorkerHello>(&Job::hello);
    on.message<StepReport>(&Job::step_report);
    on.message<FitDone>(&Job::fit_done);
    on.message<FitFailed>(&Job::fit_failed);
    on.message<PeerLost>(&Job::peer_lost);
    on.message<StopRun>(&Job::stop_run);
  }

  Job(JobsOptions options, std::string key, std::string run, ActorRef jobs)
      : options_(std::move(options)), key_(std::move(key)), run_(std::move(run)), jobs_(std::move(jobs)) {}

  void on_start(Context& ctx) override { ctx.start(begin(ctx)); }

  void on_down(Context& ctx, const Down& down) override {
    for (const auto& [index, member] : members_) {
      if (member.address == down.who) return lost(ctx, index, down.reason);
    }
  }

 private:
  // ---- from nothing to workers -----------------------------------------------------------------------------------------------------

  Task<> begin(Context& ctx) {
    auto loading = load(ctx);
    auto loaded = co_await std::move(loading);
    if (!loaded.has_value()) {
      log::error("training", "a run cannot be read", {{"run", run_}, {"reason", loaded.error().message}});
      co_return ctx.stop();
    }
    state_ = std::move(loaded).value();
    if (state_.over()) co_return ctx.stop();
    wanted_ = state_.job().getWorkers();
    state_.workers.resize(wanted_);
    if (state_.started_ns == 0) state_.started_ns = ctx.wall().unix_ns;
    auto making = make_inputs(ctx);
    const auto made = co_await std::move(making);
    if (state_.over()) co_return;
    if (!made.has_value()) co_return end(ctx, phase::kFailed, to_string(made.error()));
    if (state_.fold() == fits_of(state_.job())) {
      auto concluding = conclude(ctx);
      co_await std::move(concluding);
      co_return;
    }
    state_.phase = phase::kStarting;
    publish(ctx);
    for (std::uint32_t index = 0; index < wanted_; ++index) ctx.start(place(ctx, index));
    ctx.after(options_.gather, [this](Context& later) {
      gathered_ = true;
      consider(later);
    });
    sweep(ctx);
  }

  // The snapshot, and the model to start from.
  Task<Status> make_inputs(Context& ctx) {
    const auto spec = state_.job();
    if (state_.snapshot.empty()) state_.snapshot = text(spec.getSnapshot());
    if (state_.snapshot.empty()) {
      state_.phase = phase::kSnapshot;
      publish(ctx);
      const auto request = Message::build<CreateSnapshot>([&](CreateSnapshot::Builder b) {
        b.setView(spec.getView());
        b.setTenant(state_.tenant);
      });
      SendOptions how;
      how.timeout = kSnapshotTimeout;
      how.scope = scope();
      auto asking = ask_patiently<SnapshotInfo>(ctx, "features/front", request, how);
      auto made = co_await std::move(asking);
      if (!made.has_value()) co_return within(format("snapshot of view {}", text(spec.getView())), made.error());
      state_.snapshot = text((*made)->getDigest());
      state_.rows = (*made)->getRows();
    }
    if (text(spec.getModel().getFamily()) == "onnx" && state_.model.empty()) {
      const std::string named(text(spec.getModel().getOnnx()));
      const auto colon = named.rfind(':');
      const auto request = Message::build<GetVersion>([&](GetVersion::Builder b) {
        b.setModel(named.substr(0, colon));
        b.setTenant(state_.tenant);
        if (colon != std::string::npos) b.setVersion(std::strtoull(named.c_str() + colon + 1, nullptr, 10));
      });
      auto asking = ask_patiently<ModelVersionInfo>(ctx, "mlops/registry", request, {});
      auto found = co_await std::move(asking);
      if (!found.has_value()) co_return within(format("model {}", named), found.error());
      state_.model = text((*found)->getArtifact());
    }
    auto saving = save(ctx);
    co_return co_await std::move(saving);
  }

  // Asks a named actor again while it is away; a definite refusal is returned.
  template <class Reply>
  Task<Result<View<Reply>>> ask_patiently(Context& ctx, std::string name, Message request, SendOptions how) {
    for (Duration wait = kRetryMin;; wait = std::min(wait * 2, kRetryMax)) {
      const ActorRef to = ctx.find(name);
      auto asked = ctx.ask<Reply>(to, request, how);
      auto answer = co_await asked;
      if (answer.has_value() || state_.over() || (to && !passes(answer.error()))) co_return answer;
      state_.message = format("waiting for {}: {}", name, answer.error().message);
      publish(ctx);
      co_await ctx.sleep(wait);
    }
  }

  // ---- worker processes ---------------------------------------------------------------------------------------------------------------

  // Until a node agent has started the process of this index. At most one of these for each index.
  Task<> place(Context& ctx, std::uint32_t index) {
    if (!placing_.insert(index).second) co_return;
    for (Duration wait = kRetryMin; !state_.over(); wait = std::min(wait * 2, kRetryMax)) {
      WorkerSlot& slot = state_.workers[index];
      const std::string node = choose_node(index);
      if (!node.empty() && (slot.node != node || slot.generation == 0)) {
        slot.node = node;
        ++slot.generation;
      }
      Status started = error(ErrorCode::unreachable, "no compute node is up; start one, or wait for it");
      if (!node.empty()) {
        auto saving = save(ctx);
        started = co_await std::move(saving);
        if (started.has_value()) {
          auto asked = ctx.ask<Empty>(ctx.find(control::agent_name(node)), ensure_message(index), {.lane = Lane::control});
          const auto answer = co_await asked;
          if (!answer.has_value()) started = answer.error();
        }
      }
      if (started.has_value() || state_.over()) break;
      state_.message = format("worker {} cannot be started: {}", index, started.error().message);
      if (!node.empty()) avoid_ = node;
      publish(ctx);
      co_await ctx.sleep(wait);
    }
    placed_at_[index] = ctx.now();
    placing_.erase(index);
  }

  // Up, with the right residency, with the fewest workers of this job; where it is already, if that node is up.
  std::string choose_node(std::uint32_t index) {
    const auto view = options_.view->get();
    if (!view) return {};
    std::vector<std::string> nodes;
    for (auto& name : view->open_nodes_with(messages::Role::COMPUTE)) {
      const auto node = view->node(name);
      if (state_.residency.empty() || (node && text(node->getResidency()) == state_.residency)) nodes.push_back(std::move(name));
    }
    if (nodes.size() > 1) std::erase(nodes, std::exchange(avoid_, {}));
    if (nodes.empty()) return {};
    if (std::ranges::find(nodes, state_.workers[index].node) != nodes.end()) return state_.workers[index].node;
    const auto load = [&](const std::string& name) {
      return std::ranges::count_if(state_.workers, [&](const WorkerSlot& slot) { return slot.node == name; });
    };
    std::ranges::sort(nodes);
    std::ranges::rotate(nodes, nodes.begin() + static_cast<std::ptrdiff_t>(stable_hash(key_) % nodes.size()));
    return *std::ranges::min_element(nodes, {}, load);
  }

  Message ensure_message(std::uint32_t index) const {
    return Message::build<EnsureActor>([&](EnsureActor::Builder b) {
      auto actor = b.initActor();
      actor.setName(worker_name(index));
      actor.setGeneration(state_.workers[index].generation);
      actor.setEpoch(options_.control_epoch.value());
      auto worker = actor.initWorker();
      worker.setJob(key_);
      worker.setRun(run_);
      worker.setIndex(index);
    });
  }

  std::string worker_name(std::uint32_t index) const { return format("training/worker/{}/{}/{}", key_, run_, index); }

  // Replaces processes that were started and never spoke.
  void sweep(Context& ctx) {
    if (all_done()) return;
    for (std::uint32_t index = 0; index < wanted_; ++index) {
      const auto placed = placed_at_.find(index);
      if (members_.contains(index) || placing_.contains(index) || placed == placed_at_.end()) continue;
      if (ctx.now() - placed->second > kHelloWithin) replace(ctx, index, "it was started and did not say hello");
    }
    ctx.after(kSweep, [this](Context& later) { sweep(later); });
  }

  void replace(Context& ctx, std::uint32_t index, std::string_view why) {
    if (!count_restart(ctx, format("worker {}: {}", index, why))) return;
    ++state_.workers[index].generation;
    placed_at_.erase(index);
    ctx.start(place(ctx, index));
  }

  // False: enough is enough, the run has failed.
  bool count_restart(Context& ctx, const std::string& why) {
    if (++restarts_ <= options_.restarts_max) return true;
    end(ctx, phase::kFailed, format("gave up after {} restarts without one new step; the last: {}", restarts_ - 1, why));
    return false;
  }

  Task<> hello(Context& ctx, Msg<WorkerHello> m) {
    if (text(m->getRun()) != run_ || state_.over() || m->getIndex() >= std::max(wanted_, 1U)) {
      co_return m.refuse(error(ErrorCode::conflict, format("run {} has no use for this worker", text(m->getRun()))));
    }
    if (wanted_ == 0 || state_.snapshot.empty() || state_.workers.size() != wanted_) {
      co_return m.refuse(error(ErrorCode::overloaded, "the run is being loaded"));
    }
    const std::uint32_t index = m->getIndex();
    Member& member = members_[index];
    const bool other = member.ref && !(member.address == m.from().address());
    if (other) {  // a replacement that was faster than the news of the loss
      ctx.unwatch(member.ref);
      note_loss(ctx);
      member = {};
    }
    const bool was_ready = member.ready;
    member.ref = m.from();
    member.address = m.from().address();
    member.link = text(m->getNode());
    member.listen = text(m->getListen());
    member.ready = m->getReady();
    state_.workers[index].pid = m->getPid();
    state_.workers[index].up = member.ready;
    if (m->getReady() && m->getSteps().size() > 0) {
      state_.fit_steps.clear();
      for (const auto steps : m->getSteps()) state_.fit_steps.push_back(steps);
    }
    ctx.watch(m.from());
    m.reply(Message::build<WorkerTask>(
        [&](WorkerTask::Builder b) {
          b.setSpec(state_.job());
          b.setRun(run_);
          b.setSnapshot(state_.snapshot);
          b.setFold(state_.fold());
          b.setModel(state_.model);
        },
        256));
    if (other && stage_ != Stage::idle) {
      reform(ctx);
    } else if (member.ready && !was_ready) {
      consider(ctx);
    }
  }

  void note_loss(Context& ctx) {
    if (!lost_at_) lost_at_ = ctx.now();
    ++lost_;
  }

  void lost(Context& ctx, std::uint32_t index, const Error& why) {
    log::warn("training", "worker lost", {{"job", key_}, {"worker", index}, {"reason", why.message}});
    const bool was_ready = members_.at(index).ready;
    members_.erase(index);
    state_.workers[index].up = false;
    if (all_done()) return;
    if (was_ready) note_loss(ctx);
    if (was_ready && stage_ == Stage::revoking) {
      check_revoked(ctx);
    } else if (was_ready && stage_ != Stage::idle) {
      reform(ctx);
    }
    replace(ctx, index, why.message);
  }

  // ---- epochs -------------------------------------------------------------------------------------------------------------------------

  [[nodiscard]] std::vector<std::uint32_t> ready() const {
    std::vector<std::uint32_t> out;
    for (const auto& [index, member] : members_) {
      if (member.ready) out.push_back(index);
    }
    return out;
  }

  // A worker is new: begin, or take it in.
  void consider(Context& ctx) {
    if (all_done()) return;
    const auto count = ready().size();
    if (count == 0) return;
    if (stage_ == Stage::idle && count < wanted_ && !gathered_) return;
    gathered_ = true;
    reform(ctx);
  }

  [[nodiscard]] bool all_done() const { return state_.over() || state_.fold() == fits_of(state_.job()); }

  void reform(Context& ctx) {
    if (all_done()) return;
    ++state_.epoch;
    stage_ = Stage::saving;
    ctx.start(form(ctx, state_.epoch));
  }

  // The epoch is on disk before anybody hears of it.
  Task<> form(Context& ctx, std::uint64_t epoch) {
    auto saving = save(ctx);
    const auto saved = co_await std::move(saving);
    if (epoch != state_.epoch || state_.over()) co_return;
    if (!saved.has_value()) {
      again_soon(ctx, epoch, saved.error());
      co_return;
    }
    const auto who = ready();
    stage_ = who.empty() ? Stage::idle : Stage::revoking;
    for (const auto index : who) members_.at(index).answered = false;
    for (const auto index : who) ctx.start(revoke_one(ctx, epoch, index));
  }

  Task<> revoke_one(Context& ctx, std::uint64_t epoch, std::uint32_t index) {
    const auto message = Message::build<Revoke>([&](Revoke::Builder b) { b.setEpoch(epoch); });
    auto asked = ctx.ask<RevokeReply>(members_.at(index).ref, message, {.lane = Lane::control, .timeout = options_.revoke_timeout});
    const auto reply = co_await asked;
    if (epoch != state_.epoch || stage_ != Stage::revoking || !members_.contains(index)) co_return;
    if (!reply.has_value()) {
      ctx.unwatch(members_.at(index).ref);
      lost(ctx, index, reply.error());
      co_return;
    }
    Member& member = members_.at(index);
    member.answered = true;
    member.holds = (*reply)->getHolds() && (*reply)->getFold() == state_.fold();
    member.step = (*reply)->getStep();
    check_revoked(ctx);
  }

  void check_revoked(Context& ctx) {
    const auto who = ready();
    if (who.empty()) {
      stage_ = Stage::idle;
    } else if (std::ranges::all_of(who, [&](auto index) { return members_.at(index).answered; })) {
      meet(ctx, who);
    }
  }

  // All are at rest: everybody goes on from the newest state of this fit that anybody holds.
  void meet(Context& ctx, const std::vector<std::uint32_t>& who) {
    stage_ = Stage::meeting;
    auto source = static_cast<std::uint32_t>(who.size());
    std::uint64_t step = 0;
    for (std::uint32_t rank = 0; rank < who.size(); ++rank) {
      const Member& member = members_.at(who[rank]);
      if (member.holds && member.step > step) {
        step = member.step;
        source = rank;
      }
    }
    std::string checkpoint;
    if (step == 0 && !state_.checkpoint.empty() && state_.checkpoint_fold == state_.fold()) {
      checkpoint = state_.checkpoint;
      step = state_.checkpoint_step;
    }
    from_step_ = step;
    for (const auto index : who) members_.at(index).answered = false;
    for (std::uint32_t rank = 0; rank < who.size(); ++rank) {
      const auto message = Message::build<Rendezvous>(
          [&](Rendezvous::Builder b) {
            b.setEpoch(state_.epoch);
            b.setRank(rank);
            b.setFold(state_.fold());
            b.setStep(step);
            b.setSource(source);
            b.setCheckpoint(checkpoint);
            auto peers = b.initPeers(static_cast<unsigned>(who.size()));
            for (unsigned i = 0; i < peers.size(); ++i) write_peer(peers[i], who[i]);
          },
          64 + 32 * who.size());
      ctx.start(meet_one(ctx, state_.epoch, who[rank], message));
    }
  }

  void write_peer(messages::PeerInfo::Builder out, std::uint32_t index) const {
    const Member& member = members_.at(index);
    out.setIndex(index);
    out.setNode(member.link);
    out.setListen(member.listen);
    write_address(out.initAddress(), member.address);
  }

  Task<> meet_one(Context& ctx, std::uint64_t epoch, std::uint32_t index, Message message) {
    auto asked = ctx.ask<RendezvousReply>(members_.at(index).ref, std::move(message),
                                          {.lane = Lane::control, .timeout = options_.rendezvous_timeout});
    const auto reply = co_await asked;
    if (epoch != state_.epoch || stage_ != Stage::meeting || !members_.contains(index)) co_return;
    if (!reply.has_value()) {
      again_soon(ctx, epoch, reply.error());
      co_return;
    }
    members_.at(index).answered = true;
    const auto who = ready();
    if (!std::ranges::all_of(who, [&](auto i) { return members_.at(i).answered; })) co_return;
    stage_ = Stage::running;
    state_.phase = phase::kRunning;
    state_.message.clear();
    publish(ctx);
    log::info("training", "epoch",
              {{"job", key_}, {"epoch", epoch}, {"workers", who.size()}, {"fold", state_.fold()}, {"step", from_step_}});
    for (const auto i : who) {
      ctx.tell(members_.at(i).ref, Message::build<Go>([&](Go::Builder b) { b.setEpoch(epoch); }), {.lane = Lane::control});
    }
  }

  // The epoch could not be formed, or its ring broke, and nobody is known to be lost: form another.
  void again_soon(Context& ctx, std::uint64_t epoch, const Error& why) {
    if (epoch <= broken_) return;  // several ranks say the same
    broken_ = epoch;
    log::warn("training", "an epoch did not come about", {{"job", key_}, {"epoch", epoch}, {"reason", why.message}});
    if (!count_restart(ctx, why.message)) return;
    ctx.after(kRetryMin, [this, epoch](Context& later) {
      if (epoch == state_.epoch) reform(later);
    });
  }

  void peer_lost(Context& ctx, Msg<PeerLost> m) {
    if (m->getEpoch() != state_.epoch || stage_ != Stage::running) return;
    again_soon(ctx, state_.epoch, error(ErrorCode::unreachable, format("rank {}: {}", m->getRank(), text(m->getReason()))));
  }

  // ---- progress -----------------------------------------------------------------------------------------------------------------------

  void step_report(Context& ctx, Msg<StepReport> m) {
    if (m->getFold() != state_.fold() || m->getEpoch() > state_.epoch) return;
    if (m->getCheckpoint().size() > 0 && m->getCheckpointStep() > (state_.checkpoint_fold == state_.fold() ? state_.checkpoint_step : 0)) {
      state_.checkpoint = text(m->getCheckpoint());
      state_.checkpoint_fold = state_.fold();
      state_.checkpoint_step = m->getCheckpointStep();
      ctx.start(save_quietly(ctx));
    }
    if (m->getEpoch() != state_.epoch) return;
    if (m->getStep() > from_step_) went_on(ctx);
    state_.step = m->getStep();
    state_.steps = m->getSteps();
    state_.samples = m->getSamples();
    state_.loss = m->getLoss();
    state_.note_loss(m->getLoss());
    publish(ctx);
  }

  void went_on(Context& ctx) {
    restarts_ = 0;
    if (!lost_at_) return;
    state_.recoveries += std::exchange(lost_, 0);
    state_.last_recovery_ms = std::chrono::duration<double, std::milli>(ctx.now() - *lost_at_).count();
    lost_at_.reset();
    log::info("training", "recovered", {{"job", key_}, {"ms", state_.last_recovery_ms}});
    ctx.start(save_quietly(ctx));
  }

  Task<> fit_done(Context& ctx, Msg<FitDone> m) {
    if (m->getEpoch() != state_.epoch || m->getFold() != state_.fold() || stage_ != Stage::running) {
      co_return m.refuse(error(ErrorCode::gone, "a newer epoch has begun"));
    }
    went_on(ctx);
    FitResult result{m->getFold(),
                     m->getSteps(),
                     m->getSamples(),
                     {},
                     std::string(text(m->getWeightsDigest())),
                     std::string(text(m->getArtifact())),
                     {}};
    for (const auto metric : m->getMetrics()) result.metrics.emplace(text(metric.getName()), metric.getValue());
    for (const auto count : m->getConfusion()) result.confusion.push_back(count);
    state_.fits.push_back(std::move(result));
    state_.step = state_.samples = 0;
    state_.checkpoint.clear();
    stage_ = Stage::saving;
    const bool last = state_.fold() == fits_of(state_.job());
    auto saving = save(ctx);
    const auto saved = co_await std::move(saving);
    if (!saved.has_value()) {
      m.refuse(saved.error());
      co_return end(ctx, phase::kFailed, to_string(saved.error()));
    }
    m.reply(Message::build<Empty>());
    publish(ctx);
    if (state_.over()) co_return;
    if (last) {
      ctx.start(conclude(ctx));
    } else if (stage_ == Stage::saving && m->getEpoch() == state_.epoch) {
      reform(ctx);
    }
  }

  void fit_failed(Context& ctx, Msg<FitFailed> m) {
    const bool current = m->getFold() == state_.fold() && (m->getEpoch() == state_.epoch || m->getEpoch() == 0);
    m.reply(Message::build<Empty>());
    if (current && !state_.over()) end(ctx, phase::kFailed, std::string(text(m->getReason())));
  }

  // ---- the end ------------------------------------------------------------------------------------------------------------------------

  Task<> conclude(Context& ctx) {
    dismiss(ctx);
    state_.message = "registering the model";
    publish(ctx);
    auto asking =
        ask_patiently<ModelVersionInfo>(ctx, "mlops/registry", state_.version_message(options_.build, "training/job/" + key_), {});
    const auto registered = co_await std::move(asking);
    if (state_.over()) co_return;
    if (!registered.has_value()) co_return end(ctx, phase::kFailed, to_string(within("the registry", registered.error())));
    state_.version = (*registered)->getVersion();
    end(ctx, phase::kFinished, {});
  }

  Task<> stop_run(Context& ctx, Msg<StopRun> m) {
    if (wanted_ == 0) co_return m.refuse(error(ErrorCode::overloaded, "the run is being loaded"));
    if (!state_.over()) end(ctx, phase::kStopped, std::string(text(m->getReason())));
    auto saving = save(ctx);
    const auto saved = co_await std::move(saving);
    if (!saved.has_value()) co_return m.refuse(saved.error());
    publish(ctx);  // before the answer, upon which training/jobs stops this actor
    m.reply(Message::build<Empty>());
  }

  void dismiss(Context& ctx) {
    stage_ = Stage::idle;
    for (const auto& [index, member] : members_) {
      ctx.unwatch(member.ref);
      ctx.tell(member.ref, Message::build<JobFinished>([&](JobFinished::Builder b) { b.setRun(run_); }), {.lane = Lane::control});
    }
    members_.clear();
    for (std::uint32_t index = 0; index < state_.workers.size(); ++index) {
      WorkerSlot& slot = state_.workers[index];
      slot.up = false;
      if (slot.node.empty()) continue;
      ctx.tell(ctx.find(control::agent_name(slot.node)), Message::build<StopActor>([&](StopActor::Builder b) {
                 b.setName(worker_name(index));
                 b.setEpoch(options_.control_epoch.value());
               }),
               {.lane = Lane::control});
    }
  }

  void end(Context& ctx, const char* phase, std::string message) {
    if (state_.over()) return;
    state_.phase = phase;
    state_.message = std::move(message);
    state_.finished_ns = ctx.wall().unix_ns;
    ++state_.epoch;
    // Why is in the run's record (`falaj runs show`): it may quote data, which are kept in no log.
    log::info("training", "run over", {{"run", run_}, {"phase", phase}});
    dismiss(ctx);
    ctx.start(close(ctx));
  }

  // On disk, then known to training/jobs, which stops this actor: a run whose end got lost would be "running" for ever.
  Task<> close(Context& ctx) {
    for (Duration wait = kRetryMin;; wait = std::min(wait * 2, kRetryMax)) {
      auto saving = save(ctx);
      const auto saved = co_await std::move(saving);
      if (saved.has_value()) break;
      log::error("training", "the end of a run cannot be stored", {{"run", run_}, {"reason", saved.error().message}});
      co_await ctx.sleep(wait);
    }
    for (Duration wait = kRetryMin;; wait = std::min(wait * 2, kRetryMax)) {
      auto telling = ctx.ask<messages::Empty>(jobs_, state_.info());
      const auto told = co_await telling;
      if (told.has_value()) break;
      co_await ctx.sleep(wait);
    }
  }

  // ---- small things -------------------------------------------------------------------------------------------------------------------

  Task<Result<RunState>> load(Context& ctx) {
    for (Duration wait = kRetryMin;; wait = std::min(wait * 2, kRetryMax)) {
      auto loading = ctx.blocking([store = options_.store, run = run_] { return load_run(*store, run); });
      auto loaded = co_await loading;
      if (loaded.has_value() || !passes(loaded.error())) co_return loaded;
      co_await ctx.sleep(wait);
    }
  }

  // A pool that is busy does not end a run.
  Task<Status> save(Context& ctx) {
    for (Duration wait = kRetryMin;; wait = std::min(wait * 2, kRetryMax)) {
      ++state_.sequence;
      auto saving = ctx.blocking([store = options_.store, run = run_, sequence = state_.sequence, record = state_.record()] {
        return save_run(*store, run, sequence, record);
      });
      const auto saved = co_await saving;
      if (saved.has_value() || !passes(saved.error()) || fault::planted("run-ended-by-busy-pool")) co_return saved;
      co_await ctx.sleep(wait);
    }
  }

  Task<> save_quietly(Context& ctx) {
    auto saving = save(ctx);
    const auto saved = co_await std::move(saving);
    if (!saved.has_value()) log::warn("training", "progress not stored", {{"run", run_}, {"reason", saved.error().message}});
  }

  void publish(Context& ctx) { ctx.tell(jobs_, state_.info()); }

  ScopeRef scope() const {
    return std::make_shared<const Scope>(
        Scope{options_.principal, state_.tenant, std::string(text(state_.job().getPurpose())), state_.residency, {}});
  }

  const JobsOptions options_;
  const std::string key_, run_;
  const ActorRef jobs_;

  RunState state_;
  std::uint32_t wanted_ = 0;
  std::map<std::uint32_t, Member> members_;
  std::set<std::uint32_t> placing_;
  std::map<std::uint32_t, Instant> placed_at_;
  std::string avoid_;  // a node that just refused

  Stage stage_ = Stage::idle;
  bool gathered_ = false;
  std::uint64_t from_step_ = 0;  // of this epoch
  std::uint64_t broken_ = 0;     // the newest epoch that is known to be
  std::uint32_t restarts_ = 0;   // since the last new step
  std::optional<Instant> lost_at_;
  std::uint32_t lost_ = 0;
};

}  // namespace

std::string job_key(std::string_view tenant, std::string_view name) {
  return tenant.empty() || tenant == "default" ? std::string(name) : format("{}/{}", tenant, name);
}

ChildSpec job(JobsOptions options, std::string tenant, std::string name, std::string run, ActorRef jobs) {
  ChildSpec spec;
  const std::string key = job_key(tenant, name);
  spec.id = run;
  spec.name = "training/job/" + key;
  spec.restart = Restart::transient;
  spec.make = [options = std::move(options), key, run = std::move(run), jobs = std::move(jobs)] {
    return std::make_unique<Job>(options, key, run, jobs);
  };
  return spec;
}

}  // namespace falaj::training
