// model info|run|train|evaluate|quantize|prune|distill|boost|bench: ONNX files on this machine, without a cluster.

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>

#include "kernels/interpret.hpp"
#include "kernels/npy.hpp"
#include "kernels/onnx/onnx.hpp"
#include "nodes/artifacts.hpp"
#include "nodes/cli_model_bench.hpp"
#include "nodes/cli_model_boost.hpp"
#include "nodes/cli_model_distill.hpp"
#include "nodes/cli_model_prune.hpp"
#include "nodes/cli_model_quantize.hpp"
#include "nodes/cli_model_train.hpp"
#include "nodes/model_cache.hpp"
#include "nodes/model_files.hpp"
#include "nodes/run_options.hpp"
#include "runtime/base/clock.hpp"
#include "runtime/base/format.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::nodes {
namespace {

namespace fs = std::filesystem;
using falaj::ErrorCode;
using kernels::DType;
using kernels::Graph;
using kernels::Value;
using kernels::ValueInfo;

struct Arguments {
  std::string model;
  std::vector<std::string> inputs;  // NAME=FILE
  std::string output_dir = ".";
  std::string cache;  // empty: none
  RunOptions how;
  bool json = false;
  bool why = false;
};

// --- info -------------------------------------------------------------------------------------------------------------------

void count_ops(const Graph& graph, std::map<std::string, std::size_t>& ops) {
  for (const auto& node : graph.nodes) {
    ++ops[(node.domain.empty() ? "" : node.domain + ":") + node.op];
    for (const auto& [name, value] : node.attributes) {
      if (const auto* body = std::get_if<kernels::Subgraph>(&value)) count_ops(**body, ops);
    }
  }
}

std::string infos_json(const std::vector<ValueInfo>& infos) {
  std::string out = "[";
  for (const auto& info : infos) {
    std::string shape;
    for (std::size_t d = 0; d < info.shape.rank(); ++d) {
      bool named = d < info.symbols.size() && !info.symbols[d].empty();
      shape += (d > 0 ? "," : "") + (info.shape[d] >= 0 ? std::to_string(info.shape[d]) : named ? net::json_text(info.symbols[d]) : "null");
    }
    std::string kind = info.kind == kernels::ValueKind::tensor     ? "tensor"
                       : info.kind == kernels::ValueKind::sequence ? "sequence"
                                                                   : "optional";
    out += format("{}{{\"name\":{},\"kind\":\"{}\",\"dtype\":\"{}\",\"shape\":{}}}", out.size() > 1 ? "," : "", net::json_text(info.name),
                  kind, to_string(info.dtype), info.has_shape ? "[" + shape + "]" : std::string("null"));
  }
  return out + "]";
}

void print_info_json(const Graph& graph, const std::map<std::string, std::size_t>& ops, std::size_t parameters, std::size_t bytes,
                     const std::string& interpreted) {
  std::string out =
      format("{{\"name\":{},\"inputs\":{},\"outputs\":{},\"nodes\":{},\"parameters\":{},\"parameter_bytes\":{},\"opsets\":{{",
             net::json_text(graph.name), infos_json(graph.inputs), infos_json(graph.outputs), graph.nodes.size(), parameters, bytes);
  bool first = true;
  for (const auto& [domain, version] : graph.opsets) {
    out += format("{}{}:{}", first ? "" : ",", net::json_text(domain.empty() ? "ai.onnx" : domain), version);
    first = false;
  }
  out += "},\"ops\":{";
  first = true;
  for (const auto& [op, count] : ops) {
    out += format("{}{}:{}", first ? "" : ",", net::json_text(op), count);
    first = false;
  }
  out += "},\"metadata\":{";
  first = true;
  for (const auto& [key, value] : graph.metadata) {
    out += format("{}{}:{}", first ? "" : ",", net::json_text(key), net::json_text(value));
    first = false;
  }
  print(out + format("}},\"interpreted\":{}}}", interpreted.empty() ? "null" : net::json_text(interpreted)));
}

Status do_info(const Arguments& a) {
  FALAJ_ASSIGN(const Graph graph, load_model(a.model));
  std::size_t parameters = 0;
  std::size_t bytes = 0;
  for (const auto& [name, value] : graph.initializers) {
    parameters += value.elements();
    bytes += value.bytes();
  }
  std::map<std::string, std::size_t> ops;
  count_ops(graph, ops);
  std::string interpreted;
  std::string why;
  auto compiled = kernels::compile(graph);
  if (!compiled) {
    interpreted = compiled.error().message;
  } else if (auto text = (*compiled)->why(1); text) {
    why = *text;
  } else {
    interpreted = text.error().message;
  }
  if (a.json) {
    print_info_json(graph, ops, parameters, bytes, interpreted);
    return {};
  }
  print(
      format("{}: {} nodes, {} parameters in {} bytes", graph.name.empty() ? a.model : graph.name, graph.nodes.size(), parameters, bytes));
  for (const auto& info : graph.inputs) print(format("  input   {}  {}", info.name, type_text(info)));
  for (const auto& info : graph.outputs) print(format("  output  {}  {}", info.name, type_text(info)));
  for (const auto& [domain, version] : graph.opsets) print(format("  opset   {} {}", domain.empty() ? "ai.onnx" : domain, version));
  std::string list;
  for (const auto& [op, count] : ops) list += format("{}{} {}", list.empty() ? "" : ", ", count, op);
  print(format("  ops     {}", list));
  if (!interpreted.empty()) print(format("  runs    in the interpreter: {}", interpreted));
  if (a.why && !why.empty()) print(why);
  return {};
}

// --- run --------------------------------------------------------------------------------------------------------------------

// Names may hold what paths may not.
std::string file_name(const std::string& name) {
  std::string out = name;
  std::ranges::replace_if(out, [](char c) { return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20; }, '_');
  return out.empty() || out[0] == '.' ? "_" + out : out;
}

struct OutputFile {
  std::string name;
  Bytes content;
};
Status collect(const std::string& name, const Value& value, std::vector<OutputFile>& files) {
  if (value.kind == Value::Kind::tensor) {
    FALAJ_ASSIGN(auto content, kernels::write_npy(value.tensor));
    files.push_back({name, std::move(content)});
  }
  for (std::size_t i = 0; i < value.items.size(); ++i) FALAJ_TRY(collect(format("{}.{}", name, i), value.items[i], files));
  return {};
}

struct Answers {
  std::vector<ValueInfo> infos;
  std::vector<Value> values;
  std::string interpreted;
};
Result<Answers> answer(kernels::Session& session, std::span<const Value> inputs) {
  FALAJ_ASSIGN(auto values, session.run(inputs));
  return Answers{session.graph().outputs, std::move(values), session.interpreted()};
}

// In the cache, if there is one: `entry`.
struct CachePlace {
  ModelCache cache;
  ModelCache::Entry entry;
};

Result<Answers> answer_from_file(const Arguments& a, const std::optional<CachePlace>& place) {
  std::vector<std::string> others;
  FALAJ_ASSIGN(auto graph, load_model(a.model, &others));
  FALAJ_ASSIGN(const auto inputs, read_inputs(graph, a.inputs));
  FALAJ_ASSIGN(auto session, kernels::Session::make(std::move(graph), compile_options(a.how.precision, a.how.threads)));
  auto answers = answer(session, inputs);
  const bool keeps = answers && place && session.compiled() != nullptr && session.interpreted().empty();
  if (keeps) FALAJ_TRY(place->cache.keep(place->entry, {session.compiled(), others}));
  return answers;
}

Result<Answers> answers_of(const Arguments& a) {
  if (a.cache.empty()) return answer_from_file(a, {});
  const SystemClock clock;
  FALAJ_ASSIGN(auto cache, ModelCache::open(a.cache, clock));
  FALAJ_ASSIGN(auto entry, cache.entry(a.model, "run " + a.how.precision));
  FALAJ_ASSIGN(auto kept, cache.find(entry, compile_options(a.how.precision, a.how.threads)));
  if (kept.compiled != nullptr) {
    FALAJ_ASSIGN(const auto inputs, read_inputs(kept.compiled->graph(), a.inputs));
    kernels::Session session(std::move(kept.compiled), a.how.threads);
    auto answers = answer(session, inputs);
    if (answers || answers.error().code != ErrorCode::unimplemented) return answers;
  }
  return answer_from_file(a, CachePlace{std::move(cache), std::move(entry)});
}

Status do_run(Arguments a) {
  kernels::set_flush_denormals();
  FALAJ_ASSIGN(a.how.threads, usable_threads(a.how.threads));
  FALAJ_ASSIGN(const auto answers, answers_of(a));
  const auto& outputs = answers.values;
  // All that is to be written is there before the first file is.
  std::vector<OutputFile> files;
  std::map<std::string, std::string> taken;
  const auto& infos = answers.infos;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const auto name = file_name(infos[i].name);
    const auto [at, fresh] = taken.try_emplace(name, infos[i].name);
    if (!fresh) return invalid(format("outputs '{}' and '{}' would both be written to {}.npy", at->second, infos[i].name, name));
    FALAJ_TRY(collect(name, outputs[i], files));
  }
  std::error_code code;
  fs::create_directories(a.output_dir, code);
  if (code) return failed(format("{}: cannot be made: {}", a.output_dir, code.message()));
  for (const auto& file : files) FALAJ_TRY(write_file((fs::path(a.output_dir) / (file.name + ".npy")).string(), file.content));
  if (!a.json) {
    for (const auto& file : files) print((fs::path(a.output_dir) / (file.name + ".npy")).string());
    return {};
  }
  std::string out = "{\"outputs\":[";
  for (std::size_t i = 0; i < files.size(); ++i)
    out += (i > 0 ? "," : "") + net::json_text((fs::path(a.output_dir) / (files[i].name + ".npy")).string());
  print(out + format("],\"interpreted\":{}}}", answers.interpreted.empty() ? "null" : net::json_text(answers.interpreted)));
  return {};
}

}  // namespace

