// The calls that the stores make on files, as an interface: the operating system stands behind files.hpp unless a simulation has put a
// Disk of its own under this thread. Not used by LMDB, which maps its file; MemoryKv stands for it in simulations.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/bytes.hpp"

namespace falaj::storage {

// Each call does what the one of POSIX does that it is named after; a negative result is -errno.
class Disk {
 public:
  virtual ~Disk() = default;
  virtual int open(const std::string& path, int flags) = 0;
  virtual void close(int fd) noexcept = 0;
  virtual std::int64_t write(int fd, ByteView bytes) = 0;  // at the position of the open file
  virtual std::int64_t read(int fd, std::span<std::uint8_t> out) = 0;
  virtual std::int64_t seek(int fd, std::int64_t position) = 0;
  virtual int truncate(int fd, std::int64_t size) = 0;
  virtual int sync(int fd) = 0;  // of a folder: the names in it
  virtual std::int64_t size(const std::string& path) = 0;
  virtual bool is_folder(const std::string& path) = 0;
  virtual int make_folder(const std::string& path) = 0;
  virtual int rename(const std::string& from, const std::string& to) = 0;
  virtual int unlink(const std::string& path) = 0;
  virtual int list(const std::string& path, std::vector<std::string>& names) = 0;  // sorted
  enum class Lock : std::uint8_t { none, shared, exclusive };
  virtual int lock(int fd, Lock how) = 0;            // -EAGAIN: another open file holds it
  virtual bool locked(const std::string& path) = 0;  // by anybody
};

// Descriptors of simulated disks are from here on, so that one closed later is known for what it is.
constexpr int kSimulatedDescriptor = 1 << 28;

// Puts a disk under this thread for as long as it lives.
class DiskScope {
 public:
  explicit DiskScope(Disk& disk) noexcept;
  ~DiskScope();
  DiskScope(const DiskScope&) = delete;
  DiskScope& operator=(const DiskScope&) = delete;

 private:
  Disk* before_;
};

Disk* simulated_disk() noexcept;  // null: the operating system's

}  // namespace falaj::storage
