#include "kernels/train/trainer.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <set>

#include "kernels/collective/float_mode.hpp"
#include "kernels/plan.hpp"
#include "kernels/train/cut.hpp"
#include "kernels/train/json.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels {

namespace {

constexpr std::size_t kPredictRows = 512;   // rows of one run without gradients
constexpr std::size_t kPrepareRows = 8192;  // rows of one run of the prefix
constexpr std::size_t kBatchesMax = 64;     // sizes of batches whose buffers are kept
constexpr std::string_view kTargetInput = "falaj/target";

// The thread's float mode for as long as kernels run on it; the previous one comes back, OpenMP's team of one stays.
struct ComputeScope {
  ComputeScope() { set_flush_denormals(); }
  FlushDenormals mode;
};

Tensor batch_like(const ValueInfo& info, std::size_t rows) {
  Shape shape = info.shape;
  shape[0] = static_cast<std::int64_t>(rows);
  return Tensor::uninitialised(info.dtype, shape);
}

void gather_rows(const Tensor& from, std::span<const std::uint32_t> rows, Tensor& to) {
  const std::size_t bytes = rows.empty() ? 0 : to.bytes() / rows.size();
  const auto* source = static_cast<const std::byte*>(from.raw());
  auto* target = static_cast<std::byte*>(to.mutable_raw());
  for (std::size_t i = 0; i < rows.size(); ++i) std::memcpy(target + i * bytes, source + rows[i] * bytes, bytes);
}

// Values of a gradient graph that are wanted as outputs need names of their own.
std::string own_output(Graph& graph, const std::string& value, std::set<std::string>& used) {
  const bool taken = graph.initializers.contains(value) || graph.find_input(value) != nullptr || !used.insert(value).second;
  if (!taken) return value;
  std::string own = graph.add("Identity", std::vector<std::string>{value});
  used.insert(own);
  return own;
}

}  // namespace

struct Trainer::Impl {
  Graph graph;  // as given
  TargetSpec target;
  std::vector<ValueInfo> boundary;
  std::vector<ValueInfo> raw_inputs;
  std::vector<Parameter> layout;
  std::vector<float> parameters;
  bool softmax = false;
  std::size_t outputs = 1;
  Shape logits_row;  // shape of the logits without rows

  std::optional<Executor> prefix;  // none: the boundary consists of raw inputs only
  std::optional<Executor> training;
  std::optional<Executor> forward;

  struct Dropped {
    ValueInfo mask;
    std::size_t width = 0;
  };
  std::vector<Dropped> dropped;
  float dropout = 0;

  struct Batch {
    std::vector<Tensor> values;
    Tensor target;
    std::vector<Tensor> masks;
    std::vector<Tensor> outputs;
    std::vector<Tensor> logits;
  };
  std::map<std::size_t, Batch> batches;
  std::vector<Tensor> inputs;  // of one run; kept for its memory

  Status set_up(TrainTarget wanted);
  Status set_up_target(const Cut& cut);
  Result<Graph> training_graph(const Cut& cut);
  Status drop_out(Graph& rest);
  Status lay_out(Graph& with_gradients, const Cut& cut, const std::vector<std::string>& gradients);
  Batch& batch(std::size_t rows);
  void fill_masks(Batch& buffers, std::span<const std::uint32_t> rows, std::uint64_t key) const;
  void push_parameters();
  Result<Tensor> raw_input(const ValueInfo& info, const Table& table, std::size_t first, std::size_t count) const;
  Result<std::vector<float>> logits(const DataSet& data, std::span<const std::uint32_t> rows);
  const std::vector<Tensor>& values(const DataSet& data) const { return data.values_; }
};

Trainer::Trainer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Trainer::~Trainer() = default;

Result<std::unique_ptr<Trainer>> Trainer::make(Graph graph, TrainTarget target) {
  const ComputeScope scope;
  auto impl = std::make_unique<Impl>();
  impl->graph = std::move(graph);
  FALAJ_TRY(impl->set_up(std::move(target)));
  return std::unique_ptr<Trainer>(new Trainer(std::move(impl)));
}

