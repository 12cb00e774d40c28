#include "actors/training/worker.hpp"

#include <algorithm>
#include <optional>

#include "actors/artifacts/fetch.hpp"
#include "actors/training/gate.hpp"
#include "actors/training/wire.hpp"
#include "kernels/collective/collective.hpp"
#include "messages/envelope.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"

namespace falaj::training {
namespace {

using namespace std::chrono_literals;
using messages::Empty;
using messages::FetchState;
using messages::FitFailed;
using messages::Go;
using messages::GradientChunk;
using messages::JobFinished;
using messages::PeerHello;
using messages::PeerLost;
using messages::Rendezvous;
using messages::RendezvousReply;
using messages::Revoke;
using messages::RevokeReply;
using messages::StateChunk;
using messages::StepReport;
using messages::TrainingJob;
using messages::WorkerHello;
using messages::WorkerTask;

constexpr Duration kRetryMin = 20ms;
constexpr Duration kRetryMax = 500ms;
constexpr Duration kReportEvery = 20ms;
constexpr Duration kTick = 500ms;
constexpr Duration kPeerAnswer = 500ms;     // one try; the link may just be coming up
constexpr Duration kJobMissing = 30s;       // nobody answers to the job's name: it was deleted
constexpr std::size_t kBulkMailbox = 4096;  // chunks of one epoch that may wait; the window of the collectives is far below
const char* const kCheckpointType = "application/vnd.falaj.checkpoint";
const char* const kModelType = "application/onnx";

struct Peer {
  std::string link;
  std::string listen;
  ActorRef ref;
};

// The ring of one epoch.
struct Ring {
  std::uint64_t epoch = 0;
  std::uint32_t rank = 0;
  std::vector<Peer> peers;
  [[nodiscard]] std::uint32_t world() const { return static_cast<std::uint32_t>(peers.size()); }
  [[nodiscard]] std::uint32_t next() const { return (rank + 1) % world(); }
};

// Outlives the actor while the pool still computes.
struct Buffers {
  std::vector<std::vector<float>> contributions;
  std::vector<float> sum;
};

Error stale() { return error(ErrorCode::gone, "a newer epoch has begun"); }

class Worker final : public ActorOf<Worker>, kernels::PeerLinks {
 public:
  static constexpr std::string_view kType = "training/worker";
  static void handlers(Handlers<Worker>& on) {
    on.message<Revoke>(&Worker::revoke);
    on.message<Rendezvous>(&Worker::rendezvous);
    on.message<Go>(&Worker::go);
    on.message<GradientChunk>(&Worker::gradient_chunk);
    on.message<PeerHello>(&Worker::peer_hello);
    on.message<FetchState>(&Worker::fetch_state);
    on.message<JobFinished>(&Worker::job_finished);
  }

  explicit Worker(WorkerOptions options) : options_(std::move(options)), collectives_(*this) {}

  void on_start(Context& ctx) override {
    ctx_ = &ctx;
    ctx.start(live(ctx));
    tick(ctx);
  }

  void on_down(Context& ctx, const Down& down) override {
    if (down.who.node == node_id(options_.control_node)) {
      if (course_) ctx.start(announce(ctx));
      return;
    }
    for (std::uint32_t rank = 0; rank < ring_.world(); ++rank) {
      const auto peer = ring_.peers[rank].ref.address();
      if (peer.node == down.who.node && peer.incarnation == down.who.incarnation) report_lost(ctx, rank, down.reason);
    }
  }

 private:
  // ---- the step: what all the rest is for -------------------------------------------------------------------------------------------

