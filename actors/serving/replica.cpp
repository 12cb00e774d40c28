#include "actors/serving/replica.hpp"

#include <deque>

#include "actors/artifacts/fetch.hpp"
#include "actors/serving/batch_policy.hpp"
#include "actors/serving/model.hpp"
#include "messages/envelope.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/base/retry.hpp"

namespace falaj::serving {
namespace {

using namespace messages;
using falaj::ErrorCode;
using falaj::Lane;

// A run that is shorter than this is done on the actor's own turn: handing it to the pool and back costs about as much.
constexpr auto kInlineRun = std::chrono::microseconds(100);

constexpr auto kLoadRetryMin = std::chrono::milliseconds(200);
constexpr auto kLoadRetryMax = std::chrono::seconds(10);

Error stopped() { return error(ErrorCode::gone, "the replica was stopped"); }

struct Queued {
  Msg<Infer> message;
  Fit fit;
  Instant arrival;
};

// What a run needs, owned: the pool may still be at it when the replica has been stopped.
struct Run {
  std::shared_ptr<Session> session;
  std::vector<Queued> batch;
  std::vector<Part> parts;
  std::int64_t rows = 0;

  Run() = default;
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  ~Run() {  // whom nobody has answered by now can be answered by another replica
    for (auto& queued : batch) queued.message.refuse(stopped());
  }
};

Status compute(Run& run) {
  kernels::set_flush_denormals();
  run.parts.clear();
  for (auto& queued : run.batch) run.parts.push_back(Part{*queued.message, std::move(queued.fit)});
  return run.session->run(run.parts);
}

class Replica final : public ActorOf<Replica> {
 public:
  static constexpr std::string_view kType = "serving/replica";
  static void handlers(Handlers<Replica>& on) {
    on.message<Infer>(&Replica::infer);
    on.message<DescribeModel>(&Replica::describe);
  }
  explicit Replica(ReplicaOptions options) : options_(std::move(options)), ensure_(options_.spec.open<EnsureActor>().value()) {
    const auto deployment = spec().getDeployment();
    limits_.max_batch = deployment.getMaxBatch();
    limits_.max_delay = std::chrono::microseconds(deployment.getMaxDelayUs());
  }

  void on_start(Context& ctx) override {
    const metrics::Labels labels = {{"deployment", std::string(text(spec().getDeployment().getName()))}};
    runs_ = &ctx.metrics().counter("falaj_serving_runs_total", "Batches run by replicas", labels);
    rows_ = &ctx.metrics().counter("falaj_serving_rows_total", "Rows in these batches", labels);
    refused_ = &ctx.metrics().counter("falaj_serving_refused_total", "Requests refused by replicas", labels);
    waiting_gauge_ = &ctx.metrics().gauge("falaj_serving_waiting", "Requests in the queues of replicas", labels);
    compute_ = &ctx.metrics().histogram("falaj_serving_compute_seconds", "Time of one batch", labels);
    ctx.start(load(ctx));
  }

  // The router asks another replica.
  void on_stop(Context&) override {
    for (auto& queued : queue_) queued.message.refuse(stopped());
    queue_.clear();
  }

 private:
  [[nodiscard]] ReplicaSpec::Reader spec() const { return ensure_->getActor().getReplica(); }

  // Ready only when the model has run once; then the directory is told until it knows. What cannot be loaded is tried again from time
  // to time instead of failing: a bad model must not use up the restarts of the node's other actors.
  Task<> load(Context& ctx) {
    RetryDelay wait(kLoadRetryMin, kLoadRetryMax);
    for (;;) {
      auto once = load_once(ctx);
      const auto loaded = co_await std::move(once);
      if (loaded) break;
      // Not the message: it may quote names within the model, and models are kept in no log. An import has tried all this before.
      log::error("serving", "cannot load the model",
                 {{"replica", text(ensure_->getActor().getName())},
                  {"artifact", text(spec().getArtifact())},
                  {"code", to_string(loaded.error().code)}});
      co_await ctx.sleep(wait.next(ctx.random()));
    }
    auto told = announce(ctx);
    co_await std::move(told);
  }

