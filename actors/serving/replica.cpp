#include "actors/serving/replica.hpp"

#include <deque>

#include "actors/artifacts/fetch.hpp"
#include "actors/serving/batch_policy.hpp"
#include "actors/serving/model.hpp"
#include "messages/envelope.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"

namespace falaj::serving {
namespace {

using namespace messages;
using falaj::ErrorCode;
using falaj::Lane;

// A run that is shorter than this is done on the actor's own turn: handing it to the pool and back costs about as much.
constexpr auto kInlineRun = std::chrono::microseconds(100);

struct Queued {
  Msg<Infer> message;
  std::int64_t rows;
};

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
    compute_ = &ctx.metrics().histogram("falaj_serving_compute_seconds", "Time of one batch", labels);
    ctx.start(load(ctx));
  }

 private:
  [[nodiscard]] ReplicaSpec::Reader spec() const { return ensure_->getActor().getReplica(); }

  // Ready only when the model has run once; then the directory is told until it knows.
  Task<> load(Context& ctx) {
    const std::string digest(text(spec().getArtifact()));
    auto fetch = artifacts::fetch_artifact(ctx, digest);
    auto content = co_await std::move(fetch);
    if (!content) co_return ctx.fail(within("model artifact " + digest, content.error()));
    const std::string name = format("{}:{}", text(spec().getDeployment().getName()), spec().getVersion());
    auto compile =
        ctx.blocking([content = std::move(content).value(), name, rows = limits_.max_batch]() -> Result<std::unique_ptr<Session>> {
          kernels::set_flush_denormals();
          FALAJ_ASSIGN(auto model, Model::load(content, name));
          auto session = std::make_unique<Session>(std::move(model));
          FALAJ_TRY(session->warm_up(1));
          FALAJ_TRY(session->warm_up(rows));
          return session;
        });
    auto session = co_await compile;
    if (!session) co_return ctx.fail(within(name, session.error()));
    session_ = std::move(session).value();
    co_await announce(ctx);
  }

  Task<> announce(Context& ctx) {
    const auto self = ctx.self().address();
    const auto ready = Message::build<ActorReady>([&](ActorReady::Builder b) {
      b.setName(ensure_->getActor().getName());
      b.setNode(ctx.node_name());
      b.setIncarnation(self.incarnation.value());
    });
    for (;;) {
      auto asked = ctx.ask<Empty>(ctx.find(options_.agent), ready, {.lane = Lane::control});
      const auto known = co_await asked;
      if (known) co_return;
      co_await ctx.sleep(std::chrono::milliseconds(50));
    }
  }

  void infer(Context& ctx, Msg<Infer> m) {
    if (!session_) return refuse(m, error(ErrorCode::overloaded, "the model is still being loaded"));
    if (m->getVersion() != 0 && m->getVersion() != spec().getVersion()) {
      return refuse(m, error(ErrorCode::not_found, format("this replica serves version {}, not {}", spec().getVersion(), m->getVersion())));
    }
    const auto rows = session_->model().check(*m);
    if (!rows) return refuse(m, rows.error());
    if (queue_.size() >= spec().getDeployment().getQueueMax())
      return refuse(m, error(ErrorCode::overloaded, "the replica's queue is full"));
    waiting_.push_back(Waiting{*rows, ctx.now(), m.deadline()});
    queue_.push_back(Queued{std::move(m), *rows});
    pump(ctx);
  }

  void refuse(Msg<Infer>& m, Error why) {
    refused_->add();
    m.refuse(std::move(why));
  }

  void pump(Context& ctx) {
    while (!running_ && !queue_.empty()) {
      waiting_list_.assign(waiting_.begin(), waiting_.end());
      const auto decision = decide(waiting_list_, limits_, run_time_, ctx.now());
      auto batch = take(decision);
      if (batch.empty()) {
        if (queue_.empty()) return;
        if (decision.wait_until != Instant::max() && !timer_) {
          timer_ = true;
          ctx.after(decision.wait_until - ctx.now(), [this](Context& c) {
            timer_ = false;
            pump(c);
          });
        }
        if (decision.considered == 0 || decision.wait_until != Instant::max()) return;
        continue;  // only refusals so far
      }
      std::int64_t rows = 0;
      for (const auto& queued : batch) rows += queued.rows;
      if (known_time_ && run_time_.estimate(rows) < kInlineRun) {
        run_inline(ctx, batch, rows);
      } else {
        running_ = true;
        ctx.start(run_apart(ctx, std::move(batch), rows));
      }
    }
  }

  // Takes what was decided out of the queue; the refused are refused.
  std::vector<Queued> take(const BatchDecision& decision) {
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

  static Status compute(Session& session, const std::vector<Queued>& batch) {
    std::vector<Infer::Reader> requests;
    std::vector<std::int64_t> rows;
    for (const auto& queued : batch) {
      requests.push_back(*queued.message);
      rows.push_back(queued.rows);
    }
    return session.run(requests, rows);
  }

  void run_inline(Context& ctx, std::vector<Queued>& batch, std::int64_t rows) {
    kernels::set_flush_denormals();
    const auto begin = ctx.now();
    const auto done = compute(*session_, batch);
    finish(ctx, batch, rows, begin, ctx.now(), done);
  }

  Task<> run_apart(Context& ctx, std::vector<Queued> batch, std::int64_t rows) {
    const auto begin = ctx.now();
    auto* session = session_.get();
    const auto* requests = &batch;
    auto work = ctx.blocking([session, requests]() -> Status {
      kernels::set_flush_denormals();
      return compute(*session, *requests);
    });
    const auto done = co_await work;
    running_ = false;
    finish(ctx, batch, rows, begin, ctx.now(), done);
    pump(ctx);
  }

  void finish(Context&, std::vector<Queued>& batch, std::int64_t rows, Instant begin, Instant end, const Status& done) {
    run_time_.learn(rows, end - begin);
    known_time_ = true;
    runs_->add();
    rows_->add(static_cast<std::uint64_t>(rows));
    compute_->record(end - begin);
    std::int64_t first = 0;
    for (auto& queued : batch) {
      if (!done) {
        refuse(queued.message, done.error());
      } else {
        queued.message.reply(Message::build<InferReply>(
            [&](InferReply::Builder b) {
              b.setModel(queued.message->getModel());
              b.setVersion(spec().getVersion());
              b.setId(queued.message->getId());
              b.setComputeNs(static_cast<std::uint64_t>((end - begin).count()));
              session_->answer(b, *queued.message, first, queued.rows);
            },
            128));
      }
      first += queued.rows;
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
  std::unique_ptr<Session> session_;  // null until loaded; used by one run at a time
  std::deque<Queued> queue_;
  std::deque<Waiting> waiting_;  // as queue_
  std::vector<Waiting> waiting_list_;
  RunTime run_time_;
  bool known_time_ = false;
  bool running_ = false;
  bool timer_ = false;
  metrics::Counter* runs_ = nullptr;
  metrics::Counter* rows_ = nullptr;
  metrics::Counter* refused_ = nullptr;
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
