#include "storage/audit_format.hpp"

#include <algorithm>

#include "runtime/base/format.hpp"
#include "storage/files.hpp"

namespace falaj::storage::audit {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kMagic = "FALAJAUD";
constexpr std::uint64_t kSegmentBytesMax = 1ULL << 32;

template <std::size_t N>
void copy_to(std::array<std::uint8_t, N>& out, ByteView bytes) {
  std::ranges::copy(bytes.first(std::min(N, bytes.size())), out.begin());
}

}  // namespace

// The first 128 bytes keep this place for magic, version and checksum in every future version.
Bytes encode(const Header& header) {
  Bytes out = to_bytes(kMagic);
  put_le(out, kAuditFormat);
  put_le(out, static_cast<std::uint32_t>(kHeaderBytes));
  append(out, header.log_id);
  put_le(out, header.first);
  append(out, header.before.view());
  put_le(out, header.created.unix_ns);
  append(out, header.public_key);
  out.resize(kHeaderBytes - 4);
  put_le(out, crc32c(out));
  return out;
}

Result<Header> decode_header(const fs::path& path, ByteView bytes) {
  const auto bad = [&](std::string_view why) { return error(ErrorCode::corrupt, std::string(why)); };
  if (bytes.size() < kHeaderBytes) return bad("the segment's header is cut short");
  bytes = bytes.first(kHeaderBytes);
  if (crc32c(bytes.first(kHeaderBytes - 4)) != get_le<std::uint32_t>(bytes.data() + kHeaderBytes - 4))
    return bad("the segment's header fails its checksum");
  Cut cut(bytes);
  if (as_text(cut.take(8)) != kMagic) return bad("no segment of an audit log");
  const auto version = cut.number<std::uint32_t>();
  if (version > kAuditFormat) return newer_format(path.string(), version, kAuditFormat);
  cut.number<std::uint32_t>();
  Header out;
  copy_to(out.log_id, cut.take(16));
  out.first = cut.number<std::uint64_t>();
  copy_to(out.before.bytes, cut.take(32));
  out.created.unix_ns = cut.number<std::int64_t>();
  copy_to(out.public_key, cut.take(32));
  return out;
}

Digest chain_start(const std::array<std::uint8_t, 16>& log_id) { return sha256(make_aad({as_bytes("falaj/audit/1"), log_id})); }

Digest chain_segment(const Digest& before, ByteView header) {
  const std::uint8_t tag = 2;
  return Sha256().update(ByteView(&tag, 1)).update(before.view()).update(header).finish();
}

Digest chain_record(const Digest& before, std::uint64_t index, Kind kind, ByteView body) {
  Bytes leaf(1, 0);
  put_le(leaf, index);
  leaf.push_back(static_cast<std::uint8_t>(kind));
  append(leaf, body);
  const std::uint8_t tag = 1;
  return Sha256().update(ByteView(&tag, 1)).update(before.view()).update(sha256(leaf).view()).finish();
}

Bytes encode_record(Kind kind, ByteView body, const Digest& chain) {
  Bytes out;
  out.reserve(kRecordOverhead + body.size());
  put_le(out, static_cast<std::uint32_t>(body.size()));
  out.push_back(static_cast<std::uint8_t>(kind));
  append(out, body);
  append(out, chain.view());
  return out;
}

Bytes encode(const AuditHead& head) {
  Bytes out;
  put_le(out, head.size);
  put_le(out, head.time.unix_ns);
  append(out, head.chain.view());
  append(out, head.signature);
  return out;
}

Result<AuditHead> decode_head(ByteView body) {
  Cut cut(body);
  AuditHead out;
  out.size = cut.number<std::uint64_t>();
  out.time.unix_ns = cut.number<std::int64_t>();
  copy_to(out.chain.bytes, cut.take(32));
  copy_to(out.signature, cut.take(64));
  if (!cut.done()) return error(ErrorCode::corrupt, "a head is not in its format");
  return out;
}

Bytes signed_bytes(const std::array<std::uint8_t, 16>& log_id, const AuditHead& head) {
  Bytes numbers;
  put_le(numbers, head.size);
  put_le(numbers, head.time.unix_ns);
  return make_aad({as_bytes("falaj/audit-head/1"), log_id, numbers, head.chain.view()});
}

Bytes encode(const AuditEntry& entry) {
  Bytes out;
  put_le(out, entry.time.unix_ns);
  out.push_back(static_cast<std::uint8_t>(entry.outcome));
  for (const auto* text : {&entry.principal, &entry.verb, &entry.target, &entry.tenant, &entry.purpose, &entry.reason, &entry.request_id})
    put_text(out, *text);
  return out;
}

Result<AuditEntry> decode_entry(ByteView plain) {
  Cut cut(plain);
  AuditEntry out;
  out.time.unix_ns = cut.number<std::int64_t>();
  const auto outcome = cut.number<std::uint8_t>();
  for (auto* text : {&out.principal, &out.verb, &out.target, &out.tenant, &out.purpose, &out.reason, &out.request_id}) *text = cut.text();
  if (!cut.done() || outcome > static_cast<std::uint8_t>(Outcome::note)) return error(ErrorCode::corrupt, "an entry is not in its format");
  out.outcome = static_cast<Outcome>(outcome);
  return out;
}

