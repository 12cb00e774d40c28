// A cluster of simulated nodes for tests of training: control with the job actors, compute nodes whose agents start simulated worker
// nodes, an artifact store and a registry in memory, and a course whose sums depend on the order of additions.
#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "actors/training/jobs.hpp"
#include "actors/training/worker.hpp"
#include "messages/artifacts.capnp.h"
#include "messages/control.capnp.h"
#include "messages/envelope.capnp.h"
#include "messages/features.capnp.h"
#include "messages/registry.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/host/sim_host.hpp"
#include "storage/artifact_store.hpp"
#include "storage/memory_kv.hpp"

namespace falaj::training::test {

using namespace std::chrono_literals;
using messages::Empty;
using messages::GetRun;
using messages::RunInfo;
using messages::RunJob;
using messages::TrainingJob;

// ---- a course without kernels ----------------------------------------------------------------------------------------------------

struct ToySpec {
  std::uint64_t rows = 60;
  std::uint64_t epochs = 4;
  std::uint32_t batch = 16;
  std::uint32_t shards = 8;
  std::size_t width = 300;
  std::uint32_t fits = 1;
  std::uint64_t fail_at = ~0ULL;  // step that cannot be computed
};

// Parameters move by pseudo-random gradients whose sum depends on the order: other bits if anybody adds in another order.
class ToyLearner final : public Learner {
 public:
  ToyLearner(ToySpec spec, std::uint32_t fold) : spec_(spec), fold_(fold), values_(spec.width - 1, 0.5F) {}
  [[nodiscard]] std::size_t width() const override { return spec_.width; }

  Status contribute(Shards shards, std::span<std::vector<float>> out) override {
    if (step_ == spec_.fail_at) return failed("the gradient is not finite");
    const std::uint64_t rows = rows_of(step_);
    for (std::uint32_t k = 0; k < shards.count; ++k) {
      const std::uint64_t shard = shards.first + k;
      Random random(fold_ * 1'000'003 + step_ * 1009 + shard);
      for (std::size_t i = 0; i < values_.size(); ++i) {
        out[k][i] = static_cast<float>(random.normal()) * (1.0F + values_[i] * 0.001F) * (shard % 3 == 0 ? 1e4F : 1e-2F);
      }
      out[k].back() = static_cast<float>(rows * (shard + 1) / spec_.shards - rows * shard / spec_.shards);
    }
    return {};
  }
  Status commit(std::span<float> sum) override {
    const auto rows = static_cast<std::uint64_t>(sum.back());
    if (rows != rows_of(step_)) return failed(format("step {}: {} rows counted instead of {}", step_, rows, rows_of(step_)));
    for (std::size_t i = 0; i < values_.size(); ++i) values_[i] -= 1e-4F * sum[i] / static_cast<float>(rows);
    samples_ += rows;
    ++step_;
    return {};
  }
  [[nodiscard]] bool done() const override { return step_ == steps(); }
  [[nodiscard]] Progress progress() const override { return {step_, steps(), samples_, 1.0 / static_cast<double>(step_ + 1)}; }
  [[nodiscard]] Bytes state() const override {
    Bytes out(16 + values_.size() * 4);
    std::memcpy(out.data(), &step_, 8);
    std::memcpy(out.data() + 8, &samples_, 8);
    std::memcpy(out.data() + 16, values_.data(), values_.size() * 4);
    return out;
  }
  Status load(ByteView state) override {
    if (state.size() != 16 + values_.size() * 4) return error(ErrorCode::corrupt, "state of another size");
    std::memcpy(&step_, state.data(), 8);
    std::memcpy(&samples_, state.data() + 8, 8);
    std::memcpy(values_.data(), state.data() + 16, values_.size() * 4);
    return {};
  }
  Result<Outcome> finish(bool final_fit) override {
    Outcome out;
    out.metrics = {{"auc", 0.5 + 0.01 * fold_}};
    out.confusion = {1, 2, 3, 4};
    out.weights_digest = storage::sha256(ByteView(reinterpret_cast<const std::uint8_t*>(values_.data()), values_.size() * 4)).hex();
    if (final_fit) out.model = to_bytes("a model " + out.weights_digest);
    return out;
  }

