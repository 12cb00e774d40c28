#include "simulations/checks.hpp"

#include <algorithm>

#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "storage/audit_log.hpp"

namespace falaj::simulations {

namespace {
constexpr std::string_view kReplicas = "serving/replica/";
}

// Each ask ends once, each watch fires once.
void Checks::seen(const SimSeen& message) {
  const auto& d = *message.delivery;
  if (d.kind != Kind::reply && d.kind != Kind::refusal && d.kind != Kind::down) return;
  const auto token = (message.actor.value() * 0x9E3779B97F4A7C15ULL ^ d.correlation.value()) * 2 + (d.kind == Kind::down ? 1 : 0);
  auto& tokens = answers_.try_emplace(std::string(message.node)).first->second;
  if (!tokens.insert(token).second)
    verdict_.fail(format("{} on {} was answered twice", message.actor_name.empty() ? "an actor" : message.actor_name, message.node));
}

void Checks::ended(const std::string& node) {
  answers_.erase(node);
  views_.erase(node);
}

void Checks::viewed(const std::string& machine, const cluster::ClusterSnapshot& view) {
  const auto v = view.view();
  const Seen now{v.getEpoch(), v.getRevision()};
  auto& last = views_[machine];
  if (std::pair(now.epoch, now.revision) <= std::pair(last.epoch, last.revision))
    verdict_.fail(format("the view of {} went from {}.{} to {}.{}", machine, last.epoch, last.revision, now.epoch, now.revision));
  last = now;
  // Of one epoch and revision there is one view: an epoch is never given twice.
  const auto sum = crc32c(view.message().bytes());
  const auto [known, first] = contents_.try_emplace({now.epoch, now.revision}, sum);
  if (!first && known->second != sum) verdict_.fail(format("there are two views {}.{}", now.epoch, now.revision));
  std::vector<std::uint16_t> owners;
  for (const auto owner : v.getPartitions()) owners.push_back(owner);
  std::vector<std::string> nodes;
  for (const auto node : v.getFeatureNodes()) nodes.emplace_back(text(node));
  const std::pair at(now.epoch, now.revision);
  if (owners.empty() && (owners_.empty() || at < dealt_)) return;  // not dealt yet
  if (owners_.empty()) {
    owners_ = std::move(owners);
    feature_nodes_ = std::move(nodes);
    dealt_ = at;
  } else if (owners == owners_ && nodes == feature_nodes_) {
    dealt_ = std::min(dealt_, at);
  } else {
    verdict_.fail(format("partitions have other owners in view {}.{}", now.epoch, now.revision));
  }
}

void Checks::every_second() {
  constexpr std::size_t kMost = limits::kMailboxControl + limits::kMailboxNormal + limits::kMailboxControl;
  auto nodes = cluster_.workers();
  nodes.insert(nodes.end(), cluster_.names().begin(), cluster_.names().end());
  for (const auto& name : nodes) {
    if (!cluster_.up(name)) continue;
    for (const auto& actor : cluster_.world().host(name).actors()) {
      if (actor.mailbox > kMost) verdict_.fail(format("{} of {} has {} messages waiting", actor.type, name, actor.mailbox));
    }
  }
}

// ---- in the end ---------------------------------------------------------------------------------------------------------------------

std::string Checks::not_settled() {
  if (auto why = views_differ(); !why.empty()) return why;
  return actors_left();
}

std::string Checks::views_differ() {
  const auto control = cluster_.view(std::string(kControlNode));
  if (!control) return "control has no view";
  for (const auto& name : cluster_.names()) {
    if (!cluster_.up(name)) return name + " does not run";
    const auto view = cluster_.view(name);
    if (!view) return name + " has no view";
    if (view->view().getEpoch() != control->view().getEpoch() || view->view().getRevision() != control->view().getRevision())
      return name + " has an older view than control";
    const auto node = control->node(name);
    if (!node || !node->getUp()) return "control takes " + name + " for lost";
    if (const auto waiting = cluster_.spooled(name); waiting != 0) return format("{} audit entries wait on {}", waiting, name);
  }
  return {};
}

// Replicas are where the directory says, as many as were asked for, and nobody has a message that he does not take.
std::string Checks::actors_left() {
  const auto control = cluster_.view(std::string(kControlNode));
  std::map<std::string, std::size_t> replicas;  // by deployment
  std::set<std::string> running;
  for (const auto& machine : cluster_.names()) {
    for (const auto& actor : cluster_.world().host(machine).actors()) {
      if (actor.mailbox != 0) return format("{} messages wait for {} on {}", actor.mailbox, actor.type, machine);
      if (!actor.name.starts_with(kReplicas)) continue;
      const auto known = control->find(actor.name);
      if (!known || known->node != node_id(machine)) return format("{} runs on {}, which the directory does not know", actor.name, machine);
      running.insert(actor.name);
      ++replicas[actor.name.substr(kReplicas.size(), actor.name.rfind('/') - kReplicas.size())];
    }
  }
  for (const auto& name : control->ready_with_prefix(kReplicas)) {
    if (!running.contains(name)) return name + " is in the directory and does not run";
  }
  for (const auto deployment : control->view().getResources()) {
    if (!deployment.isDeployment()) continue;
    const auto wanted = deployment.getDeployment().getReplicas();
    const std::string name(text(deployment.getDeployment().getName()));
    if (replicas[name] != wanted) return format("{} has {} replicas, wanted are {}", name, replicas[name], wanted);
  }
  return {};
}

Checks::Audit Checks::audit() {
  Audit out;
  const auto dir = cluster_.audit_dir();
  const auto verdict = storage::verify_audit(dir);
  if (!verdict.has_value()) {
    verdict_.fail("the audit log cannot be read: " + verdict.error().message);
    return out;
  }
  if (!verdict->good) verdict_.fail(format("the audit log is not good: {} at record {}", verdict->what, verdict->bad_index));
  std::set<std::string> origins;
  const auto read = storage::read_audit(dir, cluster_.keys(), 0, [&](std::uint64_t, const storage::AuditEntry& entry) {
    ++out.entries;
    if (entry.outcome == storage::Outcome::note) return true;
    const auto origin = entry.request_id.substr(std::min(entry.request_id.size(), entry.request_id.rfind('@')));
    if (!origins.insert(origin).second) verdict_.fail(format("the audit log holds {} {} twice", entry.verb, origin));
    if (entry.verb == "features.read" && entry.outcome == storage::Outcome::allowed) ++out.reads;
    if (entry.verb == "models.promote" && entry.outcome == storage::Outcome::allowed) ++out.promotions;
    return true;
  });
  if (!read.has_value()) verdict_.fail("the audit log cannot be read: " + read.error().message);
  return out;
}

}  // namespace falaj::simulations
