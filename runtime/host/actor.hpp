// The actor contract: the file to read first.
//
// An actor owns its state and handles one message at a time. It never blocks, never names a thread, a socket, a clock, a disk or
// a random device: it is handed a Context. The same actor runs in production (caf_host) and in simulation (sim_host).
//
//   class Counter : public ActorOf<Counter> {
//    public:
//     static constexpr std::string_view kType = "example/counter";
//     static void handlers(Handlers<Counter>& on) {
//       on.message<Add>(&Counter::add);          // plain
//       on.message<Sync>(&Counter::sync);        // coroutine
//     }
//     void add(Context& ctx, Msg<Add> m) { n_ += m->getBy(); m.reply(Message::build<Empty>()); }
//     Task<> sync(Context& ctx, Msg<Sync> m) {
//       const auto peer = ctx.find("example/other");
//       auto answer = co_await ctx.ask<Total>(peer, Message::build<GetTotal>(), m.options());
//       if (!answer) co_return m.refuse(answer.error());
//       m.reply(answer->message());
//     }
//   };
//
// Promises of the runtime:
//  - Delivery is at most once, and in order for each pair of actors on one lane.
//  - An ask ends in exactly one of: reply, or refusal (overloaded, denied, not_found, gone, unreachable, deadline, ...). A handler that
//    ends without answering is answered for: `failed`. Commands that change state carry an idempotency key in their Scope.
//  - Mailboxes are bounded, with three lanes: control first, then normal, then bulk. A full lane refuses an ask with `overloaded`; a
//    tell that cannot be delivered is counted and kept in the dead-letter ring with its reason.
//  - on_down comes once for each watched actor, with its reason, across nodes too: the death of a node is the death of its actors.
//
// Ways to get hurt:
//  - An exception that leaves a handler or a task kills the actor; its supervisor decides what then. Result<T> is for the rest.
//  - While a coroutine waits the actor goes on with other messages: state may have changed when it resumes.
//  - A long computation in a handler holds a thread: use co_await ctx.blocking(...).
//  - A ref to a dead incarnation answers `gone`: look the name up again with ctx.find().
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "messages/message.hpp"
#include "runtime/base/clock.hpp"
#include "runtime/base/ids.hpp"
#include "runtime/base/metrics.hpp"
#include "runtime/base/random.hpp"
#include "runtime/base/trace.hpp"
#include "runtime/host/delivery.hpp"
#include "runtime/host/task.hpp"

namespace falaj {

class Actor;
class Context;

// ---- messages as a handler sees them -------------------------------------------------------------------------------------

// One received message with its reply token. Move-only. If it was an ask and is destroyed unanswered, the asker gets `failed`.
template <class T>
class Msg {
 public:
  Msg(View<T> view, Inbound inbound) : view_(std::move(view)), inbound_(std::move(inbound)) {}
  const typename T::Reader& operator*() const noexcept { return *view_; }
  const typename T::Reader* operator->() const noexcept { return view_.operator->(); }
  [[nodiscard]] const Message& message() const noexcept { return view_.message(); }

  void reply(Message answer) { inbound_.reply(std::move(answer)); }
  void refuse(Error why) { inbound_.refuse(std::move(why)); }
  [[nodiscard]] bool wants_reply() const noexcept { return inbound_.wants_reply(); }
  [[nodiscard]] const ActorRef& from() const { return inbound_.from(); }
  [[nodiscard]] const ScopeRef& scope() const noexcept { return inbound_.scope(); }  // null: the node itself speaks
  [[nodiscard]] Instant deadline() const noexcept { return inbound_.deadline(); }    // Instant::max(): none
  [[nodiscard]] const TraceContext& trace() const noexcept { return inbound_.trace(); }
  // For asks made on behalf of this message: its deadline, scope and trace.
  [[nodiscard]] SendOptions options() const { return inbound_.options(); }

 private:
  View<T> view_;
  Inbound inbound_;
};

// ---- handlers --------------------------------------------------------------------------------------------------------------

struct HandlerEntry {
  TypeId type;
  std::string_view name;  // of the message, for logs
  std::string_view verb;  // $verb of the schema; empty: nodes only
  // Opens the message and calls the member function; a returned Task is run by the host. Bad bytes are refused, not thrown.
  // Takes what it needs of the message and its token.
  std::function<std::optional<Task<>>(Actor&, Context&, Message&, Inbound&)> call;
};

class HandlerTable {
 public:
  [[nodiscard]] const HandlerEntry* find(TypeId type) const noexcept;
  [[nodiscard]] const std::vector<HandlerEntry>& entries() const noexcept { return entries_; }