  Task<Status> load_once(Context& ctx) {
    const ModelKey key{std::string(text(spec().getArtifact())), model_options(spec().getDeployment())};
    auto shared = options_.models->find(key);
    Bytes content;
    if (shared == nullptr) {
      auto fetch = artifacts::fetch_artifact(ctx, key.artifact);
      auto fetched = co_await std::move(fetch);
      if (!fetched) co_return within("model artifact " + key.artifact, fetched.error());
      content = std::move(fetched).value();
    }
    if (fault::rarely("model-not-loaded", 0.25)) co_return error(ErrorCode::overloaded, "there is no memory for the model just now");
    const std::string name = format("{}:{}", text(spec().getDeployment().getName()), spec().getVersion());
    auto compile = ctx.blocking([models = options_.models, shared = std::move(shared), key, content = std::move(content), name,
                                 rows = limits_.max_batch]() mutable -> Result<std::shared_ptr<Session>> {
      kernels::set_flush_denormals();
      if (shared == nullptr) {
        FALAJ_ASSIGN(shared, models->get(key, [&] { return Model::load(content, name, key.options); }));
      }
      auto made = std::make_shared<Session>(shared);
      FALAJ_TRY(made->warm_up(1));
      if (shared->batches()) FALAJ_TRY(made->warm_up(rows));
      return made;
    });
    auto made = co_await compile;
    if (!made) co_return made.error();
    session_ = std::move(made).value();
    const auto& model = session_->model();
    if (!model.batches()) limits_.max_batch = 1;
    unknown_.assign(model.inputs().size(), nullptr);
    for (std::size_t i = 0; i < unknown_.size(); ++i) {
      if (!model.has_categories(i)) continue;
      unknown_[i] =
          &ctx.metrics().counter("falaj_serving_unknown_categories_total", "Categories that the model does not know, taken as missing",
                                 {{"deployment", std::string(text(spec().getDeployment().getName()))}, {"input", model.inputs()[i].name}});
    }
    co_return Status{};
  }

  Task<> announce(Context& ctx) {
    const auto self = ctx.self().address();
    const auto ready = Message::build<ActorReady>([&](ActorReady::Builder b) {
      b.setName(ensure_->getActor().getName());
      b.setNode(ctx.node_name());
      b.setIncarnation(self.incarnation.value());
    });
    RetryDelay wait(std::chrono::milliseconds(50), std::chrono::milliseconds(500));
    for (;;) {
      auto asked = ctx.ask<Empty>(ctx.find(options_.agent), ready, {.lane = Lane::control});
      const auto known = co_await asked;
      if (known) co_return;
      co_await ctx.sleep(wait.next(ctx.random()));
    }
  }

  void infer(Context& ctx, Msg<Infer> m) {
    if (!session_) return refuse(m, error(ErrorCode::overloaded, "the model is still being loaded"));
    if (m->getVersion() != 0 && m->getVersion() != spec().getVersion()) {
      return refuse(m, error(ErrorCode::not_found, format("this replica serves version {}, not {}", spec().getVersion(), m->getVersion())));
    }
    if (queue_.size() >= spec().getDeployment().getQueueMax())
      return refuse(m, error(ErrorCode::overloaded, "the replica's queue is full"));
    auto fit = session_->model().check(*m);
    if (!fit) return refuse(m, fit.error());
    waiting_.push_back(Waiting{fit->rows, ctx.now(), m.deadline()});
    queue_.push_back(Queued{std::move(m), std::move(fit).value(), ctx.now()});
    pump(ctx);
  }

  void refuse(Msg<Infer>& m, Error why) {
    refused_->add();
    m.refuse(std::move(why));
  }

  void pump(Context& ctx) {
    while (!running_ && !queue_.empty()) {
      waiting_list_.assign(waiting_.begin(), waiting_.end());
      const auto now = ctx.now();
      const auto decision = decide(waiting_list_, limits_, run_time_, now);
      auto batch = take(decision, now);
      if (batch.empty()) {
        if (queue_.empty()) break;
        if (decision.wait_until == Instant::max()) continue;  // only refusals so far
        if (decision.wait_until < timer_at_) {                // an earlier one stays: it finds nothing to do
          timer_at_ = decision.wait_until;
          ctx.after(decision.wait_until - now, [this, at = timer_at_](Context& c) {
            if (timer_at_ == at) timer_at_ = Instant::max();
            pump(c);
          });
        }
        break;
      }
      auto run = std::make_shared<Run>();
      run->session = session_;
      run->batch = std::move(batch);
      for (const auto& queued : run->batch) run->rows += queued.fit.rows;
      if (known_time_ && run_time_.estimate(run->rows) < kInlineRun) {
        const auto begin = ctx.now();
        const auto done = compute(*run);
        finish(*run, begin, ctx.now(), done);
      } else {
        running_ = true;
        ctx.start(run_apart(ctx, std::move(run)));
      }
    }
    waiting_gauge_->set(static_cast<double>(queue_.size()));
  }

