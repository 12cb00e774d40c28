// Shared by the storage tests: a scratch folder, a key file, a printed seed, byte search over a folder.
#pragma once
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>

#include "runtime/base/bytes.hpp"
#include "runtime/base/clock.hpp"
#include "runtime/base/random.hpp"
#include "storage/files.hpp"
#include "storage/seal.hpp"

namespace falaj::storage::test {
namespace fs = std::filesystem;

inline std::uint64_t seed() {
  static const std::uint64_t value = [] {
    const char* given = std::getenv("FALAJ_TEST_SEED");
    const auto s = given != nullptr ? std::strtoull(given, nullptr, 10) : entropy_seed();
    std::cerr << "FALAJ_TEST_SEED=" << s << "\n";
    return s;
  }();
  return value;
}
inline Random random_for(std::string_view name) { return Random(seed()).split(name); }

class Scratch {
 public:
  Scratch() : path_(fs::temp_directory_path() / ("falaj-storage-" + random_name())) { fs::create_directories(path_); }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }
  fs::path operator/(std::string_view part) const { return path_ / part; }

 private:
  fs::path path_;
};

template <class T>
T must(Result<T> result) {
  if (!result) {
    ADD_FAILURE() << to_string(result.error());
    throw std::runtime_error(to_string(result.error()));
  }
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

template <class T>
ErrorCode code_of(const Result<T>& result) {
  EXPECT_FALSE(result.has_value());
  return result ? ErrorCode::failed : result.error().code;
}
template <class T>
std::string message_of(const Result<T>& result) {
  return result ? std::string() : result.error().message;
}

inline std::unique_ptr<FileKeyProvider> key_file(const fs::path& path) {
  if (!fs::exists(path)) must(FileKeyProvider::create(path));
  return must(FileKeyProvider::open(path));
}

inline Bytes slurp(const fs::path& path) { return must(read_file(path)); }
inline void spit(const fs::path& path, ByteView bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}
inline void flip(const fs::path& path, std::size_t offset, std::uint8_t mask) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(static_cast<std::streamoff>(offset));
  const auto byte = static_cast<char>(file.get() ^ mask);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(byte);
}

// Files below `dir` that hold these bytes.
inline std::vector<fs::path> files_with(const fs::path& dir, std::string_view marker) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) {
    if (entry.path().string().find(marker) != std::string::npos) out.push_back(entry.path());
    if (!entry.is_regular_file()) continue;
    const auto bytes = slurp(entry.path());
    if (as_text(bytes).find(marker) != std::string_view::npos) out.push_back(entry.path());
  }
  return out;
}

// A file system of a few megabytes; needs root. `ok` is false where it cannot be had: the test then skips.
class SmallDisk {
 public:
  explicit SmallDisk(const fs::path& at, const char* options = "size=3m") : at_(at) {
    fs::create_directories(at);
    ok_ = ::mount("falaj-test", at.c_str(), "tmpfs", 0, options) == 0;
  }
  ~SmallDisk() {
    if (ok_) ::umount2(at_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  [[nodiscard]] bool ok() const { return ok_; }

 private:
  fs::path at_;
  bool ok_ = false;
};

inline Bytes noise(Random& random, std::size_t n) {
  Bytes out(n);
  for (auto& b : out) b = static_cast<std::uint8_t>(random.next());
  return out;
}

}  // namespace falaj::storage::test
