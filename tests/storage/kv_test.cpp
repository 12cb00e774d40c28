#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <map>

#include "storage/lmdb_kv.hpp"
#include "storage/memory_kv.hpp"
#include "tests/storage/support.hpp"

namespace falaj::storage {
namespace {
using namespace test;

// Both implementations must behave the same.
class KvContract : public testing::TestWithParam<bool> {
 public:
  KvContract() { reopen(); }
  void reopen() {
    if (GetParam()) {
      kv = nullptr;
      kv = must(open_lmdb_kv(dir / "kv"));
    } else if (!kv) {
      kv = std::make_unique<MemoryKv>();
    }
  }
  void put(std::string_view key, std::string_view value) {
    auto txn = must(kv->write());
    must(txn->put("t", as_bytes(key), as_bytes(value), 3));
    must(txn->commit());
  }
  std::string keys(std::string_view prefix, std::string_view from = {}) {
    std::string out;
    auto txn = must(kv->read());
    must(txn->scan("t", as_bytes(prefix), as_bytes(from), [&](const Item& item) {
      out += std::string(as_text(item.key)) + " ";
      return true;
    }));
    return out;
  }
  Scratch dir;
  std::unique_ptr<Kv> kv;
};

TEST_P(KvContract, ScopesCommitAndUndo) {
  put("a", "1");
  {
    auto txn = must(kv->write());
    must(txn->put("t", as_bytes("b"), as_bytes("2"), 1));
    EXPECT_TRUE(must(txn->get("t", as_bytes("b"))).has_value());
    EXPECT_TRUE(must(txn->erase("t", as_bytes("a"))));
    EXPECT_FALSE(must(txn->get("t", as_bytes("a"))).has_value());
  }
  EXPECT_EQ(keys(""), "a ");
  auto snapshot = must(kv->read());
  put("a", "changed");
  EXPECT_EQ(as_text(must(snapshot->get("t", as_bytes("a")))->bytes), "1");
  snapshot = nullptr;
  reopen();
  const auto value = must(must(kv->read())->get("t", as_bytes("a")));
  EXPECT_EQ(as_text(value->bytes), "changed");
  EXPECT_EQ(value->version, 3);
  auto txn = must(kv->write());
  must(txn->commit());
  EXPECT_FALSE(txn->put("t", as_bytes("x"), {}, 0).has_value());
}

TEST_P(KvContract, ScansByPrefixAndFrom) {
  for (const auto* key : {"a", "a/1", "a/2", "a/3", "b/1"}) put(key, "v");
  auto other = must(kv->write());
  must(other->put("t2", as_bytes("a/9"), {}, 0));
  must(other->put("s", as_bytes("a/8"), {}, 0));
  must(other->commit());
  EXPECT_EQ(keys("a/"), "a/1 a/2 a/3 ");
  EXPECT_EQ(keys("a/", "a/2"), "a/2 a/3 ");
  EXPECT_EQ(keys(""), "a a/1 a/2 a/3 b/1 ");
  EXPECT_EQ(keys("c"), "");
  auto txn = must(kv->read());
  EXPECT_EQ(must(txn->count("t")), 5U);
  EXPECT_EQ(must(txn->count("t", as_bytes("b"))), 1U);
  EXPECT_EQ(must(txn->tables()), (std::vector<std::string>{"s", "t", "t2"}));
}

TEST_P(KvContract, RefusesBadNamesAndKeys) {
  auto txn = must(kv->write());
  EXPECT_EQ(code_of(txn->put("Bad Name", as_bytes("k"), {}, 0)), ErrorCode::invalid);
  EXPECT_EQ(code_of(txn->put("t", {}, {}, 0)), ErrorCode::invalid);
  EXPECT_EQ(code_of(txn->put("t", Bytes(kKeyBytesMax + 1), {}, 0)), ErrorCode::invalid);
  must(txn->put(std::string(kTableNameMax, 'x'), Bytes(kKeyBytesMax), {}, 0));
  must(txn->commit());
}

TEST_P(KvContract, AgreesWithAMap) {
  auto random = random_for("kv model");
  std::map<std::string, std::string> model;
  for (int round = 0; round < 60; ++round) {
    auto changed = model;
    auto txn = must(kv->write());
    for (int i = 0; i < 20; ++i) {
      const auto key = std::to_string(random.below(200));
      if (random.chance(0.3)) {
        EXPECT_EQ(must(txn->erase("t", as_bytes(key))), changed.erase(key) == 1);
      } else {
        changed[key] = std::string(random.below(5000), static_cast<char>('a' + random.below(26)));
        must(txn->put("t", as_bytes(key), as_bytes(changed[key]), 0));
      }
    }
    if (random.chance(0.7)) {
      must(txn->commit());
      model = changed;
    } else {
      txn->abort();
    }
    txn = nullptr;
    if (random.chance(0.1)) reopen();
    auto expected = model.begin();
    must(must(kv->read())->scan("t", {}, [&](const Item& item) {
      EXPECT_NE(expected, model.end());
      EXPECT_EQ(as_text(item.key), expected->first);
      EXPECT_EQ(as_text(item.value), expected->second);
      ++expected;
      return true;
    }));
    EXPECT_EQ(expected, model.end());
  }
}

INSTANTIATE_TEST_SUITE_P(Both, KvContract, testing::Bool(), [](const auto& which) { return which.param ? "Lmdb" : "Memory"; });

TEST(MemoryKv, EachFlippedBitOfAStoredValueIsFoundAndNamed) {
  MemoryKv kv;
  auto txn = must(kv.write());
  must(txn->put("rows", as_bytes("entity-7"), as_bytes("some value"), 9));
  must(txn->commit());
  for (std::size_t offset = 0; offset < kRecordHeaderBytes + 10; ++offset) {
    for (int bit = 0; bit < 8; ++bit) {
      const auto mask = static_cast<std::uint8_t>(1 << bit);
      ASSERT_TRUE(kv.flip("rows", as_bytes("entity-7"), offset, mask));
      const auto got = must(kv.read())->get("rows", as_bytes("entity-7"));
      EXPECT_EQ(code_of(got), ErrorCode::corrupt) << offset;
      EXPECT_NE(message_of(got).find("table rows, key entity-7"), std::string::npos) << message_of(got);
      EXPECT_EQ(code_of(must(kv.read())->scan("rows", {}, [](const Item&) { return true; })), ErrorCode::corrupt);
      kv.flip("rows", as_bytes("entity-7"), offset, mask);
    }
  }
  EXPECT_TRUE(must(must(kv.read())->get("rows", as_bytes("entity-7"))).has_value());
}

TEST(MemoryKv, CrashTakesOnlyTheNewestUnsyncedCommitsWhole) {
  auto random = random_for("memory crash");
  for (int round = 0; round < 50; ++round) {
    MemoryKv kv({.sync = Sync::on_demand});
    const auto commits = 1 + random.below(20);
    std::uint64_t synced = 0;
    for (std::uint64_t i = 1; i <= commits; ++i) {
      auto txn = must(kv.write());
      must(txn->put("t", as_bytes("a"), as_bytes(std::to_string(i)), 0));
      must(txn->put("t", as_bytes("b" + std::to_string(i)), as_bytes("x"), 0));
      must(txn->commit());
      if (random.chance(0.3)) {
        must(kv.sync());
        synced = i;
      }
    }
    const auto lost = kv.crash(random);
    ASSERT_LE(lost, commits - synced);
    const auto left = commits - lost;
    auto txn = must(kv.read());
    const auto a = must(txn->get("t", as_bytes("a")));
    EXPECT_EQ(left == 0 ? "" : std::to_string(left), a ? std::string(as_text(a->bytes)) : "");
    EXPECT_EQ(must(txn->count("t", as_bytes("b"))), left);
  }
  MemoryKv durable;
  auto txn = must(durable.write());
  must(txn->put("t", as_bytes("a"), {}, 0));
  must(txn->commit());
  EXPECT_EQ(durable.crash(random), 0U);
}

TEST(MemoryKv, FullStoreRefusesAndChangesNothing) {
  MemoryKv kv({.bytes_max = 1000});
  auto txn = must(kv.write());
  must(txn->put("t", as_bytes("a"), Bytes(500), 0));
  must(txn->commit());
  txn = must(kv.write());
  must(txn->put("t", as_bytes("a"), Bytes(2), 0));
  must(txn->put("t", as_bytes("b"), Bytes(5000), 0));
  EXPECT_EQ(code_of(txn->commit()), ErrorCode::no_space);
  txn = nullptr;
  EXPECT_EQ(must(must(kv.read())->get("t", as_bytes("a")))->bytes.size(), 500U);
  kv.fail_next_commit(failed("injected"));
  txn = must(kv.write());
  EXPECT_EQ(code_of(txn->commit()), ErrorCode::failed);
}

TEST(LmdbKv, FlippedBytesOfAStoredValueAreFoundAndNamed) {
  Scratch dir;
  const std::string value = "a value that can be found in the file of pages, because this store is not sealed";
  {
    auto kv = must(open_lmdb_kv(dir / "kv"));
    auto txn = must(kv->write());
    must(txn->put("rows", as_bytes("entity-7"), as_bytes(value), 9));
    must(txn->commit());
  }
  const auto file = dir / "kv" / "data.mdb";
  const auto bytes = slurp(file);
  std::size_t copies = 0;
  for (auto at = as_text(bytes).find(value); at != std::string_view::npos; at = as_text(bytes).find(value, at + 1)) {
    ++copies;
    for (std::size_t i = 0; i < kRecordHeaderBytes + value.size(); i += 5) {
      const auto offset = at - kRecordHeaderBytes + i;
      flip(file, offset, 0x10);
      {
        auto kv = must(open_lmdb_kv(dir / "kv"));
        const auto got = must(kv->read())->get("rows", as_bytes("entity-7"));
        EXPECT_EQ(code_of(got), ErrorCode::corrupt) << i;
        EXPECT_NE(message_of(got).find("table rows, key entity-7"), std::string::npos);
      }
      flip(file, offset, 0x10);
    }
  }
  EXPECT_EQ(copies, 1U);
}

TEST(LmdbKv, LimitAndFullDiskSayNoSpaceAndChangeNothing) {
  Scratch dir;
  const auto fill = [](Kv& kv) {
    Status status;
    for (int i = 0; status && i < 100; ++i) {
      auto txn = must(kv.write());
      for (int k = 0; status && k < 16; ++k) status = txn->put("t", as_bytes(std::to_string(i * 100 + k)), Bytes(10'000, 7), 0);
      if (auto done = txn->commit(); status) status = done;
    }
    EXPECT_EQ(code_of(status), ErrorCode::no_space) << message_of(status);
    auto txn = must(kv.read());
    EXPECT_EQ(must(txn->count("t")) % 16, 0U);  // no half of a transaction
    EXPECT_GT(must(txn->count("t")), 0U);
    txn = nullptr;
    auto erase = must(kv.write());
    EXPECT_TRUE(must(erase->erase("t", as_bytes("0"))));  // still usable
  };
  auto limited = must(open_lmdb_kv(dir / "limited", {.map_bytes_max = 2U << 20}));
  fill(*limited);
  SmallDisk disk(dir / "disk");
  if (!disk.ok()) GTEST_SKIP() << "no right to mount a small file system";
  auto full = must(open_lmdb_kv(dir / "disk" / "kv"));
  fill(*full);
}

TEST(LmdbKv, FileSizeLimitSaysNoSpace) {
  Scratch dir;
  const auto child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1U << 20, 1U << 20};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    auto kv = open_lmdb_kv(dir / "kv");
    if (!kv) ::_exit(2);
    Status status;
    for (int i = 0; status && i < 1000; ++i) {
      auto txn = (*kv)->write();
      if (!txn) ::_exit(3);
      status = (*txn)->put("t", as_bytes(std::to_string(i)), Bytes(10'000, 7), 0);
      if (status) status = (*txn)->commit();
    }
    ::_exit(!status && status.error().code == ErrorCode::no_space ? 0 : 4);
  }
  int rc = 0;
  ::waitpid(child, &rc, 0);
  EXPECT_EQ(WEXITSTATUS(rc), 0);
}

TEST(LmdbKv, SecondOwnerIsToldThePidOfTheFirst) {
  Scratch dir;
  int ready[2];
  int leave[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(leave), 0);
  const auto child = ::fork();
  if (child == 0) {
    auto kv = open_lmdb_kv(dir / "kv");
    char c = kv ? 'y' : 'n';
    if (::write(ready[1], &c, 1) != 1 || ::read(leave[0], &c, 1) != 1) ::_exit(1);
    ::_exit(0);  // as a kill would: nothing is closed in order
  }
  char c = 0;
  ASSERT_EQ(::read(ready[0], &c, 1), 1);
  ASSERT_EQ(c, 'y');
  const auto second = open_lmdb_kv(dir / "kv");
  EXPECT_EQ(code_of(second), ErrorCode::conflict);
  EXPECT_NE(message_of(second).find("process " + std::to_string(child)), std::string::npos) << message_of(second);
  EXPECT_TRUE(open_lmdb_kv(dir / "kv", {.mode = LmdbOptions::Mode::inspect}).has_value());
  ASSERT_EQ(::write(leave[1], "x", 1), 1);
  int rc = 0;
  ::waitpid(child, &rc, 0);
  EXPECT_TRUE(open_lmdb_kv(dir / "kv").has_value());
  for (const int fd : {ready[0], ready[1], leave[0], leave[1]}) ::close(fd);
}

TEST(LmdbKv, NewerFormatIsRefusedWithTheRemedy) {
  Scratch dir;
  must(open_lmdb_kv(dir / "kv"));
  spit(dir / "kv" / "FORMAT", as_bytes("falaj kv 2\n"));
  const auto kv = open_lmdb_kv(dir / "kv");
  EXPECT_EQ(code_of(kv), ErrorCode::unimplemented);
  EXPECT_NE(message_of(kv).find("made by a newer falaj; upgrade this node"), std::string::npos);
  spit(dir / "kv" / "FORMAT", as_bytes("falaj audit 1\n"));
  EXPECT_EQ(code_of(open_lmdb_kv(dir / "kv")), ErrorCode::invalid);
  spit(dir / "kv" / "FORMAT", as_bytes("falak kv 1\n"));
  EXPECT_EQ(code_of(open_lmdb_kv(dir / "kv")), ErrorCode::corrupt);
}

TEST(LmdbKv, KilledWritersLoseNoAcknowledgedCommit) {
  auto random = random_for("lmdb kill");
  Scratch dir;
  std::uint64_t acknowledged = 0;
  for (int round = 0; round < 5; ++round) {
    int pipe_fd[2];
    ASSERT_EQ(::pipe(pipe_fd), 0);
    const auto child = ::fork();
    if (child == 0) {
      auto kv = open_lmdb_kv(dir / "kv");
      for (std::uint64_t n = acknowledged + 1;; ++n) {
        auto txn = (*kv)->write();
        Bytes value;
        put_le(value, n);
        if (!(*txn)->put("t", as_bytes("a"), value, 0) || !(*txn)->put("t", as_bytes("b"), value, 0) || !(*txn)->commit()) ::_exit(1);
        if (::write(pipe_fd[1], &n, sizeof(n)) != sizeof(n)) ::_exit(1);
      }
    }
    ::close(pipe_fd[1]);
    const auto want = acknowledged + 1 + random.below(30);
    while (acknowledged < want)
      ASSERT_EQ(::read(pipe_fd[0], &acknowledged, sizeof(acknowledged)), static_cast<ssize_t>(sizeof(acknowledged)));
    ::kill(child, SIGKILL);
    int rc = 0;
    ::waitpid(child, &rc, 0);
    for (std::uint64_t more = 0; ::read(pipe_fd[0], &more, sizeof(more)) == sizeof(more);) acknowledged = more;
    ::close(pipe_fd[0]);
    auto kv = must(open_lmdb_kv(dir / "kv"));
    auto txn = must(kv->read());
    const auto a = get_le<std::uint64_t>(must(txn->get("t", as_bytes("a")))->bytes.data());
    EXPECT_EQ(a, get_le<std::uint64_t>(must(txn->get("t", as_bytes("b")))->bytes.data()));
    EXPECT_GE(a, acknowledged);
    acknowledged = a;
  }
}

}  // namespace
}  // namespace falaj::storage
