#include "runtime/host/supervise.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/host/cell.hpp"

namespace falaj {

namespace {
// After a kill: how long a child may still be inside a handler before its parent goes on without it.
constexpr auto kKillGrace = std::chrono::seconds(1);

Cell& cell_of(const ActorRef& ref) { return *static_cast<Cell*>(ref.get()); }
}  // namespace

void Supervisor::check(const Supervision& s) {
  if (s.period <= Duration::zero()) throw std::invalid_argument("Supervision::period must be positive");
  if (s.backoff.min < Duration::zero() || s.backoff.max < s.backoff.min) throw std::invalid_argument("Backoff: 0 <= min <= max must hold");
  if (s.backoff.factor < 1) throw std::invalid_argument("Backoff::factor must be at least 1");
  if (s.backoff.jitter < 0 || s.backoff.jitter >= 1) throw std::invalid_argument("Backoff::jitter must be in [0, 1)");
}

void Supervisor::check(const ChildSpec& spec) {
  if (spec.id.empty()) throw std::invalid_argument("ChildSpec::id must not be empty");
  if (!spec.make) throw std::invalid_argument(format("child {}: ChildSpec::make must be given", spec.id));
  if (spec.significant && spec.restart == Restart::permanent)
    throw std::invalid_argument(format("child {}: what is always restarted cannot be significant", spec.id));
  if (spec.shutdown < Duration::zero()) throw std::invalid_argument(format("child {}: shutdown must not be negative", spec.id));
}

void Supervisor::configure(const Supervision& supervision) { supervision_ = supervision; }

Supervisor::Order Supervisor::add(ChildSpec spec) {
  const Order order = next_++;
  by_id_[spec.id] = order;
  children_[order].spec = std::move(spec);
  stopping_ = next_;  // it may have come into a group that is being stopped
  return order;
}

ActorRef Supervisor::spawn(ChildSpec spec, bool* started) {
  check(spec);
  if (stopping_all_) throw std::logic_error(format("child {}: its parent is stopping", spec.id));
  if (const auto found = by_id_.find(spec.id); found != by_id_.end()) {
    const auto& old = children_.at(found->second);
    // A transient child that has ended normally keeps its place for group restarts, but gives its id away.
    if (old.state != State::down || old.timer != 0 || old.spec.restart == Restart::permanent)
      throw std::invalid_argument(format("child {}: the id is taken", spec.id));
    erase(found->second);
  }
  auto cell = parent_.host().make_cell(spec, &parent_, 0, true);
  const Order order = add(std::move(spec));
  auto& child = children_.at(order);
  child.ref = cell;
  child.state = State::running;
  child.started = parent_.now();
  const bool ok = cell_of(cell).start(child.spec.make);
  if (started != nullptr) *started = ok;
  return cell;
}

bool Supervisor::adopt(ChildSpec spec, ActorRef cell) {
  if (stopping_all_ || by_id_.contains(spec.id)) return false;
  auto& child = children_.at(add(std::move(spec)));
  child.ref = std::move(cell);
  child.state = State::running;
  child.started = parent_.now();
  cell_of(child.ref).start(child.spec.make);
  return true;
}

bool Supervisor::start(Order order) {
  auto& child = children_.at(order);
  child.ref = parent_.host().make_cell(child.spec, &parent_, child.restarts, false);
  child.state = State::running;
  child.started = parent_.now();
  return cell_of(child.ref).start(child.spec.make);
}

void Supervisor::cancel_timer(TimerId& timer) {
  if (timer != 0) parent_.cancel(std::exchange(timer, 0));
}

void Supervisor::erase(Order order) {
  const auto at = children_.find(order);
  cancel_timer(at->second.timer);
  if (const auto id = by_id_.find(at->second.spec.id); id != by_id_.end() && id->second == order) by_id_.erase(id);
  if (parent_.is_root()) parent_.host().root_forget(at->second.spec.id);
  children_.erase(at);
}

// ---- stopping -----------------------------------------------------------------------------------------------------------------

void Supervisor::stop(Order order) {
  auto& child = children_.at(order);
  cancel_timer(child.timer);
  if (child.spec.shutdown == Duration::zero()) {
    kill(order);
    return;
  }
  child.state = State::stopping;
  auto stop = std::make_unique<Delivery>();
  stop->kind = Kind::stop;
  stop->lane = Lane::control;
  child.ref.get()->deliver(std::move(stop));
  child.timer = parent_.after(child.spec.shutdown, [this, order](Context&) { kill(order); });
}

void Supervisor::kill(Order order) {
  auto& child = children_.at(order);
  child.state = State::killing;
  cell_of(child.ref).kill();
  child.timer = parent_.after(kKillGrace, [this, order](Context&) {
    auto& stuck = children_.at(order);
    stuck.timer = 0;
    log::error("supervisor", "a killed actor does not return from its handler; going on without it",
               {{"child", stuck.spec.id}, {"type", cell_of(stuck.ref).info().type}});
    down(order);
    advance();
  });
}

void Supervisor::down(Order order) {
  auto& child = children_.at(order);
  cancel_timer(child.timer);
  child.ref = {};
  child.state = State::down;
  if (child.forget) erase(order);
}

void Supervisor::stop_child(std::string_view id) {
  const auto found = by_id_.find(std::string(id));
  if (found == by_id_.end()) return;
  const Order order = found->second;
  auto& child = children_.at(order);
  child.forget = true;
  if (child.state == State::down) {
    erase(order);
  } else if (child.state == State::running) {
    stop(order);
  }
}

void Supervisor::stop_all() {
  stopping_all_ = true;
  stopping_ = next_;
  group_ = Group::none;
  // The parent's timers are gone already; those of children that were being stopped must be set again.
  for (auto& [order, child] : children_) {
    child.timer = 0;
    if (child.state == State::stopping || child.state == State::killing) child.state = State::running;
  }
  advance();
}

void Supervisor::kill_all() noexcept {
  for (auto& [order, child] : children_) {
    if (child.ref) cell_of(child.ref).kill();
  }
}

// The next step of a stop in reverse order; each step is taken when the one before has ended.
void Supervisor::advance() {
  if (!stopping_all_ && group_ != Group::stopping) return;
  const Order from = stopping_all_ ? 0 : group_from_;
  const bool at_once = fault::planted("children-stopped-at-once");
  bool stopping = false;
  for (auto at = children_.upper_bound(stopping_); at != children_.begin();) {
    if ((--at)->first < from) break;
    if (!at_once) stopping_ = at->first;
    if (at->second.state == State::running) stop(at->first);
    stopping = stopping || at->second.state != State::down;
    if (stopping && !at_once) return;
  }
  if (stopping) return;
  if (stopping_all_) {
    parent_.children_stopped();
    return;
  }
  for (auto at = children_.lower_bound(from); at != children_.end();) {
    const auto order = (at++)->first;
    auto& child = children_.at(order);
    cancel_timer(child.timer);
    if (child.spec.restart == Restart::temporary) erase(order);
  }
  group_ = Group::waiting;
  group_timer_ = parent_.after(group_delay_, [this](Context&) {
    group_timer_ = 0;
    start_group();
  });
}

// ---- restarting ----------------------------------------------------------------------------------------------------------------

void Supervisor::exited(const ActorRef& ref, bool failed, const Error& why) {
  const auto found = by_id_.find(cell_of(ref).child_id());
  if (found == by_id_.end() || children_.at(found->second).ref != ref) return;  // given up before
  const Order order = found->second;
  auto& child = children_.at(order);
  const bool expected = child.state != State::running || stopping_all_ || (group_ != Group::none && order >= group_from_);
  if (expected) {
    down(order);
    advance();
    return;
  }
  const bool again = child.spec.restart == Restart::permanent || (child.spec.restart == Restart::transient && failed);
  if (failed) log::warn("supervisor", "child failed", {{"child", child.spec.id}, {"why", why.message}, {"restart", again}});
  down(order);
  if (again) {
    restart(order, why);
    return;
  }
  const bool significant = child.spec.significant;
  if (child.spec.restart == Restart::temporary) erase(order);
  if (significant && enough_ended()) parent_.stop();
}

bool Supervisor::enough_ended() const {
  if (supervision_.auto_shutdown != AutoShutdown::all_significant) return supervision_.auto_shutdown == AutoShutdown::any_significant;
  return std::ranges::none_of(children_, [this](const auto& entry) {
    const auto& [order, child] = entry;
    const bool will_run = child.timer != 0 || (group_ != Group::none && order >= group_from_);
    return child.spec.significant && (child.state != State::down || will_run);
  });
}

void Supervisor::restart(Order order, const Error& why) {
  auto& child = children_.at(order);
  if (!count_restart()) {
    parent_.fail(falaj::failed(format("child {} was restarted more than {} times in {} ms; last: {}", child.spec.id, supervision_.intensity,
                                      std::chrono::duration_cast<std::chrono::milliseconds>(supervision_.period).count(), why.message)));
    return;
  }
  const auto delay = backoff(child);
  ++child.restarts;
  if (supervision_.strategy == Strategy::one_for_one) {
    child.timer = parent_.after(delay, [this, order](Context&) {
      children_.at(order).timer = 0;
      start(order);  // if that fails, its end comes like any other
    });
    return;
  }
  begin_group(supervision_.strategy == Strategy::one_for_all ? 0 : order, delay);
}

// As OTP counts: this restart and those not older than `period` are at most `intensity`.
bool Supervisor::count_restart() {
  const auto now = parent_.now();
  while (!restarts_.empty() && restarts_.front() + supervision_.period < now) restarts_.pop_front();
  restarts_.push_back(now);
  return restarts_.size() <= supervision_.intensity + (fault::planted("restart-intensity-off-by-one") ? 1 : 0);
}

Duration Supervisor::backoff(Child& child) {
  if (fault::planted("restart-at-once")) return {};
  const auto& b = supervision_.backoff;
  if (parent_.now() - child.started >= supervision_.period) child.in_row = 0;  // it had recovered
  const double grown = static_cast<double>(b.min.count()) * std::pow(b.factor, static_cast<double>(child.in_row++));
  const double base = std::min(grown, static_cast<double>(b.max.count()));
  const double jitter = 1 + b.jitter * (2 * parent_.random().uniform() - 1);
  return Duration(static_cast<Duration::rep>(base * jitter));
}

void Supervisor::begin_group(Order from, Duration delay) {
  group_from_ = group_ == Group::none ? from : std::min(group_from_, from);
  group_delay_ = group_ == Group::none ? delay : std::max(group_delay_, delay);
  cancel_timer(group_timer_);
  group_ = Group::stopping;
  stopping_ = next_;
  advance();
}

void Supervisor::start_group() {
  group_ = Group::none;
  std::vector<Order> orders;
  for (auto at = children_.lower_bound(group_from_); at != children_.end(); ++at) orders.push_back(at->first);
  for (const auto order : orders) {
    auto& child = children_.at(order);
    if (child.state == State::down && !start(order)) return;  // its end begins the next attempt
  }
}

// ---- an actor that only supervises ------------------------------------------------------------------------------------------------

namespace {

class SupervisorActor final : public ActorOf<SupervisorActor> {
 public:
  static constexpr std::string_view kType = "host/supervisor";
  explicit SupervisorActor(std::shared_ptr<const SupervisorSpec> spec) : spec_(std::move(spec)) {}
  static void handlers(Handlers<SupervisorActor>&) {}
  void on_start(Context& ctx) override {
    ctx.supervise(spec_->supervision);
    auto& children = static_cast<Cell&>(ctx).children();
    for (const auto& child : spec_->children) {
      bool started = false;
      children.spawn(child, &started);
      if (!started) throw std::runtime_error(format("child {} did not start", child.id));
    }
  }

