// init, up, down, node, launcher, principal, revoke, token, join.
#include <unistd.h>

#include <charconv>
#include <cstdio>

#include "messages/control.capnp.h"
#include "messages/json.hpp"
#include "nodes/cli.hpp"
#include "nodes/launcher.hpp"
#include "nodes/node.hpp"
#include "nodes/setup.hpp"
#include "nodes/worker_process.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "runtime/net/http_client.hpp"

namespace falaj::nodes {
namespace {

struct ClusterArguments {
  std::string cluster = "falaj";
  std::string node;
  std::vector<std::string> roles;
  std::string listen;
  std::string http;
  std::string https;
  std::string residency;
  std::string who;
  std::uint64_t seconds = 3600;
  bool bearer = false;
  std::string ttl = "30d";
  std::uint32_t timeout = 60;
  std::string token;
  WorkerPlan worker;
  bool is_worker = false;
  bool by_launcher = false;
};

Result<std::vector<messages::Role>> parse_roles(const std::vector<std::string>& texts) {
  std::vector<messages::Role> roles;
  for (const auto& text : texts) {
    FALAJ_ASSIGN(const auto role, parse_role(text));
    roles.push_back(role);
  }
  return roles;
}

Status do_init(const Cli& cli, const ClusterArguments& a) {
  const auto dir = cli.cluster_dir();
  NodePlan plan;
  plan.name = "control";
  plan.roles = {messages::Role::CONTROL, messages::Role::GATEWAY};
  if (!a.roles.empty()) {
    FALAJ_ASSIGN(plan.roles, parse_roles(a.roles));
  }
  FALAJ_TRY(init_cluster(dir, a.cluster, SystemClock()));
  if (!a.listen.empty()) {
    plan.listen = a.listen;
    plan.http = a.http;
    plan.https = a.https;
    plan.residency = a.residency;
    FALAJ_TRY(add_node(dir, plan, SystemClock()));
  }
  print(format("cluster '{}' made in {}", a.cluster, dir.root.string()));
  print("  keep apart and safe: ca/ca.key and each node's kek; whoever loses a kek loses that node's data");
  print(a.listen.empty() ? format("  next: falaj up --dir {}", cli.dir) : format("  next: falaj node --dir {}/nodes/control", cli.dir));
  return {};
}

Status do_up(const Cli& cli, const ClusterArguments& a) {
  const auto dir = cli.cluster_dir();
  FALAJ_TRY(up(dir, a.cluster, SystemClock(), std::chrono::seconds(a.timeout)));
  FALAJ_ASSIGN(const auto file, read_cluster_file(dir));
  print(format("{} nodes are up; HTTP on {}", file->getNodes().size(), text(file->getHttp())));
  return {};
}

Status do_node(Cli& cli, const ClusterArguments& a) {
  const NodeDir dir{cli.dir};
  FALAJ_ASSIGN(const auto config, read_config(dir));
  log::Options options;
  options.node = text(config->getName());
  const auto level = text(config->getLogLevel());
  options.level = level == "debug"   ? log::Level::debug
                  : level == "warn"  ? log::Level::warn
                  : level == "error" ? log::Level::error
                                     : log::Level::info;
  if (a.is_worker) options.node += format("/worker/{}", a.worker.slot);
  log::configure(options);
  if (a.is_worker) {
    cli.code = run_worker(dir, a.worker);
    return {};
  }
  auto node = Node::start(dir, a.by_launcher);
  if (!node) {
    log::error("node", "cannot start", {{"reason", to_string(node.error())}});
    return node.error();
  }
  cli.code = (*node)->run();
  return {};
}

// "30d", "12h", "45m", "90s"; nothing for "never".
Result<std::optional<Duration>> parse_ttl(std::string_view text) {
  if (text == "never") return std::optional<Duration>{};
  std::uint64_t count = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), count);
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  const std::uint64_t seconds = unit == "d" ? 86400 : unit == "h" ? 3600 : unit == "m" ? 60 : unit == "s" ? 1 : 0;
  constexpr std::uint64_t kMax = 86400ULL * 3660;
  if (code != std::errc{} || seconds == 0 || count == 0 || count > kMax / seconds)
    return invalid(format("--ttl '{}': write 30d, 12h, 45m or 90s (ten years at most), or never", text));
  return std::optional<Duration>(std::chrono::seconds(count * seconds));
}

