// model distill: a small model learns from a large one's answers and from the labels; then a measurement decides.

#include "nodes/cli_model_distill.hpp"

#include <algorithm>

#include "kernels/plan.hpp"
#include "kernels/train/cut.hpp"
#include "kernels/train/soft_targets.hpp"
#include "nodes/model_files.hpp"
#include "nodes/model_offer.hpp"
#include "nodes/progress.hpp"
#include "runtime/base/format.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::nodes {
namespace {

using kernels::Tensor;

struct Arguments : TrainingArguments {
  std::string teacher;
  std::string teacher_logits;
  std::vector<std::string> teacher_inputs;       // empty: the student's
  std::vector<std::string> teacher_test_inputs;  // likewise
  kernels::Distillation how;
  OfferArguments offer;
};

// The teacher with its own arrays, and the labels of the student.
TrainingArguments teacher_of(const Arguments& a) {
  TrainingArguments out = static_cast<const TrainingArguments&>(a);
  out.model = a.teacher;
  out.logits = a.teacher_logits;
  if (!a.teacher_inputs.empty()) out.inputs = a.teacher_inputs;
  return out;
}

// What a model says of all rows.
Result<Tensor> logits_of_rows(const TrainingData& data, const std::string& wanted, std::uint32_t batch) {
  kernels::set_flush_denormals();
  kernels::Graph graph = data.graph;
  FALAJ_ASSIGN(const auto value, kernels::logits_of(graph, wanted));
  graph.outputs = {{value, kernels::DType::undefined, {}, {}, false}};
  FALAJ_ASSIGN(auto compiled, kernels::compile(std::move(graph)));
  kernels::Executor executor(std::move(compiled));
  const std::int64_t rows = data.labels.shape()[0];
  Tensor all;
  Progress progress("asking the teacher", static_cast<std::uint64_t>(rows));
  for (std::int64_t first = 0; first < rows; first += batch) {
    const std::int64_t count = std::min<std::int64_t>(batch, rows - first);
    std::vector<Tensor> inputs;
    for (const Tensor& input : data.inputs) inputs.push_back(input.rows(first, count));
    std::vector<Tensor> outputs;
    FALAJ_TRY(executor.run(inputs, outputs));
    const Tensor& got = outputs[0];
    if (got.dtype() != kernels::DType::f32 || got.shape().empty() || got.shape()[0] != count)
      return invalid(format("the teacher's '{}' is {}{} for {} rows: it has no row of float32 for each", value, to_string(got.dtype()),
                            to_string(got.shape()), count));
    if (all.empty()) {
      kernels::Shape shape = got.shape();
      shape[0] = rows;
      all = Tensor(kernels::DType::f32, shape);
    }
    std::ranges::copy(got.data<float>(), all.rows(first, count).mutable_data<float>().begin());
    progress.at(static_cast<std::uint64_t>(first + count));
  }
  progress.end();
  if (all.empty()) return invalid("there are no rows to learn from");
  return all;
}

Result<kernels::Graph> learn(const Arguments& a, TrainingData data, const Tensor& taught, TrainingLog& log) {
  FALAJ_ASSIGN(const auto spec, steps_spec(a));
  kernels::Shape row = taught.shape();
  row.erase(0);
  FALAJ_ASSIGN(const auto objective, kernels::distilled(data.objective, a.how, row));
  FALAJ_ASSIGN(const auto labels, kernels::distilled_labels(data.objective, taught, data.labels));
  FALAJ_ASSIGN(auto target, train_target(a, objective));
  FALAJ_ASSIGN(auto trainer, kernels::Trainer::make(std::move(data.graph), std::move(target)));
  FALAJ_ASSIGN(const kernels::DataSet rows, trainer->prepare(std::move(data.inputs), labels));
  Progress progress("training", spec.steps);
  const auto trained = kernels::train_steps(*trainer, rows, spec, [&](const kernels::StepReport& report) -> Status {
    log.add(report);
    progress.at(report.step);
    return {};
  });
  progress.end();
  FALAJ_TRY(trained);
  FALAJ_TRY(log.write(a.log));
  return trainer->export_graph();
}

Status do_distill(Arguments a) {
  FALAJ_TRY(check(a.offer));
  for (const auto* path : {&a.log, &a.output}) FALAJ_TRY(check_writable(*path));
  FALAJ_TRY(steps_spec(a));
  FALAJ_ASSIGN(TrainingData data, read_training_data(a));
  const TrainingArguments asked = teacher_of(a);
  auto teacher = read_training_data(asked);
  if (!teacher) return within("teacher", teacher.error());
  FALAJ_ASSIGN(const TrainingData test, read_test_data(a.offer, a));
  OfferArguments of_teacher = a.offer;
  if (!a.teacher_test_inputs.empty()) of_teacher.test_inputs = a.teacher_test_inputs;
  FALAJ_ASSIGN(const TrainingData teacher_test, read_test_data(of_teacher, asked));
  FALAJ_ASSIGN(const Tensor taught, logits_of_rows(*teacher, a.teacher_logits, a.batch));
  const kernels::Graph untaught = data.graph;
  TrainingLog log;
  FALAJ_ASSIGN(kernels::Graph student, learn(a, std::move(data), taught, log));
  FALAJ_ASSIGN(const auto measured,
               compare_models({teacher->graph, teacher_test, a.teacher_logits}, {student, test, a.logits}, a, a.offer));
  FALAJ_ASSIGN(const auto untrained, evaluate_model(untaught, test, a.logits, a.batch));
  const auto json =
      format("{{\"method\":\"distill\",\"temperature\":{:g},\"teacher_share\":{:g},\"steps\":{},{},\"untrained\":{},{},\"output\":{}}}",
             a.how.temperature, a.how.share, a.steps, log.change_json(), metrics_json(untrained), offer_json(measured, a.offer),
             measured.offered ? net::json_text(a.output) : "null");
  student.metadata["falaj.compression"] = json;
  return hand_over(json, log.change() + "\nbefore: the teacher; after: the student\n" + offer_table(measured), measured, a.offer, a,
                   student);
}

}  // namespace

