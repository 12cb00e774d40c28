// The simulated disk: what its crash model keeps, and what it may lose.
#include "storage/memory_disk.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "storage/files.hpp"

namespace falaj::storage {
namespace {

// A volume "/v" with one folder, both durable.
class MemoryDiskTest : public testing::Test {
 protected:
  MemoryDiskTest() { EXPECT_TRUE(make_dirs("/v/store").has_value()); }

  Status write(const std::string& path, std::string_view text, bool sync) {
    FALAJ_ASSIGN(const auto fd, open_file(path, O_WRONLY | O_CREAT));
    FALAJ_TRY(write_all(fd.get(), as_bytes(text), path));
    if (sync) FALAJ_TRY(sync_file(fd.get(), path));
    return {};
  }
  std::string read(const std::string& path) {
    const auto bytes = read_file(path);
    return bytes.has_value() ? std::string(as_text(*bytes)) : "?";
  }
  void fail_power() {
    disk_.power_off("/v");
    disk_.power_on("/v", random_);
  }

  Random random_{1};
  MemoryDisk disk_;
  DiskScope scope_{disk_};
};

TEST_F(MemoryDiskTest, WhatWasSyncedSurvives) {
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(replace_file("/v/store/a", as_bytes("content"), "/v/store").has_value());
    fail_power();
    ASSERT_EQ(read("/v/store/a"), "content");
  }
}

TEST_F(MemoryDiskTest, WhatWasNotSyncedIsKeptLostOrTorn) {
  bool kept = false, lost = false, torn = false;
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(write("/v/store/a", "0123456789", true).has_value());
    ASSERT_TRUE(sync_dir("/v/store").has_value());
    ASSERT_TRUE(write("/v/store/a", "abcdefghij", false).has_value());
    fail_power();
    const auto left = read("/v/store/a");
    kept = kept || left == "abcdefghij";
    lost = lost || left == "0123456789";
    torn = torn || (left.starts_with("a") && left.ends_with("9"));
  }
  EXPECT_TRUE(kept && lost && torn);
}

TEST_F(MemoryDiskTest, NamesNeedTheFolderSynced) {
  std::size_t there = 0;
  for (int i = 0; i < 100; ++i) {
    const auto path = "/v/store/" + std::to_string(i);
    ASSERT_TRUE(write(path, "x", true).has_value());
    fail_power();
    if (file_exists(path)) ++there;
  }
  EXPECT_GT(there, 10U);
  EXPECT_LT(there, 90U);
}

TEST_F(MemoryDiskTest, AnEndedProcessLosesNothingButItsLocks) {
  ASSERT_TRUE(write("/v/store/a", "0123456789", false).has_value());
  auto lock = DirLock::take("/v/store", "lock", DirLock::Kind::exclusive);
  ASSERT_TRUE(lock.has_value());
  EXPECT_FALSE(DirLock::take("/v/store", "lock", DirLock::Kind::exclusive).has_value());
  disk_.power_off("/v");
  EXPECT_FALSE(read_file("/v/store/a").has_value()) << "nothing more of the process that ends";
  disk_.resume("/v");
  EXPECT_EQ(read("/v/store/a"), "0123456789");
  EXPECT_TRUE(DirLock::take("/v/store", "lock", DirLock::Kind::exclusive).has_value());
}

TEST_F(MemoryDiskTest, AFullDiskChangesNothing) {
  ASSERT_TRUE(replace_file("/v/store/a", as_bytes("old"), "/v/store").has_value());
  disk_.set_full("/v", true);
  const auto refused = replace_file("/v/store/a", as_bytes("new"), "/v/store");
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::no_space);
  EXPECT_EQ(read("/v/store/a"), "old");
  disk_.set_full("/v", false);
  EXPECT_TRUE(replace_file("/v/store/a", as_bytes("new"), "/v/store").has_value());
  EXPECT_EQ(read("/v/store/a"), "new");
}

}  // namespace
}  // namespace falaj::storage
