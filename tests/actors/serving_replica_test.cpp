// serving/replica with a real model: loading, batching, missing values, unknown categories, refusals, stopping.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "actors/serving/model.hpp"
#include "actors/serving/replica.hpp"
#include "kernels/onnx/onnx.hpp"
#include "messages/artifacts.capnp.h"
#include "messages/envelope.capnp.h"
#include "runtime/base/random.hpp"
#include "runtime/base/thread.hpp"
#include "storage/artifact_store.hpp"
#include "tests/actors/serving_support.hpp"

namespace falaj::serving {
namespace {

using namespace std::chrono_literals;
using namespace test;
using messages::ActorReady;
using messages::ArtifactInfo;
using messages::Chunk;
using messages::DataType;
using messages::DescribeModel;
using messages::Empty;
using messages::EnsureActor;
using messages::GetChunk;
using messages::GetManifest;
using messages::Infer;
using messages::InferReply;
using messages::ModelDescription;

// y = 2 x, with x missing: 100. code: the category's number, 9 when it is not known.
Bytes model_bytes() {
  kernels::Graph graph;
  graph.name = "test";
  graph.add_input("x", kernels::DType::f32, {-1, 1});
  graph.add_input("word", kernels::DType::string, {-1, 1});
  const auto fallback = graph.add_initializer("fifty", kernels::Tensor::of<float>({1}, {50.0F}));
  const auto two = graph.add_initializer("two", kernels::Tensor::of<float>({1}, {2.0F}));
  const auto missing = graph.add("IsNaN", std::vector<std::string>{"x"});
  const auto filled = graph.add("Where", std::vector<std::string>{missing, fallback, "x"});
  graph.add("Mul", std::vector<std::string>{filled, two}, {}, "y");
  graph.add(kernels::kOnnxMl, "LabelEncoder", {"word"},
            {{"keys_strings", std::vector<std::string>{"a", "b"}},
             {"values_int64s", std::vector<std::int64_t>{1, 2}},
             {"default_int64", std::int64_t{9}}},
            "code");
  graph.add_output("y", kernels::DType::f32, {-1, 1});
  graph.add_output("code", kernels::DType::i64, {-1, 1});
  return kernels::export_onnx(graph).value();
}

class FakeStore final : public ActorOf<FakeStore> {
 public:
  static constexpr std::string_view kType = "test/store";
  static void handlers(Handlers<FakeStore>& on) {
    on.message<GetManifest>(&FakeStore::manifest);
    on.message<GetChunk>(&FakeStore::chunk);
  }
  explicit FakeStore(std::shared_ptr<Bytes> content) : content_(std::move(content)) {}
  static std::string name_of(const Bytes& content) {
    return storage::ArtifactStore::id_of(storage::sha256(content),
                                         {.media_type = "onnx", .tenant = "default", .purpose = {}, .residency = {}})
        .hex();
  }
  void manifest(Context&, Msg<GetManifest> m) {
    m.reply(Message::build<ArtifactInfo>([&](ArtifactInfo::Builder b) {
      b.setDigest(m->getDigest());
      b.setBytes(content_->size());
      b.setMediaType("onnx");
      b.initOwner().setTenant("default");
      b.setContent(storage::sha256(*content_).hex());
      auto chunk = b.initChunks(1)[0];
      chunk.setDigest(storage::sha256(*content_).hex());
      chunk.setBytes(static_cast<std::uint32_t>(content_->size()));
    }));
  }
  void chunk(Context&, Msg<GetChunk> m) {
    m.reply(Message::build<Chunk>([&](Chunk::Builder b) { b.setContent(falaj::data(*content_)); }));
  }

 private:
  std::shared_ptr<Bytes> content_;
};

class FakeAgent final : public ActorOf<FakeAgent> {
 public:
  static constexpr std::string_view kType = "test/agent";
  static void handlers(Handlers<FakeAgent>& on) { on.message<ActorReady>(&FakeAgent::ready); }
  explicit FakeAgent(std::shared_ptr<int> seen) : seen_(std::move(seen)) {}
  void ready(Context&, Msg<ActorReady> m) {
    if (++*seen_ == 1) return m.refuse(error(ErrorCode::unreachable, "not yet"));
    m.reply(Message::build<Empty>());
  }