 private:
  [[nodiscard]] std::uint64_t per_epoch() const { return (spec_.rows + spec_.batch - 1) / spec_.batch; }
  [[nodiscard]] std::uint64_t steps() const { return per_epoch() * spec_.epochs; }
  [[nodiscard]] std::uint64_t rows_of(std::uint64_t step) const {
    return std::min<std::uint64_t>(spec_.batch, spec_.rows - step % per_epoch() * spec_.batch);
  }
  ToySpec spec_;
  std::uint32_t fold_;
  std::vector<float> values_;
  std::uint64_t step_ = 0, samples_ = 0;
};

class ToyCourse final : public Course {
 public:
  explicit ToyCourse(ToySpec spec) : spec_(spec) {}
  [[nodiscard]] std::vector<std::uint64_t> steps() const override {
    return std::vector<std::uint64_t>(spec_.fits, (spec_.rows + spec_.batch - 1) / spec_.batch * spec_.epochs);
  }
  [[nodiscard]] Result<std::unique_ptr<Learner>> learner(std::uint32_t fold) const override {
    return std::unique_ptr<Learner>(std::make_unique<ToyLearner>(spec_, fold));
  }

 private:
  ToySpec spec_;
};

// ---- the rest of the cluster --------------------------------------------------------------------------------------------------------

struct Directories final : Directory {
  std::map<std::string, ActorAddress, std::less<>> names;
  [[nodiscard]] std::optional<ActorAddress> find(std::string_view name) const override {
    const auto found = names.find(name);
    return found == names.end() ? std::nullopt : std::optional(found->second);
  }
};

struct Shelf {  // what the artifact store holds; outlives its node
  std::map<std::string, Bytes> chunks;
  std::map<std::string, Message> manifests;
  std::string put(ByteView content);
};

class FakeStore final : public ActorOf<FakeStore> {
 public:
  static constexpr std::string_view kType = "artifacts/store";
  static void handlers(Handlers<FakeStore>& on) {
    on.message<messages::PutChunk>(&FakeStore::put_chunk);
    on.message<messages::PutManifest>(&FakeStore::put_manifest);
    on.message<messages::GetChunk>(&FakeStore::get_chunk);
    on.message<messages::GetManifest>(&FakeStore::get_manifest);
  }
  explicit FakeStore(Shelf& shelf) : shelf_(shelf) {}
  static Message with_id(messages::ArtifactInfo::Reader info) {
    const auto content = storage::Digest::from_hex(text(info.getContent())).value();
    const storage::ArtifactMeta meta{std::string(text(info.getMediaType())), std::string(text(info.getOwner().getTenant())),
                                     std::string(text(info.getPurpose())), std::string(text(info.getOwner().getResidency()))};
    return Message::build<messages::ArtifactInfo>([&](messages::ArtifactInfo::Builder b) {
      b.setDigest(storage::ArtifactStore::id_of(content, meta).hex());
      b.setContent(info.getContent());
      b.setBytes(info.getBytes());
      b.setMediaType(info.getMediaType());
      b.setOwner(info.getOwner());
      b.setPurpose(info.getPurpose());
      b.setChunks(info.getChunks());
    });
  }

