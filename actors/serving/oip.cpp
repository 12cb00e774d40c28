#include "actors/serving/oip.hpp"

#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "actors/serving/model.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::serving {

using messages::DataType;
using net::JsonValue;

namespace {

constexpr std::size_t kInputsMax = 4096;
constexpr std::size_t kRankMax = 8;

struct Input {
  std::string name;
  DataType type = DataType::INVALID;
  std::vector<std::int64_t> shape;
  Bytes owned;                       // from JSON
  ByteView content;                  // into owned or the body
  std::vector<std::string> strings;  // of JSON
  std::vector<ByteView> views;       // of BYTES, into strings or the body
};

DataType parse_type(std::string_view name) {
  for (auto i = static_cast<int>(DataType::BOOL); i <= static_cast<int>(DataType::BF16); ++i) {
    if (type_name(static_cast<DataType>(i)) == name) return static_cast<DataType>(i);
  }
  return DataType::INVALID;
}

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  const auto* first = reinterpret_cast<const std::uint8_t*>(values.data());
  return {first, first + values.size() * sizeof(T)};
}

template <class T>
Result<Bytes> integers(JsonValue data, std::size_t count) {
  std::vector<std::int64_t> wide;
  FALAJ_TRY(data.flatten(wide, count));
  std::vector<T> values;
  values.reserve(wide.size());
  for (const auto value : wide) {
    if (!std::in_range<T>(value)) return invalid(format("{} does not fit the datatype", value));
    values.push_back(static_cast<T>(value));
  }
  return bytes_of(values);
}

Status booleans(JsonValue value, Bytes& out, std::size_t count_max, int depth = 0) {
  if (value.type() == net::JsonType::array && depth < static_cast<int>(kRankMax)) {
    for (const auto element : value) FALAJ_TRY(booleans(element, out, count_max, depth + 1));
    return {};
  }
  if (out.size() >= count_max) return invalid("more elements than the shape asks for");
  if (value.type() == net::JsonType::boolean) {
    FALAJ_ASSIGN(const auto b, value.as_bool());
    out.push_back(b ? 1 : 0);
    return {};
  }
  FALAJ_ASSIGN(const auto number, value.as_int());
  out.push_back(number != 0 ? 1 : 0);
  return {};
}

Result<Bytes> numbers(DataType type, JsonValue data, std::size_t count) {
  switch (type) {
    case DataType::FP32: {
      std::vector<float> values;
      values.reserve(std::min<std::size_t>(count, 4096));
      FALAJ_TRY(data.flatten(values, count));
      return bytes_of(values);
    }
    case DataType::FP64: {
      std::vector<double> values;
      FALAJ_TRY(data.flatten(values, count));
      return bytes_of(values);
    }
    case DataType::BOOL: {
      Bytes out;
      FALAJ_TRY(booleans(data, out, count));
      return out;
    }
    case DataType::INT8:
      return integers<std::int8_t>(data, count);
    case DataType::INT16:
      return integers<std::int16_t>(data, count);
    case DataType::INT32:
      return integers<std::int32_t>(data, count);
    case DataType::INT64:
      return integers<std::int64_t>(data, count);
    case DataType::UINT8:
      return integers<std::uint8_t>(data, count);
    case DataType::UINT16:
      return integers<std::uint16_t>(data, count);
    case DataType::UINT32:
      return integers<std::uint32_t>(data, count);
    case DataType::UINT64:
      return integers<std::uint64_t>(data, count);
    default:
      return invalid(format("{} has no JSON form; send it as binary data", type_name(type)));
  }
}

Status cut_strings(ByteView raw, std::size_t count, std::vector<ByteView>& out) {
  std::size_t at = 0;
  while (at < raw.size()) {
    std::uint32_t size = 0;
    if (raw.size() - at < 4) return invalid("BYTES data ends within a length");
    std::memcpy(&size, raw.data() + at, 4);
    at += 4;
    if (raw.size() - at < size) return invalid("BYTES data ends within an element");
    if (out.size() >= count) return invalid("more elements than the shape asks for");
    out.push_back(raw.subspan(at, size));
    at += size;
  }
  return {};
}

