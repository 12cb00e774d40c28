#include "nodes/demo.hpp"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "actors/features/csv.hpp"
#include "messages/control.capnp.h"
#include "messages/features.capnp.h"
#include "messages/registry.capnp.h"
#include "messages/serving.capnp.h"
#include "messages/training.capnp.h"
#include "nodes/actor_load.hpp"
#include "nodes/cli.hpp"
#include "nodes/deployments.hpp"
#include "nodes/http_load.hpp"
#include "nodes/ingest.hpp"
#include "nodes/launcher.hpp"
#include "nodes/progress.hpp"
#include "nodes/training_view.hpp"
#include "runtime/base/format.hpp"
#include "runtime/config.hpp"
#include "runtime/net/http/json_writer.hpp"
#include "storage/audit_log.hpp"

namespace falaj::nodes {
namespace {

using namespace messages;
using falaj::ErrorCode;

struct Figures {
  std::uint64_t rows = 0;
  double train_s = 0;
  double auc = 0;
  double accuracy = 0;
  std::uint32_t training_recoveries = 0;
  std::uint32_t serving_recoveries = 0;
  LoadReport http;
  LoadReport actor;
  [[nodiscard]] std::uint32_t recoveries() const { return training_recoveries + serving_recoveries; }
};

class Demo {
 public:
  explicit Demo(const DemoOptions& options) : options_(options) {}

  Status run() {
    FALAJ_TRY(prepare());
    FALAJ_TRY(start_cluster());
    FALAJ_TRY(declare_and_ingest());
    FALAJ_TRY(train());
    FALAJ_TRY(promote_and_deploy());
    FALAJ_TRY(serve());
    FALAJ_TRY(prove());
    return report();
  }

  void finish() {
    client_.reset();
    if (!up_) return;
    if (options_.keep) {
      print(
          format("\nThe cluster stays up. Look around:\n  falaj top --dir {0}\n  falaj runs show credit --dir {0}\n  falaj models show "
                 "credit --alias production --dir {0}\n"
                 "  falaj predict credit A0001 --purpose credit-scoring --dir {0}\n  falaj audit show --dir {0}\n  falaj down --dir {0}",
                 dir_.root.string()));
      return;
    }
    if (auto done = down(dir_, clock_, std::chrono::seconds(20)); !done) print(format("the cluster did not end: {}", done.error().message));
    std::error_code none;
    if (made_) fs::remove_all(dir_.root, none);
  }

 private:
  static void step(std::string_view what) { print(format("==> {}", what)); }

  Status prepare() {
    if (options_.dir.empty()) {
      std::string name = (fs::temp_directory_path() / "falaj-demo.XXXXXX").string();
      if (mkdtemp(name.data()) == nullptr) return failed("cannot make a temporary directory");
      dir_.root = name;
      made_ = true;
    } else {
      dir_.root = options_.dir;
    }
    const fs::path examples = options_.examples;
    toml_ = (examples / "credit.toml").string();
    csv_ = (examples / "data" / "german_credit.csv").string();
    FALAJ_ASSIGN(const auto content, config::read_file(toml_));
    Status status;
    file_ =
        Message::build<ResourceFile>([&](ResourceFile::Builder b) { status = config::parse_toml<ResourceFile>(content, toml_, b); }, 512);
    return status;
  }

  Status start_cluster() {
    step(format("a cluster of real processes in {}", dir_.root.string()));
    const auto begin = clock_.now();
    FALAJ_TRY(up(dir_, "demo", clock_, std::chrono::seconds(30)));
    up_ = true;
    ClientOptions options;
    options.dir = dir_;
    options.purpose = "credit-scoring";
    FALAJ_ASSIGN(client_, Client::connect(options));
    print(format("    {} nodes in {:.1f} s: control and gateway, 2 compute, 2 features, 2 serving; TLS 1.3 between all",
                 client_->cluster().getNodes().size(), seconds_since(begin)));
    return {};
  }

  Result<std::uint64_t> apply(Message resource) {  // its revision
    const auto view = resource.view<Resource>();
    FALAJ_ASSIGN(const auto stored, client_->ask<ResourceRecord>(
                                        "control/resources", Message::build<Apply>([&](Apply::Builder b) { b.setResource(*view); }, 256)));
    return stored->getRevision();
  }

