// The same actors on CAF's threads with LMDB under them: many askers at once, an actor killed and started again over its store, and
// the figures that the log of a test run keeps an eye on.
#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>

#include "actors/features/csv.hpp"
#include "runtime/base/format.hpp"
#include "tests/actors/features_support.hpp"

namespace falaj::features {
namespace {

using namespace std::chrono_literals;
using test::admin;
using test::make_view;
using test::must;

// One node with a front, a shard and an audit; commits survive the process.
class OneNode {
 public:
  OneNode() {
    must(storage::FileKeyProvider::create(scratch_ / "kek"));
    keys_ = must(storage::FileKeyProvider::open(scratch_ / "kek"));
    auto sealing = storage::FeatureRows::sealing();
    governance::add_audit_tables(sealing);
    disk_ = must(storage::open_lmdb_kv(scratch_ / "store", {.map_bytes_max = 1ULL << 30, .sync = storage::Sync::on_demand}));
    kv_ = must(storage::SealedKv::open(*disk_, "test", *keys_, sealing));
    rows_ = must(storage::FeatureRows::open(*kv_, clock_));
    publish();
    policy_ = std::make_unique<governance::Policy>(
        governance::PolicyOptions{.cluster = "test",
                                  .rights = must(governance::Rights::parse(governance::default_rights_toml(), "r")),
                                  .clock = &clock_,
                                  .refusals = nullptr});
    HostOptions options;
    options.node_name = "one";
    options.clock = &clock_;
    options.metrics = &metrics_;
    options.authorizer = policy_.get();
    host_ = make_caf_host(options);
    host_->set_directory(view_.get());
    host_->spawn(governance::audit({.spool = kv_, .refusals = nullptr, .incarnation = Incarnation(1), .entries_max = 1U << 20}));
    host_->spawn(front({.cluster = &view_}));
    start_shard();
    wait_for(kFront);
    wait_for(governance::kAudit);
  }
  ~OneNode() { host_->shutdown(5s); }

  void start_shard() {
    auto spec = shard({.node = "one", .rows = rows_, .cluster = &view_});
    spec.id = format("shard-{}", ++starts_);  // the id of one that is stopping is still taken
    host_->spawn(spec);
    wait_for(shard_name("one"));
  }
  void stop_shard() {
    host_->stop_child(format("shard-{}", starts_));
    const auto limit = clock_.now() + 10s;
    while (host_->find(shard_name("one"))) ASSERT_LT(clock_.now(), limit);
  }

  void ask_async(Message message, std::move_only_function<void(Result<Message>)> done) {
    host_->ask(host_->find(kFront), std::move(message), admin(), std::move(done));
  }
  Result<Message> ask(Message message) {
    auto promise = std::make_shared<std::promise<Result<Message>>>();
    auto future = promise->get_future();
    ask_async(std::move(message), [promise](Result<Message> answer) { promise->set_value(std::move(answer)); });
    return future.get();
  }
  const Clock& clock() const { return clock_; }

 private:
  void publish() {
    const auto view = make_view("credit", "id", {{"a", "float32"}, {"b", "float32"}, {"c", "float32"}, {"d", "string"}, {"e", "string"}});
    auto message = Message::build<messages::ClusterView>([&](messages::ClusterView::Builder out) {
      out.setEpoch(1);
      auto nodes = out.initNodes(1);
      nodes[0].setName("one");
      nodes[0].setIncarnation(1);
      nodes[0].setUp(true);
      out.initPartitions(limits::kPartitions);
      out.initFeatureNodes(1).set(0, "one");
      out.initResources(1)[0].setFeatureView(*view.view<messages::FeatureView>());
    });
    view_.set(std::make_shared<const cluster::ClusterSnapshot>(message.view<messages::ClusterView>()));
  }
  void wait_for(std::string_view name) {
    const auto limit = clock_.now() + 10s;
    while (!host_->find(name)) ASSERT_LT(clock_.now(), limit) << name;
  }

