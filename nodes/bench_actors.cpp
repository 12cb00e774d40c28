// `falaj bench actors`: the runtime on one node. Every figure counts messages as their receiver sees them.
#include <atomic>

#include "messages/bench.capnp.h"
#include "nodes/bench.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/process.hpp"
#include "runtime/base/random.hpp"
#include "runtime/base/thread.hpp"
#include "runtime/host/host.hpp"

namespace falaj::nodes {
namespace {

using messages::Ball;
using messages::Tally;

constexpr std::uint64_t kRing = 1000;
constexpr std::uint64_t kSenders = 8;
constexpr std::uint64_t kBurst = 256;    // tells before an ask that waits until they are counted
constexpr std::uint64_t kIdle = 50'000;  // spawned at once

Message ball(std::uint64_t left) {
  return Message::build<Ball>([left](Ball::Builder b) { b.setLeft(left); }, 3);
}

template <class A, class... Arguments>
ChildSpec child(std::string name, Arguments... arguments) {
  ChildSpec spec;
  spec.id = spec.name = std::move(name);
  spec.make = [arguments...] { return std::make_unique<A>(arguments...); };
  return spec;
}

// Passes the ball on to the next one by tell.
class Player final : public ActorOf<Player> {
 public:
  static constexpr std::string_view kType = "bench/player";
  static void handlers(Handlers<Player>& on) { on.message<Ball>(&Player::ball_came); }
  Player(std::string next, Gate** done) : next_(std::move(next)), done_(done) {}
  void ball_came(Context& ctx, Msg<Ball> m) {
    if (m->getLeft() == 0) return (*done_)->open();
    if (!peer_) peer_ = ctx.find(next_);
    ctx.tell(peer_, ball(m->getLeft() - 1));
  }
  void on_stop(Context&) override { peer_ = {}; }

 private:
  std::string next_;
  Gate** done_;
  ActorRef peer_;
};

class Counter final : public ActorOf<Counter> {
 public:
  static constexpr std::string_view kType = "bench/counter";
  static void handlers(Handlers<Counter>& on) { on.message<Ball>(&Counter::count); }
  void count(Context&, Msg<Ball> m) {
    ++seen_;
    if (m.wants_reply()) m.reply(Message::build<Tally>([this](Tally::Builder b) { b.setMessages(seen_); }, 4));
  }

 private:
  std::uint64_t seen_ = 0;
};

// Sends in bursts and goes on when they are counted: mailboxes are bounded.
class Sender final : public ActorOf<Sender> {
 public:
  static constexpr std::string_view kType = "bench/sender";
  static void handlers(Handlers<Sender>& on) { on.message<Ball>(&Sender::send); }
  Task<> send(Context& ctx, Msg<Ball> m) {
    const auto to = ctx.find("counter");
    for (auto left = m->getLeft(); left > 0;) {
      const auto burst = std::min(left, kBurst);
      for (std::uint64_t i = 1; i < burst; ++i) ctx.tell(to, ball(i));
      auto counted = co_await ctx.ask<Tally>(to, ball(0));
      if (!counted.has_value()) co_return m.refuse(std::move(counted).error());
      left -= burst;
    }
    m.reply(Message::build<Tally>());
  }
};

class Idle final : public ActorOf<Idle> {
 public:
  static constexpr std::string_view kType = "bench/idle";
  static void handlers(Handlers<Idle>& on) { on.message<Ball>(&Idle::ignore); }
  Idle(std::atomic<std::uint64_t>* left, Gate* done) : left_(left), done_(done) {}
  void on_start(Context&) override {
    if (left_->fetch_sub(1) == 1) done_->open();
  }
  void ignore(Context&, Msg<Ball>) {}

 private:
  std::atomic<std::uint64_t>* left_;
  Gate* done_;
};

// Supervises what it spawns.
class Spawner final : public ActorOf<Spawner> {
 public:
  static constexpr std::string_view kType = "bench/spawner";
  static void handlers(Handlers<Spawner>& on) { on.message<Ball>(&Spawner::spawn); }
  Spawner(std::atomic<std::uint64_t>* left, Gate* done) : left_(left), done_(done) {}
  void spawn(Context& ctx, Msg<Ball> m) {
    for (std::uint64_t i = 0; i < m->getLeft(); ++i) {
      ChildSpec spec;
      spec.id = std::to_string(i);
      spec.make = [left = left_, done = done_] { return std::make_unique<Idle>(left, done); };
      ctx.spawn(std::move(spec));
    }
  }

