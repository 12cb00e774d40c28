// serving/router against replicas that are scripted: retries within the deadline, one answer for each request, tenants, predictions.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "actors/serving/router.hpp"
#include "messages/features.capnp.h"
#include "tests/actors/serving_support.hpp"

namespace falaj::serving {
namespace {

using namespace std::chrono_literals;
using namespace test;
using messages::DataType;
using messages::DescribeModel;
using messages::Features;
using messages::GetFeatures;
using messages::Infer;
using messages::InferReply;
using messages::ModelDescription;
using messages::Predict;
using messages::PredictReply;

// Answers with its own name, or refuses as its script says.
struct Script {
  std::string name;
  std::optional<ErrorCode> refuse;
  bool silent = false;  // keeps requests without answering
  int asked = 0;
};

class FakeReplica final : public ActorOf<FakeReplica> {
 public:
  static constexpr std::string_view kType = "test/replica";
  static void handlers(Handlers<FakeReplica>& on) {
    on.message<Infer>(&FakeReplica::infer);
    on.message<DescribeModel>(&FakeReplica::describe);
  }
  explicit FakeReplica(std::shared_ptr<Script> script) : script_(std::move(script)) {}
  void infer(Context&, Msg<Infer> m) {
    ++script_->asked;
    if (script_->refuse) return m.refuse(error(*script_->refuse, "as told"));
    if (script_->silent) return kept_.push_back(std::move(m));
    m.reply(Message::build<InferReply>([&](InferReply::Builder b) {
      b.setModel(script_->name);
      b.setId(m->getId());
      b.setRows(1);
      b.setBatchRows(1);
      b.setOutputs(m->getInputs());
    }));
  }
  void describe(Context&, Msg<DescribeModel> m) {
    m.reply(Message::build<ModelDescription>([](ModelDescription::Builder b) {
      auto inputs = b.initInputs(2);
      inputs[0].setName("age");
      inputs[0].setType(DataType::FP32);
      inputs[1].setName("job");
      inputs[1].setType(DataType::BYTES);
      for (auto input : inputs) {
        auto shape = input.initShape(2);
        shape.set(0, -1);
        shape.set(1, 1);
      }
    }));
  }

 private:
  std::shared_ptr<Script> script_;
  std::vector<Msg<Infer>> kept_;
};

class FakeFront final : public ActorOf<FakeFront> {
 public:
  static constexpr std::string_view kType = "test/front";
  static void handlers(Handlers<FakeFront>& on) { on.message<GetFeatures>(&FakeFront::get); }
  explicit FakeFront(std::shared_ptr<std::string> purpose) : purpose_(std::move(purpose)) {}
  void get(Context&, Msg<GetFeatures> m) {
    *purpose_ = m.scope() ? m.scope()->purpose : "none";
    m.reply(Message::build<Features>([&](Features::Builder b) {
      auto fields = b.initFields(2);
      fields[0].setName("job");
      fields[1].setName("age");
      auto rows = b.initRows(m->getEntities().size());
      for (unsigned i = 0; i < rows.size(); ++i) {
        rows[i].setEntity(m->getEntities()[i]);
        if (text(m->getEntities()[i]) == "nobody") {
          rows[i].setStatus(messages::RowStatus::NOT_FOUND);
          continue;
        }
        auto values = rows[i].initValues(2);
        values[0].setString("clerk");
        values[1].setFloat64(30 + i);
      }
    }));
  }

 private:
  std::shared_ptr<std::string> purpose_;
};

template <class A, class Arg>
ChildSpec named(std::string name, Arg arg) {
  ChildSpec spec;
  spec.id = name;
  spec.name = name;
  spec.make = [arg] { return std::make_unique<A>(arg); };
  return spec;
}

class Router : public testing::Test {
 protected:
  Router() {
    gateway_ = &world_.add_node("gateway", [this](Host& host) {
      host.spawn(router({&holder_}));
      host.spawn(named<FakeFront>("features/front", purpose_));
    });
    for (int i = 0; i < 2; ++i) {
      const auto replica = "serving/replica/m/" + std::to_string(i);
      scripts_[i]->name = replica;
      replicas_.push_back({replica, "node" + std::to_string(i)});
      world_.add_node(replicas_.back().node,
                      [replica, script = scripts_[i]](Host& host) { host.spawn(named<FakeReplica>(replica, script)); });
    }
    world_.run_for(10ms);
  }

