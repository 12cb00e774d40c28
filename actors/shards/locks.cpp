// shard/locks/<name>: a lock (messages/locks.capnp).
#include <deque>

#include "actors/shards/shards.hpp"
#include "messages/envelope.capnp.h"
#include "messages/locks.capnp.h"
#include "runtime/base/format.hpp"

namespace falaj::shards {
namespace {

using namespace messages;
using falaj::ErrorCode;
using std::chrono::milliseconds;

constexpr std::uint32_t kTtlMinMs = 100;
constexpr std::uint32_t kTtlMaxMs = 86'400'000;
constexpr std::uint32_t kWaitMaxMs = 60'000;
constexpr std::size_t kWaitingMax = 256;
constexpr std::size_t kOwnerBytesMax = 256;

class Lock final : public ActorOf<Lock> {
 public:
  static constexpr std::string_view kType = "shard/locks";
  static void handlers(Handlers<Lock>& on) {
    on.message<AcquireLock>(&Lock::acquire);
    on.message<RenewLock>(&Lock::renew);
    on.message<ReleaseLock>(&Lock::release);
    on.message<GetLock>(&Lock::show);
    on.message<GiveState>(&Lock::give_state);
  }
  explicit Lock(Birth birth) : birth_(std::move(birth)) {}

  void on_start(Context& ctx) override {
    if (!birth_.state) return;
    const auto state = birth_.state->open<LockState>();
    if (!state.has_value()) throw std::runtime_error(state.error().message);
    newest_ = (*state)->getToken();
    if ((*state)->getHeld()) {
      holder_ = Holder{std::string(text((*state)->getPrincipal())), std::string(text((*state)->getOwner())), newest_, {}};
      keep(ctx, *holder_, (*state)->getLeftMs());
    }
    birth_.state.reset();
  }

 private:
  struct Holder {
    std::string principal;
    std::string owner;
    std::uint64_t token = 0;
    Instant until{};
    [[nodiscard]] bool is(const std::string& by, std::string_view name) const { return principal == by && owner == name; }
  };
  struct Waiting {
    Msg<AcquireLock> question;
    Instant until;
    std::uint64_t number;
  };

  template <class T>
  static std::string principal_of(const Msg<T>& m) {
    return m.scope() ? m.scope()->principal : std::string();
  }

  static Status good(std::string_view owner, std::uint32_t ttl_ms, std::uint32_t wait_ms) {
    if (owner.empty() || owner.size() > kOwnerBytesMax) return invalid(format("owner: give a name of 1 to {} bytes", kOwnerBytesMax));
    if (ttl_ms < kTtlMinMs || ttl_ms > kTtlMaxMs) return invalid(format("ttlMs: {} is not within {} to {}", ttl_ms, kTtlMinMs, kTtlMaxMs));
    if (wait_ms > kWaitMaxMs) return invalid(format("waitMs: {} is more than {}", wait_ms, kWaitMaxMs));
    return {};
  }

  void acquire(Context& ctx, Msg<AcquireLock> m) {
    if (auto fit = good(text(m->getOwner()), m->getTtlMs(), m->getWaitMs()); !fit.has_value()) return m.refuse(fit.error());
    expire(ctx);
    if (!holder_) return grant(ctx, m);
    if (holder_->is(principal_of(m), text(m->getOwner()))) {  // asked once more: the answer may have been lost
      keep(ctx, *holder_, m->getTtlMs());
      return answer(m, m->getTtlMs());
    }
    if (m->getWaitMs() == 0) return m.refuse(taken(ctx));
    if (waiting_.size() >= kWaitingMax) return m.refuse(error(ErrorCode::overloaded, format("{} wait for this lock already", kWaitingMax)));
    const auto wait = milliseconds(m->getWaitMs());
    const auto number = ++waited_;
    waiting_.push_back(Waiting{std::move(m), ctx.now() + wait, number});
    ctx.after(wait, [this, number](Context& later) {
      std::erase_if(waiting_, [&](Waiting& one) {
        if (one.number != number) return false;
        one.question.refuse(taken(later));
        return true;
      });
    });
  }

  [[nodiscard]] Error taken(Context& ctx) const {
    if (!holder_) return error(ErrorCode::conflict, "the lock is somebody else's");
    const auto left = std::chrono::duration_cast<milliseconds>(holder_->until - ctx.now()).count();
    return error(ErrorCode::conflict, format("the lock is held by '{}' ({}) for another {} ms, if it does not renew it", holder_->owner,
                                             holder_->principal, std::max<std::int64_t>(left, 0)));
  }

