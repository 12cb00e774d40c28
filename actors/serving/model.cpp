#include "actors/serving/model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "kernels/onnx/onnx.hpp"
#include "kernels/train/families.hpp"
#include "kernels/train/json.hpp"
#include "messages/message.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/thread.hpp"

namespace falaj::serving {

using messages::DataType;
using messages::Infer;

namespace {

struct TypeRow {
  DataType wire;
  kernels::DType kernel;
  std::size_t size;
  std::string_view name;
};
constexpr TypeRow kTypes[] = {
    {DataType::BOOL, kernels::DType::boolean, 1, "BOOL"},  {DataType::UINT8, kernels::DType::u8, 1, "UINT8"},
    {DataType::UINT16, kernels::DType::u16, 2, "UINT16"},  {DataType::UINT32, kernels::DType::u32, 4, "UINT32"},
    {DataType::UINT64, kernels::DType::u64, 8, "UINT64"},  {DataType::INT8, kernels::DType::i8, 1, "INT8"},
    {DataType::INT16, kernels::DType::i16, 2, "INT16"},    {DataType::INT32, kernels::DType::i32, 4, "INT32"},
    {DataType::INT64, kernels::DType::i64, 8, "INT64"},    {DataType::FP16, kernels::DType::f16, 2, "FP16"},
    {DataType::FP32, kernels::DType::f32, 4, "FP32"},      {DataType::FP64, kernels::DType::f64, 8, "FP64"},
    {DataType::BYTES, kernels::DType::string, 0, "BYTES"}, {DataType::BF16, kernels::DType::bf16, 2, "BF16"},
};

const TypeRow* row_of(DataType type) {
  const auto* found = std::ranges::find(kTypes, type, &TypeRow::wire);
  return found == std::end(kTypes) ? nullptr : found;
}

TensorSpec spec_of(const kernels::ValueInfo& info) {
  TensorSpec spec;
  spec.name = info.name;
  spec.type = data_type(info.dtype);
  spec.shape.assign(info.shape.begin(), info.shape.end());
  spec.batched = !spec.shape.empty() && spec.shape.front() < 0;
  return spec;
}

template <class Dims>
std::string shape_text(const Dims& shape) {
  std::string out = "[";
  for (const auto dim : shape) out += (out.size() == 1 ? "" : ", ") + std::to_string(dim);
  return out + "]";
}

template <class Float>
std::ptrdiff_t first_nan(ByteView content) {
  for (std::size_t at = 0; at + sizeof(Float) <= content.size(); at += sizeof(Float)) {
    Float value;
    std::memcpy(&value, content.data() + at, sizeof value);
    if (std::isnan(value)) return static_cast<std::ptrdiff_t>(at / sizeof(Float));
  }
  return -1;
}

// The first element that is no value; -1: none.
std::ptrdiff_t first_missing(messages::Tensor::Reader tensor) {
  if (tensor.getType() == DataType::FP32) return first_nan<float>(bytes(tensor.getContent()));
  if (tensor.getType() == DataType::FP64) return first_nan<double>(bytes(tensor.getContent()));
  if (tensor.getType() != DataType::BYTES) return -1;
  const auto strings = tensor.getStrings();
  for (unsigned i = 0; i < strings.size(); ++i) {
    if (strings[i].size() == 0) return i;
  }
  return -1;
}

// Rows of one input, or why it does not fit.
Result<std::int64_t> check_input(const TensorSpec& spec, messages::Tensor::Reader tensor) {
  if (tensor.getType() != spec.type) {
    return invalid(format("input '{}' is {}, the model takes {}", spec.name, type_name(tensor.getType()), type_name(spec.type)));
  }
  const auto shape = tensor.getShape();
  bool fits = shape.size() == spec.shape.size();
  std::int64_t elements = 1;
  for (unsigned i = 0; i < shape.size() && fits; ++i) {
    const auto dim = shape[i];
    fits = dim > 0 && (spec.shape[i] < 0 || spec.shape[i] == dim) && elements <= (std::int64_t{1} << 31) / dim;
    elements *= fits ? dim : 0;
  }
  if (!fits) {
    return invalid(format("input '{}' has shape {}, the model takes {}", spec.name, shape_text(shape), shape_text(spec.shape)));
  }
  const auto count = spec.type == DataType::BYTES ? tensor.getStrings().size() : tensor.getContent().size() / element_size(spec.type);
  const bool whole = spec.type == DataType::BYTES || tensor.getContent().size() % element_size(spec.type) == 0;
  if (!whole || count != static_cast<std::uint64_t>(elements)) {
    return invalid(format("input '{}' has {} elements, its shape {} asks for {}", spec.name, count, shape_text(shape), elements));
  }
  return spec.batched ? shape[0] : -1;
}

}  // namespace

DataType data_type(kernels::DType type) noexcept {
  const auto* found = std::ranges::find(kTypes, type, &TypeRow::kernel);
  return found == std::end(kTypes) ? DataType::INVALID : found->wire;
}

std::size_t element_size(DataType type) noexcept {
  const auto* row = row_of(type);
  return row == nullptr ? 0 : row->size;
}

std::string_view type_name(DataType type) noexcept {
  const auto* row = row_of(type);
  return row == nullptr ? "INVALID" : row->name;
}

ModelOptions model_options(messages::Deployment::Reader deployment) {
  return {.bf16 = text(deployment.getPrecision()) == "bf16",
          .threads = deployment.getThreads() > 0 ? deployment.getThreads() : hardware_threads()};
}

Result<std::shared_ptr<const Model>> Model::load(ByteView onnx, std::string_view name, const ModelOptions& options) {
  FALAJ_ASSIGN(auto graph, kernels::import_onnx(onnx, name));
  auto model = std::make_shared<Model>();
  model->options_ = options;
  for (const auto& info : graph.inputs) {
    if (!info.has_shape)
      return error(ErrorCode::unimplemented, format("{}: input '{}' has no shape; what is served must declare one", name, info.name));
    const auto& spec = model->inputs_.emplace_back(spec_of(info));
    model->by_name_.emplace(spec.name, model->inputs_.size() - 1);
    model->batches_ = model->batches_ && spec.batched && std::ranges::count_if(spec.shape, [](auto dim) { return dim < 0; }) == 1;
  }
  model->note_categories(graph);
  FALAJ_TRY(model->note_required(graph, name));
  kernels::CompileOptions how{.threads = options.threads};
  if (options.bf16) how.backends = kernels::backends_after(kernels::bf16_backend());
  FALAJ_ASSIGN(model->compiled_, kernels::compile(std::move(graph), std::move(how)));
  for (const auto& info : model->compiled_->outputs()) model->outputs_.push_back(spec_of(info));
  for (const auto& spec : model->inputs_) {
    if (spec.type == DataType::INVALID)
      return error(ErrorCode::unimplemented, format("{}: input '{}' has a type that cannot be served", name, spec.name));
  }
  return std::shared_ptr<const Model>(std::move(model));
}

// A LabelEncoder that reads an input says which of its strings the model was trained on.
void Model::note_categories(const kernels::Graph& graph) {
  categories_.resize(inputs_.size());
  for (const auto& node : graph.nodes) {
    if (node.op != "LabelEncoder" || node.inputs.size() != 1) continue;
    const auto input = by_name_.find(node.inputs.front());
    const auto keys = kernels::attr_strings(node, "keys_strings", std::vector<std::string>{});
    if (input != by_name_.end() && keys) categories_[input->second].insert(keys->begin(), keys->end());
  }
}

Status Model::note_required(const kernels::Graph& graph, std::string_view name) {
  const auto found = graph.metadata.find(kernels::metadata::kRequired);
  if (found == graph.metadata.end()) return {};
  const auto required = kernels::read_json_strings(found->second);
  if (!required) return within(format("{}: metadata '{}'", name, kernels::metadata::kRequired), required.error());
  for (const auto& input : *required) {
    if (const auto known = by_name_.find(input); known != by_name_.end()) inputs_[known->second].required = true;
  }
  return {};
}

std::optional<std::size_t> Model::position(std::string_view input, std::size_t likely) const {
  if (likely < inputs_.size() && inputs_[likely].name == input) return likely;  // clients mostly keep the model's order
  const auto found = by_name_.find(input);
  if (found == by_name_.end()) return std::nullopt;
  return found->second;
}

Result<Fit> Model::check(Infer::Reader request) const {
  Fit fit;
  fit.at.assign(inputs_.size(), -1);
  std::int64_t rows = -1;
  const auto given = request.getInputs();
  for (unsigned i = 0; i < given.size(); ++i) {
    const auto name = text(given[i].getName());
    const auto known = position(name, i);
    if (!known) return invalid(format("the model has no input '{}'", name.substr(0, 128)));
    const auto& spec = inputs_[*known];
    if (std::exchange(fit.at[*known], static_cast<std::int32_t>(i)) >= 0) return invalid(format("input '{}' is given twice", spec.name));
    FALAJ_ASSIGN(const auto here, check_input(spec, given[i]));
    if (spec.required && !request.getByEntity()) {
      if (const auto missing = first_missing(given[i]); missing >= 0)
        return invalid(format("input '{}': element {} is missing (null, NaN or empty); this field must have a value", spec.name, missing));
    }
    if (here < 0) continue;
    if (rows >= 0 && here != rows) return invalid(format("input '{}' has {} rows, others have {}", spec.name, here, rows));
    rows = here;
  }
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    const auto& spec = inputs_[i];
    const bool may_miss =
        spec.batched && !spec.required && (spec.type == DataType::FP32 || spec.type == DataType::FP64 || spec.type == DataType::BYTES);
    if (fit.at[i] < 0 && !may_miss)
      return invalid(format("input '{}' ({} {}) is missing", spec.name, type_name(spec.type), shape_text(spec.shape)));
  }
  for (const auto name : request.getOutputs()) {
    if (std::ranges::find(outputs_, text(name), &TensorSpec::name) == outputs_.end())
      return invalid(format("the model has no output '{}'", text(name).substr(0, 128)));
  }
  if (rows >= 0) fit.rows = rows;
  return fit;
}