 private:
  std::shared_ptr<int> seen_;
};

template <class A, class Arg>
ChildSpec named(std::string name, Arg arg) {
  ChildSpec spec;
  spec.id = name;
  spec.name = name;
  spec.make = [arg] { return std::make_unique<A>(arg); };
  return spec;
}

struct Row {
  std::optional<float> x;
  std::optional<std::string> word;
};

// All rows give the same inputs.
Message request(const std::vector<Row>& rows) {
  return Message::build<Infer>([&](Infer::Builder b) {
    b.setModel("m");
    auto inputs = b.initInputs((rows[0].x ? 1U : 0U) + (rows[0].word ? 1U : 0U));
    unsigned next = 0;
    if (rows[0].word) {  // not in the model's order
      auto input = inputs[next++];
      input.setName("word");
      input.setType(DataType::BYTES);
      auto shape = input.initShape(2);
      shape.set(0, static_cast<std::int64_t>(rows.size()));
      shape.set(1, 1);
      auto strings = input.initStrings(static_cast<unsigned>(rows.size()));
      for (unsigned i = 0; i < rows.size(); ++i) strings.set(i, data(as_bytes(*rows[i].word)));
    }
    if (rows[0].x) {
      auto input = inputs[next++];
      input.setName("x");
      input.setType(DataType::FP32);
      auto shape = input.initShape(2);
      shape.set(0, static_cast<std::int64_t>(rows.size()));
      shape.set(1, 1);
      auto content = input.initContent(static_cast<unsigned>(rows.size() * 4));
      for (unsigned i = 0; i < rows.size(); ++i) std::memcpy(content.begin() + 4 * i, &*rows[i].x, 4);
    }
  });
}

class Replica : public testing::Test {
 protected:
  Message spec_of(const std::string& name, std::uint32_t max_batch, std::uint32_t delay_us, std::uint32_t queue_max) {
    return Message::build<EnsureActor>([&](EnsureActor::Builder b) {
      auto actor = b.initActor();
      actor.setName(name);
      auto replica = actor.initReplica();
      replica.setVersion(3);
      replica.setArtifact(FakeStore::name_of(*content_));
      auto deployment = replica.initDeployment();
      deployment.setName("m");
      deployment.setMaxBatch(max_batch);
      deployment.setMaxDelayUs(delay_us);
      deployment.setQueueMax(queue_max);
    });
  }
  ChildSpec child_of(const std::string& name, const Message& spec) {
    auto child = replica({spec, "node/agent", models_});
    child.id = child.name = name;
    return child;
  }
  void start(std::uint32_t max_batch = 8, std::uint32_t delay_us = 0, std::uint32_t queue_max = 64) {
    const auto spec = spec_of("serving/replica/m/0", max_batch, delay_us, queue_max);
    host_ = &world_.add_node("node", [this, spec](Host& host) {
      host.spawn(named<FakeStore>("artifacts/store", stored_));
      host.spawn(named<FakeAgent>("node/agent", ready_));
      host.spawn(child_of("serving/replica/m/0", spec));
    });
  }
  void start_ready(std::uint32_t max_batch = 8, std::uint32_t delay_us = 0, std::uint32_t queue_max = 64) {
    start(max_batch, delay_us, queue_max);
    ASSERT_TRUE(world_.run_until([this] { return *ready_ >= 2; }, 30s));
  }
  ActorRef ref() { return host_->find("serving/replica/m/0"); }
  Result<Message> ask(Message message, SendOptions options = {}) { return world_.ask(*host_, ref(), std::move(message), options); }
  // y of each row.
  static std::vector<float> values(const Result<Message>& answer) {
    if (!answer) {
      ADD_FAILURE() << answer.error().message;
      return {};
    }
    const auto reply = answer->open<InferReply>().value();
    const auto content = reply->getOutputs()[0].getContent();
    std::vector<float> out(content.size() / sizeof(float));
    std::memcpy(out.data(), content.begin(), content.size());
    return out;
  }
  std::uint64_t count(std::string_view name, metrics::Labels labels = {{"deployment", "m"}}) {
    return host_->metrics().counter(name, "", labels).value();
  }