  Task<Status> step(Context& ctx, std::uint64_t epoch) {
    const auto mine = kernels::shard_range(micro_shards_, ring_.world(), Rank(ring_.rank));
    auto backward = ctx.blocking([learner = learner_, buffers = buffers_, mine] {
      buffers->contributions.resize(mine.count);
      for (auto& one : buffers->contributions) one.resize(learner->width());
      return learner->contribute({mine.first, mine.count}, buffers->contributions);
    });
    FALAJ_CO_TRY(co_await backward);
    if (epoch_ != epoch) co_return stale();
    auto reduction = all_reduce(ctx);
    FALAJ_CO_TRY(co_await std::move(reduction));
    auto update = ctx.blocking([learner = learner_, buffers = buffers_] { return learner->commit(buffers->sum); });
    FALAJ_CO_TRY(co_await update);
    at_ = learner_->progress();
    if (ring_.rank == 0) {
      report(ctx, learner_->done());
      checkpoint(ctx);
    }
    co_return Status{};
  }

  // Deterministic: a left fold over the micro-shards in their order. Otherwise each rank sums its own first.
  Task<Status> all_reduce(Context& ctx) {
    const std::uint64_t sequence = at_.step + 1;
    const Instant deadline = ctx.now() + options_.collective_timeout;
    buffers_->sum.resize(learner_->width());
    reduced_.reset();
    auto done = [this](Status status) {
      reduced_ = std::move(status);
      reduction_.open();
    };
    if (deterministic_ && !fault::planted("sum-out-of-order")) {
      std::vector<std::span<const float>> shards(buffers_->contributions.begin(), buffers_->contributions.end());
      FALAJ_CO_TRY(collectives_.fold(sequence, std::move(shards), buffers_->sum, deadline, done));
    } else {
      std::ranges::fill(buffers_->sum, 0.0F);
      for (const auto& one : buffers_->contributions) {
        for (std::size_t i = 0; i < one.size(); ++i) buffers_->sum[i] += one[i];
      }
      FALAJ_CO_TRY(collectives_.all_reduce(sequence, buffers_->sum, deadline, done));
    }
    while (!reduced_) co_await reduction_.wait();
    co_return std::move(*reduced_);
  }

  // Steps until the fit is done or the epoch ends. One of these, or one preparation, is at work at a time (busy_).
  Task<> drive(Context& ctx, std::uint64_t epoch) {
    while (busy_) co_await rest_.wait();
    if (epoch_ != epoch) co_return;
    busy_ = true;
    Status status;
    while (status.has_value() && epoch_ == epoch && !learner_->done()) {
      auto one = step(ctx, epoch);
      status = co_await std::move(one);
    }
    Result<Outcome> outcome = stale();
    if (status.has_value() && epoch_ == epoch && ring_.rank == 0) {
      auto finish = ctx.blocking([learner = learner_, final_fit = fold_ + 1 == fits_] { return learner->finish(final_fit); });
      outcome = co_await finish;
    }
    const std::uint32_t fold = fold_;
    const Progress progress = at_;
    leave();
    if (epoch_ != epoch) co_return;
    if (!status.has_value()) {
      fit_trouble(ctx, epoch, status.error());
    } else if (ring_.rank == 0) {
      if (outcome.has_value()) {
        ctx.start(hand_in(ctx, epoch, fold, progress, std::move(outcome).value()));
      } else {
        fit_trouble(ctx, epoch, outcome.error());
      }
    }
  }

  void leave() {
    busy_ = false;
    rest_.open();
  }

  // ---- what rank 0 tells ----------------------------------------------------------------------------------------------------------------

  void report(Context& ctx, bool at_once, const std::string& checkpoint = {}, std::uint64_t checkpoint_step = 0) {
    if (!at_once && checkpoint.empty() && reported_epoch_ == epoch_ && ctx.now() - reported_at_ < kReportEvery) return;
    reported_epoch_ = epoch_;
    reported_at_ = ctx.now();
    ctx.tell(job(ctx), Message::build<StepReport>([&](StepReport::Builder b) {
               b.setEpoch(epoch_);
               b.setFold(fold_);
               b.setStep(at_.step);
               b.setSteps(at_.steps);
               b.setSamples(at_.samples);
               b.setLoss(at_.loss);
               b.setValidationLoss(at_.validation_loss);
               b.setCheckpoint(checkpoint);
               b.setCheckpointStep(checkpoint_step);
             }));
  }

