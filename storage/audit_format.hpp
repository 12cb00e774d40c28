// The bytes of the audit log (FORMATS.md §5) and the one walk over them that opening, verifying and reading share. Private to storage/.
#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "storage/audit_log.hpp"

namespace falaj::storage::audit {

constexpr std::size_t kHeaderBytes = 128;
constexpr std::size_t kRecordOverhead = 4 + 1 + 32;  // length, kind, chain hash
constexpr std::size_t kBodyBytesMax = 1U << 20;
constexpr std::string_view kFormatName = "audit";
constexpr std::string_view kStoreName = "audit";  // of its keyring
enum class Kind : std::uint8_t { entry = 1, head = 2 };

struct Header {
  std::array<std::uint8_t, 16> log_id{};
  std::uint64_t first = 0;  // index of its first record
  Digest before;            // chain hash of what came before
  WallTime created;
  std::array<std::uint8_t, 32> public_key{};
};
Bytes encode(const Header& header);
Result<Header> decode_header(const std::filesystem::path& path, ByteView bytes);

Digest chain_start(const std::array<std::uint8_t, 16>& log_id);  // before the first segment
Digest chain_segment(const Digest& before, ByteView header);     // after a segment's header
Digest chain_record(const Digest& before, std::uint64_t index, Kind kind, ByteView body);
Bytes encode_record(Kind kind, ByteView body, const Digest& chain);

Bytes encode(const AuditHead& head);
Result<AuditHead> decode_head(ByteView body);
Bytes signed_bytes(const std::array<std::uint8_t, 16>& log_id, const AuditHead& head);
Bytes encode(const AuditEntry& entry);
Result<AuditEntry> decode_entry(ByteView plain);
Bytes place_of(const std::array<std::uint8_t, 16>& log_id, std::uint64_t index);

std::string segment_name(std::uint64_t first);
Result<std::vector<std::filesystem::path>> segments(const std::filesystem::path& dir);  // in order

struct Record {
  std::uint64_t index = 0;
  std::uint64_t offset = 0;
  Kind kind{};
  ByteView body;
  const Digest& chain_before;
  const Header& header;
};
struct Bad {
  std::string segment;
  std::uint64_t index = 0;
  std::uint64_t offset = 0;
  std::string what;
  bool torn = false;  // as a crash during a write leaves it: nothing but an incomplete record, or zeros, up to the end
};
struct End {
  std::uint64_t records = 0;
  std::uint64_t segments = 0;
  Digest chain;
  Header last;                   // header of the last segment
  std::filesystem::path path;    // the last segment
  std::uint64_t good_bytes = 0;  // of it
  std::optional<Bad> bad;
};
// Visits records while they are good and `visit` gives nothing; what it gives is the reason why a record is bad. An error: the
// files cannot be read, or a newer format. `last_only`: begins at the last segment and believes its header.
enum class Extent : std::uint8_t { all, last_only };
using Visit = std::function<std::optional<std::string>(const Record&)>;
Result<End> walk(const std::filesystem::path& dir, Extent extent, const Visit& visit);

}  // namespace falaj::storage::audit
