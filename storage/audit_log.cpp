#include "storage/audit_log.hpp"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "runtime/base/format.hpp"
#include "runtime/base/log.hpp"
#include "storage/audit_format.hpp"
#include "storage/audit_signer.hpp"
#include "storage/files.hpp"

namespace falaj::storage {
namespace fs = std::filesystem;
namespace {

constexpr std::uint64_t kReserve = 1ULL << 20;
constexpr std::size_t kPendingBytesMax = 64U << 20;

Result<audit::Signer> open_signer(const fs::path& dir, const Keyring& ring) {
  const auto path = dir / "signing.key";
  const auto place = make_aad({as_bytes("signing.key")});
  const auto sealed = read_file(path, 4096);
  if (sealed) {
    auto secret = ring.open(place, *sealed);
    if (!secret) return within(path.string(), secret.error());
    if (secret->size() != kKeyBytes) return error(ErrorCode::corrupt, format("{}: no Ed25519 key", path.string()));
    audit::Signer signer(*secret);
    OPENSSL_cleanse(secret->data(), secret->size());
    return signer;
  }
  if (sealed.error().code != ErrorCode::not_found) return sealed.error();
  FALAJ_ASSIGN(const auto existing, audit::segments(dir));
  if (!existing.empty())
    return error(ErrorCode::corrupt, format("{} is missing, but the log has records: restore it from a backup", path.string()));
  const auto secret = Secret::random();
  audit::Signer signer(secret.view());
  FALAJ_ASSIGN(const auto bytes, ring.seal(place, secret.view()));
  FALAJ_TRY(replace_file(path, bytes));
  return signer;
}

}  // namespace

std::string_view to_string(Outcome outcome) noexcept {
  switch (outcome) {
    case Outcome::allowed:
      return "allowed";
    case Outcome::denied:
      return "denied";
    case Outcome::failed:
      return "failed";
    case Outcome::note:
      return "note";
  }
  return "?";
}

// Two locks: `mutex` guards the end of the chain and the pending bytes and is held for microseconds; `io` is held by the one who
// writes. sync() takes everything that is pending, so those who waited for `io` mostly find their bytes already durable.
struct AuditLog::State {
  struct Part {  // bytes that belong to one segment
    std::uint64_t first = 0;
    Bytes bytes;
  };

  State(fs::path folder, KeyProvider& keys, const Clock& time, AuditOptions wanted, DirLock held, std::unique_ptr<Keyring> data_keys,
        audit::Signer sign)
      : dir(std::move(folder)),
        provider(keys),
        clock(time),
        options(wanted),
        lock(std::move(held)),
        ring(std::move(data_keys)),
        signer(std::move(sign)) {}

  Status recover();
  Status begin_log();
  void begin_segment();
  void add(audit::Kind kind, ByteView body);
  Result<std::uint64_t> append_locked(AuditEntry entry);
  void sign_locked();
  Status write_part(const Part& part);
  Error give_up(Error why) {
    const std::lock_guard guard(mutex);
    broken = why;
    return why;
  }
  Status write_pending();
  Status set_aside(const audit::End& end);
  Status note_recovery(std::string target, std::string why);
  Status mend_head_file(std::optional<AuditHead> newest);

  const fs::path dir;
  KeyProvider& provider;
  const Clock& clock;
  const AuditOptions options;
  DirLock lock;

  std::mutex io;
  Fd file;                       // under io: the segment being written
  std::uint64_t file_first = 0;  // under io
  std::uint64_t file_bytes = 0;  // under io: of it durable

