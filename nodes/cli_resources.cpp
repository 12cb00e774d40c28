// apply, get, delete, deploy.
#include "actors/control/records.hpp"
#include "messages/control.capnp.h"
#include "messages/envelope.capnp.h"
#include "messages/json.hpp"
#include "nodes/cli.hpp"
#include "nodes/deployments.hpp"
#include "runtime/base/format.hpp"
#include "runtime/config.hpp"

namespace falaj::nodes {
namespace {

using namespace messages;
using falaj::ErrorCode;

struct ResourceArguments {
  std::vector<std::string> files;
  std::string kind;
  std::string name;
  std::string model;
  std::uint64_t version = 0;
  std::uint32_t replicas = 1;
  std::uint32_t threads = 1;
  std::string precision = "f32";
  std::string view;
  std::string read_purpose;
  std::uint32_t wait = 30;
};

Result<View<ResourceRecord>> apply_one(Cli& cli, Resource::Reader resource) {
  FALAJ_ASSIGN(auto* client, cli.client());
  return client->ask<ResourceRecord>("control/resources", Message::build<Apply>([&](Apply::Builder b) { b.setResource(resource); }, 256));
}

void say_applied(const Cli& cli, const View<ResourceRecord>& record) {
  const auto resource = record->getResource();
  const auto line = [&](std::string_view kind, std::string_view name) {
    print(cli.json() ? to_json(*record, JsonStyle::compact) : format("{} '{}' stored, revision {}", kind, name, record->getRevision()));
  };
  if (resource.isFeatureView()) line("feature view", text(resource.getFeatureView().getName()));
  if (resource.isJob()) line("job", text(resource.getJob().getName()));
  if (resource.isDeployment()) line("deployment", text(resource.getDeployment().getName()));
}

// Each declaration is a command of its own, so each has a key of its own: the one given, and which it is.
Status key_for(Cli& cli, Resource::Reader resource) {
  if (cli.idempotency_key.empty()) return {};
  FALAJ_ASSIGN(const auto name, control::name_of(resource));
  FALAJ_ASSIGN(auto* client, cli.client());
  client->set_idempotency_key(format("{}/{}/{}/{}", cli.idempotency_key, name.kind, name.tenant, name.name));
  return {};
}

// All files are read and checked before anything is sent.
Status do_apply(Cli& cli, const ResourceArguments& a) {
  std::vector<Message> resources;
  for (const auto& file : a.files) {
    FALAJ_ASSIGN(const auto content, config::read_file(file));
    Status status;
    const auto parsed =
        Message::build<ResourceFile>([&](ResourceFile::Builder b) { status = config::parse_toml<ResourceFile>(content, file, b); }, 512);
    if (!status) return status.error();
    const auto before = resources.size();
    const auto take = [&](auto list, auto set) -> Status {
      for (const auto item : list) {
        resources.push_back(Message::build<Resource>([&](Resource::Builder b) { set(b, item); }, 256));
        const View<Resource> made = resources.back().template view<Resource>();
        if (const auto named = control::name_of(*made); !named) return within(file, named.error());
        if (const auto good = control::check(*made); !good) return within(file, good.error());
      }
      return {};
    };
    const auto read = parsed.view<ResourceFile>();
    FALAJ_TRY(take(read->getFeatureView(), [](Resource::Builder b, FeatureView::Reader r) { b.setFeatureView(r); }));
    FALAJ_TRY(take(read->getJob(), [](Resource::Builder b, TrainingJob::Reader r) { b.setJob(r); }));
    FALAJ_TRY(take(read->getDeployment(), [](Resource::Builder b, Deployment::Reader r) { b.setDeployment(r); }));
    if (resources.size() == before) return invalid(format("{}: declares nothing; write [[feature_view]], [[job]] or [[deployment]]", file));
  }
  for (const auto& resource : resources) {  // all of them are good, by themselves at least: a slip in the last changes nothing either
    const auto made = resource.view<Resource>();
    FALAJ_TRY(key_for(cli, *made));
    FALAJ_ASSIGN(const auto record, apply_one(cli, *made));
    say_applied(cli, record);
  }
  return {};
}

std::vector<std::string> row_of(ResourceRecord::Reader record) {
  const auto resource = record.getResource();
  const auto status = record.getStatus();
  const auto row = [&](std::string kind, auto value) {
    const auto ready = status.getWanted() == 0 ? std::string("-") : format("{}/{}", status.getReady(), status.getWanted());
    return std::vector<std::string>{std::move(kind),
                                    std::string(text(value.getName())),
                                    std::string(text(value.getOwner().getTenant())),
                                    std::to_string(record.getRevision()),
                                    std::string(text(status.getPhase())),
                                    ready,
                                    std::string(text(status.getMessage()))};
  };
  if (resource.isFeatureView()) return row("feature_view", resource.getFeatureView());
  if (resource.isJob()) return row("job", resource.getJob());
  return row("deployment", resource.getDeployment());
}

Status do_get(Cli& cli, const ResourceArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  if (!a.name.empty()) {
    FALAJ_ASSIGN(const auto record,
                 client->ask<ResourceRecord>("control/resources", Message::build<GetResource>([&](GetResource::Builder b) {
                                               b.setKind(a.kind);
                                               b.setTenant(cli.own_tenant());
                                               b.setName(a.name);
                                             })));
    print(to_json(*record, JsonStyle::pretty));
    return {};
  }
  FALAJ_ASSIGN(const auto list, client->ask<ResourceList>("control/resources", Message::build<ListResources>([&](ListResources::Builder b) {
                                                            b.setKind(a.kind);
                                                            b.setTenant(cli.tenant);
                                                          })));
  if (cli.json()) {
    print(to_json(*list, JsonStyle::pretty));
    return {};
  }
  std::vector<std::vector<std::string>> rows = {{"KIND", "NAME", "TENANT", "REVISION", "PHASE", "READY", ""}};
  for (const auto record : list->getRecords()) rows.push_back(row_of(record));
  print(table(rows));
  return {};
}

Status do_delete(Cli& cli, const ResourceArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto done, client->ask<Empty>("control/resources", Message::build<DeleteResource>([&](DeleteResource::Builder b) {
                                                     b.setKind(a.kind);
                                                     b.setTenant(cli.own_tenant());
                                                     b.setName(a.name);
                                                   })));
  static_cast<void>(done);
  print(format("{} '{}' deleted", a.kind, a.name));
  return {};
}

Status do_deploy(Cli& cli, const ResourceArguments& a) {
  const auto resource = Message::build<Resource>([&](Resource::Builder b) {
    auto deployment = b.initDeployment();
    deployment.setName(a.name.empty() ? a.model : a.name);
    deployment.initOwner().setTenant(cli.own_tenant());
    deployment.setModel(a.model);
    deployment.setVersion(a.version);
    deployment.setReplicas(a.replicas);
    deployment.setThreads(a.threads);
    deployment.setPrecision(a.precision);
    deployment.setView(a.view);
    deployment.setPurpose(a.read_purpose);
  });
  FALAJ_ASSIGN(const auto record, apply_one(cli, *resource.view<Resource>()));
  say_applied(cli, record);
  if (a.wait == 0) return {};
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_TRY(wait_ready(*client, cli.own_tenant(), a.name.empty() ? a.model : a.name, std::chrono::seconds(a.wait)));
  print("ready");
  return {};
}

}  // namespace

