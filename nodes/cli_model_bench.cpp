// model bench: how long an ONNX file takes on this machine, answering or learning, through the executor and the trainer that replicas and
// workers use. Inputs are random, of the model's own types.

#include "nodes/cli_model_bench.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "kernels/compress/quantize.hpp"
#include "kernels/convert.hpp"
#include "kernels/plan.hpp"
#include "kernels/train/cut.hpp"
#include "kernels/train/steps.hpp"
#include "nodes/model_cache.hpp"
#include "nodes/model_files.hpp"
#include "nodes/model_training.hpp"
#include "runtime/base/clock.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/process.hpp"
#include "runtime/base/random.hpp"

namespace falaj::nodes {
namespace {

using kernels::DType;
using kernels::Graph;
using kernels::Shape;
using kernels::Tensor;
using kernels::ValueInfo;

constexpr std::size_t kWarmRuns = 3;
constexpr std::size_t kRunsMin = 5;  // however long one takes
constexpr std::size_t kRunsMax = std::size_t{1} << 20;
constexpr std::int64_t kBatchMax = std::int64_t{1} << 20;
constexpr std::int64_t kTrainRowBytesMax = std::int64_t{64} << 20;  // of the random rows that batches are drawn from

struct Arguments {
  std::string model;
  std::int64_t batch = 1;
  unsigned threads = 1;
  std::string precision = "f32";
  std::vector<std::string> sizes;  // NAME=SIZE
  std::string cache;               // empty: none
  double seconds = 2;
  bool train = false;
  bool json = false;
};

// --- inputs -----------------------------------------------------------------------------------------------------------------

Result<std::map<std::string, std::int64_t>> open_sizes(const std::vector<std::string>& texts) {
  std::map<std::string, std::int64_t> sizes;
  for (const auto& text : texts) {
    const auto at = text.rfind('=');
    std::int64_t size = 0;
    const bool number =
        at != std::string::npos && at > 0 && text.size() - at - 1 < 10 && text.size() > at + 1 &&
        std::all_of(text.begin() + static_cast<std::ptrdiff_t>(at) + 1, text.end(), [](char c) { return c >= '0' && c <= '9'; });
    for (std::size_t i = at + 1; number && i < text.size(); ++i) size = size * 10 + (text[i] - '0');
    if (!number || size < 1) return invalid(format("--size {}: write NAME=SIZE, as in --size sequence=128", text));
    sizes[text.substr(0, at)] = size;
  }
  return sizes;
}

// Fills in all sizes that the model leaves open but the batch: an open first dimension, and whatever bears the same name.
Status close_sizes(Graph& graph, const std::map<std::string, std::int64_t>& given) {
  std::set<std::string> batch_names;
  for (const ValueInfo& info : graph.inputs) {
    if (info.has_shape && !info.shape.empty() && info.shape[0] < 0 && !info.symbols.empty()) batch_names.insert(info.symbols[0]);
  }
  for (ValueInfo& info : graph.inputs) {
    if (info.kind != kernels::ValueKind::tensor || !info.has_shape)
      return Error{ErrorCode::unimplemented,
                   format("input '{}' ({}) is no tensor of known rank: no random one can be made", info.name, type_text(info))};
    for (std::size_t d = 0; d < info.shape.rank(); ++d) {
      if (info.shape[d] >= 0) continue;
      const std::string name = d < info.symbols.size() ? info.symbols[d] : "";
      if (const auto found = given.find(name); !name.empty() && found != given.end()) {
        info.shape[d] = found->second;
      } else if (d > 0 && (name.empty() || !batch_names.contains(name))) {
        return invalid(format("input '{}' is {}: its size '{}' is open; give it with --size {}=SIZE", info.name, type_text(info),
                              name.empty() ? "?" : name, name.empty() ? "NAME" : name));
      }
    }
  }
  return {};
}

// How many rows a table has that an input's numbers are looked up in: those of the first Gather that they reach unchanged.
std::int64_t table_rows(const Graph& graph, const std::string& input) {
  std::vector<std::string> same = {input};
  for (std::size_t i = 0; i < same.size() && same.size() < 64; ++i) {
    for (const auto& node : graph.nodes) {
      const bool reads = std::ranges::find(node.inputs, same[i]) != node.inputs.end();
      if (!reads || node.outputs.empty()) continue;
      if (node.op == "Gather" && node.inputs[1] == same[i]) {
        const auto table = graph.initializers.find(node.inputs[0]);
        if (table != graph.initializers.end() && !table->second.shape().empty()) return table->second.shape()[0];
      }
      constexpr std::string_view kMoving[] = {"Cast",      "Identity", "Reshape", "Flatten", "Squeeze",
                                              "Unsqueeze", "Slice",    "Gather",  "Split",   "Transpose"};
      if (std::ranges::find(kMoving, node.op) == std::end(kMoving)) continue;
      for (const auto& output : node.outputs) same.push_back(output);
    }
  }
  return 2;
}

Shape with_batch(const ValueInfo& info, std::int64_t batch) {
  Shape shape = info.shape;
  for (std::size_t d = 0; d < shape.rank(); ++d) shape[d] = shape[d] < 0 ? batch : shape[d];
  return shape;
}

Result<Tensor> random_input(const Graph& graph, const ValueInfo& info, std::int64_t batch, Random& random) {
  const Shape shape = with_batch(info, batch);
  FALAJ_TRY(kernels::byte_size(info.dtype, shape));
  if (info.dtype == DType::string) {
    Tensor text(DType::string, shape);
    for (auto& value : text.mutable_data<std::string>()) value = format("value{}", random.below(5));
    return text;
  }
  if (info.dtype == DType::boolean || kernels::is_int(info.dtype)) {
    Tensor numbers(DType::i64, shape);
    const auto bound =
        static_cast<std::uint64_t>(std::max<std::int64_t>(info.dtype == DType::boolean ? 2 : table_rows(graph, info.name), 1));
    for (auto& value : numbers.mutable_data<std::int64_t>()) value = static_cast<std::int64_t>(random.below(bound));
    return kernels::converted(numbers, info.dtype);
  }
  Tensor numbers(DType::f32, shape);
  for (auto& value : numbers.mutable_data<float>()) value = static_cast<float>(random.normal());
  return info.dtype == DType::f32 ? numbers : kernels::converted(numbers, info.dtype);
}

// --- figures ----------------------------------------------------------------------------------------------------------------

// Repeats until the time is up, with bounds on either side.
class Repeats {
 public:
  Repeats(const Clock& clock, double seconds)
      : clock_(clock), budget_(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds))) {
    times_.reserve(4096);
  }
  void begin() { last_ = clock_.now(); }
  // One more is done.
  void add() {
    const Instant now = clock_.now();
    const Duration took = now - last_;
    last_ = now;
    if (warm_ < kWarmRuns) {
      ++warm_;
      return;
    }
    total_ += took;
    times_.push_back(took);
  }
  [[nodiscard]] bool enough() const { return times_.size() >= kRunsMax || (times_.size() >= kRunsMin && total_ >= budget_); }
  [[nodiscard]] double quantile_us(double q) {
    std::ranges::sort(times_);
    const auto at = std::min(times_.size() - 1, static_cast<std::size_t>(q * static_cast<double>(times_.size())));
    return std::chrono::duration<double, std::micro>(times_[at]).count();
  }
  [[nodiscard]] double rows_per_second(std::int64_t rows) const {
    const double seconds = std::chrono::duration<double>(total_).count();
    return seconds > 0 ? static_cast<double>(rows) * static_cast<double>(times_.size()) / seconds : 0;
  }
  [[nodiscard]] std::size_t count() const { return times_.size(); }

