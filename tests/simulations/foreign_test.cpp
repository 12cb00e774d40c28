// Programs that are no nodes, beside a simulated cluster of real actors: what they host is asked, watched, fenced and refused.
#include "actors/control/foreign.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "messages/envelope.capnp.h"
#include "messages/foreign.capnp.h"
#include "messages/governance.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "simulations/cluster.hpp"

namespace falaj::simulations {
namespace {

using namespace std::chrono_literals;
using messages::Invoke;
using messages::Invoked;

constexpr std::string_view kName = "foreign/pricing/quote";

class Everything final : public Authorizer {
 public:
  Status allow(const Scope&, std::string_view, std::string_view, std::string_view) override { return {}; }
};

// What a program runs; says whose question it was. Silent, it never answers.
class Quote final : public ActorOf<Quote> {
 public:
  static constexpr std::string_view kType = "program/quote";
  static void handlers(Handlers<Quote>& on) { on.message<Invoke>(&Quote::invoke); }
  explicit Quote(std::string who) : who_(std::move(who)) {}
  void invoke(Context&, Msg<Invoke> m) {
    if (text(m->getMethod()) == "silence") return kept_.push_back(std::move(m));
    if (text(m->getMethod()) == "refuse") return m.refuse(error(ErrorCode::conflict, "not today"));
    m.reply(Message::build<Invoked>([&](Invoked::Builder b) { b.setText(format("{} for {}", who_, m.scope()->principal)); }));
  }

 private:
  std::string who_;
  std::vector<Msg<Invoke>> kept_;
};

// An actor of a machine that watches whom it is told to.
class Watcher final : public ActorOf<Watcher> {
 public:
  static constexpr std::string_view kType = "test/watcher";
  static void handlers(Handlers<Watcher>& on) { on.message<Invoke>(&Watcher::watch); }
  explicit Watcher(std::shared_ptr<std::vector<std::string>> seen) : seen_(std::move(seen)) {}
  void watch(Context& ctx, Msg<Invoke> m) {
    ctx.watch(ctx.find(text(m->getText())));
    m.reply(Message::build<Invoked>());
  }
  void on_down(Context&, const Down& down) override { seen_->push_back(down.reason.message); }

 private:
  std::shared_ptr<std::vector<std::string>> seen_;
};

std::string principal(std::string_view path) { return format("spiffe://{}/{}", kCluster, path); }

class Programs : public ::testing::Test {
 protected:
  Programs() : cluster_(7, 3) {
    log::configure({.level = log::Level::off});
    cluster_.on_boot = [this](const std::string& machine, Host& host) {
      if (machine != "n2") return;
      ChildSpec spec;
      spec.id = spec.name = "test/watcher";
      spec.make = [seen = downs_] { return std::make_unique<Watcher>(seen); };
      host.spawn(std::move(spec));
    };
    cluster_.start_all();
    for (const auto* name : {"p1", "p2", "p3"}) {
      HostOptions base;
      base.authorizer = &everything_;
      world().add_node(
          name,
          [name](Host& host) {
            ChildSpec spec;
            spec.id = spec.name = kName;
            spec.make = [name] { return std::make_unique<Quote>(name); };
            host.spawn(std::move(spec));
          },
          base);
      world().introduce(name, principal(name == std::string_view("p3") ? "service/other" : "person/admin"), false);
    }
    EXPECT_TRUE(world().run_until([this] { return up(3); }, 10s));
  }

  SimWorld& world() { return cluster_.world(); }
  bool up(std::size_t count) {
    return std::ranges::all_of(cluster_.names(), [&](const auto& name) {
      const auto view = cluster_.view(name);
      std::size_t here = 0;
      for (const auto node : view ? view->view().getNodes() : messages::ClusterView::Reader().getNodes()) here += node.getUp() ? 1 : 0;
      return here == count;
    });
  }
  // Where the view of each machine has the name; empty: nowhere.
  bool shown_at(std::string_view machine) {
    return std::ranges::all_of(cluster_.names(), [&](const auto& name) {
      if (!cluster_.up(name)) return true;
      const auto view = cluster_.view(name);
      const auto at = view ? view->find(kName) : std::nullopt;
      return machine.empty() ? !at.has_value() : at && at->node == node_id(machine);
    });
  }
  bool comes_to(std::string_view machine, Duration within) {
    return world().run_until([&] { return shown_at(machine); }, within);
  }

