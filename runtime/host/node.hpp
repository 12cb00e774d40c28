// What the actors of one node share: names, the table of cells, dead letters, metrics, the way out to other nodes, and the Executor
// that runs them. Thread-safe. Lives as long as the last cell or proxy that points to it.
#pragma once
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <unordered_map>

#include "runtime/host/host.hpp"

namespace falaj {

class Cell;
struct CellInit;
class Remote;

// The threads, clock and timers under the actors: CAF's scheduler or the simulator.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual Cell* make_cell(CellInit init) = 0;
  // Takes over one count of the cell. Urgent: a message of the control lane or a timer has woken it.
  virtual void schedule(Cell& cell, bool urgent = false) noexcept = 0;
  virtual std::uint64_t call_at(Instant when, std::move_only_function<void()> call) = 0;
  virtual void cancel(std::uint64_t timer) noexcept = 0;
  virtual bool run_blocking(std::move_only_function<void()> work) = 0;  // false: refused
  // Before a message is handled; only called when `observes`.
  virtual void observe(const Cell& /*cell*/, const Delivery& /*delivery*/) {}
  bool observes = false;
};

struct TypeStats {
  std::string type;
  metrics::Counter& handled;
  metrics::Histogram& wait;
  metrics::Histogram& service;
  metrics::Gauge& depth;
};

class Node : public std::enable_shared_from_this<Node> {
 public:
  Node(const HostOptions& options, Executor& executor);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  const HostOptions options;
  const NodeId id;
  const Random random;  // split, never drawn from
  Executor& executor;   // valid until close()
  Tracer tracer;

  [[nodiscard]] Instant now() const { return options.clock->now(); }
  ActorId next_id() { return ActorId(next_id_.fetch_add(1, std::memory_order_relaxed)); }
  [[nodiscard]] bool own(NodeId node) const noexcept { return node.value() == 0 || node == id; }

  // -- cells
  ActorRef make_cell(const ChildSpec& spec, Cell* parent, std::uint32_t restarts, bool name_must_be_free);
  void remove(Cell& cell);  // at its end
  [[nodiscard]] ActorRef find(std::string_view name);
  [[nodiscard]] ActorRef find_local(std::string_view name) const;
  [[nodiscard]] ActorRef here(std::string_view name);  // find_local, or the actor of a key (keyed.cpp), wherever it runs
  [[nodiscard]] ActorRef at(const ActorAddress& address);
  [[nodiscard]] ActorRef local(ActorId actor) const;
  [[nodiscard]] ActorRef nobody(ActorAddress address, Error why);
  // Changes whenever a name begins or ceases to stand for an actor.
  [[nodiscard]] std::uint64_t names_version() const noexcept { return names_version_.load(std::memory_order_acquire); }
  // Of a message from outside: may its principal send it to an actor of that type?
  [[nodiscard]] Status authorize(const Delivery& d, std::string_view verb, std::string_view actor_type, std::string_view message) const;
  TypeStats& stats(std::string_view type);
  [[nodiscard]] std::vector<ActorInfo> actors() const;
  [[nodiscard]] std::vector<ActorRef> all_cells() const;

  // -- the root
  void start_root();
  ActorRef spawn(ChildSpec spec);
  void stop_child(std::string_view id);
  void root_work(Cell& root, bool alive);  // on the root's turn: what spawn and stop_child left
  void root_forget(const std::string& child_id);
  void root_ended(bool failed, const Error& why);
  void on_fatal(std::move_only_function<void(Error)> call);
  bool stop_root(Duration deadline);  // false: not all have stopped
  void begin_stop_root();
  [[nodiscard]] bool root_done() const;
  void abandon_all();  // no thread runs cells any more: ends those that are left

  // -- undeliverable
  // An ask is refused, a tell becomes a dead letter, a watch fires; the rest is dropped (late answers counted).
  void undeliverable(std::unique_ptr<Delivery> delivery, Target& to, const Error& why);
  void dead_letter(const ActorAddress& to, TypeId type, std::string reason);
  void late_answer() { late_answers_.add(); }
  [[nodiscard]] std::vector<DeadLetter> dead_letters() const;

  // -- from outside
  // What a principal sent over its link for a name that no actor here has: true, and the delivery is taken, if another node's has it.
  bool relay(std::unique_ptr<Delivery>& delivery, const std::string& name);
  void ask(const ActorRef& to, Message message, const SendOptions& options, std::move_only_function<void(Result<Message>)> done);
  void tell(const ActorRef& to, Message message, const SendOptions& options);

  void set_directory(std::shared_ptr<const Directory> directory);
  Remote& remote() noexcept { return *remote_; }

 private:
  void poke_root();

  std::atomic<std::uint64_t> next_id_{1};
  std::atomic<std::size_t> relaying_{0};
  std::unique_ptr<Remote> remote_;
  metrics::Counter& dead_letters_count_;
  metrics::Counter& late_answers_;

  struct NameHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view name) const noexcept { return std::hash<std::string_view>{}(name); }
  };
  mutable std::shared_mutex tables_;
  std::atomic<std::uint64_t> names_version_{1};  // written under tables_
  std::unordered_map<std::string, ActorRef, NameHash, std::equal_to<>> names_;
  std::unordered_map<ActorId, ActorRef> cells_;
  std::shared_ptr<const Directory> directory_;

  mutable std::mutex stats_mutex_;
  std::map<std::string, std::unique_ptr<TypeStats>, std::less<>> stats_;

  mutable std::mutex letters_mutex_;
  std::deque<DeadLetter> letters_;

  struct RootWork {
    std::optional<ChildSpec> spawn;
    ActorRef cell;
    std::string stop;
  };
  mutable std::mutex root_mutex_;
  std::condition_variable root_changed_;
  ActorRef root_;
  std::deque<RootWork> root_work_;
  std::set<std::string, std::less<>> root_ids_;
  bool root_done_ = false;
  std::optional<Error> fatal_;
  std::move_only_function<void(Error)> on_fatal_;
};

}  // namespace falaj
