#include "runtime/host/sim_host.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/host/cell.hpp"
#include "runtime/host/common_host.hpp"

namespace falaj {

namespace {

class SimCell final : public Cell {
 public:
  using Cell::Cell;
};

constexpr std::int64_t kEpochNs = 1'700'000'000'000'000'000;  // the wall clock's start: any moment will do

}  // namespace

struct SimWorld::Ready {
  Cell* cell;  // with one count
  const void* owner;
};

class SimWorld::NodeClock final : public Clock {
 public:
  explicit NodeClock(const SimWorld& world) : world_(world) {}
  [[nodiscard]] Instant now() const override { return world_.now_; }
  [[nodiscard]] WallTime wall() const override { return {kEpochNs + (world_.now_.time_since_epoch() + skew).count()}; }
  Duration skew{0};

 private:
  const SimWorld& world_;
};

class SimWorld::NodeExecutor final : public Executor {
 public:
  NodeExecutor(SimWorld& world, SimNode& node, std::size_t threads, std::size_t queue)
      : free_at_(std::max<std::size_t>(threads, 1)), world_(world), node_(node), queue_(queue) {
    observes = true;
  }
  Cell* make_cell(CellInit init) override { return new SimCell(std::move(init)); }
  void schedule(Cell& cell, bool /*urgent*/) noexcept override {
    if (down) {
      cell.release();
    } else {
      world_.ready_.push_back(Ready{&cell, this});
    }
  }
  std::uint64_t call_at(Instant when, std::move_only_function<void()> call) override {
    return down ? 0 : world_.schedule(std::max(when, world_.now_), this, std::move(call));
  }
  void cancel(std::uint64_t timer) noexcept override { world_.cancel(timer); }
  // As many pieces of work at a time as the pool has threads; the work itself is done at the moment it ends.
  bool run_blocking(std::move_only_function<void()> work) override;
  void observe(const Cell& cell, const Delivery& d) override;

  bool down = false;

 private:
  std::vector<Instant> free_at_;
  SimWorld& world_;
  SimNode& node_;
  std::size_t queue_;
  std::size_t in_flight_ = 0;
};

class SimWorld::NodeTransport final : public Transport {
 public:
  NodeTransport(SimWorld& world, SimNode& node) : world_(world), node_(node) {}
  Status send(NodeId to, Lane lane, ByteView envelope, const Message& body) override {
    return world_.send(node_, to, lane, envelope, body);
  }

 private:
  SimWorld& world_;
  SimNode& node_;
};

class SimWorld::NodeHost final : public CommonHost {
 public:
  NodeHost(SimWorld& world, const HostOptions& options, NodeExecutor& executor)
      : CommonHost(std::make_shared<Node>(options, executor)), world_(world), executor_(executor) {
    core().start_root();
  }
  ~NodeHost() override { power_off(); }

  std::vector<std::string> shutdown(Duration deadline) override {
    core().begin_stop_root();
    world_.run_until([this] { return core().root_done(); }, deadline);
    std::vector<std::string> alive;
    if (core().root_done()) return alive;
    for (const auto& actor : core().actors()) {
      if (actor.parent.value() != 0) alive.push_back(actor.type);
    }
    return alive;
  }

  void power_off() {
    if (std::exchange(executor_.down, true)) return;
    std::erase_if(world_.ready_, [this](const Ready& ready) {
      if (ready.owner != &executor_) return false;
      ready.cell->release();
      return true;
    });
    for (auto at = world_.events_.begin(); at != world_.events_.end();) {
      if (at->second.owner == &executor_) {
        world_.event_times_.erase(at->first.second);
        at = world_.events_.erase(at);
      } else {
        ++at;
      }
    }
    core().abandon_all();
  }

