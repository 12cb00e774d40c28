#include "actors/governance/policy.hpp"

#include <algorithm>

#include "messages/governance.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/config.hpp"

namespace falaj::governance {

namespace {

constexpr std::string_view kScheme = "spiffe://";
constexpr std::string_view kAnonymous = "anonymous";

bool separator(char c) { return c == '/' || c == '.'; }

std::vector<std::string> strings(capnp::List<capnp::Text>::Reader list) {
  std::vector<std::string> out;
  for (const auto item : list) out.emplace_back(text(item));
  return out;
}

bool any_glob(const std::vector<std::string>& patterns, std::string_view value) {
  return std::ranges::any_of(patterns, [value](const auto& pattern) { return glob(pattern, value); });
}

bool listed(const std::vector<std::string>& values, std::string_view value) {
  return values.empty() || std::ranges::any_of(values, [value](const auto& v) { return v == "*" || v == value; });
}

Error denied(std::string message) { return error(ErrorCode::denied, std::move(message)); }

}  // namespace

bool glob(std::string_view pattern, std::string_view text) noexcept {
  if (pattern == "*") return true;
  // Only the last star of each kind need be tried again, so that no pattern takes exponential time.
  struct Star {
    std::size_t next = std::string_view::npos;  // in the pattern, behind the star
    std::size_t end = 0;                        // in the text, of what it stands for
  };
  Star within, across;
  std::size_t p = 0, t = 0;
  while (t < text.size()) {
    if (pattern.substr(p).starts_with("**")) {
      p += 2;
      across = {p, t};
      within = {};
    } else if (p < pattern.size() && pattern[p] == '*') {
      within = {++p, t};
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p;
      ++t;
    } else if (within.next != pattern.npos && !separator(text[within.end])) {
      p = within.next;
      t = ++within.end;
    } else if (across.next != pattern.npos) {
      p = across.next;
      t = ++across.end;
      within = {};
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == pattern.npos;
}

// ---- principals --------------------------------------------------------------------------------------------------------------

bool Identity::is_node() const { return path.starts_with("node/") && path.size() > 5 && path.find('/', 5) == path.npos; }

bool Identity::is_worker() const {
  if (!path.starts_with("node/")) return false;
  const auto slash = path.find('/', 5);
  return slash != path.npos && path.compare(slash, 8, "/worker/") == 0 && path.size() > slash + 8;
}

Identity parse_principal(std::string_view principal) {
  if (principal.empty() || principal == kAnonymous) return {"", std::string(kAnonymous)};
  if (!principal.starts_with(kScheme)) return {"", ""};
  const auto rest = principal.substr(kScheme.size());
  const auto slash = rest.find('/');
  if (slash == rest.npos || slash == 0 || slash + 1 == rest.size()) return {"", ""};
  return {std::string(rest.substr(0, slash)), std::string(rest.substr(slash + 1))};
}

std::string principal_of(std::string_view cluster, std::string_view path) { return format("{}{}/{}", kScheme, cluster, path); }

// ---- rights ------------------------------------------------------------------------------------------------------------------

Result<Rights> Rights::parse(std::string_view toml, std::string_view name) {
  capnp::MallocMessageBuilder arena;
  auto file = arena.initRoot<messages::RightsFile>();
  FALAJ_TRY(config::parse_toml<messages::RightsFile>(toml, name, file));
  std::vector<Grant> grants;
  for (const auto grant : file.asReader().getGrant()) {
    grants.push_back({std::string(text(grant.getPrincipal())), strings(grant.getVerbs()), strings(grant.getTenants()),
                      strings(grant.getPurposes()), strings(grant.getActors())});
    const auto& made = grants.back();
    if (made.principal.empty() || made.verbs.empty()) {
      return invalid(format("{}: grant {}: principal and verbs must not be empty", name, grants.size()));
    }
    if (made.principal.starts_with(kScheme)) {
      return invalid(format("{}: grant {}: principal '{}': give the path after the cluster's name only, e.g. person/admin", name,
                            grants.size(), made.principal));
    }
  }
  return Rights(std::move(grants));
}

Result<Rights> Rights::load(const std::string& path) {
  FALAJ_ASSIGN(const auto toml, config::read_file(path));
  return parse(toml, path);
}

Status Rights::allow(std::string_view path, std::string_view verb, std::string_view tenant, std::string_view purpose,
                     std::string_view actor) const {
  bool verb_granted = false, actor_granted = false, tenant_granted = false;
  for (const auto& grant : grants_) {
    if (!glob(grant.principal, path) || !any_glob(grant.verbs, verb)) continue;
    verb_granted = true;
    if (!actor.empty() && !grant.actors.empty() && !any_glob(grant.actors, actor)) continue;
    actor_granted = true;
    if (!listed(grant.tenants, tenant)) continue;
    tenant_granted = true;
    if (purpose.empty() || listed(grant.purposes, purpose)) return {};
  }
  if (!verb_granted) return denied(format("{} has no right '{}'; grant it in rights.toml", path, verb));
  if (!actor_granted) return denied(format("{} has no right '{}' on actors of type '{}'; grant it in rights.toml", path, verb, actor));
  if (!tenant_granted) return denied(format("{} has no right '{}' in tenant '{}'; grant it in rights.toml", path, verb, tenant));
  return denied(format("{} may not name the purpose '{}' for '{}'; grant it in rights.toml", path, purpose, verb));
}

std::string default_rights_toml() {
  return R"(# Who may do what. What no grant allows is denied, and each refusal is in the audit log (falaj audit show).
# principal: path of the SPIFFE id after the cluster's name; * stays within one segment, ** does not.
# verbs: e.g. features.read, models.*, *. tenants, purposes and actors (types, e.g. control/*) narrow a grant; left out, all.

[[grant]]
principal = "person/admin"
verbs = ["*"]

# Requests in clear text without a token, which the gateway takes on loopback only.
[[grant]]
principal = "anonymous"
verbs = ["serving.read", "serving.infer"]
)";
}

// ---- the policy -----------------------------------------------------------------------------------------------------------------

bool worker_may(std::string_view verb, std::string_view actor_type) noexcept {
  if (verb.empty()) return actor_type.starts_with("training/");
  return verb == "artifacts.read" || verb == "artifacts.write";
}

Policy::Policy(PolicyOptions options)
    : cluster_(std::move(options.cluster)),
      clock_(*options.clock),
      refusals_(std::move(options.refusals)),
      metrics_(options.metrics),
      rights_(std::make_shared<const Rights>(std::move(options.rights))) {}

Status Policy::decide(const Scope& scope, std::string_view verb, std::string_view actor_type, std::string_view message) const {
  const auto who = parse_principal(scope.principal);
  const bool anonymous = who.path == kAnonymous;
  if (who.path.empty()) return denied(format("'{}' is no SPIFFE id", scope.principal));
  if (!anonymous && who.cluster != cluster_) {
    return denied(format("{} is of another cluster; this is '{}'", scope.principal, cluster_));
  }
  if (who.is_node()) return {};
  if (who.is_worker()) {
    if (worker_may(verb, actor_type)) return {};
    return denied(format("{} is a training worker and may not send {} to {}", who.path, message, actor_type));
  }
  if (verb.empty()) return denied(format("{} may be sent by the cluster's own nodes only", message));
  const auto rights = rights_.with([](const auto& held) { return held; });
  // Which actors somebody may host is asked again by node/foreign, which then knows the name.
  const bool any_actor = verb == kRegisterVerb && actor_type == kForeignDesk;
  return rights->allow(who.path, verb, scope.tenant.empty() ? "default" : scope.tenant, scope.purpose, any_actor ? "" : actor_type);
}

Status Policy::allow(const Scope& scope, std::string_view verb, std::string_view actor_type, std::string_view message) {
  auto verdict = decide(scope, verb, actor_type, message);
  if (verdict.has_value()) return verdict;
  if (metrics_ != nullptr) {
    metrics_->counter("falaj_refusals_total", "Messages of principals that had no right to send them", {{"verb", std::string(verb)}}).add();
  }
  if (!refusals_) return verdict;
  refusals_->push(AuditRecord{.time = clock_.wall(),
                              .principal = scope.principal.empty() ? std::string(kAnonymous) : scope.principal,
                              .verb = verb.empty() ? std::string(message) : std::string(verb),
                              .target = std::string(actor_type),
                              .tenant = scope.tenant,
                              .purpose = scope.purpose,
                              .allowed = false,
                              .reason = verdict.error().message,
                              .request = {}});
  return verdict;
}

void Policy::replace(Rights rights) {
  auto fresh = std::make_shared<const Rights>(std::move(rights));
  rights_.with([&](auto& held) { held = std::move(fresh); });
}

// ---- tenants and purposes -------------------------------------------------------------------------------------------------------

Status purpose_allowed(messages::FeatureView::Reader view, const ScopeRef& scope) {
  const auto name = text(view.getName());
  if (!scope || scope->purpose.empty()) return denied(format("view '{}': this read names no purpose; name one that the view allows", name));
  for (const auto purpose : view.getPurposes()) {
    if (text(purpose) == scope->purpose) return {};
  }
  return denied(format("view '{}': it may not be read for the purpose '{}'", name, scope->purpose));
}

Status tenant_allowed(std::string_view tenant, const ScopeRef& scope) {
  if (!scope) return {};
  const std::string_view wanted = tenant.empty() ? "default" : tenant;
  if (scope->tenant.empty() && parse_principal(scope->principal).is_node()) return {};
  const std::string_view own = scope->tenant.empty() ? "default" : std::string_view(scope->tenant);
  if (wanted == own) return {};
  return denied(format("tenant '{}' was asked for in the name of tenant '{}'", wanted, own));
}

}  // namespace falaj::governance