 protected:
  void add(HandlerEntry entry);        // a second handler for a type is a bug: throws
  std::vector<HandlerEntry> entries_;  // sorted by type
};

std::string_view verb_of(const capnp::StructSchema& schema);  // the $verb annotation

template <class Self>
class Handlers : public HandlerTable {
 public:
  template <class T>
  void message(void (Self::*handler)(Context&, Msg<T>)) {
    add_typed<T>([handler](Actor& actor, Context& ctx, Message& m, Inbound& in) -> std::optional<Task<>> {
      auto view = std::move(m).open<T>();
      if (!view.has_value()) {
        in.refuse(std::move(view).error());
        return std::nullopt;
      }
      (static_cast<Self&>(actor).*handler)(ctx, Msg<T>(std::move(view).value(), std::move(in)));
      return std::nullopt;
    });
  }
  template <class T>
  void message(Task<> (Self::*handler)(Context&, Msg<T>)) {
    add_typed<T>([handler](Actor& actor, Context& ctx, Message& m, Inbound& in) -> std::optional<Task<>> {
      auto view = std::move(m).open<T>();
      if (!view.has_value()) {
        in.refuse(std::move(view).error());
        return std::nullopt;
      }
      return (static_cast<Self&>(actor).*handler)(ctx, Msg<T>(std::move(view).value(), std::move(in)));
    });
  }

 private:
  template <class T, class Call>
  void add_typed(Call call) {
    const auto schema = capnp::Schema::from<T>();
    add(HandlerEntry{TypeId(capnp::typeId<T>()),
                     {schema.getShortDisplayName().cStr(), schema.getShortDisplayName().size()},
                     verb_of(schema),
                     std::move(call)});
  }
};

// ---- the actor ---------------------------------------------------------------------------------------------------------------

struct Down {
  ActorAddress who;
  Error reason;  // code gone: it stopped; unreachable: its node is lost; failed: it threw
};

class Actor {
 public:
  Actor() = default;
  Actor(const Actor&) = delete;
  Actor& operator=(const Actor&) = delete;
  virtual ~Actor() = default;
  [[nodiscard]] virtual std::string_view type() const = 0;  // "features/shard": what rights and the tree show
  [[nodiscard]] virtual const HandlerTable& table() const = 0;
  virtual void on_start(Context&) {}              // before the first message; ctx.start(task()) begins a coroutine
  virtual void on_down(Context&, const Down&) {}  // a watched actor has ended
  virtual void on_stop(Context&) {}               // no message follows; may still tell
};

template <class Self>
class ActorOf : public Actor {
 public:
  [[nodiscard]] std::string_view type() const override { return Self::kType; }
  [[nodiscard]] const HandlerTable& table() const override {
    static const Handlers<Self> handlers = [] {
      Handlers<Self> on;
      Self::handlers(on);
      return on;
    }();
    return handlers;
  }
};

// ---- supervision, as data (OTP's words) ---------------------------------------------------------------------------------------

enum class Restart : std::uint8_t { permanent, transient, temporary };  // always; after a failure; never
enum class Strategy : std::uint8_t { one_for_one, one_for_all, rest_for_one };

struct Backoff {  // delay of the n-th restart in a row: min * factor^n up to max, times 1 +- jitter
  Duration min = std::chrono::milliseconds(10);
  Duration max = std::chrono::seconds(5);
  double factor = 2;
  double jitter = 0.2;
};

struct MailboxLimits {  // messages for each lane; 0: the default of limits.hpp
  std::size_t control = 0;
  std::size_t normal = 0;
  std::size_t bulk = 0;
};

struct ChildSpec {
  std::string id;  // unique among its siblings
  std::function<std::unique_ptr<Actor>()> make;
  Restart restart = Restart::permanent;
  Duration shutdown = std::chrono::seconds(5);  // then its tasks are destroyed and it is dropped (brutal kill); zero: at once
  std::string name;                             // registered on this node, found by ctx.find(); empty: not registered
  bool significant = false;  // its own end, when it is not restarted, counts for Supervision::auto_shutdown; not permanent
  MailboxLimits mailbox;
};

// Whether the parent ends normally, and its children with it, when significant ones have ended by themselves and are not restarted.
enum class AutoShutdown : std::uint8_t { never, any_significant, all_significant };

struct Supervision {
  Strategy strategy = Strategy::one_for_one;
  std::uint32_t intensity = 5;  // more restarts than this within `period`: the supervisor itself fails
  Duration period = std::chrono::seconds(10);
  Backoff backoff;
  AutoShutdown auto_shutdown = AutoShutdown::never;
};

struct SupervisorSpec {
  std::string id;
  Supervision supervision;
  std::vector<ChildSpec> children;  // started in order, stopped in reverse
};

// An actor that does nothing but supervise. Throws std::invalid_argument on a bad spec, before anything starts.
ChildSpec supervisor(SupervisorSpec spec);

// ---- what an actor may do ------------------------------------------------------------------------------------------------------

namespace detail {
// What an awaiting coroutine is resumed with. Implemented in cell.cpp; all of it runs on the actor's turn.
struct AskState;
struct WaitState;
}  // namespace detail

// What ask_all brings. Not answered (nullopt): the quorum was there first, or could no longer be; what it answers later is dropped.
template <class Reply>
struct Answers {
  std::vector<std::optional<Result<View<Reply>>>> from;  // in the order of the refs
  std::size_t replies = 0;
  bool quorum = false;  // as many replied as were wanted
};

class Context {
 public:
  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  virtual ~Context() = default;