Status Trainer::Impl::set_up(TrainTarget wanted) {
  target = std::move(wanted.spec);
  FALAJ_ASSIGN(Cut cut, cut_for_training(graph, wanted.logits, wanted.trainable));
  boundary = cut.boundary;
  raw_inputs = graph.inputs;
  FALAJ_TRY(set_up_target(cut));

  FALAJ_ASSIGN(Graph with_gradients, training_graph(cut));
  std::vector<std::string> order;
  for (const Parameter& parameter : layout) order.push_back(parameter.name);
  FALAJ_ASSIGN(const std::vector<Tensor> initial, promote_to_inputs(with_gradients, order));
  parameters.resize(layout.empty() ? 0 : layout.back().offset + layout.back().count);
  for (std::size_t i = 0; i < layout.size(); ++i) {
    std::ranges::copy(initial[i].data<float>(), parameters.begin() + static_cast<std::ptrdiff_t>(layout[i].offset));
  }
  Graph rest = cut.rest;
  FALAJ_ASSIGN([[maybe_unused]] const std::vector<Tensor> same, promote_to_inputs(rest, order));

  const CompileOptions options{.batch_invariant = false};
  FALAJ_ASSIGN(auto compiled_training, compile(std::move(with_gradients), options));
  training.emplace(std::move(compiled_training));
  FALAJ_ASSIGN(auto compiled_forward, compile(std::move(rest), {}));
  forward.emplace(std::move(compiled_forward));
  if (!cut.prefix.outputs.empty()) {
    FALAJ_ASSIGN(auto compiled_prefix, compile(std::move(cut.prefix), {}));
    prefix.emplace(std::move(compiled_prefix));
  }
  return {};
}

Status Trainer::Impl::set_up_target(const Cut& cut) {
  const Shape& shape = cut.logits_type.shape;
  if (shape.empty() || shape.rank() > 2 || shape[0] != kSampleRows) {
    return invalid(format("value '{}' has shape {}, training needs [rows] or [rows, outputs]", cut.logits, to_string(shape)));
  }
  logits_row = shape;
  logits_row.erase(0);
  const auto width = static_cast<std::size_t>(logits_row.elements());
  softmax = target.task == Task::multiclass || (target.task == Task::binary && width == 2);
  const std::size_t wanted = softmax ? target.classes.size() : 1;
  if (width != wanted || (softmax && shape.rank() != 2)) {
    return invalid(format("value '{}' has shape {}, a {} target of {} classes needs {} outputs", cut.logits, to_string(shape),
                          to_string(target.task), target.classes.size(), wanted));
  }
  outputs = target.task == Task::multiclass ? width : 1;
  return {};
}

Status Trainer::Impl::drop_out(Graph& rest) {
  const auto names = graph.metadata.find(metadata::kDropout);
  if (names == graph.metadata.end()) return {};
  FALAJ_ASSIGN(const auto values, read_json_strings(names->second));
  const std::string share = graph.metadata.contains(metadata::kDropoutShare) ? graph.metadata.find(metadata::kDropoutShare)->second : "";
  std::from_chars(share.data(), share.data() + share.size(), dropout);
  if (!(dropout > 0 && dropout < 1)) return {};
  FALAJ_ASSIGN(const TypedGraph typed, infer_types(rest, kSampleRows));
  for (const std::string& value : values) {
    const auto type = typed.types.find(value);
    if (type == typed.types.end() || type->second.shape.rank() != 2) continue;
    Dropped entry{{value + "/mask", DType::f32, {-1, type->second.shape[1]}, {"N", ""}}, static_cast<std::size_t>(type->second.shape[1])};
    rest.inputs.push_back(entry.mask);
    const std::string kept = value + "/kept";
    for (Node& node : rest.nodes) std::ranges::replace(node.inputs, value, kept);
    rest.add("Mul", {value, entry.mask.name}, {}, kept);
    dropped.push_back(std::move(entry));
  }
  return {};
}

Result<Graph> Trainer::Impl::training_graph(const Cut& cut) {
  Graph out = cut.rest;
  ValueInfo info{std::string(kTargetInput), DType::f32, {-1}, {"N"}};
  if (softmax) {
    info.dtype = DType::i64;
  } else if (!logits_row.empty()) {
    info.shape.push_back(1);
    info.symbols.emplace_back();
  }
  out.inputs.push_back(info);
  FALAJ_TRY(drop_out(out));
  const std::string_view op = softmax ? "SoftmaxCrossEntropy" : target.task == Task::regression ? "MeanSquare" : "SigmoidCrossEntropy";
  const std::string loss = out.add(kFalaj, op, {cut.logits, info.name}, {{"reduction", std::string("sum")}}, "falaj/loss");
  out.outputs.clear();
  out.add_output(loss, DType::f32, {});
  FALAJ_ASSIGN(auto gradients, append_gradients(out, loss, cut.parameters));
  std::set<std::string> used = {loss};
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (gradients[i].empty()) return invalid(format("the loss does not depend on '{}'", cut.parameters[i]));
    gradients[i] = own_output(out, gradients[i], used);
  }
  FALAJ_TRY(lay_out(out, cut, gradients));
  return out;
}