  Result<Message> send(const std::string& program, const std::string& machine, std::string_view actor, Message message,
                       std::string_view purpose = {}) {
    SendOptions options;
    options.timeout = 3s;
    options.scope = std::make_shared<const Scope>(Scope{principal("person/nobody"), "", std::string(purpose), "", ""});  // what it claims
    auto& host = world().host(program);
    return world().ask(host, host.at(ActorAddress{node_id(machine), {}, {}, std::string(actor)}), std::move(message), options);
  }
  Status enter(const std::string& program, const std::string& machine, std::string_view name = kName) {
    const auto done =
        send(program, machine, "node/foreign",
             Message::build<messages::RegisterActor>([&](messages::RegisterActor::Builder b) { b.setName(std::string(name)); }));
    if (!done.has_value()) return done.error();
    return {};
  }
  static Message invoke(std::string_view method = {}, std::string_view what = {}) {
    return Message::build<Invoke>([&](Invoke::Builder b) {
      b.setMethod(std::string(method));
      b.setText(std::string(what));
    });
  }
  Result<std::string> call(const std::string& program, const std::string& machine, std::string_view method = {}) {
    FALAJ_ASSIGN(const auto answer, send(program, machine, kName, invoke(method)));
    FALAJ_ASSIGN(const auto view, answer.open<Invoked>());
    return std::string(text(view->getText()));
  }
  ErrorCode refused(const std::string& program, const std::string& machine) {
    const auto answer = call(program, machine);
    EXPECT_FALSE(answer.has_value()) << *answer;
    return answer.has_value() ? ErrorCode::failed : answer.error().code;
  }
  std::size_t audited(std::string_view verb, bool allowed, std::string_view who) {
    const auto answer =
        send("p1", "n0", "governance/log", Message::build<messages::ShowAudit>([](messages::ShowAudit::Builder b) { b.setLimit(1000); }));
    if (!answer.has_value()) return 0;
    const auto page = answer->open<messages::AuditPage>();
    std::size_t count = 0;
    for (const auto e : (*page)->getEntries())
      count += text(e.getVerb()) == verb && e.getAllowed() == allowed && text(e.getPrincipal()) == principal(who) ? 1 : 0;
    return count;
  }