  Status declare_and_ingest() {
    const auto file = file_.view<ResourceFile>();
    for (const auto view : file->getFeatureView())
      FALAJ_TRY(apply(Message::build<Resource>([&](Resource::Builder b) { b.setFeatureView(view); }, 256)));
    const auto view = file->getFeatureView()[0];
    step(format("real data into feature shards: {}", csv_));
    FALAJ_ASSIGN(const auto report, ingest_csv(*client_, view, csv_));
    figures_.rows = report.rows;
    FALAJ_ASSIGN(
        const auto count,
        client_->ask<RowCount>("features/front", Message::build<CountRows>([&](CountRows::Builder b) { b.setView(view.getName()); })));
    print(format("    {} rows stored in view '{}', sealed, in 256 partitions over 2 shards", count->getRows(), text(view.getName())));
    return {};
  }

  Status train() {
    const auto file = file_.view<ResourceFile>();
    const auto job = file->getJob()[0];
    const std::string name(text(job.getName()));
    step(format("{} workers train '{}' ({}-fold cross-validation, then the final fit); one will be killed", job.getWorkers(), name,
                job.getFolds()));
    const auto begin = clock_.now();
    FALAJ_ASSIGN(const auto revision, apply(Message::build<Resource>([&](Resource::Builder b) { b.setJob(job); }, 256)));
    bool killed = false;
    FALAJ_ASSIGN(const auto run, follow_run(*client_, run_name(name, revision), [&](RunInfo::Reader seen) {
                   if (killed || seen.getTotalSteps() == 0 || seen.getTotalStep() * 3 < seen.getTotalSteps()) return;
                   for (const auto worker : seen.getWorkers()) {
                     if (!worker.getUp() || worker.getPid() == 0 || killed) continue;
                     kill(static_cast<pid_t>(worker.getPid()), SIGKILL);
                     killed = true;
                     std::fprintf(stderr, "\r\033[K    step %llu of %llu: worker %u (pid %u on %s) got SIGKILL\n",
                                  static_cast<unsigned long long>(seen.getTotalStep()),
                                  static_cast<unsigned long long>(seen.getTotalSteps()), worker.getIndex(), worker.getPid(),
                                  worker.getNode().cStr());
                   }
                 }));
    figures_.train_s = seconds_since(begin);
    if (text(run->getPhase()) != "finished")
      return failed(format("training ended as '{}': {}", text(run->getPhase()), text(run->getMessage())));
    for (const auto metric : run->getMetrics()) {
      if (text(metric.getName()) == "auc") figures_.auc = metric.getValue();
      if (text(metric.getName()) == "accuracy") figures_.accuracy = metric.getValue();
    }
    figures_.training_recoveries = run->getRecoveries();
    version_ = run->getVersion();
    model_ = text(job.getRegisterAs()).empty() ? name : std::string(text(job.getRegisterAs()));
    print(format("    finished in {:.1f} s: {} steps, {} recoveries, {:.0f} ms from the kill to the next step", figures_.train_s,
                 run->getTotalStep(), run->getRecoveries(), run->getLastRecoveryMs()));
    if (run->getConfusion().size() == 4) {
      const auto c = run->getConfusion();
      print(format("    held-out rows: AUC {:.3f}, accuracy {:.3f}; confusion: tn {} fp {} fn {} tp {}", figures_.auc, figures_.accuracy,
                   c[0], c[1], c[2], c[3]));
    }
    return {};
  }

  Status promote_and_deploy() {
    step(format("model '{}', version {}: through the gate to production", model_, version_));
    FALAJ_ASSIGN(const auto info, client_->ask<ModelVersionInfo>("mlops/registry", Message::build<SetAlias>([&](SetAlias::Builder b) {
                                                                   b.setModel(model_);
                                                                   b.setAlias("production");
                                                                   b.setVersion(version_);
                                                                 }),
                                                                 std::chrono::seconds(30)));
    for (const auto reason : info->getVerdict().getReasons()) print(format("    gate: {}", text(reason)));
    const auto file = file_.view<ResourceFile>();
    const auto deployment = file->getDeployment()[0];
    deployment_ = text(deployment.getName());
    FALAJ_TRY(apply(Message::build<Resource>([&](Resource::Builder b) { b.setDeployment(deployment); }, 256)));
    FALAJ_TRY(wait_ready(*client_, {}, deployment_, std::chrono::seconds(30)));
    print(format("    {} replicas are ready", deployment.getReplicas()));
    return {};
  }

