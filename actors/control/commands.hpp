// Commands with an idempotency key (Scope::idempotency_key): each is carried out once for its principal and key. What it was answered is
// stored in the transaction of its effect, so that both are there or neither, also after a crash.
//
//   Task<> apply(Context& ctx, Msg<Apply> m) {
//     auto admitting = commands_.admit(ctx, m);                // waits while the same command is being carried out
//     auto turn = co_await std::move(admitting);
//     if (!turn) co_return m.refuse(turn.error());             // conflict: the key stands for something else
//     if (turn->before()) co_return m.reply(...);              // it was carried out before
//     ...
//     turn->keep(transaction, answer, ctx.wall());             // nothing, when there is no key
//     auto write = ctx.blocking([...] { return store->commit(transaction); });
//     ...
//     turn->kept();                                            // it is durable
//   }
//
// What is refused has changed nothing and is not kept: it may be sent again under its key. A key is remembered for CommandLimits::age, or
// until so many newer ones came.
//
// Ways to get hurt:
//  - A Turn is a local of the handler: when it is gone, the next with its key begins.
//  - Actors that share a store share the keys: of two that have one key at once, the second one's transaction fails with `conflict`.
#pragma once
#include <deque>
#include <optional>
#include <set>
#include <string>

#include "runtime/host/actor.hpp"
#include "storage/control_store.hpp"
#include "storage/digest.hpp"

namespace falaj::control {

constexpr std::size_t kIdempotencyKeyBytesMax = 256;

struct CommandLimits {
  std::size_t kept = 4096;                // for each actor
  std::size_t bytes = 16U << 20;          // answers; the newest is kept whatever its size: 4 KiB each when all are
  Duration age = std::chrono::hours(24);  // 4,096 a day: one in 21 s, all day
  std::size_t forgotten_at_once = 512;    // by one command, which adds one: small ones make way for a large one in 8 steps
};
static_assert(CommandLimits{}.bytes / CommandLimits{}.kept == 4096);
static_assert(CommandLimits{}.forgotten_at_once + 8 <= storage::ControlOptions{}.writes_max);

class CommandBook {
 public:
  struct Answered {
    Message answer;
    Revision revision{};  // of the transaction in which it was carried out
  };

  class Turn {
   public:
    Turn() = default;
    Turn(Turn&& other) noexcept;
    Turn& operator=(Turn&&) = delete;
    ~Turn();
    [[nodiscard]] bool keyed() const noexcept { return book_ != nullptr; }
    [[nodiscard]] const std::optional<Answered>& before() const noexcept { return before_; }
    // Adds what remembers the answer, and forgets what is too old or too much. Again: for another attempt at the transaction.
    void keep(storage::Transaction& transaction, const Message& answer, WallTime now);
    void kept();
    // After a transaction has failed: because another actor has carried out something under this key.
    [[nodiscard]] bool overtaken() const;

   private:
    friend class CommandBook;
    CommandBook* book_ = nullptr;
    std::string key_;
    Bytes content_;
    std::optional<Answered> before_;
    std::size_t size_ = 0;
    WallTime now_{};
    std::vector<std::string> forgotten_;
  };

  // `actor`: whose commands these are.
  CommandBook(std::string actor, storage::ControlStore& store, const CommandLimits& limits = {})
      : actor_(std::move(actor)), store_(store), limits_(limits) {}
  [[nodiscard]] Status load();  // once, before the first command

  template <class T>
  [[nodiscard]] Task<Result<Turn>> admit(Context& ctx, const Msg<T>& m) {
    const bool keyed = m.scope() && !m.scope()->idempotency_key.empty();
    return keyed ? admit_keyed(ctx, m.scope(), content_of<T>(*m, *m.scope())) : admit_plain();
  }

 private:
  struct Entry {
    std::string key;
    WallTime at;
    std::size_t size = 0;
  };
  // The same for the same content, however it was encoded. Throws what Cap'n Proto throws of what has no such form.
  template <class T>
  static Result<Bytes> content_of(typename T::Reader message, const Scope& scope) {
    try {
      const auto words = capnp::canonicalize(message);
      return digest(TypeId(capnp::typeId<T>()), scope, {words.asBytes().begin(), words.asBytes().size()});
    } catch (const std::exception&) {
      return invalid("a command with an idempotency key must be plain data, which this is not");
    }
  }
  static Bytes digest(TypeId type, const Scope& scope, ByteView content);
  static Task<Result<Turn>> admit_plain();
  Task<Result<Turn>> admit_keyed(Context& ctx, ScopeRef scope, Result<Bytes> content);
  Result<std::optional<Answered>> find(const std::string& key, ByteView content) const;

  const std::string actor_;
  storage::ControlStore& store_;
  const CommandLimits limits_;
  std::set<std::string> running_;
  std::deque<Entry> entries_;  // the oldest first
  std::size_t bytes_ = 0;
};

}  // namespace falaj::control
