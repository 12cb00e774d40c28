// Host: one node's actors. make_caf_host() runs them on CAF's work-stealing scheduler; SimHost (sim_host.hpp) on virtual time.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/host/actor.hpp"
#include "runtime/host/tracer.hpp"

namespace falaj {

struct Header;

// What the host asks before a message from outside (a link, HTTP) reaches a handler. Called on the actor's turn: must not block.
class Authorizer {
 public:
  virtual ~Authorizer() = default;
  // `verb` is the message's $verb (empty: only nodes may send it). An error is the refusal (code denied); the authorizer audits it.
  virtual Status allow(const Scope& scope, std::string_view verb, std::string_view actor_type, std::string_view message) = 0;
};

// Carries messages to other nodes. Implemented over net::Links by runtime/cluster, and by the simulator.
class Transport {
 public:
  virtual ~Transport() = default;
  // `envelope` is an Envelope in its frame, there until this returns. Thread-safe, never blocks: overloaded, unreachable or gone otherwise.
  virtual Status send(NodeId to, Lane lane, ByteView envelope, const Message& body) = 0;
};

// Name -> address of the cluster's actors, as last published. Immutable.
class Directory {
 public:
  virtual ~Directory() = default;
  [[nodiscard]] virtual std::optional<ActorAddress> find(std::string_view name) const = 0;
};

struct DeadLetter {
  WallTime when;
  ActorAddress to;
  TypeId type;
  std::string reason;
};

struct ActorInfo {
  ActorId id;
  ActorId parent;
  std::string type;
  std::string name;
  std::uint32_t restarts = 0;
  std::size_t mailbox = 0;
  std::uint64_t handled = 0;
};

struct HostOptions {
  std::string node_name = "local";
  Incarnation incarnation{1};
  std::uint64_t seed = 1;
  std::size_t threads = 2;  // of the scheduler; one more is for those whom the control lane or a timer wakes
  std::size_t blocking_threads = 4;
  std::size_t blocking_queue = 1024;
  const Clock* clock = nullptr;          // not null
  metrics::Registry* metrics = nullptr;  // not null
  Authorizer* authorizer = nullptr;      // null: everything from outside is denied, except from nodes
};

class Host {
 public:
  virtual ~Host() = default;
  Host() = default;
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  // A child of the root supervisor. When the root's intensity is exceeded the node ends: on_fatal is called once.
  virtual ActorRef spawn(ChildSpec child) = 0;
  virtual void stop_child(std::string_view id) = 0;
  virtual void on_fatal(std::move_only_function<void(Error)> call) = 0;

  [[nodiscard]] virtual ActorRef find(std::string_view name) const = 0;
  [[nodiscard]] virtual ActorRef at(const ActorAddress& address) = 0;
  virtual void set_transport(Transport* transport) = 0;  // before the first remote message; outlives the host's last use
  virtual void set_directory(std::shared_ptr<const Directory> directory) = 0;

  // From any thread, e.g. an HTTP connection: `done` is called once, on a thread of the host, and must not block.
  // options.scope set: the verb is checked as for a message from outside.
  virtual void ask(const ActorRef& to, Message message, const SendOptions& options,
                   std::move_only_function<void(Result<Message>)> done) = 0;
  virtual void tell(const ActorRef& to, Message message, const SendOptions& options = {}) = 0;

  // From the links. `sender`: the authenticated peer; principals other than nodes speak only for themselves.
  struct Peer {
    NodeId node;
    Incarnation incarnation;
    std::string_view principal;  // SPIFFE id
    bool is_node = false;        // may send verb-less messages and speak for other principals
  };
  virtual void on_message(const Peer& sender, Lane lane, const Header& header, Message body) = 0;
  virtual void on_message(const Peer& sender, Lane lane, ByteView envelope, Message body) = 0;  // one that is still in its frame
  virtual void on_peer_down(NodeId node, Incarnation incarnation, const Error& why) = 0;        // fails asks, fires watches
  [[nodiscard]] virtual bool waits_for(NodeId node) = 0;  // an actor here waits for an answer from there, or watches an actor there

  // A thread that brings messages from outside (a link's, an HTTP connection's) lends itself to the host for as long as this lives. The
  // actor that was idle and is woken last then has its turn on this thread, at the end, within bounds of messages and time: a hand-over
  // to another thread costs more than most handlers. Others that are woken go to the scheduler's threads, as do actors known to be slow.
  // Hold no lock when it ends.
  class Lent {
   public:
    explicit Lent(Host& host) noexcept : host_(host) { host_.lend_begin(); }
    ~Lent() { host_.lend_end(); }
    Lent(const Lent&) = delete;
    Lent& operator=(const Lent&) = delete;

   private:
    Host& host_;
  };
  virtual void lend_begin() noexcept {}
  virtual void lend_end() noexcept {}

  [[nodiscard]] virtual std::vector<ActorInfo> actors() const = 0;
  [[nodiscard]] virtual std::vector<DeadLetter> dead_letters() const = 0;
  [[nodiscard]] virtual NodeId node() const = 0;
  [[nodiscard]] virtual Incarnation incarnation() const = 0;
  [[nodiscard]] virtual metrics::Registry& metrics() = 0;
  [[nodiscard]] virtual const Clock& clock() const = 0;
  [[nodiscard]] virtual Tracer& tracer() = 0;

  // Stops the tree in reverse order of start; returns the types of actors that had not stopped by the deadline.
  virtual std::vector<std::string> shutdown(Duration deadline) = 0;
};

std::unique_ptr<Host> make_caf_host(const HostOptions& options);

}  // namespace falaj