  // One Infer body for each of the first rows of the file, raw features as they stand there.
  Result<std::vector<std::string>> request_bodies() {
    FALAJ_ASSIGN(const auto described,
                 client_->ask<ModelDescription>("serving/router",
                                                Message::build<DescribeModel>([&](DescribeModel::Builder b) { b.setModel(deployment_); })));
    const auto file = file_.view<ResourceFile>();
    const auto view = file->getFeatureView()[0];
    FALAJ_ASSIGN(auto source, features::bytes_of_file(csv_));
    std::vector<std::string> bodies;
    entities_.clear();
    FALAJ_ASSIGN(const auto read, features::read_csv(std::move(source), csv_, view, {}, [&](features::CsvRow&& row) -> Status {
                   entities_.push_back(row.entity);
                   bodies.push_back(body_of(*described, view, row));
                   return {};
                 }));
    static_cast<void>(read);
    return bodies;
  }

  static std::string body_of(ModelDescription::Reader model, FeatureView::Reader view, const features::CsvRow& row) {
    net::JsonWriter w;
    w.begin_object().key("inputs").begin_array();
    for (const auto input : model.getInputs()) {
      unsigned f = 0;
      while (f < view.getField().size() && text(view.getField()[f].getName()) != text(input.getName())) ++f;
      if (f == view.getField().size()) continue;
      const bool is_text = input.getType() == DataType::BYTES;
      w.begin_object().key("name").string(text(input.getName())).key("shape").begin_array().number(1).number(1).end_array();
      w.key("datatype").string(is_text ? "BYTES" : "FP32").key("data").begin_array();
      write_value(w, row.values[f]);
      w.end_array().end_object();
    }
    w.end_array().end_object();
    return std::move(w).take();
  }

  static void write_value(net::JsonWriter& w, const storage::FieldValue& value) {
    std::visit(
        [&w](const auto& v) {
          using T = std::decay_t<decltype(v)>;
          if constexpr (std::is_same_v<T, std::monostate>) {
            w.null();
          } else if constexpr (std::is_same_v<T, std::string>) {
            w.string(v);
          } else if constexpr (std::is_same_v<T, bool>) {
            w.number(v ? 1 : 0);
          } else {
            w.number(v);
          }
        },
        value);
  }

  // Kills the serving node once a third of the requests are answered; the launcher starts it again.
  void kill_serving_node(const std::string& node) {
    const auto file = read_cluster_file(dir_);
    if (!file) return;
    for (const auto local : (*file)->getNodes()) {
      if (text(local.getName()) != node || local.getPid() == 0) continue;
      kill(static_cast<pid_t>(local.getPid()), SIGKILL);
      ++figures_.serving_recoveries;  // counted only if no request failed: see serve()
      std::fprintf(stderr, "\r\033[K    node %s (pid %u) got SIGKILL\n", node.c_str(), local.getPid());
    }
  }

  Status serve() {
    FALAJ_ASSIGN(auto bodies, request_bodies());
    FALAJ_ASSIGN(const auto address, parse_host_port("http", text(client_->cluster().getHttp())));
    step(format("{} HTTP requests and {} actor messages; a serving node will be killed in each", options_.http_requests,
                options_.actor_requests));
    std::atomic<bool> killed{false};
    LoadPlan plan;
    plan.host = address.host;
    plan.port = address.port;
    plan.path = format("/v2/models/{}/infer", deployment_);
    plan.bodies = std::move(bodies);
    plan.requests = options_.http_requests;
    plan.progress = [&](std::uint64_t done) {
      if (done * 3 >= options_.http_requests && !killed.exchange(true)) kill_serving_node("serving-1");
    };
    figures_.http = run_load(plan, clock_);
    print(format("    HTTP: {} answered, {} failed, {:.0f} requests/s, p50 {:.2f} ms, p99 {:.2f} ms", figures_.http.answered,
                 figures_.http.failed, figures_.http.per_second(), percentile(figures_.http.latency_us, 0.5) / 1000,
                 percentile(figures_.http.latency_us, 0.99) / 1000));
    FALAJ_TRY(wait_ready(*client_, {}, deployment_, std::chrono::seconds(15)));  // the killed node serves again
    killed = false;
    ActorLoadPlan actors;
    actors.actor = "serving/router";
    for (const auto& entity : entities_) {
      actors.messages.push_back(Message::build<Predict>([&](Predict::Builder b) {
        b.setModel(deployment_);
        b.initEntities(1).set(0, entity);
      }));
    }
    actors.requests = options_.actor_requests;
    actors.progress = [&](std::uint64_t done) {
      if (done * 3 >= options_.actor_requests && !killed.exchange(true)) kill_serving_node("serving-2");
    };
    figures_.actor = run_actor_load(*client_, actors);
    print(format("    actor messages by entity: {} answered, {} failed, {:.0f} requests/s, p50 {:.0f} us", figures_.actor.answered,
                 figures_.actor.failed, figures_.actor.per_second(), percentile(figures_.actor.latency_us, 0.5)));
    if (figures_.http.failed + figures_.actor.failed > 0) {
      return failed(format("{} requests failed: {}", figures_.http.failed + figures_.actor.failed,
                           figures_.http.first_failure + figures_.actor.first_failure));
    }
    return {};
  }

