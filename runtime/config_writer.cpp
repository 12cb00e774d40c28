// A schema struct as TOML text: what is not default, what is required, and the member that a union holds.
#include <capnp/dynamic.h>

#include <cmath>

#include "runtime/base/bytes.hpp"
#include "runtime/base/format.hpp"
#include "runtime/config.hpp"
#include "runtime/config_schema.hpp"

namespace falaj::config {
namespace {

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (byte < 0x20 || byte == 0x7F) {
      out += format("\\u{:04X}", static_cast<unsigned>(byte));
    } else {
      out.push_back(c);
    }
  }
  return out + "\"";
}

std::string decimal(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value < 0 ? "-inf" : "inf";
  auto text = format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

bool is_table_list(const Field& field) { return field.getType().isList() && field.getType().asList().getElementType().isStruct(); }

class Writer {
 public:
  void table(capnp::DynamicStruct::Reader value, const std::string& path) {
    const auto fields = present(value);
    for (const auto& field : fields) {
      if (!field.getType().isStruct() && !is_table_list(field))
        out_ += key(field) + " = " + inline_value(value.get(field), field.getType()) + "\n";
    }
    for (const auto& field : fields) {
      const auto here = path.empty() ? key(field) : path + "." + key(field);
      if (field.getType().isStruct()) {
        out_ += format("\n[{}]\n", here);
        table(value.get(field).as<capnp::DynamicStruct>(), here);
      } else if (is_table_list(field)) {
        const auto list = value.get(field).as<capnp::DynamicList>();
        for (const auto element : list) {
          out_ += format("\n[[{}]]\n", here);
          table(element.as<capnp::DynamicStruct>(), here);
        }
      }
    }
  }
  std::string take() && { return std::move(out_); }

 private:
  static std::string key(const Field& field) { return snake(field.getProto().getName()); }

  // What must be written so that reading gives the same struct: what is not default, what is required, and the union's member.
  static std::vector<Field> present(capnp::DynamicStruct::Reader value) {
    std::vector<Field> fields;
    for (const auto field : value.getSchema().getFields()) {
      if (in_union(field)) {
        const auto active = value.which();
        KJ_IF_MAYBE (member, active) {
          if (*member != field) continue;
        } else {
          continue;
        }
      }
      const bool chosen = in_union(field) && field.getProto().getDiscriminantValue() != 0;
      bool wanted = chosen || rules_of(field).required || value.has(field, capnp::HasMode::NON_DEFAULT);
      if (field.getProto().isGroup()) wanted = chosen || !present(value.get(field).as<capnp::DynamicStruct>()).empty();
      if (wanted) fields.push_back(field);
    }
    return fields;
  }

  static std::string inline_table(capnp::DynamicStruct::Reader value) {
    std::string out;
    for (const auto& field : present(value)) {
      out += (out.empty() ? "" : ", ") + key(field) + " = " + inline_value(value.get(field), field.getType());
    }
    return "{" + out + "}";
  }

  static std::string inline_value(const capnp::DynamicValue::Reader& value, capnp::Type type) {
    switch (type.which()) {
      case SchemaType::VOID:
        return "true";
      case SchemaType::BOOL:
        return value.as<bool>() ? "true" : "false";
      case SchemaType::FLOAT32:
        return decimal(static_cast<double>(value.as<float>()));
      case SchemaType::FLOAT64:
        return decimal(value.as<double>());
      case SchemaType::UINT64:
        return format("{}", value.as<std::uint64_t>());
      case SchemaType::TEXT: {
        const auto text = value.as<capnp::Text>();
        return quoted({text.cStr(), text.size()});
      }
      case SchemaType::DATA: {
        const auto data = value.as<capnp::Data>();
        return quoted(base64url({data.begin(), data.size()}));
      }
      case SchemaType::ENUM: {
        KJ_IF_MAYBE (enumerant, value.as<capnp::DynamicEnum>().getEnumerant()) {
          return quoted(snake(enumerant->getProto().getName()));
        }
        return "\"\"";  // from a newer schema: this one has no word for it
      }
      case SchemaType::LIST: {
        std::string out;
        for (const auto element : value.as<capnp::DynamicList>()) {
          out += (out.empty() ? "" : ", ") + inline_value(element, type.asList().getElementType());
        }
        return "[" + out + "]";
      }
      case SchemaType::STRUCT:
        return inline_table(value.as<capnp::DynamicStruct>());
      default:
        return integer_bounds(type.which()) ? format("{}", value.as<std::int64_t>()) : "\"\"";
    }
  }

  std::string out_;
};

}  // namespace

std::string to_toml(capnp::DynamicStruct::Reader value) {
  Writer writer;
  writer.table(value, "");
  return std::move(writer).take();
}

}  // namespace falaj::config
