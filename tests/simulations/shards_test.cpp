// Actors by key and singletons on a simulated cluster of real actors: locks, leases, moves, losses.
#include "actors/shards/shards.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <ranges>
#include <set>

#include "messages/envelope.capnp.h"
#include "messages/locks.capnp.h"
#include "messages/shards.capnp.h"
#include "messages/simulation.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "simulations/cluster.hpp"
#include "simulations/keys.hpp"

namespace falaj::simulations {
namespace {

using namespace std::chrono_literals;
using messages::AcquireLock;
using messages::LockGrant;
using messages::LockState;
using messages::ShardMap;

std::string principal(std::string_view path) { return format("spiffe://{}/{}", kCluster, path); }

struct Grant {
  std::uint64_t token = 0;
  std::uint32_t ttl_ms = 0;
};

class ShardsTest : public ::testing::Test {
 protected:
  explicit ShardsTest(std::uint64_t seed = 11) : cluster_(seed, 5, Keys::types()) {
    log::configure({.level = log::Level::off});
    cluster_.start_all();
    world().add_node("person");
    world().introduce("person", principal("person/admin"), false);
    EXPECT_TRUE(world().run_until([this] { return dealt("locks") && !owner("singleton/sim", 0).empty(); }, 20s));
    EXPECT_TRUE(world().run_until([this] { return even("locks"); }, 20s)) << "partitions are spread";
  }

  SimWorld& world() { return cluster_.world(); }
  Result<Message> send(const std::string& machine, const std::string& actor, Message message, std::string_view who = "person",
                       Duration timeout = 3s) {
    SendOptions options;
    options.timeout = timeout;
    options.scope = std::make_shared<const Scope>(Scope{principal("person/admin"), "", "", "", ""});
    auto& host = world().host(who);
    return world().ask(host, host.at(ActorAddress{node_id(machine), {}, {}, actor}), std::move(message), options);
  }

  // ---- the map ----
  struct Dealt {
    std::vector<std::string> owners;
    std::vector<std::uint64_t> epochs;
  };
  Dealt dealt_of(const std::string& type) {
    Dealt out;
    const auto answer = send("n0", "control/shards", Message::build<messages::GetShards>());
    if (!answer.has_value()) return out;
    const auto map = answer->open<ShardMap>();
    for (const auto one : (*map)->getTypes()) {
      if (text(one.getName()) != type) continue;
      for (const auto owner : one.getOwners())
        out.owners.emplace_back(owner == 0 ? std::string_view() : text((*map)->getNodes()[owner - 1U].getName()));
      for (const auto epoch : one.getEpochs()) out.epochs.push_back(epoch);
    }
    return out;
  }
  bool dealt(const std::string& type) {
    const auto map = dealt_of(type);
    return !map.owners.empty() && std::ranges::find(map.owners, "") == map.owners.end();
  }
  bool even(const std::string& type) {
    std::map<std::string, std::size_t> counts;
    for (const auto& owner : dealt_of(type).owners) ++counts[owner];
    if (counts.size() != 4 || counts.contains("n0")) return false;  // control is the reserve
    const auto [least, most] = std::ranges::minmax(counts | std::views::values);
    return most - least <= 1;
  }
  std::string owner(const std::string& type, std::size_t partition) {
    const auto map = dealt_of(type);
    return partition < map.owners.size() ? map.owners[partition] : std::string();
  }
  std::string owner_of_lock(std::string_view name) { return owner("locks", cluster::shard_partition(name, 256)); }

