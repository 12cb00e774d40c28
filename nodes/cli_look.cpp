// status, top, actors, audit, store, version.
#include <csignal>
#include <ctime>

#include "messages/control.capnp.h"
#include "messages/governance.capnp.h"
#include "messages/json.hpp"
#include "messages/training.capnp.h"
#include "nodes/cli.hpp"
#include "nodes/training_view.hpp"
#include "nodes/version.hpp"
#include "runtime/base/format.hpp"
#include "storage/audit_log.hpp"
#include "storage/store_tools.hpp"

namespace falaj::nodes {
namespace {

using namespace messages;
using falaj::ErrorCode;

struct LookArguments {
  std::string path;
  std::string key;
  std::string node;
  std::uint32_t limit = 50;
  std::uint32_t interval_ms = 1000;
  std::uint32_t times = 0;
  std::string shell;
};

std::string roles_text(capnp::List<Role>::Reader roles) {
  std::string out;
  for (const auto role : roles) out += (out.empty() ? "" : ",") + role_name(role);
  return out;
}

std::string state_of(NodeInfo::Reader node) { return node.getUp() ? node.getDraining() ? "leaving" : "up" : "down"; }

struct Picture {
  View<ClusterStatus> status;
  std::vector<View<NodeStats>> stats;
  View<ResourceList> resources;
  View<RunList> runs;
};

Result<Picture> look(Client& client) {
  FALAJ_ASSIGN(auto status, client.ask<ClusterStatus>("control/membership", Message::build<GetStatus>()));
  FALAJ_ASSIGN(auto resources, client.ask<ResourceList>("control/resources", Message::build<ListResources>()));
  FALAJ_ASSIGN(auto runs, client.ask<RunList>("training/jobs", Message::build<ListRuns>()));
  std::vector<View<NodeStats>> stats;
  for (const auto node : status->getView().getNodes()) {
    if (!node.getUp()) continue;
    const std::string name(text(node.getName()));
    auto one = client.ask<NodeStats>("node/agent/" + name, Message::build<GetNodeStats>(), std::chrono::seconds(1), name);
    if (one) stats.push_back(std::move(one).value());
  }
  return Picture{std::move(status), std::move(stats), std::move(resources), std::move(runs)};
}

// Handled messages by node at the last look, for rates.
struct Rates {
  std::map<std::string, std::uint64_t> handled;
  std::map<std::string, std::uint64_t> requests;
  Instant when;
};

std::string show(const Picture& picture, const Rates& before, Instant now) {
  const double seconds = before.when == Instant{} ? 0 : static_cast<double>((now - before.when).count()) * 1e-9;
  const auto rate = [&](const std::map<std::string, std::uint64_t>& last, const std::string& key, std::uint64_t value) {
    const auto found = last.find(key);
    return seconds > 0 && found != last.end() && value >= found->second
               ? format("{:.0f}", static_cast<double>(value - found->second) / seconds)
               : std::string("-");
  };
  std::vector<std::vector<std::string>> nodes = {
      {"NODE", "ROLES", "STATE", "PID", "ADDRESS", "ACTORS", "MAILBOX", "MSG/S", "DEAD", "MEMORY"}};
  for (const auto node : picture.status->getView().getNodes()) {
    const std::string name(text(node.getName()));
    std::vector<std::string> row = {name, roles_text(node.getRoles()), state_of(node), std::to_string(node.getPid()),
                                    std::string(text(node.getAddress()))};
    for (const auto& stats : picture.stats) {
      if (text(stats->getNode()) != name) continue;
      row.insert(row.end(),
                 {std::to_string(stats->getActors()), std::to_string(stats->getMailbox()), rate(before.handled, name, stats->getHandled()),
                  std::to_string(stats->getDeadLetters()), format("{:.0f} MB", static_cast<double>(stats->getResidentBytes()) / 1e6)});
    }
    nodes.push_back(std::move(row));
  }
  std::string out = table(nodes);
  std::vector<std::vector<std::string>> deployments = {{"DEPLOYMENT", "PHASE", "READY", "REQUESTS", "REQ/S", "FAILED", "P50", "P99", ""}};
  for (const auto record : picture.resources->getRecords()) {
    if (!record.getResource().isDeployment()) continue;
    const std::string name(text(record.getResource().getDeployment().getName()));
    const auto status = record.getStatus();
    std::vector<std::string> row = {
        name, std::string(text(status.getPhase())),  format("{}/{}", status.getReady(), status.getWanted()), "0", "-", "0", "-",
        "-",  std::string(text(status.getMessage()))};
    for (const auto& stats : picture.stats) {
      for (const auto d : stats->getRequests()) {
        if (text(d.getDeployment()) != name) continue;
        row[3] = std::to_string(d.getRequests());
        row[4] = rate(before.requests, name, d.getRequests());
        row[5] = std::to_string(d.getFailed());
        row[6] = format("{:.0f} us", d.getP50Us());
        row[7] = format("{:.0f} us", d.getP99Us());
      }
    }
    deployments.push_back(std::move(row));
  }
  if (deployments.size() > 1) out += "\n\n" + table(deployments);
  std::vector<std::vector<std::string>> runs = {{"RUN", "JOB", "PHASE", "STEP", "LOSS", "AUC", "RECOVERIES"}};
  for (const auto run : picture.runs->getRuns()) {
    runs.push_back({std::string(text(run.getRun())), std::string(text(run.getJob())), std::string(text(run.getPhase())),
                    format("{}/{}", run.getTotalStep(), run.getTotalSteps()), format("{:.4f}", run.getLoss()), metric_text(run, "auc"),
                    std::to_string(run.getRecoveries())});
  }
  if (runs.size() > 1) out += "\n\n" + table(runs);
  return out;
}

Rates rates_of(const Picture& picture, Instant now) {
  Rates rates;
  rates.when = now;
  for (const auto& stats : picture.stats) {
    rates.handled[std::string(text(stats->getNode()))] = stats->getHandled();
    for (const auto d : stats->getRequests()) rates.requests[std::string(text(d.getDeployment()))] = d.getRequests();
  }
  return rates;
}

Status do_status(Cli& cli, const LookArguments&) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto picture, look(*client));
  if (!cli.json()) {
    const auto view = picture.status->getView();
    print(format("cluster '{}', epoch {}\n", text(view.getCluster()), view.getEpoch()));
    if (!view.getDeciding()) {
      print(format("control sees fewer than half of its {} nodes and places nothing anew: bring them back, or `falaj forget` them\n",
                   view.getKnown()));
    }
    print(show(picture, {}, client->clock().now()));
    return {};
  }
  const auto whole = Message::build<ClusterStatus>(
      [&](ClusterStatus::Builder b) {
        b.setView(picture.status->getView());
        b.setResources(picture.resources->getRecords());
        auto nodes = b.initNodes(static_cast<unsigned>(picture.stats.size()));
        for (unsigned i = 0; i < picture.stats.size(); ++i) nodes.setWithCaveats(i, *picture.stats[i]);
      },
      2048);
  print(to_json(*whole.view<ClusterStatus>(), JsonStyle::pretty));
  return {};
}

