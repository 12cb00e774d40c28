#include "actors/roles.hpp"

#include <algorithm>

#include "actors/artifacts/store.hpp"
#include "actors/control/foreign.hpp"
#include "actors/control/membership.hpp"
#include "actors/control/resources.hpp"
#include "actors/control/shards.hpp"
#include "actors/control/witness.hpp"
#include "actors/features/front.hpp"
#include "actors/features/shard.hpp"
#include "actors/governance/audit.hpp"
#include "actors/governance/log.hpp"
#include "actors/mlops/registry.hpp"
#include "actors/serving/replica.hpp"
#include "actors/serving/router.hpp"
#include "actors/training/evaluate.hpp"
#include "actors/training/jobs.hpp"
#include "runtime/base/format.hpp"
#include "runtime/net/identity.hpp"

namespace falaj::actors {
namespace {

using messages::Role;

Status start_control(Host& host, const NodeParts& p) {
  governance::LogOptions log_options;
  log_options.log = p.audit;
  log_options.dir = p.audit_dir;
  log_options.keys = p.keys;
  log_options.marks = p.control_kv;
  host.spawn(governance::log(std::move(log_options)));
  FALAJ_ASSIGN(const auto epoch, control::next_epoch(*p.control));
  host.spawn(control::membership({p.cluster, epoch, p.control}));
  host.spawn(control::foreign_names());
  host.spawn(p.authority);
  host.spawn(artifacts::store({p.artifacts}));
  const auto principal = net::SpiffeId::node(p.cluster, p.name).value().uri();
  const auto evaluate = [principal](Context& ctx, std::string artifact, std::string snapshot, Message spec) {
    return training::evaluate(ctx, std::move(artifact), std::move(snapshot), std::move(spec), principal);
  };
  host.spawn(mlops::registry({p.control, evaluate}));
  training::JobsOptions jobs_options;
  jobs_options.store = p.control_kv.get();
  jobs_options.view = p.view;
  jobs_options.control_epoch = epoch;
  jobs_options.build = p.version;
  jobs_options.principal = principal;
  host.spawn(training::jobs(std::move(jobs_options)));
  host.spawn(control::resources({p.control, p.view, epoch}));
  host.spawn(control::shards({p.control, p.view, epoch}));
  return {};
}

Message registration(const NodeParts& p) {
  return Message::build<messages::Register>([&p](messages::Register::Builder b) {
    auto node = b.initNode();
    node.setName(p.name);
    node.setIncarnation(p.incarnation.value());
    node.setAddress(p.address);
    auto roles = node.initRoles(static_cast<unsigned>(p.roles.size()));
    for (unsigned i = 0; i < roles.size(); ++i) roles.set(i, p.roles[i]);
    node.setCores(p.cores);
    node.setResidency(p.residency);
    node.setPid(p.pid);
    node.setVersion(p.version);
    std::vector<std::string> names = {control::agent_name(p.name)};
    if (p.has(Role::CONTROL))
      names.insert(names.end(), {"control/membership", "control/resources", "control/authority", "control/shards", "artifacts/store",
                                 "mlops/registry", "training/jobs", "governance/log"});
    if (p.has(Role::FEATURES)) names.push_back(features::shard_name(p.name));
    auto running = b.initRunning(static_cast<unsigned>(names.size()));
    for (unsigned i = 0; i < names.size(); ++i) running[i].setName(names[i]);
  });
}

void start_agent(Host& host, const NodeParts& p) {
  control::AgentOptions options;
  options.self = registration(p);
  options.control_node = p.control_node;
  options.view = p.view;
  options.on_view = p.on_view;
  options.revoke = p.revoke;
  options.make_replica = [name = p.name, serves = p.has(Role::SERVING),
                          models = std::make_shared<serving::Models>()](const Message& spec) -> Result<ChildSpec> {
    if (!serves) return error(ErrorCode::denied, format("node {} has not the role `serving`", name));
    return serving::replica({spec, control::agent_name(name), models});
  };
  options.workers = p.has(Role::COMPUTE) ? p.workers : nullptr;
  options.fill_stats = p.fill_stats;
  options.tracer = &host.tracer();
  options.look = [&host] { return std::pair(host.actors(), host.dead_letters()); };
  host.spawn(control::agent(std::move(options)));
}

// Actors that are addressed by key, and singletons: the one list of their types.
void start_shards(Host& host, const NodeParts& p) {
  shards::ShardsOptions options{p.control_node, p.roles, {shards::locks()}};
  options.types.insert(options.types.end(), p.more_types.begin(), p.more_types.end());
  host.spawn(shards::shards(std::move(options)));
}

}  // namespace

bool NodeParts::has(Role role) const { return std::ranges::find(roles, role) != roles.end(); }

Status start(Host& host, const NodeParts& p) {
  governance::AuditOptions audit_options;
  audit_options.spool = p.spool;
  audit_options.refusals = p.refusals;
  audit_options.incarnation = p.incarnation;
  host.spawn(governance::audit(std::move(audit_options)));
  if (p.has(Role::CONTROL)) FALAJ_TRY(start_control(host, p));
  features::FrontOptions front_options;
  front_options.cluster = p.view;
  host.spawn(features::front(front_options));
  if (p.has(Role::FEATURES)) {
    features::ShardOptions shard_options;
    shard_options.node = p.name;
    shard_options.rows = p.rows;
    shard_options.cluster = p.view;
    host.spawn(features::shard(std::move(shard_options)));
  }
  if (p.has(Role::GATEWAY)) host.spawn(serving::router({p.view}));
  host.spawn(control::witness({p.name, p.control_node, p.view}));
  start_agent(host, p);
  host.spawn(control::foreign({p.control_node, p.view, p.authorizer}));
  start_shards(host, p);
  return {};
}

}  // namespace falaj::actors