// Parameters in the order in which the backward pass finishes their gradients.
Status Trainer::Impl::lay_out(Graph& with_gradients, const Cut& cut, const std::vector<std::string>& gradients) {
  FALAJ_ASSIGN(const auto order, topological_order(with_gradients));
  std::map<std::string_view, std::size_t> finished;
  for (std::size_t position = 0; position < order.size(); ++position) {
    for (const std::string& output : with_gradients.nodes[order[position]].outputs) finished[output] = position;
  }
  std::vector<std::size_t> by_completion(gradients.size());
  for (std::size_t i = 0; i < by_completion.size(); ++i) by_completion[i] = i;
  std::ranges::sort(by_completion, {}, [&](std::size_t i) { return std::pair(finished[gradients[i]], i); });
  std::size_t offset = 0;
  for (const std::size_t i : by_completion) {
    const Shape shape = with_gradients.initializers.find(cut.parameters[i])->second.shape();
    const auto count = static_cast<std::size_t>(shape.elements());
    layout.push_back({cut.parameters[i], shape, offset, count, shape.rank() >= 2});
    offset += count;
    with_gradients.add_output(gradients[i], DType::f32, shape);
  }
  return {};
}

Trainer::Impl::Batch& Trainer::Impl::batch(std::size_t rows) {
  if (const auto found = batches.find(rows); found != batches.end()) return found->second;
  if (batches.size() >= kBatchesMax) batches.clear();
  Batch& made = batches[rows];
  for (const ValueInfo& info : boundary) made.values.push_back(batch_like(info, rows));
  Shape shape{static_cast<std::int64_t>(rows)};
  if (!softmax && !logits_row.empty()) shape.push_back(1);
  made.target = Tensor::uninitialised(softmax ? DType::i64 : DType::f32, shape);
  for (const Dropped& entry : dropped) made.masks.push_back(batch_like(entry.mask, rows));
  return made;
}

// A mask belongs to a row and a step, so that it does not matter which rank computes the row.
void Trainer::Impl::fill_masks(Batch& buffers, std::span<const std::uint32_t> rows, std::uint64_t key) const {
  const float kept = 1.0F / (1.0F - dropout);
  for (std::size_t d = 0; d < dropped.size(); ++d) {
    float* mask = buffers.masks[d].mutable_data<float>().data();
    for (const std::uint32_t row : rows) {
      Random random((key * 0x9e3779b97f4a7c15ULL) ^ ((std::uint64_t{row} << 16) + d));
      for (std::size_t i = 0; i < dropped[d].width; ++i) *mask++ = random.chance(dropout) ? 0.0F : kept;
    }
  }
}

void Trainer::Impl::push_parameters() {
  for (const Parameter& parameter : layout)
    inputs.push_back(Tensor::view(DType::f32, parameter.shape, parameters.data() + parameter.offset));
}

