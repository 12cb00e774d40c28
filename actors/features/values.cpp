#include "actors/features/values.hpp"

#include <cmath>
#include <set>

#include "runtime/base/format.hpp"

namespace falaj::features {

std::string_view to_string(messages::FieldType type) noexcept {
  switch (type) {
    case messages::FieldType::FLOAT32:
      return "float32";
    case messages::FieldType::FLOAT64:
      return "float64";
    case messages::FieldType::INT64:
      return "int64";
    case messages::FieldType::BOOL:
      return "bool";
    case messages::FieldType::STRING:
      return "string";
  }
  return "unknown";
}

storage::FieldValue read_value(messages::Value::Reader value) {
  switch (value.which()) {
    case messages::Value::MISSING:
      return {};
    case messages::Value::FLOAT32:
      return std::isnan(value.getFloat32()) ? storage::FieldValue{} : storage::FieldValue{value.getFloat32()};
    case messages::Value::FLOAT64:
      return std::isnan(value.getFloat64()) ? storage::FieldValue{} : storage::FieldValue{value.getFloat64()};
    case messages::Value::INT64:
      return value.getInt64();
    case messages::Value::BOOL:
      return value.getBool();
    case messages::Value::STRING:
      return std::string(text(value.getString()));
  }
  return {};
}

void write_value(messages::Value::Builder into, const storage::FieldValue& value) {
  struct Writer {
    messages::Value::Builder into;
    void operator()(std::monostate) { into.setMissing(); }
    void operator()(bool v) { into.setBool(v); }
    void operator()(std::int64_t v) { into.setInt64(v); }
    void operator()(float v) { into.setFloat32(v); }
    void operator()(double v) { into.setFloat64(v); }
    void operator()(const std::string& v) { into.setString(capnp::Text::Reader(v.c_str(), v.size())); }
  };
  std::visit(Writer{into}, value);
}

namespace {

// The union's member of each type; NaN is missing.
bool is_missing(messages::Value::Reader value) {
  if (value.isMissing()) return true;
  if (value.isFloat32()) return std::isnan(value.getFloat32());
  return value.isFloat64() && std::isnan(value.getFloat64());
}

bool fits(messages::FieldType type, messages::Value::Reader value) {
  switch (type) {
    case messages::FieldType::FLOAT32:
      return value.isFloat32();
    case messages::FieldType::FLOAT64:
      return value.isFloat64();
    case messages::FieldType::INT64:
      return value.isInt64();
    case messages::FieldType::BOOL:
      return value.isBool();
    case messages::FieldType::STRING:
      return value.isString();
  }
  return false;
}

}  // namespace

Status check_value(messages::FeatureField::Reader field, messages::Value::Reader value) {
  if (is_missing(value)) {
    if (!field.getRequired()) return {};
    return invalid(format("field '{}': a value is required", text(field.getName())));
  }
  if (!fits(field.getType(), value)) {
    return invalid(format("field '{}': the value is not a {}", text(field.getName()), to_string(field.getType())));
  }
  if (value.isString()) {
    const auto string = text(value.getString());
    if (string.size() > limits::kCsvFieldBytesMax) {
      return invalid(format("field '{}': {} bytes; at most {}", text(field.getName()), string.size(), limits::kCsvFieldBytesMax));
    }
    if (!is_utf8(string)) return invalid(format("field '{}': not UTF-8", text(field.getName())));
  }
  const double number = value.isFloat32() ? static_cast<double>(value.getFloat32()) : value.isFloat64() ? value.getFloat64() : 0.0;
  if (std::isinf(number)) return invalid(format("field '{}': the value is not finite", text(field.getName())));
  return {};
}

Status check_row(messages::FeatureView::Reader view, messages::Row::Reader row, std::size_t index) {
  const auto entity = text(row.getEntity());
  const auto fields = view.getField();
  const auto values = row.getValues();
  if (entity.empty() || entity.size() > kEntityBytesMax || !is_utf8(entity)) {
    return invalid(format("row {}: field '{}': an entity is UTF-8 of 1 to {} bytes", index + 1, text(view.getEntity()), kEntityBytesMax));
  }
  if (values.size() != fields.size()) {
    return invalid(format("row {}: {} values, but view '{}' has {} fields", index + 1, values.size(), text(view.getName()), fields.size()));
  }
  for (unsigned i = 0; i < fields.size(); ++i) {
    auto status = check_value(fields[i], values[i]);
    if (!status.has_value()) return within(format("row {}", index + 1), std::move(status).error());
  }
  return {};
}

Status check_view(messages::FeatureView::Reader view) {
  const auto name = text(view.getName());
  if (view.getField().size() == 0) return invalid(format("view '{}': it has no fields", name));
  if (view.getField().size() > limits::kCsvColumnsMax) {
    return invalid(format("view '{}': {} fields; at most {}", name, view.getField().size(), limits::kCsvColumnsMax));
  }
  if (view.getEntity().size() == 0) return invalid(format("view '{}': it names no entity column", name));
  std::set<std::string_view> seen{text(view.getEntity())};
  for (const auto field : view.getField()) {
    const auto field_name = text(field.getName());
    if (field_name.empty()) return invalid(format("view '{}': a field has no name", name));
    if (!seen.insert(field_name).second) return invalid(format("view '{}': field '{}' is named twice; rename one", name, field_name));
  }
  return {};
}

}  // namespace falaj::features
