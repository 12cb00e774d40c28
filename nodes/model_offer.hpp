// A compressed model is offered only when it was measured: smaller or faster, as asked, and not much less accurate. This is the comparison
// that `falaj model prune` and `falaj model distill` make, and the report of it.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "nodes/model_training.hpp"

namespace falaj::nodes {

struct OfferArguments {
  std::vector<std::string> test_inputs;  // NAME=FILE; empty: what is trained on is what is measured
  std::string test_labels;
  double budget = 0.01;
  std::string want;  // smaller, packed, faster, any
  std::int64_t rows = 64;
  double seconds = 0.5;
  std::string report;
};
void add_offer_options(CLI::App& command, OfferArguments& a);
Status check(const OfferArguments& a);

// The rows that models are measured on; loss and logits are those of the training.
Result<TrainingData> read_test_data(const OfferArguments& a, const TrainingArguments& training);

struct ModelFigures {
  std::size_t parameters = 0;
  std::uint64_t bytes = 0;         // of the ONNX file
  std::uint64_t packed_bytes = 0;  // of that, deflated: zeros take hardly any place
  double p50_us = 0;               // of an answer for `rows` rows
  kernels::Evaluation evaluation;
};
struct Measured {
  ModelFigures before, after;
  double loss_of_accuracy = 0;  // relative: of accuracy, or more RMSE; negative: better
  bool offered = false;
  std::string why_not;
};
struct Candidate {
  const kernels::Graph& graph;
  const TrainingData& data;
  const std::string& logits;  // as of --logits
};
// Answers of both are timed in turns, so that what else the machine does troubles both alike.
Result<Measured> compare_models(const Candidate& before, const Candidate& after, const TrainingArguments& training,
                                const OfferArguments& a);

std::string figures_json(const ModelFigures& figures);
std::string offer_json(const Measured& measured, const OfferArguments& a);  // "before":{...},"after":{...},...  without braces around it
std::string offer_table(const Measured& measured);
// Prints the report, writes it, and the model if it is offered; else ends with `conflict` and why not.
Status hand_over(const std::string& json, const std::string& table, const Measured& measured, const OfferArguments& a,
                 const TrainingArguments& training, const kernels::Graph& model);

}  // namespace falaj::nodes
