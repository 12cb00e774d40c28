// Cell: an actor with its mailbox, timers, tasks and children. The same for both hosts; only the Executor differs.
//
// A mailbox is one stack of atomics for each lane: senders push with one compare-and-swap, the turn takes all at once and turns
// them around. `state` says whether the cell is idle or with the executor (queued or running), so one thread at a time runs it.
// Everything that is not atomic belongs to the turn.
#pragma once
#include <array>
#include <atomic>
#include <optional>
#include <unordered_map>
#include <vector>

#include "runtime/host/actor.hpp"
#include "runtime/host/node.hpp"
#include "runtime/host/queue_delay.hpp"
#include "runtime/host/supervise.hpp"

namespace falaj {

struct CellInit {
  std::shared_ptr<Node> node;
  ActorId id;
  ActorId parent_id;
  ActorRef parent;  // empty for the root
  std::string child_id;
  std::string name;
  MailboxLimits mailbox;
  std::uint32_t restarts = 0;
};

class Cell : public Target, public Context {
 public:
  explicit Cell(CellInit init);

  // -- from any thread
  void deliver(std::unique_ptr<Delivery> delivery) override;
  [[nodiscard]] ActorAddress address() const override;
  void kill() noexcept;  // ends at its next message, without on_stop
  void timer_due() noexcept;
  [[nodiscard]] ActorInfo info() const;
  [[nodiscard]] ActorId id() const noexcept { return id_; }
  [[nodiscard]] bool is_root() const noexcept { return parent_id_.value() == 0; }
  [[nodiscard]] const std::string& child_id() const noexcept { return child_id_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] Node& host() noexcept { return *node_; }
  [[nodiscard]] bool dead() const noexcept { return dead_.load(std::memory_order_acquire); }

  // -- by the executor: one turn; true: there is more to do, keep it queued; false: the executor's count may go
  bool run(std::size_t messages);

  // -- by the parent, on its turn
  // Makes the actor and calls on_start on this thread; false: that failed, and the cell will report its end like any other.
  bool start(const std::function<std::unique_ptr<Actor>()>& make);
  void abandon(const Error& why);  // never started, never will be

  // -- by its Supervisor
  void children_stopped() { children_done_ = true; }  // acted upon when the Supervisor has returned

  // -- Context
  [[nodiscard]] ActorRef self() const override { return ActorRef(const_cast<Cell*>(this)); }
  [[nodiscard]] NodeId node() const override { return node_->id; }
  [[nodiscard]] const std::string& node_name() const override { return node_->options.node_name; }
  [[nodiscard]] Instant now() const override { return node_->now(); }
  [[nodiscard]] WallTime wall() const override { return node_->options.clock->wall(); }
  [[nodiscard]] Random& random() override;
  [[nodiscard]] metrics::Registry& metrics() override { return *node_->options.metrics; }
  [[nodiscard]] ActorRef find(std::string_view name) const override { return node_->find(name); }
  [[nodiscard]] ActorRef at(const ActorAddress& address) const override { return node_->at(address); }
  void tell(const ActorRef& to, Message message, const SendOptions& options) override;
  TimerId after(Duration duration, std::move_only_function<void(Context&)> call) override;
  void cancel(TimerId timer) override;
  void start(Task<> task) override;
  ActorRef spawn(ChildSpec child) override;
  void stop_child(std::string_view id) override;
  void supervise(const Supervision& supervision) override;
  void watch(const ActorRef& other) override;
  void unwatch(const ActorRef& other) override;
  void stop() override;
  void fail(Error why) override;
  Supervisor& children();

 protected:
  ~Cell() override;
  void ask_begin(detail::AskState& state, const ActorRef& to, Message message, const SendOptions& options) override;
  void ask_forget(detail::AskState& state) noexcept override;
  void sleep_begin(detail::WaitState& state, Duration duration) override;
  bool blocking_begin(detail::WaitState& state, std::move_only_function<void()> work) override;
  void wait_forget(detail::WaitState& state) noexcept override;

