// `falaj bench http`: requests of the Open Inference Protocol with JSON tensors, one row each, closed loop. Without --dir a node of its
// own, in this process: gateway, router and one replica of a made-up model with 20 columns.
#include <unistd.h>

#include <fstream>

#include "kernels/onnx/onnx.hpp"
#include "messages/control.capnp.h"
#include "messages/registry.capnp.h"
#include "messages/serving.capnp.h"
#include "nodes/artifacts.hpp"
#include "nodes/bench.hpp"
#include "nodes/bench_models.hpp"
#include "nodes/client.hpp"
#include "nodes/deployments.hpp"
#include "nodes/http_load.hpp"
#include "nodes/node.hpp"
#include "nodes/setup.hpp"
#include "runtime/base/format.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::nodes {
namespace {

using namespace messages;
using falaj::ErrorCode;

constexpr std::size_t kBodies = 64;

// What is asked, and whom.
struct Aim {
  HostPort gateway;
  std::string model = "bench";
  std::vector<std::string> bodies;
};

class OwnNode {
 public:
  explicit OwnNode(const Clock& clock) : clock_(clock) {}
  ~OwnNode() {
    client_.reset();
    node_.reset();
    std::error_code none;
    if (!dir_.root.empty()) fs::remove_all(dir_.root, none);
  }
  OwnNode(const OwnNode&) = delete;
  OwnNode& operator=(const OwnNode&) = delete;

