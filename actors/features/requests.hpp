// What a front checks of a request against its view before it asks anybody. Pure.
#pragma once
#include "messages/features.capnp.h"
#include "messages/message.hpp"
#include "runtime/base/result.hpp"

namespace falaj::features {

constexpr std::size_t kEntitiesMax = 8192;  // of one GetFeatures
constexpr std::size_t kRowsMax = 8192;      // of one PutRows

Status check_get(messages::FeatureView::Reader view, messages::GetFeatures::Reader get);
// The error lists the first bad rows, one a line.
Status check_put(messages::FeatureView::Reader view, messages::PutRows::Reader put);
// Is one of these fields, or with none named one of all, personal data?
bool personal(messages::FeatureView::Reader view, capnp::List<capnp::Text>::Reader fields);

}  // namespace falaj::features