// One of the graph's inputs for rows [first, first + count): the column of its name or, for the only input of a graph, all numeric
// columns in their order.
Result<Tensor> Trainer::Impl::raw_input(const ValueInfo& info, const Table& table, std::size_t first, std::size_t count) const {
  Shape shape = info.shape;
  if (shape.empty()) return invalid(format("input '{}' is a scalar: rows cannot be fed to it", info.name));
  shape[0] = static_cast<std::int64_t>(count);
  std::int64_t width = 1;
  for (std::size_t i = 1; i < shape.rank(); ++i) width *= shape[i];
  if (!shape.is_static()) return invalid(format("input '{}' has shape {}: only the rows may be unknown", info.name, to_string(info.shape)));
  std::vector<const Column*> columns;
  for (std::size_t i = 0; i < table.columns.size(); ++i) {
    const bool named = table.columns[i].name == info.name;
    const bool all = raw_inputs.size() == 1 && width > 1 && table.columns[i].kind == ColumnKind::numeric;
    if (named || all) columns.push_back(&table.values[i]);
  }
  if (columns.empty()) return invalid(format("the model reads column '{}', which the data do not have", info.name));
  if (static_cast<std::int64_t>(columns.size()) != width) {
    return invalid(format("input '{}' has {} values in each row, the data have {} columns for it", info.name, width, columns.size()));
  }
  if (info.dtype == DType::string) {
    const auto* texts = std::get_if<CategoricalColumn>(columns[0]);
    if (texts == nullptr) return invalid(format("the model reads column '{}' as a category, the data have numbers", info.name));
    return Tensor::const_view(DType::string, shape, texts->data() + first);
  }
  Tensor out = Tensor::uninitialised(info.dtype, shape);
  for (std::size_t c = 0; c < columns.size(); ++c) {
    const auto* numbers = std::get_if<NumericColumn>(columns[c]);
    if (numbers == nullptr) return invalid(format("the model reads column '{}' as a number, the data have categories", info.name));
    const auto copy = [&]<class T>(std::span<T> to) {
      for (std::size_t row = 0; row < count; ++row) to[row * columns.size() + c] = static_cast<T>((*numbers)[first + row]);
    };
    switch (info.dtype) {
      case DType::f32:
        copy(out.mutable_data<float>());
        break;
      case DType::f64:
        copy(out.mutable_data<double>());
        break;
      case DType::i64:
        copy(out.mutable_data<std::int64_t>());
        break;
      case DType::i32:
        copy(out.mutable_data<std::int32_t>());
        break;
      default:
        return invalid(format("input '{}' is {}: columns are numbers or categories", info.name, to_string(info.dtype)));
    }
  }
  return out;
}

Result<DataSet> Trainer::prepare(const Table& table, std::vector<float> labels) {
  const ComputeScope scope;
  Impl& self = *impl_;
  FALAJ_TRY(check(table));
  const std::size_t rows = table.rows();
  if (labels.size() != rows) return invalid(format("{} labels for {} rows", labels.size(), rows));
  for (std::size_t row = 0; self.target.task != Task::regression && row < rows; ++row) {
    const float label = labels[row];
    if (!(label >= 0 && label < static_cast<float>(self.target.classes.size())) || label != std::floor(label)) {
      return invalid(format("row {}: label {} is not the number of one of {} classes", row, label, self.target.classes.size()));
    }
  }
  DataSet data;
  data.labels_ = std::move(labels);
  for (const ValueInfo& info : self.boundary) data.values_.push_back(batch_like(info, rows));
  for (std::size_t first = 0; first < rows; first += kPrepareRows) {
    const std::size_t count = std::min(kPrepareRows, rows - first);
    std::vector<Tensor> raw;
    for (const ValueInfo& info : self.raw_inputs) {
      FALAJ_ASSIGN(Tensor tensor, self.raw_input(info, table, first, count));
      raw.push_back(std::move(tensor));
    }
    std::vector<Tensor> computed;
    if (self.prefix) {
      FALAJ_TRY(self.prefix->run(raw, computed));
    }
    std::size_t next = 0;
    for (std::size_t i = 0; i < self.boundary.size(); ++i) {
      const auto direct = std::ranges::find(self.raw_inputs, self.boundary[i].name, &ValueInfo::name);
      const Tensor& part =
          direct != self.raw_inputs.end() ? raw[static_cast<std::size_t>(direct - self.raw_inputs.begin())] : computed[next++];
      const std::size_t row_bytes = part.bytes() / count;
      std::memcpy(static_cast<std::byte*>(data.values_[i].mutable_raw()) + first * row_bytes, part.raw(), part.bytes());
    }
  }
  return data;
}