  Result<Aim> start() {
    std::string name = (fs::temp_directory_path() / "falaj-bench.XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) return failed("cannot make a temporary directory");
    dir_.root = name;
    FALAJ_TRY(init_cluster(dir_, "bench", clock_));
    FALAJ_ASSIGN(const auto ports, free_ports(2));
    NodePlan plan;
    plan.name = "control";
    plan.roles = {Role::CONTROL, Role::GATEWAY, Role::SERVING};
    plan.listen = format("127.0.0.1:{}", ports[0]);
    plan.http = format("127.0.0.1:{}", ports[1]);
    FALAJ_TRY(add_node(dir_, plan, clock_));
    FALAJ_ASSIGN(node_, Node::start(dir_.node("control")));
    const auto file = Message::build<ClusterFile>([&](ClusterFile::Builder b) {
      b.setCluster("bench");
      b.setHttp(plan.http);
      b.setControlNode("control");
      b.setControlAddress(plan.listen);
    });
    FALAJ_TRY(write_cluster_file(dir_, *file.view<ClusterFile>()));
    ClientOptions options;
    options.dir = dir_;
    FALAJ_ASSIGN(client_, Client::connect(options));
    FALAJ_ASSIGN(auto model, make_bench_model(kBodies));
    FALAJ_TRY(deploy(model.graph));
    Aim aim;
    FALAJ_ASSIGN(aim.gateway, parse_host_port("http", plan.http));
    for (std::size_t row = 0; row < kBodies; ++row) aim.bodies.push_back(request_body(model.table, row));
    return aim;
  }

 private:
  Status deploy(const kernels::Graph& graph) {
    FALAJ_ASSIGN(const auto onnx, kernels::export_onnx(graph));
    FALAJ_ASSIGN(const auto digest, put_artifact(*client_, onnx, "application/onnx", "default"));
    FALAJ_ASSIGN(const auto info,
                 client_->ask<ModelVersionInfo>("mlops/registry", Message::build<RegisterVersion>([&](RegisterVersion::Builder b) {
                                                  auto v = b.initInfo();
                                                  v.setModel("bench");
                                                  v.initOwner().setTenant("default");
                                                  v.setArtifact(digest);
                                                })));
    FALAJ_TRY(client_->ask<ResourceRecord>("control/resources", Message::build<Apply>([&](Apply::Builder b) {
                                             auto deployment = b.initResource().initDeployment();
                                             deployment.setName("bench");
                                             deployment.initOwner().setTenant("default");
                                             deployment.setModel("bench");
                                             deployment.setVersion(info->getVersion());
                                             deployment.setReplicas(1);
                                           })));
    return wait_ready(*client_, "default", "bench", std::chrono::seconds(30));
  }

  const Clock& clock_;
  ClusterDir dir_;
  std::unique_ptr<Node> node_;
  std::unique_ptr<Client> client_;
};

// Of a running cluster: its model described, and one request of missing values made from that.
Result<Aim> aim_at(const BenchPlan& plan) {
  if (plan.model.empty()) return invalid("--dir needs --model: the deployment to ask");
  ClientOptions options;
  options.dir = ClusterDir{plan.dir};
  FALAJ_ASSIGN(const auto client, Client::connect(options));
  FALAJ_ASSIGN(const auto described,
               client->ask<ModelDescription>("serving/router",
                                             Message::build<DescribeModel>([&](DescribeModel::Builder b) { b.setModel(plan.model); })));
  Aim aim;
  aim.model = plan.model;
  FALAJ_ASSIGN(aim.gateway, parse_host_port("http", text(client->cluster().getHttp())));
  net::JsonWriter w;
  w.begin_object().key("inputs").begin_array();
  for (const auto input : described->getInputs()) {
    const bool is_text = input.getType() == DataType::BYTES;
    w.begin_object().key("name").string(text(input.getName())).key("shape").begin_array();
    std::int64_t elements = 1;
    for (const auto size : input.getShape()) {
      w.number(std::max<std::int64_t>(size, 1));
      elements *= std::max<std::int64_t>(size, 1);
    }
    w.end_array().key("datatype").string(is_text ? "BYTES" : "FP32").key("data").begin_array();
    for (std::int64_t i = 0; i < elements; ++i) {
      if (is_text) {
        w.string("");
      } else {
        w.number(1);
      }
    }
    w.end_array().end_object();
  }
  w.end_array().end_object();
  aim.bodies.push_back(std::move(w).take());
  return aim;
}

Status load(const BenchPlan& plan, const Aim& aim, unsigned connections, Figures& out) {
  LoadPlan load;
  load.host = aim.gateway.host;
  load.port = aim.gateway.port;
  load.path = format("/v2/models/{}/infer", aim.model);
  load.bodies = aim.bodies;
  load.connections = connections;
  load.requests = 200;  // warms up, and says how many make a round
  const auto once = [&]() -> Result<LoadReport> {
    auto report = run_load(load, plan.clock);
    if (report.failed > 0) return failed(format("{} of {} requests failed: {}", report.failed, load.requests, report.first_failure));
    return report;
  };
  FALAJ_ASSIGN(const auto first, once());
  load.requests = std::max<std::uint64_t>(200, static_cast<std::uint64_t>(first.per_second() * plan.seconds));
  std::vector<double> rates;
  std::vector<double> p50;
  std::vector<double> p99;
  for (unsigned round = 0; round < plan.rounds; ++round) {
    FALAJ_ASSIGN(const auto report, once());
    rates.push_back(report.per_second());
    p50.push_back(percentile(report.latency_us, 0.5));
    p99.push_back(percentile(report.latency_us, 0.99));
  }
  const auto named = [&](std::string_view what) { return format("http_{}_{}", what, connections); };
  out[named("rps")] = median(rates);
  out[named("p50")] = median(p50);
  out[named("p99")] = median(p99);
  say(format("http, {} connections: {:.0f} requests/s, p50 {:.0f} us, p99 {:.0f} us", connections, median(rates), median(p50),
             median(p99)));
  return {};
}

}  // namespace

Status bench_http(const BenchPlan& plan) {
  OwnNode own(plan.clock);
  auto aim = plan.dir.empty() ? own.start() : aim_at(plan);
  if (!aim) return std::move(aim).error();
  Figures ours;
  std::vector<Figure> figures;
  for (const unsigned connections : {1U, 16U}) {
    FALAJ_TRY(load(plan, *aim, connections, ours));
    figures.push_back({format("http_rps_{}", connections), "requests/s"});
    figures.push_back({format("http_p50_{}", connections), "us"});
    figures.push_back({format("http_p99_{}", connections), "us"});
  }
  print_figures(plan, figures, ours);
  return {};
}

}  // namespace falaj::nodes