  void checkpoint(Context& ctx) {
    if (checkpointing_ || learner_->done() || at_.step % checkpoint_every_ != 0) return;
    checkpointing_ = true;
    ctx.start(write_checkpoint(ctx, fold_, at_.step, learner_->state()));
  }

  // Beside the training; the next one is left out while this one is under way.
  Task<> write_checkpoint(Context& ctx, std::uint32_t fold, std::uint64_t at, Bytes state) {
    auto put = artifacts::put_artifact(ctx, std::move(state), label(kCheckpointType));
    const auto digest = co_await std::move(put);
    checkpointing_ = false;
    if (!digest.has_value()) {
      log::warn("training", "a checkpoint could not be stored", {{"step", at}, {"reason", digest.error().message}});
    } else if (fold == fold_ && ring_.rank == 0) {
      report(ctx, true, *digest, at);
    }
  }

  Task<> hand_in(Context& ctx, std::uint64_t epoch, std::uint32_t fold, Progress progress, Outcome outcome) {
    std::string model;
    for (Duration wait = kRetryMin; !outcome.model.empty();) {
      auto put = artifacts::put_artifact(ctx, outcome.model, label(kModelType));
      auto digest = co_await std::move(put);
      if (epoch_ != epoch) co_return;
      if (digest.has_value()) {
        model = std::move(digest).value();
        break;
      }
      if (!passes(digest.error())) {
        auto end = give_up(ctx, epoch, fold, digest.error());
        co_await std::move(end);
        co_return;
      }
      co_await ctx.sleep(wait);
      wait = std::min(wait * 2, kRetryMax);
    }
    const auto done = fit_done_message(epoch, fold, progress, outcome, model);
    auto told = tell_surely(ctx, epoch, done);
    co_await std::move(told);
  }

  // Until the job has taken it, or a newer epoch makes it worthless.
  Task<> tell_surely(Context& ctx, std::uint64_t epoch, Message message) {
    for (Duration wait = kRetryMin; epoch_ == epoch; wait = std::min(wait * 2, kRetryMax)) {
      auto asked = ctx.ask<Empty>(job(ctx), message, {.lane = Lane::control});
      const auto taken = co_await asked;
      if (taken.has_value() || !(passes(taken.error()) || taken.error().code == ErrorCode::not_found)) co_return;
      co_await ctx.sleep(wait);
    }
  }

  Task<> give_up(Context& ctx, std::uint64_t epoch, std::uint32_t fold, Error why) {
    log::error("training", "the fit cannot go on; the run's record says why", {{"fold", fold}, {"code", to_string(why.code)}});
    auto told = tell_surely(ctx, epoch, Message::build<FitFailed>([&](FitFailed::Builder b) {
                              b.setEpoch(epoch);
                              b.setFold(fold);
                              b.setReason(to_string(why));
                            }));
    co_await std::move(told);
  }

  // A step that did not succeed: a ring that is broken wants a new epoch, anything else ends the run.
  void fit_trouble(Context& ctx, std::uint64_t epoch, const Error& why) {
    if (passes(why)) {
      report_lost(ctx, (ring_.rank + ring_.world() - 1) % ring_.world(), why);
    } else {
      ctx.start(give_up(ctx, epoch, fold_, why));
    }
  }

  void report_lost(Context& ctx, std::uint32_t rank, const Error& why) {
    ctx.tell(job(ctx), Message::build<PeerLost>([&](PeerLost::Builder b) {
               b.setEpoch(ring_.epoch);
               b.setRank(rank);
               b.setReason(why.message);
             }),
             {.lane = Lane::control});
  }

  // ---- joining -------------------------------------------------------------------------------------------------------------------------

  [[nodiscard]] ActorRef job(Context& ctx) const {
    return ctx.at(ActorAddress{node_id(options_.control_node), {}, {}, "training/job/" + options_.job});
  }

