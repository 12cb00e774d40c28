// What travels between actors of one process: refs, scopes, and a message on its way. Values and handles only; thread-safe.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "messages/message.hpp"
#include "runtime/base/clock.hpp"
#include "runtime/base/ids.hpp"
#include "runtime/base/pool.hpp"
#include "runtime/base/result.hpp"
#include "runtime/base/trace.hpp"

namespace falaj {

enum class Lane : std::uint8_t { control, normal, bulk };
constexpr std::size_t kLanes = 3;

using TimerId = std::uint64_t;

// For whom and why a message is sent (messages/envelope.capnp, Scope). Immutable, shared. A null ScopeRef: the node itself.
struct Scope {
  std::string principal;  // SPIFFE id
  std::string tenant;
  std::string purpose;
  std::string residency;
  std::string idempotency_key;
};
using ScopeRef = std::shared_ptr<const Scope>;

struct SendOptions {
  Lane lane = Lane::normal;
  Duration timeout{0};  // for asks; zero: limits::kAskDefault
  ScopeRef scope;
  TraceContext trace;
};

struct ActorAddress {
  NodeId node;
  Incarnation incarnation;  // of the node; zero: whichever runs now
  ActorId actor;            // zero: by name
  std::string name;
  bool operator==(const ActorAddress&) const = default;
};
std::string to_string(const ActorAddress& address);

struct Delivery;
class Node;

// Where messages go: a local actor's mailbox or the proxy of a remote actor. Reference-counted by hand, because the counts carry
// the happens-before edge that ThreadSanitizer must see.
class Target {
 public:
  Target() = default;
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;
  // Takes the delivery, or refuses its ask / counts its tell as a dead letter. Thread-safe, never blocks.
  virtual void deliver(std::unique_ptr<Delivery> delivery) = 0;
  [[nodiscard]] virtual ActorAddress address() const = 0;
  [[nodiscard]] bool local() const noexcept { return local_; }

  void retain() noexcept { references_.fetch_add(1, std::memory_order_relaxed); }
  // For caches that hold no count: false when the last one is already gone.
  [[nodiscard]] bool try_retain() noexcept {
    auto seen = references_.load(std::memory_order_relaxed);
    while (seen != 0) {
      if (references_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }
  void release() noexcept {
    if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) dispose();
  }

 protected:
  explicit Target(bool local) noexcept : local_(local) {}
  virtual ~Target() = default;
  virtual void dispose() noexcept { delete this; }

 private:
  std::atomic<std::uint32_t> references_{0};
  const bool local_ = false;  // the mailbox of an actor of this process
};

// A value: where messages go. An empty ref answers asks with not_found.
class ActorRef {
 public:
  ActorRef() = default;
  // Takes over a count that the caller holds.
  static ActorRef adopt(Target* target) noexcept {
    ActorRef ref;
    ref.target_ = target;
    return ref;
  }
  explicit ActorRef(Target* target) noexcept : target_(target) {
    if (target_ != nullptr) target_->retain();
  }
  ActorRef(const ActorRef& other) noexcept : ActorRef(other.target_) {}
  ActorRef(ActorRef&& other) noexcept : target_(std::exchange(other.target_, nullptr)) {}
  ActorRef& operator=(ActorRef other) noexcept {
    std::swap(target_, other.target_);
    return *this;
  }
  ~ActorRef() {
    if (target_ != nullptr) target_->release();
  }
  [[nodiscard]] explicit operator bool() const noexcept { return target_ != nullptr; }
  [[nodiscard]] Target* get() const noexcept { return target_; }
  [[nodiscard]] ActorAddress address() const { return target_ == nullptr ? ActorAddress{} : target_->address(); }
  bool operator==(const ActorRef& other) const noexcept = default;

 private:
  Target* target_ = nullptr;
};

// The first seven as in envelope.capnp; the rest never leaves the host.
enum class Kind : std::uint8_t { tell, ask, reply, refusal, watch, unwatch, down, work, stop, exited, poke };

// One message on its way to one actor.
struct Delivery {
  Delivery* next = nullptr;  // owned by the mailbox it is in
  Message body;              // refusal and down: ErrorInfo
  Kind kind = Kind::tell;
  Lane lane = Lane::normal;
  std::uint32_t ahead = 0;  // sampled, as `sent`: how many were before it in its lane
  CorrelationId correlation;
  // Who sent it. A tell between two actors of one node names the teller instead: to count its references up and down again would cost two
  // caches a good part of what the message does, and few handlers ask.
  ActorRef from;
  ActorId teller;
  Instant deadline = Instant::max();
  TraceContext trace;
  ScopeRef scope;
  Instant sent{};             // sampled: when it entered the mailbox; zero otherwise
  bool from_outside = false;  // came over a link or from HTTP: the verb is checked for scope's principal
  bool from_node = false;     // an authenticated node sent it: messages without a verb are allowed

  static void* operator new(std::size_t size);
  static void operator delete(void* memory) noexcept;
};
inline void* Delivery::operator new(std::size_t) { return BlockPool<sizeof(Delivery)>::take(); }
inline void Delivery::operator delete(void* memory) noexcept { BlockPool<sizeof(Delivery)>::give(memory); }

Message refusal_message(const Error& error);
Error refusal_error(const Message& message);  // of an ErrorInfo body, also one from outside

// The reply token and metadata of a received message: what is left of its delivery. Destroyed unanswered, it refuses an ask with `failed`.
class Inbound {
 public:
  // The node, which must outlive the token, is where a teller is looked up; null: there is none.
  explicit Inbound(std::unique_ptr<Delivery> delivery, Node* node = nullptr) noexcept
      : delivery_(std::move(delivery)), node_(node), open_(delivery_->kind == Kind::ask) {}
  Inbound(Inbound&& other) noexcept
      : delivery_(std::move(other.delivery_)), node_(other.node_), received_(other.received_), open_(std::exchange(other.open_, false)) {}
  Inbound& operator=(Inbound&& other) noexcept;
  ~Inbound() {
    if (open_) unanswered();
  }

  // The first reply() or refuse() answers; what comes after it does nothing.
  void reply(Message answer);
  void refuse(Error why);
  [[nodiscard]] bool wants_reply() const noexcept { return open_; }
  [[nodiscard]] const ActorRef& from() const {
    if (delivery_->teller.value() != 0) find_teller();
    return delivery_->from;
  }
  [[nodiscard]] const ScopeRef& scope() const noexcept { return delivery_->scope; }
  [[nodiscard]] Instant deadline() const noexcept { return delivery_->deadline; }
  [[nodiscard]] const TraceContext& trace() const noexcept { return delivery_->trace; }
  [[nodiscard]] SendOptions options() const;
  void set_now(Instant now) noexcept { received_ = now; }  // by the host, so that options() can give the time that is left

 private:
  void answer(Kind kind, Message body);
  void unanswered() noexcept;
  void find_teller() const;
  std::unique_ptr<Delivery> delivery_;  // null: moved from
  Node* node_;
  Instant received_{};
  bool open_;
};

}  // namespace falaj
