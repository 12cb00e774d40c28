#include "kernels/train/trainer.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <set>

#include "kernels/collective/float_mode.hpp"
#include "kernels/optimise.hpp"
#include "kernels/plan.hpp"
#include "kernels/train/columns.hpp"
#include "kernels/train/cut.hpp"
#include "kernels/train/forms.hpp"
#include "kernels/train/recompute.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"

namespace falaj::kernels {

namespace {

constexpr std::size_t kPredictRows = 512;   // rows of one run without gradients
constexpr std::size_t kPrepareRows = 8192;  // rows of one run of the prefix
constexpr std::size_t kBatchesMax = 64;     // sizes of batches whose buffers are kept
constexpr std::string_view kTargetInput = "falaj/target";

// The thread's float mode for as long as kernels run on it; the previous one comes back.
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
  Shape logits_row;                      // shape of the logits without rows
  std::optional<Comparison> comparison;  // with an objective
  std::vector<Tie> ties;

  // Running statistics: not parameters, but moved by each run that takes gradients.
  struct State {
    Running names;
    Tensor value;
  };
  std::vector<State> state;
  Graph source;  // what `training` was compiled from

  std::optional<Executor> prefix;  // none: the boundary consists of raw inputs only
  std::optional<Executor> training;
  std::optional<Executor> forward;

  struct Dropped {
    ValueInfo mask;
    std::size_t width = 0;
    double share = 0;
  };
  std::vector<Dropped> dropped;

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
  Status set_up_objective(const Cut& cut, const Objective& objective);
  Result<Graph> training_graph(const Cut& cut, const std::vector<DropoutPlace>& places, const Objective& regression);
  Status drop_out(Graph& rest, const std::vector<DropoutPlace>& places);
  Status lay_out(Graph& with_gradients, const Cut& cut, const std::vector<std::string>& gradients);
  Batch& batch(std::size_t rows);
  void fill_masks(Batch& buffers, std::span<const std::uint32_t> rows, std::uint64_t key) const;
  void push_parameters();
  void fill(const DataSet& data, std::span<const std::uint32_t> rows, std::uint64_t key);  // `inputs`, for one run with gradients
  Status prepare_rows(DataSet& data, const std::function<Result<std::vector<Tensor>>(std::size_t first, std::size_t count)>& raw_inputs_of);
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
  for (const std::string& pattern : wanted.frozen) {
    const auto named = [&](const auto& entry) { return stands_for(pattern, entry.first); };
    if (std::ranges::none_of(graph.initializers, named))
      return invalid(format("'{}' is to be frozen, but is no initialiser of the graph", pattern));
  }
  FALAJ_ASSIGN(TrainableForm form, trainable_form(graph));
  find_gelus(form.graph);  // one node has a simpler gradient, and keeps less for it, than the five that exporters write
  ties = std::move(form.ties);
  FALAJ_ASSIGN(Cut cut, cut_for_training(form.graph, wanted.logits, wanted.trainable, wanted.frozen));
  boundary = cut.boundary;
  raw_inputs = graph.inputs;
  FALAJ_TRY(wanted.objective ? set_up_objective(cut, *wanted.objective) : set_up_target(cut));
  const Graph rest = cut.rest;
  if (wanted.batch_statistics) {
    for (const Running& names : use_batch_statistics(cut.rest))
      state.push_back({names, rest.initializers.find(names.name)->second.clone()});
  }
  FALAJ_ASSIGN(auto places, dropouts_of_family(graph));
  if (wanted.dropout) places.insert(places.end(), form.dropouts.begin(), form.dropouts.end());

  FALAJ_ASSIGN(Graph with_gradients, training_graph(cut, places, wanted.regression));
  std::vector<std::string> order;
  for (const Parameter& parameter : layout) order.push_back(parameter.name);
  for (const State& entry : state) order.push_back(entry.names.name);
  FALAJ_ASSIGN(const std::vector<Tensor> initial, promote_to_inputs(with_gradients, order));
  parameters.resize(layout.empty() ? 0 : layout.back().offset + layout.back().count);
  for (std::size_t i = 0; i < layout.size(); ++i) {
    std::ranges::copy(initial[i].data<float>(), parameters.begin() + static_cast<std::ptrdiff_t>(layout[i].offset));
  }
  Graph forward_graph = rest;
  FALAJ_ASSIGN([[maybe_unused]] const std::vector<Tensor> same, promote_to_inputs(forward_graph, order));

