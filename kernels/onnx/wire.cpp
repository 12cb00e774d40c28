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

struct Field {
  std::uint64_t number = 0;
  unsigned type = 0;  // protobuf's wire type; 2 has a body
  std::size_t begin = 0, body = 0, end = 0;
};

bool varint(ByteView bytes, std::size_t& at, std::size_t end, std::uint64_t& value) {
  value = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    if (at == end) return false;
    std::uint8_t byte = bytes[at++];
    value |= static_cast<std::uint64_t>(byte & 0x7FU) << shift;
    if (byte < 0x80U) return true;
  }
  return false;
}

// The field at `at`, which must lie before `end`.
Result<Field> field_at(ByteView bytes, std::size_t at, std::size_t end) {
  const auto truncated = [&] {
    return Error{ErrorCode::corrupt,
                 format("the file ends, or a part of it, within the field at byte {}: it is truncated; copy or export it again", at)};
  };
  Field field{.begin = at};
  std::size_t next = at;
  std::uint64_t key = 0;
  std::uint64_t value = 0;
  if (!varint(bytes, next, end, key)) return truncated();
  field.number = key >> 3U;
  field.type = key & 7U;
  field.body = next;
  switch (field.type) {
    case 0:
      if (!varint(bytes, next, end, value)) return truncated();
      break;
    case 1:
    case 5: {
      const std::size_t width = field.type == 1 ? 8 : 4;
      if (end - next < width) return truncated();
      next += width;
      break;
    }
    case 2:
      if (!varint(bytes, next, end, value) || value > end - next) return truncated();
      field.body = next;
      next += value;
      break;
    default:
      return Error{ErrorCode::corrupt, format("byte {} holds no field: this is no ONNX model, or it is damaged", at)};
  }
  field.end = next;
  return field;
}

class Walker {
 public:
  explicit Walker(ByteView bytes) : bytes_(bytes) {}

  Status walk(Message message, std::size_t at, std::size_t end, int depth) {
    if (depth > kModelDepthMax) return invalid(format("messages are nested deeper than {} at byte {}", kModelDepthMax, at));
    while (at < end) {
      FALAJ_ASSIGN(const Field field, field_at(bytes_, at, end));
      at = field.end;
      if (field.type != 2) continue;
      if (++fields_ > kModelFieldsMax) return invalid(format("the model has more than {} parts; it is not read", kModelFieldsMax));
      const Message next = inside(message, field.number);
      if (next != Message::blob) FALAJ_TRY(walk(next, field.body, field.end, depth + 1));
    }
    return {};
  }

 private:
  ByteView bytes_;
  std::size_t fields_ = 0;
};

// Copies messages without the large data in them.
class Stripper {
 public:
  explicit Stripper(ByteView bytes) : bytes_(bytes) {}

  Result<Stripped> model() && {
    FALAJ_TRY(each(0, bytes_.size(), out_.model, [this](const Field& f, Bytes& to) -> Status {
      return f.type == 2 && f.number == 7 ? nested(f, to, [this](const Field& g, Bytes& in) { return of_graph(g, in); }) : copy(f, to);
    }));
    return std::move(out_);
  }

 private:
  template <class Take>
  Status each(std::size_t at, std::size_t end, Bytes& to, Take take) {
    while (at < end) {
      FALAJ_ASSIGN(const Field field, field_at(bytes_, at, end));
      FALAJ_TRY(take(field, to));
      at = field.end;
    }
    return {};
  }
  // A message within `to`, whose length is known only when it is there.
  template <class Take>
  Status nested(const Field& field, Bytes& to, Take take) {
    Bytes body;
    FALAJ_TRY(each(field.body, field.end, body, take));
    put(field.number << 3U | 2U, to);
    put(body.size(), to);
    to.insert(to.end(), body.begin(), body.end());
    return {};
  }
  Status of_graph(const Field& field, Bytes& to) {
    if (field.type != 2 || field.number != 5) return copy(field, to);
    ByteView taken;
    FALAJ_TRY(nested(field, to, [&](const Field& f, Bytes& in) -> Status {
      if (f.type != 2 || f.number != 9) return copy(f, in);
      const ByteView raw = bytes_.subspan(f.body, f.end - f.body);
      taken = raw.size() < kStripMin ? ByteView{} : raw;  // of several the last one counts
      return taken.empty() ? copy(f, in) : Status{};
    }));
    out_.raw.push_back(taken);
    return {};
  }
  Status copy(const Field& field, Bytes& to) const {
    to.insert(to.end(), bytes_.begin() + static_cast<std::ptrdiff_t>(field.begin), bytes_.begin() + static_cast<std::ptrdiff_t>(field.end));
    return {};
  }
  static void put(std::uint64_t value, Bytes& to) {
    for (; value >= 0x80U; value >>= 7U) to.push_back(static_cast<std::uint8_t>(value | 0x80U));
    to.push_back(static_cast<std::uint8_t>(value));
  }

  ByteView bytes_;
  Stripped out_;
};

}  // namespace

Status check_wire(ByteView model) { return Walker(model).walk(Message::model, 0, model.size(), 0); }

Result<Stripped> strip(ByteView model) { return Stripper(model).model(); }

}  // namespace falaj::kernels::onnx_format
