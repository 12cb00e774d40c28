// model quantize: an ONNX file to 8 bits by sample inputs, and a report of what that costs and gains. The model is written only if it is
// within its budget and faster here.

#include "nodes/cli_model_quantize.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/compress/quantize.hpp"
#include "kernels/plan.hpp"
#include "nodes/array_files.hpp"
#include "nodes/artifacts.hpp"
#include "nodes/model_files.hpp"
#include "nodes/progress.hpp"
#include "runtime/base/clock.hpp"
#include "runtime/base/format.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::nodes {
namespace {

using kernels::Graph;
using kernels::Tensor;

struct Arguments {
  std::string model;
  std::vector<std::string> inputs;  // NAME=FILE
  std::string labels;
  std::string loss = "cross-entropy";
  std::string logits;
  std::string calibration = "minmax";
  double percentile = kernels::kPercentile;
  double budget = 0.01;
  std::int64_t calibration_rows = 512;
  std::vector<std::string> keep;
  std::int64_t batch = 1;
  double seconds = 1;
  std::string output, report;
  bool keep_anyway = false, external_data = false;
  bool json = false;
};

std::string number(double v) { return std::isfinite(v) ? format("{:.9g}", v) : std::string("null"); }

struct Data {
  Graph graph;
  std::vector<Tensor> inputs;
};

Result<Data> read_data(const Arguments& a) {
  Data data;
  FALAJ_ASSIGN(data.graph, load_model(a.model));
  FALAJ_ASSIGN(data.inputs, read_rows(data.graph, a.inputs));
  return data;
}

Result<kernels::Judge> read_judge(const Arguments& a) {
  kernels::Judge judge;
  if (a.labels.empty()) return judge;
  FALAJ_ASSIGN(auto labels, read_label_array(a.labels));
  if (labels.shape().empty()) return invalid(format("{}: labels need rows in their first dimension", a.labels));
  judge.objective.emplace();
  FALAJ_ASSIGN(judge.objective->loss, kernels::parse_loss(a.loss));
  judge.objective->label_row = labels.shape();
  judge.objective->label_row.erase(0);
  judge.labels = std::move(labels);
  judge.logits = a.logits;
  return judge;
}

std::string report_json(const kernels::QuantizeReport& r, const kernels::SpeedReport& speed, bool offered, const std::string& written) {
  std::string out = format(
      "{{\"calibration\":\"{}\",\"rows\":{},\"calibration_rows\":{},\"measure\":\"{}\",\"f32\":{},\"int8\":{},\"loss\":{},\"budget\":{},"
      "\"within_budget\":{},\"speed\":{{\"batch\":{},\"f32_us\":{},\"int8_us\":{},\"ratio\":{}}},\"bytes\":{{\"f32\":{},\"int8\":{}}},"
      "\"offered\":{},\"output\":{},\"layers\":[",
      to_string(r.calibration), r.rows, r.calibration_rows, r.measure, number(r.f32), number(r.int8), number(r.loss), number(r.budget),
      r.within_budget(), speed.batch, number(speed.f32_us), number(speed.int8_us), number(speed.ratio()), r.f32_bytes, r.int8_bytes,
      offered, written.empty() ? "null" : net::json_text(written));
  bool first = true;
  for (const auto& layer : r.layers) {
    out += format("{}{{\"name\":{},\"op\":{},\"weight_bytes\":{},\"error\":{},\"quantised\":{},\"why\":{}}}", first ? "" : ",",
                  net::json_text(layer.layer.name), net::json_text(layer.layer.op), layer.layer.weight_bytes, number(layer.error),
                  layer.quantised, layer.why.empty() ? "null" : net::json_text(layer.why));
    first = false;
  }
  return out + "]}";
}

void print_report(const kernels::QuantizeReport& r, const kernels::SpeedReport& speed) {
  std::vector<std::vector<std::string>> lines = {{"LAYER", "OP", "ERROR", "RUNS", "WHY"}};
  for (const auto& layer : r.layers)
    lines.push_back({layer.layer.name, layer.layer.op, format("{:.3g}", layer.error), layer.quantised ? "int8" : "f32", layer.why});
  print(table(lines));
  print(format("{} on {} rows (ranges of {} by {}): f32 {:.6g}, int8 {:.6g}; loss {:.4g}, budget {:.4g}", r.measure, r.rows,
               r.calibration_rows, to_string(r.calibration), r.f32, r.int8, r.loss, r.budget));
  print(format("speed, batch {}: f32 {:.2f} us, int8 {:.2f} us: {:.2f} x; weights {} -> {} bytes", speed.batch, speed.f32_us, speed.int8_us,
               speed.ratio(), r.f32_bytes, r.int8_bytes));
}

Status do_quantize(const Arguments& a) {
  kernels::set_flush_denormals();
  if (a.batch < 1) return invalid(format("--batch is {}; it must be at least 1", a.batch));
  if (!(a.seconds > 0 && a.seconds <= 3600)) return invalid("--seconds must be larger than 0 and at most 3600");
  kernels::QuantizeSpec spec;
  FALAJ_ASSIGN(spec.calibration, kernels::parse_calibration(a.calibration));
  spec.percentile = a.percentile;
  spec.budget = a.budget;
  spec.calibration_rows = a.calibration_rows;
  spec.keep = a.keep;
  FALAJ_ASSIGN(const Data data, read_data(a));
  FALAJ_ASSIGN(const auto judge, read_judge(a));
  Progress progress("quantising", 100);
  auto made = kernels::quantize(data.graph, data.inputs, judge, spec,
                                [&](std::uint64_t done, std::uint64_t all) { progress.at(done * 100 / std::max<std::uint64_t>(all, 1)); });
  progress.end();
  if (!made) return within(a.model, made.error());
  const SystemClock clock;
  FALAJ_ASSIGN(const auto speed, kernels::measure_speed(data.graph, made->graph, data.inputs, a.batch, a.seconds, clock));
  const bool any = std::ranges::any_of(made->report.layers, [](const auto& layer) { return layer.quantised; });
  const bool offered = any && made->report.within_budget() && speed.ratio() > 1;
  const bool written = offered || a.keep_anyway;
  const std::string text = report_json(made->report, speed, offered, written ? a.output : "");
  if (!a.report.empty()) FALAJ_TRY(write_file(a.report, as_bytes(text)));
  if (written) FALAJ_TRY(write_model(a.output, made->graph, a.external_data));
  if (a.json) {
    print(text);
  } else {
    print_report(made->report, speed);
    if (written) print(a.output);
  }
  if (written) return {};
  const std::string why = !any ? "no layer could stay quantised within the budget"
                          : !made->report.within_budget()
                              ? format("it loses {:.4g}, more than its budget of {:.4g}", made->report.loss, made->report.budget)
                              : format("it is no faster here ({:.2f} x)", speed.ratio());
  return Error{ErrorCode::conflict, format("{} is not written: {}; --keep-anyway writes it all the same", a.output, why)};
}

}  // namespace