 private:
  std::shared_ptr<const SupervisorSpec> spec_;
};

}  // namespace

ChildSpec supervisor(SupervisorSpec spec) {
  if (spec.id.empty()) throw std::invalid_argument("SupervisorSpec::id must not be empty");
  Supervisor::check(spec.supervision);
  std::set<std::string_view> ids;
  std::set<std::string_view> names;
  Duration shutdown = std::chrono::seconds(1);
  for (const auto& child : spec.children) {
    Supervisor::check(child);
    if (!ids.insert(child.id).second) throw std::invalid_argument(format("supervisor {}: two children {}", spec.id, child.id));
    if (child.significant && spec.supervision.auto_shutdown == AutoShutdown::never)
      throw std::invalid_argument(format("supervisor {}: child {} is significant, but auto_shutdown is never", spec.id, child.id));
    if (!child.name.empty() && !names.insert(child.name).second)
      throw std::invalid_argument(format("supervisor {}: two children named {}", spec.id, child.name));
    shutdown += child.shutdown + kKillGrace;
  }
  ChildSpec out;
  out.id = spec.id;
  out.shutdown = shutdown;  // its children's, one after the other
  auto shared = std::make_shared<const SupervisorSpec>(std::move(spec));
  out.make = [shared] { return std::make_unique<SupervisorActor>(shared); };
  return out;
}

}  // namespace falaj
