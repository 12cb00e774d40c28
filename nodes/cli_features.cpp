// features ingest|get|count|snapshot|erase.
#include <atomic>
#include <condition_variable>
#include <mutex>

#include "actors/features/csv.hpp"
#include "actors/features/front.hpp"
#include "messages/control.capnp.h"
#include "messages/envelope.capnp.h"
#include "messages/features.capnp.h"
#include "messages/json.hpp"
#include "nodes/cli.hpp"
#include "nodes/progress.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

using namespace messages;
using falaj::ErrorCode;

constexpr std::size_t kBatchesInFlight = 8;

struct FeatureArguments {
  std::string view;
  std::string file;
  std::vector<std::string> entities;
  std::vector<std::string> fields;
};

std::string tenant_of(const Cli& cli) { return cli.tenant.empty() ? "default" : cli.tenant; }

Result<View<ResourceRecord>> view_record(Cli& cli, const std::string& name) {
  FALAJ_ASSIGN(auto* client, cli.client());
  return client->ask<ResourceRecord>("control/resources", Message::build<GetResource>([&](GetResource::Builder b) {
                                       b.setKind("feature_view");
                                       b.setTenant(tenant_of(cli));
                                       b.setName(name);
                                     }));
}

// Keeps a few batches on their way; the first error ends it.
class BatchSender {
 public:
  explicit BatchSender(Client& client) : client_(client) {}
  Status send(const Message& batch) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return in_flight_ < kBatchesInFlight || failure_; });
      if (failure_) return *failure_;
      ++in_flight_;
    }
    client_.ask_async(features::kFront, batch, std::chrono::seconds(30), [this](const Result<Message>& answer) { done(answer); });
    return {};
  }
  Status finish() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return in_flight_ == 0; });
    if (failure_) return *failure_;
    return {};
  }

 private:
  void done(const Result<Message>& answer) {
    {
      const std::scoped_lock lock(mutex_);
      --in_flight_;
      if (!answer && !failure_) failure_ = answer.error();
    }
    changed_.notify_all();
  }
  Client& client_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t in_flight_ = 0;
  std::optional<Error> failure_;
};

// Two passes: the whole file is good before the first row is sent.
Status do_ingest(Cli& cli, const FeatureArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto record, view_record(cli, a.view));
  const auto view = record->getResource().getFeatureView();
  FALAJ_ASSIGN(auto first, features::bytes_of_file(a.file));
  FALAJ_ASSIGN(const auto summary, features::check_csv(std::move(first), a.file, view));
  for (const auto& column : summary.ignored) print(format("note: column '{}' is not in the view and is left out", column));
  FALAJ_ASSIGN(auto second, features::bytes_of_file(a.file));
  BatchSender sender(*client);
  Progress progress("ingest", summary.rows);
  std::vector<features::CsvRow> rows;
  std::uint64_t sent = 0;
  const auto flush = [&]() -> Status {
    if (rows.empty()) return {};
    FALAJ_TRY(sender.send(features::put_rows(tenant_of(cli), a.view, rows)));
    sent += rows.size();
    progress.at(sent);
    rows.clear();
    return {};
  };
  const auto read = features::read_csv(std::move(second), a.file, view, {}, [&](features::CsvRow&& row) -> Status {
    rows.push_back(std::move(row));
    return rows.size() == limits::kRowsPerBatch ? flush() : Status{};
  });
  auto flushed = read ? flush() : Status(read.error());
  const auto finished = sender.finish();
  FALAJ_TRY(std::move(flushed));
  if (!finished) return finished.error();
  progress.end();
  print(format("{} rows stored in '{}'", sent, a.view));
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
                                                         b.setTenant(tenant_of(cli));
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
                                                            b.setTenant(tenant_of(cli));
                                                          }),
                                                          std::chrono::minutes(10)));
  print(cli.json() ? to_json(*made, JsonStyle::pretty) : format("snapshot {}: {} rows", text(made->getDigest()), made->getRows()));
  return {};
}

Status do_count(Cli& cli, const FeatureArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto count, client->ask<RowCount>(features::kFront, Message::build<CountRows>([&](CountRows::Builder b) {
                                                         b.setView(a.view);
                                                         b.setTenant(tenant_of(cli));
                                                       })));
  print(std::to_string(count->getRows()));
  return {};
}

Status do_erase(Cli& cli, const FeatureArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  for (const auto& entity : a.entities) {
    FALAJ_ASSIGN(const auto done, client->ask<Empty>(features::kFront, Message::build<DeleteEntity>([&](DeleteEntity::Builder b) {
                                                       b.setView(a.view);
                                                       b.setTenant(tenant_of(cli));
                                                       b.setEntity(entity);
                                                     })));
    static_cast<void>(done);
  }
  print(format("{} erased", a.entities.size()));
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
  ingest->add_option("file", a->file, "CSV with a header")->required();
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
