// Serialised models written field by field, for what no graph of ours has: functions, data in other files, graphs in attributes.
#pragma once
#include <string>
#include <string_view>

#include "kernels/tensor.hpp"
#include "runtime/base/bytes.hpp"

namespace falaj::kernels::testing {

class Proto {
 public:
  Proto& number(int field, std::uint64_t value) {
    varint(static_cast<std::uint64_t>(field) << 3);
    varint(value);
    return *this;
  }
  Proto& text(int field, std::string_view value) {
    varint(static_cast<std::uint64_t>(field) << 3 | 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  Proto& part(int field, const Proto& value) { return text(field, value.bytes_); }
  Proto& raw(std::string_view encoded) {
    bytes_ += encoded;
    return *this;
  }
  [[nodiscard]] Bytes bytes() const { return {bytes_.begin(), bytes_.end()}; }

 private:
  void varint(std::uint64_t value) {
    for (; value > 0x7F; value >>= 7) bytes_.push_back(static_cast<char>(value | 0x80));
    bytes_.push_back(static_cast<char>(value));
  }
  std::string bytes_;
};

// The numbers are those of onnx.proto.
inline Proto node(std::string_view op, std::initializer_list<std::string_view> inputs, std::initializer_list<std::string_view> outputs,
                  std::string_view domain = "") {
  Proto p;
  for (auto name : inputs) p.text(1, name);
  for (auto name : outputs) p.text(2, name);
  p.text(4, op);
  if (!domain.empty()) p.text(7, domain);
  return p;
}
inline Proto value_info(std::string_view name, std::initializer_list<std::int64_t> shape, std::uint64_t dtype = 1) {
  Proto dims;
  for (auto d : shape) dims.part(1, Proto().number(1, static_cast<std::uint64_t>(d)));
  return Proto().text(1, name).part(2, Proto().part(1, Proto().number(1, dtype).part(2, dims)));
}
inline Proto opset(std::string_view domain, std::uint64_t version) { return Proto().text(1, domain).number(2, version); }
inline Proto model(const Proto& graph, std::uint64_t version = 17) {
  return Proto().number(1, 8).part(7, graph).part(8, opset("", version));
}
inline Proto graph_attribute(std::string_view name, const Proto& graph) { return Proto().text(1, name).part(6, graph).number(20, 5); }

}  // namespace falaj::kernels::testing