 private:
  void put_chunk(Context&, Msg<messages::PutChunk> m) {
    const auto content = bytes(m->getContent());
    shelf_.chunks[std::string(text(m->getDigest()))] = Bytes(content.begin(), content.end());
    m.reply(Message::build<Empty>());
  }
  void put_manifest(Context&, Msg<messages::PutManifest> m) {
    const auto info = with_id(m->getInfo());
    shelf_.manifests[std::string(text(info.view<messages::ArtifactInfo>()->getDigest()))] = info;
    m.reply(info);
  }
  void get_chunk(Context&, Msg<messages::GetChunk> m) {
    const auto& content = shelf_.chunks.at(std::string(text(m->getDigest())));
    m.reply(Message::build<messages::Chunk>([&](messages::Chunk::Builder b) { b.setContent(falaj::data(content)); }));
  }
  void get_manifest(Context&, Msg<messages::GetManifest> m) {
    const auto found = shelf_.manifests.find(std::string(text(m->getDigest())));
    if (found == shelf_.manifests.end()) return m.refuse(error(ErrorCode::not_found, "no such artifact"));
    m.reply(found->second);
  }
  Shelf& shelf_;
};

inline std::string Shelf::put(ByteView content) {
  const auto digest = storage::sha256(content).hex();
  chunks[digest] = Bytes(content.begin(), content.end());
  const auto draft = Message::build<messages::ArtifactInfo>([&](messages::ArtifactInfo::Builder b) {
    b.setContent(digest);
    b.setBytes(content.size());
    auto list = b.initChunks(1);
    list[0].setDigest(digest);
    list[0].setBytes(static_cast<std::uint32_t>(content.size()));
  });
  const auto info = FakeStore::with_id(*draft.view<messages::ArtifactInfo>());
  const std::string id(text(info.view<messages::ArtifactInfo>()->getDigest()));
  manifests[id] = info;
  return id;
}

class FakeFront final : public ActorOf<FakeFront> {
 public:
  static constexpr std::string_view kType = "features/front";
  static void handlers(Handlers<FakeFront>& on) { on.message<messages::CreateSnapshot>(&FakeFront::create); }
  explicit FakeFront(std::string digest) : digest_(std::move(digest)) {}

 private:
  void create(Context&, Msg<messages::CreateSnapshot> m) {
    if (!m.scope() || m.scope()->purpose != "testing") return m.refuse(error(ErrorCode::denied, "the view does not allow this purpose"));
    m.reply(Message::build<messages::SnapshotInfo>([&](messages::SnapshotInfo::Builder b) {
      b.setDigest(digest_);
      b.setRows(60);
    }));
  }
  std::string digest_;
};

struct Registered {
  std::vector<Message> versions;  // ModelVersionInfo
};

class FakeRegistry final : public ActorOf<FakeRegistry> {
 public:
  static constexpr std::string_view kType = "mlops/registry";
  static void handlers(Handlers<FakeRegistry>& on) { on.message<messages::RegisterVersion>(&FakeRegistry::add); }
  explicit FakeRegistry(Registered& out) : out_(out) {}

 private:
  void add(Context&, Msg<messages::RegisterVersion> m) {
    for (const auto& known : out_.versions) {
      if (known.view<messages::ModelVersionInfo>()->getArtifact() == m->getInfo().getArtifact()) return m.reply(known);
    }
    out_.versions.push_back(Message::copy_of<messages::ModelVersionInfo>(m->getInfo()));
    m.reply(out_.versions.back());
  }
  Registered& out_;
};

class FakeAgent final : public ActorOf<FakeAgent> {
 public:
  static constexpr std::string_view kType = "node/agent";
  using Start = std::function<void(const messages::ActorSpec::Reader&)>;
  using Stop = std::function<void(std::string)>;
  static void handlers(Handlers<FakeAgent>& on) {
    on.message<messages::EnsureActor>(&FakeAgent::ensure);
    on.message<messages::StopActor>(&FakeAgent::stop);
  }
  FakeAgent(Start start, Stop stop) : start_(std::move(start)), stop_(std::move(stop)) {}