 private:
  SimWorld& world_;
  NodeExecutor& executor_;
};

struct SimWorld::SimNode {
  explicit SimNode(const SimWorld& world) : clock(world) {}
  [[nodiscard]] bool up() const noexcept { return host != nullptr; }
  std::string name;
  NodeId id;
  std::string principal;
  bool is_node = true;
  double slowness = 1;
  HostOptions options;
  std::function<void(Host&)> setup;
  NodeClock clock;
  metrics::Registry metrics;
  std::unique_ptr<NodeTransport> transport;
  std::vector<std::unique_ptr<NodeExecutor>> executors;  // the last is the present one; late refs may still point to the others
  std::unique_ptr<NodeHost> host;                        // null: crashed
};

// Ends and directions are numbered alike: 0 is the node with the smaller id, and what it sends.
struct SimWorld::Link {
  std::array<bool, 2> cut{};                  // what is sent vanishes
  std::array<bool, 2> connected{true, true};  // as each end believes
  std::array<Instant, 2> clogged{};           // until
  std::array<Duration, 2> lag{};
  std::uint64_t generation = 1;
  std::array<std::array<Instant, kLanes>, 2> last{};  // arrival of the last message, for each direction and lane
};

// As many pieces of work at a time as the pool has threads; the work itself is done at the moment it ends.
bool SimWorld::NodeExecutor::run_blocking(std::move_only_function<void()> work) {
  if (down || in_flight_ >= free_at_.size() + queue_ || fault::rarely("pool-full", 0.01)) return false;
  ++in_flight_;
  const auto& o = world_.options_;
  const auto spread = static_cast<std::uint64_t>((o.blocking_max - o.blocking_min).count()) + 1;
  const auto cost = o.blocking_min + Duration(static_cast<Duration::rep>(world_.choices_.below(spread)));
  auto& thread = *std::min_element(free_at_.begin(), free_at_.end());
  thread = std::max(thread, world_.now_) + std::chrono::duration_cast<Duration>(cost * node_.slowness);
  world_.schedule(thread, this, [this, work = std::move(work)]() mutable {
    --in_flight_;
    work();
  });
  return true;
}

void SimWorld::NodeExecutor::observe(const Cell& cell, const Delivery& d) {
  world_.fold(static_cast<std::uint64_t>(world_.now_.time_since_epoch().count()));
  world_.fold(node_.id.value() ^ cell.id().value());
  world_.fold(d.body.type().value() ^ static_cast<std::uint64_t>(d.kind));
  world_.fold(crc32c(d.body.bytes()));
  if (world_.watcher_) world_.watcher_(SimSeen{world_.now_, node_.name, cell.id(), cell.name(), &d});
}

SimWorld::SimWorld(std::uint64_t seed, const SimOptions& options)
    : options_(options), root_(seed), choices_(root_.split("choices")), network_(root_.split("network")), digest_(stable_hash("falaj")) {}

SimWorld::~SimWorld() {
  for (auto& [name, node] : nodes_) {
    if (node->host) node->host->power_off();
  }
  events_.clear();
  for (auto& [name, node] : nodes_) node->host.reset();
}

void SimWorld::fold(std::uint64_t value) noexcept {
  digest_ = (digest_ ^ value) * 0x9FB21C651E98DF25ULL;
  digest_ ^= digest_ >> 29;
}

// ---- nodes ------------------------------------------------------------------------------------------------------------------------

Host& SimWorld::add_node(const std::string& name, std::function<void(Host&)> setup, HostOptions base) {
  if (nodes_.contains(name)) throw std::invalid_argument(format("two simulated nodes named {}", name));
  auto& node = nodes_[name];
  base.node_name = name;
  base.incarnation = Incarnation(0);
  base.seed = root_.split("node/" + name).next();
  node = std::make_unique<SimNode>(*this);
  node->name = name;
  node->id = node_id(name);
  node->principal = "spiffe://sim/node/" + name;
  by_id_[node->id.value()] = node.get();
  node->options = base;
  node->setup = std::move(setup);
  node->options.clock = &node->clock;
  node->options.metrics = &node->metrics;
  node->transport = std::make_unique<NodeTransport>(*this, *node);
  start(*node);
  return *node->host;
}

void SimWorld::start(SimNode& node) {
  node.options.incarnation = Incarnation(node.options.incarnation.value() + 1);
  node.executors.push_back(std::make_unique<NodeExecutor>(*this, node, node.options.blocking_threads, node.options.blocking_queue));
  node.host = std::make_unique<NodeHost>(*this, node.options, *node.executors.back());
  node.host->set_transport(node.transport.get());
  if (node.setup) node.setup(*node.host);
}

SimWorld::SimNode& SimWorld::node(std::string_view name) {
  const auto found = nodes_.find(name);
  if (found == nodes_.end()) throw std::invalid_argument(format("no simulated node named {}", name));
  return *found->second;
}

SimWorld::SimNode* SimWorld::by_id(NodeId id) noexcept {
  const auto found = by_id_.find(id.value());
  return found == by_id_.end() ? nullptr : found->second;
}

void SimWorld::introduce(std::string_view name, std::string principal, bool is_node) {
  auto& known = node(name);
  known.principal = std::move(principal);
  known.is_node = is_node;
}

Host& SimWorld::host(std::string_view name) {
  auto& found = node(name);
  if (!found.host) throw std::logic_error(format("simulated node {} is down", name));
  return *found.host;
}

bool SimWorld::running(std::string_view name) const {
  const auto found = nodes_.find(name);
  return found != nodes_.end() && found->second->host != nullptr;
}

// ---- time -----------------------------------------------------------------------------------------------------------------------------

std::uint64_t SimWorld::schedule(Instant when, const void* owner, std::move_only_function<void()> call) {
  const auto id = next_event_++;
  events_.emplace(EventId{when, id}, Event{owner, std::move(call)});
  event_times_.emplace(id, when);
  return id;
}

void SimWorld::cancel(std::uint64_t id) noexcept {
  const auto found = event_times_.find(id);
  if (found == event_times_.end()) return;
  events_.erase(EventId{found->second, id});
  event_times_.erase(id);
}

void SimWorld::at(Instant when, std::move_only_function<void()> call) { schedule(std::max(when, now_), nullptr, std::move(call)); }

bool SimWorld::step() {
  ++steps_;
  if (!ready_.empty()) {
    std::swap(ready_[choices_.below(ready_.size())], ready_.back());
    const Ready next = ready_.back();
    ready_.pop_back();
    if (next.cell->run(1)) {
      ready_.push_back(next);
    } else {
      next.cell->release();
    }
    return true;
  }
  if (events_.empty()) return false;
  auto first = events_.extract(events_.begin());
  event_times_.erase(first.key().second);
  now_ = std::max(now_, first.key().first);
  first.mapped().call();
  return true;
}

bool SimWorld::step_until(Instant limit) {
  if (ready_.empty() && (events_.empty() || events_.begin()->first.first > limit)) {
    now_ = std::max(now_, limit);
    return false;
  }
  return step();
}

void SimWorld::run_for(Duration duration) {
  const auto until = now_ + duration;
  while (!ready_.empty() || (!events_.empty() && events_.begin()->first.first <= until)) step();
  now_ = until;
}

bool SimWorld::run_until(const std::function<bool()>& done, Duration limit) {
  const auto until = now_ + limit;
  while (!done()) {
    if (ready_.empty() && (events_.empty() || events_.begin()->first.first > until)) {
      now_ = until;
      return done();
    }
    step();
  }
  return true;
}

Result<Message> SimWorld::ask(Host& from, const ActorRef& to, Message message, const SendOptions& options) {
  const auto answer = std::make_shared<std::optional<Result<Message>>>();
  from.ask(to, std::move(message), options, [answer](Result<Message> result) { answer->emplace(std::move(result)); });
  const auto limit = (options.timeout.count() != 0 ? options.timeout : Duration(limits::kAskDefault)) + std::chrono::seconds(1);
  if (!run_until([&] { return answer->has_value(); }, limit))
    return failed("an ask was never answered: that breaks a promise of the runtime");
  return std::move(**answer);
}

// ---- links ----------------------------------------------------------------------------------------------------------------------------

SimWorld::Link& SimWorld::link(const SimNode& a, const SimNode& b) {
  return links_[{std::min(a.id.value(), b.id.value()), std::max(a.id.value(), b.id.value())}];
}

std::size_t SimWorld::end_of(const SimNode& of, const SimNode& other) noexcept { return of.id < other.id ? 0 : 1; }

Status SimWorld::send(SimNode& from, NodeId to_id, Lane lane, ByteView envelope, const Message& body) {
  auto* to = by_id(to_id);
  if (to == nullptr || !from.host || from.executors.back()->down) return error(ErrorCode::unreachable, "no such node");
  auto& l = link(from, *to);
  const auto end = end_of(from, *to);
  if (!l.connected[end]) return error(ErrorCode::unreachable, format("no connection to {}", to->name));
  if (l.cut[end] || !l.connected[1 - end] || !to->up()) return {};  // on its way to nowhere
  if (options_.loss > 0 && network_.chance(options_.loss)) {
    at(now_, [this, &from, to] { lose(from, *to, "connection reset"); });
    return {};
  }
  const auto spread = static_cast<std::uint64_t>((options_.delay_max - options_.delay_min).count()) + 1;
  auto& last = l.last[end][static_cast<std::size_t>(lane)];
  const auto arrival = now_ + options_.delay_min + l.lag[end] + Duration(static_cast<Duration::rep>(network_.below(spread)));
  last = std::max({last, arrival, l.clogged[end]});
  schedule(last, nullptr, [this, &from, to, lane, generation = l.generation, sent = Bytes(envelope.begin(), envelope.end()), body] {
    arrive(from, *to, lane, generation, sent, body);
  });
  return {};
}

void SimWorld::arrive(SimNode& from, SimNode& to, Lane lane, std::uint64_t generation, ByteView envelope, const Message& body) {
  const auto& l = link(from, to);
  if (l.generation != generation || l.cut[end_of(from, to)] || !l.connected[end_of(to, from)] || !to.up()) return;
  // As from a socket: copied, and read with limits.
  auto body_copy = message_from_bytes(body.type(), body.bytes());
  if (!body_copy.has_value()) throw std::logic_error("a message that was sent cannot be read");
  const Host::Peer peer{from.id, from.options.incarnation, from.principal, from.is_node};
  to.host->on_message(peer, lane, envelope, std::move(*body_copy));
}

// Nothing gets through from now on; what is under way is lost, and the ends find out later.
void SimWorld::silence(SimNode& a, SimNode& b) {
  const auto generation = ++link(a, b).generation;
  const auto later = [&] {
    const auto most = static_cast<std::uint64_t>(static_cast<double>(options_.detect.count()) * options_.uneven);
    return now_ + options_.detect + (most == 0 ? Duration(0) : Duration(static_cast<Duration::rep>(network_.below(most))));
  };
  const auto notice = [this, generation](SimNode& end, SimNode& peer) {
    if (link(end, peer).generation != generation) return;
    drop(end, peer, "silent for too long");
    reconnect(end, peer);
  };
  at(later(), [notice, &a, &b] { notice(a, b); });
  at(later(), [notice, &a, &b] { notice(b, a); });
}

// The peer as it was while the link stood: a crashed one has not yet started again, or restart() would have dropped it first.
void SimWorld::drop(SimNode& end, SimNode& peer, const std::string& why) {
  auto& connected = link(end, peer).connected[end_of(end, peer)];
  if (!std::exchange(connected, false)) return;
  if (end.host) end.host->on_peer_down(peer.id, peer.options.incarnation, error(ErrorCode::unreachable, why));
}

void SimWorld::lose(SimNode& a, SimNode& b, const std::string& why) {
  auto& l = link(a, b);
  if (!l.connected[0] && !l.connected[1]) return;
  ++l.generation;
  // One end only, for now; not when the other is gone: it would never find out.
  if (a.up() && b.up() && options_.uneven > 0 && network_.chance(0.5)) {
    auto& first = network_.chance(0.5) ? a : b;
    drop(first, &first == &a ? b : a, why);
  } else {
    drop(a, b, why);
    drop(b, a, why);
  }
  reconnect(a, b);
}

void SimWorld::reconnect(SimNode& a, SimNode& b) {
  const auto generation = link(a, b).generation;
  at(now_ + options_.reconnect, [this, &a, &b, generation] {
    auto& l = link(a, b);
    if (l.generation != generation || l.cut[0] || l.cut[1] || !a.up() || !b.up() || (l.connected[0] && l.connected[1])) return;
    drop(a, b, "the connection was replaced");
    drop(b, a, "the connection was replaced");
    ++l.generation;
    l.connected = {true, true};
    l.last = {};
  });
}

void SimWorld::cut(std::string_view from, std::string_view to) {
  if (from == to) return;
  auto& a = node(from);
  auto& b = node(to);
  if (!std::exchange(link(a, b).cut[end_of(a, b)], true)) silence(a, b);
}

void SimWorld::partition(std::string_view a, std::string_view b) {
  cut(a, b);
  cut(b, a);
}

void SimWorld::clog(std::string_view from, std::string_view to, Instant until) {
  if (from == to) return;
  auto& a = node(from);
  auto& b = node(to);
  link(a, b).clogged[end_of(a, b)] = until;
}

void SimWorld::lag(std::string_view from, std::string_view to, Duration extra) {
  auto& a = node(from);
  auto& b = node(to);
  link(a, b).lag[end_of(a, b)] = extra;
}

void SimWorld::slow(std::string_view name, double factor) { node(name).slowness = factor; }

void SimWorld::heal(std::string_view a, std::string_view b) {
  auto& l = link(node(a), node(b));
  if (!l.cut[0] && !l.cut[1]) return;
  l.cut = {};
  // Messages were lost in between, so the connection does not live on even if nobody has noticed yet.
  if (l.connected[0] || l.connected[1]) {
    lose(node(a), node(b), "connection reset");
  } else {
    reconnect(node(a), node(b));
  }
}

void SimWorld::reset(std::string_view a, std::string_view b) { lose(node(a), node(b), "connection reset"); }

void SimWorld::crash(std::string_view name) {
  auto& down = node(name);
  if (!down.host) return;
  down.host->power_off();
  down.host.reset();
  for (auto& [other, peer] : nodes_) {
    if (peer.get() != &down && link(down, *peer).connected[end_of(*peer, down)]) silence(down, *peer);
  }
}

void SimWorld::kill(std::string_view name) {
  auto& down = node(name);
  if (!down.host) return;
  down.host->power_off();
  down.host.reset();
  for (auto& [other, peer] : nodes_) {
    if (peer.get() == &down) continue;
    const auto& l = link(down, *peer);
    if (l.cut[0] || l.cut[1]) continue;  // noticed like any silence
    lose(down, *peer, "the process has ended");
  }
}

void SimWorld::restart(std::string_view name) {
  auto& up = node(name);
  if (up.host) crash(name);
  for (auto& [other, peer] : nodes_) {
    if (peer.get() == &up) continue;
    drop(*peer, up, "the node has restarted");  // told with its old incarnation
    auto& l = link(up, *peer);
    l.connected = {};
    ++l.generation;
  }
  start(up);
  for (auto& [other, peer] : nodes_) {
    if (peer.get() != &up) reconnect(up, *peer);
  }
}

void SimWorld::skew(std::string_view name, Duration wall) { node(name).clock.skew = wall; }

}  // namespace falaj