  SimWorld world_{5};
  std::shared_ptr<Bytes> content_ = std::make_shared<Bytes>(model_bytes());
  std::shared_ptr<Bytes> stored_ = content_;
  std::shared_ptr<int> ready_ = std::make_shared<int>(0);
  std::shared_ptr<Models> models_ = std::make_shared<Models>();
  Host* host_ = nullptr;
};

TEST_F(Replica, LoadsTellsTheDirectoryAndAnswers) {
  start_ready();
  const auto answer = ask(request({{1.5F, "a"}, {2, "b"}}));
  EXPECT_EQ(values(answer), (std::vector<float>{3, 4}));
  const auto reply = answer->open<InferReply>().value();
  EXPECT_EQ(reply->getVersion(), 3U);
  EXPECT_EQ(reply->getRows(), 2U);
  const auto code = reply->getOutputs()[1];
  EXPECT_EQ(code.getType(), DataType::INT64);
  EXPECT_EQ(code.getContent()[0], 1);
  EXPECT_EQ(code.getShape()[0], 2);
}

TEST_F(Replica, DescribesItsModel) {
  start_ready();
  const auto answer = ask(Message::build<DescribeModel>([](DescribeModel::Builder b) { b.setModel("m"); }));
  const auto d = answer->open<ModelDescription>().value();
  EXPECT_EQ(d->getVersions()[0], 3U);
  ASSERT_EQ(d->getInputs().size(), 2U);
  EXPECT_EQ(text(d->getInputs()[1].getName()), "word");
  EXPECT_EQ(d->getInputs()[1].getType(), DataType::BYTES);
  EXPECT_EQ(d->getInputs()[0].getShape()[0], -1);
}

TEST_F(Replica, TakesMissingValuesAndCountsUnknownCategories) {
  start_ready();
  EXPECT_EQ(values(ask(request({{std::numeric_limits<float>::quiet_NaN(), "a"}}))), std::vector<float>{100});
  const auto unknown = ask(request({{std::nullopt, "zebra"}}));
  EXPECT_EQ(values(unknown), std::vector<float>{100});
  EXPECT_EQ(unknown->open<InferReply>().value()->getUnknown(), 1U);
  EXPECT_EQ(values(ask(request({{1, std::nullopt}}))), std::vector<float>{2});
  EXPECT_EQ(count("falaj_serving_unknown_categories_total", {{"deployment", "m"}, {"input", "word"}}), 1U);
}

TEST_F(Replica, RefusesWhatDoesNotFitAndSaysWhy) {
  start_ready();
  const auto refusal = [this](auto fill) {
    const auto answer = ask(Message::build<Infer>([&](Infer::Builder b) { fill(b.initInputs(1)[0]); }));
    if (answer) return std::string("accepted");
    EXPECT_EQ(answer.error().code, ErrorCode::invalid);
    return answer.error().message;
  };
  const auto shaped = [](messages::Tensor::Builder t, std::initializer_list<std::int64_t> dims, std::size_t size) {
    auto shape = t.initShape(static_cast<unsigned>(dims.size()));
    for (unsigned i = 0; i < dims.size(); ++i) shape.set(i, dims.begin()[i]);
    t.initContent(static_cast<unsigned>(size));
  };
  using testing::HasSubstr;
  EXPECT_THAT(refusal([&](auto t) { t.setName("z"); }), HasSubstr("no input 'z'"));
  const auto x = [&](DataType type, std::initializer_list<std::int64_t> dims, std::size_t size) {
    return refusal([&](auto t) {
      t.setName("x");
      t.setType(type);
      shaped(t, dims, size);
    });
  };
  EXPECT_THAT(x(DataType::FP64, {1, 1}, 8), HasSubstr("the model takes FP32"));
  EXPECT_THAT(x(DataType::FP32, {1}, 4), HasSubstr("has shape [1], the model takes [-1, 1]"));
  EXPECT_THAT(x(DataType::FP32, {1, 2}, 8), HasSubstr("shape"));
  EXPECT_THAT(x(DataType::FP32, {0, 1}, 0), HasSubstr("shape"));
  EXPECT_THAT(x(DataType::FP32, {-1, 1}, 4), HasSubstr("shape"));
  EXPECT_THAT(x(DataType::FP32, {2, 1}, 4), HasSubstr("1 elements"));
  EXPECT_THAT(x(DataType::FP32, {1, 1}, 5), HasSubstr("elements"));
  EXPECT_THAT(x(DataType::FP32, {std::int64_t{1} << 62, 1}, 4), HasSubstr("shape"));
  EXPECT_THAT(ask(infer_request("1", {1}, 9)).error().message, HasSubstr("version 3, not 9"));
  const auto twice = ask(Message::build<Infer>([&](Infer::Builder b) {
    for (auto t : b.initInputs(2)) {
      t.setName("x");
      t.setType(DataType::FP32);
      shaped(t, {1, 1}, 4);
    }
  }));
  EXPECT_THAT(twice.error().message, HasSubstr("twice"));
}

TEST_F(Replica, BatchesWhatComesWithinTheDelay) {
  start_ready(8, 20'000);
  std::vector<float> got;
  for (int i = 0; i < 6; ++i) {
    host_->ask(ref(), request({{static_cast<float>(i), "a"}}), {},
               [&](const Result<Message>& answer) { got.push_back(values(answer).at(0)); });
  }
  ASSERT_TRUE(world_.run_until([&] { return got.size() == 6; }, 1s));
  std::ranges::sort(got);
  EXPECT_EQ(got, (std::vector<float>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(count("falaj_serving_runs_total"), 1U);
  EXPECT_EQ(count("falaj_serving_rows_total"), 6U);
}

TEST_F(Replica, ItsQueueHasABound) {
  start_ready(64, 50'000, 3);
  int overloaded = 0, good = 0;
  for (int i = 0; i < 10; ++i) {
    host_->ask(ref(), request({{1, "a"}}), {}, [&](const Result<Message>& answer) {
      if (answer) ++good;
      if (!answer && answer.error().code == ErrorCode::overloaded) ++overloaded;
    });
  }
  ASSERT_TRUE(world_.run_until([&] { return good + overloaded == 10; }, 1s));
  EXPECT_EQ(good, 3);
}

TEST_F(Replica, StoppedItSendsItsQueueElsewhere) {
  start_ready(64, 900'000);
  std::optional<ErrorCode> code;
  host_->ask(ref(), request({{1, "a"}}), {},
             [&](const Result<Message>& answer) { code = answer ? ErrorCode::failed : answer.error().code; });
  world_.run_for(5ms);
  host_->stop_child("serving/replica/m/0");
  ASSERT_TRUE(world_.run_until([&] { return code.has_value(); }, 5s));
  EXPECT_EQ(*code, ErrorCode::gone);
}

// Also what is being computed, on a thread that outlives the actor.
TEST_F(Replica, StoppedItSendsWhatItIsAtElsewhere) {
  start_ready(1);
  std::vector<std::string> ends;
  for (int i = 0; i < 3; ++i) {
    host_->ask(ref(), request({{1, "a"}}), {}, [&](const Result<Message>& answer) {
      ends.emplace_back(answer ? "answered" : answer.error().code == ErrorCode::gone ? "gone" : answer.error().message);
    });
  }
  const auto runs = [&] { return count("falaj_serving_runs_total"); };
  const auto before = runs();
  world_.run_for(1us);
  host_->stop_child("serving/replica/m/0");
  ASSERT_TRUE(world_.run_until([&] { return ends.size() == 3; }, 5s));
  EXPECT_EQ(runs(), before) << "it had answered before it was stopped: the test shows nothing";
  EXPECT_EQ(ends, (std::vector<std::string>{"gone", "gone", "gone"}));
}

TEST_F(Replica, WhatCannotBeLoadedIsTriedAgainAndHurtsNobody) {
  stored_ = std::make_shared<Bytes>(to_bytes("no model"));
  content_ = stored_;
  start();
  world_.run_for(30s);
  EXPECT_EQ(*ready_, 0);
  EXPECT_EQ(ask(infer_request("1")).error().code, ErrorCode::overloaded);
  EXPECT_TRUE(host_->find("node/agent"));
}

TEST_F(Replica, OneMoreOfTheSameModelFetchesAndCompilesNothing) {
  start_ready();
  const auto spec = spec_of("serving/replica/m/1", 8, 0, 64);
  *content_ = to_bytes("the store has lost it");
  host_->spawn(child_of("serving/replica/m/1", spec));
  ASSERT_TRUE(world_.run_until([this] { return *ready_ >= 3; }, 30s));
  EXPECT_EQ(values(world_.ask(*host_, host_->find("serving/replica/m/1"), request({{1.5F, "a"}}), {})), (std::vector<float>{3}));
}

TEST(ServedModels, AreSharedByWhoHasThemAndKeptByNobodyElse) {
  const auto bytes = model_bytes();
  Models models;
  const ModelKey key{"digest", {}};
  const auto get = [&](const ModelKey& wanted, ByteView content) {
    return models.get(wanted, [&] { return Model::load(content, "test", wanted.options); });
  };
  EXPECT_EQ(models.find(key), nullptr);
  std::vector<std::shared_ptr<const Model>> got(4);
  {
    std::vector<Thread> threads;
    for (auto& mine : got) threads.emplace_back("loads", [&] { mine = get(key, bytes).value(); });
  }
  for (const auto& mine : got) EXPECT_EQ(mine, got[0]);
  EXPECT_EQ(models.find(key), got[0]);
  const ModelKey rounded{"digest", {.bf16 = true}};
  EXPECT_EQ(models.find(rounded), nullptr) << "another precision is another model";
  EXPECT_NE(get(rounded, bytes).value(), got[0]);
  got.clear();
  EXPECT_EQ(models.find(key), nullptr);
  EXPECT_FALSE(get(key, as_bytes("no model")));
  EXPECT_TRUE(get(key, bytes));
}

// y = x W: of 48 rows of 512 numbers, with threads and without; rounded only where that is asked for.
TEST(ServedModel, ThreadsChangeNoBitAndPrecisionIsAskedFor) {
  kernels::Graph graph;
  graph.add_input("x", kernels::DType::f32, {-1, 512});
  Random random(3);
  kernels::Tensor w(kernels::DType::f32, {512, 256});
  for (float& v : w.mutable_data<float>()) v = static_cast<float>(random.normal());
  graph.add("MatMul", std::vector<std::string>{"x", graph.add_initializer("w", std::move(w))}, {}, "y");
  graph.add_output("y", kernels::DType::f32, {-1, 256});
  const auto bytes = kernels::export_onnx(graph).value();
  const auto message = Message::build<Infer>([&](Infer::Builder b) {
    auto input = b.initInputs(1)[0];
    input.setName("x");
    input.setType(DataType::FP32);
    auto shape = input.initShape(2);
    shape.set(0, 48);
    shape.set(1, 512);
    auto content = input.initContent(48 * 512 * 4);
    for (std::size_t i = 0; i < 48 * 512; ++i) {
      const auto value = static_cast<float>(random.normal());
      std::memcpy(content.begin() + 4 * i, &value, 4);
    }
  });
  const auto answer = [&](const ModelOptions& options) {
    const auto model = Model::load(bytes, "product", options).value();
    Session session(model);
    const auto infer = message.view<Infer>();
    const std::vector<Part> parts = {Part{*infer, model->check(*infer).value()}};
    EXPECT_TRUE(session.run(parts).has_value());
    const auto reply = Message::build<InferReply>([&](InferReply::Builder b) { session.answer(b, *infer, 0, 48); });
    const auto content = reply.view<InferReply>()->getOutputs()[0].getContent();
    return Bytes(content.begin(), content.end());
  };
  const auto one = answer({});
  EXPECT_EQ(answer({.threads = 3}), one);
  EXPECT_NE(answer({.bf16 = true}), one);
  EXPECT_EQ(answer({.bf16 = true, .threads = 3}), answer({.bf16 = true}));
}

TEST(ServedModel, SharesARunOnlyWhereTheBatchIsTheOneFreeSize) {
  EXPECT_TRUE(Model::load(model_bytes(), "test").value()->batches());
  kernels::Graph graph;
  graph.add_input("x", kernels::DType::f32, {-1, -1});
  graph.add("Relu", std::vector<std::string>{"x"}, {}, "y");
  graph.add_output("y", kernels::DType::f32, {-1, -1});
  const auto free = Model::load(kernels::export_onnx(graph).value(), "free");
  ASSERT_TRUE(free) << free.error().message;
  EXPECT_FALSE((*free)->batches());
  EXPECT_FALSE(Model::load(as_bytes("truncated"), "bad"));
}

TEST(ServedModel, WhatNoPlanCanBeMadeOfIsRefusedWhenItIsLoaded) {
  kernels::Graph graph;
  graph.add_input("x", kernels::DType::f32, {-1});
  graph.add("NonZero", std::vector<std::string>{"x"}, {}, "y");
  graph.add_output("y", kernels::DType::i64, {1, -1});
  const auto model = Model::load(kernels::export_onnx(graph).value(), "chooser");
  ASSERT_FALSE(model);
  EXPECT_NE(model.error().message.find("NonZero"), std::string::npos) << model.error().message;
}

}  // namespace
}  // namespace falaj::serving
