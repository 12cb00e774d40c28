#include "actors/serving/oip.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "actors/serving/model.hpp"
#include "runtime/base/format.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::serving {

using messages::DataType;

namespace {

template <class T>
void write_numbers(net::JsonWriter& w, ByteView content) {
  for (std::size_t at = 0; at + sizeof(T) <= content.size(); at += sizeof(T)) {
    T value{};
    std::memcpy(&value, content.data() + at, sizeof(T));
    w.number(value);
  }
}

void write_data(net::JsonWriter& w, messages::Tensor::Reader tensor) {
  const auto content = bytes(tensor.getContent());
  w.begin_array();
  switch (tensor.getType()) {
    case DataType::FP32:
      write_numbers<float>(w, content);
      break;
    case DataType::FP64:
      write_numbers<double>(w, content);
      break;
    case DataType::INT8:
      write_numbers<std::int8_t>(w, content);
      break;
    case DataType::INT16:
      write_numbers<std::int16_t>(w, content);
      break;
    case DataType::INT32:
      write_numbers<std::int32_t>(w, content);
      break;
    case DataType::INT64:
      write_numbers<std::int64_t>(w, content);
      break;
    case DataType::UINT8:
      write_numbers<std::uint8_t>(w, content);
      break;
    case DataType::UINT16:
      write_numbers<std::uint16_t>(w, content);
      break;
    case DataType::UINT32:
      write_numbers<std::uint32_t>(w, content);
      break;
    case DataType::UINT64:
      write_numbers<std::uint64_t>(w, content);
      break;
    case DataType::BOOL:
      for (const auto byte : content) w.boolean(byte != 0);
      break;
    case DataType::BYTES:
      for (const auto one : tensor.getStrings()) w.string(as_text(bytes(one)));
      break;
    default:
      break;  // half floats have no JSON form
  }
  w.end_array();
}

void append_string(Bytes& out, ByteView value) {
  const auto size = static_cast<std::uint32_t>(value.size());
  const auto* first = reinterpret_cast<const std::uint8_t*>(&size);
  out.insert(out.end(), first, first + 4);
  out.insert(out.end(), value.begin(), value.end());
}

// The bytes of one output in the binary extension.
void append_binary(Bytes& out, messages::Tensor::Reader tensor) {
  if (tensor.getType() != DataType::BYTES) {
    const auto content = bytes(tensor.getContent());
    out.insert(out.end(), content.begin(), content.end());
    return;
  }
  for (const auto one : tensor.getStrings()) append_string(out, bytes(one));
}

void write_shape(net::JsonWriter& w, capnp::List<std::int64_t>::Reader shape) {
  w.key("shape").begin_array();
  for (const auto dim : shape) w.number(dim);
  w.end_array();
}

void write_sizes(net::JsonWriter& w, std::size_t binary_bytes) {
  w.key("parameters").begin_object().key("binary_data_size").number(binary_bytes).end_object();
}

void write_output(net::JsonWriter& w, messages::Tensor::Reader output, bool as_binary, Bytes& binary) {
  w.begin_object().key("name").string(text(output.getName())).key("datatype").string(type_name(output.getType()));
  write_shape(w, output.getShape());
  if (as_binary) {
    const auto before = binary.size();
    append_binary(binary, output);
    write_sizes(w, binary.size() - before);
  } else {
    w.key("data");
    write_data(w, output);
  }
  w.end_object();
}

template <class T>
double number_at(ByteView content, std::size_t i) {
  T value{};
  std::memcpy(&value, content.data() + i * sizeof(T), sizeof(T));
  return static_cast<double>(value);
}

double number_at(DataType type, ByteView content, std::size_t i) {
  switch (type) {
    case DataType::FP32:
      return number_at<float>(content, i);
    case DataType::FP64:
      return number_at<double>(content, i);
    case DataType::INT32:
      return number_at<std::int32_t>(content, i);
    case DataType::INT64:
      return number_at<std::int64_t>(content, i);
    case DataType::UINT8:
      return number_at<std::uint8_t>(content, i);
    default:
      return std::numeric_limits<double>::quiet_NaN();
  }
}

// The classification extension: of each row the `classes` greatest values, as "value:index", greatest first.
void write_classes(net::JsonWriter& w, messages::Tensor::Reader output, std::uint32_t classes, bool as_binary, Bytes& binary) {
  const auto content = bytes(output.getContent());
  const auto shape = output.getShape();
  const auto size = element_size(output.getType());
  const auto elements = size == 0 ? 0 : content.size() / size;
  const auto rows = shape.size() > 1 ? static_cast<std::size_t>(shape[0]) : 1;
  const auto width = rows == 0 ? 0 : elements / rows;
  const auto count = std::min<std::size_t>(classes, width);
  std::vector<std::string> words;
  std::vector<std::size_t> order(width);
  for (std::size_t row = 0; row < rows; ++row) {
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto value = [&](std::size_t column) { return number_at(output.getType(), content, row * width + column); };
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return value(a) > value(b); });
    for (std::size_t k = 0; k < count; ++k) words.push_back(format("{:.6f}:{}", value(order[k]), order[k]));
  }
  w.begin_object().key("name").string(text(output.getName())).key("datatype").string("BYTES").key("shape").begin_array();
  if (shape.size() > 1) w.number(rows);
  w.number(count).end_array();
  if (as_binary) {
    const auto before = binary.size();
    for (const auto& word : words) append_string(binary, as_bytes(word));
    write_sizes(w, binary.size() - before);
  } else {
    w.key("data").begin_array();
    for (const auto& word : words) w.string(word);
    w.end_array();
  }
  w.end_object();
}

