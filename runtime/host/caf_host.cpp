// The host of production: cells are resumed by CAF's work-stealing scheduler. The only file that sees CAF.
//
// Nothing of CAF but its scheduler is used: no actor, no message, no middleman, no configuration file. CAF as installed is not
// instrumented for ThreadSanitizer, so the hand-over of a cell through its queues is told to it by hand.
#include <atomic>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wdeprecated"
#pragma GCC diagnostic ignored "-Wnon-virtual-dtor"
#pragma GCC diagnostic ignored "-Woverloaded-virtual"
#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>
#include <caf/logger.hpp>
// The worker tells CAF's logger which actor it runs, by a dynamic_cast for each turn: a sixth of the cost of a message. We have no CAF
// actors.
#undef CAF_PUSH_AID_FROM_PTR
#define CAF_PUSH_AID_FROM_PTR(actor) static_cast<void>(0)
#include <caf/policy/unprofiled.hpp>
#include <caf/resumable.hpp>
#include <caf/scheduler/coordinator.hpp>
#pragma GCC diagnostic pop

#include "runtime/base/limits.hpp"
#include "runtime/base/log.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/host/cell.hpp"
#include "runtime/host/common_host.hpp"
#include "runtime/host/run_queues.hpp"
#include "runtime/host/watchdog.hpp"

#if defined(__SANITIZE_THREAD__)
#define FALAJ_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FALAJ_TSAN 1
#endif
#endif
#ifdef FALAJ_TSAN
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#endif

namespace falaj {

namespace {

void hand_over([[maybe_unused]] void* what) noexcept {
#ifdef FALAJ_TSAN
  __tsan_release(what);
#endif
}
void taken_over([[maybe_unused]] void* what) noexcept {
#ifdef FALAJ_TSAN
  __tsan_acquire(what);
#endif
}

// The worker on whose thread we are, if any, and whose host it belongs to.
thread_local caf::execution_unit* t_unit = nullptr;
thread_local const Watchdog* t_host = nullptr;
thread_local unsigned t_in_front = 0;
// Of the job that this thread is enqueueing: CAF passes nothing on.
thread_local bool t_urgent = false;
thread_local bool t_behind = false;
// A cell woken by another goes before all others of its worker; two that answer each other would starve the rest.
constexpr unsigned kInFrontMax = 64;

// Bounds of what a lent thread does: it has a link or a connection to serve.
constexpr std::size_t kLentMessages = 8;
constexpr unsigned kLentTurns = 64;
constexpr auto kLentTime = std::chrono::microseconds(200);
constexpr std::uint16_t kSlowTurns = 32;  // so many turns of an actor that took longer than that are not done on a lent thread

class CafCell final : public Cell, public caf::resumable {
 public:
  CafCell(CellInit init, Watchdog& host) : Cell(std::move(init)), host_(host) {}

  resume_result resume(caf::execution_unit* unit, std::size_t) override {
    taken_over(this);
    t_unit = unit;
    t_host = &host_;
    if (t_turn_mark == nullptr) t_turn_mark = &host_.mark();  // a worker serves one host all its life
    const bool again = run(limits::kMessagesPerTurn);
    t_unit = nullptr;
    if (!again) return awaiting_message;
    t_in_front = 0;
    hand_over(this);
    return resume_later;
  }
  void intrusive_ptr_add_ref_impl() override { retain(); }
  void intrusive_ptr_release_impl() override { release(); }

  // Slow is what was slow twice in a row: once may be another process's doing. A hint: the thread that says so has let go of the cell.
  [[nodiscard]] bool quick() noexcept {
    const auto left = avoid_.load(std::memory_order_relaxed);
    if (left == 0) return true;
    avoid_.store(left - 1, std::memory_order_relaxed);
    return false;
  }
  void took(bool long_time) noexcept {
    if (was_slow_.exchange(long_time, std::memory_order_relaxed) && long_time) avoid_.store(kSlowTurns, std::memory_order_relaxed);
  }

