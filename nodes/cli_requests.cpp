// predict, call.
#include "messages/catalog.hpp"
#include "messages/json.hpp"
#include "messages/serving.capnp.h"
#include "nodes/cli.hpp"
#include "nodes/tensors.hpp"
#include "runtime/base/format.hpp"
#include "runtime/config.hpp"

namespace falaj::nodes {
namespace {

struct RequestArguments {
  std::string model;
  std::vector<std::string> entities;
  std::string actor;
  std::string message;
  std::string json = "{}";
  std::string node;
  std::uint32_t timeout = 10;
};

Status do_predict(Cli& cli, const RequestArguments& a) {
  FALAJ_ASSIGN(auto* client, cli.client());
  const auto question = Message::build<messages::Predict>([&](messages::Predict::Builder b) {
    b.setModel(a.model);
    auto entities = b.initEntities(static_cast<unsigned>(a.entities.size()));
    for (unsigned i = 0; i < a.entities.size(); ++i) entities.set(i, a.entities[i]);
  });
  FALAJ_ASSIGN(const auto answer, client->ask<messages::PredictReply>("serving/router", question, std::chrono::seconds(a.timeout)));
  if (cli.json()) {
    print(to_json(*answer, JsonStyle::pretty));
    return {};
  }
  std::vector<std::vector<std::string>> rows = {{"ENTITY"}};
  for (const auto output : answer->getOutputs()) rows.front().emplace_back(text(output.getName()));
  for (unsigned i = 0; i < a.entities.size(); ++i) {
    rows.push_back({a.entities[i]});
    for (const auto output : answer->getOutputs()) rows.back().push_back(show_row(output, i, static_cast<unsigned>(a.entities.size())));
  }
  print(table(rows));
  print(format("model '{}', version {}", text(answer->getModel()), answer->getVersion()));
  return {};
}

Status do_call(Cli& cli, const RequestArguments& a) {
  const auto schema = find_message(a.message);
  if (!schema) {
    std::string known;
    for (const auto& one : message_catalog()) known += (known.empty() ? "" : ", ") + std::string(one.getShortDisplayName().cStr());
    return invalid(format("no message '{}'; there are {}", a.message, known));
  }
  FALAJ_ASSIGN(const auto message, message_from_json(*schema, a.json));
  FALAJ_ASSIGN(auto* client, cli.client());
  FALAJ_ASSIGN(const auto answer, client->ask_any(a.actor, message, std::chrono::seconds(a.timeout), a.node));
  FALAJ_ASSIGN(const auto json, message_to_json(answer, true));
  print(json);
  return {};
}

}  // namespace

void add_request_commands(CLI::App& app, Cli& cli) {
  const auto a = std::make_shared<RequestArguments>();
  auto* predict = app.add_subcommand("predict", "Ask a deployed model about entities, by actor message");
  cli.with_client(*predict);
  cli.with_output(*predict);
  predict->add_option("model", a->model, "Deployment")->required();
  predict->add_option("entities", a->entities, "Entity keys")->required();
  predict->add_option("--timeout", a->timeout, "Seconds to wait")->capture_default_str();
  predict->footer("Example:\n  falaj predict credit A0001 A0002 --purpose credit-scoring --dir ./falaj");
  cli.runs(*predict, [&cli, a] { return do_predict(cli, *a); });

  auto* call = app.add_subcommand("call", "Send one message to an actor, as JSON, and print its reply");
  cli.with_client(*call);
  cli.with_key(*call);
  call->add_option("actor", a->actor,
                   "Name of the actor, e.g. control/membership, shard/locks/NAME, or foreign/... of one that a program hosts")
      ->required();
  call->add_option("message", a->message, "Type of the message, e.g. GetStatus")->required();
  call->add_option("json", a->json, "Its fields")->capture_default_str();
  call->add_option(
      "--node", a->node,
      "Node that is asked (default: the control node); it passes on what is for an actor of another that has a name in the directory");
  call->add_option("--timeout", a->timeout, "Seconds to wait")->capture_default_str();
  call->footer(
      "Example:\n  falaj call serving/router Predict '{\"model\": \"credit\", \"entities\": [\"A0001\"]}' --purpose credit-scoring --dir "
      "./falaj");
  cli.runs(*call, [&cli, a] { return do_call(cli, *a); });
}

}  // namespace falaj::nodes
