// Values by themselves, as files of test data hold them.
#include <limits>

#include "kernels/onnx/proto.hpp"
#include "kernels/ops.hpp"
#include "runtime/base/format.hpp"
// After the door to ONNX's classes.
#include <onnx/onnx-data_pb.h>

namespace falaj::kernels {
namespace {

Result<Value> from_sequence(const onnx::SequenceProto& proto, int depth) {
  if (depth > 4) return invalid("sequences are nested too deep");
  std::vector<Value> items;
  for (const auto& tensor : proto.tensor_values()) {
    FALAJ_ASSIGN(Tensor t, onnx_format::read_tensor(tensor, {}));
    items.emplace_back(std::move(t));
  }
  for (const auto& inner : proto.sequence_values()) {
    FALAJ_ASSIGN(Value v, from_sequence(inner, depth + 1));
    items.push_back(std::move(v));
  }
  return Value::sequence(std::move(items));
}

}  // namespace

Result<Value> read_onnx_value(ByteView bytes, ValueKind kind, std::string_view name) {
  if (bytes.size() > static_cast<std::size_t>(std::numeric_limits<int>::max())) return invalid(format("{}: too large", name));
  auto size = static_cast<int>(bytes.size());
  Error damaged{ErrorCode::corrupt, format("{}: this is no tensor or sequence", name)};
  if (kind == ValueKind::sequence) {
    onnx::SequenceProto proto;
    if (!proto.ParseFromArray(bytes.data(), size)) return damaged;
    return from_sequence(proto, 0);
  }
  if (kind == ValueKind::optional) {
    onnx::OptionalProto proto;
    if (!proto.ParseFromArray(bytes.data(), size)) return damaged;
    if (proto.has_tensor_value()) {
      FALAJ_ASSIGN(Tensor t, onnx_format::read_tensor(proto.tensor_value(), {}));
      return Value(std::move(t));
    }
    if (proto.has_sequence_value()) return from_sequence(proto.sequence_value(), 0);
    return Value();
  }
  onnx::TensorProto proto;
  if (!proto.ParseFromArray(bytes.data(), size)) return damaged;
  auto tensor = onnx_format::read_tensor(proto, {});
  if (!tensor) return within(name, tensor.error());
  return Value(std::move(*tensor));
}

}  // namespace falaj::kernels