  void publish(ViewOf what) {
    holder_.set(view_of(world_, what, ++revision_));
    gateway_->set_directory(holder_.get());
  }
  void publish() { publish({.replicas = replicas_}); }

  Result<Message> ask(Message message, SendOptions options = {}) {
    return world_.ask(*gateway_, gateway_->find("serving/router"), std::move(message), options);
  }
  std::string answerer(SendOptions options = {}) {
    const auto answer = ask(infer_request("1"), options);
    return answer ? std::string(text(answer->open<InferReply>().value()->getModel())) : std::string(to_string(answer.error().code));
  }
  std::uint64_t count(std::string_view name) { return gateway_->metrics().counter(name, "", {{"deployment", "m"}}).value(); }

  SimWorld world_{11};
  cluster::ClusterViewHolder holder_;
  std::shared_ptr<std::string> purpose_ = std::make_shared<std::string>();
  std::shared_ptr<Script> scripts_[2] = {std::make_shared<Script>(), std::make_shared<Script>()};
  std::vector<test::Replica> replicas_;
  Host* gateway_ = nullptr;
  std::uint64_t revision_ = 0;
};

TEST_F(Router, SharesRequestsAmongReplicas) {
  publish();
  for (int i = 0; i < 100; ++i) EXPECT_THAT(answerer(), testing::StartsWith("serving/replica/m/"));
  EXPECT_GT(scripts_[0]->asked, 20);
  EXPECT_GT(scripts_[1]->asked, 20);
  EXPECT_EQ(count("falaj_serving_requests_total"), 100U);
  EXPECT_EQ(count("falaj_serving_inferences_total"), 100U);
}

TEST_F(Router, ADeadReplicasRequestsGoToTheOther) {
  publish();
  world_.crash("node0");
  for (int i = 0; i < 20; ++i) EXPECT_EQ(answerer(), "serving/replica/m/1");
}

TEST_F(Router, WhatWasUnderWayAtTheDeathIsAskedOfTheOther) {
  publish();
  scripts_[0]->silent = scripts_[1]->silent = true;
  int answers = 0;
  for (int i = 0; i < 50; ++i) {
    gateway_->ask(gateway_->find("serving/router"), infer_request(std::to_string(i)), {}, [&](Result<Message> answer) {
      EXPECT_TRUE(answer) << answer.error().message;
      ++answers;
    });
  }
  world_.run_for(20ms);
  EXPECT_EQ(answers, 0);
  scripts_[0]->silent = scripts_[1]->silent = false;
  world_.crash("node0");
  world_.crash("node1");
  world_.restart("node1");
  world_.run_for(1500ms);
  publish({.replicas = {replicas_[1]}});
  ASSERT_TRUE(world_.run_until([&] { return answers == 50; }, 5s));
  world_.run_for(6s);
  EXPECT_EQ(answers, 50) << "each once";
  EXPECT_EQ(count("falaj_serving_failed_total"), 0U);
}

TEST_F(Router, WaitsForAReplicaWithinTheDeadline) {
  publish({.replicas = {}});
  world_.at(world_.now() + 300ms, [this] { publish(); });
  EXPECT_THAT(answerer(), testing::StartsWith("serving/replica/m/"));
  publish({.replicas = {}});
  const auto begin = world_.now();
  EXPECT_EQ(answerer({.timeout = 200ms}), "overloaded");
  EXPECT_LE(world_.now() - begin, 210ms);
}

TEST_F(Router, AModelsWordIsFinalAndAFullOneIsNotAskedForEver) {
  publish();
  scripts_[0]->refuse = scripts_[1]->refuse = ErrorCode::invalid;
  EXPECT_EQ(answerer(), "invalid");
  EXPECT_EQ(scripts_[0]->asked + scripts_[1]->asked, 1);
  scripts_[0]->refuse = scripts_[1]->refuse = ErrorCode::overloaded;
  EXPECT_EQ(answerer(), "overloaded");
  EXPECT_EQ(scripts_[0]->asked + scripts_[1]->asked, 4);
  scripts_[0]->refuse = ErrorCode::overloaded;
  scripts_[1]->refuse.reset();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(answerer(), "serving/replica/m/1");
  EXPECT_EQ(count("falaj_serving_unserved_total"), 1U);
}

TEST_F(Router, AWishedVersionThatIsNotServedIsNotFoundAtOnce) {
  publish();
  scripts_[0]->refuse = scripts_[1]->refuse = ErrorCode::not_found;
  const auto begin = world_.now();
  EXPECT_EQ(ask(infer_request("1", {1}, 7)).error().code, ErrorCode::not_found);
  EXPECT_LT(world_.now() - begin, 100ms);
}

TEST_F(Router, UnknownDeploymentsAndOtherTenantsAreNotFound) {
  publish({.replicas = replicas_, .tenant = "bank"});
  const auto scope = [](std::string tenant) {
    auto made = std::make_shared<Scope>();
    made->principal = "spiffe://c/person/a";
    made->tenant = std::move(tenant);
    return SendOptions{.scope = std::move(made)};
  };
  // No authorizer is set: asks with a scope are refused before the router; the node's own speak for no tenant.
  EXPECT_THAT(answerer(), testing::StartsWith("serving/replica/m/"));
  EXPECT_EQ(ask(Message::build<Infer>([](Infer::Builder b) { b.setModel("other"); })).error().code, ErrorCode::not_found);
  EXPECT_EQ(answerer(scope("bank")), "denied");
}

Message predict(std::vector<std::string> entities) {
  return Message::build<Predict>([&](Predict::Builder b) {
    b.setModel("m");
    b.setId("9");
    auto list = b.initEntities(static_cast<unsigned>(entities.size()));
    for (unsigned i = 0; i < list.size(); ++i) list.set(i, entities[i]);
  });
}

TEST_F(Router, PredictsByEntityUnderTheDeploymentsPurpose) {
  publish({.replicas = replicas_, .feature_view = "people", .purpose = "scoring"});
  const auto answer = ask(predict({"a", "nobody"}));
  ASSERT_TRUE(answer) << answer.error().message;
  const auto reply = answer->open<PredictReply>().value();
  EXPECT_EQ(*purpose_, "scoring");
  EXPECT_EQ(text(reply->getId()), "9");
  ASSERT_EQ(reply->getMissing().size(), 1U);
  EXPECT_EQ(text(reply->getMissing()[0]), "nobody");
  ASSERT_EQ(reply->getOutputs().size(), 2U);  // the fake gives its inputs back
  float ages[2];
  ASSERT_EQ(reply->getOutputs()[0].getContent().size(), sizeof ages);
  std::memcpy(ages, reply->getOutputs()[0].getContent().begin(), sizeof ages);
  EXPECT_EQ(ages[0], 30);
  EXPECT_NE(ages[1], ages[1]) << "missing is NaN";
  EXPECT_EQ(as_text(bytes(reply->getOutputs()[1].getStrings()[0])), "clerk");
  EXPECT_EQ(reply->getOutputs()[1].getStrings()[1].size(), 0U);
}

TEST_F(Router, PredictNeedsAViewAndEntities) {
  publish();
  EXPECT_EQ(ask(predict({"a"})).error().code, ErrorCode::invalid);
  publish({.replicas = replicas_, .feature_view = "people"});
  EXPECT_EQ(ask(predict({})).error().code, ErrorCode::invalid);
}

}  // namespace
}  // namespace falaj::serving