  Status prove() {
    FALAJ_ASSIGN(const auto verdict, storage::verify_audit(dir_.node("control").audit()));
    if (!verdict.good) return error(ErrorCode::corrupt, "audit log: " + verdict.what);
    step(format("audit log: {} entries, the hash chain is whole", verdict.entries));
    return {};
  }

  Status report() {
    const auto& f = figures_;
    print("\n" + table({{"rows", std::to_string(f.rows)},
                        {"training", format("{:.1f} s", f.train_s)},
                        {"AUC, held out", format("{:.3f}", f.auc)},
                        {"accuracy", format("{:.3f}", f.accuracy)},
                        {"HTTP requests", format("{} ({:.0f}/s, p50 {:.2f} ms, p99 {:.2f} ms)", f.http.answered, f.http.per_second(),
                                                 percentile(f.http.latency_us, 0.5) / 1000, percentile(f.http.latency_us, 0.99) / 1000)},
                        {"actor messages", format("{} (p50 {:.0f} us)", f.actor.answered, percentile(f.actor.latency_us, 0.5))},
                        {"failed", std::to_string(f.http.failed + f.actor.failed)},
                        {"recoveries", std::to_string(f.recoveries())}}));
    if (options_.json.empty()) return {};
    const auto json = format(
        "{{\"rows\": {}, \"train_s\": {:.3f}, \"auc\": {:.5f}, \"accuracy\": {:.5f}, \"recoveries\": {}, \"http_requests\": {}, "
        "\"http_failed\": {}, \"http_rps\": {:.1f}, "
        "\"http_p50_ms\": {:.4f}, \"http_p99_ms\": {:.4f}, \"actor_requests\": {}, \"actor_failed\": {}, \"actor_p50_us\": {:.1f}}}\n",
        f.rows, f.train_s, f.auc, f.accuracy, f.recoveries(), f.http.answered + f.http.failed, f.http.failed, f.http.per_second(),
        percentile(f.http.latency_us, 0.5) / 1000, percentile(f.http.latency_us, 0.99) / 1000, f.actor.answered + f.actor.failed,
        f.actor.failed, percentile(f.actor.latency_us, 0.5));
    return net::write_private_file(options_.json, json);
  }

  [[nodiscard]] double seconds_since(Instant begin) const { return static_cast<double>((clock_.now() - begin).count()) * 1e-9; }

  DemoOptions options_;
  SystemClock clock_;
  ClusterDir dir_;
  bool made_ = false;
  bool up_ = false;
  std::string toml_, csv_, model_, deployment_;
  Message file_;
  std::unique_ptr<Client> client_;
  std::vector<std::string> entities_;
  std::uint64_t version_ = 0;
  Figures figures_;
};

// Beside the sources for who builds; beside the binary otherwise.
std::string find_examples() {
  std::error_code none;
  const auto self = fs::read_symlink("/proc/self/exe", none);
  for (const auto& candidate :
       {fs::path("configs/examples"), self.parent_path() / "../../configs/examples", self.parent_path() / "configs/examples"}) {
    if (fs::exists(candidate / "credit.toml", none)) return candidate.string();
  }
  return "configs/examples";
}

}  // namespace

Status run_demo(const DemoOptions& options) {
  Demo demo(options);
  auto done = demo.run();
  demo.finish();
  return done;
}

void add_demo_command(CLI::App& app, Cli& cli) {
  const auto options = std::make_shared<DemoOptions>();
  auto* demo = app.add_subcommand("demo", "The whole system once through, on this machine: raw data to answered requests, with kills");
  demo->add_option("--dir,-d", options->dir, "Directory of its cluster (default: a temporary one)")->type_name("DIR");
  demo->add_option("--examples", options->examples, "Where credit.toml and its data lie")->type_name("DIR")->default_str(find_examples());
  demo->add_option("--json", options->json, "Also write the table to this file, as one JSON object")->type_name("FILE");
  demo->add_flag("--keep", options->keep, "Leave the cluster up");
  demo->footer("Example:\n  falaj demo --keep --dir ./falaj");
  cli.runs(*demo, [options] {
    if (options->examples.empty()) options->examples = find_examples();
    return run_demo(*options);
  });
}

}  // namespace falaj::nodes
