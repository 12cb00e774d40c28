#include "runtime/cluster/view.hpp"

#include <algorithm>

#include "runtime/base/limits.hpp"

namespace falaj::cluster {

std::string resource_key(std::string_view tenant, std::string_view name) {
  return std::string(tenant.empty() ? "default" : tenant) + "/" + std::string(name);
}

ClusterSnapshot::ClusterSnapshot(View<messages::ClusterView> view) : view_(std::move(view)) {
  std::unordered_map<std::string, Incarnation> incarnations;
  for (const auto node : view_->getNodes())
    incarnations.emplace(text(node.getName()), Incarnation(node.getUp() ? node.getIncarnation() : 0));
  for (const auto entry : view_->getDirectory()) {
    const std::string node(text(entry.getNode()));
    const auto incarnation = incarnations.find(node);
    if (incarnation == incarnations.end() || incarnation->second == Incarnation{}) continue;
    directory_.emplace(text(entry.getName()),
                       ActorAddress{node_id(node), incarnation->second, ActorId{}, std::string(text(entry.getName()))});
    if (entry.getReady()) ready_.emplace_back(text(entry.getName()));
  }
  std::ranges::sort(ready_);
  for (const auto resource : view_->getResources()) {
    if (resource.isFeatureView()) {
      const auto value = resource.getFeatureView();
      feature_views_.emplace(resource_key(text(value.getOwner().getTenant()), text(value.getName())), value);
    } else if (resource.isDeployment()) {
      const auto value = resource.getDeployment();
      deployments_.emplace(text(value.getName()), value);
    }
  }
}

std::optional<ActorAddress> ClusterSnapshot::find(std::string_view name) const {
  const auto found = directory_.find(std::string(name));
  if (found == directory_.end()) return std::nullopt;
  return found->second;
}

std::string ClusterSnapshot::partition_owner(Partition partition) const {
  const auto owners = view_->getPartitions();
  const auto nodes = view_->getFeatureNodes();
  if (partition.value() >= owners.size() || owners[partition.value()] >= nodes.size()) return {};
  return std::string(text(nodes[owners[partition.value()]]));
}

std::optional<messages::FeatureView::Reader> ClusterSnapshot::feature_view(std::string_view tenant, std::string_view name) const {
  const auto found = feature_views_.find(resource_key(tenant, name));
  if (found == feature_views_.end()) return std::nullopt;
  return found->second;
}

std::optional<messages::Deployment::Reader> ClusterSnapshot::deployment(std::string_view name) const {
  const auto found = deployments_.find(std::string(name));
  if (found == deployments_.end()) return std::nullopt;
  return found->second;
}

std::optional<messages::NodeInfo::Reader> ClusterSnapshot::node(std::string_view name) const {
  for (const auto node : view_->getNodes()) {
    if (text(node.getName()) == name) return node;
  }
  return std::nullopt;
}

namespace {

bool has(messages::NodeInfo::Reader node, messages::Role role) {
  for (const auto held : node.getRoles()) {
    if (held == role) return true;
  }
  return false;
}

}  // namespace

std::vector<std::string> ClusterSnapshot::nodes_with(messages::Role role, bool only_up) const {
  std::vector<std::string> names;
  for (const auto node : view_->getNodes()) {
    if ((node.getUp() || !only_up) && has(node, role)) names.emplace_back(text(node.getName()));
  }
  return names;
}

std::vector<std::string> ClusterSnapshot::open_nodes_with(messages::Role role) const {
  std::vector<std::string> names;
  for (const auto node : view_->getNodes()) {
    if (node.getUp() && !node.getDraining() && has(node, role)) names.emplace_back(text(node.getName()));
  }
  return names;
}

std::vector<std::string> ClusterSnapshot::ready_with_prefix(std::string_view prefix) const {
  std::vector<std::string> names;
  for (auto it = std::ranges::lower_bound(ready_, prefix); it != ready_.end() && it->starts_with(prefix); ++it) names.push_back(*it);
  return names;
}

bool ClusterViewHolder::set(std::shared_ptr<const ClusterSnapshot> snapshot) {
  const std::scoped_lock lock(mutex_);
  if (snapshot_) {
    const auto order = [](const ClusterSnapshot& s) { return std::pair(s.view().getEpoch(), s.view().getRevision()); };
    if (order(*snapshot) <= order(*snapshot_)) return false;
  }
  snapshot_ = std::move(snapshot);
  return true;
}

}  // namespace falaj::cluster