void add_model_distill_command(CLI::App& model, Cli& cli) {
  const auto a = std::make_shared<Arguments>();
  a->offer.want = "any";
  a->offer.budget = 0.05;
  auto* command =
      model.add_subcommand("distill", "Train a small model on a large one's answers and the labels; measured before it is offered");
  add_data_options(*command, *a);
  command->get_option("model")->description("ONNX file of the student: the model that learns");
  command->add_option("--teacher", a->teacher, "ONNX file of the model that is learned from")->required()->type_name("FILE");
  command->add_option("--teacher-input", a->teacher_inputs, "NAME=FILE for the teacher, where its inputs are not the student's")
      ->type_name("NAME=FILE");
  command->add_option("--teacher-test-input", a->teacher_test_inputs, "The same for --test-input")->type_name("NAME=FILE");
  command->add_option("--teacher-logits", a->teacher_logits, "Its value that the student's is compared with, as of --logits")
      ->type_name("NAME");
  command->add_option("--temperature", a->how.temperature, "Softens the answers that are learned: 1 as they are")
      ->capture_default_str()
      ->type_name("T");
  command->add_option("--teacher-share", a->how.share, "Of the loss: the teacher's; the labels have the rest")
      ->capture_default_str()
      ->type_name("X");
  add_step_options(*command, *a);
  command->get_option("--steps")->required();
  add_offer_options(*command, a->offer);
  command->add_option("--output,-o", a->output, "The trained student, .onnx: written only when it is offered")
      ->required()
      ->type_name("FILE");
  add_external_data_option(*command, a->external_data);
  command->footer(
      "Losses: cross-entropy, bce, mse. The budget is a share of the teacher's accuracy. Ends with exit code 6 when the student is not "
      "offered.\nExample:\n  falaj model distill small.onnx --teacher large.onnx --input x=x.npy --labels y.npy --temperature 4 --steps "
      "2000 "
      "-o taught.onnx");
  cli.runs(*command, [a] { return do_distill(*a); });
}

}  // namespace falaj::nodes