  source = with_gradients;
  CompileOptions options{.batch_invariant = false, .threads = wanted.threads};
  if (wanted.bf16) options.backends = backends_after(bf16_training_backend());
  FALAJ_ASSIGN(auto compiled_training, compile(std::move(with_gradients), std::move(options)));
  training.emplace(std::move(compiled_training), wanted.threads);
  FALAJ_ASSIGN(auto compiled_forward, compile(std::move(forward_graph), {}));
  forward.emplace(std::move(compiled_forward));
  if (!cut.prefix.outputs.empty()) {
    FALAJ_ASSIGN(auto compiled_prefix, compile(std::move(cut.prefix), {}));
    prefix.emplace(std::move(compiled_prefix));
  }
  // The model's own copies of them would be twice the memory for nothing.
  for (const Parameter& parameter : layout)
    graph.initializers.find(parameter.name)->second = Tensor::view(DType::f32, parameter.shape, parameters.data() + parameter.offset);
  return {};
}

Status Trainer::Impl::set_up_objective(const Cut& cut, const Objective& objective) {
  const Shape& shape = cut.logits_type.shape;
  if (shape.empty() || shape[0] != kSampleRows)
    return invalid(format("value '{}' has shape {} for {} rows: training needs one row each", cut.logits, to_string(shape), kSampleRows));
  logits_row = shape;
  logits_row.erase(0);
  auto found = compare(objective, logits_row);
  if (!found) return within(format("value '{}'", cut.logits), found.error());
  comparison = std::move(*found);
  outputs = static_cast<std::size_t>(logits_row.elements());
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

Status Trainer::Impl::drop_out(Graph& rest, const std::vector<DropoutPlace>& places) {
  if (places.empty()) return {};
  FALAJ_ASSIGN(const TypedGraph typed, infer_types(rest, kSampleRows));
  for (const DropoutPlace& place : places) {
    const auto type = typed.types.find(place.value);
    const bool possible = place.share > 0 && place.share < 1;
    if (!possible || type == typed.types.end() || type->second.dtype != DType::f32) continue;
    Shape shape = type->second.shape;
    if (shape.empty() || shape[0] != kSampleRows)
      return invalid(format("'{}' is to be dropped out, but has shape {} for {} rows: masks belong to rows", place.value, to_string(shape),
                            kSampleRows));
    shape[0] = -1;
    ValueInfo mask{place.value + "/mask", DType::f32, shape};
    mask.symbols.assign(shape.rank(), "");
    mask.symbols[0] = "N";
    Dropped entry{std::move(mask), static_cast<std::size_t>(shape.elements(1, shape.rank())), place.share};
    rest.inputs.push_back(entry.mask);
    const std::string kept = place.value + "/kept";
    for (Node& node : rest.nodes) std::ranges::replace(node.inputs, place.value, kept);
    rest.add("Mul", {place.value, entry.mask.name}, {}, kept);
    dropped.push_back(std::move(entry));
  }
  return {};
}

Result<Graph> Trainer::Impl::training_graph(const Cut& cut, const std::vector<DropoutPlace>& places, const Objective& regression) {
  Graph out = cut.rest;
  ValueInfo info{std::string(kTargetInput), DType::f32, {-1}, {"N"}};
  if (comparison) {
    info = label_input(*comparison, kTargetInput);
  } else if (softmax) {
    info.dtype = DType::i64;
  } else if (!logits_row.empty()) {
    info.shape.push_back(1);
    info.symbols.emplace_back();
  }
  out.inputs.push_back(info);
  FALAJ_TRY(drop_out(out, places));
  Comparison plain;
  plain.objective = regression;
  if (softmax) plain.objective.loss = Loss::cross_entropy;
  if (!softmax && target.task != Task::regression) plain.objective.loss = Loss::bce;
  const std::string loss = append_loss(out, comparison.value_or(plain), cut.logits, info.name);
  out.outputs.clear();
  out.add_output(loss, DType::f32, {});
  const std::size_t forward_nodes = out.nodes.size();
  FALAJ_ASSIGN(auto gradients, append_gradients(out, loss, cut.parameters));
  recompute(out, forward_nodes);
  std::set<std::string> used = {loss};
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (gradients[i].empty()) return invalid(format("the loss does not depend on '{}'", cut.parameters[i]));
    gradients[i] = own_output(out, gradients[i], used);
  }
  FALAJ_TRY(lay_out(out, cut, gradients));
  for (const State& entry : state) out.add_output(entry.names.next, DType::f32, entry.value.shape());
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
  if (comparison) {
    made.target = batch_like(label_input(*comparison, kTargetInput), rows);
  } else {
    Shape shape{static_cast<std::int64_t>(rows)};
    if (!softmax && !logits_row.empty()) shape.push_back(1);
    made.target = Tensor::uninitialised(softmax ? DType::i64 : DType::f32, shape);
  }
  for (const Dropped& entry : dropped) made.masks.push_back(batch_like(entry.mask, rows));
  return made;
}

// A mask belongs to a row and a step, so that it does not matter which rank computes the row.
void Trainer::Impl::fill_masks(Batch& buffers, std::span<const std::uint32_t> rows, std::uint64_t key) const {
  for (std::size_t d = 0; d < dropped.size(); ++d) {
    const auto kept = static_cast<float>(1.0 / (1.0 - dropped[d].share));
    float* mask = buffers.masks[d].mutable_data<float>().data();
    for (const std::uint32_t row : rows) {
      Random random((key * 0x9e3779b97f4a7c15ULL) ^ ((std::uint64_t{row} << 16) + d));
      for (std::size_t i = 0; i < dropped[d].width; ++i) *mask++ = random.chance(dropped[d].share) ? 0.0F : kept;
    }
  }
}

void Trainer::Impl::push_parameters() {
  for (const Parameter& parameter : layout)
    inputs.push_back(Tensor::view(DType::f32, parameter.shape, parameters.data() + parameter.offset));
  for (const State& entry : state) inputs.push_back(entry.value);
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
  if (self.comparison) return invalid("this trainer was made for an objective: give it tensors");
  DataSet data;
  data.labels_ = std::move(labels);
  data.rows_ = rows;
  FALAJ_TRY(self.prepare_rows(data, [&](std::size_t first, std::size_t count) -> Result<std::vector<Tensor>> {
    std::vector<Tensor> raw;
    for (const ValueInfo& info : self.raw_inputs) {
      FALAJ_ASSIGN(Tensor tensor, column_input(info, self.raw_inputs.size() == 1, table, first, count));
      raw.push_back(std::move(tensor));
    }
    return raw;
  }));
  return data;
}

// What crosses the cut, for all rows, some at a time.
Status Trainer::Impl::prepare_rows(DataSet& data,
                                   const std::function<Result<std::vector<Tensor>>(std::size_t first, std::size_t count)>& raw_inputs_of) {
  const std::size_t rows = data.rows_;
  for (const ValueInfo& info : boundary) data.values_.push_back(batch_like(info, rows));
  for (std::size_t first = 0; first < rows; first += kPrepareRows) {
    const std::size_t count = std::min(kPrepareRows, rows - first);
    FALAJ_ASSIGN(const std::vector<Tensor> raw, raw_inputs_of(first, count));
    std::vector<Tensor> computed;
    if (prefix) {
      FALAJ_TRY(prefix->run(raw, computed));
    }
    std::size_t next = 0;
    for (std::size_t i = 0; i < boundary.size(); ++i) {
      const auto direct = std::ranges::find(raw_inputs, boundary[i].name, &ValueInfo::name);
      const Tensor& part = direct != raw_inputs.end() ? raw[static_cast<std::size_t>(direct - raw_inputs.begin())] : computed[next++];
      const std::size_t row_bytes = part.bytes() / count;
      std::memcpy(static_cast<std::byte*>(data.values_[i].mutable_raw()) + first * row_bytes, part.raw(), part.bytes());
    }
  }
  return {};
}

Result<DataSet> Trainer::prepare(std::vector<Tensor> inputs, const Tensor& labels) {
  const ComputeScope scope;
  Impl& self = *impl_;
  if (!self.comparison) return invalid("this trainer was made for a task: give it a table");
  if (labels.empty() || labels.shape().empty()) return invalid("labels must have rows in their first dimension");
  const std::int64_t rows = labels.shape()[0];
  if (inputs.size() != self.raw_inputs.size()) return invalid(format("{} inputs for a model of {}", inputs.size(), self.raw_inputs.size()));
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const ValueInfo& info = self.raw_inputs[i];
    Shape wanted = info.shape;
    if (wanted.empty()) return invalid(format("input '{}' is a scalar: rows cannot be fed to it", info.name));
    if (wanted[0] >= 0)
      return invalid(format("input '{}' has a fixed batch of {}: export the model with a dynamic batch", info.name, wanted[0]));
    wanted[0] = rows;
    if (inputs[i].dtype() != info.dtype || inputs[i].shape() != wanted)
      return invalid(format("input '{}' is {}{}, with {} labels it must be {}{}", info.name, to_string(inputs[i].dtype()),
                            to_string(inputs[i].shape()), rows, to_string(info.dtype), to_string(wanted)));
  }
  DataSet data;
  data.rows_ = static_cast<std::size_t>(rows);
  Shape row = labels.shape();
  row.erase(0);
  if (row != self.comparison->objective.label_row)
    return invalid(format("a row's labels have shape {}, not {}", to_string(row), to_string(self.comparison->objective.label_row)));
  FALAJ_ASSIGN(data.targets_, read_labels(*self.comparison, labels));
  FALAJ_TRY(self.prepare_rows(data, [&](std::size_t first, std::size_t count) -> Result<std::vector<Tensor>> {
    std::vector<Tensor> raw;
    for (const Tensor& input : inputs) raw.push_back(input.rows(static_cast<std::int64_t>(first), static_cast<std::int64_t>(count)));
    return raw;
  }));
  return data;
}

