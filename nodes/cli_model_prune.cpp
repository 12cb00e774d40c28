// model prune: zeros for small weights, or whole channels taken out, then training of what is left, then a measurement that decides.

#include "nodes/cli_model_prune.hpp"

#include "kernels/compress/prune.hpp"
#include "nodes/model_files.hpp"
#include "nodes/model_offer.hpp"
#include "nodes/progress.hpp"
#include "runtime/base/format.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::nodes {
namespace {

using kernels::Graph;

struct Arguments : TrainingArguments {
  std::string method = "magnitude";
  double amount = 0.5;
  std::string scope = "layer";
  std::vector<std::string> keep;
  OfferArguments offer;
};

// What was pruned, before the training that follows.
struct Pruned {
  Graph graph;
  std::vector<kernels::WeightMask> masks;  // magnitude
  kernels::ChannelReport channels;         // of the other
};

Result<Pruned> prune(const Arguments& a, const Graph& graph) {
  const kernels::PruneSpec spec{
      .amount = a.amount, .scope = a.scope == "global" ? kernels::PruneScope::global : kernels::PruneScope::layer, .keep = a.keep};
  Pruned out{.graph = graph, .masks = {}, .channels = {}};
  if (a.method == "channels") {
    FALAJ_ASSIGN(out.channels, kernels::prune_channels(out.graph, spec));
    return out;
  }
  FALAJ_ASSIGN(out.masks, kernels::magnitude_masks(graph, spec));
  FALAJ_TRY(kernels::apply_masks(out.graph, out.masks));
  return out;
}

// Trains what is left; what was made zero stays zero.
Status fine_tune(const Arguments& a, TrainingData data, Pruned& pruned, TrainingLog& log) {
  FALAJ_ASSIGN(const auto spec, steps_spec(a));
  data.graph = pruned.graph;
  FALAJ_ASSIGN(auto target, train_target(a, data.objective));
  FALAJ_ASSIGN(auto trainer, kernels::Trainer::make(std::move(data.graph), std::move(target)));
  FALAJ_ASSIGN(const kernels::DataSet rows, trainer->prepare(std::move(data.inputs), data.labels));
  std::vector<std::size_t> zeros;
  for (const auto& mask : pruned.masks) {
    for (const auto& parameter : trainer->layout()) {
      if (parameter.name != mask.name) continue;
      for (std::size_t i = 0; i < mask.kept.size(); ++i) {
        if (mask.kept[i] == 0) zeros.push_back(parameter.offset + i);
      }
    }
  }
  Progress progress("training", spec.steps);
  const auto trained = kernels::train_steps(*trainer, rows, spec, [&](const kernels::StepReport& report) -> Status {
    const auto parameters = trainer->parameters();
    for (const std::size_t at : zeros) parameters[at] = 0;
    log.add(report);
    progress.at(report.step);
    return {};
  });
  progress.end();
  FALAJ_TRY(trained);
  pruned.graph = trainer->export_graph();
  return log.write(a.log);
}

struct Layers {
  std::string json, table;
};
Layers describe_layers(const Arguments& a, const Pruned& pruned) {
  Layers out{"[", {}};
  std::vector<std::vector<std::string>> rows;
  if (a.method == "channels") {
    rows.push_back({"LAYER", "CHANNELS", "KEPT", "WHY WHOLE"});
    for (const auto& layer : pruned.channels.pruned) {
      out.json += format("{}{{\"name\":{},\"channels\":{},\"kept\":{}}}", out.json.size() > 1 ? "," : "", net::json_text(layer.name),
                         layer.channels, layer.kept);
      rows.push_back({layer.name, std::to_string(layer.channels), std::to_string(layer.kept), ""});
    }
    for (const auto& layer : pruned.channels.whole) {
      out.json += format("{}{{\"name\":{},\"whole\":{}}}", out.json.size() > 1 ? "," : "", net::json_text(layer.name),
                         net::json_text(layer.reason));
      rows.push_back({layer.name, "", "", layer.reason});
    }
  } else {
    rows.push_back({"LAYER", "SHAPE", "WEIGHTS", "ZEROS", "SPARSITY"});
    for (const auto& layer : kernels::layer_weights(pruned.graph)) {
      out.json += format("{}{{\"name\":{},\"weights\":{},\"zeros\":{},\"sparsity\":{:.6g}}}", out.json.size() > 1 ? "," : "",
                         net::json_text(layer.name), layer.elements, layer.zeros, layer.sparsity());
      rows.push_back({layer.name, to_string(layer.shape), std::to_string(layer.elements), std::to_string(layer.zeros),
                      format("{:.1f} %", 100 * layer.sparsity())});
    }
  }
  out.json += "]";
  out.table = table(rows);
  return out;
}

Status do_prune(Arguments a) {
  if (a.offer.want.empty()) a.offer.want = a.method == "channels" ? "faster" : "packed";
  FALAJ_TRY(check(a.offer));
  for (const auto* path : {&a.log, &a.output}) FALAJ_TRY(check_writable(*path));
  if (a.steps > 0) FALAJ_TRY(steps_spec(a));
  FALAJ_ASSIGN(TrainingData data, read_training_data(a));
  FALAJ_ASSIGN(TrainingData test, read_test_data(a.offer, a));
  const Graph whole = data.graph;
  FALAJ_ASSIGN(Pruned pruned, prune(a, whole));
  TrainingLog log;
  const auto declared = data.declared;
  if (a.steps > 0) FALAJ_TRY(fine_tune(a, std::move(data), pruned, log));
  pruned.graph.inputs = declared;  // sizes that the arrays filled in are open again
  FALAJ_ASSIGN(const auto measured, compare_models({whole, test, a.logits}, {pruned.graph, test, a.logits}, a, a.offer));
  const auto layers = describe_layers(a, pruned);
  const auto json = format("{{\"method\":\"{}\",\"amount\":{:g},\"steps\":{},{}\"layers\":{},{},\"output\":{}}}", a.method, a.amount,
                           a.steps, a.steps > 0 ? log.change_json() + "," : "", layers.json, offer_json(measured, a.offer),
                           measured.offered ? net::json_text(a.output) : "null");
  // The report goes where the model goes.
  pruned.graph.metadata["falaj.compression"] = json;
  return hand_over(json, (a.steps > 0 ? log.change() + "\n" : "") + layers.table + "\n" + offer_table(measured), measured, a.offer, a,
                   pruned.graph);
}

}  // namespace