Status do_bearer(const Cli& cli, const ClusterArguments& a) {
  if (a.who.empty()) return invalid("--bearer needs --principal: whom the token stands for, e.g. service/scoring");
  FALAJ_ASSIGN(const auto ttl, parse_ttl(a.ttl));
  FALAJ_ASSIGN(const auto token, add_bearer_token(cli.dir, a.who, ttl, SystemClock()));
  print(token);
  if (isatty(STDERR_FILENO) == 1) std::fprintf(stderr, "This is the only time it is shown. It is sent as: Authorization: Bearer TOKEN\n");
  return {};
}

Status do_token(Cli& cli, const ClusterArguments& a) {
  if (a.bearer) return do_bearer(cli, a);
  FALAJ_ASSIGN(const auto roles, parse_roles(a.roles));
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto token, client->ask<messages::Token>("control/authority",
                                                              Message::build<messages::CreateToken>([&](messages::CreateToken::Builder b) {
                                                                b.setLifetimeSeconds(a.seconds);
                                                                b.setNode(a.node);
                                                                auto list = b.initRoles(static_cast<unsigned>(roles.size()));
                                                                for (unsigned i = 0; i < roles.size(); ++i) list.set(i, roles[i]);
                                                              })));
  print(cli.json() ? to_json(*token, JsonStyle::pretty) : std::string(text(token->getToken())));
  return {};
}

Status do_revoke(Cli& cli, const ClusterArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  const auto message = Message::build<messages::RevokePrincipal>([&](messages::RevokePrincipal::Builder b) { b.setPrincipal(a.who); });
  FALAJ_ASSIGN(const auto revoked, client->ask<messages::Revoked>("control/authority", message));
  if (cli.json()) {
    print(to_json(*revoked, JsonStyle::pretty));
  } else {
    print(format("certificates of {} that were issued until now count no more", a.who));
  }
  return {};
}

// The new node makes its own key; only the request for a certificate leaves this machine, together with the token.
Status do_join(const Cli& cli, const ClusterArguments& a) {
  FALAJ_ASSIGN(const auto token, net::JoinToken::decode(a.token));
  const NodeDir dir{cli.dir};
  if (fs::exists(dir.config()))
    return error(ErrorCode::conflict, format("{} is a node already; choose another directory", dir.root.string()));
  FALAJ_ASSIGN(const auto id, net::SpiffeId::node(token.cluster, a.node));
  FALAJ_ASSIGN(const auto request, net::make_signing_request(id));
  FALAJ_ASSIGN(const auto gateway, parse_host_port("address in the token", token.control));
  FALAJ_ASSIGN(const auto roles, parse_roles(a.roles));
  const auto message = Message::build<messages::Join>(
      [&](messages::Join::Builder b) {
        b.setToken(a.token);
        b.setNode(a.node);
        b.setCertificateRequest(data(as_bytes(request.csr_pem)));
        auto list = b.initRoles(static_cast<unsigned>(roles.size()));
        for (unsigned i = 0; i < roles.size(); ++i) list.set(i, roles[i]);
      },
      256);
  net::HttpCall call;
  call.host = gateway.host;
  call.port = gateway.port;
  call.trust = net::HttpTrust{token.cluster, {}, token.authority, std::nullopt};
  call.method = "POST";
  call.target = "/v1/join";
  call.body = to_bytes(to_json(*message.view<messages::Join>()));
  FALAJ_ASSIGN(const auto answer, net::http_call(call, SystemClock()));
  if (answer.status != 200) {
    const auto code = answer.status == 403 ? ErrorCode::denied : answer.status == 400 ? ErrorCode::invalid : ErrorCode::failed;
    return error(code, format("the gateway answers {}: {}", answer.status, as_text(answer.body).substr(0, 500)));
  }
  Status read;
  const auto reply = Message::build<messages::Joined>(
      [&](messages::Joined::Builder b) { read = from_json<messages::Joined>(as_text(answer.body), b); }, 1024);
  if (!read) return within("answer of the gateway", read.error());
  const auto joined = reply.view<messages::Joined>();
  NodePlan plan;
  plan.name = a.node;
  plan.roles = roles;
  if (joined->getRoles().size() > 0) {
    plan.roles.clear();
    for (const auto role : joined->getRoles()) plan.roles.push_back(role);
  }
  plan.listen = a.listen.empty() ? "127.0.0.1:0" : a.listen;
  plan.http = a.http;
  plan.https = a.https;
  plan.residency = a.residency;
  plan.control_node = text(joined->getControlNode());
  plan.control_address = text(joined->getControl());
  const net::Credentials credentials{std::string(as_text(bytes(joined->getCertificate()))), request.key_pem};
  FALAJ_TRY(write_node_files(dir, token.cluster, plan, credentials, as_text(bytes(joined->getAuthority())), text(joined->getRights())));
  print(format("node '{}' belongs to cluster '{}'", a.node, token.cluster));
  print(format("  next: falaj node --dir {}", cli.dir));
  return {};
}

