#include "messages/catalog.hpp"

#include "messages/artifacts.capnp.h"
#include "messages/control.capnp.h"
#include "messages/envelope.capnp.h"
#include "messages/features.capnp.h"
#include "messages/foreign.capnp.h"
#include "messages/governance.capnp.h"
#include "messages/json.hpp"
#include "messages/locks.capnp.h"
#include "messages/registry.capnp.h"
#include "messages/serving.capnp.h"
#include "messages/shards.capnp.h"
#include "messages/training.capnp.h"
#include "runtime/base/format.hpp"

namespace falaj {

namespace m = messages;

namespace {

template <class... T>
std::vector<capnp::StructSchema> list() {
  return {capnp::Schema::from<T>()...};
}

std::string_view short_name(const capnp::StructSchema& schema) {
  const auto name = schema.getShortDisplayName();
  return {name.cStr(), name.size()};
}

}  // namespace

const std::vector<capnp::StructSchema>& message_catalog() {
  static const auto catalog =
      list<m::Empty, m::Apply, m::GetResource, m::ListResources, m::DeleteResource, m::ResourceRecord, m::ResourceList, m::GetStatus,
           m::ClusterStatus, m::GetNodeStats, m::NodeStats, m::GetActors, m::ActorTree, m::CreateToken, m::Token, m::RevokePrincipal,
           m::Revoked, m::DrainNode, m::ForgetNode, m::StartTrace, m::StopTrace, m::TraceClock, m::GetSpans, m::Spans, m::PutRows,
           m::PutRowsReply, m::GetFeatures, m::Features, m::DeleteEntity, m::CountRows, m::RowCount, m::CreateSnapshot, m::SnapshotInfo,
           m::PutChunk, m::PutManifest, m::GetManifest, m::ArtifactInfo, m::GetChunk, m::Chunk, m::RegisterVersion, m::GetVersion,
           m::ModelVersionInfo, m::ListModels, m::ModelList, m::SetAlias, m::GetRun, m::RunInfo, m::ListRuns, m::RunList, m::Infer,
           m::InferReply, m::Predict, m::PredictReply, m::DescribeModel, m::ModelDescription, m::ShowAudit, m::AuditPage, m::RegisterActor,
           m::UnregisterActor, m::Invoke, m::Invoked, m::GetShards, m::ShardMap, m::AcquireLock, m::RenewLock, m::ReleaseLock, m::GetLock,
           m::LockGrant, m::LockState>();
  return catalog;
}

std::optional<capnp::StructSchema> find_message(std::string_view name) {
  for (const auto& schema : message_catalog()) {
    if (short_name(schema) == name) return schema;
  }
  return std::nullopt;
}

std::optional<capnp::StructSchema> find_message(TypeId type) {
  for (const auto& schema : message_catalog()) {
    if (schema.getProto().getId() == type.value()) return schema;
  }
  return std::nullopt;
}

std::string message_label(TypeId type) {
  const auto schema = find_message(type);
  return schema ? std::string(schema->getShortDisplayName().cStr()) : format("a message of type {:x}", type.value());
}

Result<Message> message_from_json(const capnp::StructSchema& schema, std::string_view json) {
  capnp::MallocMessageBuilder builder;
  auto root = builder.initRoot<capnp::DynamicStruct>(schema);
  if (auto read = from_json(json, root); !read.has_value()) return within(short_name(schema), std::move(read).error());
  return Message::from_root(TypeId(schema.getProto().getId()), builder.getRoot<capnp::AnyPointer>().asReader());
}

Result<std::string> message_to_json(const Message& message, bool pretty) {
  const auto schema = find_message(message.type());
  if (!schema) return error(ErrorCode::unimplemented, format("{}, which this falaj does not know", message_label(message.type())));
  FALAJ_ASSIGN(const auto opened, message.open_dynamic(*schema));
  return to_json(opened.root(), pretty);
}

}  // namespace falaj