  void grant(Context& ctx, Msg<AcquireLock>& m) {
    newest_ = birth_.place->token(birth_.epoch);
    holder_ = Holder{principal_of(m), std::string(text(m->getOwner())), newest_, {}};
    keep(ctx, *holder_, m->getTtlMs());
    answer(m, m->getTtlMs());
  }

  template <class T>
  void answer(Msg<T>& m, std::uint32_t ttl_ms) const {
    m.reply(Message::build<LockGrant>([&](LockGrant::Builder b) {
      b.setToken(holder_->token);
      b.setTtlMs(ttl_ms);
    }));
  }

  void keep(Context& ctx, Holder& holder, std::uint64_t ttl_ms) {
    holder.until = ctx.now() + milliseconds(ttl_ms);
    if (timer_) ctx.cancel(*timer_);
    timer_ = ctx.after(milliseconds(ttl_ms), [this](Context& later) {
      timer_.reset();
      expire(later);
    });
  }

  void expire(Context& ctx) {
    if (holder_ && holder_->until <= ctx.now()) free(ctx);
  }

  // Who waits longest is next.
  void free(Context& ctx) {
    holder_.reset();
    if (timer_) ctx.cancel(*timer_);
    timer_.reset();
    while (!waiting_.empty() && !holder_) {
      auto next = std::move(waiting_.front());
      waiting_.pop_front();
      if (next.until > ctx.now() && next.question.deadline() > ctx.now()) {
        grant(ctx, next.question);
      } else {
        next.question.refuse(taken(ctx));
      }
    }
  }

  void renew(Context& ctx, Msg<RenewLock> m) {
    if (auto fit = good(text(m->getOwner()), m->getTtlMs(), 0); !fit.has_value()) return m.refuse(fit.error());
    expire(ctx);
    const auto principal = principal_of(m);
    // A node has died, and nobody has asked for the lock since (no actor of this one has been let go yet): it is its owner's still.
    const bool first = newest_ == 0 && ctx.now() - birth_.owned_since < kIdle;
    if (!holder_ && first && m->getToken() != 0 && m->getToken() >> 40 < birth_.epoch) {
      newest_ = m->getToken();
      holder_ = Holder{principal, std::string(text(m->getOwner())), newest_, {}};
    }
    if (!holder_ || !holder_->is(principal, text(m->getOwner())) || holder_->token != m->getToken())
      return m.refuse(error(ErrorCode::gone, "the lock is no longer yours; what you do under it may be done by somebody else too"));
    keep(ctx, *holder_, m->getTtlMs());
    answer(m, m->getTtlMs());
  }

  void release(Context& ctx, Msg<ReleaseLock> m) {
    expire(ctx);
    if (holder_ && (!holder_->is(principal_of(m), text(m->getOwner())) || holder_->token != m->getToken()))
      return m.refuse(error(ErrorCode::gone, "the lock is somebody else's"));
    if (newest_ == 0) newest_ = m->getToken();  // of an earlier node: who gave it back does not have it any more
    if (holder_) free(ctx);
    m.reply(Message::build<Empty>());
  }

  [[nodiscard]] Message state(Context& ctx) const {
    return Message::build<LockState>([&](LockState::Builder b) {
      b.setHeld(holder_.has_value());
      b.setToken(newest_);
      b.setWaiting(static_cast<std::uint32_t>(waiting_.size()));
      if (!holder_) return;
      b.setOwner(holder_->owner);
      b.setPrincipal(holder_->principal);
      b.setLeftMs(static_cast<std::uint64_t>((holder_->until - ctx.now()) / milliseconds(1)) + 1);
    });
  }

  void show(Context& ctx, Msg<GetLock> m) {
    expire(ctx);
    m.reply(state(ctx));
  }

  void give_state(Context& ctx, Msg<GiveState> m) {
    expire(ctx);
    for (auto& one : std::exchange(waiting_, {})) one.question.refuse(error(ErrorCode::overloaded, "the lock is being moved; ask again"));
    if (!holder_) return m.refuse(error(ErrorCode::not_found, "nobody has the lock"));
    m.reply(state(ctx));
  }

  Birth birth_;
  std::optional<Holder> holder_;
  std::optional<TimerId> timer_;
  std::uint64_t newest_ = 0;  // token; 0: none since this actor began, and none that it was told of
  std::deque<Waiting> waiting_;
  std::uint64_t waited_ = 0;
};

}  // namespace

Type locks() {
  Type type;
  type.name = "locks";
  type.make = [](Birth birth) { return std::make_unique<Lock>(std::move(birth)); };
  return type;
}

}  // namespace falaj::shards
