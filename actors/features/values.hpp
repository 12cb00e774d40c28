// Between the wire's Value, the store's FieldValue and a view's field types. Pure.
#pragma once
#include <string_view>

#include "messages/features.capnp.h"
#include "messages/message.hpp"
#include "messages/resources.capnp.h"
#include "runtime/base/limits.hpp"
#include "runtime/base/result.hpp"
#include "storage/feature_rows.hpp"

namespace falaj::features {

std::string_view to_string(messages::FieldType type) noexcept;

storage::FieldValue read_value(messages::Value::Reader value);
void write_value(messages::Value::Builder into, const storage::FieldValue& value);

// Fits the field: its type, or missing where it is not required. NaN counts as missing.
Status check_value(messages::FeatureField::Reader field, messages::Value::Reader value);
// All of a row: entity, number of values, each value. The error names row, entity column and field, never the entity itself.
Status check_row(messages::FeatureView::Reader view, messages::Row::Reader row, std::size_t index);

// Names a view's fields must satisfy before rows are stored under it: at least one field, none twice, none equal to the entity column.
Status check_view(messages::FeatureView::Reader view);

constexpr std::size_t kEntityBytesMax = 256;

}  // namespace falaj::features
