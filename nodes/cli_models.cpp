// models list|show|export|alias|import.
#include "messages/artifacts.capnp.h"
#include "messages/json.hpp"
#include "messages/registry.capnp.h"
#include "nodes/artifacts.hpp"
#include "nodes/cli.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

using namespace messages;
using falaj::ErrorCode;

struct ModelArguments {
  std::string model;
  std::uint64_t version = 0;
  std::string alias;
  std::string file;
};

Result<View<ModelVersionInfo>> version_of(Cli& cli, const ModelArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  return client->ask<ModelVersionInfo>("mlops/registry", Message::build<GetVersion>([&](GetVersion::Builder b) {
                                         b.setModel(a.model);
                                         b.setTenant(cli.own_tenant());
                                         b.setVersion(a.version);
                                         b.setAlias(a.alias);
                                       }));
}

std::string metric(ModelVersionInfo::Reader info, std::string_view name) {
  for (const auto m : info.getMetrics()) {
    if (text(m.getName()) == name) return format("{:.4f}", m.getValue());
  }
  return "-";
}

Status do_list(Cli& cli, const ModelArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto list, client->ask<ModelList>("mlops/registry", Message::build<ListModels>([&](ListModels::Builder b) {
                                                         b.setTenant(cli.own_tenant());
                                                         b.setModel(a.model);
                                                       })));
  if (cli.json()) {
    print(to_json(*list, JsonStyle::pretty));
    return {};
  }
  std::vector<std::vector<std::string>> rows = {{"MODEL", "VERSION", "ALIASES", "AUC", "ACCURACY", "GATE", "ARTIFACT"}};
  for (const auto v : list->getVersions()) {
    std::string aliases;
    for (const auto alias : v.getAliases()) aliases += (aliases.empty() ? "" : ",") + std::string(text(alias));
    const auto gate = v.getVerdict().getDecidedNs() == 0 ? "-" : v.getVerdict().getPassed() ? "passed" : "refused";
    rows.push_back({std::string(text(v.getModel())), std::to_string(v.getVersion()), aliases.empty() ? "-" : aliases, metric(v, "auc"),
                    metric(v, "accuracy"), gate, std::string(text(v.getArtifact())).substr(0, 16)});
  }
  print(table(rows));
  return {};
}

Status do_show(Cli& cli, const ModelArguments& a) {
  FALAJ_ASSIGN(const auto info, version_of(cli, a));
  print(to_json(*info, JsonStyle::pretty));
  return {};
}

Status do_export(Cli& cli, const ModelArguments& a) {
  FALAJ_ASSIGN(const auto info, version_of(cli, a));
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto content, fetch_artifact(*client, std::string(text(info->getArtifact()))));
  const auto file = a.file.empty() ? format("{}-{}.onnx", a.model, info->getVersion()) : a.file;
  FALAJ_TRY(write_file(file, content));
  print(format("{}: {} bytes, model '{}', version {}", file, content.size(), a.model, info->getVersion()));
  return {};
}

Status do_alias(Cli& cli, const ModelArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto info, client->ask<ModelVersionInfo>("mlops/registry", Message::build<SetAlias>([&](SetAlias::Builder b) {
                                                                b.setModel(a.model);
                                                                b.setTenant(cli.own_tenant());
                                                                b.setAlias(a.alias);
                                                                b.setVersion(a.version);
                                                              }),
                                                              std::chrono::seconds(60)));
  if (cli.json()) {
    print(to_json(*info, JsonStyle::pretty));
    return {};
  }
  for (const auto reason : info->getVerdict().getReasons()) print(format("  {}", text(reason)));
  print(format("'{}' of model '{}' is version {}", a.alias, a.model, a.version));
  return {};
}

Status do_import(Cli& cli, const ModelArguments& a) {
  FALAJ_ASSIGN(const auto content, read_binary_file(a.file));
  FALAJ_TRY(check_onnx(content, a.file));
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto digest, put_artifact(*client, content, "application/onnx", cli.own_tenant()));
  FALAJ_ASSIGN(const auto info,
               client->ask<ModelVersionInfo>("mlops/registry", Message::build<RegisterVersion>([&](RegisterVersion::Builder b) {
                                               auto v = b.initInfo();
                                               v.setModel(a.model);
                                               v.initOwner().setTenant(cli.own_tenant());
                                               v.setArtifact(digest);
                                             })));
  print(cli.json() ? to_json(*info, JsonStyle::pretty) : format("model '{}', version {}", a.model, info->getVersion()));
  return {};
}

}  // namespace

void add_model_commands(CLI::App& app, Cli& cli) {
  const auto a = std::make_shared<ModelArguments>();
  auto* models = app.add_subcommand("models", "The model registry: import, list, show, export, alias");
  models->require_subcommand(1);
  const auto verb = [&](const char* name, const char* what, Status (*body)(Cli&, const ModelArguments&)) {
    auto* command = models->add_subcommand(name, what);
    cli.with_client(*command);
    cli.with_output(*command);
    cli.runs(*command, [&cli, a, body] { return body(cli, *a); });
    return command;
  };
  auto* list = verb("list", "List models and their versions", do_list);
  list->add_option("model", a->model, "Only this model");
  list->footer("Example:\n  falaj models list --dir ./falaj");
  auto* show = verb("show", "Show a version: lineage, metrics, verdict", do_show);
  auto* exported = verb("export", "Write a version's ONNX file", do_export);
  for (auto* command : {show, exported}) {
    command->add_option("model", a->model, "Model")->required();
    command->add_option("--version", a->version, "Version (default: the newest)");
    command->add_option("--alias", a->alias, "The version that this alias names");
  }
  show->footer("Example:\n  falaj models show credit --alias production --dir ./falaj");
  exported->add_option("file", a->file, "File to write (default: MODEL-VERSION.onnx)")->type_name("FILE");
  exported->footer("Example:\n  falaj models export credit credit.onnx --dir ./falaj");
  auto* alias = verb("alias", "Give a version an alias; `production` only through its gate, else exit code 6", do_alias);
  cli.with_key(*alias);
  alias->add_option("model", a->model, "Model")->required();
  alias->add_option("alias", a->alias, "Alias")->required();
  alias->add_option("version", a->version, "Version")->required();
  alias->footer("Example:\n  falaj models alias credit production 1 --dir ./falaj");
  auto* import = verb("import", "Register an ONNX file", do_import);
  cli.with_key(*import);
  import->add_option("file", a->file, "ONNX file")->type_name("FILE")->required();
  import->add_option("--name,-n", a->model, "Model")->required();
  import->footer("Example:\n  falaj models import resnet.onnx --name resnet --dir ./falaj");
}

}  // namespace falaj::nodes
