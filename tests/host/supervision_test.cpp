// Supervision on virtual time: who is restarted, in which order, how often, and what happens when it is too often.
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/host/sim_host.hpp"
#include "tests/host/fixtures.hpp"

namespace falaj {
namespace {

using namespace test;

// Writes "+id" when it starts and "-id" when it stops in order; ends as it is told.
class Part : public ActorOf<Part> {
 public:
  static constexpr std::string_view kType = "test/part";
  Part(std::string id, std::shared_ptr<Journal> journal) : id_(std::move(id)), journal_(std::move(journal)) {}
  static void handlers(Handlers<Part>& on) { on.message<Do>(&Part::act); }
  void on_start(Context& ctx) override {
    journal_->write("+" + id_);
    if (id_ == "broken") throw std::runtime_error("cannot start");
    if (id_ == "parent") {
      for (const auto* name : {"p1", "p2"}) {
        ChildSpec spec;
        spec.id = name;
        spec.make = [name, journal = journal_] { return std::make_unique<Part>(name, journal); };
        ctx.spawn(spec);
      }
    }
  }
  void on_stop(Context&) override { journal_->write("-" + id_); }
  void act(Context& ctx, Msg<Do> m) {
    const auto what = text(m->getWhat());
    if (what == "stop") ctx.stop();
    if (what == "fail") ctx.fail(failed("told to"));
    if (what == "throw") throw std::runtime_error("told to");
    if (what == "stop child") ctx.stop_child("p1");
  }

