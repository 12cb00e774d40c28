#include "actors/training/jobs.hpp"

#include <algorithm>
#include <map>
#include <type_traits>

#include "actors/training/run_state.hpp"
#include "messages/envelope.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"

namespace falaj::training {
namespace {

using namespace std::chrono_literals;
using messages::Empty;
using messages::GetRun;
using messages::JobRecord;
using messages::ListRuns;
using messages::RunInfo;
using messages::RunJob;
using messages::RunList;
using messages::RunRecord;
using messages::StopJob;
using messages::StopRun;

constexpr std::size_t kRunsShown = 1000;

struct KnownJob {
  std::uint64_t generation = 0;
  std::string run;
};

struct Loaded {
  std::map<std::string, KnownJob> jobs;
  std::map<std::string, Message> runs;  // RunInfo
};

Result<Loaded> load(storage::Kv& store) {
  Loaded out;
  Status bad;
  FALAJ_ASSIGN(auto txn, store.read());
  const auto open = [&]<class T>(std::type_identity<T>, const storage::Item& item, auto&& use) {
    auto message = message_from_bytes(TypeId(capnp::typeId<T>()), item.value);
    if (message.has_value()) {
      auto view = message->template open<T>();
      if (view.has_value()) {
        use(std::string(as_text(item.key)), *view.value());
        return true;
      }
      bad = view.error();
    } else {
      bad = message.error();
    }
    return false;
  };
  FALAJ_TRY(txn->scan(kJobsTable, {}, [&](const storage::Item& item) {
    return open(std::type_identity<JobRecord>{}, item, [&](const std::string& key, JobRecord::Reader record) {
      out.jobs[key] = KnownJob{record.getGeneration(), std::string(text(record.getRun()))};
    });
  }));
  FALAJ_TRY(txn->scan(kRunsTable, {}, [&](const storage::Item& item) {
    return open(std::type_identity<RunRecord>{}, item,
                [&](const std::string& key, RunRecord::Reader record) { out.runs[key] = Message::copy_of<RunInfo>(record.getInfo()); });
  }));
  FALAJ_TRY(std::move(bad));
  return out;
}

bool over(RunInfo::Reader info) {
  const auto phase = text(info.getPhase());
  return phase == phase::kFinished || phase == phase::kFailed || phase == phase::kStopped;
}

class Jobs final : public ActorOf<Jobs> {
 public:
  static constexpr std::string_view kType = "training/jobs";
  static void handlers(Handlers<Jobs>& on) {
    on.message<RunJob>(&Jobs::run_job);
    on.message<StopJob>(&Jobs::stop_job);
    on.message<RunInfo>(&Jobs::run_changed);
    on.message<GetRun>(&Jobs::get_run);
    on.message<ListRuns>(&Jobs::list_runs);
  }
  explicit Jobs(JobsOptions options) : options_(std::move(options)) {}

  void on_start(Context& ctx) override {
    // One run that cannot go on must not take the others with it.
    ctx.supervise(Supervision{.strategy = Strategy::one_for_one, .intensity = 20, .period = 60s, .backoff = {}});
    ctx.start(begin(ctx));
  }

 private:
  Task<> begin(Context& ctx) {
    for (;;) {
      auto loading = ctx.blocking([store = options_.store] { return load(*store); });
      auto loaded = co_await loading;
      if (loaded.has_value()) {
        known_ = std::move(loaded->jobs);
        runs_ = std::move(loaded->runs);
        break;
      }
      log::error("training", "runs cannot be read", {{"reason", loaded.error().message}});
      co_await ctx.sleep(1s);
    }
    loaded_ = true;
    for (const auto& [run, message] : runs_) {
      const auto info = message.view<RunInfo>();
      if (!over(*info)) ctx.start(launch(ctx, message));
    }
  }

  // When the actor of the run before has left the name.
  Task<> launch(Context& ctx, Message message) {
    const auto info = message.view<RunInfo>();
    const std::string tenant(text(info->getOwner().getTenant()));
    const std::string name(text(info->getJob()));
    const std::string run(text(info->getRun()));
    const std::string actor = "training/job/" + job_key(tenant, name);
    while (ctx.find(actor)) co_await ctx.sleep(2ms);
    if (const auto known = runs_.find(run); known == runs_.end() || over(*known->second.view<RunInfo>())) co_return;
    ctx.spawn(job(options_, tenant, name, run, ctx.self()));
  }

