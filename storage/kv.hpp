// Kv: a small transactional key-value store. Two implementations: lmdb_kv.hpp (disk) and memory_kv.hpp (simulation);
// SealedKv (sealed_kv.hpp) wraps either, so that what lies on the disk is ciphertext.
//
// Transactions are scopes: a ReadTxn sees one snapshot for its whole life, a WriteTxn sees its own writes, and is undone by
// its destructor unless commit() succeeded. Each value is framed with {format, value version, length, CRC-32C over table,
// key and value}; a value that fails it is reported as `corrupt`, with its table and key, by every read that meets it.
//
// Thread rules: everything is synchronous and may touch the disk: call it from run_blocking. A Kv may be used by any number of
// threads. A transaction is used by one thread at a time, and a WriteTxn only by the thread that opened it.
//
// Ways to get hurt:
//  - One writer at a time: write() waits for the one before. Opening a second WriteTxn on the thread that holds one waits for ever.
//  - A ReadTxn held for long keeps old pages alive, and the file grows: read, copy what you need, let it go.
//  - A visitor must not write to the store it is scanning; collect, then write.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::storage {

constexpr std::size_t kTableNameMax = 48;  // [a-z0-9_.-]+
constexpr std::size_t kKeyBytesMax = 440;  // with the table's name it must fit LMDB's 511
constexpr std::size_t kValueBytesMax = 64U << 20;

struct Value {
  Bytes bytes;
  std::uint16_t version = 0;  // of the value's own format; chosen by whoever writes it
};

// Borrowed: valid during the visit only.
struct Item {
  ByteView key;
  ByteView value;
  std::uint16_t version = 0;
};
using Visitor = std::function<bool(const Item&)>;  // false: stop here

class ReadTxn {
 public:
  virtual ~ReadTxn() = default;
  ReadTxn(const ReadTxn&) = delete;
  ReadTxn& operator=(const ReadTxn&) = delete;

  [[nodiscard]] virtual Result<std::optional<Value>> get(std::string_view table, ByteView key) = 0;
  // All keys that begin with `prefix` and are not smaller than `from` (a whole key, or empty), in byte order.
  [[nodiscard]] virtual Status scan(std::string_view table, ByteView prefix, ByteView from, const Visitor& visit) = 0;
  [[nodiscard]] virtual Result<std::vector<std::string>> tables() = 0;

  [[nodiscard]] Status scan(std::string_view table, ByteView prefix, const Visitor& visit) { return scan(table, prefix, {}, visit); }
  [[nodiscard]] virtual Result<std::uint64_t> count(std::string_view table, ByteView prefix);
  [[nodiscard]] Result<std::uint64_t> count(std::string_view table) { return count(table, ByteView{}); }

 protected:
  ReadTxn() = default;
};

class WriteTxn : public ReadTxn {
 public:
  [[nodiscard]] virtual Status put(std::string_view table, ByteView key, ByteView value, std::uint16_t version) = 0;
  [[nodiscard]] virtual Result<bool> erase(std::string_view table, ByteView key) = 0;  // false: it was not there
  // Makes all of it visible at once, and durable unless the store was opened with Sync::on_demand. After an error nothing
  // has changed (no_space: free some, then try again with a new transaction). The transaction is over either way.
  [[nodiscard]] virtual Status commit() = 0;
  virtual void abort() noexcept = 0;
};

enum class Sync : std::uint8_t {
  every_commit,  // a commit that returned survives power loss
  on_demand,     // commits survive the end of the process; power loss may take those since the last sync()
};

class Kv {
 public:
  virtual ~Kv() = default;
  [[nodiscard]] virtual Result<std::unique_ptr<ReadTxn>> read() = 0;
  [[nodiscard]] virtual Result<std::unique_ptr<WriteTxn>> write() = 0;
  [[nodiscard]] virtual Status sync() = 0;
};

// --- the frame of a stored value (FORMATS.md §1), for implementations -----------------------------------------------
constexpr std::size_t kRecordHeaderBytes = 12;
Bytes frame_record(std::string_view table, ByteView key, ByteView value, std::uint16_t version);
// Borrowed from `record`. `corrupt` and `unimplemented` (a newer format) name table and key.
Result<Item> open_record(std::string_view table, ByteView key, ByteView record);
Status check_table_name(std::string_view table);
Status check_key(std::string_view table, ByteView key);
std::string printable(ByteView key);  // text where it is text, else 0x..; for errors, at most 80 characters

}  // namespace falaj::storage