Session::Session(std::shared_ptr<const Model> model)
    : model_(std::move(model)),
      executor_(model_->compiled(), model_->options().threads),
      inputs_(model_->inputs().size()),
      unknown_(model_->inputs().size()) {}

Status Session::warm_up(std::int64_t rows) { return executor_.prepare(rows); }

kernels::Shape Session::shape_of(std::size_t input, const Part& first) const {
  const auto& spec = model_->inputs()[input];
  kernels::Shape shape;
  for (std::size_t i = 0; i < spec.shape.size(); ++i) {
    auto dim = spec.shape[i];
    if (i == 0 && spec.batched) {
      dim = total_;
    } else if (dim < 0) {  // such a model runs one request at a time
      const auto at = first.fit.at[input];
      dim = at < 0 ? 1 : first.request.getInputs()[static_cast<unsigned>(at)].getShape()[static_cast<unsigned>(i)];
    }
    shape.push_back(dim);
  }
  return shape;
}

// Gives the number of categories that the model does not know.
std::uint32_t Session::fill_strings(std::size_t input, const Part& part, std::span<std::string> out) {
  const auto at = part.fit.at[input];
  if (at < 0) {
    for (auto& value : out) value.clear();
    return 0;
  }
  const auto given = part.request.getInputs()[static_cast<unsigned>(at)].getStrings();
  const bool counts = model_->has_categories(input);
  std::uint32_t unknown = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto value = as_text(bytes(given[static_cast<unsigned>(i)]));
    out[i].assign(value);
    if (counts && !value.empty() && !model_->knows(input, value)) ++unknown;
  }
  return unknown;
}

