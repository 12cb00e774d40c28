// train, runs list|show.
#include <cmath>

#include "messages/control.capnp.h"
#include "messages/json.hpp"
#include "messages/training.capnp.h"
#include "nodes/cli.hpp"
#include "nodes/training_view.hpp"
#include "runtime/base/format.hpp"
#include "runtime/config.hpp"

namespace falaj::nodes {
namespace {

using namespace messages;
using falaj::ErrorCode;

struct TrainingArguments {
  std::string file;
  std::string job;
  std::string run;
  bool detach = false;
};

// Stores the jobs of the file, then follows the first of them.
Status do_train(Cli& cli, const TrainingArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto content, config::read_file(a.file));
  Status status;
  const auto parsed =
      Message::build<ResourceFile>([&](ResourceFile::Builder b) { status = config::parse_toml<ResourceFile>(content, a.file, b); }, 512);
  if (!status) return status.error();
  const auto file = parsed.view<ResourceFile>();
  if (file->getJob().size() == 0) return invalid(format("{}: declares no [job]", a.file));
  std::string job;
  std::string run_id;
  for (const auto spec : file->getJob()) {
    if (!a.job.empty() && text(spec.getName()) != a.job) continue;
    FALAJ_ASSIGN(const auto record, client->ask<ResourceRecord>("control/resources", Message::build<Apply>(
                                                                                         [&](Apply::Builder b) {
                                                                                           b.initResource().setJob(spec);
                                                                                           b.setAgain(true);
                                                                                         },
                                                                                         256)));
    job = text(spec.getName());
    run_id = run_name(job, record->getRevision());
    break;
  }
  if (job.empty()) return invalid(format("{}: declares no job '{}'", a.file, a.job));
  if (a.detach) {
    print(format("job '{}' is wanted; follow it with `falaj runs show {}`", job, job));
    return {};
  }
  FALAJ_ASSIGN(const auto run, follow_run(*client, run_id, [](RunInfo::Reader) {}));
  print(cli.json() ? to_json(*run, JsonStyle::pretty) : describe_run(*run));
  if (text(run->getPhase()) == "finished") return {};
  return failed(format("run {}: {}", text(run->getRun()), text(run->getMessage())));
}

Status do_list(Cli& cli, const TrainingArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto list,
               client->ask<RunList>("training/jobs", Message::build<ListRuns>([&](ListRuns::Builder b) { b.setJob(a.job); })));
  if (cli.json()) {
    print(to_json(*list, JsonStyle::pretty));
    return {};
  }
  std::vector<std::vector<std::string>> rows = {{"RUN", "JOB", "PHASE", "STEP", "LOSS", "AUC", "RECOVERIES", "VERSION"}};
  for (const auto run : list->getRuns()) {
    rows.push_back({std::string(text(run.getRun())), std::string(text(run.getJob())), std::string(text(run.getPhase())),
                    format("{}/{}", run.getTotalStep(), run.getTotalSteps()), format("{:.4f}", run.getLoss()), metric_text(run, "auc"),
                    std::to_string(run.getRecoveries()), run.getVersion() == 0 ? "-" : std::to_string(run.getVersion())});
  }
  print(table(rows));
  return {};
}

Status do_show(Cli& cli, const TrainingArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  auto run = client->ask<RunInfo>("training/jobs", Message::build<GetRun>([&](GetRun::Builder b) { b.setRun(a.run); }));
  if (!run && run.error().code == ErrorCode::not_found)
    run = client->ask<RunInfo>("training/jobs", Message::build<GetRun>([&](GetRun::Builder b) { b.setJob(a.run); }));
  if (!run) return run.error();
  print(cli.json() ? to_json(**run, JsonStyle::pretty) : describe_run(**run));
  return {};
}

}  // namespace

void add_training_commands(CLI::App& app, Cli& cli) {
  const auto a = std::make_shared<TrainingArguments>();
  auto* train = app.add_subcommand("train", "Store a job and follow its run to the end");
  cli.with_client(*train);
  cli.with_key(*train);
  cli.with_output(*train);
  train->add_option("--file,-f", a->file, "TOML file with a [job]")->type_name("FILE")->required();
  train->add_option("--job", a->job, "Which, when it declares several (default: the first)");
  train->add_flag("--detach", a->detach, "Do not wait");
  train->footer("Example:\n  falaj train -f configs/examples/credit.toml --dir ./falaj");
  cli.runs(*train, [&cli, a] { return do_train(cli, *a); });

  auto* runs = app.add_subcommand("runs", "Training runs: list, show");
  runs->require_subcommand(1);
  auto* list = runs->add_subcommand("list", "List runs");
  cli.with_client(*list);
  cli.with_output(*list);
  list->add_option("job", a->job, "Only this job's");
  list->footer("Example:\n  falaj runs list --dir ./falaj");
  cli.runs(*list, [&cli, a] { return do_list(cli, *a); });
  auto* show = runs->add_subcommand("show", "Show one run, or the newest run of a job");
  cli.with_client(*show);
  cli.with_output(*show);
  show->add_option("run", a->run, "Run, or job")->required();
  show->footer("Example:\n  falaj runs show credit --dir ./falaj");
  cli.runs(*show, [&cli, a] { return do_show(cli, *a); });
}

}  // namespace falaj::nodes
