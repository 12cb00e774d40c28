// trace: what the actors of a running cluster do, for a while, as a file to look at.
#include <algorithm>

#include "messages/control.capnp.h"
#include "nodes/artifacts.hpp"
#include "nodes/cli.hpp"
#include "nodes/trace_file.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

using namespace messages;
using namespace std::chrono_literals;

struct TraceArguments {
  std::string file = "trace.json";
  std::vector<std::string> nodes;
  double seconds = 2;
  std::uint32_t spans = 100'000;
};

constexpr auto kPatience = 10s;

std::string agent_of(const std::string& node) { return "node/agent/" + node; }

Result<std::vector<std::string>> nodes_up(Client& client, const std::vector<std::string>& wanted) {
  FALAJ_ASSIGN(const auto status, client.ask<ClusterStatus>("control/membership", Message::build<GetStatus>()));
  std::vector<std::string> up;
  for (const auto node : status->getView().getNodes()) {
    if (node.getUp()) up.emplace_back(text(node.getName()));
  }
  for (const auto& name : wanted) {
    if (std::ranges::find(up, name) == up.end())
      return error(ErrorCode::not_found, format("no node '{}' is up; falaj status shows them", name));
  }
  return wanted.empty() ? up : wanted;
}

// Half the round trip is taken for the way of the answer, as NTP does.
Result<TracedNode> begin(Client& client, const std::string& node, const TraceArguments& a) {
  const auto message = Message::build<StartTrace>([&](StartTrace::Builder b) {
    b.setForMs(static_cast<std::uint32_t>(a.seconds * 1000) + 1000);  // the nodes do not begin at once; we end it ourselves
    b.setSpansMax(a.spans);
  });
  const auto before = client.clock().wall().unix_ns;
  FALAJ_ASSIGN(const auto answer, client.ask<TraceClock>(agent_of(node), message, kPatience, node));
  const auto after = client.clock().wall().unix_ns;
  return TracedNode{node, answer->getWallNs() - (before + (after - before) / 2), {}};
}

Status fetch(Client& client, TracedNode& node) {
  for (;;) {
    FALAJ_ASSIGN(auto page, client.ask<Spans>(agent_of(node.name), Message::build<GetSpans>(), kPatience, node.name));
    const bool more = page->getLeft() != 0 && page->getSpans().size() != 0;
    node.pages.push_back(std::move(page));
    if (!more) return {};
  }
}

Status do_trace(Cli& cli, const TraceArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto names, nodes_up(*client, a.nodes));
  std::vector<TracedNode> nodes;
  for (const auto& name : names) {
    FALAJ_ASSIGN(auto node, begin(*client, name, a));
    nodes.push_back(std::move(node));
  }
  client->pause(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(a.seconds)));
  for (const auto& name : names) FALAJ_TRY(client->ask<TraceClock>(agent_of(name), Message::build<StopTrace>(), kPatience, name));
  std::uint64_t dropped = 0;
  for (auto& node : nodes) {
    FALAJ_TRY(fetch(*client, node));
    dropped += node.pages.back()->getDropped();
  }
  const auto file = trace_file(nodes);
  FALAJ_TRY(write_file(a.file, as_bytes(file.json)));
  print(format("{} messages on {} nodes, {} traces over several actors: {}", file.spans, nodes.size(), file.traces, a.file));
  if (dropped != 0) print(format("{} more had no room: raise --spans, or look for a shorter time", dropped));
  print("open it at https://ui.perfetto.dev");
  return {};
}

}  // namespace

void add_trace_command(CLI::App& app, Cli& cli) {
  const auto a = std::make_shared<TraceArguments>();
  auto* trace = app.add_subcommand("trace", "Record what the actors of a running cluster do, as a file for Perfetto");
  cli.with_client(*trace);
  trace->add_option("--seconds", a->seconds, "How long")->capture_default_str()->check(CLI::Range(0.1, 59.0));
  trace->add_option("--out", a->file, "File to write")->type_name("FILE")->capture_default_str();
  trace->add_option("--node", a->nodes, "Only these nodes; may be given several times");
  trace->add_option("--spans", a->spans, "Messages recorded on a node at most")->capture_default_str()->check(CLI::Range(1, 200'000));
  trace->footer(
      "Example:\n  falaj trace --dir ./falaj --seconds 2 --out trace.json\nA process for each node, a thread for each actor, a slice for "
      "each "
      "message handled with its wait in the mailbox, and an arrow\nalong each W3C trace (HTTP requests carry one, see the traceparent "
      "header). "
      "Contents of messages are not recorded.");
  cli.runs(*trace, [&cli, a] { return do_trace(cli, *a); });
}

}  // namespace falaj::nodes
