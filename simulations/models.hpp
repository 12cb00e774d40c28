// The life of a model, over and over: views, rows, a training job, registration, promotion, deployment, predictions. Each step is asked for
// until it is acknowledged; what was acknowledged must stay. All runs train on the same rows, so all must end with the same weights, and
// all versions must predict the same.
#pragma once
#include <deque>
#include <map>
#include <optional>
#include <string>

#include "messages/serving.capnp.h"
#include "messages/training.capnp.h"
#include "simulations/client.hpp"

namespace falaj::simulations {

class Models {
 public:
  Models(Cluster& cluster, Client& client, Verdict& verdict);
  void begin();
  std::function<void()> on_views;  // the views are there: rows may be written
  // The storm is over: from here a run may not fail any more, and one more whole round must succeed.
  void calm();
  [[nodiscard]] bool done() const { return calm_ && rounds_after_calm_ >= 1 && predicted_everywhere(); }
  [[nodiscard]] std::string waiting_for() const { return doing_ + (trouble_.empty() ? "" : ": " + trouble_); }
  void stop() { stopped_ = true; }

  [[nodiscard]] std::uint64_t runs() const { return runs_; }
  [[nodiscard]] std::uint64_t promotions() const { return promotions_; }
  [[nodiscard]] std::uint64_t predictions() const { return predictions_; }
  [[nodiscard]] const std::string& weights() const { return weights_; }

 private:
  using Next = void (Models::*)();
  // Sends until it is acknowledged, then goes on.
  void apply(std::string what, Message message, Next next);
  void again(Next step, Duration after);
  void apply_train_view();
  void apply_live_view();
  void put_rows();
  void run_job();
  void look_at_run();
  void promote();
  void deploy();
  void wait_ready();
  void round_done();
  void predict();
  void check_run(messages::RunInfo::Reader run);
  void check_weights(const std::string& snapshot, const std::string& digest);
  void check_prediction(const std::string& machine, const std::string& entity, messages::PredictReply::Reader reply);
  [[nodiscard]] bool predicted_everywhere() const;

  Cluster& cluster_;
  Client& client_;
  Verdict& verdict_;
  Random random_;
  std::string doing_ = "nothing yet", trouble_;
  std::uint64_t rows_put_ = 0;
  std::uint64_t round_ = 0, rounds_after_calm_ = 0;
  std::uint64_t version_ = 0;
  std::map<std::string, std::uint64_t> revisions_;  // acknowledged, by resource
  std::string weights_, expected_, expected_snapshot_;
  std::map<std::string, Bytes> outputs_;                   // of each entity, once predicted
  std::map<std::string, std::uint64_t> calm_predictions_;  // by machine
  bool calm_ = false, stopped_ = false, round_began_calm_ = false;
  std::uint64_t runs_ = 0, promotions_ = 0, predictions_ = 0;
};

}  // namespace falaj::simulations