void add_model_quantize_command(CLI::App& model, Cli& cli) {
  const auto a = std::make_shared<Arguments>();
  auto* command = model.add_subcommand("quantize", "Quantise a model to 8 bits by sample inputs, within a budget of accuracy");
  command->add_option("model", a->model, "ONNX file")->required()->type_name("FILE");
  command
      ->add_option("--input,-i", a->inputs,
                   "NAME=FILE.npy, .npz[:ENTRY] or .csv[:COLUMN,...], one for each input; sample rows in the first dimension")
      ->type_name("NAME=FILE");
  command
      ->add_option("--labels", a->labels,
                   "Labels of the samples, .npy, .npz[:ENTRY] or .csv:COLUMN: accuracy, or the loss, is measured by them; without them, "
                   "how often the largest output is "
                   "another one, or by how much outputs differ")
      ->type_name("FILE");
  command->add_option("--loss", a->loss, "cross-entropy, bce (with logits): accuracy counts; mse, l1, huber: the loss does")
      ->capture_default_str()
      ->check(CLI::IsMember({"cross-entropy", "bce", "mse", "l1", "huber"}));
  command->add_option("--logits", a->logits, "Value that is compared with the labels; by default as in training")->type_name("NAME");
  command->add_option("--calibration", a->calibration, "How ranges of values are chosen: minmax, percentile, entropy")
      ->capture_default_str()
      ->check(CLI::IsMember({"minmax", "percentile", "entropy"}));
  command->add_option("--percentile", a->percentile, "Of calibration percentile")->capture_default_str()->type_name("P");
  command->add_option("--calibration-rows", a->calibration_rows, "Rows, the first ones, that ranges are taken from")
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--budget", a->budget, "How much worse the model may become, relative to f32; the worst layers go back to float")
      ->capture_default_str()
      ->type_name("X");
  command->add_option("--keep", a->keep, "A layer that stays float, by its name")->type_name("LAYER");
  command->add_option("--batch,-b", a->batch, "Rows at a time when speed is measured")->capture_default_str()->type_name("N");
  command->add_option("--seconds", a->seconds, "How long speed is measured")->capture_default_str()->type_name("S");
  command->add_option("--output,-o", a->output, "The quantised model, .onnx (QuantizeLinear and DequantizeLinear around float ops)")
      ->required()
      ->type_name("FILE");
  add_external_data_option(*command, a->external_data);
  command->add_option("--report", a->report, "The report, .json")->type_name("FILE");
  command->add_flag("--keep-anyway", a->keep_anyway, "Write the model even if it is over its budget or no faster here");
  command->add_flag("--json", a->json, "Print the report as JSON");
  command->footer(
      "Example:\n  falaj model quantize net.onnx --input x=x.npy --labels y.npy --budget 0.01 --output net_int8.onnx --report report.json");
  cli.runs(*command, [a] { return do_quantize(*a); });
}

}  // namespace falaj::nodes