 private:
  const Clock& clock_;
  Duration budget_;
  Duration total_{};
  Instant last_{};
  std::size_t warm_ = 0;
  std::vector<Duration> times_;
};

struct Measured {
  double p50_us = 0, p99_us = 0, rows_per_s = 0, compile_ms = 0;
  std::optional<double> start_ms;  // of answers: load, compile, first answer
  std::size_t runs = 0;
};
Measured figures(Repeats& repeats, std::int64_t rows, Duration compiling) {
  return {.p50_us = repeats.quantile_us(0.5),
          .p99_us = repeats.quantile_us(0.99),
          .rows_per_s = repeats.rows_per_second(rows),
          .compile_ms = std::chrono::duration<double, std::milli>(compiling).count(),
          .runs = repeats.count()};
}

// What is measured, made ready: out of the cache, if one is given and it is there, else out of the file.
struct Start {
  ModelCache::Kept model;  // not compiled: `graph` is to be
  Graph graph;
  std::optional<std::size_t> packed;  // bytes of packed weights that the cache had; none: it had nothing
};

Result<Start> load(const Arguments& a, const std::optional<ModelCache>& cache, const ModelCache::Entry& entry) {
  Start start;
  if (cache) {
    FALAJ_ASSIGN(start.model, cache->find(entry, compile_options(a.precision, a.threads)));
  }
  if (start.model.compiled != nullptr) {
    start.packed = start.model.compiled->packed()->bytes();
    return start;
  }
  FALAJ_ASSIGN(start.graph, load_model(a.model, &start.model.others));
  FALAJ_ASSIGN(const auto sizes, open_sizes(a.sizes));
  FALAJ_TRY(close_sizes(start.graph, sizes));
  return start;
}

