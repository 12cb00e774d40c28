// The children of one actor and what becomes of them: OTP's supervisor, as a part of every cell. Runs on the parent's turn only.
//
// Starting is synchronous and in order. Stopping is in reverse order, one child at a time: ask it to stop, wait `shutdown`, kill
// it, wait a moment more, and go on without it (it is then reported, because a thread that never returns cannot be ended).
// A group (one_for_all, rest_for_one) is stopped first, then waits its back-off, then starts again in order. A restart that fails to
// start counts as one more restart.
#pragma once
#include <deque>
#include <map>
#include <string>
#include <unordered_map>

#include "runtime/host/actor.hpp"

namespace falaj {

class Cell;

class Supervisor {
 public:
  explicit Supervisor(Cell& parent) : parent_(parent) {}
  void configure(const Supervision& supervision);
  // Makes and starts a child; throws std::invalid_argument for a bad spec. `started`: whether on_start went well.
  ActorRef spawn(ChildSpec spec, bool* started = nullptr);
  bool adopt(ChildSpec spec, ActorRef cell);  // one that was made on another thread; false: the id is taken
  void stop_child(std::string_view id);
  void exited(const ActorRef& child, bool failed, const Error& why);
  void stop_all();  // ends in Cell::children_stopped()
  void kill_all() noexcept;

  static void check(const Supervision& supervision);
  static void check(const ChildSpec& spec);

 private:
  enum class State : std::uint8_t { down, running, stopping, killing };
  enum class Group : std::uint8_t { none, stopping, waiting };
  struct Child {
    ChildSpec spec;
    ActorRef ref;
    State state = State::down;
    bool forget = false;  // stop_child: erase when it is down
    std::uint32_t restarts = 0;
    std::uint32_t in_row = 0;
    Instant started{};
    TimerId timer = 0;
  };
  using Order = std::uint64_t;

  Order add(ChildSpec spec);
  bool start(Order order);
  void stop(Order order);
  void kill(Order order);
  void down(Order order);
  void erase(Order order);
  void advance();
  void restart(Order order, const Error& why);
  [[nodiscard]] bool enough_ended() const;
  [[nodiscard]] bool count_restart();
  [[nodiscard]] Duration backoff(Child& child);
  void begin_group(Order from, Duration delay);
  void start_group();
  void cancel_timer(TimerId& timer);

  Cell& parent_;
  Supervision supervision_;
  std::map<Order, Child> children_;
  std::unordered_map<std::string, Order> by_id_;
  Order next_ = 1;
  Order stopping_ = 0;  // while all or a group are stopped: those after it are down
  std::deque<Instant> restarts_;
  bool stopping_all_ = false;
  Group group_ = Group::none;
  Order group_from_ = 0;
  Duration group_delay_{};
  TimerId group_timer_ = 0;
};

}  // namespace falaj