  // Takes what was decided out of the queue; the refused are refused.
  std::vector<Queued> take(const BatchDecision& decision, Instant now) {
    std::vector<Queued> batch;
    std::size_t next_refused = 0;
    std::size_t position = 0;
    std::deque<Queued> kept;
    std::deque<Waiting> kept_waiting;
    for (; position < decision.considered; ++position) {
      auto queued = std::move(queue_.front());
      queue_.pop_front();
      const auto waiting = waiting_.front();
      waiting_.pop_front();
      if (next_refused < decision.refuse.size() && decision.refuse[next_refused] == position) {
        ++next_refused;
        if (waiting.deadline > now) run_time_.doubt();
        refuse(queued.message, error(ErrorCode::deadline, "it would have been answered too late"));
      } else if (batch.size() < decision.run) {
        batch.push_back(std::move(queued));
      } else {
        kept.push_back(std::move(queued));
        kept_waiting.push_back(waiting);
      }
    }
    queue_.insert(queue_.begin(), std::make_move_iterator(kept.begin()), std::make_move_iterator(kept.end()));
    waiting_.insert(waiting_.begin(), kept_waiting.begin(), kept_waiting.end());
    return batch;
  }

  Task<> run_apart(Context& ctx, std::shared_ptr<Run> run) {
    const auto begin = ctx.now();
    auto work = ctx.blocking([run]() -> Status { return compute(*run); });
    const auto done = co_await work;
    running_ = false;
    finish(*run, begin, ctx.now(), done);
    pump(ctx);
  }

  void finish(Run& run, Instant begin, Instant end, const Status& done) {
    if (done) {
      run_time_.learn(run.rows, end - begin);
      known_time_ = true;
    }
    runs_->add();
    rows_->add(static_cast<std::uint64_t>(run.rows));
    compute_->record(end - begin);
    for (std::size_t i = 0; i < unknown_.size(); ++i) {
      if (unknown_[i] != nullptr && run.session->unknown()[i] != 0) unknown_[i]->add(run.session->unknown()[i]);
    }
    std::int64_t first = 0;
    for (std::size_t i = 0; i < run.batch.size(); ++i) {
      auto& queued = run.batch[i];
      // Not even handed to the pool: the parts were not made.
      const auto rows = i < run.parts.size() ? run.parts[i].fit.rows : queued.fit.rows;
      if (!done) {
        refuse(queued.message, done.error());
      } else {
        queued.message.reply(Message::build<InferReply>(
            [&](InferReply::Builder b) {
              b.setModel(queued.message->getModel());
              b.setVersion(spec().getVersion());
              b.setId(queued.message->getId());
              b.setQueueNs(static_cast<std::uint64_t>((begin - queued.arrival).count()));
              b.setComputeNs(static_cast<std::uint64_t>((end - begin).count()));
              b.setRows(static_cast<std::uint32_t>(rows));
              b.setBatchRows(static_cast<std::uint32_t>(run.rows));
              b.setUnknown(run.session->unknown_of(i));
              run.session->answer(b, *queued.message, first, rows);
            },
            128));
      }
      first += rows;
    }
  }

  void describe(Context&, Msg<DescribeModel> m) {
    if (!session_) return m.refuse(error(ErrorCode::overloaded, "the model is still being loaded"));
    m.reply(Message::build<ModelDescription>(
        [&](ModelDescription::Builder b) {
          b.setModel(spec().getDeployment().getName());
          b.initVersions(1).set(0, spec().getVersion());
          b.setPlatform("onnx");
          b.setMaxBatch(static_cast<std::uint32_t>(limits_.max_batch));
          b.setReady(true);
          const auto write = [](auto list, const std::vector<TensorSpec>& specs) {
            for (unsigned i = 0; i < specs.size(); ++i) {
              list[i].setName(specs[i].name);
              list[i].setType(specs[i].type);
              auto shape = list[i].initShape(static_cast<unsigned>(specs[i].shape.size()));
              for (unsigned d = 0; d < specs[i].shape.size(); ++d) shape.set(d, specs[i].shape[d]);
            }
          };
          const auto& model = session_->model();
          write(b.initInputs(static_cast<unsigned>(model.inputs().size())), model.inputs());
          write(b.initOutputs(static_cast<unsigned>(model.outputs().size())), model.outputs());
        },
        256));
  }

  ReplicaOptions options_;
  View<EnsureActor> ensure_;
  BatchLimits limits_;
  std::shared_ptr<Session> session_;  // null until loaded; used by one run at a time
  std::deque<Queued> queue_;
  std::deque<Waiting> waiting_;  // as queue_
  std::vector<Waiting> waiting_list_;
  RunTime run_time_;
  bool known_time_ = false;
  bool running_ = false;
  Instant timer_at_ = Instant::max();  // the next look at the queue
  metrics::Counter* runs_ = nullptr;
  metrics::Counter* rows_ = nullptr;
  metrics::Counter* refused_ = nullptr;
  metrics::Gauge* waiting_gauge_ = nullptr;
  std::vector<metrics::Counter*> unknown_;  // by input; null where it holds no categories
  metrics::Histogram* compute_ = nullptr;
};

}  // namespace

ChildSpec replica(ReplicaOptions options) {
  ChildSpec spec;
  spec.id = "replica";
  spec.make = [options = std::move(options)] { return std::make_unique<Replica>(options); };
  return spec;
}

}  // namespace falaj::serving