void write_infos(net::JsonWriter& w, capnp::List<messages::TensorInfo>::Reader infos) {
  w.begin_array();
  for (const auto info : infos) {
    w.begin_object().key("name").string(text(info.getName())).key("datatype").string(type_name(info.getType()));
    write_shape(w, info.getShape());
    w.end_object();
  }
  w.end_array();
}

void write_config_tensors(net::JsonWriter& w, capnp::List<messages::TensorInfo>::Reader infos) {
  w.begin_array();
  for (const auto info : infos) {
    const auto type = info.getType() == DataType::BYTES ? std::string("TYPE_STRING") : "TYPE_" + std::string(type_name(info.getType()));
    w.begin_object().key("name").string(text(info.getName())).key("data_type").string(type).key("dims").begin_array();
    for (unsigned d = 1; d < info.getShape().size(); ++d) w.number(info.getShape()[d]);  // the batch dimension is implied by max_batch_size
    w.end_array().end_object();
  }
  w.end_array();
}

}  // namespace

net::HttpResponse encode_infer(messages::InferReply::Reader reply, const AnswerFormat& format) {
  net::JsonWriter w(512);
  Bytes binary;
  w.begin_object().key("model_name").string(text(reply.getModel())).key("model_version").string(std::to_string(reply.getVersion()));
  if (reply.getId().size() > 0) w.key("id").string(text(reply.getId()));
  w.key("outputs").begin_array();
  for (const auto output : reply.getOutputs()) {
    const auto name = text(output.getName());
    const auto known = std::ranges::find(format.outputs, name, &OutputFormat::name);
    const bool as_binary = known != format.outputs.end() && known->binary ? *known->binary : format.binary_by_default;
    const auto classes = known != format.outputs.end() ? known->classes : 0;
    const auto type = output.getType();
    if (classes != 0) {
      if (type == DataType::BYTES || type == DataType::FP16 || type == DataType::BF16)
        return error_response(invalid(falaj::format("output '{}' is {}: it has no classes", name, type_name(type))));
      write_classes(w, output, classes, as_binary, binary);
    } else {
      if (!as_binary && (type == DataType::FP16 || type == DataType::BF16))
        return error_response(
            invalid(falaj::format("output '{}' is {}, which has no JSON form; ask for binary_data", name, type_name(type))));
      write_output(w, output, as_binary, binary);
    }
  }
  w.end_array().end_object();
  net::HttpResponse response;
  const auto& json = w.text();
  response.body.reserve(json.size() + binary.size());
  response.body.assign(json.begin(), json.end());
  if (!binary.empty()) {
    response.content_type = "application/octet-stream";
    response.headers.emplace_back("Inference-Header-Content-Length", std::to_string(json.size()));
    response.body.insert(response.body.end(), binary.begin(), binary.end());
  }
  return response;
}

std::string encode_outputs_json(capnp::List<messages::Tensor>::Reader outputs) {
  net::JsonWriter w(512);
  Bytes none;
  w.begin_array();
  for (const auto output : outputs) write_output(w, output, false, none);
  w.end_array();
  return std::move(w).take();
}

std::string encode_metadata(messages::ModelDescription::Reader d) {
  net::JsonWriter w;
  w.begin_object().key("name").string(text(d.getModel())).key("versions").begin_array();
  for (const auto version : d.getVersions()) w.string(std::to_string(version));
  w.end_array().key("platform").string("onnx_onnxv1").key("inputs");
  write_infos(w, d.getInputs());
  w.key("outputs");
  write_infos(w, d.getOutputs());
  w.end_object();
  return std::move(w).take();
}

std::string encode_config(messages::ModelDescription::Reader d) {
  net::JsonWriter w;
  w.begin_object()
      .key("name")
      .string(text(d.getModel()))
      .key("platform")
      .string("onnx_onnxv1")
      .key("backend")
      .string("falaj")
      .key("max_batch_size")
      .number(d.getMaxBatch());
  w.key("input");
  write_config_tensors(w, d.getInputs());
  w.key("output");
  write_config_tensors(w, d.getOutputs());
  w.key("dynamic_batching").begin_object().end_object().end_object();
  return std::move(w).take();
}

unsigned http_status(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::invalid:
      return 400;
    case ErrorCode::denied:
      return 403;
    case ErrorCode::not_found:
      return 404;
    case ErrorCode::conflict:
      return 409;
    case ErrorCode::overloaded:
    case ErrorCode::unreachable:
    case ErrorCode::gone:
      return 503;
    case ErrorCode::deadline:
      return 504;
    case ErrorCode::unimplemented:
      return 501;
    case ErrorCode::no_space:
      return 507;
    default:
      return 500;
  }
}

net::HttpResponse error_response(const Error& why) {
  net::JsonWriter w;
  w.begin_object().key("error").string(why.message).end_object();
  auto response = net::HttpResponse::json(http_status(why.code), w.text());
  if (response.status == 503) response.headers.emplace_back("Retry-After", "1");
  return response;
}

}  // namespace falaj::serving