 private:
  Watchdog& host_;  // stands for the whole of it
  std::atomic<std::uint16_t> avoid_{0};
  std::atomic<bool> was_slow_{false};
};

// A thread that lends itself: the cell that was woken last waits here for its turn.
struct Lending {
  const void* host = nullptr;
  unsigned depth = 0;
  CafCell* waiting = nullptr;  // with one count
  bool urgent = false;         // what waits
};
thread_local Lending t_lending;

// The mark of a lent thread, for the host it served last.
struct LentMark {
  std::uint64_t host = 0;
  TurnMark* mark = nullptr;
};
thread_local LentMark t_lent_mark;
std::atomic<std::uint64_t> g_hosts{0};

// CAF's workers over our own run queues: its polling costs an idle machine thousands of wake-ups a second, and a message up to its
// longest sleep. The last worker is the queues' express.
class Stealing : public caf::policy::unprofiled {
 public:
  struct coordinator_data {
    explicit coordinator_data(caf::scheduler::abstract_coordinator*) {}
    RunQueues queues;
  };
  struct worker_data {
    explicit worker_data(caf::scheduler::coordinator<Stealing>* all) { all->data().queues.open(all->num_workers(), true); }
    bool begun = false;
  };

  template <class Coordinator>
  void central_enqueue(Coordinator* all, caf::resumable* job) {
    all->data().queues.push(job, t_urgent);
  }
  template <class Worker>
  void external_enqueue(Worker* self, caf::resumable* job) {
    queues(self).push_to(self->id(), job, t_urgent);
  }
  template <class Worker>
  void internal_enqueue(Worker* self, caf::resumable* job) {
    if (t_behind && !t_urgent) return queues(self).push_back(self->id(), job);
    queues(self).push_front(self->id(), job, t_urgent);
  }
  template <class Worker>
  void resume_job_later(Worker* self, caf::resumable* job) {
    queues(self).push_back(self->id(), job);
  }
  template <class Worker>
  caf::resumable* dequeue(Worker* self) {
    if (!std::exchange(self->data().begun, true)) take_turns(queues(self).is_express(self->id()) ? Turns::briefest : Turns::brief);
    return static_cast<caf::resumable*>(queues(self).take(self->id()));
  }
  template <class Worker, class F>
  void foreach_resumable(Worker* self, F f) {
    while (auto* job = queues(self).take_own(self->id())) f(static_cast<caf::resumable*>(job));
  }
  template <class Coordinator, class F>
  void foreach_central_resumable(Coordinator*, F) {}

 private:
  template <class Worker>
  static RunQueues& queues(Worker* self) {
    return self->parent()->data().queues;
  }
};

class Config final : public caf::actor_system_config {
 public:
  explicit Config(std::size_t threads) {
    set("scheduler.max-threads", static_cast<std::uint64_t>(std::max<std::size_t>(threads, 1) + 1));  // and the express
    module_factories.emplace_back(
        [](caf::actor_system& system) -> caf::actor_system::module* { return new caf::scheduler::coordinator<Stealing>(system); });
  }
};

class CafHost final : public CommonHost, private Executor {
 public:
  explicit CafHost(const HostOptions& options)
      : CommonHost(std::make_shared<Node>(options, static_cast<Executor&>(*this))),
        config_(options.threads),
        system_(config_),
        timers_(*options.clock),
        pool_("blocking", options.blocking_threads, options.blocking_queue) {
    watch();
    core().start_root();
  }

  ~CafHost() override {
    core().stop_root(limits::kShutdown);
    for (const auto& cell : core().all_cells()) static_cast<Cell*>(cell.get())->kill();
    timers_.stop();
    pool_.stop();
    system_.reset();  // joins the workers: after it no cell runs
    closed_.store(true, std::memory_order_release);
    core().abandon_all();
  }

  std::vector<std::string> shutdown(Duration deadline) override {
    std::vector<std::string> alive;
    if (!core().stop_root(deadline)) {
      for (const auto& actor : core().actors()) {
        if (actor.parent.value() != 0) alive.push_back(actor.type);
      }
    }
    return alive;
  }

 private:
  Cell* make_cell(CellInit init) override { return new CafCell(std::move(init), watchdog_); }

