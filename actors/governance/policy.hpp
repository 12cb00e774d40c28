// Who may do what: rights.toml, and the Authorizer that the host asks before a message from outside reaches a handler.
//
// Denied by default. A grant names principals (globs on the SPIFFE path: person/admin, service/*, anonymous), verbs (globs:
// features.read, models.*, *), and, where it narrows, types of actors, tenants and purposes. Every refusal is counted and goes to the
// audit, with its reason.
//
// Members of the cluster need no grant: spiffe://<cluster>/node/<name> may send every message, also those without a verb. A
// training worker, spiffe://<cluster>/node/<name>/worker/<k>, may send only what training needs (worker_may()).
//
// Ways to get hurt: `person/*` does not match person/a/b (a star stays within one segment), `**` does.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "actors/governance/refusals.hpp"
#include "messages/resources.capnp.h"
#include "runtime/host/host.hpp"

namespace falaj::governance {

// '*' matches within one segment ('/' and '.' separate), "**" across; a lone "*" matches everything.
bool glob(std::string_view pattern, std::string_view text) noexcept;

struct Identity {
  std::string cluster;
  std::string path;  // "person/admin"; "anonymous" where there is none
  [[nodiscard]] bool is_node() const;
  [[nodiscard]] bool is_worker() const;
};
// "spiffe://c/person/admin". Anything else has an empty cluster.
Identity parse_principal(std::string_view principal);
std::string principal_of(std::string_view cluster, std::string_view path);

struct Grant {
  std::string principal;
  std::vector<std::string> verbs;
  std::vector<std::string> tenants;   // empty: all
  std::vector<std::string> purposes;  // empty: any that the view allows
  std::vector<std::string> actors;    // globs on their types; empty: all
};

class Rights {
 public:
  Rights() = default;  // allows nothing
  explicit Rights(std::vector<Grant> grants) : grants_(std::move(grants)) {}
  // `name`: of the file, for errors.
  [[nodiscard]] static Result<Rights> parse(std::string_view text, std::string_view name);
  [[nodiscard]] static Result<Rights> load(const std::string& path);
  // An error (denied) says which of principal, verb, actor, tenant, purpose no grant allows. `actor`: its type; empty: any will do.
  [[nodiscard]] Status allow(std::string_view path, std::string_view verb, std::string_view tenant, std::string_view purpose,
                             std::string_view actor = {}) const;
  [[nodiscard]] const std::vector<Grant>& grants() const { return grants_; }

 private:
  std::vector<Grant> grants_;
};

// What a new cluster starts with: person/admin everything, anonymous on loopback what the console and the demo's requests need.
std::string default_rights_toml();

struct PolicyOptions {
  std::string cluster;  // principals of another are denied
  Rights rights;
  const Clock* clock = nullptr;
  std::shared_ptr<RefusalQueue> refusals;
  metrics::Registry* metrics = nullptr;  // counts refusals
};

class Policy final : public Authorizer {
 public:
  explicit Policy(PolicyOptions options);
  // Thread-safe.
  Status allow(const Scope& scope, std::string_view verb, std::string_view actor_type, std::string_view message) override;
  void replace(Rights rights);  // e.g. after rights.toml has changed

 private:
  [[nodiscard]] Status decide(const Scope& scope, std::string_view verb, std::string_view actor_type, std::string_view message) const;
  std::string cluster_;
  const Clock& clock_;
  std::shared_ptr<RefusalQueue> refusals_;
  metrics::Registry* metrics_;
  Guarded<std::shared_ptr<const Rights>> rights_;
};

// To host actors (messages/foreign.capnp): the verb, and the type of the actor that takes the wish.
constexpr std::string_view kRegisterVerb = "actors.register";
constexpr std::string_view kForeignDesk = "node/foreign";

// May a worker process send this? `verb` may be empty.
bool worker_may(std::string_view verb, std::string_view actor_type) noexcept;

// The scope names a purpose that the view allows. Every reader must, the cluster's own nodes too.
Status purpose_allowed(messages::FeatureView::Reader view, const ScopeRef& scope);
// The scope's tenant ("default" when it names none) is the one asked for. A node that names none may ask for any.
Status tenant_allowed(std::string_view tenant, const ScopeRef& scope);

}  // namespace falaj::governance