  // ---- locks ----
  static std::string lock(std::string_view name) { return "shard/locks/" + std::string(name); }
  static Result<Grant> grant(const Result<Message>& answer) {
    if (!answer.has_value()) return answer.error();
    FALAJ_ASSIGN(const auto view, answer->open<LockGrant>());
    return Grant{view->getToken(), view->getTtlMs()};
  }
  static Message acquire_message(std::string_view who, std::uint32_t ttl, std::uint32_t wait) {
    return Message::build<AcquireLock>([&](AcquireLock::Builder b) {
      b.setOwner(std::string(who));
      b.setTtlMs(ttl);
      b.setWaitMs(wait);
    });
  }
  Result<Grant> acquire(const std::string& machine, std::string_view name, std::string_view who, std::uint32_t ttl = 30000,
                        std::uint32_t wait = 0) {
    return grant(send(machine, lock(name), acquire_message(who, ttl, wait), "person", wait == 0 ? 3s : 30s));
  }
  Result<Grant> renew(const std::string& machine, std::string_view name, std::string_view who, std::uint64_t token) {
    return grant(send(machine, lock(name), Message::build<messages::RenewLock>([&](messages::RenewLock::Builder b) {
                        b.setOwner(std::string(who));
                        b.setToken(token);
                      })));
  }
  Status release(const std::string& machine, std::string_view name, std::string_view who, std::uint64_t token) {
    const auto done = send(machine, lock(name), Message::build<messages::ReleaseLock>([&](messages::ReleaseLock::Builder b) {
                             b.setOwner(std::string(who));
                             b.setToken(token);
                           }));
    if (!done.has_value()) return done.error();
    return {};
  }
  // Asks until it is not told to ask again; how long that took.
  Duration until_answered(const std::function<bool()>& asked, Duration limit) {
    const auto begin = world().now();
    while (!asked() && world().now() - begin < limit) world().run_for(20ms);
    return world().now() - begin;
  }

