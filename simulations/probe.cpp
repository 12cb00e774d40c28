#include "simulations/probe.hpp"

#include <deque>
#include <map>
#include <memory>

#include "messages/envelope.capnp.h"
#include "messages/simulation.capnp.h"
#include "runtime/base/format.hpp"

namespace falaj::simulations {
namespace {

using namespace std::chrono_literals;
using messages::ProbeBreak;
using messages::ProbeFlood;
using messages::ProbeReply;
using ProbeMessage = messages::Probe;

constexpr std::string_view kProbe = "sim/probe";
constexpr std::string_view kCrowd = "sim/crowd";
constexpr std::string_view kFragile = "sim/fragile";
constexpr Duration kPatience = 2s;
constexpr std::size_t kCrowdMailbox = 8;
constexpr std::size_t kFlood = 24;
constexpr std::uint32_t kIntensity = 3;
constexpr Duration kPeriod = 5s;

Message reply_of(std::uint64_t boot, std::uint64_t sequence) {
  return Message::build<ProbeReply>([&](ProbeReply::Builder b) {
    b.setBoot(boot);
    b.setSequence(sequence);
  });
}

class Crowd final : public ActorOf<Crowd> {
 public:
  static constexpr std::string_view kType = "sim/crowd";
  static void handlers(Handlers<Crowd>& on) { on.message<ProbeFlood>(&Crowd::flood); }

 private:
  void flood(Context&, Msg<ProbeFlood> m) { m.reply(reply_of(0, m->getSequence())); }
};

// What happens in the nursery of one boot: a fragile child with two others behind it.
struct Nursery {
  Verdict* verdict;
  std::string machine;
  std::deque<Instant> restarts;  // those of the last kPeriod
  Instant fell;
  bool first = true;
  int stopped = kSiblings;  // the last that has stopped

  static constexpr int kSiblings = 3;

  void fail(const std::string& what) const { verdict->fail(format("nursery of {}: {}", machine, what)); }

  void started(Instant now) {
    if (std::exchange(first, false)) return;  // not a restart
    while (!restarts.empty() && restarts.front() + kPeriod < now) restarts.pop_front();
    restarts.push_back(now);
    if (restarts.size() > kIntensity)
      fail(format("a child was restarted {} times in {} ms; its supervisor allows {}", restarts.size(), kPeriod / 1ms, kIntensity));
    const Backoff b;
    const auto waited = static_cast<double>((now - fell).count());
    if (waited < static_cast<double>(b.min.count()) * (1 - b.jitter) || waited > static_cast<double>(b.max.count()) * (1 + b.jitter))
      fail(format("a child was restarted {} us after it had failed", (now - fell) / 1us));
  }

  // Siblings stop in reverse order of their start, one after the other.
  void stops(int sibling) {
    if (sibling + 1 != stopped) fail(format("child {} stopped, the one before was {}", sibling, stopped));
    stopped = sibling;
  }
};

class Fragile final : public ActorOf<Fragile> {
 public:
  static constexpr std::string_view kType = "sim/fragile";
  static void handlers(Handlers<Fragile>& on) { on.message<ProbeBreak>(&Fragile::fall); }
  explicit Fragile(std::shared_ptr<Nursery> nursery) : nursery_(std::move(nursery)) {}

 private:
  void fall(Context& ctx, Msg<ProbeBreak>) {
    nursery_->fell = ctx.now();
    throw std::runtime_error("as it was told");
  }

  const std::shared_ptr<Nursery> nursery_;
};

class Sibling final : public ActorOf<Sibling> {
 public:
  static constexpr std::string_view kType = "sim/sibling";
  static void handlers(Handlers<Sibling>&) {}
  Sibling(std::shared_ptr<Nursery> nursery, int place) : nursery_(std::move(nursery)), place_(place) {}
  void on_stop(Context&) override { nursery_->stops(place_); }

 private:
  const std::shared_ptr<Nursery> nursery_;
  const int place_;
};

class Probe final : public ActorOf<Probe> {
 public:
  static constexpr std::string_view kType = "sim/probe";
  static void handlers(Handlers<Probe>& on) { on.message<ProbeMessage>(&Probe::probed); }
  explicit Probe(ProbeOptions options) : options_(std::move(options)) {}

  void on_start(Context& ctx) override {
    boot_ = ctx.self().address().incarnation.value();
    ctx.start(run(ctx));
    ctx.start(breaks(ctx));
  }

  void on_down(Context&, const Down& down) override {
    auto& watched = watching_[down.who.node];
    if (watched == 0) fail(format("a second on_down, or one that was not asked for, of {}", to_string(down.who)));
    watched = 0;
  }

 private:
  void fail(const std::string& what) const { options_.verdict->fail(format("probe of {}: {}", options_.machine, what)); }

  void probed(Context&, Msg<ProbeMessage> m) {
    auto& last = heard_[std::string(text(m->getFrom()))];
    const auto now = std::pair(m->getBoot(), m->getSequence());
    if (now <= last)
      fail(format("message {} of boot {} of {} came after message {} of boot {}", now.second, now.first, text(m->getFrom()), last.second,
                  last.first));
    last = now;
    if (m->getTarget() != 0 && m->getTarget() != boot_) fail(format("a message for boot {} came to boot {}", m->getTarget(), boot_));
    if (m.wants_reply()) m.reply(reply_of(boot_, m->getSequence()));
  }