  void schedule(Cell& cell, bool urgent) noexcept override {
    auto& job = static_cast<CafCell&>(cell);
    if (closed_.load(std::memory_order_acquire)) {
      job.release();
      return;
    }
    if (t_lending.host == this && job.quick()) {
      if (t_lending.waiting != nullptr) enqueue(*t_lending.waiting, t_lending.urgent);
      t_lending.waiting = &job;
      t_lending.urgent = urgent;
      return;
    }
    if (t_unit == nullptr || t_host != &watchdog_) return enqueue(job, urgent);
    hand_over(&job);
    t_urgent = urgent;
    t_behind = ++t_in_front > kInFrontMax;
    if (t_behind) t_in_front = 0;
    t_unit->exec_later(&job);
    t_urgent = t_behind = false;
  }

  void enqueue(CafCell& job, bool urgent = false) noexcept {
    hand_over(&job);
    t_urgent = urgent;
    scheduler_->enqueue(&job);
    t_urgent = false;
  }

  void lend_begin() noexcept override {
    if (t_unit != nullptr || (t_lending.host != nullptr && t_lending.host != this)) return;  // a worker, or lent to another host
    t_lending.host = this;
    ++t_lending.depth;
    core().remote().batch_begin();
  }

  void lend_end() noexcept override {
    if (t_lending.host != this || --t_lending.depth != 0) return;
    core().remote().batch_end();
    if (t_lending.waiting == nullptr) {
      t_lending.host = nullptr;
      return;
    }
    if (t_lent_mark.host != serial_) t_lent_mark = {serial_, &watchdog_.mark()};
    t_turn_mark = t_lent_mark.mark;
    Instant begin = core().now();
    const Instant end = begin + kLentTime;
    for (unsigned turns = 0; t_lending.waiting != nullptr; ++turns) {
      auto& job = *std::exchange(t_lending.waiting, nullptr);
      if (turns == kLentTurns || begin >= end) {
        enqueue(job, t_lending.urgent);
        break;
      }
      const bool again = job.run(kLentMessages);
      const Instant now = core().now();
      job.took(now - begin > kLentTime);
      begin = now;
      if (!again) {
        job.release();
      } else if (t_lending.waiting == nullptr) {
        t_lending.waiting = &job;
        t_lending.urgent = false;
      } else {
        enqueue(job);
      }
    }
    t_lending.host = nullptr;
    t_turn_mark = nullptr;
  }

  void watch() {
    watchdog_.look(core().now());
    timers_.at(core().now() + Watchdog::kLook, [this] { watch(); });
  }
  void stalled(const Watchdog::Stall& stall) {
    const auto ref = core().local(stall.actor);
    const auto info = ref ? static_cast<Cell*>(ref.get())->info() : ActorInfo{};
    const std::string message(stall.handler == nullptr ? "" : stall.handler->name);
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(stall.held).count();
    if (stall.over) {
      log::info("host", "the actor has given its thread back", {{"actor", info.name}, {"type", info.type}, {"ms", ms}});
      return;
    }
    const auto labels = metrics::Labels{{"type", info.type}};
    core().options.metrics->counter("falaj_actor_stalls_total", "Turns that held their thread for over 100 ms", labels).add();
    log::warn("host", "an actor holds its thread: move the work to ctx.blocking()",
              {{"actor", info.name}, {"type", info.type}, {"message", message}, {"ms", ms}});
  }

  std::uint64_t call_at(Instant when, std::move_only_function<void()> call) override { return timers_.at(when, std::move(call)); }
  void cancel(std::uint64_t timer) noexcept override { timers_.cancel(timer); }
  bool run_blocking(std::move_only_function<void()> work) override { return pool_.submit(std::move(work)); }

  const std::uint64_t serial_ = ++g_hosts;
  Watchdog watchdog_{[this](const Watchdog::Stall& stall) { stalled(stall); }};
  Config config_;
  struct System {
    explicit System(Config& config) : system(std::make_unique<caf::actor_system>(config)) {}
    void reset() { system.reset(); }
    std::unique_ptr<caf::actor_system> system;
  } system_;
  caf::scheduler::abstract_coordinator* scheduler_ = &system_.system->scheduler();
  std::atomic<bool> closed_{false};
  TimerThread timers_;
  BlockingPool pool_;
};

}  // namespace

std::unique_ptr<Host> make_caf_host(const HostOptions& options) { return std::make_unique<CafHost>(options); }

}  // namespace falaj