// On a terminal the screen is drawn anew each time; elsewhere one block of lines follows the other. Ends with Ctrl-C or after `times`.
Status do_top(Cli& cli, const LookArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  Rates rates;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  const timespec interval{static_cast<time_t>(a.interval_ms / 1000), static_cast<long>(a.interval_ms % 1000) * 1'000'000};
  for (std::uint32_t i = 0; a.times == 0 || i < a.times; ++i) {
    if (i > 0 && sigtimedwait(&set, nullptr, &interval) > 0) return {};
    const auto picture = look(*client);
    if (!picture) {
      print(format("control does not answer: {}", picture.error().message));
      continue;
    }
    const auto now = client->clock().now();
    print((output_is_terminal() ? "\033[H\033[2J" : "") + show(*picture, rates, now));
    rates = rates_of(*picture, now);
  }
  return {};
}

Status do_actors(Cli& cli, const LookArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  const std::string node = a.node.empty() ? std::string(text(client->cluster().getControlNode())) : a.node;
  FALAJ_ASSIGN(const auto tree, client->ask<ActorTree>("node/agent/" + node, Message::build<GetActors>(), std::chrono::seconds(5), node));
  if (cli.json()) {
    print(to_json(*tree, JsonStyle::pretty));
    return {};
  }
  std::vector<std::vector<std::string>> rows = {{"ID", "PARENT", "TYPE", "NAME", "RESTARTS", "MAILBOX", "HANDLED"}};
  for (const auto actor : tree->getActors()) {
    rows.push_back({std::to_string(actor.getId()), std::to_string(actor.getParent()), std::string(text(actor.getType())),
                    std::string(text(actor.getName())), std::to_string(actor.getRestarts()), std::to_string(actor.getMailbox()),
                    std::to_string(actor.getHandled())});
  }
  print(table(rows));
  for (const auto letter : tree->getDeadLetters()) print(format("dead letter to {}: {}", text(letter.getTo()), text(letter.getReason())));
  return {};
}

