// The cluster as data-path actors see it: an immutable snapshot of the last ClusterView, read without locks being held and without
// asking control. Nodes go on with it while control is away.
#pragma once
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "messages/control.capnp.h"
#include "messages/message.hpp"
#include "runtime/host/host.hpp"

namespace falaj::cluster {

// A resource's key in maps: "tenant/name". An empty tenant means "default".
std::string resource_key(std::string_view tenant, std::string_view name);

class ClusterSnapshot final : public Directory {
 public:
  explicit ClusterSnapshot(View<messages::ClusterView> view);

  [[nodiscard]] messages::ClusterView::Reader view() const { return *view_; }
  [[nodiscard]] const Message& message() const { return view_.message(); }
  [[nodiscard]] std::optional<ActorAddress> find(std::string_view name) const override;
  // Node that holds a feature partition; empty: none yet.
  [[nodiscard]] std::string partition_owner(Partition partition) const;
  [[nodiscard]] std::optional<messages::FeatureView::Reader> feature_view(std::string_view tenant, std::string_view name) const;
  [[nodiscard]] std::optional<messages::Deployment::Reader> deployment(std::string_view name) const;
  [[nodiscard]] std::optional<messages::NodeInfo::Reader> node(std::string_view name) const;
  [[nodiscard]] std::vector<std::string> nodes_with(messages::Role role, bool only_up = true) const;
  // Up, and not about to leave: where something new may be placed.
  [[nodiscard]] std::vector<std::string> open_nodes_with(messages::Role role) const;
  // Names in the directory that begin with `prefix` and are ready, sorted.
  [[nodiscard]] std::vector<std::string> ready_with_prefix(std::string_view prefix) const;

 private:
  View<messages::ClusterView> view_;
  std::unordered_map<std::string, ActorAddress> directory_;
  std::vector<std::string> ready_;
  std::unordered_map<std::string, messages::FeatureView::Reader> feature_views_;
  std::unordered_map<std::string, messages::Deployment::Reader> deployments_;
};

// For who is linked to control and knows no view (training workers): every name that is not its own is the control node's.
class ControlDirectory final : public Directory {
 public:
  explicit ControlDirectory(std::string_view control_node) : node_(node_id(control_node)) {}
  [[nodiscard]] std::optional<ActorAddress> find(std::string_view name) const override {
    return ActorAddress{node_, {}, {}, std::string(name)};
  }

 private:
  NodeId node_;
};

// The newest snapshot. Thread-safe; get() is null until the first view came.
class ClusterViewHolder {
 public:
  [[nodiscard]] std::shared_ptr<const ClusterSnapshot> get() const {
    const std::scoped_lock lock(mutex_);
    return snapshot_;
  }
  // False: older than what is held (by epoch, then revision), and ignored.
  bool set(std::shared_ptr<const ClusterSnapshot> snapshot);

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const ClusterSnapshot> snapshot_;
};

}  // namespace falaj::cluster
