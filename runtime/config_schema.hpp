// What reader and writer of configuration both know about a schema: names, annotations and ranges. Internal to runtime/config*.
#pragma once
#include <capnp/schema.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace falaj::config {

using Field = capnp::StructSchema::Field;
using SchemaType = capnp::schema::Type;

std::string snake(kj::StringPtr camel);  // learningRate -> learning_rate

struct Rules {  // messages/annotations.capnp on one field
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool required = false;
  std::string doc;
  std::vector<std::string> one_of;
};

Rules rules_of(const Field& field);

inline bool in_union(const Field& field) { return field.getProto().getDiscriminantValue() != capnp::schema::Field::NO_DISCRIMINANT; }

// What fits the type and a TOML integer; nullopt: no integer type.
std::optional<std::pair<std::int64_t, std::int64_t>> integer_bounds(SchemaType::Which which);

}  // namespace falaj::config
