#include "storage/memory_kv.hpp"

#include <algorithm>

#include "runtime/base/format.hpp"

namespace falaj::storage {
namespace {

std::string full_key(std::string_view table, ByteView key) {
  std::string out;
  out.reserve(table.size() + 1 + key.size());
  out.append(table);
  out.push_back('\0');
  out.append(as_text(key));
  return out;
}

using Changes = std::map<std::string, std::optional<Bytes>, std::less<>>;

// A snapshot with changes laid over it; readers have none.
class View {
 public:
  explicit View(std::shared_ptr<const MemoryKv::Map> map) : map_(std::move(map)) {}

  Result<std::optional<Value>> get(std::string_view table, ByteView key) const {
    FALAJ_TRY(check_key(table, key));
    const auto full = full_key(table, key);
    const Bytes* record = find(full);
    if (record == nullptr) return std::optional<Value>{};
    FALAJ_ASSIGN(const auto item, open_record(table, key, *record));
    return std::optional<Value>(Value{.bytes = Bytes(item.value.begin(), item.value.end()), .version = item.version});
  }

  Status scan(std::string_view table, ByteView prefix, ByteView from, const Visitor& visit) const {
    FALAJ_TRY(check_table_name(table));
    const auto whole_prefix = full_key(table, prefix);
    const auto start = std::max(whole_prefix, full_key(table, from));
    auto base = map_->lower_bound(start);
    auto over = changes.lower_bound(start);
    for (;;) {
      const bool has_base = base != map_->end() && base->first.starts_with(whole_prefix);
      const bool has_over = over != changes.end() && over->first.starts_with(whole_prefix);
      if (!has_base && !has_over) return {};
      const std::string* key = nullptr;
      const Bytes* record = nullptr;
      if (has_over && (!has_base || over->first <= base->first)) {
        if (has_base && over->first == base->first) ++base;
        key = &over->first;
        record = over->second ? &*over->second : nullptr;
        ++over;
      } else {
        key = &base->first;
        record = &base->second;
        ++base;
      }
      if (record == nullptr) continue;
      const auto own = as_bytes(std::string_view(*key).substr(table.size() + 1));
      FALAJ_ASSIGN(const auto item, open_record(table, own, *record));
      if (!visit(item)) return {};
    }
  }

  Result<std::vector<std::string>> tables() const {
    std::vector<std::string> out;
    const auto add = [&](std::string_view key) {
      const auto name = key.substr(0, key.find('\0'));
      if (std::find(out.begin(), out.end(), name) == out.end()) out.emplace_back(name);
    };
    for (const auto& [key, record] : *map_) {
      const auto change = changes.find(key);
      if (change == changes.end() || change->second) add(key);
    }
    for (const auto& [key, record] : changes) {
      if (record) add(key);
    }
    std::sort(out.begin(), out.end());
    return out;
  }

  const Bytes* find(std::string_view full) const {
    if (const auto change = changes.find(full); change != changes.end()) return change->second ? &*change->second : nullptr;
    const auto found = map_->find(full);
    return found == map_->end() ? nullptr : &found->second;
  }

  void release() { map_ = nullptr; }

  Changes changes;

 private:
  std::shared_ptr<const MemoryKv::Map> map_;
};

class MemoryRead final : public ReadTxn {
 public:
  MemoryRead(std::mutex& mutex, std::shared_ptr<const MemoryKv::Map> map) : mutex_(mutex), view_(std::move(map)) {}
  ~MemoryRead() override {
    const std::lock_guard guard(mutex_);  // a writer that finds itself alone changes the map in place: it must see that we are done
    view_.release();
  }
  Result<std::optional<Value>> get(std::string_view table, ByteView key) override { return view_.get(table, key); }
  using ReadTxn::scan;
  Status scan(std::string_view table, ByteView prefix, ByteView from, const Visitor& visit) override {
    return view_.scan(table, prefix, from, visit);
  }
  Result<std::vector<std::string>> tables() override { return view_.tables(); }

 private:
  std::mutex& mutex_;
  View view_;
};

}  // namespace

class MemoryWrite final : public WriteTxn {
 public:
  MemoryWrite(MemoryKv& kv, std::shared_ptr<const MemoryKv::Map> map) : kv_(kv), view_(std::move(map)) {}
  ~MemoryWrite() override { abort(); }

