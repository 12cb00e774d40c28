#include "actors/mlops/registry.hpp"

#include <capnp/any.h>

#include <charconv>
#include <set>

#include "actors/governance/audit.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"

namespace falaj::mlops {
namespace {

using namespace messages;
using falaj::ErrorCode;
using storage::KeyValue;

constexpr std::string_view kProduction = "production";

std::string prefix_of(std::string_view tenant, std::string_view model) {
  return format("models/{}/{}/", tenant.empty() ? std::string_view("default") : tenant, model);
}
std::string version_key(const std::string& prefix, std::uint64_t version) { return format("{}version/{:020d}", prefix, version); }
std::string alias_key(const std::string& prefix, std::string_view alias) { return prefix + "alias/" + std::string(alias); }

Status check_name(std::string_view what, std::string_view name) {
  for (const char c : name) {
    const bool good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
    if (!good) return invalid(format("{} '{}': letters, digits, '-', '_' and '.' only", what, name.substr(0, 128)));
  }
  if (name.empty() || name.size() > 128) return invalid(format("{}: must have 1 to 128 characters", what));
  return {};
}

std::uint64_t number(ByteView bytes) {
  std::uint64_t value = 0;
  const auto text = as_text(bytes);
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

Result<View<ModelVersionInfo>> open_version(const KeyValue& item) {
  FALAJ_ASSIGN(const auto message, message_from_bytes(TypeId(capnp::typeId<ModelVersionInfo>()), item.value));
  return message.open<ModelVersionInfo>();
}

Bytes stored_bytes(const Message& message) { return {message.bytes().begin(), message.bytes().end()}; }

Metrics metrics_of(ModelVersionInfo::Reader info) {
  Metrics out;
  for (const auto metric : info.getMetrics()) out.emplace(text(metric.getName()), metric.getValue());
  return out;
}

class Registry final : public ActorOf<Registry> {
 public:
  static constexpr std::string_view kType = "mlops/registry";
  static void handlers(Handlers<Registry>& on) {
    on.message<RegisterVersion>(&Registry::add);
    on.message<GetVersion>(&Registry::get);
    on.message<ListModels>(&Registry::list);
    on.message<SetAlias>(&Registry::set_alias);
  }
  explicit Registry(RegistryOptions options)
      : options_(std::move(options)), commands_("mlops/registry", *options_.store, options_.commands) {}

  void on_start(Context&) override {
    if (const auto loaded = commands_.load(); !loaded) throw std::runtime_error(loaded.error().message);
  }

 private:
  // ---- reading --------------------------------------------------------------------------------------------------------------------

  // With the aliases that name it now: they are kept apart, because they move. `also`: one that is about to.
  Result<Message> with_aliases(const std::string& prefix, const KeyValue& item, const std::string& also = {}) {
    FALAJ_ASSIGN(const auto stored, open_version(item));
    FALAJ_ASSIGN(const auto aliases, options_.store->list(prefix + "alias/"));
    std::set<std::string> names;
    for (const auto& alias : aliases.items) {
      if (number(alias.value) == stored->getVersion()) names.insert(alias.key.substr(prefix.size() + 6));
    }
    if (!also.empty()) names.insert(also);
    return Message::build<ModelVersionInfo>(
        [&](ModelVersionInfo::Builder b) {
          copy(*stored, b);
          auto list = b.initAliases(static_cast<unsigned>(names.size()));
          unsigned i = 0;
          for (const auto& name : names) list.set(i++, name);
        },
        item.value.size() / 8 + 32);
  }

  static void copy(ModelVersionInfo::Reader from, ModelVersionInfo::Builder to) {
    to.setModel(from.getModel());
    to.setVersion(from.getVersion());
    to.setOwner(from.getOwner());
    to.setArtifact(from.getArtifact());
    to.setLineage(from.getLineage());
    to.setMetrics(from.getMetrics());
    to.setCreatedNs(from.getCreatedNs());
    to.setCreatedBy(from.getCreatedBy());
    to.setVerdict(from.getVerdict());
  }

  Result<std::uint64_t> resolve(const std::string& prefix, std::uint64_t version, std::string_view alias) {
    if (version != 0) return version;
    if (!alias.empty()) {
      FALAJ_ASSIGN(const auto found, options_.store->get(alias_key(prefix, alias)));
      if (!found) return error(ErrorCode::not_found, format("no version of this model has the alias '{}'", alias));
      return number(found->value);
    }
    FALAJ_ASSIGN(const auto head, options_.store->get(prefix + "head"));
    if (!head) return error(ErrorCode::not_found, "the registry has no such model");
    return number(head->value);
  }

  Result<KeyValue> find(std::string_view tenant, std::string_view model, std::uint64_t version, std::string_view alias) {
    const auto prefix = prefix_of(tenant, model);
    auto wanted = resolve(prefix, version, alias);
    if (!wanted) return within(format("model '{}'", model), wanted.error());
    FALAJ_ASSIGN(const auto item, options_.store->get(version_key(prefix, *wanted)));
    if (!item) return error(ErrorCode::not_found, format("model '{}' has no version {}", model, *wanted));
    return *item;
  }

  static Status may_see(const ScopeRef& scope, std::string_view tenant) {
    if (scope && !scope->tenant.empty() && scope->tenant != (tenant.empty() ? "default" : tenant)) {
      return error(ErrorCode::denied, format("the message speaks for tenant '{}', not '{}'", scope->tenant, tenant));
    }
    return {};
  }

  void get(Context&, Msg<GetVersion> m) {
    if (auto seen = may_see(m.scope(), text(m->getTenant())); !seen) return m.refuse(seen.error());
    const auto item = find(text(m->getTenant()), text(m->getModel()), m->getVersion(), text(m->getAlias()));
    if (!item) return m.refuse(item.error());
    auto answer = with_aliases(prefix_of(text(m->getTenant()), text(m->getModel())), *item);
    if (!answer) return m.refuse(answer.error());
    m.reply(std::move(answer).value());
  }

  void list(Context&, Msg<ListModels> m) {
    if (auto seen = may_see(m.scope(), text(m->getTenant())); !seen) return m.refuse(seen.error());
    const auto all = format("models/{}/", text(m->getTenant()).empty() ? std::string_view("default") : text(m->getTenant()));
    const auto listing = options_.store->list(text(m->getModel()).empty() ? all : prefix_of(text(m->getTenant()), text(m->getModel())));
    if (!listing) return m.refuse(listing.error());
    std::vector<Message> found;
    for (const auto& item : listing->items) {
      const auto at = item.key.find("/version/");
      if (at == std::string::npos) continue;
      auto one = with_aliases(item.key.substr(0, at + 1), item);
      if (!one) return m.refuse(one.error());
      found.push_back(std::move(one).value());
    }
    m.reply(Message::build<ModelList>(
        [&](ModelList::Builder b) {
          auto versions = b.initVersions(static_cast<unsigned>(found.size()));
          for (unsigned i = 0; i < found.size(); ++i) versions.setWithCaveats(i, *found[i].view<ModelVersionInfo>());
        },
        1024));
  }

  // ---- a new version --------------------------------------------------------------------------------------------------------------

  Task<> add(Context& ctx, Msg<RegisterVersion> m) {
    const auto info = m->getInfo();
    const auto tenant = text(info.getOwner().getTenant());
    if (auto seen = may_see(m.scope(), tenant); !seen) co_return m.refuse(seen.error());
    if (auto good = check_name("model", text(info.getModel())); !good) co_return m.refuse(good.error());
    if (text(info.getArtifact()).empty()) co_return m.refuse(invalid("artifact: the digest of the model's file must be given"));
    auto admitting = commands_.admit(ctx, m);
    auto turn = co_await std::move(admitting);
    if (!turn) co_return m.refuse(turn.error());
    if (turn->before()) co_return m.reply(turn->before()->answer);
    const auto prefix = prefix_of(tenant, text(info.getModel()));
    auto recorded = governance::audit_ask(
        ctx, governance::record_of(m.scope(), m.trace(), ctx.node_name(), "models.write", format("model/{}", text(info.getModel()))));
    if (const auto done = co_await std::move(recorded); !done) co_return m.refuse(done.error());
    // Compare-and-set on the head: of two at once, one goes around again.
    for (;;) {
      const auto head = options_.store->get(prefix + "head");
      if (!head) co_return m.refuse(head.error());
      if (const auto same = known_already(prefix, info)) co_return m.reply(*same);
      const auto version = (*head ? number((*head)->value) : 0) + 1;
      const auto message = Message::build<ModelVersionInfo>(
          [&](ModelVersionInfo::Builder b) {
            copy(info, b);
            b.setVersion(version);
            b.setCreatedNs(ctx.wall().unix_ns);
            b.setCreatedBy(m.scope() ? m.scope()->principal : "node/" + ctx.node_name());
            b.disownVerdict();
          },
          256);
      storage::Transaction transaction;
      transaction.conditions.push_back({prefix + "head", *head ? (*head)->modified : Revision(0)});
      transaction.writes.push_back({prefix + "head", to_bytes(std::to_string(version)), {}});
      transaction.writes.push_back({version_key(prefix, version), stored_bytes(message), {}});
      turn->keep(transaction, message, ctx.wall());
      auto* store = options_.store;
      auto write = ctx.blocking([store, transaction] { return store->commit(transaction); });
      const auto done = co_await write;
      if (done) {
        turn->kept();
        log::info("registry", "version added", {{"model", text(info.getModel())}, {"version", version}});
        co_return m.reply(message);
      }
      if (done.error().code != ErrorCode::conflict || turn->overtaken()) co_return m.refuse(done.error());
    }
  }

  // The same artifact with the same lineage: a repeated command, answered again.
  std::optional<Message> known_already(const std::string& prefix, ModelVersionInfo::Reader info) {
    const auto listing = options_.store->list(prefix + "version/");
    if (!listing) return std::nullopt;
    for (const auto& item : listing->items) {
      const auto stored = open_version(item);
      if (!stored || text((*stored)->getArtifact()) != text(info.getArtifact())) continue;
      if (capnp::AnyStruct::Reader((*stored)->getLineage()) != capnp::AnyStruct::Reader(info.getLineage())) continue;
      auto answer = with_aliases(prefix, item);
      if (answer) return std::move(answer).value();
    }
    return std::nullopt;
  }

  // ---- aliases and the gate -----------------------------------------------------------------------------------------------------------

  Task<> set_alias(Context& ctx, Msg<SetAlias> m) {
    const auto tenant = text(m->getTenant());
    if (auto seen = may_see(m.scope(), tenant); !seen) co_return m.refuse(seen.error());
    if (auto good = check_name("alias", text(m->getAlias())); !good) co_return m.refuse(good.error());
    auto admitting = commands_.admit(ctx, m);
    auto turn = co_await std::move(admitting);
    if (!turn) co_return m.refuse(turn.error());
    if (turn->before()) co_return m.reply(turn->before()->answer);
    const auto prefix = prefix_of(tenant, text(m->getModel()));
    const auto item = find(tenant, text(m->getModel()), m->getVersion(), {});
    if (!item) co_return m.refuse(item.error());
    const auto candidate = open_version(*item);
    if (!candidate) co_return m.refuse(candidate.error());
    GateVerdict verdict;
    std::uint64_t champion = 0;
    const bool gated = text(m->getAlias()) == kProduction;
    if (gated) {
      auto judged = decide(ctx, prefix, *item, champion);
      auto result = co_await std::move(judged);
      if (!result) co_return m.refuse(result.error());
      verdict = std::move(result).value();
    }
    auto record = governance::record_of(m.scope(), m.trace(), ctx.node_name(), "models.promote",
                                        format("model/{}/{} -> {}", text(m->getModel()), (*candidate)->getVersion(), text(m->getAlias())));
    const std::string reasons = joined(verdict.reasons);
    record.allowed = verdict.passed;
    record.reason = reasons;
    auto audited = governance::audit_ask(ctx, std::move(record));
    if (const auto done = co_await std::move(audited); !done) co_return m.refuse(done.error());

    const auto current = options_.store->get(alias_key(prefix, text(m->getAlias())));
    if (!current) co_return m.refuse(current.error());
    const std::string by = m.scope() ? m.scope()->principal : "node/" + ctx.node_name();
    KeyValue updated = *item;
    if (gated) updated.value = stored_bytes(with_verdict(**candidate, verdict, champion, by, ctx.wall()));
    auto answer = with_aliases(prefix, updated, std::string(text(m->getAlias())));
    if (!answer) co_return m.refuse(answer.error());
    storage::Transaction transaction;
    if (gated) {
      transaction.conditions.push_back({item->key, item->modified});
      transaction.writes.push_back({item->key, updated.value, {}});
    }
    if (verdict.passed) {
      const auto key = alias_key(prefix, text(m->getAlias()));
      transaction.conditions.push_back({key, *current ? (*current)->modified : Revision(0)});
      transaction.writes.push_back({key, to_bytes(std::to_string((*candidate)->getVersion())), {}});
      turn->keep(transaction, *answer, ctx.wall());
    }
    auto* store = options_.store;
    auto write = ctx.blocking([store, transaction] { return store->commit(transaction); });
    if (const auto done = co_await write; !done) co_return m.refuse(done.error());
    if (!verdict.passed)
      co_return m.refuse(error(ErrorCode::conflict, format("the gate refuses version {}: {}", (*candidate)->getVersion(), reasons)));
    turn->kept();
    m.reply(std::move(answer).value());
  }

  static std::string joined(const std::vector<std::string>& reasons) {
    std::string out;
    for (const auto& reason : reasons) out += (out.empty() ? "" : "; ") + reason;
    return out;
  }

  static Message with_verdict(ModelVersionInfo::Reader info, const GateVerdict& verdict, std::uint64_t champion, const std::string& by,
                              WallTime now) {
    return Message::build<ModelVersionInfo>(
        [&](ModelVersionInfo::Builder b) {
          copy(info, b);
          auto v = b.initVerdict();
          v.setPassed(verdict.passed);
          v.setChampion(champion);
          v.setDecidedNs(now.unix_ns);
          v.setDecidedBy(by);
          auto reasons = v.initReasons(static_cast<unsigned>(verdict.reasons.size()));
          for (unsigned i = 0; i < verdict.reasons.size(); ++i) reasons.set(i, verdict.reasons[i]);
        },
        256);
  }

  // On the same snapshot the champion's stored metrics count; on another it is measured again, if that can be done.
  Task<Result<GateVerdict>> decide(Context& ctx, std::string prefix, KeyValue item, std::uint64_t& champion) {
    const auto candidate = open_version(item);
    if (!candidate) co_return candidate.error();
    GateInput input;
    input.gate = (*candidate)->getLineage().getJobSpec().getGate();
    input.candidate = metrics_of(**candidate);
    const auto production = resolve(prefix, 0, kProduction);
    std::optional<View<ModelVersionInfo>> held;
    if (production && *production != (*candidate)->getVersion()) {
      const auto stored = options_.store->get(version_key(prefix, *production));
      if (!stored) co_return stored.error();
      if (*stored) {
        auto opened = open_version(**stored);
        if (!opened) co_return opened.error();
        held.emplace(std::move(opened).value());
        input.champion_version = champion = *production;
        const auto lineage = (*held)->getLineage();
        if (text(lineage.getSnapshot()) == text((*candidate)->getLineage().getSnapshot())) {
          input.champion = metrics_of(**held);
        } else if (options_.evaluate) {
          auto measured =
              options_.evaluate(ctx, std::string(text((*held)->getArtifact())), std::string(text((*candidate)->getLineage().getSnapshot())),
                                Message::copy_of<TrainingJob>((*candidate)->getLineage().getJobSpec()));
          auto metrics = co_await std::move(measured);
          if (metrics) {
            input.champion = std::move(metrics).value();
          } else {
            input.champion_error = metrics.error().message;
          }
        } else {
          input.champion_error = "it was measured on another snapshot";
        }
      }
    }
    co_return judge(input);
  }

  RegistryOptions options_;
  control::CommandBook commands_;
};

}  // namespace

ChildSpec registry(RegistryOptions options) {
  ChildSpec spec;
  spec.id = "mlops/registry";
  spec.name = spec.id;
  spec.make = [options = std::move(options)] { return std::make_unique<Registry>(options); };
  return spec;
}

}  // namespace falaj::mlops