  Everything everything_;
  std::shared_ptr<std::vector<std::string>> downs_ = std::make_shared<std::vector<std::string>>();
  Cluster cluster_;
};

TEST_F(Programs, WhatOneHostsIsAskedFromEverywhere) {
  EXPECT_EQ(refused("p2", "n2"), ErrorCode::not_found);
  const auto entered = enter("p1", "n1");
  ASSERT_TRUE(entered.has_value()) << entered.error().message;
  ASSERT_TRUE(comes_to("n1", 2s));
  // At the node itself, through another, and by an actor of another. The principal is the link's, whatever was claimed.
  for (const auto* machine : {"n1", "n0", "n2"})
    EXPECT_EQ(call("p2", machine).value_or("-"), "p1 for " + principal("person/admin")) << machine;
  auto& host = world().host("n2");
  const auto by_actor =
      world().ask(host, host.find(kName), invoke(),
                  {.timeout = 1s, .scope = std::make_shared<const Scope>(Scope{principal("person/admin"), "", "", "", ""})});
  EXPECT_TRUE(by_actor.has_value());
  EXPECT_EQ(call("p2", "n0", "refuse").error().code, ErrorCode::conflict);
  EXPECT_EQ(call("p2", "n0", "silence").error().code, ErrorCode::deadline);
  EXPECT_TRUE(enter("p1", "n1").has_value()) << "once more changes nothing";
  EXPECT_TRUE(world().run_until([&] { return audited("actors.register", true, "person/admin") == 1; }, 5s));
}

TEST_F(Programs, ADeadProgramsActorEndsOnceAndItsNameIsFree) {
  ASSERT_TRUE(enter("p1", "n1").has_value());
  ASSERT_TRUE(comes_to("n1", 2s));
  auto& host = world().host("n2");
  ASSERT_TRUE(world().ask(host, host.find("test/watcher"), invoke({}, kName)).has_value());
  std::optional<Result<Message>> waiting;
  host.ask(host.find(kName), invoke("silence"), {.timeout = 1h}, [&](Result<Message> answer) { waiting.emplace(std::move(answer)); });
  world().run_for(100ms);
  const auto start = world().now();
  world().crash("p1");
  ASSERT_TRUE(world().run_until([&] { return waiting.has_value() && !downs_->empty() && shown_at(""); }, 5s));
  EXPECT_LE(world().now() - start, 1500ms);
  ASSERT_FALSE(waiting->has_value());
  EXPECT_TRUE(waiting->error().code == ErrorCode::unreachable || waiting->error().code == ErrorCode::gone) << to_string(waiting->error());
  world().run_for(5s);
  EXPECT_EQ(downs_->size(), 1U);
  EXPECT_EQ(refused("p2", "n1"), ErrorCode::not_found);
  ASSERT_TRUE(enter("p2", "n0").has_value());
  ASSERT_TRUE(comes_to("n0", 2s));
  EXPECT_EQ(call("p2", "n2").value_or("-"), "p2 for " + principal("person/admin"));
}

TEST_F(Programs, ANewerIncarnationTakesTheNameAndTheOlderNeverHasItAgain) {
  ASSERT_TRUE(enter("p1", "n1").has_value());
  ASSERT_TRUE(comes_to("n1", 2s));
  auto& host = world().host("n2");
  const auto old = host.find(kName);
  ASSERT_TRUE(world().ask(host, host.find("test/watcher"), invoke({}, kName)).has_value());
  world().kill("p2");
  world().restart("p2");  // incarnation 2
  world().run_for(200ms);
  ASSERT_TRUE(enter("p2", "n0").has_value());
  ASSERT_TRUE(comes_to("n0", 2s));
  EXPECT_EQ(call("p1", "n1").value_or("-"), "p2 for " + principal("person/admin"));
  EXPECT_EQ(downs_->size(), 1U);
  const auto late = world().ask(host, old, invoke(), {.timeout = 1s});
  ASSERT_FALSE(late.has_value()) << "the old one answers";
  const auto back = enter("p1", "n1");
  ASSERT_FALSE(back.has_value());
  EXPECT_EQ(back.error().code, ErrorCode::gone) << back.error().message;
  world().kill("p2");
  ASSERT_TRUE(comes_to("", 3s));
  EXPECT_EQ(enter("p1", "n1").error().code, ErrorCode::gone) << "also when the newer one has ended";
}

TEST_F(Programs, ControlIsToldAgainWhatItForgot) {
  ASSERT_TRUE(enter("p1", "n1").has_value());
  ASSERT_TRUE(comes_to("n1", 2s));
  cluster_.kill(std::string(kControlNode));
  world().run_for(500ms);
  EXPECT_EQ(call("p2", "n2").value_or("-"), "p1 for " + principal("person/admin")) << "nodes go on with their last view";
  cluster_.restart(std::string(kControlNode));
  ASSERT_TRUE(world().run_until([&] { return up(3) && shown_at("n1"); }, 10s));
  EXPECT_EQ(call("p2", "n0").value_or("-"), "p1 for " + principal("person/admin"));
  // Its own node dies with what it runs, and another takes the program in.
  cluster_.power_off("n1");
  ASSERT_TRUE(comes_to("", 5s));
  ASSERT_TRUE(enter("p1", "n2").has_value());
  ASSERT_TRUE(comes_to("n2", 2s));
  EXPECT_EQ(call("p2", "n0").value_or("-"), "p1 for " + principal("person/admin"));
}

TEST_F(Programs, WhoMayNotIsRefusedAndAudited) {
  EXPECT_EQ(enter("p3", "n1").error().code, ErrorCode::denied);
  ASSERT_TRUE(enter("p1", "n1").has_value());
  ASSERT_TRUE(comes_to("n1", 2s));
  EXPECT_EQ(refused("p3", "n1"), ErrorCode::denied);
  EXPECT_EQ(refused("p3", "n2"), ErrorCode::denied) << "through another node";
  EXPECT_TRUE(world().run_until(
      [&] { return audited("actors.register", false, "service/other") == 1 && audited("actors.call", false, "service/other") == 2; }, 5s));
  // What only nodes may say must not be passed on for somebody else.
  const auto by_stranger = send("p3", "n2", "governance/log", Message::build<messages::AppendAudit>());
  EXPECT_EQ(by_stranger.error().code, ErrorCode::denied) << by_stranger.error().message;
  EXPECT_EQ(send("p1", "n2", "governance/log", Message::build<messages::AppendAudit>()).error().code, ErrorCode::denied);
  for (const auto* name : {"control/membership", "foreign", "foreign/", "foreign//x", "foreign/X", "foreign/..", "foreign/a/ b"})
    EXPECT_EQ(enter("p1", "n1", name).error().code, ErrorCode::invalid) << name;
  // A node registers nothing, for itself or for others.
  auto& host = world().host("n2");
  const auto wish = Message::build<messages::RegisterActor>([](messages::RegisterActor::Builder b) { b.setName("foreign/x"); });
  const SendOptions as_admin{.scope = std::make_shared<const Scope>(Scope{principal("person/admin"), "", "", "", ""})};
  for (const auto& options : {SendOptions{}, as_admin}) {
    const auto answer = world().ask(host, host.at(ActorAddress{node_id("n1"), {}, {}, "node/foreign"}), wish, options);
    ASSERT_FALSE(answer.has_value());
    EXPECT_EQ(answer.error().code, ErrorCode::denied);
  }
}

TEST_F(Programs, OneLeavesAndOneRegistersNoMoreThanItMay) {
  static_cast<void>(enter("p1", "n1", "foreign/pricing/0"));  // refused, or ended at once: what comes first is the network's choice
  world().run_for(100ms);
  EXPECT_EQ(send("p2", "n1", "foreign/pricing/0", invoke()).error().code, ErrorCode::not_found) << "a program must have what it hosts";
  for (int i = 0; i < 65; ++i) {
    ChildSpec spec;
    spec.id = spec.name = format("foreign/pricing/{}", i);
    spec.make = [] { return std::make_unique<Quote>("p1"); };
    world().host("p1").spawn(std::move(spec));
  }
  for (int i = 0; i < 64; ++i) ASSERT_TRUE(enter("p1", "n1", format("foreign/pricing/{}", i)).has_value()) << i;
  EXPECT_EQ(enter("p1", "n1", "foreign/pricing/64").error().code, ErrorCode::overloaded);
  const auto leave = [](std::string_view name) {
    return Message::build<messages::UnregisterActor>([&](messages::UnregisterActor::Builder b) { b.setName(std::string(name)); });
  };
  EXPECT_EQ(send("p2", "n1", "node/foreign", leave("foreign/pricing/3")).error().code, ErrorCode::not_found) << "somebody else's";
  EXPECT_TRUE(send("p1", "n1", "node/foreign", leave("foreign/pricing/3")).has_value());
  EXPECT_TRUE(enter("p1", "n1", "foreign/pricing/64").has_value());
}

TEST(HostedType, IsTheFirstTwoPartsOfTheName) {
  EXPECT_EQ(control::hosted_type("foreign/pricing").value_or("-"), "foreign/pricing");
  EXPECT_EQ(control::hosted_type("foreign/pricing/quote/v2").value_or("-"), "foreign/pricing");
  EXPECT_FALSE(control::hosted_type("foreign/" + std::string(64, 'a')).has_value());
  EXPECT_FALSE(control::hosted_type("training/jobs").has_value());
}

}  // namespace
}  // namespace falaj::simulations
