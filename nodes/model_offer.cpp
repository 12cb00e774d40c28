#include "nodes/model_offer.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/plan.hpp"
#include "nodes/artifacts.hpp"
#include "nodes/model_files.hpp"
#include "runtime/base/clock.hpp"
#include "runtime/base/format.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::nodes {
namespace {

constexpr double kFaster = 0.98;  // less than this of the time before: more than the clock's noise

// One model on its first rows, again and again.
class Timed {
 public:
  static Result<Timed> make(const Candidate& of, std::int64_t rows) {
    Timed out;
    for (const auto& input : of.data.inputs) out.inputs_.push_back(input.rows(0, std::min(rows, input.shape()[0])));
    FALAJ_ASSIGN(auto compiled, kernels::compile(of.graph));
    out.executor_ = std::make_unique<kernels::Executor>(std::move(compiled));
    for (int warm = 0; warm < 3; ++warm) FALAJ_TRY(out.executor_->run(out.inputs_, out.outputs_));
    return out;
  }
  Status run(const Clock& clock) {
    const Instant began = clock.now();
    FALAJ_TRY(executor_->run(inputs_, outputs_));
    times_.push_back(clock.now() - began);
    return {};
  }
  double median_us() {
    const auto middle = times_.begin() + static_cast<std::ptrdiff_t>(times_.size() / 2);
    std::ranges::nth_element(times_, middle);
    return std::chrono::duration<double, std::micro>(*middle).count();
  }

 private:
  std::vector<kernels::Tensor> inputs_, outputs_;
  std::unique_ptr<kernels::Executor> executor_;
  std::vector<Duration> times_;
};

// The metric that the budget is about, larger is better.
Result<double> accuracy_of(const kernels::Evaluation& evaluation) {
  const auto named = evaluation.named();
  if (const auto found = named.find("accuracy"); found != named.end()) return found->second;
  if (const auto found = named.find("rmse"); found != named.end()) return -found->second;
  return failed("the evaluation has neither accuracy nor RMSE");
}

void judge(Measured& m, const OfferArguments& a) {
  const auto& [before, after] = std::pair<const ModelFigures&, const ModelFigures&>(m.before, m.after);
  const bool smaller = after.bytes < before.bytes;
  const bool packed = after.packed_bytes < before.packed_bytes;
  const bool faster = after.p50_us < kFaster * before.p50_us;
  if (!(m.loss_of_accuracy <= a.budget)) {
    m.why_not = format("it loses {:.4g} of {}, the budget is {:g}", m.loss_of_accuracy,
                       after.evaluation.named().contains("accuracy") ? "its accuracy" : "its precision (RMSE)", a.budget);
  } else if (a.want == "smaller" && !smaller) {
    m.why_not = format("its file is not smaller: {} bytes, {} before", after.bytes, before.bytes);
  } else if (a.want == "packed" && !packed) {
    m.why_not = format("its packed file is not smaller: {} bytes, {} before", after.packed_bytes, before.packed_bytes);
  } else if (a.want == "faster" && !faster) {
    m.why_not = format("it is not faster here: {:.2f} us, {:.2f} before", after.p50_us, before.p50_us);
  } else if (!smaller && !packed && !faster) {
    m.why_not = "it is neither smaller nor faster";
  }
  m.offered = m.why_not.empty();
}

std::size_t parameters_of(const kernels::Graph& graph) {
  std::size_t count = 0;
  for (const auto& [name, value] : graph.initializers) count += kernels::is_float(value.dtype()) ? value.elements() : 0;
  return count;
}

}  // namespace

void add_offer_options(CLI::App& command, OfferArguments& a) {
  command.add_option("--test-input", a.test_inputs, "NAME=FILE, rows that accuracy is measured on (else: those of --input)")
      ->type_name("NAME=FILE");
  command.add_option("--test-labels", a.test_labels, "Their labels")->type_name("FILE");
  command.add_option("--budget", a.budget, "Share of the accuracy (or of the RMSE) that may be lost")
      ->capture_default_str()
      ->type_name("X");
  command
      .add_option("--want", a.want,
                  "What the model must be measured to be: smaller (its file), packed (its file, deflated), faster, any of them")
      ->capture_default_str()
      ->check(CLI::IsMember({"smaller", "packed", "faster", "any"}));
  command.add_option("--speed-rows", a.rows, "Rows of an answer that is timed")->capture_default_str()->type_name("N");
  command.add_option("--seconds", a.seconds, "How long each model is timed")->capture_default_str()->type_name("S");
  command.add_option("--report", a.report, "Where the report is written, as JSON")->type_name("FILE");
}

