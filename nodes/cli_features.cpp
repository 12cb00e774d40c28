// features ingest|get|count|snapshot|erase.
#include "actors/features/front.hpp"
#include "messages/control.capnp.h"
#include "messages/envelope.capnp.h"
#include "messages/features.capnp.h"
#include "messages/json.hpp"
#include "nodes/cli.hpp"
#include "nodes/ingest.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

using namespace messages;
using falaj::ErrorCode;

struct FeatureArguments {
  std::string view;
  std::string file;
  std::vector<std::string> entities;
  std::vector<std::string> fields;
};

Result<View<ResourceRecord>> view_record(Cli& cli, const std::string& name) {
  FALAJ_ASSIGN(auto* client, cli.client());
  return client->ask<ResourceRecord>("control/resources", Message::build<GetResource>([&](GetResource::Builder b) {
                                       b.setKind("feature_view");
                                       b.setTenant(cli.own_tenant());
                                       b.setName(name);
                                     }));
}

Status do_ingest(Cli& cli, const FeatureArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto record, view_record(cli, a.view));
  FALAJ_ASSIGN(const auto summary, ingest_csv(*client, record->getResource().getFeatureView(), a.file));
  for (const auto& column : summary.ignored) print(format("note: column '{}' is not in the view and was left out", column));
  print(format("{} rows stored in '{}'", summary.rows, a.view));
  return {};
}

std::string show(Value::Reader value) {
  switch (value.which()) {
    case Value::MISSING:
      return "-";
    case Value::FLOAT32:
      return format("{}", value.getFloat32());
    case Value::FLOAT64:
      return format("{}", value.getFloat64());
    case Value::INT64:
      return std::to_string(value.getInt64());
    case Value::BOOL:
      return value.getBool() ? "true" : "false";
    case Value::STRING:
      return std::string(text(value.getString()));
  }
  return "?";
}

Status do_get(Cli& cli, const FeatureArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto found, client->ask<Features>(features::kFront, Message::build<GetFeatures>([&](GetFeatures::Builder b) {
                                                         b.setView(a.view);
                                                         b.setTenant(cli.own_tenant());
                                                         auto entities = b.initEntities(static_cast<unsigned>(a.entities.size()));
                                                         for (unsigned i = 0; i < a.entities.size(); ++i) entities.set(i, a.entities[i]);
                                                         auto fields = b.initFields(static_cast<unsigned>(a.fields.size()));
                                                         for (unsigned i = 0; i < a.fields.size(); ++i) fields.set(i, a.fields[i]);
                                                       })));
  if (cli.json()) {
    print(to_json(*found, JsonStyle::pretty));
    return {};
  }
  std::vector<std::vector<std::string>> rows = {{"FIELD"}};
  for (const auto row : found->getRows()) rows.front().emplace_back(text(row.getEntity()));
  for (unsigned f = 0; f < found->getFields().size(); ++f) {
    rows.push_back({std::string(text(found->getFields()[f].getName()))});
    for (const auto row : found->getRows()) {
      rows.back().push_back(row.getStatus() == RowStatus::PRESENT   ? show(row.getValues()[f])
                            : row.getStatus() == RowStatus::EXPIRED ? "(expired)"
                                                                    : "(not found)");
    }
  }
  print(table(rows));
  return {};
}

Status do_snapshot(Cli& cli, const FeatureArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto made, client->ask<SnapshotInfo>(features::kFront, Message::build<CreateSnapshot>([&](CreateSnapshot::Builder b) {
                                                            b.setView(a.view);
                                                            b.setTenant(cli.own_tenant());
                                                          }),
                                                          std::chrono::minutes(10)));
  print(cli.json() ? to_json(*made, JsonStyle::pretty) : format("snapshot {}: {} rows", text(made->getDigest()), made->getRows()));
  return {};
}

Status do_count(Cli& cli, const FeatureArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto count, client->ask<RowCount>(features::kFront, Message::build<CountRows>([&](CountRows::Builder b) {
                                                         b.setView(a.view);
                                                         b.setTenant(cli.own_tenant());
                                                       })));
  print(std::to_string(count->getRows()));
  return {};
}

Status do_erase(Cli& cli, const FeatureArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  std::uint64_t erased = 0;
  for (const auto& entity : a.entities) {
    FALAJ_ASSIGN(const auto done, client->ask<RowCount>(features::kFront, Message::build<DeleteEntity>([&](DeleteEntity::Builder b) {
                                                          b.setView(a.view);
                                                          b.setTenant(cli.own_tenant());
                                                          b.setEntity(entity);
                                                        })));
    erased += done->getRows();
  }
  print(format("{} erased", erased));
  return {};
}

}  // namespace

void add_feature_commands(CLI::App& app, Cli& cli) {
  const auto a = std::make_shared<FeatureArguments>();
  auto* features = app.add_subcommand("features", "Rows of feature views: ingest, get, count, snapshot, erase");
  features->require_subcommand(1);
  const auto verb = [&](const char* name, const char* what, Status (*body)(Cli&, const FeatureArguments&)) {
    auto* command = features->add_subcommand(name, what);
    cli.with_client(*command);
    cli.with_output(*command);
    command->add_option("view", a->view, "Feature view")->required();
    cli.runs(*command, [&cli, a, body] { return body(cli, *a); });
    return command;
  };
  auto* ingest = verb("ingest", "Store the rows of a CSV file; a bad file changes nothing", do_ingest);
  ingest->add_option("file", a->file, "CSV with a header")->type_name("FILE")->required();
  ingest->footer("Example:\n  falaj features ingest applicants configs/examples/data/german_credit.csv --dir ./falaj");
  auto* get = verb("get", "Read rows by entity, for a purpose", do_get);
  get->add_option("entities", a->entities, "Entity keys")->required();
  get->add_option("--field", a->fields, "Only these fields");
  get->footer("Example:\n  falaj features get applicants A0001 --purpose credit-scoring --dir ./falaj");
  verb("count", "Count the rows", do_count)->footer("Example:\n  falaj features count applicants --dir ./falaj");
  verb("snapshot", "Make a training snapshot, named by its digest", do_snapshot)
      ->footer("Example:\n  falaj features snapshot applicants --purpose credit-scoring --dir ./falaj");
  auto* erase = verb("erase", "Erase the rows of entities", do_erase);
  erase->add_option("entities", a->entities, "Entity keys")->required();
  erase->footer("Example:\n  falaj features erase applicants A0001 --dir ./falaj");
}

}  // namespace falaj::nodes