void add_join(CLI::App& app, Cli& cli, const std::shared_ptr<ClusterArguments>& a) {
  auto* join = app.add_subcommand("join", "Make this machine a node of a cluster, with a token of `falaj token`");
  join->add_option("token", a->token, "Token: it works once")->required();
  join->add_option("--dir,-d", cli.dir, "Directory of the node, to be made")->type_name("DIR")->required();
  join->add_option("--name", a->node, "Name of the node: a-z, 0-9 and -")->required();
  join->add_option("--listen", a->listen, "HOST:PORT of its links (default: a free port of 127.0.0.1)");
  join->add_option("--roles", a->roles, "Its roles, unless the token gives them");
  join->add_option("--http", a->http, "If it is a gateway: clear text, loopback only, HOST:PORT");
  join->add_option("--https", a->https, "If it is a gateway: TLS, HOST:PORT");
  join->add_option("--residency", a->residency, "Where it stands, e.g. ae");
  join->footer(
      "Example:\n  falaj join falaj-join-v1... --name serving-3 --listen 10.0.0.3:7400 --dir /var/lib/falaj && falaj node --dir "
      "/var/lib/falaj");
  cli.runs(*join, [&cli, a] { return do_join(cli, *a); });
}

void add_init(CLI::App& app, Cli& cli, const std::shared_ptr<ClusterArguments>& a) {
  auto* command = app.add_subcommand("init", "Make a cluster: its certificate authority, its first person (admin), its rights");
  cli.with_dir(*command);
  command->add_option("--cluster", a->cluster, "Name of the cluster")->capture_default_str();
  command->add_option("--listen", a->listen, "Also make the control node, with its links on this HOST:PORT");
  command->add_option("--http", a->http, "Gateway of that node in clear text, loopback only, HOST:PORT");
  command->add_option("--https", a->https, "Gateway of that node with TLS, HOST:PORT; nodes join here");
  command->add_option("--roles", a->roles, "Roles of that node (default: control gateway)");
  command->add_option("--residency", a->residency, "Where that node stands, e.g. ae");
  command->footer("Example:\n  falaj init --dir ./falaj --cluster oasis --listen 10.0.0.1:7400 --https 10.0.0.1:7443");
  cli.runs(*command, [&cli, a] { return do_init(cli, *a); });
}

void add_up_down(CLI::App& app, Cli& cli, const std::shared_ptr<ClusterArguments>& a) {
  auto* up_command =
      app.add_subcommand("up", "Start a local cluster of real processes: control and gateway, 2 compute, 2 features, 2 serving");
  cli.with_dir(*up_command);
  up_command->add_option("--cluster", a->cluster, "Name of the cluster, if it has to be made")->capture_default_str();
  up_command->add_option("--timeout", a->timeout, "Seconds to wait until all nodes are up")->capture_default_str();
  up_command->footer("Example:\n  falaj up --dir ./falaj");
  cli.runs(*up_command, [&cli, a] { return do_up(cli, *a); });

  auto* down_command = app.add_subcommand("down", "End the local cluster of this directory");
  cli.with_dir(*down_command);
  down_command->add_option("--timeout", a->timeout, "Seconds to wait until all processes have ended")->capture_default_str();
  down_command->footer("Example:\n  falaj down --dir ./falaj");
  cli.runs(*down_command, [&cli, a] { return down(cli.cluster_dir(), SystemClock(), std::chrono::seconds(a->timeout)); });
}