  // -- who and when
  [[nodiscard]] virtual ActorRef self() const = 0;
  [[nodiscard]] virtual NodeId node() const = 0;
  [[nodiscard]] virtual const std::string& node_name() const = 0;
  [[nodiscard]] virtual Instant now() const = 0;
  [[nodiscard]] virtual WallTime wall() const = 0;
  [[nodiscard]] virtual Random& random() = 0;
  [[nodiscard]] virtual metrics::Registry& metrics() = 0;

  // -- messages
  // An actor by name: registered on this node, or in the cluster's directory. An empty ref when nobody has that name now
  // (asking it gives not_found).
  [[nodiscard]] virtual ActorRef find(std::string_view name) const = 0;
  [[nodiscard]] virtual ActorRef at(const ActorAddress& address) const = 0;  // an actor of any node
  virtual void tell(const ActorRef& to, Message message, const SendOptions& options = {}) = 0;
  // co_await gives Result<View<Reply>>. options.timeout: limits::kAskDefault when not given.
  template <class Reply>
  [[nodiscard]] auto ask(const ActorRef& to, Message message, const SendOptions& options = {});
  // The same message to all at once; co_await gives Answers<Reply> as soon as `quorum` of them have replied, or so many no longer can;
  // 0: when each has replied or been refused. More wanted than there are refs: at once, and nothing is sent.
  template <class Reply>
  [[nodiscard]] auto ask_all(std::vector<ActorRef> to, Message message, std::size_t quorum = 0, const SendOptions& options = {});

  // -- time
  [[nodiscard]] auto sleep(Duration duration);                                                 // co_await
  virtual TimerId after(Duration duration, std::move_only_function<void(Context&)> call) = 0;  // on the actor's turn
  virtual void cancel(TimerId timer) = 0;

  // -- work that blocks or takes long: f() runs on the node's blocking pool; co_await gives Result of what f returns (a Result is not
  //    wrapped twice); `overloaded` when the pool's queue is full. f must not touch the actor: pass values in and out.
  template <class F>
  [[nodiscard]] auto blocking(F f);

  // -- tasks, children, watching
  virtual void start(Task<> task) = 0;               // a coroutine of this actor that nobody awaits; an exception from it kills the actor
  virtual ActorRef spawn(ChildSpec child) = 0;       // a child of this actor, supervised by it; throws on a duplicate id
  virtual void stop_child(std::string_view id) = 0;  // ends it and forgets its spec
  virtual void supervise(const Supervision& supervision) = 0;  // how this actor supervises its children
  virtual void watch(const ActorRef& other) = 0;               // on_down once, at once if it is already gone
  virtual void unwatch(const ActorRef& other) = 0;
  virtual void stop() = 0;           // this actor ends normally after this turn
  virtual void fail(Error why) = 0;  // this actor ends as failed after this turn; its supervisor decides

 protected:
  friend struct detail::AskState;
  friend struct detail::WaitState;
  virtual void ask_begin(detail::AskState& state, const ActorRef& to, Message message, const SendOptions& options) = 0;
  virtual void ask_forget(detail::AskState& state) noexcept = 0;
  virtual void sleep_begin(detail::WaitState& state, Duration duration) = 0;
  // Runs `work` on the pool, then resumes state on the actor's turn; false: refused.
  virtual bool blocking_begin(detail::WaitState& state, std::move_only_function<void()> work) = 0;
  virtual void wait_forget(detail::WaitState& state) noexcept = 0;
};

}  // namespace falaj

#include "runtime/host/awaitables.hpp"