void add_model_file_commands(CLI::App& app, Cli& cli) {
  const auto a = std::make_shared<Arguments>();
  auto* model = app.add_subcommand(
      "model", "ONNX files on this machine, without a cluster: info, run, train, evaluate, quantize, prune, distill, boost, bench");
  model->require_subcommand(1);
  auto* info = model->add_subcommand("info", "What a model takes, gives and is made of");
  info->add_flag("--why", a->why, "Which kernel runs which node, and why not a faster one");
  info->footer("Example:\n  falaj model info resnet18.onnx");
  cli.runs(*info, [a] { return do_info(*a); });
  auto* run = model->add_subcommand("run", "Run a model on arrays or CSV; writes one .npy for each output");
  run->add_option("--input,-i", a->inputs,
                  "NAME=FILE.npy; several times for several inputs, or for the items of a sequence. bfloat16 is read from uint16 bits, "
                  "float8 from uint8 bits, 4-bit integers from int8 or uint8 with one value a byte. NAME=FILE.npz: its array NAME, or "
                  "FILE.npz:ENTRY; NAME=FILE.csv: all columns of numbers, or FILE.csv:COLUMN,COLUMN")
      ->type_name("NAME=FILE");
  run->add_option("--output-dir,-O", a->output_dir, "Folder of the results (made if it is not there)")
      ->capture_default_str()
      ->type_name("DIR");
  add_run_options(*run, a->how);
  run->add_option("--cache", a->cache, "Keep the compiled model in this folder, and take it from there the next time")->type_name("DIR");
  run->footer("Example:\n  falaj model run credit.onnx --input age=age.npy --input income=income.npy --output-dir out");
  cli.runs(*run, [a] { return do_run(*a); });
  for (auto* command : {info, run}) {
    command->add_option("model", a->model, "ONNX file")->required()->type_name("FILE");
    command->add_flag("--json", a->json, "Print JSON");
  }
  add_model_training_commands(*model, cli);
  add_model_quantize_command(*model, cli);
  add_model_prune_command(*model, cli);
  add_model_distill_command(*model, cli);
  add_model_boost_command(*model, cli);
  add_model_bench_command(*model, cli);
}

}  // namespace falaj::nodes