// `binary`: what is left of the body after the JSON; the input takes its part from the front.
Result<Input> decode_input(JsonValue json, ByteView& binary) {
  Input input;
  FALAJ_ASSIGN(const auto name, json.member("name"));
  FALAJ_ASSIGN(const auto name_text, name.as_string());
  input.name = name_text;
  const auto fault = [&](const Error& why) { return within(format("input '{}'", input.name.substr(0, 128)), why); };
  const auto type = json.find("datatype");
  const auto type_text = type ? type->as_string() : Result<std::string_view>(invalid("datatype is missing"));
  if (!type_text) return fault(type_text.error());
  input.type = parse_type(*type_text);
  if (input.type == DataType::INVALID) return fault(invalid(format("unknown datatype '{}'", type_text->substr(0, 32))));
  const auto shape = json.find("shape");
  if (!shape) return fault(invalid("shape is missing"));
  if (auto read = shape->flatten(input.shape, kRankMax); !read) return fault(within("shape", read.error()));
  std::size_t count = 1;
  for (const auto dim : input.shape) {
    if (dim < 0 || (dim > 0 && count > (limits::kHttpBodyBytesMax / static_cast<std::size_t>(dim))))
      return fault(invalid("shape asks for more elements than a request may hold"));
    count *= static_cast<std::size_t>(dim);
  }
  std::optional<std::uint64_t> binary_size;
  if (const auto parameters = json.find("parameters")) {
    if (const auto size = parameters->find("binary_data_size")) {
      const auto value = size->as_uint();
      if (!value) return fault(within("binary_data_size", value.error()));
      binary_size = *value;
    }
  }
  if (binary_size) {
    if (*binary_size > binary.size())
      return fault(invalid(format("binary_data_size is {}, the body has {} bytes left", *binary_size, binary.size())));
    input.content = binary.first(*binary_size);
    binary = binary.subspan(*binary_size);
    if (input.type == DataType::BYTES) {
      if (auto cut = cut_strings(input.content, count, input.views); !cut) return fault(cut.error());
    }
    return input;
  }
  const auto values = json.find("data");
  if (!values) return fault(invalid("neither data nor binary_data_size is given"));
  if (input.type == DataType::BYTES) {
    if (auto read = values->flatten(input.strings, count); !read) return fault(read.error());
    for (const auto& one : input.strings) input.views.push_back(as_bytes(one));
    return input;
  }
  auto read = numbers(input.type, *values, count);
  if (!read) return fault(read.error());
  input.owned = std::move(read).value();
  input.content = input.owned;
  return input;
}

Status decode_outputs(JsonValue root, AnswerFormat& format, std::vector<std::string>& names) {
  if (const auto parameters = root.find("parameters")) {
    if (const auto all = parameters->find("binary_data_output")) {
      FALAJ_ASSIGN(format.binary_by_default, all->as_bool());
    }
  }
  const auto outputs = root.find("outputs");
  if (!outputs) return {};
  for (const auto output : *outputs) {
    FALAJ_ASSIGN(const auto name, output.member("name"));
    FALAJ_ASSIGN(const auto name_text, name.as_string());
    if (names.size() >= kInputsMax) return invalid("too many outputs");
    names.emplace_back(name_text);
    if (const auto parameters = output.find("parameters")) {
      if (const auto binary = parameters->find("binary_data")) {
        FALAJ_ASSIGN(const auto wanted, binary->as_bool());
        format.binary.emplace_back(name_text, wanted);
      }
    }
  }
  return {};
}

Message build_infer(std::string_view model, std::uint64_t version, std::string_view id, const std::vector<Input>& inputs,
                    const std::vector<std::string>& outputs) {
  std::size_t words = 64 + outputs.size() * 8;
  for (const auto& input : inputs) words += 24 + input.content.size() / 8 + input.views.size() * 3;
  return Message::build<messages::Infer>(
      [&](messages::Infer::Builder b) {
        b.setModel(std::string(model));
        b.setVersion(version);
        b.setId(std::string(id));
        auto list = b.initInputs(static_cast<unsigned>(inputs.size()));
        for (unsigned i = 0; i < inputs.size(); ++i) {
          list[i].setName(inputs[i].name);
          list[i].setType(inputs[i].type);
          auto shape = list[i].initShape(static_cast<unsigned>(inputs[i].shape.size()));
          for (unsigned d = 0; d < inputs[i].shape.size(); ++d) shape.set(d, inputs[i].shape[d]);
          if (inputs[i].type == DataType::BYTES) {
            auto strings = list[i].initStrings(static_cast<unsigned>(inputs[i].views.size()));
            for (unsigned k = 0; k < inputs[i].views.size(); ++k) strings.set(k, data(inputs[i].views[k]));
          } else {
            list[i].setContent(data(inputs[i].content));
          }
        }
        auto names = b.initOutputs(static_cast<unsigned>(outputs.size()));
        for (unsigned i = 0; i < outputs.size(); ++i) names.set(i, outputs[i]);
      },
      words);
}

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