Bytes place_of(const std::array<std::uint8_t, 16>& log_id, std::uint64_t index) {
  Bytes number;
  put_le(number, index);
  return make_aad({as_bytes("entry"), log_id, number});
}

std::string segment_name(std::uint64_t first) { return format("audit-{:016}.log", first); }

Result<std::vector<fs::path>> segments(const fs::path& dir) {
  std::vector<fs::path> out;
  FALAJ_ASSIGN(const auto files, list_dir(dir));
  for (const auto& file : files) {
    const auto name = file.filename().string();
    if (name.starts_with("audit-") && name.ends_with(".log")) out.push_back(file);
  }
  std::ranges::sort(out);
  return out;
}

namespace {

class Walk {
 public:
  Walk(const Visit& visit, End& end) : visit_(visit), end_(end) {}

  Status segment(const fs::path& path, bool first, bool believe) {
    FALAJ_ASSIGN(const auto file, read_file(path, kSegmentBytesMax));
    auto header = decode_header(path, file);
    if (!header && header.error().code != ErrorCode::corrupt) return std::move(header).error();
    ++end_.segments;
    if (!header) {
      bad(path, 0, header.error().message, file.size() < kHeaderBytes || all_zero(file));
      return {};
    }
    if (!believe) {
      if (auto why = misfit(path, *header, first)) {
        bad(path, 0, *why, false);
        return {};
      }
    }
    end_.records = header->first;
    end_.last = *header;
    end_.path = path;
    end_.chain = chain_segment(header->before, ByteView(file).first(kHeaderBytes));
    end_.good_bytes = kHeaderBytes;
    records(path, file);
    return {};
  }

 private:
  static bool all_zero(ByteView bytes) {
    return std::ranges::all_of(bytes, [](std::uint8_t b) { return b == 0; });
  }

  std::optional<std::string> misfit(const fs::path& path, const Header& header, bool first) const {
    if (path.filename().string() != segment_name(header.first))
      return format("the segment says it begins with record {}: it was renamed", header.first);
    if (first) {
      if (header.first != 0) return std::string("the segments before this one are missing");
      if (header.before != chain_start(header.log_id)) return std::string("the chain does not begin here");
      return std::nullopt;
    }
    if (header.log_id != end_.last.log_id) return std::string("the segment is of another log");
    if (header.public_key != end_.last.public_key) return std::string("the segment names another public key");
    if (header.first != end_.records) return format("records {} to {} are missing before it", end_.records, header.first);
    if (header.before != end_.chain) return std::string("it does not continue the chain of the segment before");
    return std::nullopt;
  }

  void records(const fs::path& path, ByteView file) {
    while (end_.good_bytes < file.size()) {
      const auto rest = file.subspan(end_.good_bytes);
      const auto size = rest.size() >= 4 ? get_le<std::uint32_t>(rest.data()) : 0;
      const bool zeros = all_zero(rest);  // a file system may have made the file longer before the crash took the data
      if (rest.size() >= 4 && size > kBodyBytesMax)
        return bad(path, end_.good_bytes, format("a record of {} bytes, more than any has", size), false);
      if (zeros || rest.size() < kRecordOverhead + size)
        return bad(path, end_.good_bytes, "the record is incomplete: cut off by a crash, or its length was changed", true);
      const auto kind = static_cast<Kind>(rest[4]);
      const auto body = rest.subspan(5, size);
      const auto chain = chain_record(end_.chain, end_.records, kind, body);
      if (!std::ranges::equal(chain.bytes, rest.subspan(5 + size, 32)))
        return bad(path, end_.good_bytes, "the record does not fit its chain hash: it was changed", false);
      if (kind != Kind::entry && kind != Kind::head) return bad(path, end_.good_bytes, "a record of unknown kind", false);
      if (auto why = visit_(Record{.index = end_.records,
                                   .offset = end_.good_bytes,
                                   .kind = kind,
                                   .body = body,
                                   .chain_before = end_.chain,
                                   .header = end_.last}))
        return bad(path, end_.good_bytes, *why, false);
      end_.chain = chain;
      ++end_.records;
      end_.good_bytes += kRecordOverhead + size;
    }
  }

  void bad(const fs::path& path, std::uint64_t offset, std::string_view what, bool torn) {
    end_.bad = Bad{.segment = path.filename().string(), .index = end_.records, .offset = offset, .what = std::string(what), .torn = torn};
  }

  const Visit& visit_;
  End& end_;
};

}  // namespace

Result<End> walk(const fs::path& dir, Extent extent, const Visit& visit) {
  FALAJ_ASSIGN(auto paths, segments(dir));
  // A crash may have left a last segment without a whole header: the one before it is then the last.
  if (extent == Extent::last_only && paths.size() > 1) {
    const auto keep = bytes_of_file(paths.back()) < kHeaderBytes ? 2 : 1;
    paths.erase(paths.begin(), paths.end() - keep);
  }
  End end;
  Walk one(visit, end);
  for (std::size_t i = 0; i < paths.size() && !end.bad; ++i) {
    FALAJ_TRY(one.segment(paths[i], i == 0, extent == Extent::last_only && i == 0));
    if (end.bad && end.bad->torn && i + 1 < paths.size()) end.bad->torn = false;  // only the very end may be torn
  }
  return end;
}

}  // namespace falaj::storage::audit
