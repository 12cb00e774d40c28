#include "nodes/tensors.hpp"

#include <cstring>

#include "messages/message.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

template <class T>
std::string show_numbers(ByteView content, unsigned row, unsigned rows) {
  const auto width = content.size() / sizeof(T) / rows;
  std::string out;
  for (std::size_t i = 0; i < width; ++i) {
    T value{};
    std::memcpy(&value, content.data() + (row * width + i) * sizeof(T), sizeof(T));
    out += (out.empty() ? "" : " ") + format("{}", value);
  }
  return out;
}

}  // namespace

std::string show_row(messages::Tensor::Reader tensor, unsigned row, unsigned rows) {
  using messages::DataType;
  if (rows == 0) return {};
  const auto content = bytes(tensor.getContent());
  switch (tensor.getType()) {
    case DataType::FP32:
      return show_numbers<float>(content, row, rows);
    case DataType::FP64:
      return show_numbers<double>(content, row, rows);
    case DataType::INT64:
      return show_numbers<std::int64_t>(content, row, rows);
    case DataType::INT32:
      return show_numbers<std::int32_t>(content, row, rows);
    case DataType::BYTES: {
      std::string out;
      const auto width = tensor.getStrings().size() / rows;
      for (unsigned i = 0; i < width; ++i)
        out += (out.empty() ? "" : " ") + std::string(as_text(bytes(tensor.getStrings()[row * width + i])));
      return out;
    }
    default:
      return "?";
  }
}

}  // namespace falaj::nodes
