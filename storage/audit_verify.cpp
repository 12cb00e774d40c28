// Verifying and reading an audit log; audit_log.cpp writes it.
#include <algorithm>
#include <map>

#include "runtime/base/format.hpp"
#include "storage/audit_format.hpp"
#include "storage/audit_log.hpp"
#include "storage/audit_signer.hpp"
#include "storage/files.hpp"

namespace falaj::storage {
namespace fs = std::filesystem;
namespace {

Result<audit::PublicKey> public_key_of(const fs::path& dir, const std::optional<std::string>& trusted) {
  std::string text;
  if (trusted) {
    text = *trusted;
  } else {
    FALAJ_ASSIGN(const auto file, read_file(dir / "signing.pub", 256));
    text = std::string(as_text(file));
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  const auto bytes = from_hex(text);
  audit::PublicKey out{};
  if (!bytes || bytes->size() != out.size()) {
    return error(trusted ? ErrorCode::invalid : ErrorCode::corrupt, format("{} is no Ed25519 public key of 64 hexadecimal digits",
                                                                           trusted ? "the trusted key" : (dir / "signing.pub").string()));
  }
  std::ranges::copy(*bytes, out.begin());
  return out;
}

bool writer_lives(const fs::path& dir) { return DirLock::is_taken(dir, "LOCK"); }

std::optional<std::string> judge_head(const audit::Record& record, const audit::PublicKey& key) {
  const auto head = audit::decode_head(record.body);
  if (!head) return head.error().message;
  if (head->size != record.index || head->chain != record.chain_before)
    return std::string("the signed head does not fit the records before it");
  if (!audit::signature_good(key, audit::signed_bytes(record.header.log_id, *head), head->signature))
    return std::string("the signature of the head is not good");
  return std::nullopt;
}

// The file "head" repeats the newest signed head: a log that ends before it was cut off. A crash may leave it one head behind, which
// is no file at all where there is but one.
Status judge_head_file(const fs::path& dir, const audit::PublicKey& key, AuditVerdict& verdict, const audit::End& end,
                       const std::map<std::uint64_t, Digest>& heads) {
  const auto bad = [&](std::string what) {
    verdict.good = false;
    verdict.bad_segment = "head";
    verdict.bad_index = verdict.records;
    verdict.what = std::move(what);
  };
  const auto bytes = read_file(dir / "head", 4096);
  if (!bytes) {
    if (bytes.error().code != ErrorCode::not_found) return bytes.error();
    if (verdict.heads > 1) bad("the file head is missing: restore it, or the log may have been cut off unnoticed");
    return {};
  }
  const auto head = audit::decode_head(*bytes);
  if (!head || !audit::signature_good(key, audit::signed_bytes(end.last.log_id, *head), head->signature)) {
    bad("the file head is damaged: its signature is not good");
  } else if (head->size > verdict.records) {
    bad(format("records {} to {} are missing at the end: a signed head covers them", verdict.records, head->size));
  } else if (const auto found = heads.find(head->size); found == heads.end() || found->second != head->chain) {
    bad(format("the file head signs another history than the log holds (at record {})", head->size));
  }
  return {};
}

}  // namespace

Result<AuditVerdict> verify_audit(const fs::path& dir, const std::optional<std::string>& trusted_key) {
  FALAJ_ASSIGN(const auto form, read_format(dir));
  if (form.kind != audit::kFormatName) return invalid(format("{} holds a store of kind \"{}\", no audit log", dir.string(), form.kind));
  if (form.version > kAuditFormat) return newer_format(dir.string(), form.version, kAuditFormat);
  FALAJ_ASSIGN(const auto key, public_key_of(dir, trusted_key));
  AuditVerdict out;
  std::map<std::uint64_t, Digest> heads;
  const bool live = writer_lives(dir);
  FALAJ_ASSIGN(const auto end, audit::walk(dir, audit::Extent::all, [&](const audit::Record& record) -> std::optional<std::string> {
                 if (record.header.public_key != key)
                   return std::string("the log names another public key than the one it is verified with");
                 if (record.kind == audit::Kind::entry) {
                   ++out.entries;
                   ++out.after_last_head;
                   return std::nullopt;
                 }
                 if (auto why = judge_head(record, key)) return why;
                 heads[record.index] = record.chain_before;
                 ++out.heads;
                 out.after_last_head = 0;
                 return std::nullopt;
               }));
  out.records = end.records;
  out.segments = end.segments;
  out.chain = end.chain;
  out.log_id = hex(end.last.log_id);
  out.public_key = hex(key);
  out.good = true;
  if (end.segments == 0) {
    out.good = false;
    out.what = "there is no segment: the log was never begun, or it was removed";
  } else if (end.bad && !(end.bad->torn && live)) {
    out.good = false;
    out.bad_segment = end.bad->segment;
    out.bad_index = end.bad->index;
    out.bad_offset = end.bad->offset;
    out.what = end.bad->what + "; compare with a copy of the log or its exported heads";
  } else if (!live) {
    FALAJ_TRY(judge_head_file(dir, key, out, end, heads));
  }
  return out;
}

Status read_audit(const fs::path& dir, KeyProvider& provider, std::uint64_t from, const AuditVisitor& visit) {
  FALAJ_ASSIGN(const auto form, read_format(dir));
  if (form.version > kAuditFormat) return newer_format(dir.string(), form.version, kAuditFormat);
  FALAJ_ASSIGN(const auto ring, open_keyring_file(dir / "keys", std::string(audit::kStoreName), provider, 0));
  bool stopped = false;
  FALAJ_ASSIGN(const auto end, audit::walk(dir, audit::Extent::all, [&](const audit::Record& record) -> std::optional<std::string> {
                 if (stopped || record.kind != audit::Kind::entry || record.index < from) return std::nullopt;
                 const auto plain = ring->open(audit::place_of(record.header.log_id, record.index), record.body);
                 if (!plain) return plain.error().message;
                 const auto entry = audit::decode_entry(*plain);
                 if (!entry) return entry.error().message;
                 stopped = !visit(record.index, *entry);
                 return std::nullopt;
               }));
  if (end.bad && !stopped && !(end.bad->torn && writer_lives(dir))) {
    return error(ErrorCode::corrupt,
                 format("{}: record {} at byte {}: {}", (dir / end.bad->segment).string(), end.bad->index, end.bad->offset, end.bad->what));
  }
  return {};
}

}  // namespace falaj::storage
