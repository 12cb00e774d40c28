#include "storage/lmdb_kv.hpp"

#include <lmdb.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "runtime/base/format.hpp"
#include "storage/files.hpp"

namespace falaj::storage {
namespace fs = std::filesystem;
namespace {

constexpr std::uint32_t kKvFormat = 1;
constexpr std::uint64_t kMapBytesMin = 64ULL << 20;
constexpr unsigned kReadersMax = 1024;
static_assert(kTableNameMax + 1 + kKeyBytesMax <= 511);

// table 0x00 key, in place: this is on the path of every read.
class FullKey {
 public:
  FullKey(std::string_view table, ByteView key) : size_(table.size() + 1 + key.size()) {
    std::memcpy(bytes_.data(), table.data(), table.size());
    bytes_[table.size()] = 0;
    if (!key.empty()) std::memcpy(bytes_.data() + table.size() + 1, key.data(), key.size());
  }
  MDB_val val() { return {size_, bytes_.data()}; }
  [[nodiscard]] ByteView view() const { return {bytes_.data(), size_}; }

 private:
  std::array<std::uint8_t, 512> bytes_;
  std::size_t size_;
};

ByteView view_of(const MDB_val& val) { return {static_cast<const std::uint8_t*>(val.mv_data), val.mv_size}; }
MDB_val val_of(ByteView bytes) { return {bytes.size(), const_cast<std::uint8_t*>(bytes.data())}; }
bool begins_with(ByteView bytes, ByteView prefix) {
  return bytes.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), bytes.begin());
}

struct Env {
  ~Env() {
    if (env != nullptr) mdb_env_close(env);
  }
  MDB_env* env = nullptr;
  MDB_dbi dbi = 0;
  fs::path dir;
  std::uint64_t map_bytes = 0;
  std::optional<DirLock> lock;  // released after the environment is closed
};

// LMDB answers a short write, which is what a full disk first looks like, with EIO.
bool disk_looks_full(const fs::path& dir) {
  struct statvfs disk{};
  if (::statvfs(dir.c_str(), &disk) == 0 && static_cast<std::uint64_t>(disk.f_bavail) * disk.f_frsize < (1U << 20)) return true;
  struct rlimit limit{};
  struct stat file{};
  return ::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && ::stat((dir / "data.mdb").c_str(), &file) == 0 &&
         static_cast<std::uint64_t>(file.st_size) + (1U << 20) > limit.rlim_cur;
}

Error lmdb_error(int rc, std::string_view what, const Env& env) {
  const auto path = env.dir.string();
  if (rc == MDB_MAP_FULL) {
    return error(ErrorCode::no_space, format("{} {}: the store has reached its limit of {} MiB; erase something or raise the limit", what,
                                             path, env.map_bytes >> 20));
  }
  if (rc == MDB_TXN_FULL)
    return error(ErrorCode::no_space, format("{} {}: the transaction is too large; cut it into smaller ones", what, path));
  if (rc == EIO && disk_looks_full(env.dir)) rc = ENOSPC;
  if (rc > 0) return errno_error(rc, what, env.dir);
  if (rc == MDB_CORRUPTED || rc == MDB_PAGE_NOTFOUND || rc == MDB_INVALID || rc == MDB_VERSION_MISMATCH) {
    return error(ErrorCode::corrupt, format("{} {}: {}; restore this store from a backup", what, path, mdb_strerror(rc)));
  }
  if (rc == MDB_READERS_FULL) return error(ErrorCode::overloaded, format("{} {}: more than {} readers at once", what, path, kReadersMax));
  return failed(format("{} {}: {}", what, path, mdb_strerror(rc)));
}

class Txn {
 public:
  Txn(std::shared_ptr<Env> env, MDB_txn* txn) : env_(std::move(env)), txn_(txn) {}
  ~Txn() { abort(); }
  Txn(const Txn&) = delete;
  Txn& operator=(const Txn&) = delete;

  Result<std::optional<Value>> get(std::string_view table, ByteView key) {
    FALAJ_TRY(alive());
    FALAJ_TRY(check_key(table, key));
    FullKey full(table, key);
    auto k = full.val();
    MDB_val v{};
    const int rc = mdb_get(txn_, env_->dbi, &k, &v);
    if (rc == MDB_NOTFOUND) return std::optional<Value>{};
    if (rc != 0) return lmdb_error(rc, "read", *env_);
    FALAJ_ASSIGN(const auto item, open_record(table, key, view_of(v)));
    return std::optional<Value>(Value{.bytes = Bytes(item.value.begin(), item.value.end()), .version = item.version});
  }