  Task<> run_job(Context& ctx, Msg<RunJob> m) {
    if (!loaded_) co_return m.refuse(error(ErrorCode::overloaded, "runs are being loaded"));
    const auto spec = m->getJob();
    const std::string key = job_key(text(spec.getOwner().getTenant()), text(spec.getName()));
    const std::uint64_t generation = m->getGeneration();
    if (const auto known = known_.find(key); known != known_.end() && known->second.generation >= generation) {
      co_return m.reply(Message::build<Empty>());
    }
    auto stopping = stop_running(ctx, key, "a newer run of this job was asked for");
    const auto stopped = co_await std::move(stopping);
    if (!stopped.has_value()) co_return m.refuse(stopped.error());
    if (const auto known = known_.find(key); known != known_.end() && known->second.generation >= generation) {
      co_return m.reply(Message::build<Empty>());
    }
    RunState state;
    state.run = format("{}-{}", text(spec.getName()), generation);
    if (key.find('/') != std::string::npos) state.run = format("{}-{}", text(spec.getOwner().getTenant()), state.run);
    state.tenant = text(spec.getOwner().getTenant());
    state.residency = text(spec.getOwner().getResidency());
    state.name = text(spec.getName());
    state.generation = generation;
    state.spec = Message::copy_of<messages::TrainingJob>(spec);
    const auto job_record = Message::build<JobRecord>([&](JobRecord::Builder b) {
      b.setJob(spec);
      b.setGeneration(generation);
      b.setRun(state.run);
    });
    known_[key] = KnownJob{generation, state.run};
    const Message info = state.info();
    auto storing = ctx.blocking([store = options_.store, key, job_record, run = state.run, record = state.record()]() -> Status {
      FALAJ_ASSIGN(auto txn, store->write());
      FALAJ_TRY(txn->put(kJobsTable, as_bytes(key), job_record.bytes(), kTrainingFormat));
      FALAJ_TRY(txn->put(kRunsTable, as_bytes(run), record.bytes(), kTrainingFormat));
      return txn->commit();
    });
    const auto stored = co_await storing;
    if (!stored.has_value()) {
      known_[key].generation = 0;
      co_return m.refuse(stored.error());
    }
    runs_[state.run] = info;
    ctx.start(launch(ctx, info));
    m.reply(Message::build<Empty>());
  }

  Task<> stop_job(Context& ctx, Msg<StopJob> m) {
    if (!loaded_) co_return m.refuse(error(ErrorCode::overloaded, "runs are being loaded"));
    auto stopping = stop_running(ctx, job_key(text(m->getTenant()), text(m->getJob())), std::string(text(m->getReason())));
    const auto stopped = co_await std::move(stopping);
    stopped.has_value() ? m.reply(Message::build<Empty>()) : m.refuse(stopped.error());
  }

  // Ends the run of this job, if one runs.
  Task<Status> stop_running(Context& ctx, std::string key, std::string reason) {
    const auto known = known_.find(key);
    if (known == known_.end()) co_return Status{};
    const std::string run = known->second.run;
    const auto info = runs_.find(run);
    if (info == runs_.end() || over(*info->second.view<RunInfo>())) co_return Status{};
    const auto message = Message::build<StopRun>([&](StopRun::Builder b) { b.setReason(reason.empty() ? "stopped" : reason); });
    auto asked = ctx.ask<Empty>(ctx.find("training/job/" + key), message);
    const auto stopped = co_await asked;
    // It may have ended, and been stopped, before it could answer.
    const bool ended = over(*runs_.at(run).view<RunInfo>());
    if (!stopped.has_value() && !ended) co_return stopped.error();
    ctx.stop_child(run);
    co_return Status{};
  }

  void run_changed(Context& ctx, Msg<RunInfo> m) {
    const std::string run(text(m->getRun()));
    runs_[run] = m.message();
    m.reply(Message::build<Empty>());
    if (over(*m)) ctx.stop_child(run);
  }

  void get_run(Context&, Msg<GetRun> m) {
    std::string run(text(m->getRun()));
    if (run.empty()) {
      const auto known = known_.find(std::string(text(m->getJob())));
      if (known == known_.end()) return m.refuse(error(ErrorCode::not_found, format("job {} has no run yet", text(m->getJob()))));
      run = known->second.run;
    }
    const auto found = runs_.find(run);
    if (found == runs_.end()) return m.refuse(error(ErrorCode::not_found, format("there is no run {}; `falaj runs list` shows them", run)));
    m.reply(found->second);
  }

  // Newest first.
  void list_runs(Context&, Msg<ListRuns> m) {
    std::vector<std::pair<std::int64_t, const Message*>> chosen;
    for (const auto& [run, message] : runs_) {
      const auto info = message.view<RunInfo>();
      if (m->getJob().size() == 0 || info->getJob() == m->getJob()) chosen.emplace_back(info->getStartedNs(), &message);
    }
    std::ranges::stable_sort(chosen, [](const auto& a, const auto& b) { return a.first > b.first; });
    chosen.resize(std::min(chosen.size(), kRunsShown));
    m.reply(Message::build<RunList>(
        [&](RunList::Builder b) {
          auto list = b.initRuns(static_cast<unsigned>(chosen.size()));
          for (unsigned i = 0; i < list.size(); ++i) list.setWithCaveats(i, *chosen[i].second->view<RunInfo>());
        },
        64 + 256 * chosen.size()));
  }

  const JobsOptions options_;
  bool loaded_ = false;
  std::map<std::string, KnownJob> known_;  // by job_key
  std::map<std::string, Message> runs_;    // RunInfo, trusted
};

}  // namespace

ChildSpec jobs(JobsOptions options) {
  ChildSpec spec;
  spec.id = "training/jobs";
  spec.name = "training/jobs";
  spec.make = [options = std::move(options)] { return std::make_unique<Jobs>(options); };
  return spec;
}

}  // namespace falaj::training