  Cluster cluster_;
};

TEST_F(ShardsTest, ALockIsOneOwnersWhereverItIsAskedFor) {
  const auto first = acquire("n1", "deploy", "a");
  ASSERT_TRUE(first.has_value()) << first.error().message;
  for (const auto* machine : {"n0", "n2", "n3", "n4"}) {
    const auto second = acquire(machine, "deploy", "b");
    ASSERT_FALSE(second.has_value());
    EXPECT_EQ(second.error().code, ErrorCode::conflict) << second.error().message;
    EXPECT_NE(second.error().message.find("'a'"), std::string::npos);
  }
  EXPECT_EQ(acquire("n4", "deploy", "a")->token, first->token) << "asked once more it is the same grant";
  EXPECT_EQ(release("n2", "deploy", "b", first->token).error().code, ErrorCode::gone);
  EXPECT_EQ(renew("n2", "deploy", "a", first->token + 1).error().code, ErrorCode::gone);
  EXPECT_TRUE(renew("n2", "deploy", "a", first->token).has_value());
  EXPECT_TRUE(release("n3", "deploy", "a", first->token).has_value());
  EXPECT_TRUE(release("n3", "deploy", "a", first->token).has_value()) << "twice is no error";
  const auto next = acquire("n0", "deploy", "b");
  ASSERT_TRUE(next.has_value());
  EXPECT_GT(next->token, first->token);
  EXPECT_EQ(renew("n2", "deploy", "a", first->token).error().code, ErrorCode::gone);
}

TEST_F(ShardsTest, ALockEndsWithItsTimeAndWhoWaitsLongestIsNext) {
  ASSERT_TRUE(acquire("n1", "x", "a", 2000).has_value());
  auto& host = world().host("person");
  std::vector<std::string> order;
  for (const std::string who : {"b", "c"}) {
    SendOptions options{.timeout = 20s, .scope = std::make_shared<const Scope>(Scope{principal("person/admin"), "", "", "", ""})};
    host.ask(host.at(ActorAddress{node_id("n2"), {}, {}, lock("x")}), acquire_message(who, 1000, 10000), options,
             [&order, who](const Result<Message>& answer) { order.push_back(answer.has_value() ? who : to_string(answer.error())); });
    world().run_for(50ms);
  }
  EXPECT_EQ(acquire("n3", "x", "d", 1000, 500).error().code, ErrorCode::conflict) << "who waits too little";
  EXPECT_TRUE(order.empty());
  world().run_for(1500ms);
  EXPECT_EQ(order, std::vector<std::string>{"b"});
  world().run_for(1000ms);
  EXPECT_EQ(order, (std::vector<std::string>{"b", "c"}));
}

TEST_F(ShardsTest, WhatIsNoLockIsRefused) {
  EXPECT_EQ(acquire("n1", "x", "").error().code, ErrorCode::invalid);
  EXPECT_EQ(acquire("n1", "x", "a", 5).error().code, ErrorCode::invalid);
  EXPECT_EQ(acquire("n1", "x", "a", 5000, 3'600'000).error().code, ErrorCode::invalid);
  EXPECT_EQ(acquire("n1", std::string(300, 'k'), "a").error().code, ErrorCode::not_found);
  EXPECT_EQ(send("n1", "shard/none/x", acquire_message("a", 1000, 0)).error().code, ErrorCode::not_found);
  EXPECT_EQ(send("n1", "shard/locks", acquire_message("a", 1000, 0)).error().code, ErrorCode::not_found);
  EXPECT_EQ(send("n1", lock("x"), Message::build<messages::GetShards>()).error().code, ErrorCode::unimplemented);
  // What takes no right that a person may have, and what only nodes say to one another.
  EXPECT_EQ(send("n1", lock("x"), Message::build<messages::GiveState>()).error().code, ErrorCode::denied);
  EXPECT_EQ(send("n1", "shards/locks", Message::build<messages::ShardCall>()).error().code, ErrorCode::denied);
  EXPECT_EQ(send("n0", "control/shards", Message::build<messages::RenewLease>()).error().code, ErrorCode::denied);
}

// A node dies: its keys answer elsewhere within two seconds, with greater tokens.
TEST_F(ShardsTest, KeysOfADeadNodeAnswerElsewhere) {
  for (int turn = 0; turn < 4; ++turn) {
    const auto name = format("job-{}", turn);
    const auto before = acquire("n0", name, "a");
    ASSERT_TRUE(before.has_value()) << before.error().message;
    const auto lost = owner_of_lock(name);
    ASSERT_NE(lost, "");
    turn % 2 == 0 ? cluster_.kill(lost) : cluster_.power_off(lost);
    Result<Grant> after = error(ErrorCode::failed, "not asked");
    const auto took = until_answered([&] { return (after = acquire("n0", name, "b")).has_value(); }, 5s);
    ASSERT_TRUE(after.has_value()) << after.error().message;
    EXPECT_LE(took, turn % 2 == 0 ? 1500ms : 3s) << lost;
    EXPECT_GT(after->token, before->token);
    EXPECT_NE(owner_of_lock(name), lost);
    cluster_.restart(lost);
    ASSERT_TRUE(world().run_until([this] { return even("locks"); }, 30s));
    EXPECT_EQ(acquire("n0", name, "c").error().code, ErrorCode::conflict) << "it moved back with its owner";
  }
}

TEST_F(ShardsTest, AnOwnerKeepsItsLockOverTheLossOfANode) {
  const auto before = acquire("n0", "kept", "a");
  ASSERT_TRUE(before.has_value());
  cluster_.kill(owner_of_lock("kept"));
  Result<Grant> after = error(ErrorCode::failed, "not asked");
  until_answered([&] { return (after = renew("n0", "kept", "a", before->token)).has_value(); }, 5s);
  ASSERT_TRUE(after.has_value()) << after.error().message;
  EXPECT_EQ(after->token, before->token);
  EXPECT_EQ(acquire("n0", "kept", "b").error().code, ErrorCode::conflict);
  ASSERT_TRUE(release("n0", "kept", "a", before->token).has_value());
  EXPECT_EQ(renew("n0", "kept", "a", before->token).error().code, ErrorCode::gone);
}

TEST_F(ShardsTest, ADrainedNodeHandsItsLocksOver) {
  std::map<std::string, Grant> grants;
  for (int i = 0; i < 40; ++i) grants[format("r{}", i)] = acquire("n0", format("r{}", i), "a", 600'000).value();
  const auto drained =
      send("n0", "control/membership", Message::build<messages::DrainNode>([](messages::DrainNode::Builder b) { b.setNode("n2"); }));
  ASSERT_TRUE(drained.has_value()) << drained.error().message;
  ASSERT_TRUE(world().run_until(
      [this] {
        const auto owners = dealt_of("locks").owners;
        return !owners.empty() && std::ranges::find(owners, "n2") == owners.end();
      },
      20s));
  cluster_.kill("n2");
  world().run_for(3s);
  for (const auto& [name, held] : grants) {
    const auto again = acquire("n0", name, "a", 600'000);
    ASSERT_TRUE(again.has_value()) << again.error().message;
    EXPECT_EQ(again->token, held.token) << name;
    EXPECT_EQ(acquire("n1", name, "b").error().code, ErrorCode::conflict);
  }
}

// Nothing is lost and nothing answers twice when control begins anew: owners go on with what they hold.
TEST_F(ShardsTest, ControlRemembersAndOwnersKeepWhatTheyHold) {
  const auto held = acquire("n1", "held", "a", 600'000);
  ASSERT_TRUE(held.has_value());
  const auto before = dealt_of("locks");
  cluster_.kill(std::string(kControlNode));
  world().run_for(3s);
  const auto away = acquire("n1", "held", "a", 600'000);
  ASSERT_FALSE(away.has_value()) << "without control no lease is renewed";
  EXPECT_EQ(away.error().code, ErrorCode::overloaded) << away.error().message;
  cluster_.restart(std::string(kControlNode));
  Result<Grant> after = error(ErrorCode::failed, "not asked");
  until_answered([&] { return (after = acquire("n1", "held", "a", 600'000)).has_value(); }, 10s);
  ASSERT_TRUE(after.has_value()) << after.error().message;
  EXPECT_EQ(after->token, held->token);
  EXPECT_EQ(dealt_of("locks").epochs, before.epochs);
}

// Cut off from control, an owner stops to answer before another begins.
TEST_F(ShardsTest, AnOwnerThatIsCutOffAnswersNoMore) {
  const auto held = acquire("n1", "cut", "a", 600'000);
  ASSERT_TRUE(held.has_value());
  const auto old = owner_of_lock("cut");
  for (const auto& other : cluster_.names()) {
    if (other == old) continue;
    cluster_.cut(old, other);
    cluster_.cut(other, old);
  }
  // A person at the node that is cut off, who asks all the time: the last answer is older than the first one elsewhere.
  Instant last_old{};
  Instant first_new{};
  const auto elsewhere = old == "n1" ? "n2" : "n1";
  for (int i = 0; i < 400 && first_new == Instant{}; ++i) {
    world().run_for(10ms);
    if (acquire(old, "cut", "a", 600'000).has_value()) last_old = world().now();
    if (acquire(elsewhere, "cut", "b").has_value()) first_new = world().now();
  }
  ASSERT_NE(first_new, Instant{});
  ASSERT_NE(last_old, Instant{}) << "it answers while its lease lasts";
  EXPECT_LT(last_old, first_new);
  for (int i = 0; i < 50; ++i) {
    world().run_for(20ms);
    EXPECT_FALSE(acquire(old, "cut", "a", 600'000).has_value());
  }
  for (const auto& other : cluster_.names()) {
    if (other != old) cluster_.heal(old, other);
  }
  Result<Grant> back = error(ErrorCode::failed, "not asked");
  until_answered([&] { return (back = acquire(old, "cut", "a", 600'000)).has_value() || back.error().code == ErrorCode::conflict; }, 10s);
  ASSERT_FALSE(back.has_value());
  EXPECT_NE(back.error().message.find("'b'"), std::string::npos) << back.error().message;
}

TEST_F(ShardsTest, ASingletonRunsOnceAndElsewhereAfterALoss) {
  const auto running = [this] {
    std::set<std::string> where;
    for (const auto& machine : cluster_.names()) {
      if (!cluster_.up(machine)) continue;
      for (const auto& actor : world().host(machine).actors()) {
        if (actor.type == "sim/holder" && actor.name.starts_with("#")) where.insert(machine);
      }
    }
    return where;
  };
  ASSERT_TRUE(world().run_until([&] { return running().size() == 1; }, 5s)) << "without being asked";
  const auto first = *running().begin();
  EXPECT_EQ(owner("singleton/sim", 0), first);
  cluster_.kill(first);
  ASSERT_TRUE(world().run_until([&] { return running().size() == 1; }, 2s));
  EXPECT_NE(*running().begin(), first);
  cluster_.restart(first);
  world().run_for(10s);
  EXPECT_EQ(running().size(), 1U);
}

}  // namespace
}  // namespace falaj::simulations
