#include "storage/control_store.hpp"

#include <map>

#include "runtime/base/thread.hpp"
#include "storage/lmdb_kv.hpp"
#include "storage/memory_kv.hpp"
#include "storage/sealed_kv.hpp"
#include "tests/storage/support.hpp"

namespace falaj::storage {
namespace {
using namespace test;
using namespace std::chrono_literals;

class Control : public testing::Test {
 public:
  Control() { reopen(); }
  void reopen(ControlOptions options = {}) {
    store = nullptr;
    store = must(open_control_store(kv, clock, options));
  }
  std::string get(std::string_view key) {
    const auto found = must(store->get(key));
    return found ? std::string(as_text(found->value)) : "-";
  }
  MemoryKv kv;
  ManualClock clock;
  std::unique_ptr<ControlStore> store;
};

TEST_F(Control, RevisionsAndCompareAndSet) {
  EXPECT_EQ(store->revision(), Revision(0));
  EXPECT_EQ(must(store->put("/jobs/a", to_bytes("1"), Revision(0))), Revision(1));
  EXPECT_EQ(must(store->put("/jobs/b", to_bytes("1"))), Revision(2));
  EXPECT_EQ(must(store->put("/jobs/a", to_bytes("2"), Revision(1))), Revision(3));
  const auto lost = store->put("/jobs/a", to_bytes("3"), Revision(1));
  EXPECT_EQ(code_of(lost), ErrorCode::conflict);
  EXPECT_NE(message_of(lost).find("key /jobs/a: expected to have revision 1, but it has revision 3"), std::string::npos)
      << message_of(lost);
  EXPECT_EQ(code_of(store->put("/jobs/a", {}, Revision(0))), ErrorCode::conflict);
  EXPECT_EQ(code_of(store->erase("/jobs/none", Revision(7))), ErrorCode::conflict);
  EXPECT_EQ(store->revision(), Revision(3));
  const auto a = *must(store->get("/jobs/a"));
  EXPECT_EQ(a.created, Revision(1));
  EXPECT_EQ(a.modified, Revision(3));
  // All or nothing, one revision.
  Transaction both{
      .conditions = {{"/jobs/a", Revision(3)}, {"/jobs/c", Revision(0)}},
      .writes = {{.key = "/jobs/c", .value = to_bytes("c"), .lease = {}}, {.key = "/jobs/b", .value = std::nullopt, .lease = {}}}};
  EXPECT_EQ(must(store->commit(both)), Revision(4));
  EXPECT_EQ(code_of(store->commit(both)), ErrorCode::conflict);
  const auto listing = must(store->list("/jobs/"));
  ASSERT_EQ(listing.items.size(), 2U);
  EXPECT_EQ(listing.items[0].key + listing.items[1].key, "/jobs/a/jobs/c");
  EXPECT_EQ(listing.revision, Revision(4));
  EXPECT_EQ(must(store->erase("/jobs/none")), Revision(4));  // nothing changed
  both.conditions.clear();
  both.writes = {{.key = "x", .value = Bytes{}, .lease = {}}, {.key = "x", .value = Bytes{}, .lease = {}}};
  EXPECT_EQ(code_of(store->commit(both)), ErrorCode::invalid);
  reopen();
  EXPECT_EQ(store->revision(), Revision(4));
  EXPECT_EQ(get("/jobs/a") + get("/jobs/b") + get("/jobs/c"), "2-c");
  EXPECT_EQ(*must(store->get("/jobs/a")), a);
}

TEST_F(Control, WatchMissesNothingAndTellsOfCompaction) {
  std::vector<std::string> seen;
  const auto note = [&](const Event& event) {
    seen.push_back(std::to_string(event.revision.value()) + event.key +
                   (event.now ? "=" + std::string(as_text(event.now->value)) : " gone"));
  };
  must(store->put("/n/a", to_bytes("1")));
  must(store->put("/m/a", to_bytes("1")));
  const auto id = must(store->watch("/n/", Revision(1), note));
  must(store->put("/n/b", to_bytes("2")));
  must(store->erase("/n/a"));
  store->unwatch(id);
  must(store->put("/n/b", to_bytes("3")));
  EXPECT_EQ(seen, (std::vector<std::string>{"1/n/a=1", "3/n/b=2", "4/n/a gone"}));
  reopen();
  seen.clear();
  must(store->watch("/n/", Revision(4), note));
  EXPECT_EQ(seen, (std::vector<std::string>{"4/n/a gone", "5/n/b=3"}));
  must(store->compact(Revision(4)));
  const auto old = store->watch("/n/", Revision(4), note);
  EXPECT_EQ(code_of(old), ErrorCode::gone);
  EXPECT_NE(message_of(old).find("history begins at 5"), std::string::npos);
  EXPECT_EQ(must(store->events("", Revision(5))).size(), 1U);
  reopen({.events_kept = 3});
  for (int i = 0; i < 10; ++i) must(store->put("/k", to_bytes(std::to_string(i))));
  EXPECT_EQ(code_of(store->events("", Revision(12))), ErrorCode::gone);
  EXPECT_EQ(must(store->events("", Revision(13))).size(), 3U);
  EXPECT_EQ(must(must(kv.read())->count("control.log")), 3U);
  EXPECT_EQ(code_of(store->events("", Revision(4))), ErrorCode::gone);
}

TEST_F(Control, LeasesEndByTheClockAndTakeTheirKeysAlong) {
  const auto lease = must(store->grant(10s));
  const auto other = must(store->grant(100s));
  must(store->put("/live/a", to_bytes("1"), std::nullopt, lease));
  must(store->put("/live/b", to_bytes("1"), std::nullopt, lease));
  must(store->put("/live/c", to_bytes("1"), std::nullopt, other));
  must(store->put("/live/b", to_bytes("2"), std::nullopt, other));  // moves to the other lease
  clock.advance(9s);
  must(store->keep_alive(lease));
  clock.advance(9s);
  EXPECT_EQ(must(store->expire()), 0U);
  reopen();  // a restart gives every lease its whole time again
  clock.advance(9s);
  EXPECT_EQ(must(store->expire()), 0U);
  clock.advance(2s);
  std::vector<std::string> gone;
  must(store->watch("/live/", Revision(store->revision().value() + 1), [&](const Event& event) { gone.push_back(event.key); }));
  EXPECT_EQ(must(store->expire()), 1U);
  EXPECT_EQ(gone, std::vector<std::string>{"/live/a"});
  EXPECT_EQ(get("/live/a") + get("/live/b") + get("/live/c"), "-21");
  EXPECT_EQ(code_of(store->keep_alive(lease)), ErrorCode::not_found);
  EXPECT_EQ(code_of(store->put("/live/d", {}, std::nullopt, lease)), ErrorCode::not_found);
  must(store->revoke(other));
  EXPECT_EQ(must(store->list("/live/")).items.size(), 0U);
  const auto third = must(store->grant(1s));
  EXPECT_GT(third, other);
  EXPECT_EQ(code_of(store->grant(0s)), ErrorCode::invalid);
}

TEST_F(Control, FailedCommitsChangeNothing) {
  must(store->put("/a", to_bytes("1")));
  int calls = 0;
  must(store->watch("", Revision(2), [&](const Event&) { ++calls; }));
  kv.fail_next_commit(error(ErrorCode::no_space, "injected"));
  EXPECT_EQ(code_of(store->put("/a", to_bytes("2"))), ErrorCode::no_space);
  EXPECT_EQ(get("/a"), "1");
  EXPECT_EQ(store->revision(), Revision(1));
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(must(store->put("/a", to_bytes("2"))), Revision(2));
  EXPECT_EQ(calls, 1);
}

TEST_F(Control, LivesInASealedStoreOnDisk) {
  Scratch dir;
  auto provider = key_file(dir / "kek");
  for (int round = 0; round < 2; ++round) {
    auto below = must(open_lmdb_kv(dir / "kv"));
    auto sealed = must(SealedKv::open(*below, "control", *provider));
    auto control = must(open_control_store(*sealed, clock));
    if (round == 0) {
      for (int i = 0; i < 20; ++i) must(control->put("/models/MARKER-" + std::to_string(i), to_bytes("MARKER-value")));
    } else {
      EXPECT_EQ(must(control->list("/models/")).items.size(), 20U);
      EXPECT_EQ(must(control->events("/models/", Revision(11))).front().key, "/models/MARKER-10");
    }
  }
  EXPECT_TRUE(files_with(dir / "kv", "MARKER-").empty());
}

TEST_F(Control, CompareAndSetFromManyThreadsCountsEachOnce) {
  must(store->put("/counter", to_bytes("0")));
  {
    std::vector<Thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back("cas", [this] {
        for (int done = 0; done < 50;) {
          const auto now = *must(store->get("/counter"));
          const auto next = std::to_string(std::stoi(std::string(as_text(now.value))) + 1);
          if (store->put("/counter", to_bytes(next), now.modified)) ++done;
        }
      });
    }
  }
  EXPECT_EQ(get("/counter"), "200");
  EXPECT_EQ(store->revision(), Revision(201));
}

TEST_F(Control, AgreesWithAMapThroughCrashes) {
  auto random = random_for("control model");
  MemoryKv disk;
  std::map<std::string, std::string> model;
  for (int round = 0; round < 20; ++round) {
    auto control = must(open_control_store(disk, clock, {.events_kept = 16}));
    const auto listing = must(control->list(""));
    ASSERT_EQ(listing.items.size(), model.size());
    for (const auto& item : listing.items) EXPECT_EQ(model[item.key], as_text(item.value));
    for (int i = 0; i < 20; ++i) {
      const auto key = "/k" + std::to_string(random.below(12));
      if (random.chance(0.2)) disk.fail_next_commit(failed("injected"));
      const auto value = std::to_string(random.next());
      const bool erase = random.chance(0.3);
      const auto done = erase ? control->erase(key) : control->put(key, to_bytes(value));
      if (!done) continue;
      if (erase) {
        model.erase(key);
      } else {
        model[key] = value;
      }
    }
    disk.crash(random);
  }
}

}  // namespace
}  // namespace falaj::storage
