// Open Inference Protocol v2 (KServe) over HTTP, with Triton's binary tensor extension: between HTTP bodies and the messages of
// messages/serving.capnp. Pure; bounded by the reader's limits.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "messages/message.hpp"
#include "messages/serving.capnp.h"
#include "runtime/net/http.hpp"
#include "runtime/net/http/json_reader.hpp"

namespace falaj::serving {

struct OutputFormat {
  std::string name;
  std::optional<bool> binary;
  std::uint32_t classes = 0;  // classification extension: the so many greatest; 0: the tensor itself
};

// How the answer is to be written.
struct AnswerFormat {
  bool binary_by_default = false;
  std::vector<OutputFormat> outputs;  // those named in the request
};

struct DecodedInfer {
  Message message;  // Infer
  AnswerFormat format;
  Duration timeout{0};  // the client's wish; zero: none
};

// `header_length`: value of Inference-Header-Content-Length, empty when absent. Errors are `invalid` and name input and remedy.
Result<DecodedInfer> decode_infer(net::JsonReader& reader, ByteView body, std::string_view header_length, std::string_view model,
                                  std::uint64_t version);
net::HttpResponse encode_infer(messages::InferReply::Reader reply, const AnswerFormat& format);
std::string encode_outputs_json(capnp::List<messages::Tensor>::Reader outputs);  // the array "outputs", all as JSON
std::string encode_metadata(messages::ModelDescription::Reader description);
std::string encode_config(messages::ModelDescription::Reader description);

net::HttpResponse error_response(const Error& error);  // {"error": ...} with the status of its code
unsigned http_status(ErrorCode code) noexcept;

}  // namespace falaj::serving
