// The simulator's host: any number of nodes in one thread, on virtual time, from one seed.
//
//   SimWorld world(seed);
//   auto& a = world.add_node("a", [](Host& host) { host.spawn(...); });   // run again after each restart
//   auto& b = world.add_node("b");
//   auto answer = world.ask(b, b.at({a.node(), {}, {}, "counter"}), message);
//   world.partition("a", "b");
//   world.run_for(2s);
//
// Which of the ready actors runs next is drawn from the seed, one message at a time; the order of each pair on a lane is kept. Time moves
// only when nobody is ready. Equal seeds and equal calls give equal digests, on any machine and in any build.
//
// Links behave as TCP connections do: what is sent arrives late, in order on its lane, or the connection is lost with all that was
// under way. A silent link is noticed after about `detect`, by each end in its own time; one that heals connects again after `reconnect`,
// and an end that had not noticed learns then that its connection was replaced.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/random.hpp"
#include "runtime/host/host.hpp"

namespace falaj {

struct SimOptions {
  Duration delay_min = std::chrono::microseconds(50);  // of a message between two nodes
  Duration delay_max = std::chrono::milliseconds(1);
  double loss = 0;  // chance that sending a message loses its connection
  Duration detect = std::chrono::milliseconds(900);
  double uneven = 0;  // ends notice a lost connection at moments that differ by up to this part of `detect`
  Duration reconnect = std::chrono::milliseconds(50);
  Duration blocking_min = std::chrono::microseconds(20);  // of a piece of work on the pool
  Duration blocking_max = std::chrono::milliseconds(2);
};

// A message on the turn of the actor that is about to handle it, for whoever watches a simulation.
struct SimSeen {
  Instant when;
  std::string_view node;
  ActorId actor;
  std::string_view actor_name;
  const Delivery* delivery;
};

class SimWorld {
 public:
  explicit SimWorld(std::uint64_t seed, const SimOptions& options = {});
  ~SimWorld();
  SimWorld(const SimWorld&) = delete;
  SimWorld& operator=(const SimWorld&) = delete;

  // `base`: threads of the pool, authorizer and the like; name, seed, clock, metrics and incarnation are set here.
  Host& add_node(const std::string& name, std::function<void(Host&)> setup = {}, HostOptions base = {});
  [[nodiscard]] Host& host(std::string_view name);  // throws when it is not running
  [[nodiscard]] bool running(std::string_view name) const;
  // How its peers know a node. Without this: a member of the cluster "sim".
  void introduce(std::string_view name, std::string principal, bool is_node);
  void watch(std::function<void(const SimSeen&)> watcher) { watcher_ = std::move(watcher); }
  SimOptions& options() noexcept { return options_; }

  [[nodiscard]] Instant now() const noexcept { return now_; }
  [[nodiscard]] Random random(std::string_view consumer) const { return root_.split(consumer); }
  void at(Instant when, std::move_only_function<void()> call);  // an event of the world, e.g. a fault
  bool step();                                                  // one message or one event; false: nothing will ever happen again
  bool step_until(Instant limit);  // one step, if there is one before the limit; otherwise false, and the limit has come
  void run_for(Duration duration);
  bool run_until(const std::function<bool()>& done, Duration limit);  // false: the limit came first
  Result<Message> ask(Host& from, const ActorRef& to, Message message, const SendOptions& options = {});

  // -- faults
  void partition(std::string_view a, std::string_view b);  // silence, noticed after `detect`
  void heal(std::string_view a, std::string_view b);
  void cut(std::string_view from, std::string_view to);  // as partition, but one way: what is sent the other way still arrives
  void clog(std::string_view from, std::string_view to, Instant until);  // nothing arrives before, nothing is lost
  void lag(std::string_view from, std::string_view to, Duration extra);  // from now on
  void slow(std::string_view name, double factor);                       // of its work on the pool
  void reset(std::string_view a, std::string_view b);                    // the connection is lost now, both ends notice, and it comes back
  void crash(std::string_view name);                                     // at once and without a word, as power fails
  void kill(std::string_view name);                                      // the process ends: its connections are closed
  void restart(std::string_view name);                                   // the next incarnation, with the setup of add_node
  void skew(std::string_view name, Duration wall);                       // shifts its wall clock

  [[nodiscard]] std::uint64_t digest() const noexcept { return digest_; }
  [[nodiscard]] std::uint64_t steps() const noexcept { return steps_; }
  void fold(std::uint64_t value) noexcept;  // a caller's own facts into the digest

 private:
  class NodeClock;
  class NodeExecutor;
  class NodeHost;
  class NodeTransport;
  struct SimNode;
  struct Link;
  using EventId = std::pair<Instant, std::uint64_t>;
  struct Event {
    const void* owner = nullptr;  // an executor; null: the world
    std::move_only_function<void()> call;
  };

  std::uint64_t schedule(Instant when, const void* owner, std::move_only_function<void()> call);
  void cancel(std::uint64_t id) noexcept;
  void start(SimNode& node);
  SimNode& node(std::string_view name);
  [[nodiscard]] SimNode* by_id(NodeId id) noexcept;
  Link& link(const SimNode& a, const SimNode& b);
  static std::size_t end_of(const SimNode& of, const SimNode& other) noexcept;
  Status send(SimNode& from, NodeId to, Lane lane, ByteView envelope, const Message& body);
  void arrive(SimNode& from, SimNode& to, Lane lane, std::uint64_t generation, ByteView envelope, const Message& body);
  void silence(SimNode& a, SimNode& b);
  void lose(SimNode& a, SimNode& b, const std::string& why);
  void drop(SimNode& at, SimNode& peer, const std::string& why);  // one end notices
  void reconnect(SimNode& a, SimNode& b);

  SimOptions options_;
  const Random root_;
  Random choices_;
  Random network_;
  Instant now_{};
  std::uint64_t digest_;
  std::uint64_t steps_ = 0;
  std::uint64_t next_event_ = 1;
  std::map<EventId, Event> events_;
  std::unordered_map<std::uint64_t, Instant> event_times_;
  struct Ready;
  std::vector<Ready> ready_;
  std::map<std::string, std::unique_ptr<SimNode>, std::less<>> nodes_;
  std::unordered_map<std::uint64_t, SimNode*> by_id_;
  std::function<void(const SimSeen&)> watcher_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, Link> links_;
};

}  // namespace falaj