fs::path audit_dir(const Cli& cli, const LookArguments& a) {
  return a.path.empty() ? cli.cluster_dir().node("control").audit() : fs::path(a.path);
}

Status do_audit_verify(Cli& cli, const LookArguments& a) {
  FALAJ_ASSIGN(const auto verdict, storage::verify_audit(audit_dir(cli, a), a.key.empty() ? std::nullopt : std::optional(a.key)));
  if (cli.json()) {
    print(
        format("{{\"good\":{},\"records\":{},\"entries\":{},\"segments\":{},\"heads\":{},\"after_last_head\":{},\"public_key\":\"{}\","
               "\"bad_segment\":\"{}\",\"bad_index\":{},\"bad_offset\":{}}}",
               verdict.good, verdict.records, verdict.entries, verdict.segments, verdict.heads, verdict.after_last_head, verdict.public_key,
               verdict.bad_segment, verdict.bad_index, verdict.bad_offset));
  }
  if (!verdict.good)
    return error(ErrorCode::corrupt,
                 format("{}, entry {}, offset {}: {}", verdict.bad_segment, verdict.bad_index, verdict.bad_offset, verdict.what));
  if (!cli.json())
    print(format("{} entries in {} segments are whole, {} signed heads, {} records after the last; key {}", verdict.entries,
                 verdict.segments, verdict.heads, verdict.after_last_head, verdict.public_key));
  return {};
}

Status do_audit_show(Cli& cli, const LookArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto first,
               client->ask<AuditPage>("governance/log", Message::build<ShowAudit>([](ShowAudit::Builder b) { b.setLimit(1); })));
  const auto after = first->getTotal() > a.limit ? first->getTotal() - a.limit : 0;
  FALAJ_ASSIGN(const auto page, client->ask<AuditPage>("governance/log", Message::build<ShowAudit>([&](ShowAudit::Builder b) {
                                                         b.setAfter(after);
                                                         b.setLimit(a.limit);
                                                       })));
  if (cli.json()) {
    print(to_json(*page, JsonStyle::pretty));
    return {};
  }
  std::vector<std::vector<std::string>> rows = {{"TIME", "PRINCIPAL", "VERB", "TARGET", "PURPOSE", "OUTCOME", "REASON"}};
  for (const auto entry : page->getEntries()) {
    const auto seconds = static_cast<std::time_t>(entry.getTimeNs() / 1'000'000'000);
    char when[32] = {};
    std::tm parts{};
    std::strftime(when, sizeof when, "%FT%TZ", gmtime_r(&seconds, &parts));
    rows.push_back({when, std::string(text(entry.getPrincipal())), std::string(text(entry.getVerb())), std::string(text(entry.getTarget())),
                    std::string(text(entry.getPurpose())), entry.getAllowed() ? "allowed" : "refused",
                    std::string(text(entry.getReason()))});
  }
  print(table(rows));
  return {};
}

Result<std::unique_ptr<storage::FileKeyProvider>> keys_for(const LookArguments& a) {
  if (a.key.empty()) return std::unique_ptr<storage::FileKeyProvider>();
  return storage::FileKeyProvider::open(a.key);
}