  // Asks for the task, reads the data, and then says that it is ready.
  Task<> live(Context& ctx) {
    for (;;) {
      auto greeting = greet(ctx, false);
      auto task = co_await std::move(greeting);
      if (!task.has_value()) co_return;
      auto learning = learn(ctx, std::move(task).value());
      const auto learned = co_await std::move(learning);
      if (learned.has_value()) break;
      if (!passes(learned.error())) {
        auto end = give_up(ctx, epoch_, fold_, learned.error());
        co_await std::move(end);
        co_return;
      }
      log::warn("training", "the data cannot be read now; trying again", {{"reason", learned.error().message}});
      co_await ctx.sleep(kRetryMax);
    }
    auto ready = announce(ctx);
    co_await std::move(ready);
  }

  Task<Status> learn(Context& ctx, View<WorkerTask> task) {
    task_ = Message::copy_of<TrainingJob>(task->getSpec());
    const auto spec = task_.view<TrainingJob>();
    micro_shards_ = spec->getMicroShards();
    deterministic_ = spec->getDeterministic();
    checkpoint_every_ = spec->getCheckpointEverySteps();
    fits_ = fits_of(*spec);
    purpose_ = text(spec->getPurpose());
    tenant_ = text(spec->getOwner().getTenant());
    residency_ = text(spec->getOwner().getResidency());
    auto fetch_snapshot = artifacts::fetch_artifact(ctx, std::string(text(task->getSnapshot())), transfer());
    FALAJ_CO_ASSIGN(auto snapshot, co_await std::move(fetch_snapshot));
    Bytes model;
    if (task->hasModel() && task->getModel().size() > 0) {
      auto fetch_model = artifacts::fetch_artifact(ctx, std::string(text(task->getModel())), transfer());
      FALAJ_CO_ASSIGN(model, co_await std::move(fetch_model));
    }
    const std::uint32_t fold = task->getFold();
    auto reading =
        ctx.blocking([spec = task_, make = options_.make_course, snapshot = std::move(snapshot), model = std::move(model)]() mutable {
          const auto view = spec.view<TrainingJob>();
          return make(*view, std::move(snapshot), std::move(model));
        });
    FALAJ_CO_ASSIGN(course_, co_await reading);
    auto making = make_learner(ctx, fold);
    co_return co_await std::move(making);
  }

  Task<Status> make_learner(Context& ctx, std::uint32_t fold) {
    auto making = ctx.blocking([course = course_, fold] { return course->learner(fold); });
    FALAJ_CO_ASSIGN(auto made, co_await making);
    learner_ = std::move(made);
    at_ = learner_->progress();
    fold_ = fold;
    co_return Status{};
  }

  Task<> announce(Context& ctx) {
    if (announcing_) co_return;
    announcing_ = true;
    auto greeting = greet(ctx, true);
    const auto answered = co_await std::move(greeting);
    announcing_ = false;
    if (answered.has_value()) ctx.watch(job(ctx));
  }

  // Until the job answers. An error: it wants this process no more.
  Task<Result<View<WorkerTask>>> greet(Context& ctx, bool ready) {
    std::optional<Instant> missing_since;
    for (Duration wait = kRetryMin;; wait = std::min(wait * 2, kRetryMax)) {
      auto asked = ctx.ask<WorkerTask>(job(ctx), hello(ctx, ready), {.lane = Lane::control, .timeout = 2s});
      auto answer = co_await asked;
      if (answer.has_value()) co_return std::move(answer).value();
      const bool missing = answer.error().code == ErrorCode::not_found;
      if (!missing) missing_since.reset();
      if (missing && !missing_since) missing_since = ctx.now();
      if (answer.error().code == ErrorCode::conflict || (missing && ctx.now() - *missing_since > kJobMissing)) {
        finish(answer.error().message);
        co_return answer.error();
      }
      co_await ctx.sleep(wait);
    }
  }

