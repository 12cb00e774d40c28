// The turn's half of Cell: handling messages, running tasks, ending.
#include "runtime/host/cell.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "messages/envelope.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/log.hpp"
#include "runtime/host/unanswered.hpp"
#include "runtime/host/watchdog.hpp"

namespace falaj {

namespace {

std::uint32_t limit(std::size_t given, std::size_t otherwise) { return static_cast<std::uint32_t>(given != 0 ? given : otherwise); }

const Error kGone = error(ErrorCode::gone, "the actor has ended; look its name up again");

std::unique_ptr<Delivery> signal(Kind kind, const ActorRef& from) {
  auto out = std::make_unique<Delivery>();
  out->kind = kind;
  out->from = from;
  return out;
}

}  // namespace

Cell::Cell(CellInit init)
    : Target(true),
      node_(std::move(init.node)),
      id_(init.id),
      parent_id_(init.parent_id),
      child_id_(std::move(init.child_id)),
      name_(std::move(init.name)),
      restarts_(init.restarts),
      parent_(std::move(init.parent)) {
  limits_ = {limit(init.mailbox.control, limits::kMailboxControl), limit(init.mailbox.normal, limits::kMailboxNormal),
             limit(init.mailbox.bulk, limits::kMailboxBulk)};
}

Cell::~Cell() {
  // Only what arrived after the end can be left, and nobody is there to answer to.
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    while (pop_lane(lane)) {
    }
  }
}

ActorAddress Cell::address() const { return {node_->id, node_->options.incarnation, id_, name_}; }

ActorInfo Cell::info() const {
  const auto* stats = stats_.load(std::memory_order_acquire);
  return {id_,
          parent_id_,
          stats == nullptr ? std::string("starting") : stats->type,
          name_.empty() ? child_id_ : name_,
          restarts_,
          depth(),
          handled_.load(std::memory_order_relaxed)};
}

Random& Cell::random() {
  if (!random_) random_ = node_->random.split(format("{}#{}", name_, id_.value()));
  return *random_;
}

// ---- start and end ---------------------------------------------------------------------------------------------------------------

bool Cell::start(const std::function<std::unique_ptr<Actor>()>& make) {
  phase_ = Phase::alive;
  guarded([&] {
    actor_ = make();
    if (!actor_) throw std::logic_error("ChildSpec::make gave no actor");
    table_ = &actor_->table();
    stats_.store(&node_->stats(actor_->type()), std::memory_order_release);
    actor_->on_start(*this);
  });
  const bool ok = !(end_ && end_->failed);
  if (has_ready() || release_turn()) {
    retain();
    node_->executor.schedule(*this);
  }
  return ok;
}

void Cell::abandon(const Error& why) {
  end_ = End{.failed = false, .call_on_stop = false, .why = why};
  finish();
  if (has_ready() || release_turn()) {
    retain();
    node_->executor.schedule(*this);
  }
}

void Cell::threw() {
  std::string what = "an exception of an unknown type";
  try {
    throw;
  } catch (const std::exception& e) {
    what = e.what();
  } catch (...) {
  }
  end_ = End{.failed = true, .call_on_stop = false, .why = failed(std::move(what))};
}

void Cell::settle() {
  if (end_ && phase_ == Phase::alive) begin_stop();
  if (children_done_ && phase_ == Phase::stopping) finish();
}

void Cell::begin_stop() {
  phase_ = Phase::stopping;
  destroy_tasks();
  if (children_) {
    children_->stop_all();  // comes back in children_stopped()
  } else {
    children_done_ = true;
  }
}

void Cell::destroy_tasks() noexcept {
  const UnansweredScope answer(kGone);
  const auto destroy = [](detail::PromiseBase*& list) {
    while (list != nullptr) {
      auto* promise = static_cast<detail::Promise<void>*>(list);
      list = promise->next;
      if (list != nullptr) list->previous = nullptr;
      std::coroutine_handle<detail::Promise<void>>::from_promise(*promise).destroy();
    }
  };
  destroy(tasks_.running);
  destroy(tasks_.finished);
  drop_waits();
}

// Destroys the tasks that have ended; the first that ended by an exception ends the actor.
void Cell::reap() {
  while (tasks_.finished != nullptr) {
    auto* promise = static_cast<detail::Promise<void>*>(tasks_.finished);
    tasks_.finished = promise->next;
    const auto failure = promise->failure;
    std::coroutine_handle<detail::Promise<void>>::from_promise(*promise).destroy();
    if (failure) std::rethrow_exception(failure);
  }
}

