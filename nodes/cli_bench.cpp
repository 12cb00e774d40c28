// bench.
#include "nodes/bench.hpp"
#include "nodes/cli.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {

void add_bench_command(CLI::App& app, Cli& cli) {
  const auto plan = std::make_shared<BenchPlan>();
  auto* bench = app.add_subcommand("bench", "Measure this machine: actors, links, lanes, overload, http, kernels");
  bench->require_subcommand(1);
  const auto part = [&](const char* name, const char* what, Status (*body)(const BenchPlan&)) {
    auto* command = bench->add_subcommand(name, what);
    command->add_flag("--json", plan->json, "One JSON object a line instead of a table");
    command->add_option("--seconds", plan->seconds, "Length of each round")->capture_default_str()->check(CLI::Range(0.01, 600.0));
    command->add_option("--rounds", plan->rounds, "Rounds; their median counts")->capture_default_str()->check(CLI::Range(1, 15));
    command->footer(format("Example:\n  falaj bench {} --json", name));
    cli.runs(*command, [plan, body] { return body(*plan); });
    return command;
  };
  auto* actors = part("actors", "Messages between actors of one process, spawning, memory of an idle actor", bench_actors);
  auto* links = part("links", "Messages between two processes over TLS 1.3, and a bare TLS connection beside them", bench_links);
  const auto against = [&](CLI::App& command, const std::vector<std::string>& peers, std::string_view text) {
    command.add_option("--against", plan->against, format("Also measure these, where they are installed: {}", text))
        ->delimiter(',')
        ->check(CLI::IsMember(peers));
    command.add_flag("--pin", plan->pin, "Each process, of the others too, keeps to a processor of its own");
    command.footer(format("Example:\n  falaj bench {} --json --against erlang,caf", command.get_name()));
  };
  against(*actors, {"erlang", "caf"}, "erlang, caf");
  against(*links, {"erlang", "caf", "ray"}, "erlang, caf, ray");
  part("lanes", "What a question on the control lane waits while bulk fills the link and a flood fills an actor", bench_lanes);
  auto* overload = part("overload", "More requests than an actor of another process can answer, each with a deadline", bench_overload);
  overload->add_option("--times", plan->times, "Requests, as a multiple of what it can answer")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 100.0));
  overload->add_option("--deadline", plan->deadline_ms, "Of each request, in milliseconds")
      ->capture_default_str()
      ->check(CLI::Range(1, 60000));
  overload->footer("Example:\n  falaj bench overload --seconds 60");
  auto* http = part("http", "Requests of the Open Inference Protocol, with 1 and with 16 connections", bench_http);
  http->add_option("--dir,-d", plan->dir, "Ask a running cluster instead of a node of its own")->type_name("DIR");
  http->add_option("--model", plan->model, "With --dir: the deployment to ask");
  http->footer("Example:\n  falaj bench http\n  falaj bench http --dir ./falaj --model credit");
  part("kernels", "Matrix products, predictions and gradients, on one core", bench_kernels);
  auto* other = bench->add_subcommand("other-side", "The second process of `links`")->group("");
  other->add_option("--dir", plan->dir, "")->required();
  other->add_flag("--pin", plan->pin, "");
  cli.runs(*other, [plan] { return serve_bench_links(plan->dir, plan->pin); });
}

}  // namespace falaj::nodes
