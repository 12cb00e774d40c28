// A disk in memory, for simulation: volumes "/<volume>/..." that lose what was not synced when their power fails.
//
// Crash model, as of an ordered journal: of a file, what was synced last survives, and of what was written since then nothing, all, or a
// part up to any byte, of which the last sector may be garbage. Of the names made, moved or removed in a folder since it was synced, the
// oldest few survive; a rename is atomic. What sync returned for is safe.
#pragma once
#include <map>
#include <memory>

#include "runtime/base/random.hpp"
#include "storage/disk.hpp"

namespace falaj::storage {

class MemoryDisk final : public Disk {
 public:
  int open(const std::string& path, int flags) override;
  void close(int fd) noexcept override;
  std::int64_t write(int fd, ByteView bytes) override;
  std::int64_t read(int fd, std::span<std::uint8_t> out) override;
  std::int64_t seek(int fd, std::int64_t position) override;
  int truncate(int fd, std::int64_t size) override;
  int sync(int fd) override;
  std::int64_t size(const std::string& path) override;
  bool is_folder(const std::string& path) override;
  int make_folder(const std::string& path) override;
  int rename(const std::string& from, const std::string& to) override;
  int unlink(const std::string& path) override;
  int list(const std::string& path, std::vector<std::string>& names) override;
  int lock(int fd, Lock how) override;
  bool locked(const std::string& path) override;

  // -- faults, by volume
  void power_off(const std::string& volume);                 // every call fails from now on
  void power_on(const std::string& volume, Random& random);  // what survived the failure is there
  void resume(const std::string& volume);                    // as it was: only the process had ended
  void set_full(const std::string& volume, bool full);

 private:
  struct File {
    Bytes bytes;
    Bytes synced;
    bool folder = false;
    int exclusive = -1;  // descriptor that holds it
    std::map<int, bool> shared;
  };
  using Ref = std::shared_ptr<File>;
  struct Change {  // of names, not yet synced; `from` empty: only `to` changed
    std::string from, to;
    Ref file;  // at `to` afterwards; null: removed
  };
  struct Volume {
    std::map<std::string, Ref> names;                    // as running programs see them
    std::map<std::string, Ref> durable;                  // as they are after a failure
    std::map<std::string, std::vector<Change>> pending;  // by folder
    bool off = false;
    bool full = false;
  };
  struct Open {
    std::string volume, path;
    Ref file;
    std::int64_t position = 0;
  };
  Volume& volume_of(const std::string& path);
  Open* find(int fd);
  static void apply(std::map<std::string, Ref>& names, const Change& change);
  void change(Volume& volume, Change change);
  static void survive(File& file, Random& random);

  std::map<std::string, Volume> volumes_;
  std::map<int, Open> open_;
  int next_ = kSimulatedDescriptor;
};

}  // namespace falaj::storage