  Task<> run(Context& ctx) {
    for (;;) {
      const auto pause = 200ms + std::chrono::milliseconds(ctx.random().below(1600));
      co_await ctx.sleep(pause);
      if (options_.peers.empty()) continue;
      const auto& peer = options_.peers[ctx.random().below(options_.peers.size())];
      const auto what = ctx.random().below(8);
      if (what == 0) {
        for (std::size_t i = 0; i < kFlood; ++i) ctx.start(push(ctx, i));
        ctx.after(kPatience, [this](Context&) { judge_flood(); });
      } else if (what < 4) {
        const auto to = address(ctx, peer);
        ctx.tell(to, message(peer, to));
      } else {
        ctx.start(ask_one(ctx, peer));
      }
    }
  }

  ActorRef address(Context& ctx, const std::string& peer) {
    return ctx.at(ActorAddress{node_id(peer), Incarnation(known_[peer]), {}, std::string(kProbe)});
  }

  Message message(const std::string& peer, const ActorRef& to) {
    return Message::build<ProbeMessage>([&](ProbeMessage::Builder b) {
      b.setFrom(options_.machine);
      b.setBoot(boot_);
      b.setSequence(++sent_[peer]);
      b.setTarget(to.address().incarnation.value());
    });
  }

  Task<> ask_one(Context& ctx, std::string peer) {
    const auto to = address(ctx, peer);
    const auto question = message(peer, to);
    const auto begin = ctx.now();
    auto asked = ctx.ask<ProbeReply>(to, question, {.timeout = kPatience});
    const auto answer = co_await asked;
    if (ctx.now() - begin > kPatience) fail(format("an ask ended {} ms after its deadline", (ctx.now() - begin - kPatience) / 1ms));
    if (!answer) {
      if (answer.error().code == ErrorCode::gone) known_[peer] = 0;
      co_return;
    }
    if ((*answer)->getSequence() != question.view<ProbeMessage>()->getSequence()) fail("an answer to another question");
    known_[peer] = (*answer)->getBoot();
    watch(ctx, peer, (*answer)->getBoot());
  }

  // One watch at a time for each peer; the end of its boot must be told soon after another boot has spoken.
  void watch(Context& ctx, const std::string& peer, std::uint64_t boot) {
    auto& watched = watching_[node_id(peer)];
    if (watched == 0) {
      watched = boot;
      ctx.watch(address(ctx, peer));
    } else if (watched != boot) {
      ctx.after(kPatience, [this, peer, old = watched](Context&) {
        if (watching_[node_id(peer)] == old) fail(format("the end of boot {} of {} was never told", old, peer));
      });
    }
  }

  // ---- the mailbox is bounded -------------------------------------------------------------------------------------------------------

  Task<> push(Context& ctx, std::size_t i) {
    const auto question = Message::build<ProbeFlood>([&](ProbeFlood::Builder b) { b.setSequence(i); });
    auto asked = ctx.ask<ProbeReply>(ctx.find(kCrowd), question, {.timeout = kPatience / 2});
    const auto answer = co_await asked;
    ++(answer ? taken_ : refused_);
  }

  void judge_flood() {
    const auto taken = std::exchange(taken_, 0);
    const auto refused = std::exchange(refused_, 0);
    if (taken + refused == 0) return;  // judged with the flood before
    if ((taken + refused) % kFlood != 0) fail(format("{} of {} asks ended", taken + refused, kFlood));
    if (refused == 0) fail(format("a mailbox of {} took {} messages at once", kCrowdMailbox, taken));
  }

  // ---- restarts are bounded ---------------------------------------------------------------------------------------------------------

  Task<> breaks(Context& ctx) {
    const auto first = std::chrono::seconds(2 + ctx.random().below(60));
    co_await ctx.sleep(first);
    for (int i = 0; i < 8; ++i) {
      ctx.tell(ctx.find(kFragile), Message::build<ProbeBreak>());
      co_await ctx.sleep(400ms);
    }
  }

  const ProbeOptions options_;
  std::uint64_t boot_ = 0;
  std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> heard_;  // boot and sequence, by machine
  std::map<std::string, std::uint64_t> sent_;
  std::map<std::string, std::uint64_t> known_;  // boot, by machine; 0: not known
  std::map<NodeId, std::uint64_t> watching_;    // boot; 0: none
  std::size_t taken_ = 0, refused_ = 0;
};

}  // namespace

void start_probe(Host& host, ProbeOptions options) {
  const auto children = std::make_shared<Nursery>(Nursery{options.verdict, options.machine, {}, {}});
  ChildSpec crowd;
  crowd.id = crowd.name = kCrowd;
  crowd.mailbox.normal = kCrowdMailbox;
  crowd.make = [] { return std::make_unique<Crowd>(); };
  host.spawn(std::move(crowd));
  SupervisorSpec spec;
  spec.id = "sim/nursery";
  spec.supervision.intensity = kIntensity;
  spec.supervision.period = kPeriod;
  ChildSpec fragile;
  fragile.id = fragile.name = kFragile;
  fragile.make = [children, &clock = host.clock()] {
    children->started(clock.now());
    return std::make_unique<Fragile>(children);
  };
  spec.children.push_back(std::move(fragile));
  for (int i = 0; i < Nursery::kSiblings; ++i) {
    ChildSpec sibling;
    sibling.id = format("sim/sibling-{}", i);
    sibling.make = [children, i] { return std::make_unique<Sibling>(children, i); };
    spec.children.push_back(std::move(sibling));
  }
  auto nursery = supervisor(std::move(spec));
  nursery.restart = Restart::temporary;  // it gives up in its time, and nobody minds
  host.spawn(std::move(nursery));
  ChildSpec probe;
  probe.id = probe.name = kProbe;
  probe.make = [options = std::move(options)] { return std::make_unique<Probe>(options); };
  host.spawn(std::move(probe));
}

}  // namespace falaj::simulations