  mutable std::mutex mutex;  // taken after io
  std::unique_ptr<Keyring> ring;
  audit::Signer signer;
  std::uint64_t sealed = 0;
  std::array<std::uint8_t, 16> log_id{};
  Digest chain;
  std::uint64_t records = 0;
  std::uint64_t unsigned_records = 0;  // since the last head
  std::uint64_t segment_first = 0;
  std::uint64_t segment_bytes = 0;
  std::deque<Part> pending;
  std::size_t pending_bytes = 0;
  std::uint64_t durable = 0;  // records
  AuditHead last_head;
  bool head_new = false;  // last_head is not yet in the file "head"
  std::optional<Error> broken;
  bool closed = false;
};

void AuditLog::State::begin_segment() {
  segment_first = records;
  const auto header = audit::encode(
      audit::Header{.log_id = log_id, .first = records, .before = chain, .created = clock.wall(), .public_key = signer.public_key()});
  chain = audit::chain_segment(chain, header);
  segment_bytes = header.size();
  pending_bytes += header.size();
  pending.push_back({.first = records, .bytes = header});
}

void AuditLog::State::add(audit::Kind kind, ByteView body) {
  if (segment_bytes >= options.segment_bytes) begin_segment();
  if (pending.empty() || pending.back().first != segment_first) pending.push_back({.first = segment_first, .bytes = {}});
  chain = audit::chain_record(chain, records, kind, body);
  const auto record = audit::encode_record(kind, body, chain);
  storage::append(pending.back().bytes, record);
  segment_bytes += record.size();
  pending_bytes += record.size();
  ++records;
  ++unsigned_records;
}

void AuditLog::State::sign_locked() {
  if (unsigned_records == 0) return;
  if (segment_bytes >= options.segment_bytes) begin_segment();  // before the head is made: it signs the chain right before itself
  last_head = AuditHead{.size = records, .chain = chain, .time = clock.wall(), .signature = {}};
  last_head.signature = signer.sign(audit::signed_bytes(log_id, last_head));
  add(audit::Kind::head, audit::encode(last_head));
  unsigned_records = 0;
  head_new = true;
}

Result<std::uint64_t> AuditLog::State::append_locked(AuditEntry entry) {
  if (broken) return *broken;
  if (closed) return failed("the audit log is closed");
  if (pending_bytes > kPendingBytesMax)
    return error(ErrorCode::overloaded, "the audit log cannot write as fast as entries come; sync, or free disk space");
  if (entry.time == WallTime{}) entry.time = clock.wall();
  if (++sealed > kReserve) {
    FALAJ_ASSIGN(ring, open_keyring_file(dir / "keys", std::string(audit::kStoreName), provider, kReserve));
    sealed = 1;
  }
  const auto plain = audit::encode(entry);
  if (plain.size() > audit::kBodyBytesMax / 2)
    return invalid(format("an audit entry of {} bytes; at most {}", plain.size(), audit::kBodyBytesMax / 2));
  // The place in the chain is part of the seal, so the segment must be decided first; it does not change the index.
  const auto index = records;
  FALAJ_ASSIGN(const auto body, ring->seal(audit::place_of(log_id, index), plain));
  add(audit::Kind::entry, body);
  if (unsigned_records >= options.sign_every) sign_locked();
  return index;
}

Status AuditLog::State::write_part(const Part& part) {
  const auto path = dir / audit::segment_name(part.first);
  if (!file || file_first != part.first) {
    FALAJ_ASSIGN(file, open_file(path, O_WRONLY | O_CREAT));
    file_first = part.first;
    file_bytes = 0;
    FALAJ_TRY(sync_dir(dir));
  }
  FALAJ_TRY(seek_file(file.get(), file_bytes, path));
  if (auto status = write_all(file.get(), part.bytes, path); !status) {
    // Nothing of it may stay: the same bytes are written again when there is room.
    if (auto back = cut_file(file.get(), file_bytes, path); !back) return give_up(back.error());
    return status;
  }
  if (auto status = sync_file(file.get(), path); !status) {
    return give_up(within("the audit log cannot know what is on the disk; restart this node", status.error()));
  }
  file_bytes += part.bytes.size();
  return {};
}

// Holds io. Takes what is pending, writes it, and puts back what could not be written.
Status AuditLog::State::write_pending() {
  std::deque<Part> work;
  std::uint64_t upto = 0;
  std::optional<AuditHead> head;
  {
    const std::lock_guard guard(mutex);
    if (broken) return *broken;
    work.swap(pending);
    pending_bytes = 0;
    upto = records;
    if (head_new) head = last_head;
    head_new = false;
  }
  Status status;
  while (!work.empty()) {
    status = write_part(work.front());
    if (!status) break;
    work.pop_front();
  }
  // The file "head" after the record it repeats: it must never know more than the log.
  if (status && head) status = replace_file(dir / "head", audit::encode(*head), 0644);
  const std::lock_guard guard(mutex);
  if (status) {
    durable = std::max(durable, upto);
    return {};
  }
  head_new = head_new || head.has_value();
  while (!work.empty()) {
    pending_bytes += work.back().bytes.size();
    if (!pending.empty() && pending.front().first == work.back().first) {
      storage::append(work.back().bytes, pending.front().bytes);
      pending.pop_front();
    }
    pending.push_front(std::move(work.back()));
    work.pop_back();
  }
  return status;
}

Status AuditLog::State::begin_log() {
  random_bytes(log_id);
  chain = audit::chain_start(log_id);
  FALAJ_TRY(replace_file(dir / "signing.pub", as_bytes(hex(signer.public_key()) + "\n"), 0644));
  begin_segment();
  const std::lock_guard writing(io);
  return write_pending();
}

// Keeps the bytes of an incomplete record beside the log, then cuts them off.
Status AuditLog::State::set_aside(const audit::End& end) {
  const auto path = dir / end.bad->segment;
  FALAJ_ASSIGN(const auto whole, read_file(path, 1ULL << 32));
  const auto cut_at = end.bad->offset;
  const auto torn = ByteView(whole).subspan(std::min<std::size_t>(cut_at, whole.size()));
  const auto name = format("torn-{}-{}.bin", end.bad->index, sha256(torn).hex().substr(0, 16));
  FALAJ_TRY(replace_file(dir / name, torn));
  if (cut_at < audit::kHeaderBytes) {
    FALAJ_TRY(remove_file(path));
    FALAJ_TRY(sync_dir(dir));
  } else {
    FALAJ_ASSIGN(const auto fd, open_file(path, O_WRONLY));
    FALAJ_TRY(cut_file(fd.get(), cut_at, path));
    FALAJ_TRY(sync_file(fd.get(), path));
  }
  return {};
}

Status AuditLog::State::note_recovery(std::string target, std::string why) {
  FALAJ_ASSIGN([[maybe_unused]] const auto index, append_locked(AuditEntry{.principal = "audit-log",
                                                                           .verb = "audit.recover",
                                                                           .target = std::move(target),
                                                                           .outcome = Outcome::note,
                                                                           .reason = std::move(why)}));
  const std::lock_guard writing(io);
  return write_pending();
}

// A crash between a head's record and the file "head" leaves the file one write behind, or missing when the head was the log's
// first. `newest`: of the last segment. What no crash explains, a missing file of a log that has had several, is noted in the log.
Status AuditLog::State::mend_head_file(std::optional<AuditHead> newest) {
  const auto path = dir / "head";
  std::uint64_t heads = 1;
  if (const auto bytes = read_file(path, 4096)) {
    const auto known = audit::decode_head(*bytes);
    if (!known || !newest || newest->size <= known->size) return {};  // a damaged file is for audit verify to name
  } else if (bytes.error().code != ErrorCode::not_found) {
    return bytes.error();
  } else {
    heads = 0;
    FALAJ_ASSIGN([[maybe_unused]] const auto end, audit::walk(dir, audit::Extent::all, [&](const audit::Record& record) {
                   if (record.kind == audit::Kind::head) {
                     ++heads;
                     if (auto head = audit::decode_head(record.body)) newest = *head;
                   }
                   return std::optional<std::string>{};
                 }));
    if (!newest) return {};
  }
  // Never vouch for what this node's key has not signed.
  if (!audit::signature_good(signer.public_key(), audit::signed_bytes(log_id, *newest), newest->signature)) return {};
  FALAJ_TRY(replace_file(path, audit::encode(*newest), 0644));
  if (heads < 2) return {};
  log::warn("audit", "the file head was missing and is written again", {{"heads", heads}, {"size", newest->size}});
  return note_recovery("head",
                       format("the file head was missing though the log holds {} signed heads; it was written again from the newest, "
                              "at record {}: compare with a copy, records after it may have been cut off",
                              heads, newest->size));
}

Status AuditLog::State::recover() {
  std::uint64_t since_head = 0;
  std::optional<AuditHead> newest;
  FALAJ_ASSIGN(auto end, audit::walk(dir, audit::Extent::last_only, [&](const audit::Record& record) {
                 ++since_head;
                 if (record.kind == audit::Kind::head) {
                   since_head = 0;
                   if (auto head = audit::decode_head(record.body)) newest = *head;
                 }
                 return std::optional<std::string>{};
               }));
  if (end.segments == 0) return begin_log();
  std::optional<audit::Bad> torn;
  if (end.bad) {
    if (!end.bad->torn) {
      return error(ErrorCode::corrupt,
                   format("{}/{}: record {} at byte {}: {}; run falaj audit verify, and move this log away to begin a new one",
                          dir.string(), end.bad->segment, end.bad->index, end.bad->offset, end.bad->what));
    }
    FALAJ_TRY(set_aside(end));
    torn = end.bad;
    if (end.path.empty()) {  // no header was left of the last segment: what remains is the log, or there is none yet
      FALAJ_ASSIGN(const auto left, audit::segments(dir));
      return left.empty() ? begin_log() : recover();
    }
  }
  if (end.last.public_key != signer.public_key())
    return error(ErrorCode::corrupt, format("{}: signing.key is not the key of this log", dir.string()));
  log_id = end.last.log_id;
  chain = end.chain;
  records = durable = end.records;
  unsigned_records = since_head;
  segment_first = end.last.first;
  segment_bytes = end.good_bytes;
  FALAJ_ASSIGN(file, open_file(end.path, O_WRONLY));
  file_first = end.last.first;
  file_bytes = end.good_bytes;
  if (torn) {
    const auto why = format("an incomplete record {} at byte {} was cut off after a crash; its bytes are in torn-{}-*.bin", torn->index,
                            torn->offset, torn->index);
    FALAJ_TRY(note_recovery(torn->segment, why));
    log::warn("audit", "incomplete last record cut off", {{"segment", torn->segment}, {"index", torn->index}, {"offset", torn->offset}});
  }
  return mend_head_file(newest);
}

AuditLog::AuditLog(std::unique_ptr<State> state) : state_(std::move(state)) {}

AuditLog::~AuditLog() {
  if (auto status = close(); !status) log::error("audit", "close failed", {{"error", to_string(status.error())}});
}

Result<std::unique_ptr<AuditLog>> AuditLog::open(const fs::path& dir, KeyProvider& provider, const Clock& clock, AuditOptions options) {
  FALAJ_TRY(make_dirs(dir));
  FALAJ_ASSIGN(auto lock, DirLock::take(dir, "LOCK", DirLock::Kind::exclusive));
  FALAJ_TRY(claim_format(dir, audit::kFormatName, kAuditFormat));
  FALAJ_ASSIGN(auto ring, open_keyring_file(dir / "keys", std::string(audit::kStoreName), provider, kReserve));
  FALAJ_ASSIGN(auto signer, open_signer(dir, *ring));
  auto state = std::make_unique<State>(dir, provider, clock, options, std::move(lock), std::move(ring), std::move(signer));
  FALAJ_TRY(state->recover());
  return std::unique_ptr<AuditLog>(new AuditLog(std::move(state)));
}

Result<std::uint64_t> AuditLog::append(const AuditEntry& entry) {
  const std::lock_guard guard(state_->mutex);
  return state_->append_locked(entry);
}

Status AuditLog::sync() {
  std::uint64_t wanted = 0;
  {
    const std::lock_guard guard(state_->mutex);
    if (state_->broken) return *state_->broken;
    wanted = state_->records;
    if (state_->durable >= wanted) return {};
  }
  const std::lock_guard writing(state_->io);
  {
    const std::lock_guard guard(state_->mutex);
    if (state_->durable >= wanted) return {};  // somebody wrote ours with theirs
  }
  return state_->write_pending();
}

Status AuditLog::append_and_sync(const AuditEntry& entry) {
  FALAJ_ASSIGN([[maybe_unused]] const auto index, append(entry));
  return sync();
}

Result<AuditHead> AuditLog::sign_head() {
  AuditHead head;
  {
    const std::lock_guard guard(state_->mutex);
    if (state_->broken) return *state_->broken;
    state_->sign_locked();
    head = state_->last_head;
  }
  FALAJ_TRY(sync());
  return head;
}

Status AuditLog::close() {
  {
    const std::lock_guard guard(state_->mutex);
    if (state_->closed) return {};
    if (!state_->broken) state_->sign_locked();
    state_->closed = true;
  }
  return sync();
}

std::uint64_t AuditLog::size() const {
  const std::lock_guard guard(state_->mutex);
  return state_->records;
}

std::string AuditLog::public_key_hex() const { return hex(state_->signer.public_key()); }

Status AuditLog::rewrap() {
  FALAJ_TRY(rewrap_keyring_file(state_->dir / "keys", std::string(audit::kStoreName), state_->provider));
  FALAJ_ASSIGN(auto fresh, open_keyring_file(state_->dir / "keys", std::string(audit::kStoreName), state_->provider, 0));
  const std::lock_guard guard(state_->mutex);
  state_->ring = std::move(fresh);
  return {};
}

}  // namespace falaj::storage