 private:
  void ensure(Context&, Msg<messages::EnsureActor> m) {
    start_(m->getActor());
    m.reply(Message::build<Empty>());
  }
  void stop(Context&, Msg<messages::StopActor> m) {
    stop_(std::string(text(m->getName())));
    m.reply(Message::build<Empty>());
  }
  Start start_;
  Stop stop_;
};

struct AllowAll final : Authorizer {
  Status allow(const Scope&, std::string_view, std::string_view, std::string_view) override { return {}; }
};

struct NoLinks final : WorkerLinks {
  void connect(const std::string&, const std::string&) override {}
};

struct ClusterOptions {
  ToySpec toy;
  std::uint32_t computes = 3;
  CourseMaker make_course;  // empty: the toy
  Bytes snapshot = to_bytes("rows");
  std::string purpose = "testing";
  SimOptions sim;
};

template <class A, class... Args>
ChildSpec actor(const std::string& name, Args... args) {
  ChildSpec spec;
  spec.id = spec.name = name;
  spec.make = [args...]() mutable { return std::make_unique<A>(std::unwrap_reference_t<Args>(args)...); };
  return spec;
}

class Cluster {
 public:
  Cluster(std::uint64_t seed, ClusterOptions options) : options_(std::move(options)), world(seed, options_.sim) {
    snapshot_ = shelf.put(options_.snapshot);
    auto directory = std::make_shared<Directories>();
    for (const char* name : {"artifacts/store", "training/jobs"}) directory->names[name] = at("control", name);
    for (std::uint32_t i = 0; i < options_.computes; ++i)
      directory->names["node/agent/" + compute(i)] = at(compute(i), "node/agent/" + compute(i));
    directory_ = directory;
    publish_view();
    HostOptions base;
    base.authorizer = &rights_;
    world.add_node("control", [this](Host& host) { start_control(host); }, base);
    for (std::uint32_t i = 0; i < options_.computes; ++i) {
      world.add_node(compute(i), [this, i](Host& host) {
        host.set_directory(directory_);
        host.spawn(actor<FakeAgent>(
            "node/agent/" + compute(i), [this, i](const messages::ActorSpec::Reader& spec) { start_worker(i, spec); },
            [this](const std::string& name) { stop_worker(name); }));
      });
    }
  }

  static std::string compute(std::uint32_t i) { return format("c{}", i); }
  static ActorAddress at(const std::string& node, const std::string& name) { return {node_id(node), {}, {}, name}; }

  Status run_job(const Message& job, std::uint64_t generation = 1) {
    auto& control = world.host("control");
    const auto message = Message::build<RunJob>(
        [&](RunJob::Builder b) {
          b.setJob(*job.view<TrainingJob>());
          b.setGeneration(generation);
        },
        256);
    for (int tries = 0;; ++tries) {
      auto reply = world.ask(control, control.find("training/jobs"), message);
      if (reply.has_value()) return {};
      if (reply.error().code != ErrorCode::overloaded || tries == 50) return reply.error();
      world.run_for(10ms);  // runs are being loaded
    }
  }

  // RunInfo of the job's newest run; null when control is down.
  Message info(const std::string& job = "toy") {
    if (!world.running("control")) return {};
    auto& control = world.host("control");
    auto reply = world.ask(control, control.find("training/jobs"), Message::build<GetRun>([&](GetRun::Builder b) { b.setJob(job); }));
    return reply.has_value() ? std::move(reply).value() : Message{};
  }
  std::string phase() {
    const auto message = info();
    return message ? std::string(text(message.view<RunInfo>()->getPhase())) : std::string("?");
  }
  bool run_until_over(Duration limit) {
    return world.run_until(
        [this] {
          if (!world.running("control")) return false;
          const auto now = world.now();
          if (now < next_look_) return false;
          next_look_ = now + 5ms;
          const auto p = phase();
          return p == "finished" || p == "failed" || p == "stopped";
        },
        limit);
  }
  // Worker nodes that run now, sorted.
  [[nodiscard]] std::vector<std::string> workers() const {
    std::vector<std::string> out;
    for (const auto& [name, node] : processes_) {
      if (world.running(node.node)) out.push_back(node.node);
    }
    return out;
  }

 private:
  struct Process {
    std::uint64_t generation = 0;
    std::string node;
  };

