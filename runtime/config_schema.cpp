#include "runtime/config_schema.hpp"

#include <type_traits>

#include "messages/annotations.capnp.h"

namespace falaj::config {
namespace {

// Ids of messages/annotations.capnp: capnpc-c++ makes no constants for annotations.
constexpr std::uint64_t kRange = 0xb0d7e3c4f5a64903;
constexpr std::uint64_t kDoc = 0xe2f4a6b8c0d14a04;
constexpr std::uint64_t kRequired = 0xa7c9e1f3b5d74b05;
constexpr std::uint64_t kOneOf = 0xf8b1d3e5a7c94c06;

}  // namespace

std::string snake(kj::StringPtr camel) {
  std::string out;
  for (const char c : camel) {
    const bool upper = c >= 'A' && c <= 'Z';
    if (upper) out.push_back('_');
    out.push_back(upper ? static_cast<char>(c + 32) : c);
  }
  return out;
}

Rules rules_of(const Field& field) {
  Rules rules;
  for (const auto annotation : field.getProto().getAnnotations()) {
    const auto value = annotation.getValue();
    if (annotation.getId() == kRange) {
      const auto range = value.getStruct().getAs<messages::Range>();
      rules.min = range.getMin();
      rules.max = range.getMax();
    } else if (annotation.getId() == kDoc) {
      rules.doc = value.getText().cStr();
    } else if (annotation.getId() == kRequired) {
      rules.required = true;
    } else if (annotation.getId() == kOneOf) {
      for (const auto word : value.getList().getAs<capnp::List<capnp::Text>>()) rules.one_of.emplace_back(word.cStr());
    }
  }
  return rules;
}

namespace {

template <class T>
std::pair<std::int64_t, std::int64_t> bounds() {
  if constexpr (sizeof(T) == 8) return {std::is_signed_v<T> ? std::numeric_limits<T>::min() : 0, std::numeric_limits<std::int64_t>::max()};
  return {static_cast<std::int64_t>(std::numeric_limits<T>::min()), static_cast<std::int64_t>(std::numeric_limits<T>::max())};
}

}  // namespace

std::optional<std::pair<std::int64_t, std::int64_t>> integer_bounds(SchemaType::Which which) {
  switch (which) {
    case SchemaType::INT8:
      return bounds<std::int8_t>();
    case SchemaType::INT16:
      return bounds<std::int16_t>();
    case SchemaType::INT32:
      return bounds<std::int32_t>();
    case SchemaType::INT64:
      return bounds<std::int64_t>();
    case SchemaType::UINT8:
      return bounds<std::uint8_t>();
    case SchemaType::UINT16:
      return bounds<std::uint16_t>();
    case SchemaType::UINT32:
      return bounds<std::uint32_t>();
    case SchemaType::UINT64:
      return bounds<std::uint64_t>();
    default:
      return std::nullopt;
  }
}

}  // namespace falaj::config