// The bytes of one output in the binary extension.
void append_binary(Bytes& out, messages::Tensor::Reader tensor) {
  if (tensor.getType() != DataType::BYTES) {
    const auto content = bytes(tensor.getContent());
    out.insert(out.end(), content.begin(), content.end());
    return;
  }
  for (const auto one : tensor.getStrings()) {
    const auto size = static_cast<std::uint32_t>(one.size());
    const auto* first = reinterpret_cast<const std::uint8_t*>(&size);
    out.insert(out.end(), first, first + 4);
    out.insert(out.end(), one.begin(), one.end());
  }
}

void write_shape(net::JsonWriter& w, capnp::List<std::int64_t>::Reader shape) {
  w.key("shape").begin_array();
  for (const auto dim : shape) w.number(dim);
  w.end_array();
}

void write_output(net::JsonWriter& w, messages::Tensor::Reader output, bool as_binary, Bytes& binary) {
  w.begin_object().key("name").string(text(output.getName())).key("datatype").string(type_name(output.getType()));
  write_shape(w, output.getShape());
  if (as_binary) {
    const auto before = binary.size();
    append_binary(binary, output);
    w.key("parameters").begin_object().key("binary_data_size").number(binary.size() - before).end_object();
  } else {
    w.key("data");
    write_data(w, output);
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

bool AnswerFormat::is_binary(std::string_view output) const {
  for (const auto& [name, wanted] : binary) {
    if (name == output) return wanted;
  }
  return binary_by_default;
}

Result<DecodedInfer> decode_infer(net::JsonReader& reader, ByteView body, std::string_view header_length, std::string_view model,
                                  std::uint64_t version) {
  std::size_t json_size = body.size();
  if (!header_length.empty()) {
    const auto* end = header_length.data() + header_length.size();
    if (std::from_chars(header_length.data(), end, json_size).ptr != end || json_size > body.size()) {
      return invalid(format("Inference-Header-Content-Length '{}' is not between 0 and the length of the body, {}",
                            header_length.substr(0, 32), body.size()));
    }
    if (json_size == 0)
      return error(ErrorCode::unimplemented, "raw binary requests (Inference-Header-Content-Length: 0) are not served; send a JSON header");
  }
  FALAJ_ASSIGN(const auto root, reader.parse(body.first(json_size)));
  auto binary = body.subspan(json_size);
  std::string_view id;
  if (const auto given = root.find("id")) {
    FALAJ_ASSIGN(id, given->as_string());
  }
  FALAJ_ASSIGN(const auto list, root.member("inputs"));
  if (list.type() != net::JsonType::array || list.size() > kInputsMax)
    return invalid(format("inputs must be an array of at most {}", kInputsMax));
  std::vector<Input> inputs;
  inputs.reserve(list.size());
  for (const auto one : list) {
    FALAJ_ASSIGN(auto input, decode_input(one, binary));
    inputs.push_back(std::move(input));
    // Views of BYTES point into the input's own strings, which have just moved; small ones live inside the object.
    auto& kept = inputs.back();
    if (!kept.strings.empty()) {
      for (std::size_t i = 0; i < kept.strings.size(); ++i) kept.views[i] = as_bytes(kept.strings[i]);
    }
    if (!kept.owned.empty()) kept.content = kept.owned;
  }
  if (!binary.empty()) return invalid(format("{} bytes of the body belong to no input; check binary_data_size", binary.size()));
  DecodedInfer decoded;
  std::vector<std::string> outputs;
  FALAJ_TRY(decode_outputs(root, decoded.format, outputs));
  decoded.message = build_infer(model, version, id, inputs, outputs);
  return decoded;
}

net::HttpResponse encode_infer(messages::InferReply::Reader reply, const AnswerFormat& format) {
  net::JsonWriter w(512);
  Bytes binary;
  w.begin_object().key("model_name").string(text(reply.getModel())).key("model_version").string(std::to_string(reply.getVersion()));
  if (reply.getId().size() > 0) w.key("id").string(text(reply.getId()));
  w.key("outputs").begin_array();
  for (const auto output : reply.getOutputs()) write_output(w, output, format.is_binary(text(output.getName())), binary);
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