  Status scan(std::string_view table, ByteView prefix, ByteView from, const Visitor& visit) {
    FALAJ_TRY(alive());
    FALAJ_TRY(check_table_name(table));
    if (prefix.size() > kKeyBytesMax || from.size() > kKeyBytesMax) return {};  // no key is that long
    const FullKey whole_prefix(table, prefix);
    const bool from_later = std::ranges::lexicographical_compare(prefix, from);
    FullKey start(table, from_later ? from : prefix);
    MDB_cursor* raw = nullptr;
    if (const int rc = mdb_cursor_open(txn_, env_->dbi, &raw); rc != 0) return lmdb_error(rc, "scan", *env_);
    const std::unique_ptr<MDB_cursor, void (*)(MDB_cursor*)> cursor(raw, mdb_cursor_close);
    auto k = start.val();
    MDB_val v{};
    int rc = mdb_cursor_get(raw, &k, &v, MDB_SET_RANGE);
    for (; rc == 0 && begins_with(view_of(k), whole_prefix.view()); rc = mdb_cursor_get(raw, &k, &v, MDB_NEXT)) {
      FALAJ_ASSIGN(const auto item, open_record(table, view_of(k).subspan(table.size() + 1), view_of(v)));
      if (!visit(item)) return {};
    }
    if (rc != 0 && rc != MDB_NOTFOUND) return lmdb_error(rc, "scan", *env_);
    return {};
  }

  Result<std::vector<std::string>> tables() {
    FALAJ_TRY(alive());
    MDB_cursor* raw = nullptr;
    if (const int rc = mdb_cursor_open(txn_, env_->dbi, &raw); rc != 0) return lmdb_error(rc, "scan", *env_);
    const std::unique_ptr<MDB_cursor, void (*)(MDB_cursor*)> cursor(raw, mdb_cursor_close);
    std::vector<std::string> out;
    MDB_val k{};
    MDB_val v{};
    int rc = mdb_cursor_get(raw, &k, &v, MDB_FIRST);
    while (rc == 0) {
      const auto text = as_text(view_of(k));
      const auto name = text.substr(0, text.find('\0'));
      if (name.size() == text.size() || !check_table_name(name)) {
        return error(ErrorCode::corrupt,
                     format("{}: key {} belongs to no table; restore this store from a backup", env_->dir.string(), printable(view_of(k))));
      }
      out.emplace_back(name);
      auto next = out.back() + '\x01';  // behind every key of this table
      k = {next.size(), next.data()};
      rc = mdb_cursor_get(raw, &k, &v, MDB_SET_RANGE);
    }
    if (rc != MDB_NOTFOUND) return lmdb_error(rc, "scan", *env_);
    return out;
  }

  Status put(std::string_view table, ByteView key, ByteView value, std::uint16_t version) {
    FALAJ_TRY(alive());
    FALAJ_TRY(check_key(table, key));
    if (value.size() > kValueBytesMax)
      return invalid(format("table {}: a value of {} bytes; at most {}", table, value.size(), kValueBytesMax));
    const auto record = frame_record(table, key, value, version);
    FullKey full(table, key);
    auto k = full.val();
    auto v = val_of(record);
    const int rc = mdb_put(txn_, env_->dbi, &k, &v, 0);
    if (rc != 0) return broken_by(rc, "write");
    return {};
  }

  Result<bool> erase(std::string_view table, ByteView key) {
    FALAJ_TRY(alive());
    FALAJ_TRY(check_key(table, key));
    FullKey full(table, key);
    auto k = full.val();
    const int rc = mdb_del(txn_, env_->dbi, &k, nullptr);
    if (rc == MDB_NOTFOUND) return false;
    if (rc != 0) return broken_by(rc, "erase");
    return true;
  }

  Status commit() {
    FALAJ_TRY(alive());
    const int rc = mdb_txn_commit(std::exchange(txn_, nullptr));  // frees it in any case
    if (rc != 0) return lmdb_error(rc, "commit", *env_);
    return {};
  }

  void abort() noexcept {
    if (txn_ != nullptr) mdb_txn_abort(std::exchange(txn_, nullptr));
  }

 private:
  Status alive() const {
    if (broken_) return *broken_;
    return txn_ != nullptr ? Status{} : Status(failed("the transaction is over"));
  }
  // A failed write leaves the transaction unusable: what follows says why, above all commit().
  Error broken_by(int rc, std::string_view what) {
    broken_ = lmdb_error(rc, what, *env_);
    abort();
    return *broken_;
  }

  std::shared_ptr<Env> env_;
  MDB_txn* txn_;
  std::optional<Error> broken_;
};

class LmdbRead final : public ReadTxn {
 public:
  LmdbRead(std::shared_ptr<Env> env, MDB_txn* txn) : txn_(std::move(env), txn) {}
  Result<std::optional<Value>> get(std::string_view table, ByteView key) override { return txn_.get(table, key); }
  using ReadTxn::scan;
  Status scan(std::string_view table, ByteView prefix, ByteView from, const Visitor& visit) override {
    return txn_.scan(table, prefix, from, visit);
  }
  Result<std::vector<std::string>> tables() override { return txn_.tables(); }

 private:
  Txn txn_;
};