  test::Scratch scratch_;
  SystemClock clock_;
  metrics::Registry metrics_;
  std::unique_ptr<storage::FileKeyProvider> keys_;
  std::unique_ptr<storage::Kv> disk_;
  std::shared_ptr<storage::SealedKv> kv_;
  std::shared_ptr<storage::FeatureRows> rows_;
  cluster::ClusterViewHolder view_;
  std::unique_ptr<governance::Policy> policy_;
  std::unique_ptr<Host> host_;
  int starts_ = 0;
};

Message batch(int first, int count) {
  std::vector<CsvRow> rows;
  for (int i = first; i < first + count; ++i) {
    rows.push_back(
        {"entity-" + std::to_string(i), 0, {static_cast<float>(i), 1.0F, {}, std::string("some text"), std::string("more text")}, 0});
  }
  return put_rows("default", "credit", rows);
}

Message question(int i) {
  return Message::build<messages::GetFeatures>([i](messages::GetFeatures::Builder out) {
    out.setView("credit");
    out.initEntities(1).set(0, "entity-" + std::to_string(i));
  });
}

// At most `window` asks open at once; waits for all.
class Window {
 public:
  explicit Window(std::size_t window) : window_(window) {}
  std::move_only_function<void(Result<Message>)> enter() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return open_ < window_; });
    ++open_;
    return [this](Result<Message> answer) {
      const std::scoped_lock inner(mutex_);
      if (!answer.has_value()) failures_.push_back(to_string(answer.error()));
      --open_;
      changed_.notify_all();
    };
  }
  std::deque<std::string> drain() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return open_ == 0; });
    return failures_;
  }

 private:
  std::size_t window_;
  std::size_t open_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::string> failures_;
};

double seconds(Duration d) { return std::chrono::duration<double>(d).count(); }

TEST(FeaturesOnThreads, ManyWritersAndReadersAtOnce) {
  OneNode node;
  constexpr int kRows = 512 * 20;
  auto begin = node.clock().now();
  {
    Window window(8);
    for (int i = 0; i < kRows; i += 512) node.ask_async(batch(i, 512), window.enter());
    const auto failures = window.drain();
    EXPECT_TRUE(failures.empty()) << failures.front();
  }
  const double write_s = seconds(node.clock().now() - begin);
  begin = node.clock().now();
  constexpr int kReads = 5000;
  {
    Window window(64);
    for (int i = 0; i < kReads; ++i) node.ask_async(question(i * 7 % kRows), window.enter());
    const auto failures = window.drain();
    EXPECT_TRUE(failures.empty()) << failures.front();
  }
  const double read_s = seconds(node.clock().now() - begin);
  begin = node.clock().now();
  for (int i = 0; i < 200; ++i) must(node.ask(question(i)));
  const double one_s = seconds(node.clock().now() - begin);
  const auto figures =
      format("{:.0f} rows/s written, {:.0f} reads/s, {:.0f} us for one read", kRows / write_s, kReads / read_s, one_s / 200 * 1e6);
  RecordProperty("figures", figures);
  std::cerr << "figures: " << figures << "\n";
}

TEST(FeaturesOnThreads, AShardThatIsKilledAndStartedOverItsStoreHasAllThatItAcknowledged) {
  OneNode node;
  std::mutex mutex;
  std::vector<int> acknowledged;
  Window window(6);
  for (int i = 0; i < 60; ++i) {
    auto leave = window.enter();
    node.ask_async(batch(i * 50, 50), [&, i, leave = std::move(leave)](Result<Message> answer) mutable {
      if (answer.has_value()) {
        const std::scoped_lock lock(mutex);
        acknowledged.push_back(i);
      }
      leave(std::move(answer));
    });
    if (i % 20 == 10) {
      node.stop_shard();
      node.start_shard();
    }
  }
  window.drain();
  EXPECT_GE(acknowledged.size(), 50U);
  for (const int i : acknowledged) {
    const auto answer = must(node.ask(question(i * 50 + 49)));
    const auto features = must(answer.open<messages::Features>());
    ASSERT_EQ(features->getRows()[0].getStatus(), messages::RowStatus::PRESENT) << i;
  }
}

}  // namespace
}  // namespace falaj::features
