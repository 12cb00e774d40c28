// All messages that a principal may send, and their replies, by name and by type: for `falaj call` and for printing what came back.
#pragma once
#include <capnp/dynamic.h>
#include <capnp/schema.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "messages/message.hpp"

namespace falaj {

const std::vector<capnp::StructSchema>& message_catalog();
std::optional<capnp::StructSchema> find_message(std::string_view name);  // "GetStatus"
std::optional<capnp::StructSchema> find_message(TypeId type);
std::string message_label(TypeId type);  // its name, or "a message of type HEX": for errors and the audit log

// A message of that type from JSON; `invalid` names the place.
Result<Message> message_from_json(const capnp::StructSchema& schema, std::string_view json);
// Any message of the catalog as JSON; `unimplemented` for another type.
Result<std::string> message_to_json(const Message& message, bool pretty);

}  // namespace falaj