  Message hello(Context& ctx, bool ready) {
    return Message::build<WorkerHello>([&](WorkerHello::Builder b) {
      b.setJob(options_.job);
      b.setRun(options_.run);
      b.setIndex(options_.index);
      b.setNode(ctx.node_name());
      write_address(b.initAddress(), ctx.self().address());
      b.setListen(options_.listen);
      b.setPid(options_.pid);
      b.setReady(ready);
      b.setStep(at_.step);
      b.setFold(fold_);
      if (!ready) return;
      const auto steps = course_->steps();
      auto list = b.initSteps(static_cast<unsigned>(steps.size()));
      for (unsigned i = 0; i < list.size(); ++i) list.set(i, steps[i]);
    });
  }

  void job_finished(Context&, Msg<JobFinished> m) {
    if (text(m->getRun()) == options_.run) finish("the run is over");
  }

  void finish(std::string_view why) {
    log::info("training", "worker ends", {{"why", why}});
    if (options_.on_finished) options_.on_finished();
  }

  // ---- epochs --------------------------------------------------------------------------------------------------------------------------

  Task<> revoke(Context&, Msg<Revoke> m) {
    const std::uint64_t epoch = m->getEpoch();
    if (epoch < epoch_) co_return m.refuse(stale());
    epoch_ = epoch;
    collectives_.abort(stale());
    while (busy_) co_await rest_.wait();
    if (epoch_ != epoch) co_return m.refuse(stale());
    m.reply(Message::build<RevokeReply>([&](RevokeReply::Builder b) {
      b.setFold(fold_);
      b.setStep(at_.step);
      b.setHolds(learner_ != nullptr);
    }));
  }

  Task<> rendezvous(Context& ctx, Msg<Rendezvous> m) {
    const std::uint64_t epoch = m->getEpoch();
    if (epoch < epoch_) co_return m.refuse(stale());
    epoch_ = epoch;
    while (busy_) co_await rest_.wait();
    if (epoch_ != epoch) co_return m.refuse(stale());
    busy_ = true;
    auto preparing = prepare(ctx, *m);
    const auto prepared = co_await std::move(preparing);
    leave();
    if (epoch_ != epoch) co_return m.refuse(stale());
    if (!prepared.has_value()) co_return m.refuse(prepared.error());
    met_ = epoch;
    m.reply(Message::build<RendezvousReply>([&](RendezvousReply::Builder b) { b.setStep(at_.step); }));
  }

  void go(Context& ctx, Msg<Go> m) {
    if (m->getEpoch() == epoch_ && met_ == epoch_) ctx.start(drive(ctx, epoch_));
  }

  // The reader is that of the message in the frame of rendezvous(), which waits for this.
  Task<Status> prepare(Context& ctx, Rendezvous::Reader plan) {
    FALAJ_CO_TRY(enter_ring(ctx, plan));
    auto meeting = reach(ctx, ring_.epoch, ring_.next());
    FALAJ_CO_TRY(co_await std::move(meeting));
    auto taking = take_state(ctx, plan);
    FALAJ_CO_TRY(co_await std::move(taking));
    if (at_.step != plan.getStep()) {
      co_return failed(format("holds step {} where the rendezvous wants {}", at_.step, plan.getStep()));
    }
    co_return Status{};
  }

  Status enter_ring(Context& ctx, Rendezvous::Reader plan) {
    const auto old = std::move(ring_.peers);
    ring_ = Ring{plan.getEpoch(), plan.getRank(), {}};
    for (const auto peer : plan.getPeers()) {
      ring_.peers.push_back(
          {std::string(text(peer.getNode())), std::string(text(peer.getListen())), ctx.at(read_address(peer.getAddress()))});
    }
    for (const auto& peer : old) {
      const bool stays = std::ranges::any_of(ring_.peers, [&](const Peer& p) { return p.ref == peer.ref; });
      if (stays || !peer.ref) continue;
      ctx.unwatch(peer.ref);
      options_.links->forget(peer.link);
    }
    // One of each pair dials, so that no connection has to be thrown away.
    for (const auto& peer : ring_.peers) {
      if (ctx.node_name() < peer.link) options_.links->connect(peer.link, peer.listen);
    }
    if (ring_.rank >= ring_.world()) return invalid(format("rank {} of {}", ring_.rank, ring_.world()));
    if (collectives_.epoch().value() < ring_.epoch) return collectives_.reform(Epoch(ring_.epoch), Rank(ring_.rank), ring_.world());
    return {};
  }