void add_model_prune_command(CLI::App& model, Cli& cli) {
  const auto a = std::make_shared<Arguments>();
  auto* command =
      model.add_subcommand("prune", "Make a model smaller: zeros for small weights, or fewer channels; measured before it is offered");
  add_data_options(*command, *a);
  command
      ->add_option("--method", a->method,
                   "magnitude: the smallest weights become zeros; channels: the weakest channels and neurons are removed")
      ->capture_default_str()
      ->check(CLI::IsMember({"magnitude", "channels"}));
  command->add_option("--amount", a->amount, "Share of the weights, or of each layer's channels, that goes")
      ->capture_default_str()
      ->type_name("X");
  command->add_option("--scope", a->scope, "magnitude: the share is that of each layer, or of all weights together (global)")
      ->capture_default_str()
      ->check(CLI::IsMember({"layer", "global"}));
  command->add_option("--keep", a->keep, "Weights that are left alone; a name may end in *")->type_name("NAME");
  add_step_options(*command, *a);
  add_offer_options(*command, a->offer);
  command->add_option("--output,-o", a->output, "The pruned model, .onnx: written only when it is offered")->required()->type_name("FILE");
  add_external_data_option(*command, a->external_data);
  command->footer(
      "With --steps K what is left is trained as by `falaj model train`. Ends with exit code 6 when the model is not offered.\nExample:\n  "
      "falaj model prune net.onnx --method channels --amount 0.5 --input x=x.npy --labels y.npy --steps 500 --budget 0.01 -o small.onnx");
  cli.runs(*command, [a] { return do_prune(*a); });
}

}  // namespace falaj::nodes
