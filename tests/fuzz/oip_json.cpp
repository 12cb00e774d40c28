// Any bytes as the body of an infer request: no crash, bounded memory, and what is accepted is a message that opens and whose tensors are
// as large as their shapes say. The first byte says how much of the rest is JSON, as the header would.
#include <cstdlib>

#include "actors/serving/model.hpp"
#include "actors/serving/oip.hpp"

using namespace falaj;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static net::JsonReader reader;
  if (size == 0) return 0;
  const ByteView body(data + 1, size - 1);
  const std::string header = data[0] == 0xff ? std::string() : std::to_string(body.size() * data[0] / 254);
  const auto decoded = serving::decode_infer(reader, body, header, "model", 0);
  if (!decoded.has_value()) {
    if (decoded.error().message.empty()) std::abort();
    return 0;
  }
  const auto request = decoded->message.open<messages::Infer>();
  if (!request.has_value()) std::abort();
  for (const auto input : (*request)->getInputs()) {
    std::size_t count = 1;
    for (const auto dim : input.getShape()) count *= static_cast<std::size_t>(dim);
    const bool is_bytes = input.getType() == messages::DataType::BYTES;
    const auto held = is_bytes ? input.getStrings().size() : input.getContent().size() / serving::element_size(input.getType());
    if (held != count) std::abort();
  }
  // The answer to a request may be anything that a model gives: here, its own inputs.
  const auto reply = Message::build<messages::InferReply>([&](messages::InferReply::Builder b) { b.setOutputs((*request)->getInputs()); });
  const auto response = serving::encode_infer(*reply.view<messages::InferReply>(), decoded->format);
  if (response.status == 200 && response.body.empty()) std::abort();
  return 0;
}