  // Waits until a peer answers in this epoch; from then on its death is noticed.
  Task<Status> reach(Context& ctx, std::uint64_t epoch, std::uint32_t rank) {
    if (rank == ring_.rank) co_return Status{};
    const Peer peer = ring_.peers[rank];
    const auto greeting = Message::build<PeerHello>([&](PeerHello::Builder b) {
      b.setEpoch(epoch);
      b.setRank(ring_.rank);
    });
    const Instant give_up_at = ctx.now() + 10s;
    for (;;) {
      auto asked = ctx.ask<Empty>(peer.ref, greeting, {.lane = Lane::bulk, .timeout = kPeerAnswer});
      const auto answer = co_await asked;
      if (epoch_ != epoch) co_return stale();
      if (answer.has_value()) break;
      if (ctx.now() > give_up_at) co_return within(format("rank {} ({} at {})", rank, peer.link, peer.listen), answer.error());
      co_await ctx.sleep(10ms);
      if (epoch_ != epoch) co_return stale();
    }
    ctx.watch(peer.ref);
    co_return Status{};
  }

  void peer_hello(Context& ctx, Msg<PeerHello> m) {
    if (m->getEpoch() != epoch_) return m.refuse(stale());
    ctx.watch(m.from());
    m.reply(Message::build<Empty>());
  }

  // Afterwards the learner is of the fold and step that all go on from.
  Task<Status> take_state(Context& ctx, Rendezvous::Reader plan) {
    const std::uint64_t epoch = plan.getEpoch();
    const bool here = learner_ && fold_ == plan.getFold();
    if (here && at_.step == plan.getStep()) co_return Status{};
    if (fault::planted("state-not-reset") && learner_) co_return Status{};
    if (!here || plan.getStep() == 0) {
      auto making = make_learner(ctx, plan.getFold());
      FALAJ_CO_TRY(co_await std::move(making));
      if (epoch_ != epoch) co_return stale();
    }
    if (plan.getStep() == 0) co_return Status{};
    Bytes state;
    if (plan.getSource() < ring_.world()) {
      auto meeting = reach(ctx, epoch, plan.getSource());
      FALAJ_CO_TRY(co_await std::move(meeting));
      auto fetching = fetch_from(ctx, epoch, ring_.peers[plan.getSource()].ref);
      FALAJ_CO_ASSIGN(state, co_await std::move(fetching));
    } else {
      auto fetching = artifacts::fetch_artifact(ctx, std::string(text(plan.getCheckpoint())), transfer());
      FALAJ_CO_ASSIGN(state, co_await std::move(fetching));
    }
    if (epoch_ != epoch) co_return stale();
    auto loading = ctx.blocking([learner = learner_, state = std::move(state)] { return learner->load(state); });
    FALAJ_CO_TRY(co_await loading);
    at_ = learner_->progress();
    co_return Status{};
  }

  Task<Result<Bytes>> fetch_from(Context& ctx, std::uint64_t epoch, ActorRef source) {
    Bytes state;
    for (std::uint64_t total = 1; state.size() < total;) {
      const auto request = Message::build<FetchState>([&](FetchState::Builder b) {
        b.setEpoch(epoch);
        b.setOffset(state.size());
      });
      auto asked = ctx.ask<StateChunk>(source, request, {.lane = Lane::bulk});
      FALAJ_CO_ASSIGN(const auto chunk, co_await asked);
      if (epoch_ != epoch) co_return stale();
      const auto content = bytes(chunk->getContent());
      if (chunk->getOffset() != state.size() || content.empty())
        co_return error(ErrorCode::corrupt, "a piece of state that was not asked for");
      state.insert(state.end(), content.begin(), content.end());
      total = chunk->getTotal();
    }
    co_return state;
  }

