#include "kernels/onnx/wire.hpp"

#include <cstdint>

#include "runtime/base/format.hpp"

namespace falaj::kernels::onnx_format {
namespace {

enum class Message : std::uint8_t {
  blob,
  model,
  graph,
  node,
  attribute,
  tensor,
  sparse,
  value,
  type,
  tensor_type,
  sequence_type,
  map_type,
  function,
  pairs
};

// Which field of which message holds which message (field numbers of onnx.proto); everything else is a blob.
Message inside(Message outer, std::uint64_t field) {
  switch (outer) {
    case Message::model:
      return field == 7 ? Message::graph : field == 25 ? Message::function : field == 14 || field == 8 ? Message::pairs : Message::blob;
    case Message::graph:
      switch (field) {
        case 1:
          return Message::node;
        case 5:
          return Message::tensor;
        case 11:
        case 12:
        case 13:
          return Message::value;
        case 15:
          return Message::sparse;
        case 14:
          return Message::pairs;
        default:
          return Message::blob;
      }
    case Message::function:
      return field == 7 ? Message::node : Message::blob;
    case Message::node:
      return field == 5 ? Message::attribute : Message::blob;
    case Message::attribute:
      switch (field) {
        case 5:
        case 10:
          return Message::tensor;
        case 6:
        case 11:
          return Message::graph;
        case 14:
        case 15:
          return Message::type;
        case 22:
        case 23:
          return Message::sparse;
        default:
          return Message::blob;
      }
    case Message::sparse:
      return field == 1 || field == 2 ? Message::tensor : Message::blob;
    case Message::tensor:
      return field == 13 ? Message::pairs : Message::blob;
    case Message::value:
      return field == 2 ? Message::type : Message::blob;
    case Message::type:
      return field == 1 || field == 8   ? Message::tensor_type
             : field == 4 || field == 9 ? Message::sequence_type
             : field == 5               ? Message::map_type
                                        : Message::blob;
    case Message::sequence_type:
      return field == 1 ? Message::type : Message::blob;
    case Message::map_type:
      return field == 2 ? Message::type : Message::blob;
    case Message::tensor_type:  // its shape: short, and its dimensions hold names, which are no messages
    case Message::pairs:
    case Message::blob:
      return Message::blob;
  }
  return Message::blob;
}

class Walker {
 public:
  explicit Walker(ByteView bytes) : bytes_(bytes) {}

  Status walk(Message message, std::size_t at, std::size_t end, int depth) {
    if (depth > kModelDepthMax) return invalid(format("messages are nested deeper than {} at byte {}", kModelDepthMax, at));
    while (at < end) {
      std::size_t start = at;
      std::uint64_t key = 0;
      if (!varint(at, end, key)) return truncated(start);
      std::uint64_t value = 0;
      switch (key & 7U) {
        case 0:
          if (!varint(at, end, value)) return truncated(start);
          break;
        case 1:
        case 5: {
          std::size_t width = (key & 7U) == 1 ? 8 : 4;
          if (end - at < width) return truncated(start);
          at += width;
          break;
        }
        case 2: {
          if (!varint(at, end, value) || value > end - at) return truncated(start);
          if (++fields_ > kModelFieldsMax) return invalid(format("the model has more than {} parts; it is not read", kModelFieldsMax));
          Message next = inside(message, key >> 3U);
          if (next != Message::blob) FALAJ_TRY(walk(next, at, at + value, depth + 1));
          at += value;
          break;
        }
        default:
          return Error{ErrorCode::corrupt, format("byte {} holds no field: this is no ONNX model, or it is damaged", start)};
      }
    }
    return {};
  }

 private:
  bool varint(std::size_t& at, std::size_t end, std::uint64_t& value) {
    value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (at == end) return false;
      std::uint8_t byte = bytes_[at++];
      value |= static_cast<std::uint64_t>(byte & 0x7FU) << shift;
      if (byte < 0x80U) return true;
    }
    return false;
  }
  static Error truncated(std::size_t at) {
    return Error{ErrorCode::corrupt,
                 format("the file ends, or a part of it, within the field at byte {}: it is truncated; copy or export it again", at)};
  }

  ByteView bytes_;
  std::size_t fields_ = 0;
};

}  // namespace

Status check_wire(ByteView model) { return Walker(model).walk(Message::model, 0, model.size(), 0); }

}  // namespace falaj::kernels::onnx_format
