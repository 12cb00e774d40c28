#include "simulations/models.hpp"

#include <algorithm>

#include "actors/training/learner.hpp"
#include "messages/control.capnp.h"
#include "messages/features.capnp.h"
#include "messages/registry.capnp.h"
#include "messages/serving.capnp.h"
#include "messages/training.capnp.h"
#include "runtime/base/format.hpp"

namespace falaj::simulations {

using namespace std::chrono_literals;
using messages::Apply;
using messages::Deployment;
using messages::FeatureView;
using messages::GetResource;
using messages::GetRun;
using messages::ModelVersionInfo;
using messages::Predict;
using messages::PredictReply;
using messages::PutRows;
using messages::PutRowsReply;
using messages::ResourceRecord;
using messages::RunInfo;
using messages::SetAlias;
using messages::TrainingJob;

namespace {

constexpr std::uint64_t kTrainRows = 48;
constexpr std::uint64_t kRowsAtOnce = 12;
const std::string kControlName(kControlNode);

std::string entity_of(std::uint64_t row) { return format("t{:02}", row); }

void write_view(FeatureView::Builder b, const std::string& name, const std::vector<std::pair<std::string, messages::FieldType>>& fields,
                bool personal) {
  b.setName(name);
  b.setEntity("id");
  auto list = b.initField(static_cast<unsigned>(fields.size()));
  for (unsigned i = 0; i < fields.size(); ++i) {
    list[i].setName(fields[i].first);
    list[i].setType(fields[i].second);
    list[i].setPersonal(personal && i + 1 == fields.size());
  }
  auto purposes = b.initPurposes(2);
  purposes.set(0, "scoring");
  purposes.set(1, "training");
}

Message train_view() {
  return Message::build<Apply>([](Apply::Builder b) {
    write_view(b.initResource().initFeatureView(), "train",
               {{"x1", messages::FieldType::FLOAT32},
                {"x2", messages::FieldType::FLOAT32},
                {"c", messages::FieldType::STRING},
                {"y", messages::FieldType::STRING}},
               false);
  });
}

Message live_view() {
  return Message::build<Apply>([](Apply::Builder b) {
    write_view(b.initResource().initFeatureView(), "live", {{"v", messages::FieldType::INT64}, {"who", messages::FieldType::STRING}}, true);
  });
}

Message rows_from(std::uint64_t first) {
  return Message::build<PutRows>(
      [&](PutRows::Builder b) {
        b.setView("train");
        auto rows = b.initRows(static_cast<unsigned>(kRowsAtOnce));
        for (unsigned i = 0; i < kRowsAtOnce; ++i) {
          const auto n = first + i;
          rows[i].setEntity(entity_of(n));
          rows[i].setEventTimeNs(static_cast<std::int64_t>(n) + 1);
          auto values = rows[i].initValues(4);
          const auto x1 = static_cast<float>(n * 37 % 48) / 24.0F - 1.0F;
          const auto x2 = static_cast<float>(n * 11 % 48) / 24.0F - 1.0F;
          values[0].setFloat32(x1);
          values[1].setFloat32(x2);
          values[2].setString(n % 3 == 0 ? "a" : n % 3 == 1 ? "b" : "c");
          values[3].setString(x1 + 0.5F * x2 > 0 ? "good" : "bad");
        }
      },
      512);
}

void write_job(TrainingJob::Builder b, std::uint64_t round) {
  b.setName("risk");
  b.setView("train");
  b.setLabel("y");
  b.setPositive("good");
  auto model = b.initModel();
  model.setFamily("mlp");
  model.initHidden(1).set(0, 6);
  b.setEpochs(4);
  b.setGlobalBatch(12);
  b.setMicroShards(4);
  b.setWorkers(static_cast<std::uint32_t>(1 + round % 3));
  b.setFolds(round % 2 == 0 ? 0 : 2);
  b.setTestFraction(0.25);
  b.setValidationFraction(0);
  b.setCheckpointEverySteps(2);
  b.setPurpose("training");
}

}  // namespace

Models::Models(Cluster& cluster, Client& client, Verdict& verdict)
    : cluster_(cluster), client_(client), verdict_(verdict), random_(cluster.world().random("models")) {}

void Models::begin() { apply_train_view(); }

void Models::again(Next step, Duration after) {
  auto& world = cluster_.world();
  world.at(world.now() + after + std::chrono::milliseconds(random_.below(200)), [this, step] {
    if (!stopped_) (this->*step)();
  });
}

void Models::apply(std::string what, Message message, Next next) {
  doing_ = "apply " + what;
  client_.ask_for<ResourceRecord>(
      {kControlName, "control/resources", {}, 5s}, message, [this, what, message, next](const Result<View<ResourceRecord>>& done) {
        if (stopped_) return;
        if (!done.has_value()) {
          trouble_ = to_string(done.error());
          auto& world = cluster_.world();
          world.at(world.now() + 300ms, [this, what, message, next] { apply(what, message, next); });
          return;
        }
        trouble_.clear();
        auto& revision = revisions_[what];
        if ((*done)->getRevision() < revision)
          verdict_.fail(format("{} has revision {}, {} was acknowledged", what, (*done)->getRevision(), revision));
        revision = (*done)->getRevision();
        (this->*next)();
      });
}

void Models::apply_train_view() { apply("feature_view/train", train_view(), &Models::apply_live_view); }
void Models::apply_live_view() { apply("feature_view/live", live_view(), &Models::put_rows); }

void Models::put_rows() {
  if (rows_put_ == 0 && on_views) std::exchange(on_views, nullptr)();
  if (rows_put_ == kTrainRows) return run_job();
  doing_ = "put rows";
  const auto& names = cluster_.names();
  client_.ask_for<PutRowsReply>({names[random_.below(names.size())], "features/front", {}, 5s}, rows_from(rows_put_),
                                [this](const Result<View<PutRowsReply>>& done) {
                                  if (done.has_value()) {
                                    rows_put_ += kRowsAtOnce;
                                  } else {
                                    trouble_ = to_string(done.error());
                                  }
                                  again(&Models::put_rows, done.has_value() ? 1ms : 300ms);
                                });
}

// ---- a round: run, promote, deploy ----------------------------------------------------------------------------------------------

void Models::run_job() {
  round_began_calm_ = calm_;
  ++runs_;
  auto message = Message::build<Apply>([this](Apply::Builder b) { write_job(b.initResource().initJob(), round_); });
  apply("job/risk", std::move(message), &Models::look_at_run);
}

void Models::look_at_run() {
  doing_ = "run";
  const auto run = format("risk-{}", revisions_["job/risk"]);
  auto question = Message::build<GetRun>([&](GetRun::Builder b) { b.setRun(run); });
  client_.ask_for<RunInfo>({kControlName, "training/jobs", {}, 5s}, std::move(question), [this](const Result<View<RunInfo>>& info) {
    if (stopped_) return;
    if (!info.has_value()) {
      trouble_ = to_string(info.error());
      return again(&Models::look_at_run, 500ms);
    }
    trouble_ = format("{} {}", text((*info)->getPhase()), text((*info)->getMessage()));
    check_run(**info);
  });
}

void Models::check_run(RunInfo::Reader run) {
  const auto phase = text(run.getPhase());
  if (phase == "finished") {
    version_ = run.getVersion();
    if (version_ == 0) verdict_.fail("a finished run has no version");
    check_weights(std::string(text(run.getSnapshot())), std::string(text(run.getWeightsDigest())));
    return promote();
  }
  if (phase == "failed" || phase == "stopped") {
    const auto why = text(run.getMessage());
    // Both tell the operator what to do; neither may happen without faults.
    const bool excused = !round_began_calm_ && (why.find("gave up after") != why.npos || why.find("no_space") != why.npos);
    if (!excused) verdict_.fail(format("run {} has {}: {}", text(run.getRun()), phase, why));
    ++round_;
    return again(&Models::run_job, 500ms);
  }
  again(&Models::look_at_run, 500ms);
}

// What one process without a network comes to, from the same snapshot.
void Models::check_weights(const std::string& snapshot, const std::string& digest) {
  if (expected_snapshot_ != snapshot) {
    if (!expected_snapshot_.empty()) return verdict_.fail("the same rows gave another snapshot");
    auto content = cluster_.artifact(snapshot);
    if (!content.has_value()) return;  // control is down just now; the next run tells
    const auto message = Message::build<TrainingJob>([](TrainingJob::Builder b) { write_job(b, 0); });
    const auto spec = message.view<TrainingJob>();
    const auto course = training::make_course(*spec, std::move(content).value(), {});
    if (!course.has_value()) return verdict_.fail("the snapshot cannot be read: " + course.error().message);
    auto learner = (*course)->learner(0);
    if (!learner.has_value()) return verdict_.fail(learner.error().message);
    std::vector<std::vector<float>> parts(spec->getMicroShards(), std::vector<float>((*learner)->width()));
    while (!(*learner)->done()) {
      auto good = (*learner)->contribute({0, spec->getMicroShards()}, parts);
      auto sum = parts.front();
      for (std::size_t k = 1; k < parts.size(); ++k) {
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += parts[k][i];
      }
      if (good.has_value()) good = (*learner)->commit(sum);
      if (!good.has_value()) return verdict_.fail(good.error().message);
    }
    const auto outcome = (*learner)->finish(false);
    if (!outcome.has_value()) return verdict_.fail(outcome.error().message);
    expected_ = outcome->weights_digest;
    expected_snapshot_ = snapshot;
  }
  weights_ = digest;
  if (digest != expected_) verdict_.fail(format("the weights are {}, without faults they are {}", digest, expected_));
}

void Models::promote() {
  doing_ = "promote";
  auto message = Message::build<SetAlias>([this](SetAlias::Builder b) {
    b.setModel("risk");
    b.setAlias("production");
    b.setVersion(version_);
  });
  client_.ask_for<ModelVersionInfo>({kControlName, "mlops/registry", {}, 5s}, std::move(message),
                                    [this](const Result<View<ModelVersionInfo>>& done) {
                                      if (stopped_) return;
                                      if (done.has_value()) {
                                        ++promotions_;
                                        return deploy();
                                      }
                                      trouble_ = to_string(done.error());
                                      if (done.error().code == ErrorCode::not_found && trouble_.find("version") != std::string::npos)
                                        verdict_.fail("a finished run's version is not in the registry: " + trouble_);
                                      again(&Models::promote, 300ms);
                                    });
}

void Models::deploy() {
  auto message = Message::build<Apply>([this](Apply::Builder b) {
    auto d = b.initResource().initDeployment();
    d.setName("risk");
    d.setModel("risk");
    d.setReplicas(static_cast<std::uint32_t>(1 + round_ % 2));
    d.setMaxBatch(static_cast<std::uint32_t>(4 + round_ % 5));
    d.setView("train");
    d.setPurpose("scoring");
  });
  apply("deployment/risk", std::move(message), &Models::wait_ready);
}

void Models::wait_ready() {
  doing_ = "wait for the deployment";
  auto question = Message::build<GetResource>([](GetResource::Builder b) {
    b.setKind("deployment");
    b.setName("risk");
  });
  client_.ask_for<ResourceRecord>(
      {kControlName, "control/resources", {}, 5s}, std::move(question), [this](const Result<View<ResourceRecord>>& record) {
        if (stopped_) return;
        if (!record.has_value()) {
          trouble_ = to_string(record.error());
          if (record.error().code == ErrorCode::not_found && trouble_.find("deployment") != std::string::npos)
            verdict_.fail("an acknowledged deployment is gone: " + trouble_);
          return again(&Models::wait_ready, 500ms);
        }
        if ((*record)->getRevision() < revisions_["deployment/risk"]) verdict_.fail("an acknowledged change of a deployment is lost");
        trouble_ = format("{} {}", text((*record)->getStatus().getPhase()), text((*record)->getStatus().getMessage()));
        if (text((*record)->getStatus().getPhase()) != "ready") return again(&Models::wait_ready, 500ms);
        round_done();
      });
}

void Models::round_done() {
  if (round_began_calm_) ++rounds_after_calm_;
  const bool first = outputs_.empty() && predictions_ == 0;
  ++round_;
  if (first) predict();
  again(&Models::run_job, calm_ ? 2s : 5s);
}

void Models::calm() { calm_ = true; }

// ---- predictions ------------------------------------------------------------------------------------------------------------------

void Models::predict() {
  if (stopped_) return;
  again(&Models::predict, 100ms + std::chrono::milliseconds(random_.below(400)));
  const auto gateways = cluster_.with(messages::Role::GATEWAY);
  const auto& machine = gateways[random_.below(gateways.size())];
  const auto entity = entity_of(random_.below(kTrainRows));
  auto message = Message::build<Predict>([&](Predict::Builder b) {
    b.setModel("risk");
    b.initEntities(1).set(0, entity);
  });
  client_.ask_for<PredictReply>({machine, "serving/router", {}, 3s}, std::move(message),
                                [this, machine, entity](const Result<View<PredictReply>>& reply) {
                                  if (reply.has_value()) check_prediction(machine, entity, **reply);
                                });
}

void Models::check_prediction(const std::string& machine, const std::string& entity, PredictReply::Reader reply) {
  ++predictions_;
  if (calm_) ++calm_predictions_[machine];
  if (reply.getMissing().size() != 0) return verdict_.fail(format("the row of {} was acknowledged, a prediction misses it", entity));
  Bytes content;
  for (const auto tensor : reply.getOutputs()) {
    const auto part = bytes(tensor.getContent());
    content.insert(content.end(), part.begin(), part.end());
  }
  if (content.empty()) return verdict_.fail("a prediction without an output");
  const auto [known, first] = outputs_.try_emplace(entity, content);
  if (!first && known->second != content)
    verdict_.fail(format("the prediction for {} has changed, though rows and weights have not", entity));
}

bool Models::predicted_everywhere() const {
  const auto gateways = cluster_.with(messages::Role::GATEWAY);
  return std::ranges::all_of(gateways, [this](const auto& machine) { return calm_predictions_.contains(machine); });
}

}  // namespace falaj::simulations