  void start_control(Host& host) {
    host.set_directory(directory_);
    host.spawn(actor<FakeStore>("artifacts/store", std::ref(shelf)));
    host.spawn(actor<FakeFront>("features/front", snapshot_));
    host.spawn(actor<FakeRegistry>("mlops/registry", std::ref(registered)));
    JobsOptions jobs_options;
    jobs_options.store = &kv;
    jobs_options.view = &view_;
    jobs_options.control_epoch = Epoch(++control_starts_);
    jobs_options.build = "test";
    jobs_options.gather = 2s;
    host.spawn(jobs(jobs_options));
  }

  void publish_view() {
    auto view = Message::build<messages::ClusterView>([&](messages::ClusterView::Builder b) {
      b.setEpoch(1);
      b.setRevision(1);
      auto nodes = b.initNodes(options_.computes);
      for (std::uint32_t i = 0; i < options_.computes; ++i) {
        nodes[i].setName(compute(i));
        nodes[i].setUp(true);
        nodes[i].initRoles(1).set(0, messages::Role::COMPUTE);
      }
    });
    view_.set(std::make_shared<const cluster::ClusterSnapshot>(view.view<messages::ClusterView>()));
  }

  void start_worker(std::uint32_t compute_index, const messages::ActorSpec::Reader& spec) {
    const std::string name(text(spec.getName()));
    auto& process = processes_[name];
    if (process.generation == spec.getGeneration() && world.running(process.node)) return;
    const std::string old = process.node;
    process.generation = spec.getGeneration();
    const auto worker_spec = spec.getWorker();
    process.node = format("{}-w{}-{}", compute(compute_index), worker_spec.getIndex(), ++started_);
    WorkerOptions worker_options;
    worker_options.job = text(worker_spec.getJob());
    worker_options.run = text(worker_spec.getRun());
    worker_options.index = worker_spec.getIndex();
    worker_options.control_node = "control";
    worker_options.listen = "127.0.0.1:1";
    worker_options.pid = started_;
    worker_options.links = &links_;
    worker_options.make_course = options_.make_course;
    if (!worker_options.make_course) {
      worker_options.make_course = [toy = options_.toy](TrainingJob::Reader, const Bytes&,
                                                        const Bytes&) -> Result<std::shared_ptr<const Course>> {
        return std::make_shared<const ToyCourse>(toy);
      };
    }
    const std::string node = process.node;
    worker_options.on_finished = [this, node] { end_process(node); };
    world.at(world.now() + 3ms, [this, node, worker_options] {
      world.add_node(node, [this, worker_options](Host& host) {
        host.set_directory(directory_);
        host.spawn(worker(worker_options));
      });
    });
    if (!old.empty()) end_process(old);
  }
  void stop_worker(const std::string& name) {
    const auto found = processes_.find(name);
    if (found != processes_.end()) end_process(found->second.node);
  }
  void end_process(const std::string& node) {
    world.at(world.now() + 1ms, [this, node] {
      if (world.running(node)) world.crash(node);
    });
  }

  ClusterOptions options_;

 public:
  Shelf shelf;
  Registered registered;
  storage::MemoryKv kv;
  SimWorld world;

 private:
  NoLinks links_;
  AllowAll rights_;
  std::string snapshot_;
  cluster::ClusterViewHolder view_;
  std::shared_ptr<const Directory> directory_;
  std::map<std::string, Process> processes_;
  std::uint32_t started_ = 0;
  std::uint64_t control_starts_ = 0;
  Instant next_look_{};
};

inline Message toy_job(std::uint32_t workers, bool deterministic = true, std::uint32_t folds = 0) {
  return Message::build<TrainingJob>([&](TrainingJob::Builder b) {
    b.setName("toy");
    b.setView("rows");
    b.setLabel("y");
    b.setPurpose("testing");
    b.setWorkers(workers);
    b.setMicroShards(8);
    b.setDeterministic(deterministic);
    b.setCheckpointEverySteps(3);
    b.setFolds(folds);
  });
}

}  // namespace falaj::training::test
