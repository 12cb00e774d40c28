#include "simulations/keys.hpp"

#include "messages/simulation.capnp.h"
#include "runtime/base/format.hpp"

namespace falaj::simulations {
namespace {

using namespace std::chrono_literals;
using messages::ProbeFlood;
using messages::ProbeReply;

constexpr std::size_t kKeys = 6;
constexpr std::uint16_t kPartitions = 8;
constexpr Duration kPatience = 2s;

class Holder final : public ActorOf<Holder> {
 public:
  static constexpr std::string_view kType = "sim/holder";
  static void handlers(Handlers<Holder>& on) { on.message<ProbeFlood>(&Holder::who); }
  explicit Holder(std::uint64_t epoch) : epoch_(epoch) {}

 private:
  void who(Context& ctx, Msg<ProbeFlood> m) {
    const auto self = ctx.self().address();
    m.reply(Message::build<ProbeReply>([&](ProbeReply::Builder b) {
      b.setBoot(self.node.value() ^ self.incarnation.value());
      b.setSequence(epoch_);
    }));
  }

  const std::uint64_t epoch_;
};

std::unique_ptr<Actor> make(const shards::Birth& birth) { return std::make_unique<Holder>(birth.epoch); }

class Asker final : public ActorOf<Asker> {
 public:
  static constexpr std::string_view kType = "sim/asker";
  static void handlers(Handlers<Asker>&) {}
  explicit Asker(Keys& keys) : keys_(keys) {}
  void on_start(Context& ctx) override { ctx.start(run(ctx)); }

 private:
  Task<> run(Context& ctx) {
    for (;;) {
      const auto pause = 50ms + std::chrono::milliseconds(ctx.random().below(700));
      co_await ctx.sleep(pause);
      ctx.start(ask_one(ctx, Keys::names()[ctx.random().below(Keys::names().size())]));
    }
  }

  Task<> ask_one(Context& ctx, std::string name) {
    const auto floor = keys_.floor(name);
    auto asked = ctx.ask<ProbeReply>(ctx.find(name), Message::build<ProbeFlood>(), {.timeout = kPatience});
    const auto answer = co_await asked;
    if (answer.has_value()) keys_.answered(name, floor, (*answer)->getSequence(), (*answer)->getBoot());
  }

  Keys& keys_;
};

}  // namespace

std::vector<shards::Type> Keys::types() {
  shards::Type held;
  held.name = "sim";
  held.make = make;
  held.partitions = kPartitions;
  return {std::move(held), shards::singleton("sim", std::nullopt, make)};
}

const std::vector<std::string>& Keys::names() {
  static const auto kNames = [] {
    std::vector<std::string> names = {"singleton/sim"};
    for (std::size_t i = 0; i < kKeys; ++i) names.push_back(format("shard/sim/{}", i));
    return names;
  }();
  return kNames;
}

void Keys::start(Host& host) {
  ChildSpec spec;
  spec.id = spec.name = "sim/asker";
  spec.make = [this] { return std::make_unique<Asker>(*this); };
  host.spawn(std::move(spec));
}

void Keys::answered(const std::string& name, std::uint64_t floor, std::uint64_t epoch, std::uint64_t by) {
  ++answers_;
  answered_[name] = true;
  auto& seen = seen_[name];
  if (epoch < floor)
    verdict_.fail(
        format("{}: an owner of epoch {} answered a question that was put after one of epoch {} had answered", name, epoch, floor));
  const auto [known, first] = seen.who.try_emplace(epoch, by);
  if (!first && known->second != by) verdict_.fail(format("{}: two owners of epoch {} answered", name, epoch));
  seen.epoch = std::max(seen.epoch, epoch);
}

std::string Keys::missing() const {
  for (const auto& name : names()) {
    if (!answered_.contains(name)) return name + " does not answer";
  }
  return {};
}

}  // namespace falaj::simulations