void Session::fill(std::size_t input, std::span<const Part> parts) {
  const auto& spec = model_->inputs()[input];
  const auto shape = shape_of(input, parts.front());
  const auto* row = row_of(spec.type);
  auto& tensor = inputs_[input];
  if (tensor.empty() || !(tensor.shape() == shape)) tensor = kernels::Tensor(row->kernel, shape);
  const auto width = spec.batched ? tensor.elements() / static_cast<std::size_t>(total_) : tensor.elements();
  std::size_t from = 0;  // elements
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const auto& part = parts[p];
    const auto count = spec.batched ? static_cast<std::size_t>(part.fit.rows) * width : width;
    const auto at = part.fit.at[input];
    if (spec.type == DataType::BYTES) {
      const auto unknown = fill_strings(input, part, tensor.mutable_data<std::string>().subspan(from, count));
      unknown_[input] += unknown;
      unknown_of_[p] += unknown;
    } else if (at >= 0) {
      const auto content = part.request.getInputs()[static_cast<unsigned>(at)].getContent();
      auto* to = static_cast<std::uint8_t*>(tensor.mutable_raw()) + from * row->size;
      std::memcpy(to, content.begin(), count * row->size);
      if (spec.type == DataType::BOOL) std::for_each(to, to + count, [](std::uint8_t& byte) { byte = byte != 0 ? 1 : 0; });
    } else if (spec.type == DataType::FP32) {
      std::ranges::fill(tensor.mutable_data<float>().subspan(from, count), std::numeric_limits<float>::quiet_NaN());
    } else {
      std::ranges::fill(tensor.mutable_data<double>().subspan(from, count), std::numeric_limits<double>::quiet_NaN());
    }
    from += count;
  }
}

