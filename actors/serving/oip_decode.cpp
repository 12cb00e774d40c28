// Requests of the Open Inference Protocol into Infer messages. The numbers of a JSON text are written straight into the message; what a
// request may make us hold is bounded by its own length before anything is allocated for it.
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "actors/serving/model.hpp"
#include "actors/serving/oip.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"

namespace falaj::serving {

using messages::DataType;
using net::JsonType;
using net::JsonValue;

namespace {

constexpr std::size_t kInputsMax = 4096;
constexpr std::size_t kRankMax = 8;
constexpr std::size_t kJsonBytesMax = limits::kMessageBytesMax;
constexpr std::size_t kContentMax = limits::kMessageBytesMax - (1U << 20);  // the rest is for names, shapes and framing

struct Input {
  std::string_view name;
  DataType type = DataType::INVALID;
  std::array<std::int64_t, kRankMax> dims{};
  unsigned rank = 0;
  std::size_t count = 1;  // elements, by the shape
  bool is_binary = false;
  ByteView binary;
  JsonValue data;
};

DataType parse_type(std::string_view name) {
  for (auto i = static_cast<int>(DataType::BOOL); i <= static_cast<int>(DataType::BF16); ++i) {
    if (type_name(static_cast<DataType>(i)) == name) return static_cast<DataType>(i);
  }
  return DataType::INVALID;
}

// Like member(), but an absent key is the request's fault and not a thing that was not found.
Result<JsonValue> required(JsonValue object, std::string_view key) {
  if (object.type() != JsonType::object)
    return invalid(format("'{}' is looked for in {}; an object is needed", key, to_string(object.type())));
  const auto found = object.find(key);
  if (!found) return invalid(format("'{}' is missing", key));
  return *found;
}

// ---- elements ------------------------------------------------------------------------------------------------------------------

template <class T>
Result<T> element(JsonValue value) {
  if constexpr (std::is_floating_point_v<T>) {
    if (value.is_null()) return std::numeric_limits<T>::quiet_NaN();
    FALAJ_ASSIGN(const auto number, value.as_double());
    if (std::is_same_v<T, float> && std::abs(number) > static_cast<double>(std::numeric_limits<float>::max()))
      return invalid(format("{} does not fit FP32", number));
    return static_cast<T>(number);
  } else if constexpr (std::is_same_v<T, bool>) {
    if (value.type() == JsonType::boolean) return value.as_bool();
    FALAJ_ASSIGN(const auto number, value.as_int());
    if (number != 0 && number != 1) return invalid(format("{} is no BOOL", number));
    return number == 1;
  } else if constexpr (std::is_same_v<T, std::uint64_t>) {
    return value.as_uint();
  } else {
    FALAJ_ASSIGN(const auto number, value.as_int());
    if (!std::in_range<T>(number)) return invalid(format("{} does not fit the datatype", number));
    return static_cast<T>(number);
  }
}

// Visits the scalars of any nesting in row-major order; the reader bounds the depth.
template <class Visit>
Status each(JsonValue value, Visit& visit) {
  if (value.type() != JsonType::array) return visit(value);
  for (const auto item : value) FALAJ_TRY(each(item, visit));
  return {};
}

template <class T>
Status write_elements(JsonValue data, std::size_t count, std::uint8_t* to) {
  std::size_t done = 0;
  auto visit = [&](JsonValue value) -> Status {
    if (done == count) return invalid(format("data has more than the {} elements that the shape asks for", count));
    FALAJ_ASSIGN(const T number, element<T>(value));
    std::memcpy(to + done * sizeof(T), &number, sizeof(T));
    ++done;
    return {};
  };
  FALAJ_TRY(each(data, visit));
  if (done != count) return invalid(format("data has {} elements, the shape asks for {}", done, count));
  return {};
}

Status write_numbers(DataType type, JsonValue data, std::size_t count, std::uint8_t* to) {
  switch (type) {
    case DataType::BOOL:
      return write_elements<bool>(data, count, to);
    case DataType::UINT8:
      return write_elements<std::uint8_t>(data, count, to);
    case DataType::UINT16:
      return write_elements<std::uint16_t>(data, count, to);
    case DataType::UINT32:
      return write_elements<std::uint32_t>(data, count, to);
    case DataType::UINT64:
      return write_elements<std::uint64_t>(data, count, to);
    case DataType::INT8:
      return write_elements<std::int8_t>(data, count, to);
    case DataType::INT16:
      return write_elements<std::int16_t>(data, count, to);
    case DataType::INT32:
      return write_elements<std::int32_t>(data, count, to);
    case DataType::INT64:
      return write_elements<std::int64_t>(data, count, to);
    case DataType::FP32:
      return write_elements<float>(data, count, to);
    case DataType::FP64:
      return write_elements<double>(data, count, to);
    default:
      return invalid(format("{} has no JSON form; send it as binary data", type_name(type)));
  }
}

Status write_json_strings(JsonValue json, std::size_t count, capnp::List<capnp::Data>::Builder to) {
  std::size_t done = 0;
  auto visit = [&](JsonValue value) -> Status {
    if (done == count) return invalid(format("data has more than the {} elements that the shape asks for", count));
    if (!value.is_null()) {
      FALAJ_ASSIGN(const auto string, value.as_string());
      to.set(static_cast<unsigned>(done), falaj::data(as_bytes(string)));
    }
    ++done;
    return {};
  };
  FALAJ_TRY(each(json, visit));
  if (done != count) return invalid(format("data has {} elements, the shape asks for {}", done, count));
  return {};
}

Status write_binary_strings(ByteView raw, std::size_t count, capnp::List<capnp::Data>::Builder to) {
  std::size_t at = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t size = 0;
    if (raw.size() - at < 4) return invalid(format("BYTES data ends after {} elements, the shape asks for {}", i, count));
    std::memcpy(&size, raw.data() + at, 4);
    at += 4;
    if (raw.size() - at < size) return invalid(format("BYTES data ends within element {}", i));
    to.set(static_cast<unsigned>(i), falaj::data(raw.subspan(at, size)));
    at += size;
  }
  if (at != raw.size()) return invalid(format("BYTES data has {} bytes behind its last element", raw.size() - at));
  return {};
}

// ---- one input -----------------------------------------------------------------------------------------------------------------

Status read_shape(JsonValue json, std::size_t body_bytes, Input& input) {
  if (json.type() != JsonType::array) return invalid(format("shape is {}, it must be an array", to_string(json.type())));
  for (const auto one : json) {
    if (input.rank == kRankMax) return invalid(format("shape has more than {} dimensions", kRankMax));
    FALAJ_ASSIGN(const auto dim, one.as_int());
    if (dim < 0) return invalid(format("shape: {} is negative", dim));
    // Every element takes at least one byte of the request, in JSON as in binary.
    if (dim > 0 && input.count > body_bytes / static_cast<std::size_t>(dim))
      return invalid("shape asks for more elements than the request holds");
    input.count *= static_cast<std::size_t>(dim);
    input.dims[input.rank++] = dim;
  }
  return {};
}

Status read_source(JsonValue json, ByteView& binary, Input& input) {
  if (const auto parameters = json.find("parameters")) {
    if (parameters->find("shared_memory_region")) return error(ErrorCode::unimplemented, "shared memory is not served; send the data");
    if (const auto size = parameters->find("binary_data_size")) {
      const auto value = size->as_uint();
      if (!value) return within("binary_data_size", value.error());
      if (*value > binary.size()) return invalid(format("binary_data_size is {}, the body has {} bytes left", *value, binary.size()));
      input.is_binary = true;
      input.binary = binary.first(static_cast<std::size_t>(*value));
      binary = binary.subspan(static_cast<std::size_t>(*value));
      const auto wanted = input.count * element_size(input.type);
      if (input.type != DataType::BYTES && input.binary.size() != wanted)
        return invalid(format("binary_data_size is {}, shape and datatype make {}", *value, wanted));
      return {};
    }
  }
  const auto values = json.find("data");
  if (!values) return invalid("neither data nor binary_data_size is given");
  input.data = *values;
  return {};
}

// `binary`: what is left of the body after the JSON; the input takes its part from the front.
Result<Input> read_input(JsonValue json, std::size_t body_bytes, ByteView& binary) {
  Input input;
  FALAJ_ASSIGN(const auto name, required(json, "name"));
  FALAJ_ASSIGN(input.name, name.as_string());
  const auto rest = [&]() -> Status {
    FALAJ_ASSIGN(const auto type, required(json, "datatype"));
    FALAJ_ASSIGN(const auto type_text, type.as_string());
    input.type = parse_type(type_text);
    if (input.type == DataType::INVALID) return invalid(format("unknown datatype '{}'", type_text.substr(0, 32)));
    FALAJ_ASSIGN(const auto shape, required(json, "shape"));
    FALAJ_TRY(read_shape(shape, body_bytes, input));
    return read_source(json, binary, input);
  };
  if (auto read = rest(); !read) return within(format("input '{}'", input.name.substr(0, 128)), read.error());
  return input;
}

Status write_input(const Input& input, messages::Tensor::Builder to) {
  to.setName({input.name.data(), input.name.size()});
  to.setType(input.type);
  auto shape = to.initShape(input.rank);
  for (unsigned d = 0; d < input.rank; ++d) shape.set(d, input.dims[d]);
  if (input.type == DataType::BYTES) {
    auto strings = to.initStrings(static_cast<unsigned>(input.count));
    return input.is_binary ? write_binary_strings(input.binary, input.count, strings)
                           : write_json_strings(input.data, input.count, strings);
  }
  if (input.is_binary) {
    to.setContent(data(input.binary));
    return {};
  }
  auto content = to.initContent(static_cast<unsigned>(input.count * element_size(input.type)));
  return write_numbers(input.type, input.data, input.count, content.begin());
}

// ---- the request -----------------------------------------------------------------------------------------------------------------

Status read_outputs(JsonValue root, AnswerFormat& answer) {
  const auto outputs = root.find("outputs");
  if (!outputs) return {};
  if (outputs->type() != JsonType::array || outputs->size() > kInputsMax)
    return invalid(format("outputs must be an array of at most {}", kInputsMax));
  for (const auto output : *outputs) {
    FALAJ_ASSIGN(const auto name, required(output, "name"));
    FALAJ_ASSIGN(const auto name_text, name.as_string());
    auto& wanted = answer.outputs.emplace_back(OutputFormat{std::string(name_text), std::nullopt, 0});
    const auto parameters = output.find("parameters");
    if (!parameters) continue;
    if (const auto binary = parameters->find("binary_data")) {
      FALAJ_ASSIGN(wanted.binary, binary->as_bool());
    }
    if (const auto classes = parameters->find("classification")) {
      FALAJ_ASSIGN(const auto count, classes->as_uint());
      wanted.classes = static_cast<std::uint32_t>(std::min<std::uint64_t>(count, 1U << 20));
    }
    if (parameters->find("shared_memory_region")) return error(ErrorCode::unimplemented, "shared memory is not served; take the data");
  }
  return {};
}

Status read_parameters(JsonValue root, DecodedInfer& decoded) {
  const auto parameters = root.find("parameters");
  if (!parameters) return {};
  if (const auto all = parameters->find("binary_data_output")) {
    FALAJ_ASSIGN(decoded.format.binary_by_default, all->as_bool());
  }
  if (const auto timeout = parameters->find("timeout")) {
    FALAJ_ASSIGN(const auto us, timeout->as_uint());
    decoded.timeout = std::chrono::microseconds(std::min<std::uint64_t>(us, 3'600'000'000));
  }
  return {};
}

Result<std::size_t> json_length(std::string_view header_length, std::size_t body_bytes) {
  if (header_length.empty()) return body_bytes;
  std::size_t length = 0;
  const auto* end = header_length.data() + header_length.size();
  const auto [at, code] = std::from_chars(header_length.data(), end, length);
  if (code != std::errc{} || at != end || length > body_bytes) {
    return invalid(format("Inference-Header-Content-Length '{}' is not between 0 and the length of the body, {}",
                          header_length.substr(0, 32), body_bytes));
  }
  if (length == 0)
    return error(ErrorCode::unimplemented, "raw binary requests (Inference-Header-Content-Length: 0) are not served; send a JSON header");
  return length;
}

}  // namespace

Result<DecodedInfer> decode_infer(net::JsonReader& reader, ByteView body, std::string_view header_length, std::string_view model,
                                  std::uint64_t version) {
  FALAJ_ASSIGN(const auto json_size, json_length(header_length, body.size()));
  if (json_size > kJsonBytesMax)
    return invalid(format("the JSON text has {} bytes, at most {} are read; send tensors as binary data or in several requests", json_size,
                          kJsonBytesMax));
  FALAJ_ASSIGN(const auto root, reader.parse(body.first(json_size)));
  auto binary = body.subspan(json_size);
  std::string_view id;
  if (const auto given = root.find("id")) {
    FALAJ_ASSIGN(id, given->as_string());
  }
  FALAJ_ASSIGN(const auto list, required(root, "inputs"));
  if (list.type() != JsonType::array || list.size() > kInputsMax)
    return invalid(format("inputs must be an array of at most {}", kInputsMax));
  std::vector<Input> inputs;
  inputs.reserve(list.size());
  std::size_t content = id.size() + model.size();
  std::size_t words = 48;
  for (const auto one : list) {
    FALAJ_ASSIGN(const auto input, read_input(one, body.size(), binary));
    content += input.name.size() + (input.type == DataType::BYTES ? input.count * 8 : input.count * element_size(input.type)) +
               input.binary.size();
    if (content > kContentMax) return invalid(format("the tensors take more than {} bytes; send several requests", kContentMax));
    words += 16 + input.rank + (input.name.size() + input.binary.size()) / 8 + input.count * (input.type == DataType::BYTES ? 3 : 1);
    inputs.push_back(input);
  }
  if (!binary.empty()) return invalid(format("{} bytes of the body belong to no input; check binary_data_size", binary.size()));
  DecodedInfer decoded;
  FALAJ_TRY(read_parameters(root, decoded));
  FALAJ_TRY(read_outputs(root, decoded.format));
  words += decoded.format.outputs.size() * 8;
  Status written;
  decoded.message = Message::build<messages::Infer>(
      [&](messages::Infer::Builder b) {
        b.setModel(std::string(model));
        b.setVersion(version);
        b.setId(std::string(id));
        auto tensors = b.initInputs(static_cast<unsigned>(inputs.size()));
        for (unsigned i = 0; i < inputs.size() && written; ++i) {
          written = write_input(inputs[i], tensors[i]);
          if (!written) written = within(format("input '{}'", inputs[i].name.substr(0, 128)), written.error());
        }
        auto names = b.initOutputs(static_cast<unsigned>(decoded.format.outputs.size()));
        for (unsigned i = 0; i < names.size(); ++i) names.set(i, decoded.format.outputs[i].name);
      },
      words);
  if (!written) return written.error();
  if (decoded.message.bytes().size() > limits::kMessageBytesMax)
    return invalid(format("the request takes more than {} bytes; send several", limits::kMessageBytesMax));
  return decoded;
}

}  // namespace falaj::serving
