#include "storage/artifact_store.hpp"

#include <fcntl.h>
#include <sys/wait.h>

#include "runtime/base/thread.hpp"
#include "tests/storage/support.hpp"

namespace falaj::storage {
namespace {
using namespace test;

class Artifacts : public testing::Test {
 public:
  Artifacts() : provider(key_file(dir / "kek")) { reopen(); }
  void reopen(const fs::path& where = {}) {
    store = nullptr;
    store = must(ArtifactStore::open(where.empty() ? dir / "artifacts" : where, *provider, clock, {.chunk_bytes = 4096}));
  }
  std::vector<fs::path> files(std::string_view part) {
    std::vector<fs::path> out;
    for (const auto& entry : fs::recursive_directory_iterator(dir / "artifacts" / part)) {
      if (entry.is_regular_file()) out.push_back(entry.path());
    }
    return out;
  }
  Scratch dir;
  ManualClock clock;
  std::unique_ptr<FileKeyProvider> provider;
  std::unique_ptr<ArtifactStore> store;
  ArtifactMeta meta{"application/onnx", "acme", "credit", "ae"};
};

TEST_F(Artifacts, StreamsInAndOut) {
  auto random = random_for("artifact stream");
  for (const std::size_t size : {0UL, 1UL, 4095UL, 4096UL, 4097UL, 100'000UL}) {
    const auto content = noise(random, size);
    auto writer = must(store->create(meta));
    for (std::size_t at = 0; at < size;) {
      const auto n = std::min<std::size_t>(size - at, 1 + random.below(9000));
      must(writer->write(ByteView(content).subspan(at, n)));
      at += n;
    }
    const auto manifest = must(writer->commit());
    EXPECT_EQ(manifest.digest, sha256(content));
    EXPECT_EQ(manifest.size, size);
    EXPECT_EQ(manifest.chunks.size(), (size + 4095) / 4096);
    EXPECT_FALSE(writer->commit().has_value());
    EXPECT_EQ(must(store->read_all(manifest.id)), content);
    must(store->verify(manifest.id));
    auto reader = must(store->open_artifact(manifest.id));
    Bytes small(777);
    Bytes got;
    for (std::size_t n = 1; n > 0;) {
      n = must(reader->read(small));
      append(got, ByteView(small).first(n));
    }
    EXPECT_EQ(got, content);
    const auto offset = random.below(size + 1);
    must(reader->seek(offset));
    const auto n = must(reader->read(small));
    EXPECT_TRUE(std::ranges::equal(ByteView(small).first(n), ByteView(content).subspan(offset, std::min<std::size_t>(777, size - offset))));
    EXPECT_FALSE(reader->seek(size + 1).has_value());
  }
  EXPECT_EQ(must(store->list()).size(), 6U);
  EXPECT_EQ(code_of(store->stat(sha256("nothing"))), ErrorCode::not_found);
}

TEST_F(Artifacts, SharesEqualChunksAndCollectsUnnamedOnes) {
  auto random = random_for("artifact dedupe");
  const auto common = noise(random, 8192);
  auto longer = common;
  append(longer, noise(random, 4096));
  const auto first = must(store->put(common, meta));
  const auto second = must(store->put(longer, meta));
  auto other_meta = meta;
  other_meta.tenant = "rival";
  const auto third = must(store->put(common, other_meta));
  EXPECT_NE(first.id, third.id);
  EXPECT_EQ(first.digest, third.digest);
  EXPECT_EQ(must(store->put(common, meta)).id, first.id);
  EXPECT_EQ(files("chunks").size(), 3U);
  EXPECT_EQ(must(store->collect()).chunks_removed, 0U);
  must(store->remove(second.id));
  EXPECT_EQ(code_of(store->remove(second.id)), ErrorCode::not_found);
  auto open_writer = must(store->create(meta));
  must(open_writer->write(noise(random, 5000)));  // one chunk on disk, not named yet
  const auto report = must(store->collect());
  EXPECT_EQ(report.chunks_removed, 1U);
  EXPECT_EQ(report.chunks_kept, 3U);
  must(store->verify(must(open_writer->commit()).id));
  {
    auto abandoned = must(store->create(meta));
    must(abandoned->write(noise(random, 5000)));
  }
  EXPECT_EQ(must(store->collect()).chunks_removed, 1U);
  must(store->verify(first.id));
  must(store->verify(third.id));
}

TEST_F(Artifacts, EachFlippedByteIsFoundAndItsFileNamed) {
  auto random = random_for("artifact flip");
  auto compressible = Bytes(3000, 'a');
  const auto manifest = must(store->put(compressible, meta));
  for (const auto* part : {"chunks", "manifests"}) {
    const auto file = files(part).at(0);
    const auto size = fs::file_size(file);
    for (std::size_t i = 0; i < size; ++i) {
      const auto mask = static_cast<std::uint8_t>(1U << random.below(8));
      flip(file, i, mask);
      const auto status = store->verify(manifest.id);
      EXPECT_EQ(code_of(status), ErrorCode::corrupt) << part << " " << i;
      EXPECT_NE(message_of(status).find(file.filename().string()), std::string::npos) << message_of(status);
      flip(file, i, mask);
    }
    fs::resize_file(file, size / 2);
    EXPECT_EQ(code_of(store->verify(manifest.id)), ErrorCode::corrupt);
    must(store->put(compressible, meta));  // heals what is damaged
    must(store->verify(manifest.id));
    fs::remove(file);
    EXPECT_EQ(code_of(store->verify(manifest.id)), ErrorCode::not_found);
    must(store->put(compressible, meta));
  }
  must(store->verify(manifest.id));
}

TEST_F(Artifacts, NothingIsInClearOnDisk) {
  std::string content;
  while (content.size() < 10'000) content += "MARKER-CONTENT ";
  must(store->put(as_bytes(content), {"MARKER-TYPE", "MARKER-TENANT", "MARKER-PURPOSE", "MARKER-RESIDENCY"}));
  EXPECT_TRUE(files_with(dir / "artifacts", "MARKER-").empty());
  reopen();
  EXPECT_EQ(must(store->list()).at(0).meta.tenant, "MARKER-TENANT");
}

TEST_F(Artifacts, MovesBetweenStores) {
  auto random = random_for("artifact move");
  const auto content = noise(random, 10'000);
  const auto manifest = must(store->put(content, meta));
  auto other_key = key_file(dir / "kek2");
  auto other = must(ArtifactStore::open(dir / "other", *other_key, clock));
  const auto travelling = must(ArtifactStore::decode(ArtifactStore::encode(manifest)));
  const auto early = other->adopt(travelling);
  EXPECT_EQ(code_of(early), ErrorCode::not_found);
  EXPECT_NE(message_of(early).find(manifest.chunks[0].digest.hex()), std::string::npos);
  for (const auto& chunk : manifest.chunks) {
    EXPECT_FALSE(other->has_chunk(chunk.digest));
    EXPECT_EQ(code_of(other->write_chunk(chunk.digest, as_bytes("forged"))), ErrorCode::invalid);
    must(other->write_chunk(chunk.digest, must(store->read_chunk(chunk.digest))));
  }
  must(other->adopt(travelling));
  EXPECT_EQ(must(other->read_all(manifest.id)), content);
  auto forged = travelling;
  forged.meta.tenant = "rival";
  EXPECT_EQ(code_of(other->adopt(forged)), ErrorCode::invalid);
  const auto bytes = ArtifactStore::encode(manifest);
  for (std::size_t i = 0; i < bytes.size(); ++i) (void)ArtifactStore::decode(ByteView(bytes).first(i));  // must not crash
  for (int i = 0; i < 2000; ++i) {
    auto bad = bytes;
    bad[random.below(bad.size())] ^= static_cast<std::uint8_t>(1 + random.below(255));
    (void)ArtifactStore::decode(bad);
  }
}

TEST_F(Artifacts, FullDiskSaysNoSpaceAndLeavesNoDebris) {
  SmallDisk disk(dir / "disk");
  if (!disk.ok()) GTEST_SKIP() << "no right to mount a small file system";
  auto random = random_for("artifact full");
  reopen(dir / "disk" / "artifacts");
  const auto small = must(store->put(noise(random, 5000), meta));
  const auto status = store->put(noise(random, 8U << 20), meta);
  EXPECT_EQ(code_of(status), ErrorCode::no_space) << message_of(status);
  EXPECT_TRUE(fs::is_empty(dir / "disk" / "artifacts" / "temp"));
  EXPECT_GT(must(store->collect()).chunks_removed, 0U);
  must(store->verify(small.id));
  must(store->put(noise(random, 100'000), meta));
  EXPECT_EQ(must(store->list()).size(), 2U);
}

TEST_F(Artifacts, KilledWritersLeaveNothingThatIsNamedAndMissing) {
  auto random = random_for("artifact kill");
  store = nullptr;
  for (int round = 0; round < 5; ++round) {
    int fds[2];
    ASSERT_EQ(::pipe(fds), 0);
    const auto child = ::fork();
    if (child == 0) {
      auto mine = ArtifactStore::open(dir / "artifacts", *provider, clock, {.chunk_bytes = 4096});
      Random noise_of(static_cast<std::uint64_t>(round));
      for (;;) {
        if (!mine || !(*mine)->put(noise(noise_of, 20'000), meta) || ::write(fds[1], "x", 1) != 1) ::_exit(1);
      }
    }
    ::close(fds[1]);
    char c = 0;
    for (std::uint64_t n = 0; n < 1 + random.below(5); ++n) ASSERT_EQ(::read(fds[0], &c, 1), 1);
    ::kill(child, SIGKILL);
    int rc = 0;
    ::waitpid(child, &rc, 0);
    ::close(fds[0]);
    reopen();
    EXPECT_TRUE(fs::is_empty(dir / "artifacts" / "temp"));
    for (const auto& manifest : must(store->list())) must(store->verify(manifest.id));
    (void)must(store->collect());
    for (const auto& manifest : must(store->list())) must(store->verify(manifest.id));
    store = nullptr;
  }
}

TEST_F(Artifacts, CollectSparesWhatOthersWriteMeanwhile) {
  auto random = random_for("artifact collect");
  const auto content = noise(random, 40'000);
  {
    std::vector<Thread> threads;
    for (int t = 0; t < 2; ++t) {
      threads.emplace_back("writer", [&] {
        for (int i = 0; i < 20; ++i) {
          const auto manifest = must(store->put(content, meta));
          must(store->verify(manifest.id));
        }
      });
    }
    for (int i = 0; i < 30; ++i) (void)must(store->collect());
  }
  const auto manifest = must(store->list()).at(0);
  must(store->verify(manifest.id));
  // Another process that has the store open keeps collect() away.
  auto second = must(ArtifactStore::open(dir / "artifacts", *provider, clock));
  EXPECT_EQ(code_of(store->collect()), ErrorCode::overloaded);
  second = nullptr;
  must(store->collect());
}

TEST_F(Artifacts, RewrapsAndRefusesANewerFormat) {
  const auto manifest = must(store->put(as_bytes("content"), meta));
  store = nullptr;
  must(FileKeyProvider::rotate(dir / "kek"));
  provider = must(FileKeyProvider::open(dir / "kek"));
  reopen();
  must(store->rewrap());
  must(FileKeyProvider::forget_previous(dir / "kek"));
  provider = must(FileKeyProvider::open(dir / "kek"));
  reopen();
  must(store->verify(manifest.id));
  spit(dir / "artifacts" / "FORMAT", as_bytes("falaj artifacts 9\n"));
  store = nullptr;
  const auto newer = ArtifactStore::open(dir / "artifacts", *provider, clock);
  EXPECT_EQ(code_of(newer), ErrorCode::unimplemented);
  EXPECT_NE(message_of(newer).find("upgrade this node"), std::string::npos);
}

}  // namespace
}  // namespace falaj::storage