Status do_store_check(Cli&, const LookArguments& a) {
  FALAJ_ASSIGN(const auto keys, keys_for(a));
  FALAJ_ASSIGN(const auto report, storage::check(a.path, keys.get()));
  print(format("{}: {} store, format {}", a.path, storage::to_string(report.kind), report.format_version));
  for (const auto& count : report.counts) print(format("  {}: {}", count.name, count.count));
  if (!report.good) return error(ErrorCode::corrupt, format("{}: {}", a.path, report.first_bad));
  return {};
}

Status do_store_dump(Cli&, const LookArguments& a) {
  FALAJ_ASSIGN(const auto keys, keys_for(a));
  return storage::dump(a.path, keys.get(), [](std::string_view line) { print(line); });
}

void add_views(CLI::App& app, Cli& cli, const std::shared_ptr<LookArguments>& a) {
  auto* status = app.add_subcommand("status", "Nodes, deployments and runs");
  cli.with_client(*status);
  cli.with_output(*status);
  status->footer("Example:\n  falaj status --dir ./falaj\n  falaj status -o json --dir ./falaj");
  cli.runs(*status, [&cli, a] { return do_status(cli, *a); });

  auto* top = app.add_subcommand("top", "The same, live: rates, queues, latencies");
  cli.with_client(*top);
  top->add_option("--interval-ms", a->interval_ms, "Between two looks")->capture_default_str()->check(CLI::Range(100, 3600000));
  top->add_option("--times", a->times, "Looks; 0: until Ctrl-C");
  top->footer("Example:\n  falaj top --dir ./falaj");
  cli.runs(*top, [&cli, a] { return do_top(cli, *a); });

  auto* actors = app.add_subcommand("actors", "The actor tree of a node, and its dead letters");
  cli.with_client(*actors);
  cli.with_output(*actors);
  actors->add_option("node", a->node, "Node (default: the control node)");
  actors->footer("Example:\n  falaj actors serving-1 --dir ./falaj");
  cli.runs(*actors, [&cli, a] { return do_actors(cli, *a); });

  auto* version = app.add_subcommand("version", "Print the version");
  cli.runs(*version, [] {
    print(kVersion);
    return Status{};
  });
}

void add_proofs(CLI::App& app, Cli& cli, const std::shared_ptr<LookArguments>& a) {
  auto* audit = app.add_subcommand("audit", "The audit log: verify, show");
  audit->require_subcommand(1);
  auto* verify = audit->add_subcommand("verify", "Prove the log, or name its first bad entry (exit code 8)");
  cli.with_dir(*verify);
  cli.with_output(*verify);
  verify->add_option("--path", a->path, "Directory of the log (default: the control node's)")->type_name("DIR");
  verify->add_option("--key", a->key, "Public key that must have signed it, hexadecimal");
  verify->footer("Example:\n  falaj audit verify --dir ./falaj");
  cli.runs(*verify, [&cli, a] { return do_audit_verify(cli, *a); });
  auto* shown = audit->add_subcommand("show", "Show the newest entries");
  cli.with_client(*shown);
  cli.with_output(*shown);
  shown->add_option("--limit", a->limit, "Entries")->capture_default_str();
  shown->footer("Example:\n  falaj audit show --limit 20 --dir ./falaj");
  cli.runs(*shown, [&cli, a] { return do_audit_show(cli, *a); });

  auto* store = app.add_subcommand("store", "Stores on disk: check, dump");
  store->require_subcommand(1);
  const auto verb = [&](const char* name, const char* what, Status (*body)(Cli&, const LookArguments&)) {
    auto* command = store->add_subcommand(name, what);
    command->add_option("path", a->path, "Directory of the store")->type_name("DIR")->required();
    command->add_option("--kek", a->key, "The node's key file, to open what is sealed")->type_name("FILE");
    command->footer(format("Example:\n  falaj store {} ./falaj/nodes/features-1/store/features --kek ./falaj/nodes/features-1/kek", name));
    cli.runs(*command, [&cli, a, body] { return body(cli, *a); });
  };
  verb("check", "Read all of it and name the first bad key", do_store_check);
  verb("dump", "Print one line for each thing stored", do_store_dump);
}

}  // namespace

void add_look_commands(CLI::App& app, Cli& cli) {
  const auto a = std::make_shared<LookArguments>();
  add_views(app, cli, a);
  add_proofs(app, cli, a);
}

}  // namespace falaj::nodes