class LmdbWrite final : public WriteTxn {
 public:
  LmdbWrite(std::shared_ptr<Env> env, MDB_txn* txn) : txn_(std::move(env), txn) {}
  Result<std::optional<Value>> get(std::string_view table, ByteView key) override { return txn_.get(table, key); }
  using ReadTxn::scan;
  Status scan(std::string_view table, ByteView prefix, ByteView from, const Visitor& visit) override {
    return txn_.scan(table, prefix, from, visit);
  }
  Result<std::vector<std::string>> tables() override { return txn_.tables(); }
  Status put(std::string_view table, ByteView key, ByteView value, std::uint16_t version) override {
    return txn_.put(table, key, value, version);
  }
  Result<bool> erase(std::string_view table, ByteView key) override { return txn_.erase(table, key); }
  Status commit() override { return txn_.commit(); }
  void abort() noexcept override { txn_.abort(); }

 private:
  Txn txn_;
};

class LmdbKv final : public Kv {
 public:
  explicit LmdbKv(std::shared_ptr<Env> env) : env_(std::move(env)) {}
  Result<std::unique_ptr<ReadTxn>> read() override {
    FALAJ_ASSIGN(auto* const txn, begin(MDB_RDONLY));
    return std::unique_ptr<ReadTxn>(std::make_unique<LmdbRead>(env_, txn));
  }
  Result<std::unique_ptr<WriteTxn>> write() override {
    FALAJ_ASSIGN(auto* const txn, begin(0));
    return std::unique_ptr<WriteTxn>(std::make_unique<LmdbWrite>(env_, txn));
  }
  Status sync() override {
    if (const int rc = mdb_env_sync(env_->env, 1); rc != 0) return lmdb_error(rc, "sync", *env_);
    return {};
  }

 private:
  Result<MDB_txn*> begin(unsigned flags) {
    MDB_txn* txn = nullptr;
    if (const int rc = mdb_txn_begin(env_->env, nullptr, flags, &txn); rc != 0) return lmdb_error(rc, "open a transaction in", *env_);
    return txn;
  }
  std::shared_ptr<Env> env_;
};

// The whole limit is mapped at once: address space costs nothing, the file grows page by page, and no reader ever has to be
// stopped for a larger map. Where address space is limited, half of it is tried, and so on.
Status map_and_open(Env& env, const LmdbOptions& options) {
  const bool inspect = options.mode == LmdbOptions::Mode::inspect;
  unsigned flags = MDB_NOTLS;
  if (inspect) flags |= MDB_RDONLY;
  if (options.sync == Sync::on_demand) flags |= MDB_NOMETASYNC;  // NOSYNC would risk the whole file, not only the newest commits
  for (auto bytes = std::max(options.map_bytes_max & ~0xFFFFULL, 1ULL << 20);; bytes /= 2) {
    if (const int rc = mdb_env_create(&env.env); rc != 0) return lmdb_error(rc, "open", env);
    mdb_env_set_maxreaders(env.env, kReadersMax);
    mdb_env_set_mapsize(env.env, bytes);
    env.map_bytes = bytes;
    const int rc = mdb_env_open(env.env, env.dir.c_str(), flags, 0600);
    if (rc == 0) break;
    mdb_env_close(std::exchange(env.env, nullptr));
    if (rc != ENOMEM || bytes < kMapBytesMin) return lmdb_error(rc, "open", env);
  }
  int dead = 0;
  mdb_reader_check(env.env, &dead);  // slots of processes that died: they would keep pages for ever
  MDB_txn* txn = nullptr;
  if (const int rc = mdb_txn_begin(env.env, nullptr, MDB_RDONLY, &txn); rc != 0) return lmdb_error(rc, "open", env);
  int rc = mdb_dbi_open(txn, nullptr, 0, &env.dbi);
  if (rc == 0) rc = mdb_txn_commit(txn);
  if (rc != 0) return lmdb_error(rc, "open", env);
  return {};
}

}  // namespace

Result<std::unique_ptr<Kv>> open_lmdb_kv(const fs::path& dir, const LmdbOptions& options) {
  auto env = std::make_shared<Env>();
  env->dir = dir;
  if (options.mode == LmdbOptions::Mode::own) {
    FALAJ_TRY(make_dirs(dir));
    FALAJ_ASSIGN(env->lock, DirLock::take(dir, "LOCK", DirLock::Kind::exclusive));
    FALAJ_TRY(claim_format(dir, "kv", kKvFormat));
  } else {
    FALAJ_ASSIGN(const auto found, read_format(dir));
    if (found.kind != "kv") return invalid(format("{} holds a store of kind \"{}\", not \"kv\"", dir.string(), found.kind));
    if (found.version > kKvFormat) return newer_format(dir.string(), found.version, kKvFormat);
  }
  FALAJ_TRY(map_and_open(*env, options));
  return std::unique_ptr<Kv>(std::make_unique<LmdbKv>(std::move(env)));
}

}  // namespace falaj::storage
