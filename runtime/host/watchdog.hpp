// Who holds a thread for too long? Each thread that runs actors keeps a mark of its turn; a watcher looks at the marks a few times a
// second and names the actor whose turn goes on and on. The threads pay two plain stores a turn and one a message, and read no clock.
//
// Thread-safe. A turn that is over before two looks is never seen; one that lasts kStall is named kLook later at most.
#pragma once
#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/ids.hpp"

namespace falaj {

struct HandlerEntry;

class alignas(64) TurnMark {
 public:
  // By the thread it belongs to. Turns may nest (an answer given on the way out of another host): the outermost counts.
  void begin(ActorId actor) noexcept {
    if (depth_++ != 0) return;
    actor_.store(actor.value(), std::memory_order_relaxed);
    handler_.store(nullptr, std::memory_order_relaxed);
    turn_.store(turn_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }
  void handling(const HandlerEntry& entry) noexcept { handler_.store(&entry, std::memory_order_relaxed); }
  void end() noexcept {
    if (--depth_ == 0) turn_.store(turn_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }

 private:
  friend class Watchdog;
  unsigned depth_ = 0;
  std::atomic<std::uint64_t> turn_{0};  // odd: inside one
  std::atomic<std::uint64_t> actor_{0};
  std::atomic<const HandlerEntry*> handler_{nullptr};  // handlers live as long as the program
};

// The mark of the thread we are on; null where nobody watches (simulation, tests of single cells).
extern thread_local constinit TurnMark* t_turn_mark;

class Watchdog {
 public:
  static constexpr Duration kStall = std::chrono::milliseconds(100);
  static constexpr Duration kLook = std::chrono::milliseconds(50);

  struct Stall {
    ActorId actor;
    const HandlerEntry* handler = nullptr;  // of the message it was at; null: none yet
    Duration held{};                        // so far, or in all when it is over
    bool over = false;
  };
  using Report = std::move_only_function<void(const Stall&)>;

  explicit Watchdog(Report report) : report_(std::move(report)) {}
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  TurnMark& mark();        // a new one, for the calling thread to keep; lives as long as the watchdog
  void look(Instant now);  // reports each stall twice: when it is noticed, and when it is over

 private:
  struct Watched {
    TurnMark mark;
    std::uint64_t turn = 0;
    Instant since{};
    Stall stall;
    bool told = false;
  };
  Report report_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Watched>> watched_;
};

}  // namespace falaj