void Trainer::Impl::fill(const DataSet& data, std::span<const std::uint32_t> rows, std::uint64_t key) {
  Batch& buffers = batch(rows.size());
  inputs.clear();
  for (std::size_t i = 0; i < buffers.values.size(); ++i) {
    gather_rows(values(data)[i], rows, buffers.values[i]);
    inputs.push_back(buffers.values[i]);
  }
  if (comparison) gather_rows(data.targets_, rows, buffers.target);
  for (std::size_t i = 0; !comparison && i < rows.size(); ++i) {
    const float label = data.labels()[rows[i]];
    if (softmax) {
      buffers.target.mutable_data<std::int64_t>()[i] = static_cast<std::int64_t>(label);
    } else if (target.task == Task::regression) {
      buffers.target.mutable_data<float>()[i] = static_cast<float>((label - target.mean) / target.scale);
    } else {
      buffers.target.mutable_data<float>()[i] = label;
    }
  }
  inputs.push_back(buffers.target);
  fill_masks(buffers, rows, key);
  for (const Tensor& mask : buffers.masks) inputs.push_back(mask);
  push_parameters();
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
  self.fill(data, rows, key);
  Impl::Batch& batch = self.batch(rows.size());
  batch.outputs.resize(1 + self.layout.size() + self.state.size());
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
  for (std::size_t i = 0; i < self.state.size(); ++i)
    std::ranges::copy(batch.outputs[1 + self.layout.size() + i].data<float>(), self.state[i].value.mutable_data<float>().begin());
  return static_cast<double>(batch.outputs[0].data<float>()[0]);
}

