// Resources as the control store keeps them: keys, checks, and the record bytes.
#pragma once
#include <string>

#include "messages/control.capnp.h"
#include "messages/message.hpp"
#include "storage/control_store.hpp"

namespace falaj::control {

struct ResourceName {
  std::string kind;  // feature_view, job, deployment
  std::string tenant;
  std::string name;
  [[nodiscard]] std::string key() const { return "resource/" + kind + "/" + tenant + "/" + name; }
};

Result<ResourceName> name_of(messages::Resource::Reader resource);  // invalid: an empty union or a bad name
// What TOML's schema cannot say: names, unique fields, that the label is not excluded... `invalid` with the remedy.
Status check(messages::Resource::Reader resource);
// Two resources with the same content.
bool same(messages::Resource::Reader a, messages::Resource::Reader b);

Bytes record_bytes(const Message& record);
Result<View<messages::ResourceRecord>> open_record(const storage::KeyValue& item);  // with its revision filled in

}  // namespace falaj::control