void add_resource_commands(CLI::App& app, Cli& cli) {
  const auto a = std::make_shared<ResourceArguments>();
  const auto kinds = CLI::IsMember({"feature_view", "job", "deployment"});

  auto* apply = app.add_subcommand("apply", "Declare feature views, jobs and deployments from TOML files");
  cli.with_client(*apply);
  cli.with_key(*apply);
  cli.with_output(*apply);
  apply->add_option("--file,-f", a->files, "TOML file; may be given several times")->type_name("FILE")->required();
  apply->footer("Example:\n  falaj apply --dir ./falaj -f configs/examples/credit.toml");
  cli.runs(*apply, [&cli, a] { return do_apply(cli, *a); });

  auto* get = app.add_subcommand("get", "Show what is declared, and how far it is made so");
  cli.with_client(*get);
  cli.with_output(*get);
  get->add_option("kind", a->kind, "feature_view, job or deployment (default: all)")->check(kinds);
  get->add_option("name", a->name, "One resource, whole, as JSON");
  get->footer("Example:\n  falaj get deployment --dir ./falaj");
  cli.runs(*get, [&cli, a] { return do_get(cli, *a); });

  auto* remove = app.add_subcommand("delete", "Take a declaration back");
  cli.with_client(*remove);
  cli.with_key(*remove);
  remove->add_option("kind", a->kind, "feature_view, job or deployment")->required()->check(kinds);
  remove->add_option("name", a->name, "Its name")->required();
  remove->footer("Example:\n  falaj delete deployment credit --dir ./falaj");
  cli.runs(*remove, [&cli, a] { return do_delete(cli, *a); });

  auto* deploy = app.add_subcommand("deploy", "Serve a model, and wait until it is ready");
  cli.with_client(*deploy);
  cli.with_key(*deploy);
  cli.with_output(*deploy);
  deploy->add_option("model", a->model, "Model in the registry")->required();
  deploy->add_option("--name", a->name, "Name that clients use (default: the model's)");
  deploy->add_option("--version", a->version, "Version (default: the alias production)");
  deploy->add_option("--replicas", a->replicas, "Number of replicas")->capture_default_str();
  deploy->add_option("--threads", a->threads, "Threads of each replica; 0: as many as its machine has")->capture_default_str();
  deploy->add_option("--precision", a->precision, "f32, or bf16: products and convolutions by known weights take their operands rounded")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  deploy->add_option("--view", a->view, "Feature view for predictions by entity");
  deploy->add_option("--read-purpose", a->read_purpose, "Purpose of those reads");
  deploy->add_option("--wait", a->wait, "Seconds to wait until it is ready; 0: do not wait")->capture_default_str();
  deploy->footer("Example:\n  falaj deploy credit --replicas 2 --view applicants --read-purpose credit-scoring --dir ./falaj");
  cli.runs(*deploy, [&cli, a] { return do_deploy(cli, *a); });
}

}  // namespace falaj::nodes