 private:
  std::atomic<std::uint64_t>* left_;
  Gate* done_;
};

class Local {
 public:
  explicit Local(const BenchPlan& plan) : plan_(plan) {
    HostOptions options;
    options.node_name = "bench";
    options.seed = entropy_seed();
    options.threads = hardware_threads();
    options.clock = &plan.clock;
    options.metrics = &metrics_;
    host_ = make_caf_host(options);
  }
  ~Local() { host_->shutdown(std::chrono::minutes(1)); }
  Local(const Local&) = delete;
  Local& operator=(const Local&) = delete;

  Status run(Figures& out) {
    for (const auto* name : {"ping", "pong"})
      host_->spawn(child<Player>(name, std::string(name) == "ping" ? std::string("pong") : std::string("ping"), &gate_));
    FALAJ_ASSIGN(out["ping_pong"], rate(plan_, "ping_pong", [this](std::uint64_t n) { return play("ping", n); }));
    ChildSpec counter = child<Counter>("counter");
    counter.mailbox.normal = kSenders * kBurst;
    host_->spawn(std::move(counter));
    for (std::uint64_t i = 0; i < kSenders; ++i) host_->spawn(child<Sender>(format("sender{}", i)));
    FALAJ_ASSIGN(out["fan_in"], rate(plan_, "fan_in", [this](std::uint64_t n) { return flood(n); }));
    for (std::uint64_t i = 0; i < kRing; ++i) host_->spawn(child<Player>(format("ring{}", i), format("ring{}", (i + 1) % kRing), &gate_));
    FALAJ_ASSIGN(out["ring"], rate(plan_, "ring", [this](std::uint64_t n) { return play("ring0", n); }));
    return idle(out);  // last: ending so many actors takes a while
  }

 private:
  Status play(std::string_view first, std::uint64_t messages) {
    Gate done;
    gate_ = &done;
    host_->tell(host_->find(first), ball(messages));
    return done.wait() ? Status{} : failed("the ball was lost");
  }

  Status flood(std::uint64_t messages) {
    std::atomic<std::uint64_t> open{kSenders};
    std::atomic<bool> refused{false};
    Gate done;
    SendOptions patient;
    patient.timeout = std::chrono::minutes(5);
    for (std::uint64_t i = 0; i < kSenders; ++i) {
      const auto share = messages / kSenders + (i < messages % kSenders ? 1 : 0);
      host_->ask(host_->find(format("sender{}", i)), ball(share), patient, [&](const Result<Message>& answer) {
        if (!answer) refused = true;
        if (open.fetch_sub(1) == 1) done.open();
      });
    }
    return done.wait() && !refused ? Status{} : failed("messages were refused");
  }

  Status idle(Figures& out) {
    std::vector<double> rates;
    std::vector<double> bytes;
    for (unsigned round = 0; round < plan_.rounds; ++round) {
      left_ = kIdle;
      auto& done = spawned_[round % spawned_.size()];
      auto spec = child<Spawner>(format("spawner{}", round), &left_, &done);
      spec.shutdown = std::chrono::minutes(1);
      const auto spawner = host_->spawn(std::move(spec));
      const auto before = resident_bytes();
      const auto begin = plan_.clock.now();
      host_->tell(spawner, ball(kIdle));
      if (!done.wait()) return failed("not all actors have started");
      rates.push_back(static_cast<double>(kIdle) / std::chrono::duration<double>(plan_.clock.now() - begin).count());
      bytes.push_back(static_cast<double>(resident_bytes() - before) / static_cast<double>(kIdle));
    }
    out["spawn"] = median(rates);
    out["idle_actor_bytes"] = median(bytes);
    say(format("spawn: {:.4g} a second; an idle actor takes {:.0f} bytes", out["spawn"], out["idle_actor_bytes"]));
    return {};
  }

  const BenchPlan& plan_;
  metrics::Registry metrics_;
  Gate* gate_ = nullptr;  // of the ball that is under way
  std::atomic<std::uint64_t> left_{0};
  std::array<Gate, 16> spawned_;
  std::unique_ptr<Host> host_;
};

}  // namespace

Status bench_actors(const BenchPlan& plan) {
  Figures ours;
  if (plan.pin) FALAJ_TRY(keep_to_processor(0));
  FALAJ_TRY(Local(plan).run(ours));
  const auto peers = run_peers(plan, "actors");
  print_figures(
      plan,
      {{"ping_pong", "messages/s"}, {"fan_in", "messages/s"}, {"ring", "messages/s"}, {"spawn", "actors/s"}, {"idle_actor_bytes", "bytes"}},
      ours, peers);
  return {};
}

}  // namespace falaj::nodes