 private:
  enum State : std::uint8_t { idle, busy };
  enum class Phase : std::uint8_t { fresh, alive, stopping, dead };
  // What every sender writes, in a line of the cache with nothing else in it.
  struct alignas(64) Inbox {
    std::array<std::atomic<Delivery*>, kLanes> incoming{};      // newest first
    std::array<std::atomic<std::uint32_t>, kLanes> produced{};  // tells and asks
    std::atomic<std::size_t> bulk_bytes{0};
    std::atomic<std::uint8_t> state{busy};
  };
  struct LaneQueue {
    Delivery* ready = nullptr;  // oldest first
    std::uint32_t consumed = 0;
  };
  // Something a coroutine or a callback waits for. Its token is generation and index, so that late answers find nobody.
  struct Slot {
    enum class Use : std::uint8_t { free, ask, wait, call };
    std::uint32_t generation = 1;
    Use use = Use::free;
    void* state = nullptr;  // AskState or WaitState
    std::unique_ptr<std::move_only_function<void(Context&)>> call;
  };
  struct Due {
    Instant when;
    std::uint64_t order;
    std::uint64_t token;
    bool operator<(const Due& other) const noexcept {  // for a heap with the earliest on top
      return when != other.when ? when > other.when : order > other.order;
    }
  };
  struct Watcher {
    ActorRef who;
    CorrelationId token;
  };
  struct End {
    bool failed = false;
    bool call_on_stop = true;
    Error why;
  };

  // mailbox.cpp
  const Error* admit(Delivery& delivery, std::size_t lane);  // why not; null: it is in
  [[nodiscard]] bool comes_too_late(const Delivery& delivery, std::size_t lane, std::uint32_t waiting);
  void measure_pace(Instant sent, std::uint32_t ahead, Instant now);
  void push(std::unique_ptr<Delivery> delivery) noexcept;
  void wake(bool urgent) noexcept;
  std::unique_ptr<Delivery> pop() noexcept;
  std::unique_ptr<Delivery> pop_lane(std::size_t lane) noexcept;
  void publish(std::size_t lane) noexcept;
  [[nodiscard]] bool has_incoming() const noexcept;
  [[nodiscard]] bool has_ready() const noexcept;
  [[nodiscard]] std::size_t depth() const noexcept;
  bool release_turn();
  void flush_counts() noexcept;

  // cell.cpp
  void handle(std::unique_ptr<Delivery> delivery);
  void handle_traced(std::unique_ptr<Delivery> delivery);
  void dispatch(std::unique_ptr<Delivery> delivery);
  // The only door into user code: an exception ends the actor.
  template <class F>
  void guarded(F&& call) {
    try {
      call();
      reap();
    } catch (...) {
      threw();
    }
    settle();
  }
  void threw();
  void settle();  // after user code: a stop that it asked for
  void begin_stop();
  void finish();
  void destroy_tasks() noexcept;
  void reap();
  void add_watcher(Delivery& delivery);
  void watched_down(Delivery& delivery);

  // waits.cpp
  std::uint64_t take_slot(Slot::Use use, void* state);
  Slot* slot_of(std::uint64_t token) noexcept;
  void free_slot(std::uint64_t token) noexcept;
  void add_due(Instant when, std::uint64_t token);
  void arm();
  void run_timers();
  void fire(std::uint64_t token);
  void complete_ask(std::uint64_t token, Result<Message> result);
  void complete_wait(std::uint64_t token);
  void drop_waits() noexcept;

  const std::shared_ptr<Node> node_;
  const ActorId id_;
  const ActorId parent_id_;
  const std::string child_id_;
  const std::string name_;
  const std::uint32_t restarts_;
  ActorRef parent_;

  // Seldom written, read with every message by senders and the turn.
  std::array<std::uint32_t, kLanes> limits_{};
  std::array<std::atomic<std::uint32_t>, kLanes> consumed_{};  // of each lane, as published by the turn
  std::atomic<std::uint32_t> pace_ns_{0};                      // what one more message ahead costs in waiting; smoothed, by the turn
  std::array<QueueDelay, kLanes> delays_;
  std::atomic<bool> control_waiting_{false};
  std::atomic<bool> timer_due_{false};
  std::atomic<bool> killed_{false};
  std::atomic<bool> dead_{false};
  std::atomic<TypeStats*> stats_{nullptr};

  Inbox inbox_;

  // The turn's.
  std::array<LaneQueue, kLanes> lanes_;
  std::atomic<std::uint64_t> handled_{0};
  Phase phase_ = Phase::fresh;
  std::uint32_t turn_handled_ = 0;
  std::unique_ptr<Actor> actor_;
  const HandlerTable* table_ = nullptr;
  bool children_done_ = false;
  std::optional<End> end_;
  Error end_reason_;

  detail::TaskList tasks_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_slots_;
  std::size_t asks_ = 0;
  std::vector<Due> due_;
  std::size_t due_stale_ = 0;
  std::uint64_t due_order_ = 0;
  Instant armed_ = Instant::max();
  std::uint64_t armed_timer_ = 0;

  std::vector<Watcher> watchers_;
  std::unordered_map<Target*, std::pair<ActorRef, CorrelationId>> watched_;
  std::uint64_t next_watch_ = 0;
  std::unique_ptr<Supervisor> children_;
  std::optional<Random> random_;
};

}  // namespace falaj