 private:
  std::string id_;
  std::shared_ptr<Journal> journal_;
};

ChildSpec part(const std::string& id, const std::shared_ptr<Journal>& journal, Restart restart = Restart::permanent) {
  ChildSpec spec;
  spec.id = id;
  spec.name = id;
  spec.restart = restart;
  spec.make = [id, journal] { return std::make_unique<Part>(id, journal); };
  return spec;
}

using Lines = std::vector<std::string>;

struct Tree {
  SimWorld world{11};
  Host& host = world.add_node("n");
  std::shared_ptr<Journal> journal = std::make_shared<Journal>();
  void start(SupervisorSpec spec) {
    host.spawn(supervisor(std::move(spec)));
    world.run_for(1ms);
  }
  void tell(const std::string& who, std::string_view what) {
    const auto ref = host.find(who);
    ASSERT_TRUE(ref) << who << " is not there";
    host.tell(ref, do_this(what));
    world.run_for(1s);
  }
};

TEST(Supervision, Matrix) {
  for (const auto strategy : {Strategy::one_for_one, Strategy::one_for_all, Strategy::rest_for_one}) {
    for (const auto restart : {Restart::permanent, Restart::transient, Restart::temporary}) {
      for (const std::string exit : {"stop", "fail", "throw"}) {
        SCOPED_TRACE(format("strategy {} restart {} exit {}", static_cast<int>(strategy), static_cast<int>(restart), exit));
        Tree tree;
        SupervisorSpec spec;
        spec.id = "s";
        spec.supervision.strategy = strategy;
        for (const auto* id : {"a", "b", "c"}) spec.children.push_back(part(id, tree.journal, restart));
        tree.start(spec);
        EXPECT_EQ(tree.journal->lines(), (Lines{"+a", "+b", "+c"}));
        tree.journal->clear();
        tree.tell("b", exit);
        Lines expected;
        if (exit != "throw") expected.emplace_back("-b");
        if (restart == Restart::permanent || (restart == Restart::transient && exit != "stop")) {
          if (strategy != Strategy::one_for_one) expected.emplace_back("-c");
          if (strategy == Strategy::one_for_all) expected.insert(expected.end(), {"-a", "+a"});
          expected.emplace_back("+b");
          if (strategy != Strategy::one_for_one) expected.emplace_back("+c");
        } else {
          EXPECT_FALSE(tree.host.find("b"));
        }
        EXPECT_EQ(tree.journal->lines(), expected);
      }
    }
  }
}

TEST(Supervision, GroupRestartLeavesTemporaryOutAndBringsEndedTransientBack) {
  Tree tree;
  SupervisorSpec spec;
  spec.id = "s";
  spec.supervision.strategy = Strategy::one_for_all;
  spec.children = {part("a", tree.journal, Restart::temporary), part("b", tree.journal, Restart::transient), part("c", tree.journal)};
  tree.start(spec);
  tree.tell("b", "stop");
  tree.journal->clear();
  tree.tell("c", "fail");
  EXPECT_EQ(tree.journal->lines(), (Lines{"-c", "-a", "+b", "+c"}));
}

struct Significant : Tree {
  // Children a, b and c, of which the first two are significant; not restarted itself.
  Significant(AutoShutdown when, Restart restart) {
    SupervisorSpec spec;
    spec.id = "s";
    spec.supervision.auto_shutdown = when;
    spec.children = {part("a", journal, restart), part("b", journal, restart), part("c", journal)};
    spec.children[0].significant = spec.children[1].significant = true;
    auto child = supervisor(std::move(spec));
    child.restart = Restart::transient;
    host.spawn(std::move(child));
    world.run_for(1ms);
    journal->clear();
  }
};

TEST(Supervision, AnySignificantChildThatEndsTakesTheRestWithIt) {
  Significant tree(AutoShutdown::any_significant, Restart::transient);
  tree.tell("a", "stop");
  EXPECT_EQ(tree.journal->lines(), (Lines{"-a", "-c", "-b"}));
  EXPECT_FALSE(tree.host.find("c"));
}

TEST(Supervision, OneThatIsRestartedOrStoppedByOrderIsNotAnEnd) {
  Significant tree(AutoShutdown::any_significant, Restart::transient);
  tree.tell("a", "fail");
  tree.tell("c", "stop");  // permanent, and not significant
  EXPECT_EQ(tree.journal->lines(), (Lines{"-a", "+a", "-c", "+c"}));
}

TEST(Supervision, ATemporarySignificantChildCountsWhenItFails) {
  Significant tree(AutoShutdown::any_significant, Restart::temporary);
  tree.tell("b", "throw");
  EXPECT_EQ(tree.journal->lines(), (Lines{"-c", "-a"}));
}

TEST(Supervision, AllSignificantWaitsForTheLast) {
  Significant tree(AutoShutdown::all_significant, Restart::transient);
  tree.tell("a", "stop");
  EXPECT_EQ(tree.journal->lines(), (Lines{"-a"}));
  tree.tell("b", "stop");
  EXPECT_EQ(tree.journal->lines(), (Lines{"-a", "-b", "-c"}));
}

TEST(Supervision, IntensityIsTheNumberThatIsStillAllowed) {
  Tree tree;
  SupervisorSpec inner;
  inner.id = "inner";
  inner.supervision.intensity = 3;
  inner.supervision.period = 100s;
  inner.children = {part("a", tree.journal)};
  SupervisorSpec outer;
  outer.id = "outer";
  outer.children = {supervisor(inner), part("other", tree.journal)};
  tree.start(outer);
  const auto supervisor_id = [&] {
    for (const auto& info : tree.host.actors()) {
      if (info.name == "inner") return info.id;
    }
    return ActorId{};
  };
  const auto before = supervisor_id();
  for (int i = 0; i < 3; ++i) tree.tell("a", "fail");
  EXPECT_EQ(supervisor_id(), before) << "three restarts in the period are allowed";
  tree.tell("a", "fail");
  EXPECT_NE(supervisor_id(), before) << "the fourth fails the supervisor, which its own supervisor restarts";
  EXPECT_TRUE(tree.host.find("a"));
  EXPECT_EQ(tree.journal->count("+other"), 1U);
}

TEST(Supervision, RestartsOlderThanThePeriodDoNotCount) {
  Tree tree;
  SupervisorSpec spec;
  spec.id = "s";
  spec.supervision.intensity = 2;
  spec.supervision.period = 10s;
  spec.children = {part("a", tree.journal)};
  tree.start(spec);
  const auto before = tree.host.actors().size();
  for (int i = 0; i < 20; ++i) {
    tree.tell("a", "throw");
    tree.world.run_for(5s);
  }
  EXPECT_EQ(tree.journal->count("+a"), 21U);
  EXPECT_EQ(tree.host.actors().size(), before);
  for (const auto& info : tree.host.actors()) {
    EXPECT_EQ(info.restarts, info.name == "a" ? 20U : 0U) << info.name;
  }
}

TEST(Supervision, BackoffGrowsWithinItsEnvelope) {
  Tree tree;
  SupervisorSpec spec;
  spec.id = "s";
  spec.supervision.intensity = 100;
  spec.supervision.period = 1000s;
  spec.supervision.backoff = {.min = 100ms, .max = 2s, .factor = 2, .jitter = 0.2};
  spec.children = {part("a", tree.journal)};
  tree.start(spec);
  for (int i = 0; i < 8; ++i) {
    tree.host.tell(tree.host.find("a"), do_this("fail"));
    const auto failed_at = tree.world.now();
    ASSERT_TRUE(tree.world.run_until([&] { return tree.journal->count("+a") == static_cast<std::size_t>(i) + 2; }, 10s));
    const double waited = std::chrono::duration<double>(tree.world.now() - failed_at).count();
    const double base = std::min(0.1 * (1 << i), 2.0);
    EXPECT_GE(waited, base * 0.8 - 1e-6) << i;
    EXPECT_LE(waited, base * 1.2 + 1e-6) << i;
  }
}

TEST(Supervision, RootEscalatesOnceToTheNode) {
  Tree tree;
  int fatal = 0;
  std::string why;
  tree.host.on_fatal([&](const Error& e) {
    ++fatal;
    why = e.message;
  });
  tree.host.spawn(part("broken", tree.journal));
  tree.world.run_for(60s);
  EXPECT_EQ(fatal, 1);
  EXPECT_NE(why.find("broken"), std::string::npos) << why;
  EXPECT_EQ(tree.journal->count("+broken"), 6U) << "the first start and five restarts";
  EXPECT_TRUE(tree.host.actors().empty());
  EXPECT_THROW(tree.host.spawn(part("late", tree.journal)), std::logic_error);
}

TEST(Supervision, FailedStartStopsWhatHadStartedInReverse) {
  Tree tree;
  SupervisorSpec spec;
  spec.id = "s";
  spec.children = {part("a", tree.journal), part("b", tree.journal), part("broken", tree.journal), part("never", tree.journal)};
  auto child = supervisor(spec);
  child.restart = Restart::temporary;
  tree.host.spawn(child);
  tree.world.run_for(1s);
  EXPECT_EQ(tree.journal->lines(), (Lines{"+a", "+b", "+broken", "-b", "-a"}));
}

TEST(Supervision, ShutdownIsInReverseAndChildrenGoBeforeTheirParent) {
  Tree tree;
  SupervisorSpec spec;
  spec.id = "s";
  spec.children = {part("a", tree.journal), part("parent", tree.journal), part("c", tree.journal)};
  tree.start(spec);
  EXPECT_EQ(tree.journal->lines(), (Lines{"+a", "+parent", "+p1", "+p2", "+c"}));
  tree.journal->clear();
  EXPECT_TRUE(tree.host.shutdown(10s).empty());
  EXPECT_EQ(tree.journal->lines(), (Lines{"-c", "-p2", "-p1", "-parent", "-a"}));
}

TEST(Supervision, StopChildForgetsIt) {
  Tree tree;
  tree.host.spawn(part("parent", tree.journal));
  tree.world.run_for(1ms);
  tree.journal->clear();
  tree.tell("parent", "stop child");
  tree.world.run_for(10s);
  EXPECT_EQ(tree.journal->lines(), (Lines{"-p1"}));
  tree.host.stop_child("parent");
  tree.world.run_for(10s);
  EXPECT_EQ(tree.journal->lines(), (Lines{"-p1", "-p2", "-parent"}));
  tree.host.spawn(part("parent", tree.journal));  // the id and the name are free again
}

TEST(Supervision, ZeroShutdownIsABrutalKill) {
  Tree tree;
  auto spec = part("a", tree.journal);
  spec.shutdown = Duration::zero();
  tree.host.spawn(spec);
  tree.world.run_for(1ms);
  tree.host.stop_child("a");
  tree.world.run_for(1ms);
  EXPECT_EQ(tree.journal->lines(), (Lines{"+a"})) << "no on_stop";
  EXPECT_FALSE(tree.host.find("a"));
}

TEST(Supervision, BadSpecsThrowBeforeAnythingStarts) {
  const auto journal = std::make_shared<Journal>();
  SupervisorSpec spec;
  spec.id = "s";
  spec.children = {part("a", journal), part("a", journal)};
  EXPECT_THROW(supervisor(spec), std::invalid_argument);
  spec.children = {part("a", journal)};
  spec.supervision.period = Duration::zero();
  EXPECT_THROW(supervisor(spec), std::invalid_argument);
  spec.supervision = {};
  spec.supervision.backoff.jitter = 1;
  EXPECT_THROW(supervisor(spec), std::invalid_argument);
  spec.supervision = {};
  spec.children[0].make = nullptr;
  EXPECT_THROW(supervisor(spec), std::invalid_argument);
  Tree tree;
  tree.host.spawn(part("a", journal));
  EXPECT_THROW(tree.host.spawn(part("a", journal)), std::invalid_argument);
  auto same_name = part("b", journal);
  same_name.name = "a";
  EXPECT_THROW(tree.host.spawn(same_name), std::invalid_argument);
  same_name.name.clear();
  EXPECT_NO_THROW(tree.host.spawn(same_name)) << "a refused spawn leaves nothing behind";
}

}  // namespace
}  // namespace falaj