void Cell::finish() {
  if (phase_ == Phase::dead) return;
  const End end = end_.value_or(End{});
  if (actor_ && end.call_on_stop) {
    try {
      actor_->on_stop(*this);
    } catch (const std::exception& e) {
      log::warn("host", "on_stop threw", {{"actor", name_.empty() ? child_id_ : name_}, {"what", e.what()}});
    }
  }
  phase_ = Phase::dead;
  if (children_) children_->kill_all();
  destroy_tasks();
  if (armed_ != Instant::max()) node_->executor.cancel(armed_timer_);
  armed_ = Instant::max();
  end_reason_ = end.why;
  const ActorRef keep(this);
  actor_.reset();
  table_ = nullptr;
  dead_.store(true, std::memory_order_seq_cst);
  node_->remove(*this);
  std::vector<std::pair<CorrelationId, ActorRef>> watched;
  watched.reserve(watched_.size());
  for (auto& [target, watch] : watched_) watched.emplace_back(watch.second, std::move(watch.first));
  watched_.clear();
  std::sort(watched.begin(), watched.end(), [](const auto& a, const auto& b) { return a.first < b.first; });  // not by address
  for (const auto& [token, target] : watched) {
    auto out = signal(Kind::unwatch, keep);
    out->correlation = token;
    target.get()->deliver(std::move(out));
  }
  for (const auto& watcher : watchers_) {
    auto out = signal(Kind::down, keep);
    out->correlation = watcher.token;
    out->body = refusal_message(end_reason_);
    watcher.who.get()->deliver(std::move(out));
  }
  watchers_.clear();
  while (auto left = pop()) node_->undeliverable(std::move(left), *this, kGone);
  children_.reset();
  if (parent_) {
    auto out = signal(Kind::exited, keep);
    out->lane = Lane::control;
    out->correlation = CorrelationId(end.failed ? 1 : 0);
    out->body = refusal_message(end_reason_);
    std::exchange(parent_, {}).get()->deliver(std::move(out));
  } else if (parent_id_.value() == 0) {
    node_->root_ended(end.failed, end_reason_);
  }
}

// ---- messages ----------------------------------------------------------------------------------------------------------------------

void Cell::handle(std::unique_ptr<Delivery> delivery) {
  if (phase_ == Phase::dead) {
    node_->undeliverable(std::move(delivery), *this, kGone);
    return;
  }
  if (node_->executor.observes) node_->executor.observe(*this, *delivery);
  switch (delivery->kind) {
    case Kind::tell:
    case Kind::ask:
      if (phase_ == Phase::alive) {
        dispatch(std::move(delivery));
      } else {
        node_->undeliverable(std::move(delivery), *this, kGone);
      }
      break;
    case Kind::reply:
      complete_ask(delivery->correlation.value(), std::move(delivery->body));
      break;
    case Kind::refusal:
      complete_ask(delivery->correlation.value(), refusal_error(delivery->body));
      break;
    case Kind::watch:
      add_watcher(*delivery);
      break;
    case Kind::unwatch:
      std::erase_if(watchers_, [&](const Watcher& w) { return w.who == delivery->from && w.token == delivery->correlation; });
      break;
    case Kind::down:
      watched_down(*delivery);
      break;
    case Kind::work:
      complete_wait(delivery->correlation.value());
      break;
    case Kind::stop:
      if (!end_) end_ = End{.why = error(ErrorCode::gone, "stopped by its supervisor")};
      settle();
      break;
    case Kind::exited:
      if (children_) children_->exited(delivery->from, delivery->correlation.value() != 0, refusal_error(delivery->body));
      settle();
      break;
    case Kind::poke:
      node_->root_work(*this, phase_ == Phase::alive);
      settle();
      break;
  }
}

void Cell::handle_traced(std::unique_ptr<Delivery> delivery) {
  static constexpr std::array<std::string_view, 10> kKinds = {"message", "question", "answer", "refusal", "watch",
                                                              "unwatch", "down",     "work",   "stop",    "exited"};
  const auto kind = static_cast<std::size_t>(delivery->kind);
  TracedSpan span;
  span.actor = id_;
  span.kind = kind < kKinds.size() ? kKinds[kind] : "poke";
  const bool message = delivery->kind == Kind::tell || delivery->kind == Kind::ask;
  if (const auto* entry = message && table_ != nullptr ? table_->find(delivery->body.type()) : nullptr) span.message = entry->name;
  span.name = !name_.empty() || !actor_ ? name_ : std::string(actor_->type());
  const auto teller = node_->local(delivery->teller);
  if (const auto& from = teller ? teller : delivery->from) span.from = to_string(from.address());
  span.trace = delivery->trace;
  span.begin = node_->now();
  if (delivery->sent != Instant{}) span.waited = span.begin - delivery->sent;
  handle(std::move(delivery));
  span.handled = node_->now() - span.begin;
  node_->tracer.record(std::move(span));
}