Result<std::vector<Tensor>> random_inputs(const Graph& graph, std::int64_t batch) {
  Random random(1);
  std::vector<Tensor> inputs;
  bool open = false;
  for (const ValueInfo& info : graph.inputs) {
    open = open || !info.shape.is_static();
    FALAJ_ASSIGN(auto input, random_input(graph, info, batch, random));
    inputs.push_back(std::move(input));
  }
  const bool same = std::ranges::all_of(inputs, [&](const Tensor& t) { return !t.shape().empty() && t.shape()[0] == batch; });
  if (!open && !same)
    return invalid(format("the model's inputs have fixed sizes, which are no batch of {}: export it with a dynamic batch", batch));
  return inputs;
}

Result<Measured> measure_answers(const Arguments& a, const Clock& clock) {
  kernels::set_flush_denormals();
  std::optional<ModelCache> cache;
  ModelCache::Entry entry;
  const Instant began = clock.now();
  if (!a.cache.empty()) {
    std::string options = a.precision;
    for (const auto& size : a.sizes) options += " " + size;
    FALAJ_ASSIGN(cache, ModelCache::open(a.cache, clock));
    FALAJ_ASSIGN(entry, cache->entry(a.model, options));
  }
  FALAJ_ASSIGN(auto start, load(a, cache, entry));
  auto& model = start.model.compiled;
  const Instant loaded = clock.now();
  FALAJ_ASSIGN(const auto inputs, random_inputs(model != nullptr ? model->graph() : start.graph, a.batch));
  if (a.precision == "int8") {
    FALAJ_ASSIGN(start.graph, kernels::quantize_all(start.graph, inputs));
  }
  const Instant compiling = clock.now();
  if (model == nullptr) {
    FALAJ_ASSIGN(model, kernels::compile(std::move(start.graph), compile_options(a.precision, a.threads)));
  }
  kernels::Executor executor(model, a.threads);
  std::vector<Shape> shapes;
  for (const Tensor& input : inputs) shapes.push_back(input.shape());
  FALAJ_TRY(executor.prepare(shapes));
  const Instant compiled = clock.now();
  std::vector<Tensor> outputs;
  FALAJ_TRY(executor.run(inputs, outputs));
  const Duration starting = (loaded - began) + (clock.now() - compiling);
  Repeats repeats(clock, a.seconds);
  repeats.begin();
  while (!repeats.enough()) {
    FALAJ_TRY(executor.run(inputs, outputs));
    repeats.add();
  }
  if (cache && model->packed()->bytes() != start.packed) FALAJ_TRY(cache->keep(entry, start.model));
  auto measured = figures(repeats, a.batch, compiled - compiling);
  measured.start_ms = std::chrono::duration<double, std::milli>(starting).count();
  return measured;
}

