#include "nodes/deployments.hpp"

#include "messages/control.capnp.h"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

bool may_pass(ErrorCode code) {
  return code == ErrorCode::unreachable || code == ErrorCode::gone || code == ErrorCode::overloaded || code == ErrorCode::deadline;
}

}  // namespace

Status wait_ready(Client& client, const std::string& tenant, const std::string& deployment, Duration patience) {
  const auto question = Message::build<messages::GetResource>([&](messages::GetResource::Builder b) {
    b.setKind("deployment");
    if (!tenant.empty()) b.setTenant(tenant);  // else the schema's: the default one
    b.setName(deployment);
  });
  const auto end = client.clock().now() + patience;
  for (;;) {
    const auto record = client.ask<messages::ResourceRecord>("control/resources", question);
    if (!record && !may_pass(record.error().code)) return record.error();
    if (record && text((*record)->getStatus().getPhase()) == "ready") return {};
    if (client.clock().now() >= end) {
      return error(ErrorCode::deadline, format("deployment '{}' is not ready after {} s: {}", deployment,
                                               std::chrono::duration_cast<std::chrono::seconds>(patience).count(),
                                               record ? text((*record)->getStatus().getMessage()) : record.error().message));
    }
    client.pause(std::chrono::milliseconds(20));
  }
}

}  // namespace falaj::nodes
