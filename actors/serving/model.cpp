#include "actors/serving/model.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "kernels/onnx/onnx.hpp"
#include "messages/message.hpp"
#include "runtime/base/format.hpp"

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

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string out = "[";
  for (const auto dim : shape) out += (out.size() == 1 ? "" : ", ") + std::to_string(dim);
  return out + "]";
}

std::optional<messages::Tensor::Reader> find_input(Infer::Reader request, std::string_view name) {
  for (const auto input : request.getInputs()) {
    if (text(input.getName()) == name) return input;
  }
  return std::nullopt;
}

// Rows of one input, or why it does not fit.
Result<std::int64_t> check_input(const TensorSpec& spec, messages::Tensor::Reader tensor) {
  if (tensor.getType() != spec.type) {
    return invalid(format("input '{}' is {}, the model takes {}", spec.name, type_name(tensor.getType()), type_name(spec.type)));
  }
  const auto shape = tensor.getShape();
  std::vector<std::int64_t> given;
  for (const auto dim : shape) given.push_back(dim);
  bool fits = given.size() == spec.shape.size();
  std::int64_t elements = 1;
  for (std::size_t i = 0; i < given.size() && fits; ++i) {
    fits = given[i] >= 0 && (spec.shape[i] < 0 || spec.shape[i] == given[i]) &&
           (given[i] == 0 || elements <= (std::int64_t{1} << 31) / std::max<std::int64_t>(given[i], 1));
    elements *= given[i];
  }
  if (!fits) return invalid(format("input '{}' has shape {}, the model takes {}", spec.name, shape_text(given), shape_text(spec.shape)));
  const auto count = spec.type == DataType::BYTES ? tensor.getStrings().size() : tensor.getContent().size() / element_size(spec.type);
  const bool whole = spec.type == DataType::BYTES || tensor.getContent().size() % element_size(spec.type) == 0;
  if (!whole || count != static_cast<std::uint64_t>(elements)) {
    return invalid(format("input '{}' has {} elements, its shape {} asks for {}", spec.name, count, shape_text(given), elements));
  }
  return spec.batched ? given.front() : -1;
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

Result<std::shared_ptr<const Model>> Model::load(ByteView onnx, std::string_view name) {
  FALAJ_ASSIGN(auto graph, kernels::import_onnx(onnx, name));
  auto model = std::make_shared<Model>();
  FALAJ_ASSIGN(model->compiled_, kernels::compile(std::move(graph)));
  for (const auto& info : model->compiled_->inputs()) model->inputs_.push_back(spec_of(info));
  for (const auto& info : model->compiled_->outputs()) model->outputs_.push_back(spec_of(info));
  for (const auto& spec : model->inputs_) {
    if (spec.type == DataType::INVALID)
      return error(ErrorCode::unimplemented, format("{}: input '{}' has a type that cannot be served", name, spec.name));
  }
  return std::shared_ptr<const Model>(std::move(model));
}

Result<std::int64_t> Model::check(Infer::Reader request) const {
  for (const auto input : request.getInputs()) {
    const auto known = std::ranges::find(inputs_, text(input.getName()), &TensorSpec::name);
    if (known == inputs_.end()) return invalid(format("the model has no input '{}'", text(input.getName()).substr(0, 128)));
  }
  for (const auto name : request.getOutputs()) {
    if (std::ranges::find(outputs_, text(name), &TensorSpec::name) == outputs_.end())
      return invalid(format("the model has no output '{}'", text(name).substr(0, 128)));
  }
  std::int64_t rows = -1;
  for (const auto& spec : inputs_) {
    const auto given = find_input(request, spec.name);
    if (!given) {
      const bool may_miss = spec.batched && (spec.type == DataType::FP32 || spec.type == DataType::FP64 || spec.type == DataType::BYTES);
      if (!may_miss) return invalid(format("input '{}' ({} {}) is missing", spec.name, type_name(spec.type), shape_text(spec.shape)));
      continue;
    }
    FALAJ_ASSIGN(const auto here, check_input(spec, *given));
    if (here < 0) continue;
    if (rows >= 0 && here != rows) return invalid(format("input '{}' has {} rows, others have {}", spec.name, here, rows));
    rows = here;
  }
  return rows < 0 ? 1 : rows;
}

Session::Session(std::shared_ptr<const Model> model)
    : model_(std::move(model)), executor_(model_->compiled()), inputs_(model_->inputs().size()) {}

Status Session::warm_up(std::int64_t rows) { return executor_.prepare(rows); }

void Session::fill(std::size_t input, std::span<const Infer::Reader> requests, std::span<const std::int64_t> rows, std::int64_t total) {
  const auto& spec = model_->inputs()[input];
  kernels::Shape shape;
  std::int64_t width = 1;
  for (std::size_t i = 0; i < spec.shape.size(); ++i) {
    auto dim = spec.shape[i];
    if (i == 0 && spec.batched) {
      dim = total;
    } else {
      if (dim < 0) {  // free, and the same for all requests of a batch: the first one's
        const auto given = find_input(requests.front(), spec.name);
        dim = given ? given->getShape()[static_cast<unsigned>(i)] : 1;
      }
      width *= dim;
    }
    shape.push_back(dim);
  }
  const auto* row = row_of(spec.type);
  auto& tensor = inputs_[input];
  if (tensor.empty() || !(tensor.shape() == shape)) tensor = kernels::Tensor(row->kernel, shape);
  std::int64_t at = 0;  // elements
  for (std::size_t r = 0; r < requests.size(); ++r) {
    const auto count = spec.batched ? rows[r] * width : width;
    const auto given = find_input(requests[r], spec.name);
    if (spec.type == DataType::BYTES) {
      auto out = tensor.mutable_data<std::string>().subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(count));
      for (std::size_t i = 0; i < out.size(); ++i) {
        if (given) {
          const auto value = as_text(bytes(given->getStrings()[static_cast<unsigned>(i)]));
          out[i].assign(value);
        } else {
          out[i].clear();
        }
      }
    } else if (given) {
      std::memcpy(static_cast<std::uint8_t*>(tensor.mutable_raw()) + static_cast<std::size_t>(at) * row->size, given->getContent().begin(),
                  given->getContent().size());
    } else if (spec.type == DataType::FP32) {
      std::ranges::fill(tensor.mutable_data<float>().subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(count)),
                        std::numeric_limits<float>::quiet_NaN());
    } else {
      std::ranges::fill(tensor.mutable_data<double>().subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(count)),
                        std::numeric_limits<double>::quiet_NaN());
    }
    at += count;
    if (!spec.batched) break;
  }
}

Status Session::run(std::span<const Infer::Reader> requests, std::span<const std::int64_t> rows) {
  total_ = 0;
  for (const auto count : rows) total_ += count;
  for (std::size_t i = 0; i < inputs_.size(); ++i) fill(i, requests, rows, total_);
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