Result<double> Trainer::gradient(const DataSet& data, std::span<const std::uint32_t> rows, std::span<float> sum_of_gradients,
                                 std::uint64_t key) {
  Impl& self = *impl_;
  if (sum_of_gradients.size() != self.parameters.size()) {
    return invalid(format("room for {} gradients, there are {} parameters", sum_of_gradients.size(), self.parameters.size()));
  }
  if (rows.empty()) {
    std::ranges::fill(sum_of_gradients, 0.0F);
    return 0.0;
  }
  if (std::ranges::max(rows) >= data.rows()) return invalid(format("row {} of a data set of {}", std::ranges::max(rows), data.rows()));
  const ComputeScope scope;
  Impl::Batch& batch = self.batch(rows.size());
  self.inputs.clear();
  for (std::size_t i = 0; i < batch.values.size(); ++i) {
    gather_rows(self.values(data)[i], rows, batch.values[i]);
    self.inputs.push_back(batch.values[i]);
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const float label = data.labels()[rows[i]];
    if (self.softmax) {
      batch.target.mutable_data<std::int64_t>()[i] = static_cast<std::int64_t>(label);
    } else if (self.target.task == Task::regression) {
      batch.target.mutable_data<float>()[i] = static_cast<float>((label - self.target.mean) / self.target.scale);
    } else {
      batch.target.mutable_data<float>()[i] = label;
    }
  }
  self.inputs.push_back(batch.target);
  self.fill_masks(batch, rows, key);
  for (const Tensor& mask : batch.masks) self.inputs.push_back(mask);
  self.push_parameters();

  batch.outputs.resize(1 + self.layout.size());
  for (std::size_t i = 0; i < self.layout.size(); ++i) {
    batch.outputs[1 + i] = Tensor::view(DType::f32, self.layout[i].shape, sum_of_gradients.data() + self.layout[i].offset);
  }
  FALAJ_TRY(self.training->run(self.inputs, batch.outputs));
  for (std::size_t i = 0; i < self.layout.size(); ++i) {
    const Parameter& parameter = self.layout[i];
    const auto got = batch.outputs[1 + i].data<float>();
    if (got.data() != sum_of_gradients.data() + parameter.offset)
      std::ranges::copy(got, sum_of_gradients.begin() + static_cast<std::ptrdiff_t>(parameter.offset));
  }
  return static_cast<double>(batch.outputs[0].data<float>()[0]);
}

Result<std::vector<float>> Trainer::Impl::logits(const DataSet& data, std::span<const std::uint32_t> rows) {
  const ComputeScope scope;
  std::vector<float> out;
  for (std::size_t first = 0; first < rows.size(); first += kPredictRows) {
    const auto part = rows.subspan(first, std::min(kPredictRows, rows.size() - first));
    if (std::ranges::max(part) >= data.rows()) return invalid(format("row {} of a data set of {}", std::ranges::max(part), data.rows()));
    Batch& buffers = batch(part.size());
    inputs.clear();
    for (std::size_t i = 0; i < buffers.values.size(); ++i) {
      gather_rows(values(data)[i], part, buffers.values[i]);
      inputs.push_back(buffers.values[i]);
    }
    push_parameters();
    FALAJ_TRY(forward->run(inputs, buffers.logits));
    const auto got = buffers.logits[0].data<float>();
    out.insert(out.end(), got.begin(), got.end());
  }
  return out;
}

namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// Softmax in place; returns the logarithm of the sum, so that -log p(c) = that - logit(c).
double soften(std::span<float> row) {
  const double top = std::ranges::max(row);
  double sum = 0;
  for (const float x : row) sum += std::exp(static_cast<double>(x) - top);
  for (float& x : row) x = static_cast<float>(std::exp(static_cast<double>(x) - top) / sum);
  return top + std::log(sum);
}

}  // namespace

Result<std::vector<float>> Trainer::predict(const DataSet& data, std::span<const std::uint32_t> rows) {
  FALAJ_ASSIGN(std::vector<float> values, impl_->logits(data, rows));
  if (impl_->target.task == Task::regression) {
    for (float& x : values) x = static_cast<float>(impl_->target.mean + impl_->target.scale * x);
  } else if (!impl_->softmax) {
    for (float& x : values) x = static_cast<float>(sigmoid(x));
  } else {
    const std::size_t width = impl_->target.classes.size();
    for (std::size_t row = 0; row < rows.size(); ++row) soften(std::span(values).subspan(row * width, width));
    if (impl_->target.task == Task::binary) {
      for (std::size_t row = 0; row < rows.size(); ++row) values[row] = values[row * 2 + 1];
      values.resize(rows.size());
    }
  }
  return values;
}

