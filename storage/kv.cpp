#include "storage/kv.hpp"

#include <algorithm>

#include "runtime/base/format.hpp"
#include "storage/files.hpp"

namespace falaj::storage {
namespace {

constexpr std::uint8_t kRecordFormat = 1;

std::uint32_t record_crc(std::string_view table, ByteView key, ByteView head, ByteView value) {
  auto crc = crc32c(as_bytes(table));
  crc = crc32c(key, crc);
  crc = crc32c(head, crc);
  return crc32c(value, crc);
}

}  // namespace

Result<std::uint64_t> ReadTxn::count(std::string_view table, ByteView prefix) {
  std::uint64_t n = 0;
  FALAJ_TRY(scan(table, prefix, {}, [&](const Item&) {
    ++n;
    return true;
  }));
  return n;
}

std::string printable(ByteView key) {
  constexpr std::size_t limit = 80;
  const bool text = std::ranges::all_of(key, [](std::uint8_t c) { return c >= 32 && c < 127; });
  auto out = text ? std::string(as_text(key)) : "0x" + hex(key.first(std::min(key.size(), limit / 2)));
  if (out.size() > limit || (!text && key.size() > limit / 2)) out = out.substr(0, limit) + "...";
  return out;
}

Bytes frame_record(std::string_view table, ByteView key, ByteView value, std::uint16_t version) {
  Bytes out;
  out.reserve(kRecordHeaderBytes + value.size());
  out.push_back(kRecordFormat);
  out.push_back(0);
  put_le(out, version);
  put_le(out, static_cast<std::uint32_t>(value.size()));
  put_le(out, record_crc(table, key, ByteView(out).first(8), value));
  append(out, value);
  return out;
}

Result<Item> open_record(std::string_view table, ByteView key, ByteView record) {
  const auto bad = [&](std::string_view why) {
    return error(ErrorCode::corrupt,
                 format("table {}, key {}: {}; restore this store from a backup or erase the key", table, printable(key), why));
  };
  if (record.size() < kRecordHeaderBytes) return bad("the stored value is shorter than its header");
  const auto value = record.subspan(kRecordHeaderBytes);
  // The checksum first: a flipped bit in the format byte is damage, not a newer format.
  if (get_le<std::uint32_t>(record.data() + 8) != record_crc(table, key, record.first(8), value))
    return bad("the stored value fails its checksum");
  if (record[0] != kRecordFormat) return newer_format(format("table {}, key {}", table, printable(key)), record[0], kRecordFormat);
  if (get_le<std::uint32_t>(record.data() + 4) != value.size()) return bad("the stored value has another length than its header says");
  return Item{.key = key, .value = value, .version = get_le<std::uint16_t>(record.data() + 2)};
}

Status check_table_name(std::string_view table) {
  const bool good = !table.empty() && table.size() <= kTableNameMax && std::ranges::all_of(table, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
  });
  if (!good) return invalid(format("\"{}\" is no name of a table: 1 to {} of a-z 0-9 _ . -", table, kTableNameMax));
  return {};
}

Status check_key(std::string_view table, ByteView key) {
  FALAJ_TRY(check_table_name(table));
  if (key.empty() || key.size() > kKeyBytesMax)
    return invalid(format("table {}: a key of {} bytes; 1 to {} are allowed", table, key.size(), kKeyBytesMax));
  return {};
}

}  // namespace falaj::storage