// Cross-entropy of random classes, or BCE of one output.
struct Target {
  kernels::Objective objective;
  Tensor labels;
};
Result<Target> random_target(const Graph& graph, std::int64_t rows, Random& random) {
  FALAJ_ASSIGN(const auto logits, kernels::logits_of(graph, {}));
  FALAJ_ASSIGN(const auto typed, kernels::infer_types(graph, kernels::kSampleRows));
  Shape row = typed.types.find(logits)->second.shape;
  if (row.empty()) return invalid(format("value '{}' has no row for each row of the inputs: it cannot be trained", logits));
  row.erase(0);
  Target target;
  std::int64_t classes = 2;
  if (row.elements() == 1) {
    target.objective.loss = kernels::Loss::bce;
    target.objective.label_row = row;
  } else {
    // Classes come first, as in PyTorch; a sequence of positions has them last.
    const std::size_t axis = row.rank() == 2 ? 1 : 0;
    classes = row[axis];
    row.erase(axis);
    target.objective.label_row = row;
  }
  Shape shape = row;
  shape.insert(0, rows);
  FALAJ_TRY(kernels::byte_size(DType::i64, shape));
  target.labels = Tensor(DType::i64, shape);
  for (auto& label : target.labels.mutable_data<std::int64_t>())
    label = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(classes)));
  return target;
}

Result<Measured> measure_steps(const Arguments& a, const Clock& clock) {
  FALAJ_ASSIGN(auto graph, load_model(a.model));
  FALAJ_ASSIGN(const auto sizes, open_sizes(a.sizes));
  FALAJ_TRY(close_sizes(graph, sizes));
  graph.origin.reset();  // nothing is exported: the file is no part of a step
  Random random(1);
  std::int64_t row_bytes = 1;
  for (const ValueInfo& info : graph.inputs) {
    FALAJ_ASSIGN(const auto bytes, kernels::byte_size(info.dtype, with_batch(info, 1)));
    row_bytes += static_cast<std::int64_t>(bytes);
  }
  // A few batches, where memory allows: drawing rows is part of a step.
  const std::int64_t rows = a.batch * std::clamp<std::int64_t>(kTrainRowBytesMax / (row_bytes * a.batch), 1, 8);
  std::vector<Tensor> inputs;
  for (const ValueInfo& info : graph.inputs) {
    FALAJ_ASSIGN(auto input, random_input(graph, info, rows, random));
    inputs.push_back(std::move(input));
  }
  FALAJ_ASSIGN(auto target, random_target(graph, rows, random));
  const Instant began = clock.now();
  kernels::TrainTarget how{.objective = target.objective, .batch_statistics = true, .bf16 = a.precision == "bf16", .threads = a.threads};
  FALAJ_ASSIGN(const auto trainer, kernels::Trainer::make(std::move(graph), std::move(how)));
  FALAJ_ASSIGN(const auto data, trainer->prepare(std::move(inputs), target.labels));
  const Duration compiling = clock.now() - began;
  kernels::StepsSpec spec;
  spec.optimizer = kernels::default_optimizer(kernels::OptimizerKind::adamw);
  spec.sampler = {.global_batch = static_cast<std::uint32_t>(a.batch), .seed = 1};
  spec.steps = kRunsMax;
  Repeats repeats(clock, a.seconds);
  // The steps of `falaj model train`, ended from within when there were enough.
  constexpr ErrorCode kEnough = ErrorCode::gone;
  repeats.begin();
  const auto done = kernels::train_steps(*trainer, data, spec, [&](const kernels::StepReport&) -> Status {
    repeats.add();
    return repeats.enough() ? Status(Error{kEnough, "enough"}) : Status();
  });
  if (!done && done.error().code != kEnough) return done.error();
  return figures(repeats, a.batch, compiling);
}

