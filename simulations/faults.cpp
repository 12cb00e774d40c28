#include "simulations/faults.hpp"

#include <algorithm>
#include <array>
#include <set>

#include "messages/catalog.hpp"
#include "runtime/base/format.hpp"
#include "simulations/checks.hpp"
#include "simulations/keys.hpp"
#include "simulations/models.hpp"
#include "simulations/probe.hpp"
#include "simulations/rows.hpp"
#include "simulations/storm.hpp"

namespace falaj::simulations {
namespace {

using namespace std::chrono_literals;

constexpr Duration kCalmMin = 40s;
// Of calm, for all that must come about then. A rank waits a minute for a chunk that got lost just before.
constexpr Duration kPatience = 100s;

class FaultRun {
 public:
  explicit FaultRun(const FaultPlan& plan);
  ~FaultRun();
  FaultRun(const FaultRun&) = delete;
  FaultRun& operator=(const FaultRun&) = delete;
  FaultReport run();

 private:
  void hook();
  void step_until(Instant limit);
  bool wait(const std::function<std::string()>& missing, Instant limit, const char* what);
  void calm_down(Instant end);
  void trace(const SimSeen& seen) const;

  const FaultPlan& plan_;
  Cluster cluster_;
  SimWorld& world_;
  Verdict verdict_;
  Checks checks_;
  Storm storm_;
  Client client_;
  Rows rows_;
  Models models_;
  Keys keys_;
  Instant next_look_{};
  Instant calm_since_{};
  Duration settled_after_{};
  std::set<std::string> restarts_;  // under way
};

FaultRun::FaultRun(const FaultPlan& plan)
    : plan_(plan),
      cluster_(plan.seed, std::max(1U, plan.nodes), Keys::types()),
      world_(cluster_.world()),
      verdict_([this] { return world_.now(); }),
      checks_(cluster_, verdict_),
      storm_(cluster_, plan.plant),
      client_(cluster_, verdict_),
      rows_(cluster_, client_, verdict_),
      models_(cluster_, client_, verdict_),
      keys_(verdict_) {}

// The cluster ends last, and nobody listens to it then.
FaultRun::~FaultRun() {
  world_.watch({});
  cluster_.on_view = nullptr;
  cluster_.on_boot = nullptr;
  cluster_.on_end = nullptr;
  cluster_.on_boot_failed = nullptr;
}

void FaultRun::trace(const SimSeen& seen) const {
  static constexpr std::array kKinds = {"tell", "ask", "reply", "refusal", "watch", "unwatch", "down", "work", "stop", "exited", "poke"};
  const auto& d = *seen.delivery;
  const auto schema = find_message(d.body.type());
  const auto from = d.from ? d.from.address() : ActorAddress{};
  plan_.trace(format("{:>12} {:<14} {:<28} {:<8} {} #{} from {}", seen.when.time_since_epoch() / 1us, seen.node,
                     seen.actor_name.empty() ? format("actor {}", seen.actor.value()) : std::string(seen.actor_name),
                     kKinds[static_cast<std::size_t>(d.kind)],
                     schema ? std::string(schema->getShortDisplayName().cStr()) : format("{:016x}", d.body.type().value()),
                     d.correlation.value(), d.from ? to_string(from) : "nobody"));
}

void FaultRun::hook() {
  world_.watch([this](const SimSeen& seen) {
    checks_.seen(seen);
    if (plan_.trace) trace(seen);
  });
  cluster_.on_view = [this](const std::string& machine, const cluster::ClusterSnapshot& view) { checks_.viewed(machine, view); };
  cluster_.on_end = [this](const std::string& node) { checks_.ended(node); };
  cluster_.on_boot = [this](const std::string& machine, Host& host) {
    ProbeOptions options;
    options.machine = machine;
    for (const auto& name : cluster_.names()) {
      if (name != machine) options.peers.push_back(name);
    }
    options.verdict = &verdict_;
    start_probe(host, std::move(options));
    keys_.start(host);
  };
  cluster_.on_boot_failed = [this](const std::string& machine, const Error& why) {
    if (plan_.trace) plan_.trace(format("{:>12} {} does not start: {}", world_.now().time_since_epoch() / 1us, machine, to_string(why)));
    if (why.code != ErrorCode::no_space) verdict_.fail(format("{} does not start: {}", machine, to_string(why)));
  };
  if (plan_.trace) {
    storm_.on_fault = [this](const std::string& what) {
      plan_.trace(format("{:>12} ---- {}", world_.now().time_since_epoch() / 1us, what));
    };
  }
}

void FaultRun::step_until(Instant limit) {
  while (verdict_.good() && world_.step_until(limit)) {
    storm_.between_steps();
    if (world_.now() < next_look_) continue;
    next_look_ = world_.now() + 1s;
    checks_.every_second();
    // What gave up, or found its disk full, is started again as a service manager would.
    for (const auto& name : cluster_.names()) {
      if (!cluster_.up(name) && restarts_.insert(name).second) {
        world_.at(world_.now() + 10s, [this, name] {
          restarts_.erase(name);
          cluster_.restart(name);
        });
      }
    }
  }
}

bool FaultRun::wait(const std::function<std::string()>& missing, Instant limit, const char* what) {
  for (;;) {
    const auto left = missing();
    if (left.empty()) return true;
    if (!verdict_.good()) return false;
    if (world_.now() >= limit) {
      verdict_.fail(format("calm for {} s, and {}: {}", (limit - calm_since_) / 1s, what, left));
      return false;
    }
    step_until(std::min(limit, world_.now() + 500ms));
  }
}

void FaultRun::calm_down(Instant end) {
  calm_since_ = world_.now();
  const auto limit = std::min(end, calm_since_ + kPatience);
  storm_.calm();
  models_.calm();
  keys_.calm();
  rows_.stop();
  const auto settled = [this] { return checks_.not_settled(); };
  if (!wait([this] { return models_.done() ? std::string() : models_.waiting_for(); }, limit, "not all is done")) return;
  models_.stop();
  if (!wait(settled, limit, "the cluster has not settled")) return;
  if (!wait([this] { return keys_.missing(); }, limit, "not all keys answer")) return;
  rows_.read_all();
  if (!wait([this] { return rows_.all_read() ? std::string() : rows_.missing(); }, limit, "not all rows are read")) return;
  const auto worker = [this] { return cluster_.workers().empty() ? std::string() : cluster_.workers().front() + " still runs"; };
  if (!wait(worker, limit, "workers are left") || !wait(settled, limit, "the cluster has not settled")) return;
  settled_after_ = world_.now() - calm_since_;
}

FaultReport FaultRun::run() {
  hook();
  cluster_.start_all();
  if (plan_.faults) storm_.begin();
  models_.on_views = [this] { rows_.begin(); };
  models_.begin();
  const Duration whole = std::chrono::minutes(std::max(1U, plan_.minutes));
  const Instant end = Instant{} + whole;
  step_until(end - std::max<Duration>(whole * 2 / 5, kCalmMin));
  if (verdict_.good()) calm_down(end);
  FaultReport report;
  if (verdict_.good()) {
    const auto audit = checks_.audit();
    report.audit_entries = audit.entries;
    if (audit.reads < rows_.personal_reads())
      verdict_.fail(format("{} reads of personal data were answered, {} are in the audit log", rows_.personal_reads(), audit.reads));
    if (audit.promotions < models_.promotions())
      verdict_.fail(format("{} promotions were acknowledged, {} are in the audit log", models_.promotions(), audit.promotions));
  }
  step_until(end);
  for (const auto number :
       {rows_.acknowledged(), models_.runs(), models_.predictions(), client_.answered(), keys_.answers(), report.audit_entries})
    world_.fold(number);
  world_.fold(stable_hash(models_.weights()));
  report.digest = world_.digest();
  report.violations = verdict_.violations();
  report.simulated_seconds = std::chrono::duration<double>(world_.now().time_since_epoch()).count();
  report.settled_after = std::chrono::duration<double>(settled_after_).count();
  report.steps = world_.steps();
  report.faults = storm_.faults();
  report.runs = models_.runs();
  report.promotions = models_.promotions();
  report.predictions = models_.predictions();
  report.rows = rows_.acknowledged();
  report.storm = plan_.faults ? storm_.describe() : "none";
  return report;
}

}  // namespace

FaultReport run_faults(const FaultPlan& plan) {
  FaultRun run(plan);
  return run.run();
}

const std::vector<std::string>& plants() {
  static const std::vector<std::string> kPlants = {
      "reply-twice",         "ask-without-deadline",     "mailbox-unbounded",      "restart-intensity-off-by-one",
      "restart-at-once",     "children-stopped-at-once", "incarnation-unchecked",  "down-lost",
      "file-not-synced",     "folder-not-synced",        "row-acknowledged-early", "epoch-not-stored",
      "last-node-not-told",  "strays-forgotten",         "audit-entry-twice",      "audit-entry-dropped",
      "sum-out-of-order",    "state-not-reset",          "run-ended-by-busy-pool", "command-not-stored",
      "lease-not-looked-at",
  };
  return kPlants;
}

}  // namespace falaj::simulations
