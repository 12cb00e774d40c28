// What runs on a node, by its roles: the one list of actors, for real nodes (nodes/node.cpp) and for simulated ones (simulations/).
//
// Whoever wires a node opens the stores, hands over what they hold, and keeps it alive longer than the host.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "actors/control/agent.hpp"
#include "actors/governance/refusals.hpp"
#include "actors/shards/shards.hpp"
#include "runtime/cluster/view.hpp"
#include "runtime/host/host.hpp"
#include "storage/artifact_store.hpp"
#include "storage/audit_log.hpp"
#include "storage/control_store.hpp"
#include "storage/feature_rows.hpp"

namespace falaj::actors {

struct NodeParts {
  std::string name;
  std::string cluster;
  std::string control_node;
  std::string address;  // of the links
  std::string version;  // of the program
  std::string residency;
  std::vector<messages::Role> roles;
  Incarnation incarnation;
  std::uint32_t cores = 1;
  std::uint32_t pid = 0;
  cluster::ClusterViewHolder* view = nullptr;
  std::shared_ptr<governance::RefusalQueue> refusals;
  Authorizer* authorizer = nullptr;
  std::shared_ptr<storage::Kv> spool;
  // role control
  std::shared_ptr<storage::Kv> control_kv;
  storage::ControlStore* control = nullptr;  // over control_kv
  std::shared_ptr<storage::ArtifactStore> artifacts;
  std::shared_ptr<storage::AuditLog> audit;
  std::filesystem::path audit_dir;
  storage::KeyProvider* keys = nullptr;
  ChildSpec authority;
  // role features
  std::shared_ptr<storage::FeatureRows> rows;
  // role compute
  control::WorkerProcesses* workers = nullptr;

  std::vector<shards::Type> more_types;  // of actors by key, beside those that every cluster has

  std::function<void(std::shared_ptr<const cluster::ClusterSnapshot>)> on_view;
  std::function<Status(const std::vector<std::string>& entries)> revoke;  // see AgentOptions
  std::function<void(messages::NodeStats::Builder)> fill_stats;

  [[nodiscard]] bool has(messages::Role role) const;
};

// Blocks shortly: the control node's epoch is written.
Status start(Host& host, const NodeParts& parts);

}  // namespace falaj::actors
