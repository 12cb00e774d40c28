// Kv in memory, for simulation and unit tests: same semantics as on disk, plus the faults of a disk, on demand.
// Crash model: a transaction is atomic; transactions committed since the last sync may be lost, always the newest first.
#pragma once
#include <condition_variable>
#include <map>
#include <mutex>

#include "runtime/base/random.hpp"
#include "storage/kv.hpp"

namespace falaj::storage {

struct MemoryOptions {
  Sync sync = Sync::every_commit;
  std::uint64_t bytes_max = ~0ULL;  // keys and values together; beyond it commits say no_space
};

class MemoryKv final : public Kv {
 public:
  explicit MemoryKv(MemoryOptions options = {});
  ~MemoryKv() override;
  [[nodiscard]] Result<std::unique_ptr<ReadTxn>> read() override;
  [[nodiscard]] Result<std::unique_ptr<WriteTxn>> write() override;
  [[nodiscard]] Status sync() override;

  // Power loss: some of the commits since the last sync vanish. No transaction may be open. Returns how many were lost.
  std::uint64_t crash(Random& random);
  void fail_next_commit(Error error);  // once; nothing is changed by that commit
  void set_bytes_max(std::uint64_t bytes_max);
  // Flips bits of one byte of the stored record (header included); false: no such key or offset.
  bool flip(std::string_view table, ByteView key, std::size_t offset, std::uint8_t mask);
  [[nodiscard]] std::uint64_t bytes() const;

  using Map = std::map<std::string, Bytes, std::less<>>;  // table 0x00 key -> framed record

 private:
  friend class MemoryWrite;
  struct Undo {
    std::string key;
    std::optional<Bytes> before;
  };
  Status apply(std::map<std::string, std::optional<Bytes>, std::less<>>& changes);
  void release_writer() noexcept;

  mutable std::mutex mutex_;
  std::condition_variable writer_free_;
  bool writing_ = false;
  std::shared_ptr<Map> map_;
  std::uint64_t bytes_ = 0;
  MemoryOptions options_;
  std::vector<std::vector<Undo>> unsynced_;
  std::optional<Error> fail_next_;
};

}  // namespace falaj::storage