double Trainer::compared(const DataSet& data, std::span<const std::uint32_t> rows) const {
  if (!impl_->comparison) return static_cast<double>(rows.size());
  double sum = 0;
  for (const std::uint32_t row : rows) sum += kernels::compared(*impl_->comparison, data.targets_.rows(row, 1));
  return sum;
}

Result<std::string> Trainer::first_not_finite(const DataSet& data, std::span<const std::uint32_t> rows, std::uint64_t key) {
  if (rows.empty() || std::ranges::max(rows) >= data.rows()) return invalid("no such rows");
  const ComputeScope scope;
  impl_->fill(data, rows, key);
  return kernels::first_not_finite(impl_->source, impl_->inputs, rows);
}

Error not_finite(Trainer& trainer, const DataSet& data, std::span<const std::uint32_t> rows, std::uint64_t key, std::uint64_t number) {
  auto where = trainer.first_not_finite(data, rows, key);
  const std::string first = !where ? where.error().message : where->empty() ? std::string("the sum of the gradients") : *where;
  return failed(
      format("step {}: no longer a number; the first to go bad is {}: lower the learning rate, clip the gradient's norm, or mend the data",
             number, first));
}

Error too_many_skipped(std::uint64_t number) {
  return failed(
      format("step {}: {} steps one after the other had a gradient that is no number; lower the learning rate, clip its norm, or mend the "
             "data",
             number, kSkippedMax));
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

Result<std::vector<float>> Trainer::predict(const DataSet& data, std::span<const std::uint32_t> rows) {
  FALAJ_ASSIGN(std::vector<float> values, impl_->logits(data, rows));
  if (impl_->comparison) return values;
  return outputs_of_logits(impl_->target, std::move(values), rows.size());
}

Result<Evaluation> Trainer::evaluate(const DataSet& data, std::span<const std::uint32_t> rows) {
  FALAJ_ASSIGN(std::vector<float> values, impl_->logits(data, rows));
  const TargetSpec& target = impl_->target;
  if (impl_->comparison) {
    Shape shape = impl_->logits_row;
    shape.insert(0, static_cast<std::int64_t>(rows.size()));
    Tensor wanted = batch_like(label_input(*impl_->comparison, kTargetInput), rows.size());
    gather_rows(data.targets_, rows, wanted);
    return measure(*impl_->comparison, Tensor::view(DType::f32, shape, values.data()), wanted);
  }
  std::vector<float> labels;
  for (const std::uint32_t row : rows) labels.push_back(data.labels()[row]);
  return evaluate_logits(target, values, labels);
}

std::span<float> Trainer::parameters() noexcept { return impl_->parameters; }
std::span<const float> Trainer::parameters() const noexcept { return impl_->parameters; }
const std::vector<Parameter>& Trainer::layout() const noexcept { return impl_->layout; }
const TargetSpec& Trainer::target() const noexcept { return impl_->target; }
Team* Trainer::team() const noexcept { return impl_->training->team(); }
std::size_t Trainer::outputs() const noexcept { return impl_->outputs; }

Status Trainer::load(std::span<const float> parameters) {
  if (parameters.size() != impl_->parameters.size()) {
    return invalid(format("{} parameters do not fit a model of {}", parameters.size(), impl_->parameters.size()));
  }
  std::ranges::copy(parameters, impl_->parameters.begin());
  return {};
}

std::vector<float> Trainer::statistics() const {
  std::vector<float> out;
  for (const Impl::State& entry : impl_->state) out.insert(out.end(), entry.value.data<float>().begin(), entry.value.data<float>().end());
  return out;
}

Status Trainer::load_statistics(std::span<const float> statistics) {
  std::size_t wanted = 0;
  for (const Impl::State& entry : impl_->state) wanted += entry.value.elements();
  if (statistics.size() != wanted) return invalid(format("{} running statistics do not fit a model of {}", statistics.size(), wanted));
  for (Impl::State& entry : impl_->state) {
    std::ranges::copy(statistics.first(entry.value.elements()), entry.value.mutable_data<float>().begin());
    statistics = statistics.subspan(entry.value.elements());
  }
  return {};
}

std::vector<std::uint8_t> Trainer::decay_mask() const {
  std::vector<std::uint8_t> mask;
  for (const Parameter& parameter : impl_->layout) mask.insert(mask.end(), parameter.count, parameter.decay ? 1 : 0);
  return mask;
}

std::vector<std::size_t> Trainer::tensor_sizes() const {
  std::vector<std::size_t> sizes;
  for (const Parameter& parameter : impl_->layout) sizes.push_back(parameter.count);
  return sizes;
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
  for (const Impl::State& entry : impl_->state) out.initializers.find(entry.names.name)->second = entry.value.clone();
  for (const Tie& tie : impl_->ties) out.initializers.find(tie.copy)->second = transposed(out.initializers.find(tie.source)->second);
  return out;
}

}  // namespace falaj::kernels
