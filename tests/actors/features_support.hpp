// A small cluster on the simulator, shared by the tests of features, artifacts and governance: nodes with their stores, which
// outlive a node's crash as a disk does.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actors/artifacts/store.hpp"
#include "actors/features/front.hpp"
#include "actors/features/shard.hpp"
#include "actors/governance/audit.hpp"
#include "actors/governance/log.hpp"
#include "actors/governance/policy.hpp"
#include "messages/artifacts.capnp.h"
#include "messages/control.capnp.h"
#include "messages/features.capnp.h"
#include "runtime/base/limits.hpp"
#include "runtime/cluster/view.hpp"
#include "runtime/host/sim_host.hpp"
#include "storage/lmdb_kv.hpp"
#include "storage/memory_kv.hpp"
#include "tests/actors/features_views.hpp"

namespace falaj::test {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

template <class T>
T must(Result<T> result) {
  if (!result.has_value()) throw std::runtime_error(to_string(result.error()));
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

class Scratch {
 public:
  Scratch() : path_(fs::temp_directory_path() / ("falaj-actors-" + storage::random_name())) { fs::create_directories(path_); }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  fs::path operator/(std::string_view part) const { return path_ / part; }

 private:
  fs::path path_;
};

enum class Disk : std::uint8_t { memory, lmdb };

inline ScopeRef scope(std::string principal, std::string purpose = "", std::string tenant = "") {
  return std::make_shared<const Scope>(Scope{std::move(principal), std::move(tenant), std::move(purpose), "", ""});
}
inline SendOptions as(ScopeRef who, Duration timeout = 5s) {
  SendOptions options;
  options.scope = std::move(who);
  options.timeout = timeout;
  return options;
}
inline SendOptions admin(std::string purpose = "credit") { return as(scope("spiffe://test/person/admin", std::move(purpose))); }

// Nodes: "control" (artifacts, log), shards f1..fn, and "gate", which has only a front. All have an audit.
class SmallCluster {
 public:
  struct Options {
    Disk disk = Disk::memory;
    int shards = 2;
    std::string rights = governance::default_rights_toml();
    std::size_t spool_max = 100'000;
    std::uint64_t seed = 1;
  };
  explicit SmallCluster(Options options) : options_(std::move(options)), world_(options_.seed) {
    must(storage::FileKeyProvider::create(scratch_ / "kek"));
    keys_ = must(storage::FileKeyProvider::open(scratch_ / "kek"));
    names_ = {"control", "gate"};
    for (int i = 1; i <= options_.shards; ++i) shards_.push_back("f" + std::to_string(i));
    names_.insert(names_.end(), shards_.begin(), shards_.end());
    for (const auto& name : names_) incarnations_[name] = 1;
    publish();
    for (const auto& name : names_) add(name);
  }
  ~SmallCluster() { closing_ = true; }

  SimWorld& world() { return world_; }
  void declare(Message view) {
    views_.push_back(std::move(view));
    publish();
  }
  // With a node's new incarnation, as membership would publish it.
  void restart(const std::string& name) {
    world_.restart(name);
    ++incarnations_[name];
    publish();
  }
  void crash(const std::string& name) {
    world_.crash(name);
    live_.erase(name);
  }
  // Gives all partitions to one node.
  void move_all_to(std::string node) {
    only_owner_ = std::move(node);
    publish();
  }
  template <class Reply>
  Result<View<Reply>> ask(std::string_view node, std::string_view actor, Message message, const SendOptions& options = admin()) {
    auto& host = world_.host(node);
    FALAJ_ASSIGN(const auto answer, world_.ask(host, host.find(actor), std::move(message), options));
    return answer.open<Reply>();
  }
  Result<View<messages::AuditPage>> audit_page(std::uint64_t after = 0) {
    return ask<messages::AuditPage>("control", governance::kLog,
                                    Message::build<messages::ShowAudit>([after](messages::ShowAudit::Builder out) {
                                      out.setAfter(after);
                                      out.setLimit(1000);
                                    }));
  }
  // Entries with this verb that were allowed, or refused.
  std::size_t audited(std::string_view verb, bool allowed) {
    std::size_t count = 0;
    for (std::uint64_t after = 0;;) {
      const auto page = must(audit_page(after));
      for (const auto entry : page->getEntries()) count += text(entry.getVerb()) == verb && entry.getAllowed() == allowed ? 1 : 0;
      if (page->getEntries().size() == 0) return count;
      after = page->getFirst() + page->getEntries().size();
    }
  }
  storage::FeatureRows& rows(const std::string& node) { return *stores_.at(node).rows; }
  const fs::path audit_dir() { return scratch_ / "audit"; }
  storage::KeyProvider& keys() { return *keys_; }
  cluster::ClusterViewHolder& view() { return holder_; }
  const std::vector<std::string>& shards() const { return shards_; }
  governance::RefusalQueue& refusals(const std::string& node) { return *stores_.at(node).refusals; }

 private:
  struct Stores {
    std::unique_ptr<storage::Kv> disk;
    std::shared_ptr<storage::SealedKv> kv;
    std::shared_ptr<storage::FeatureRows> rows;
    std::shared_ptr<governance::RefusalQueue> refusals;
    std::unique_ptr<governance::Policy> policy;
  };

  void add(const std::string& name) {
    auto& stores = stores_[name];
    if (options_.disk == Disk::memory) {
      stores.disk = std::make_unique<storage::MemoryKv>();
    } else {
      stores.disk = must(storage::open_lmdb_kv(scratch_ / name, {.map_bytes_max = 1ULL << 30, .sync = storage::Sync::on_demand}));
    }
    auto sealing = storage::FeatureRows::sealing();
    governance::add_audit_tables(sealing);
    stores.kv = must(storage::SealedKv::open(*stores.disk, "test/" + name, *keys_, sealing));
    stores.rows = must(storage::FeatureRows::open(*stores.kv, clock_));
    stores.refusals = std::make_shared<governance::RefusalQueue>();
    stores.policy = std::make_unique<governance::Policy>(
        governance::PolicyOptions{.cluster = "test",
                                  .rights = must(governance::Rights::parse(options_.rights, "rights.toml")),
                                  .clock = &clock_,
                                  .refusals = stores.refusals});
    HostOptions base;
    base.authorizer = stores.policy.get();
    world_.add_node(name, [this, name](Host& host) { populate(name, host); }, base);
  }

  void populate(const std::string& name, Host& host) {
    auto& stores = stores_.at(name);
    live_[name] = &host;
    host.set_directory(holder_.get());
    if (name == "control") {
      if (!artifacts_) artifacts_ = must(storage::ArtifactStore::open(scratch_ / "artifacts", *keys_, clock_));
      if (!log_) log_ = must(storage::AuditLog::open(audit_dir(), *keys_, clock_));
      host.spawn(artifacts::store({.store = artifacts_}));
      host.spawn(governance::log({.log = log_, .dir = audit_dir(), .keys = keys_.get(), .marks = stores.kv, .marks_every = 16}));
    }
    stores.refusals->on_push([this, name] {
      const auto found = live_.find(name);
      if (closing_ || found == live_.end()) return;
      found->second->tell(found->second->find(governance::kAudit), Message::build<messages::DrainRefusals>());
    });
    host.spawn(governance::audit(
        {.spool = stores.kv, .refusals = stores.refusals, .incarnation = host.incarnation(), .entries_max = options_.spool_max}));
    host.spawn(features::front({.cluster = &holder_, .page_rows = 64}));
    if (name.starts_with("f")) host.spawn(features::shard({.node = name, .rows = stores.rows, .cluster = &holder_}));
  }

  void publish() {
    ++revision_;
    auto message = Message::build<messages::ClusterView>([&](messages::ClusterView::Builder out) {
      out.setCluster("test");
      out.setEpoch(1);
      out.setRevision(revision_);
      auto nodes = out.initNodes(static_cast<unsigned>(names_.size()));
      for (unsigned i = 0; i < nodes.size(); ++i) {
        nodes[i].setName(names_[i]);
        nodes[i].setIncarnation(incarnations_.at(names_[i]));
        nodes[i].setUp(true);
      }
      std::vector<std::pair<std::string, std::string>> entries = {{std::string(artifacts::kStore), "control"},
                                                                  {std::string(governance::kLog), "control"}};
      for (const auto& shard : shards_) entries.emplace_back(features::shard_name(shard), shard);
      auto directory = out.initDirectory(static_cast<unsigned>(entries.size()));
      for (unsigned i = 0; i < directory.size(); ++i) {
        directory[i].setName(entries[i].first);
        directory[i].setNode(entries[i].second);
        directory[i].setReady(true);
      }
      auto owners = out.initPartitions(limits::kPartitions);
      auto feature_nodes = out.initFeatureNodes(static_cast<unsigned>(shards_.size()));
      for (unsigned i = 0; i < feature_nodes.size(); ++i) feature_nodes.set(i, shards_[i]);
      for (unsigned p = 0; p < limits::kPartitions; ++p) {
        std::size_t owner = p % shards_.size();
        if (!only_owner_.empty()) owner = static_cast<std::size_t>(std::ranges::find(shards_, only_owner_) - shards_.begin());
        owners.set(p, static_cast<std::uint16_t>(owner));
      }
      auto resources = out.initResources(static_cast<unsigned>(views_.size()));
      for (unsigned i = 0; i < resources.size(); ++i) resources[i].setFeatureView(*views_[i].view<messages::FeatureView>());
    });
    const auto snapshot = std::make_shared<const cluster::ClusterSnapshot>(message.view<messages::ClusterView>());
    holder_.set(snapshot);
    for (auto& [name, host] : live_) host->set_directory(snapshot);
  }

  Options options_;
  Scratch scratch_;
  ManualClock clock_;
  std::unique_ptr<storage::FileKeyProvider> keys_;
  std::vector<std::string> names_;
  std::vector<std::string> shards_;
  std::map<std::string, std::uint64_t> incarnations_;
  std::string only_owner_;
  std::vector<Message> views_;
  std::uint64_t revision_ = 0;
  cluster::ClusterViewHolder holder_;
  std::map<std::string, Stores> stores_;
  std::shared_ptr<storage::ArtifactStore> artifacts_;
  std::shared_ptr<storage::AuditLog> log_;
  std::map<std::string, Host*> live_;
  bool closing_ = false;
  SimWorld world_;  // last: its actors use the rest
};

}  // namespace falaj::test
