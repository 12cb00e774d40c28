#include "storage/audit_log.hpp"

#include <sys/wait.h>

#include <algorithm>

#include "runtime/base/thread.hpp"
#include "tests/storage/support.hpp"

namespace falaj::storage {
namespace {
using namespace test;

AuditEntry entry(int n) {
  return {.time = WallTime{1000 + n},
          .principal = "spiffe://c/person/p" + std::to_string(n),
          .verb = "features.read",
          .target = "view/credit",
          .tenant = "acme",
          .purpose = "scoring",
          .outcome = n % 3 == 0 ? Outcome::denied : Outcome::allowed,
          .reason = std::string(static_cast<std::size_t>(n % 40), 'r'),
          .request_id = std::to_string(n)};
}

class Audit : public testing::Test {
 public:
  Audit() : provider(key_file(dir / "kek")) {}
  std::unique_ptr<AuditLog> open() { return must(AuditLog::open(dir / "audit", *provider, clock, options)); }
  void fill(int from, int to) {
    auto log = open();
    for (int i = from; i < to; ++i) must(log->append(entry(i)));
    must(log->close());
  }
  std::vector<AuditEntry> read(std::uint64_t from = 0) {
    std::vector<AuditEntry> out;
    must(read_audit(dir / "audit", *provider, from, [&](std::uint64_t, const AuditEntry& e) {
      out.push_back(e);
      return true;
    }));
    return out;
  }
  std::vector<fs::path> segments() {
    std::vector<fs::path> out;
    for (const auto& file : fs::directory_iterator(dir / "audit")) {
      if (file.path().extension() == ".log") out.push_back(file.path());
    }
    std::ranges::sort(out);
    return out;
  }
  Scratch dir;
  ManualClock clock;
  std::unique_ptr<FileKeyProvider> provider;
  AuditOptions options{.segment_bytes = 4096, .sign_every = 10};
};

TEST_F(Audit, KeepsEntriesAcrossReopeningAndProvesThem) {
  fill(0, 35);
  fill(35, 60);
  const auto entries = read();
  ASSERT_EQ(entries.size(), 60U);
  for (int i = 0; i < 60; ++i) EXPECT_EQ(entries[static_cast<std::size_t>(i)], entry(i));
  const auto verdict = must(verify_audit(dir / "audit"));
  EXPECT_TRUE(verdict.good) << verdict.what;
  EXPECT_EQ(verdict.entries, 60U);
  EXPECT_GE(verdict.heads, 6U);
  EXPECT_EQ(verdict.records, verdict.entries + verdict.heads);
  EXPECT_EQ(verdict.after_last_head, 0U);
  EXPECT_GT(verdict.segments, 2U);
  auto log = open();
  EXPECT_EQ(log->public_key_hex(), verdict.public_key);
  EXPECT_EQ(log->size(), verdict.records);
  must(log->append_and_sync(entry(60)));
  EXPECT_EQ(must(verify_audit(dir / "audit")).after_last_head, 1U);
  const auto head = must(log->sign_head());
  EXPECT_EQ(head.size, verdict.records + 1);
  EXPECT_TRUE(must(verify_audit(dir / "audit", verdict.public_key)).good);
  EXPECT_FALSE(must(verify_audit(dir / "audit", std::string(64, '1'))).good);
  EXPECT_EQ(code_of(verify_audit(dir / "audit", "nonsense")), ErrorCode::invalid);
  EXPECT_EQ(code_of(AuditLog::open(dir / "audit", *provider, clock)), ErrorCode::conflict);  // one writer
}

TEST_F(Audit, EachFlippedByteIsFoundAndTheEntryNamed) {
  options.segment_bytes = 1500;
  fill(0, 14);
  const auto good = must(verify_audit(dir / "audit"));
  ASSERT_TRUE(good.good);
  auto random = random_for("audit flip");
  std::uint64_t before = 0;
  for (const auto& file : segments()) {
    const auto size = fs::file_size(file);
    for (std::size_t i = 0; i < size; ++i) {
      const auto mask = static_cast<std::uint8_t>(1U << random.below(8));
      flip(file, i, mask);
      const auto verdict = verify_audit(dir / "audit");
      ASSERT_TRUE(verdict.has_value()) << file << " " << i;
      EXPECT_FALSE(verdict->good) << file << " " << i;
      EXPECT_EQ(verdict->bad_segment, file.filename().string()) << i;
      EXPECT_LE(verdict->bad_offset, i);
      EXPECT_GE(verdict->bad_index, before);
      flip(file, i, mask);
    }
    before = std::stoull(file.stem().string().substr(6));
  }
  for (const auto* name : {"head", "signing.pub", "FORMAT"}) {
    const auto size = fs::file_size(dir / "audit" / name);
    for (std::size_t i = 0; i < size; ++i) {
      const auto mask = static_cast<std::uint8_t>(1U << random.below(5));
      flip(dir / "audit" / name, i, mask);
      const auto verdict = verify_audit(dir / "audit");
      EXPECT_FALSE(verdict && verdict->good) << name << " " << i;
      flip(dir / "audit" / name, i, mask);
    }
  }
  EXPECT_TRUE(must(verify_audit(dir / "audit")).good);
}

TEST_F(Audit, MissingReorderedOrForeignSegmentsAreFound) {
  fill(0, 100);
  const auto files = segments();
  ASSERT_GE(files.size(), 4U);
  const auto check_without = [&](std::size_t i, std::string_view named) {
    const auto kept = dir / "kept";
    fs::rename(files[i], kept);
    const auto verdict = must(verify_audit(dir / "audit"));
    EXPECT_FALSE(verdict.good) << i;
    EXPECT_EQ(verdict.bad_segment, named);
    fs::rename(kept, files[i]);
  };
  check_without(0, files[1].filename().string());
  check_without(1, files[2].filename().string());
  check_without(files.size() - 1, "head");
  const auto bytes = slurp(files[2]);
  spit(files[2], slurp(files[1]));
  EXPECT_FALSE(must(verify_audit(dir / "audit")).good);
  spit(files[2], bytes);
  // Cut at a record's border: only the signed head tells.
  const auto last = slurp(files.back());
  const auto tail = 4 + 1 + 112 + 32;  // the head that close() signed
  fs::resize_file(files.back(), last.size() - tail);
  const auto cut = must(verify_audit(dir / "audit"));
  EXPECT_FALSE(cut.good);
  EXPECT_NE(cut.what.find("another history"), std::string::npos) << cut.what;
  spit(files.back(), last);
  EXPECT_TRUE(must(verify_audit(dir / "audit")).good);
}

TEST_F(Audit, ATornLastEntryIsCutOffWithANoteAndDamageIsRefused) {
  auto random = random_for("audit torn");
  options.segment_bytes = 1U << 20;
  fill(0, 5);
  for (int round = 0; round < 20; ++round) {
    const auto before = read();
    const auto file = segments().back();
    const auto whole = fs::file_size(file);
    {
      auto log = open();
      must(log->append_and_sync(entry(1000 + round)));
      log->sync().value();
      // What a crash leaves: a part of the record, or zeros where data never arrived.
      const auto full = fs::file_size(file);
      const auto keep = whole + 1 + random.below(full - whole - 1);
      auto bytes = slurp(file);
      bytes.resize(keep);
      if (random.chance(0.3)) std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(whole), bytes.end(), 0);
      spit(dir / "torn-copy", bytes);
    }
    fs::copy_file(dir / "torn-copy", file, fs::copy_options::overwrite_existing);
    EXPECT_FALSE(must(verify_audit(dir / "audit")).good);
    must(open()->close());
    const auto after = read();
    ASSERT_EQ(after.size(), before.size() + 1);
    EXPECT_EQ(after.back().outcome, Outcome::note);
    EXPECT_EQ(after.back().verb, "audit.recover");
    fs::remove(dir / "audit" / "head");
    {
      (void)must(open()->sign_head());
    }
    must(open()->append_and_sync(entry(1)));
    const auto verdict = must(verify_audit(dir / "audit"));
    EXPECT_TRUE(verdict.good) << verdict.what;
  }
  const auto file = segments().back();
  flip(file, fs::file_size(file) - 20, 1);  // the last record is whole, and wrong: no crash does that
  const auto refused = AuditLog::open(dir / "audit", *provider, clock);
  EXPECT_EQ(code_of(refused), ErrorCode::corrupt);
  EXPECT_NE(message_of(refused).find("falaj audit verify"), std::string::npos);
}

TEST_F(Audit, ACrashBeforeTheFileHeadIsWrittenIsMendedAndALostOneIsNoted) {
  const auto head = dir / "audit" / "head";
  const auto verdict = [&] { return must(verify_audit(dir / "audit")); };
  fill(0, 3);  // closing signs the first head
  const auto first = slurp(head);
  fs::remove(head);  // as if killed between the record and the file
  EXPECT_TRUE(verdict().good) << verdict().what;
  must(open()->close());
  EXPECT_EQ(slurp(head), first);
  EXPECT_TRUE(verdict().good) << verdict().what;
  EXPECT_EQ(read().size(), 3U);
  fill(3, 5);
  const auto second = slurp(head);
  ASSERT_NE(second, first);
  spit(head, first);  // the same of the second head
  EXPECT_TRUE(verdict().good) << verdict().what;
  must(open()->close());
  EXPECT_EQ(slurp(head), second);
  EXPECT_EQ(read().size(), 5U);
  fs::remove(head);  // no crash does that
  EXPECT_FALSE(verdict().good);
  must(open()->close());
  EXPECT_TRUE(verdict().good) << verdict().what;
  const auto entries = read();
  ASSERT_EQ(entries.size(), 6U);
  EXPECT_EQ(entries.back().verb, "audit.recover");
  EXPECT_EQ(entries.back().target, "head");
}

TEST_F(Audit, KilledWritersLoseNoSyncedEntry) {
  auto random = random_for("audit kill");
  std::uint64_t acknowledged = 0;
  for (int round = 0; round < 6; ++round) {
    int fds[2];
    ASSERT_EQ(::pipe(fds), 0);
    const auto child = ::fork();
    if (child == 0) {
      auto log = AuditLog::open(dir / "audit", *provider, clock, options);
      if (!log) ::_exit(1);
      for (;;) {
        if (!(*log)->append_and_sync(entry(1)) || ::write(fds[1], "x", 1) != 1) ::_exit(1);
      }
    }
    ::close(fds[1]);
    char c = 0;
    for (std::uint64_t n = 0; n < 1 + random.below(40); ++n) {
      ASSERT_EQ(::read(fds[0], &c, 1), 1);
      ++acknowledged;
    }
    ::kill(child, SIGKILL);
    int rc = 0;
    ::waitpid(child, &rc, 0);
    while (::read(fds[0], &c, 1) == 1) ++acknowledged;
    ::close(fds[0]);
    must(open()->close());
    const auto verdict = must(verify_audit(dir / "audit"));
    EXPECT_TRUE(verdict.good) << verdict.what;
    EXPECT_GE(read().size(), acknowledged);
  }
}

TEST_F(Audit, FullDiskSaysNoSpaceAndGoesOnWhenThereIsRoom) {
  SmallDisk disk(dir / "disk", "size=1m");
  if (!disk.ok()) GTEST_SKIP() << "no right to mount a small file system";
  options.segment_bytes = 100'000;
  const auto where = dir / "disk" / "audit";
  auto log = must(AuditLog::open(where, *provider, clock, options));
  must(log->append_and_sync(entry(0)));
  spit(dir / "disk" / "filler", Bytes(600'000));
  Status status;
  int n = 1;
  for (; status && n < 10'000; ++n) status = log->append_and_sync(entry(n));
  EXPECT_EQ(code_of(status), ErrorCode::no_space);
  fs::remove(dir / "disk" / "filler");
  must(log->sync());
  must(log->append_and_sync(entry(n)));
  must(log->close());
  log = nullptr;
  const auto verdict = must(verify_audit(where));
  EXPECT_TRUE(verdict.good) << verdict.what;
  EXPECT_EQ(verdict.entries, static_cast<std::uint64_t>(n) + 1);
}

TEST_F(Audit, NothingIsInClearOnDiskAndManyThreadsShareSyncs) {
  options.segment_bytes = 20'000;
  {
    auto log = open();
    std::vector<Thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back("append", [&] {
        for (int i = 0; i < 100; ++i) {
          auto e = entry(i);
          e.principal = e.target = e.reason = e.tenant = e.purpose = "MARKER-PERSON";
          must(log->append_and_sync(e));
        }
      });
    }
  }
  EXPECT_TRUE(files_with(dir / "audit", "MARKER-PERSON").empty());
  const auto verdict = must(verify_audit(dir / "audit"));
  EXPECT_TRUE(verdict.good) << verdict.what;
  EXPECT_EQ(verdict.entries, 400U);
  EXPECT_EQ(read(200).front().tenant, "MARKER-PERSON");
}

TEST_F(Audit, RefusesANewerFormatAndALostKey) {
  fill(0, 3);
  spit(dir / "audit" / "FORMAT", as_bytes("falaj audit 2\n"));
  for (const auto& message : {message_of(AuditLog::open(dir / "audit", *provider, clock)), message_of(verify_audit(dir / "audit"))}) {
    EXPECT_NE(message.find("made by a newer falaj; upgrade this node"), std::string::npos) << message;
  }
  spit(dir / "audit" / "FORMAT", as_bytes("falaj audit 1\n"));
  auto file = slurp(segments()[0]);
  file[8] = 2;  // the segment's own version, with a good checksum
  Bytes crc;
  put_le(crc, crc32c(ByteView(file).first(124)));
  std::ranges::copy(crc, file.begin() + 124);
  spit(segments()[0], file);
  EXPECT_EQ(code_of(AuditLog::open(dir / "audit", *provider, clock)), ErrorCode::unimplemented);
  EXPECT_EQ(code_of(verify_audit(dir / "audit")), ErrorCode::unimplemented);
  file[8] = 1;
  fs::remove(dir / "audit" / "signing.key");
  EXPECT_EQ(code_of(AuditLog::open(dir / "audit", *provider, clock)), ErrorCode::corrupt);
}

}  // namespace
}  // namespace falaj::storage