void Cell::dispatch(std::unique_ptr<Delivery> delivery) {
  const bool is_ask = delivery->kind == Kind::ask;
  const Instant sent = delivery->sent;
  const auto ahead = delivery->ahead;
  const Instant now = is_ask || sent != Instant{} ? node_->now() : Instant{};
  if (sent != Instant{}) measure_pace(sent, ahead, now);
  if (is_ask && delivery->deadline <= now) {
    node_->undeliverable(std::move(delivery), *this, error(ErrorCode::deadline, "the deadline passed in the mailbox; it was not done"));
    return;
  }
  const auto* entry = table_->find(delivery->body.type());
  if (entry == nullptr) {
    const auto why = format("actor {} has no handler for message type {:x}", actor_->type(), delivery->body.type().value());
    node_->undeliverable(std::move(delivery), *this, error(ErrorCode::unimplemented, why));
    return;
  }
  if (delivery->from_outside) {
    if (auto allowed = node_->authorize(*delivery, entry->verb, actor_->type(), entry->name); !allowed.has_value()) {
      node_->undeliverable(std::move(delivery), *this, allowed.error());
      return;
    }
  }
  if (t_turn_mark != nullptr) t_turn_mark->handling(*entry);
  ++turn_handled_;
  handled_.store(handled_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  Message body = std::move(delivery->body);
  Inbound inbound(std::move(delivery), node_.get());
  inbound.set_now(now);
  guarded([&] {
    auto task = entry->call(*actor_, *this, body, inbound);
    if (task) start(std::move(*task));
  });
  if (sent != Instant{}) {
    auto& stats = *stats_.load(std::memory_order_relaxed);
    stats.wait.record(now - sent);
    stats.service.record(node_->now() - now);
    stats.depth.set(static_cast<double>(depth()));
  }
}

void Cell::add_watcher(Delivery& delivery) {
  for (const auto& watcher : watchers_) {
    if (watcher.who == delivery.from && watcher.token == delivery.correlation) return;
  }
  watchers_.push_back(Watcher{std::move(delivery.from), delivery.correlation});
}

void Cell::watched_down(Delivery& delivery) {
  const auto found = watched_.find(delivery.from.get());
  if (found == watched_.end() || found->second.second != delivery.correlation) return;
  const Down down{delivery.from.address(), refusal_error(delivery.body)};
  watched_.erase(found);
  if (phase_ == Phase::alive) guarded([&] { actor_->on_down(*this, down); });
}

// ---- Context ------------------------------------------------------------------------------------------------------------------------

void Cell::tell(const ActorRef& to, Message message, const SendOptions& options) {
  if (!to) {
    node_->dead_letter({}, message.type(), "not_found: no actor of that name is known");
    return;
  }
  auto delivery = std::make_unique<Delivery>();
  delivery->lane = options.lane;
  delivery->body = std::move(message);
  if (to.get()->local()) {
    delivery->teller = id_;
  } else {
    delivery->from = ActorRef(this);
  }
  delivery->trace = options.trace;
  delivery->scope = options.scope;
  to.get()->deliver(std::move(delivery));
}

void Cell::start(Task<> task) {
  auto handle = task.release();
  if (!handle) return;
  auto& promise = handle.promise();
  promise.list = &tasks_;
  promise.next = tasks_.running;
  if (promise.next != nullptr) promise.next->previous = &promise;
  tasks_.running = &promise;
  handle.resume();  // what it throws is kept for reap(), which each door into user code ends with
}

Supervisor& Cell::children() {
  if (!children_) children_ = std::make_unique<Supervisor>(*this);
  return *children_;
}

ActorRef Cell::spawn(ChildSpec child) { return children().spawn(std::move(child)); }

void Cell::stop_child(std::string_view id) {
  if (children_) children_->stop_child(id);
}

void Cell::supervise(const Supervision& supervision) {
  Supervisor::check(supervision);
  children().configure(supervision);
}

void Cell::watch(const ActorRef& other) {
  if (!other) {
    // Through the mailbox, so that on_down never runs inside a handler.
    const auto nobody = node_->nobody({}, error(ErrorCode::not_found, "no actor of that name is known"));
    watch(nobody);
    return;
  }
  const CorrelationId token(++next_watch_);
  if (!watched_.try_emplace(other.get(), other, token).second) return;
  auto out = signal(Kind::watch, ActorRef(this));
  out->correlation = token;
  other.get()->deliver(std::move(out));
}

void Cell::unwatch(const ActorRef& other) {
  const auto found = watched_.find(other.get());
  if (found == watched_.end()) return;
  auto out = signal(Kind::unwatch, ActorRef(this));
  out->correlation = found->second.second;
  watched_.erase(found);
  other.get()->deliver(std::move(out));
}

void Cell::stop() {
  if (!end_) end_ = End{.why = error(ErrorCode::gone, "stopped")};
}

void Cell::fail(Error why) {
  if (end_ && end_->failed) return;
  auto message = why.code == ErrorCode::failed ? std::move(why.message) : to_string(why);
  end_ = End{.failed = true, .why = failed(std::move(message))};
}

}  // namespace falaj