  Result<std::optional<Value>> get(std::string_view table, ByteView key) override {
    FALAJ_TRY(alive());
    return view_.get(table, key);
  }
  using ReadTxn::scan;
  Status scan(std::string_view table, ByteView prefix, ByteView from, const Visitor& visit) override {
    FALAJ_TRY(alive());
    return view_.scan(table, prefix, from, visit);
  }
  Result<std::vector<std::string>> tables() override {
    FALAJ_TRY(alive());
    return view_.tables();
  }
  Status put(std::string_view table, ByteView key, ByteView value, std::uint16_t version) override {
    FALAJ_TRY(alive());
    FALAJ_TRY(check_key(table, key));
    if (value.size() > kValueBytesMax)
      return invalid(format("table {}: a value of {} bytes; at most {}", table, value.size(), kValueBytesMax));
    view_.changes[full_key(table, key)] = frame_record(table, key, value, version);
    return {};
  }
  Result<bool> erase(std::string_view table, ByteView key) override {
    FALAJ_TRY(alive());
    FALAJ_TRY(check_key(table, key));
    auto full = full_key(table, key);
    if (view_.find(full) == nullptr) return false;
    view_.changes[std::move(full)] = std::nullopt;
    return true;
  }
  Status commit() override {
    FALAJ_TRY(alive());
    view_.release();
    auto status = kv_.apply(view_.changes);
    finish();
    return status;
  }
  void abort() noexcept override {
    if (open_) finish();
  }

 private:
  Status alive() const { return open_ ? Status{} : Status(failed("the transaction is over")); }
  void finish() noexcept {
    open_ = false;
    view_.release();
    kv_.release_writer();
  }
  MemoryKv& kv_;
  View view_;
  bool open_ = true;
};

MemoryKv::MemoryKv(MemoryOptions options) : map_(std::make_shared<Map>()), options_(options) {}
MemoryKv::~MemoryKv() = default;

Result<std::unique_ptr<ReadTxn>> MemoryKv::read() {
  const std::lock_guard guard(mutex_);
  return std::unique_ptr<ReadTxn>(std::make_unique<MemoryRead>(mutex_, map_));
}

Result<std::unique_ptr<WriteTxn>> MemoryKv::write() {
  std::unique_lock lock(mutex_);
  writer_free_.wait(lock, [&] { return !writing_; });
  writing_ = true;
  return std::unique_ptr<WriteTxn>(std::make_unique<MemoryWrite>(*this, map_));
}

void MemoryKv::release_writer() noexcept {
  {
    const std::lock_guard guard(mutex_);
    writing_ = false;
  }
  writer_free_.notify_one();
}

Status MemoryKv::apply(std::map<std::string, std::optional<Bytes>, std::less<>>& changes) {
  const std::lock_guard guard(mutex_);
  if (fail_next_) {
    auto error = std::move(*fail_next_);
    fail_next_.reset();
    return error;
  }
  std::uint64_t after = bytes_;
  for (const auto& [key, record] : changes) {
    if (const auto found = map_->find(key); found != map_->end()) after -= key.size() + found->second.size();
    if (record) after += key.size() + record->size();
  }
  if (after > bytes_ && after > options_.bytes_max) {
    return error(ErrorCode::no_space,
                 format("the store would hold {} bytes, {} are allowed; free some space, then try again", after, options_.bytes_max));
  }
  if (map_.use_count() > 1) map_ = std::make_shared<Map>(*map_);  // somebody still reads the old one
  std::vector<Undo> undo;
  for (auto& [key, record] : changes) {
    const auto found = map_->find(key);
    undo.push_back({key, found == map_->end() ? std::nullopt : std::optional<Bytes>(std::move(found->second))});
    if (record) {
      (*map_)[key] = std::move(*record);
    } else if (found != map_->end()) {
      map_->erase(found);
    }
  }
  bytes_ = after;
  if (options_.sync == Sync::on_demand) unsynced_.push_back(std::move(undo));
  return {};
}

Status MemoryKv::sync() {
  const std::lock_guard guard(mutex_);
  unsynced_.clear();
  return {};
}

std::uint64_t MemoryKv::crash(Random& random) {
  const std::lock_guard guard(mutex_);
  const auto lost = random.below(unsynced_.size() + 1);
  if (map_.use_count() > 1) map_ = std::make_shared<Map>(*map_);
  for (std::uint64_t i = 0; i < lost; ++i) {
    for (auto& [key, before] : unsynced_.back()) {
      if (before) {
        (*map_)[key] = std::move(*before);
      } else {
        map_->erase(key);
      }
    }
    unsynced_.pop_back();
  }
  unsynced_.clear();  // what survived is on the disk now
  bytes_ = 0;
  for (const auto& [key, record] : *map_) bytes_ += key.size() + record.size();
  return lost;
}

void MemoryKv::fail_next_commit(Error error) {
  const std::lock_guard guard(mutex_);
  fail_next_ = std::move(error);
}

void MemoryKv::set_bytes_max(std::uint64_t bytes_max) {
  const std::lock_guard guard(mutex_);
  options_.bytes_max = bytes_max;
}

bool MemoryKv::flip(std::string_view table, ByteView key, std::size_t offset, std::uint8_t mask) {
  const std::lock_guard guard(mutex_);
  const auto found = map_->find(full_key(table, key));
  if (found == map_->end() || offset >= found->second.size()) return false;
  found->second[offset] ^= mask;
  return true;
}

std::uint64_t MemoryKv::bytes() const {
  const std::lock_guard guard(mutex_);
  return bytes_;
}

}  // namespace falaj::storage