Status check(const OfferArguments& a) {
  if (a.test_inputs.empty() != a.test_labels.empty()) return invalid("--test-input and --test-labels belong together");
  if (!(a.budget >= 0 && a.budget < 1)) return invalid(format("--budget is {}; it must be 0 or more, and less than 1", a.budget));
  if (a.rows < 1 || a.rows > (1 << 20)) return invalid(format("--speed-rows is {}; it must be 1 to 1048576", a.rows));
  if (!(a.seconds > 0 && a.seconds <= 600)) return invalid("--seconds must be larger than 0 and at most 600");
  return check_writable(a.report);
}

Result<TrainingData> read_test_data(const OfferArguments& a, const TrainingArguments& training) {
  TrainingArguments test = training;
  if (!a.test_labels.empty()) {
    test.inputs = a.test_inputs;
    test.labels = a.test_labels;
  }
  return read_training_data(test);
}

Result<Measured> compare_models(const Candidate& before, const Candidate& after, const TrainingArguments& training,
                                const OfferArguments& a) {
  kernels::set_flush_denormals();
  Measured m;
  for (const auto& [of, figures] : {std::pair(&before, &m.before), std::pair(&after, &m.after)}) {
    FALAJ_ASSIGN(const ModelSize size, model_size(of->graph, training.external_data));
    *figures = {parameters_of(of->graph), size.bytes, size.packed, 0, {}};
  }
  FALAJ_ASSIGN(m.before.evaluation, evaluate_model(before.graph, before.data, before.logits, training.batch));
  FALAJ_ASSIGN(m.after.evaluation, evaluate_model(after.graph, after.data, after.logits, training.batch));
  FALAJ_ASSIGN(const double was, accuracy_of(m.before.evaluation));
  FALAJ_ASSIGN(const double is, accuracy_of(m.after.evaluation));
  m.loss_of_accuracy = was == is ? 0 : (was - is) / std::max(std::abs(was), 1e-12);
  FALAJ_ASSIGN(auto first, Timed::make(before, a.rows));
  FALAJ_ASSIGN(auto second, Timed::make(after, a.rows));
  const SystemClock clock;
  const Instant began = clock.now();
  const auto time = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(2 * a.seconds));
  for (std::size_t runs = 0; runs < 5 || (clock.now() - began < time && runs < (1U << 20)); ++runs) {
    FALAJ_TRY(first.run(clock));
    FALAJ_TRY(second.run(clock));
  }
  m.before.p50_us = first.median_us();
  m.after.p50_us = second.median_us();
  judge(m, a);
  return m;
}

std::string figures_json(const ModelFigures& f) {
  return format("{{\"parameters\":{},\"bytes\":{},\"packed_bytes\":{},\"p50_us\":{:.6g},\"metrics\":{}}}", f.parameters, f.bytes,
                f.packed_bytes, f.p50_us, metrics_json(f.evaluation));
}

std::string offer_json(const Measured& m, const OfferArguments& a) {
  return format("\"before\":{},\"after\":{},\"accuracy_lost\":{:.9g},\"budget\":{:g},\"want\":\"{}\",\"offered\":{},\"why_not\":{}",
                figures_json(m.before), figures_json(m.after), m.loss_of_accuracy, a.budget, a.want, m.offered,
                m.offered ? std::string("null") : net::json_text(m.why_not));
}

std::string offer_table(const Measured& m) {
  std::vector<std::vector<std::string>> rows = {{"", "BEFORE", "AFTER"}};
  const auto add = [&](const char* what, auto text) { rows.push_back({what, text(m.before), text(m.after)}); };
  add("parameters", [](const ModelFigures& f) { return std::to_string(f.parameters); });
  add("file", [](const ModelFigures& f) { return format("{} bytes", f.bytes); });
  add("file, packed", [](const ModelFigures& f) { return format("{} bytes", f.packed_bytes); });
  add("answer, median", [](const ModelFigures& f) { return format("{:.2f} us", f.p50_us); });
  for (const auto& [name, value] : m.before.evaluation.named()) {
    const auto after = m.after.evaluation.named();
    rows.push_back({name, format("{:.6g}", value), after.contains(name) ? format("{:.6g}", after.at(name)) : "-"});
  }
  return table(rows);
}

Status hand_over(const std::string& json, const std::string& table, const Measured& measured, const OfferArguments& a,
                 const TrainingArguments& training, const kernels::Graph& model) {
  if (!a.report.empty()) FALAJ_TRY(write_file(a.report, as_bytes(json + "\n")));
  print(training.json ? json : table);
  if (!measured.offered) return Error{ErrorCode::conflict, format("{} is not written: {}", training.output, measured.why_not)};
  FALAJ_TRY(write_model(training.output, model, training.external_data));
  if (!training.json) print(training.output);
  return {};
}

}  // namespace falaj::nodes
