// model train|evaluate: ONNX files and arrays on this machine, without a cluster.

#include "nodes/cli_model_train.hpp"

#include "kernels/onnx/onnx.hpp"
#include "kernels/plan.hpp"
#include "nodes/artifacts.hpp"
#include "nodes/model_files.hpp"
#include "nodes/model_training.hpp"
#include "nodes/plot.hpp"
#include "nodes/progress.hpp"
#include "nodes/train_checkpoints.hpp"
#include "runtime/base/format.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::nodes {
namespace {

struct Arguments : TrainingArguments {
  CheckpointArguments checkpoints;
};

Status do_evaluate(const TrainingArguments& a) {
  kernels::set_flush_denormals();
  FALAJ_ASSIGN(TrainingData data, read_training_data(a));
  FALAJ_ASSIGN(const auto total, evaluate_model(std::move(data.graph), data, a.logits, a.batch, a.run, "evaluating"));
  if (a.json) {
    print(format("{{\"rows\":{},\"metrics\":{}}}", data.labels.shape()[0], metrics_json(total)));
    return {};
  }
  std::vector<std::vector<std::string>> lines = {{"METRIC", "VALUE"}};
  for (const auto& [name, value] : total.named()) lines.push_back({name, format("{:.9g}", value)});
  print(table(lines));
  return {};
}

Status do_train(const Arguments& a) {
  FALAJ_ASSIGN(const auto spec, steps_spec(a));
  for (const auto* path : {&a.log, &a.output, &a.checkpoints.file}) FALAJ_TRY(check_writable(*path));
  FALAJ_TRY(check(a.checkpoints));
  FALAJ_ASSIGN(TrainingData data, read_training_data(a));
  FALAJ_ASSIGN(auto target, train_target(a, data.objective));
  FALAJ_ASSIGN(auto trainer, kernels::Trainer::make(std::move(data.graph), std::move(target)));
  FALAJ_ASSIGN(TrainCheckpoints checkpoints, TrainCheckpoints::open(a.checkpoints, a, data, *trainer));
  FALAJ_ASSIGN(const kernels::DataSet rows, trainer->prepare(std::move(data.inputs), data.labels));
  TrainingLog log;
  for (const auto& report : checkpoints.reports()) log.add(report);
  Progress progress("training", spec.steps);
  const auto trained = kernels::train_steps(
      *trainer, rows, spec,
      [&](const kernels::StepReport& report) -> Status {
        log.add(report);
        progress.at(report.step);
        return {};
      },
      checkpoints.plan());
  progress.end();
  FALAJ_TRY(trained);
  FALAJ_TRY(write_model(a.output, trainer->export_graph(), a.external_data));
  FALAJ_TRY(log.write(a.log));
  const std::size_t parameters = trainer->parameters().size();
  if (a.json) {
    print(format("{{\"steps\":{},\"resumed_at\":{},\"rows\":{},\"parameters\":{},\"tensors\":{},{},\"output\":{}}}", spec.steps,
                 checkpoints.reports().size(), rows.rows(), parameters, trainer->layout().size(), log.change_json(),
                 net::json_text(a.output)));
    return {};
  }
  if (output_is_terminal()) print(plot(log.losses, "loss"));
  print(format("{} steps on {} rows, {} parameters in {} tensors: {}", spec.steps, rows.rows(), parameters, trainer->layout().size(),
               log.change()));
  print(a.output);
  return {};
}

}  // namespace

void add_model_training_commands(CLI::App& model, Cli& cli) {
  const auto a = std::make_shared<Arguments>();
  auto* train = model.add_subcommand("train", "Train a model on arrays or CSV; writes the same model with its new weights");
  add_data_options(*train, *a);
  add_step_options(*train, *a);
  train->get_option("--steps")->required();
  add_checkpoint_options(*train, a->checkpoints);
  train->add_option("--output,-o", a->output, "The trained model, .onnx")->required()->type_name("FILE");
  add_external_data_option(*train, a->external_data);
  train->footer(
      "Example:\n  falaj model train net.onnx --input x=x.npy --labels y.npy --loss cross-entropy --optimizer adamw --lr 1e-3 --batch 64 "
      "--steps 1000 --log losses.csv --output trained.onnx");
  cli.runs(*train, [a] { return do_train(*a); });
  const auto e = std::make_shared<TrainingArguments>();
  auto* evaluate = model.add_subcommand("evaluate", "Loss, and accuracy, AUC or error, of a model on arrays or CSV");
  add_data_options(*evaluate, *e);
  add_run_options(*evaluate, e->run);
  evaluate->footer("Example:\n  falaj model evaluate trained.onnx --input x=x.npy --labels y.npy --loss cross-entropy --json");
  cli.runs(*evaluate, [e] { return do_evaluate(*e); });
}

}  // namespace falaj::nodes