  Task<> fetch_state(Context&, Msg<FetchState> m) {
    const std::uint64_t epoch = m->getEpoch();
    while (busy_) co_await rest_.wait();
    if (epoch != epoch_ || !learner_) co_return m.refuse(stale());
    if (served_epoch_ != epoch) {
      served_ = learner_->state();
      served_epoch_ = epoch;
    }
    const std::uint64_t offset = m->getOffset();
    if (offset >= served_.size()) co_return m.refuse(invalid(format("the state has {} bytes", served_.size())));
    const auto piece = ByteView(served_).subspan(offset, std::min(limits::kChunkBytes, served_.size() - offset));
    m.reply(Message::build<StateChunk>(
        [&](StateChunk::Builder b) {
          b.setStep(at_.step);
          b.setTotal(served_.size());
          b.setOffset(offset);
          b.setContent(data(piece));
        },
        piece.size() / 8 + 16));
    if (offset + piece.size() == served_.size()) {
      served_epoch_ = 0;
      served_ = {};
    }
  }

  // ---- the ring ------------------------------------------------------------------------------------------------------------------------

  bool send(Rank to, const kernels::ChunkHeader& header, std::span<const float> floats) override {
    ctx_->tell(ring_.peers[to.value()].ref, chunk_message(ring_.rank, header, floats), {.lane = Lane::bulk});
    return true;
  }

  void gradient_chunk(Context&, Msg<GradientChunk> m) {
    const auto header = read_chunk(*m);
    if (header && m->getEpoch() >= epoch_) collectives_.on_chunk(Rank(m->getFrom()), *header, floats_of(*m));
  }

  void tick(Context& ctx) {
    collectives_.tick(ctx.now());
    ctx.after(kTick, [this](Context& later) { tick(later); });
  }

  // ---- small things
  // ----------------------------------------------------------------------------------------------------------------------

  artifacts::TransferOptions transfer() {
    artifacts::TransferOptions options;
    options.scope = std::make_shared<const Scope>(Scope{options_.principal, tenant_, purpose_, residency_, {}});
    return options;
  }
  artifacts::ArtifactLabel label(const char* media_type) { return {media_type, tenant_, residency_, {}}; }

  const WorkerOptions options_;
  Context* ctx_ = nullptr;

  Message task_;  // TrainingJob
  std::string purpose_, tenant_, residency_;
  std::uint32_t micro_shards_ = 1, fits_ = 1, checkpoint_every_ = 50;
  bool deterministic_ = true;
  std::shared_ptr<const Course> course_;

  std::uint64_t epoch_ = 0;  // the newest heard of
  std::uint64_t met_ = 0;    // the one this rank is prepared for
  Ring ring_;
  kernels::Communicator collectives_;

  bool busy_ = false;  // somebody works with the learner: nobody else touches it
  Gate rest_;
  std::shared_ptr<Learner> learner_;
  std::uint32_t fold_ = 0;
  Progress at_;  // the learner's, as of its last rest: the pool may be writing its own
  std::shared_ptr<Buffers> buffers_ = std::make_shared<Buffers>();
  std::optional<Status> reduced_;
  Gate reduction_;

  bool announcing_ = false;
  bool checkpointing_ = false;
  Instant reported_at_{};
  std::uint64_t reported_epoch_ = 0;
  Bytes served_;
  std::uint64_t served_epoch_ = 0;
};

}  // namespace

std::uint32_t fits_of(messages::TrainingJob::Reader spec) { return spec.getFolds() >= 2 ? spec.getFolds() + 1 : 1; }

ChildSpec worker(WorkerOptions options) {
  ChildSpec spec;
  spec.id = "training/worker";
  spec.name = "training/worker";
  spec.mailbox.bulk = kBulkMailbox;
  spec.make = [options = std::move(options)] { return std::make_unique<Worker>(options); };
  return spec;
}

}  // namespace falaj::training