Status do_bench(Arguments a) {
  const auto base = resident_bytes();
  const SystemClock clock;
  if (a.precision == "int8" && a.train)
    return Error{ErrorCode::unimplemented, "--precision int8 --train: models train in f32 or bf16; train first, then `model quantize`"};
  FALAJ_ASSIGN(a.threads, usable_threads(a.threads));
  if (a.batch < 1 || a.batch > kBatchMax) return invalid(format("--batch is {}; it must be 1 to {}", a.batch, kBatchMax));
  if (!(a.seconds > 0 && a.seconds <= 3600)) return invalid("--seconds must be larger than 0 and at most 3600");
  if (!a.cache.empty() && (a.train || a.precision == "int8"))
    return invalid("--cache: neither training nor --precision int8 (which is quantised by random inputs) can be kept; leave it out");
  auto measured = a.train ? measure_steps(a, clock) : measure_answers(a, clock);
  if (!measured) return within(a.model, measured.error());
  const Measured& m = *measured;
  const auto peak = std::max(peak_resident_bytes(), base) - base;  // less what the process held when the command began
  if (a.json) {
    const auto start = m.start_ms && !a.cache.empty() ? format(",\"start_ms\":{:.6g}", *m.start_ms) : std::string();
    print(format("{{\"p50_us\":{:.6g},\"p99_us\":{:.6g},\"rows_per_s\":{:.6g},\"compile_ms\":{:.6g},\"peak_bytes\":{}{}}}", m.p50_us,
                 m.p99_us, m.rows_per_s, m.compile_ms, peak, start));
    return {};
  }
  print(table({{"P50", "P99", "ROWS/S", a.train ? "STEPS" : "RUNS", "COMPILE", "START", "PEAK MEMORY"},
               {format("{:.2f} us", m.p50_us), format("{:.2f} us", m.p99_us), format("{:.0f}", m.rows_per_s), std::to_string(m.runs),
                format("{:.1f} ms", m.compile_ms), m.start_ms ? format("{:.1f} ms", *m.start_ms) : "-",
                format("{:.1f} MiB", static_cast<double>(peak) / (1 << 20))}}));
  return {};
}

}  // namespace

void add_model_bench_command(CLI::App& model, Cli& cli) {
  const auto a = std::make_shared<Arguments>();
  auto* bench = model.add_subcommand("bench", "How long a model takes on this machine, by random inputs: answers, or training steps");
  bench->add_option("model", a->model, "ONNX file")->required()->type_name("FILE");
  bench->add_option("--batch,-b", a->batch, "Rows at a time: the size of the first dimension where the model leaves it open")
      ->capture_default_str()
      ->type_name("N");
  bench->add_option("--threads", a->threads, "Threads of the processor; 0: as many as there are")->capture_default_str()->type_name("T");
  bench
      ->add_option("--precision", a->precision,
                   "f32; bf16 (operands of products and convolutions are rounded; for answers, those by known weights); for answers int8 "
                   "too (every layer is quantised by the random inputs)")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16", "int8"}));
  bench->add_option("--size", a->sizes, "Another size that the model leaves open, by its name")->type_name("NAME=SIZE");
  bench
      ->add_option("--cache", a->cache,
                   "Keep the compiled model in this folder, and take it from there the next time; JSON then has start_ms too: load, "
                   "compile, first answer")
      ->type_name("DIR");
  bench->add_option("--seconds", a->seconds, "How long is measured, after the warm-up")->capture_default_str()->type_name("S");
  bench->add_flag("--train", a->train, "Full training steps: forward, backward, AdamW; cross-entropy, or BCE for one output");
  bench->add_flag("--json", a->json, "Print JSON");
  bench->footer("Example:\n  falaj model bench resnet18.onnx --batch 64 --threads 1 --json");
  cli.runs(*bench, [a] { return do_bench(*a); });
}

}  // namespace falaj::nodes