void add_node_commands(CLI::App& app, Cli& cli, const std::shared_ptr<ClusterArguments>& a) {
  auto* node = app.add_subcommand("node", "Run one node in the foreground");
  node->add_option("--dir,-d", cli.dir, "Directory of the node: CLUSTER/nodes/NAME")->type_name("DIR")->required();
  auto* slot = node->add_option("--slot", a->worker.slot, "")->group("");
  node->add_option("--job", a->worker.job, "")->group("");
  node->add_option("--run", a->worker.run, "")->group("");
  node->add_option("--index", a->worker.index, "")->group("");
  node->add_flag("--by-launcher", a->by_launcher, "")->group("");
  node->footer("Example:\n  falaj node --dir ./falaj/nodes/control");
  cli.runs(*node, [&cli, a, slot] {
    a->is_worker = slot->count() != 0;
    return do_node(cli, *a);
  });

  auto* launcher =
      app.add_subcommand("launcher", "Run all nodes of a directory, starting dead ones again (what `up` starts in the background)")
          ->group("");
  cli.with_dir(*launcher);
  cli.runs(*launcher, [&cli] {
    log::Options options;
    options.node = "launcher";
    log::configure(options);
    cli.code = run_launcher(cli.cluster_dir());
    return Status{};
  });
}

void add_identity_commands(CLI::App& app, Cli& cli, const std::shared_ptr<ClusterArguments>& a) {
  auto* principal = app.add_subcommand(
      "principal", "Make a certificate for a person, a service or, anew, a node (on the machine that holds the authority)");
  cli.with_dir(*principal);
  principal->add_option("who", a->who, "person/NAME or service/NAME; node/NAME renews the certificate of a node in DIR/nodes")->required();
  principal->footer(
      "Example:\n  falaj principal --dir ./falaj service/billing\nA node that runs shows its new certificate within a second or two; its "
      "connections go on. Rights are given in DIR/rights.toml: a local cluster takes them with "
      "`falaj up`, a node "
      "of another machine from its own copy, when it starts.");
  cli.runs(*principal, [&cli, a] { return add_principal(cli.cluster_dir(), a->who, SystemClock()); });

  auto* revoke = app.add_subcommand("revoke", "Take back the certificates of a node, a person or a service: those issued until now");
  cli.with_client(*revoke);
  cli.with_output(*revoke);
  revoke->add_option("who", a->who, "node/NAME, person/NAME or service/NAME")->required();
  revoke->footer(
      "Example:\n  falaj revoke --dir ./falaj node/compute-1\nEvery node closes its links and refuses new ones. A new certificate, by "
      "`falaj principal` or `falaj join`, is good\nas soon as this command has returned.");
  cli.runs(*revoke, [&cli, a] { return do_revoke(cli, *a); });

  auto* token = app.add_subcommand("token", "Make a token: for one node to join with, once; or, with --bearer, for HTTP requests");
  cli.with_client(*token);
  cli.with_output(*token);
  token->add_option("--node", a->node, "Name the node must take");
  token->add_option("--roles", a->roles, "Roles the node gets");
  token->add_option("--seconds", a->seconds, "Time the node has to join")->capture_default_str();
  auto* bearer = token->add_flag("--bearer", a->bearer, "A bearer token instead, known to the gateways in DIR by its SHA-256");
  token->add_option("--principal", a->who, "Whom it stands for: service/NAME or person/NAME; rights.toml says what they may do")
      ->needs(bearer);
  token->add_option("--ttl", a->ttl, "How long it is taken: 30d, 12h, 45m, 90s or never")->capture_default_str()->needs(bearer);
  token->footer(
      "Examples:\n  falaj token --dir ./falaj --node serving-3 --roles serving\n"
      "  falaj token --dir ./falaj --bearer --principal service/scoring --ttl 30d");
  cli.runs(*token, [&cli, a] { return do_token(cli, *a); });
}

}  // namespace

void add_cluster_commands(CLI::App& app, Cli& cli) {
  const auto arguments = std::make_shared<ClusterArguments>();
  add_init(app, cli, arguments);
  add_up_down(app, cli, arguments);
  add_node_commands(app, cli, arguments);
  add_identity_commands(app, cli, arguments);
  add_join(app, cli, arguments);
}

}  // namespace falaj::nodes