Status Session::run(std::span<const Part> parts) {
  total_ = 0;
  for (const auto& part : parts) total_ += part.fit.rows;
  std::ranges::fill(unknown_, 0);
  unknown_of_.assign(parts.size(), 0);
  for (std::size_t i = 0; i < inputs_.size(); ++i) fill(i, parts);
  return executor_.run(inputs_, outputs_);
}

void Session::answer(messages::InferReply::Builder into, Infer::Reader request, std::int64_t first, std::int64_t rows) const {
  std::vector<std::size_t> wanted;
  const auto& specs = model_->outputs();
  if (request.getOutputs().size() == 0) {
    for (std::size_t i = 0; i < specs.size(); ++i) wanted.push_back(i);
  } else {
    for (const auto name : request.getOutputs())
      wanted.push_back(static_cast<std::size_t>(std::ranges::find(specs, text(name), &TensorSpec::name) - specs.begin()));
  }
  auto list = into.initOutputs(static_cast<unsigned>(wanted.size()));
  for (unsigned w = 0; w < wanted.size(); ++w) {
    const auto& spec = specs[wanted[w]];
    const auto& tensor = outputs_[wanted[w]];
    auto out = list[w];
    out.setName(spec.name);
    out.setType(spec.type);
    const bool split = tensor.shape().rank() > 0 && tensor.shape()[0] == total_;
    auto shape = out.initShape(static_cast<unsigned>(tensor.shape().rank()));
    for (unsigned i = 0; i < shape.size(); ++i) shape.set(i, i == 0 && split ? rows : tensor.shape()[i]);
    const auto width = split && total_ > 0 ? tensor.elements() / static_cast<std::size_t>(total_) : tensor.elements();
    const auto from = split ? static_cast<std::size_t>(first) * width : 0;
    const auto count = split ? static_cast<std::size_t>(rows) * width : width;
    if (spec.type == DataType::BYTES) {
      const auto values = tensor.data<std::string>().subspan(from, count);
      auto strings = out.initStrings(static_cast<unsigned>(count));
      for (unsigned i = 0; i < count; ++i) strings.set(i, data(as_bytes(values[i])));
    } else {
      const auto size = element_size(spec.type);
      out.setContent(capnp::Data::Reader(static_cast<const std::uint8_t*>(tensor.raw()) + from * size, count * size));
    }
  }
}

}  // namespace falaj::serving