Result<Evaluation> Trainer::evaluate(const DataSet& data, std::span<const std::uint32_t> rows) {
  FALAJ_ASSIGN(std::vector<float> values, impl_->logits(data, rows));
  const TargetSpec& target = impl_->target;
  Evaluation out;
  out.rows = rows.size();
  if (target.task == Task::multiclass) out.metrics = MulticlassMetrics(target.classes.size());
  if (target.task == Task::regression) out.metrics = RegressionMetrics();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const float label = data.labels()[rows[i]];
    if (impl_->softmax) {
      const std::size_t width = target.classes.size();
      const auto row = std::span(values).subspan(i * width, width);
      const auto actual = static_cast<std::size_t>(label);
      const double logit = row[actual];
      out.loss_sum += soften(row) - logit;
      if (auto* metrics = std::get_if<MulticlassMetrics>(&out.metrics)) {
        metrics->add(row, actual);
      } else {
        std::get<BinaryMetrics>(out.metrics).add(row[1], actual == 1);
      }
    } else if (target.task == Task::binary) {
      const double x = values[i];
      out.loss_sum += std::max(x, 0.0) - x * label + std::log1p(std::exp(-std::abs(x)));
      std::get<BinaryMetrics>(out.metrics).add(static_cast<float>(sigmoid(x)), label == 1.0F);
    } else {
      const double difference = values[i] - (label - target.mean) / target.scale;
      out.loss_sum += difference * difference;
      std::get<RegressionMetrics>(out.metrics).add(static_cast<float>(target.mean + target.scale * values[i]), label);
    }
  }
  return out;
}

std::span<float> Trainer::parameters() noexcept { return impl_->parameters; }
std::span<const float> Trainer::parameters() const noexcept { return impl_->parameters; }
const std::vector<Parameter>& Trainer::layout() const noexcept { return impl_->layout; }
const TargetSpec& Trainer::target() const noexcept { return impl_->target; }
std::size_t Trainer::outputs() const noexcept { return impl_->outputs; }

Status Trainer::load(std::span<const float> parameters) {
  if (parameters.size() != impl_->parameters.size()) {
    return invalid(format("{} parameters do not fit a model of {}", parameters.size(), impl_->parameters.size()));
  }
  std::ranges::copy(parameters, impl_->parameters.begin());
  return {};
}

std::vector<std::uint8_t> Trainer::decay_mask() const {
  std::vector<std::uint8_t> mask;
  for (const Parameter& parameter : impl_->layout) mask.insert(mask.end(), parameter.count, parameter.decay ? 1 : 0);
  return mask;
}

std::vector<Bucket> Trainer::buckets(std::size_t floats_min) const {
  std::vector<Bucket> out;
  for (const Parameter& parameter : impl_->layout) {
    if (out.empty() || out.back().count >= floats_min) out.push_back({parameter.offset, 0});
    out.back().count += parameter.count;
  }
  return out;
}

Graph Trainer::export_graph() const {
  Graph out = impl_->graph;
  for (const Parameter& parameter : impl_->layout) {
    out.initializers.find(parameter.name)->second =
        Tensor::of<float>(parameter.shape, std::span<const float>(impl_->parameters).subspan(parameter.offset, parameter.count));
  }
  return out;
}

double Evaluation::score() const {
  if (const auto* binary = std::get_if<BinaryMetrics>(&metrics)) return binary->auc();
  if (const auto* classes = std::get_if<MulticlassMetrics>(&metrics)) return classes->accuracy();
  return -std::get<RegressionMetrics>(metrics).rmse();
}

std::map<std::string, double, std::less<>> Evaluation::named() const {
  if (const auto* m = std::get_if<BinaryMetrics>(&metrics)) {
    return {{"auc", m->auc()},
            {"log_loss", m->log_loss()},
            {"accuracy", m->accuracy()},
            {"precision", m->precision()},
            {"recall", m->recall()},
            {"f1", m->f1()},
            {"loss", loss()}};
  }
  if (const auto* m = std::get_if<MulticlassMetrics>(&metrics)) {
    return {{"accuracy", m->accuracy()}, {"log_loss", m->log_loss()}, {"macro_f1", m->macro_f1()}, {"loss", loss()}};
  }
  const auto& m = std::get<RegressionMetrics>(metrics);
  return {{"rmse", m.rmse()}, {"mae", m.mae()}, {"r2", m.r2()}, {"loss", loss()}};
}

Status Evaluation::merge(const Evaluation& other) {
  if (metrics.index() != other.metrics.index()) return invalid("evaluations of different tasks cannot be merged");
  loss_sum += other.loss_sum;
  rows += other.rows;
  std::visit([&]<class M>(M& mine) { mine.merge(std::get<M>(other.metrics)); }, metrics);
  return {};
}

}  // namespace falaj::kernels
