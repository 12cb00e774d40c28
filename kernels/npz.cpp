#include "kernels/npz.hpp"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

constexpr std::uint32_t kLocalHeader = 0x04034b50;
constexpr std::uint32_t kDirectoryHeader = 0x02014b50;
constexpr std::uint32_t kDirectoryEnd = 0x06054b50;
constexpr std::uint32_t kDirectoryEnd64 = 0x06064b50;
constexpr std::uint32_t kLocator64 = 0x07064b50;
constexpr std::size_t kCommentMax = 0xFFFF;
constexpr std::uint64_t kDeflateRatioMax = 1032;  // bytes that one deflated byte can stand for, at most
constexpr std::size_t kPiece = 1U << 16;

struct Entry {
  std::string name;  // with its ".npy"
  std::uint16_t flags = 0;
  std::uint16_t method = 0;
  std::uint32_t crc = 0;
  std::uint64_t packed = 0;
  std::uint64_t size = 0;
  std::uint64_t header = 0;  // where its local header is
};

Error damaged(std::string_view what) { return {ErrorCode::corrupt, format("this is no .npz file, or it is damaged: {}", what)}; }

// Little-endian numbers at places that were checked to be inside.
template <class T>
T number(ByteView file, std::size_t at) {
  T value{};
  for (std::size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>(value | static_cast<T>(static_cast<T>(file[at + i]) << (8 * i)));
  return value;
}

bool inside(ByteView file, std::uint64_t at, std::uint64_t length) { return at <= file.size() && length <= file.size() - at; }

struct Directory {
  std::uint64_t at = 0;
  std::uint64_t bytes = 0;
  std::uint64_t entries = 0;
};

Result<Directory> find_directory(ByteView file) {
  constexpr std::size_t kEnd = 22;
  if (file.size() < kEnd) return damaged(format("{} bytes are too few", file.size()));
  const std::size_t last = file.size() - kEnd;
  for (std::size_t back = 0; back <= std::min(last, kCommentMax); ++back) {
    const std::size_t at = last - back;
    if (number<std::uint32_t>(file, at) != kDirectoryEnd || number<std::uint16_t>(file, at + 20) != back) continue;
    if (number<std::uint16_t>(file, at + 4) != 0 || number<std::uint16_t>(file, at + 6) != 0)
      return Error{ErrorCode::unimplemented, "zip files in several parts are not supported: save the arrays into one file"};
    Directory found{number<std::uint32_t>(file, at + 16), number<std::uint32_t>(file, at + 12), number<std::uint16_t>(file, at + 10)};
    const bool wide = found.at == 0xFFFFFFFF || found.bytes == 0xFFFFFFFF || found.entries == 0xFFFF;
    if (wide && at >= 20 && number<std::uint32_t>(file, at - 20) == kLocator64) {
      const auto end64 = number<std::uint64_t>(file, at - 12);
      if (!inside(file, end64, 56) || number<std::uint32_t>(file, end64) != kDirectoryEnd64)
        return damaged("the ZIP64 end of its directory is not where it should be");
      found = {number<std::uint64_t>(file, end64 + 48), number<std::uint64_t>(file, end64 + 40), number<std::uint64_t>(file, end64 + 32)};
    }
    if (!inside(file, found.at, found.bytes)) return damaged("its directory would lie outside the file");
    return found;
  }
  return damaged("it has no directory at its end: it may be cut off");
}

// Sizes that do not fit 32 bits stand in an extra field, in this order and only where the header has all ones.
Status read_zip64(ByteView extra, Entry& entry) {
  while (extra.size() >= 4) {
    const auto id = number<std::uint16_t>(extra, 0);
    const auto length = number<std::uint16_t>(extra, 2);
    if (length > extra.size() - 4) break;
    ByteView field = extra.subspan(4, length);
    extra = extra.subspan(std::size_t{4} + length);
    if (id != 1) continue;
    for (std::uint64_t* value : {&entry.size, &entry.packed, &entry.header}) {
      if (*value != 0xFFFFFFFF) continue;
      if (field.size() < 8) return damaged(format("entry '{}' says its size in no way", entry.name));
      *value = number<std::uint64_t>(field, 0);
      field = field.subspan(8);
    }
    break;
  }
  return {};
}

Result<std::vector<Entry>> read_directory(ByteView file) {
  constexpr std::size_t kHeader = 46;
  FALAJ_ASSIGN(const Directory directory, find_directory(file));
  if (directory.entries > kNpzEntriesMax) return invalid(format("{} entries: at most {} are read", directory.entries, kNpzEntriesMax));
  ByteView rest = file.subspan(directory.at, directory.bytes);
  std::vector<Entry> entries;
  std::set<std::string, std::less<>> names;
  for (std::uint64_t i = 0; i < directory.entries; ++i) {
    if (rest.size() < kHeader || number<std::uint32_t>(rest, 0) != kDirectoryHeader)
      return damaged(format("its directory ends after {} of {} entries", i, directory.entries));
    const std::size_t name = number<std::uint16_t>(rest, 28);
    const std::size_t extra = number<std::uint16_t>(rest, 30);
    const std::size_t comment = number<std::uint16_t>(rest, 32);
    if (name + extra + comment > rest.size() - kHeader) return damaged(format("entry {} of its directory is cut off", i));
    Entry entry{.name = std::string(as_text(rest.subspan(kHeader, name))),
                .flags = number<std::uint16_t>(rest, 8),
                .method = number<std::uint16_t>(rest, 10),
                .crc = number<std::uint32_t>(rest, 16),
                .packed = number<std::uint32_t>(rest, 20),
                .size = number<std::uint32_t>(rest, 24),
                .header = number<std::uint32_t>(rest, 42)};
    FALAJ_TRY(read_zip64(rest.subspan(kHeader + name, extra), entry));
    rest = rest.subspan(kHeader + name + extra + comment);
    if (!names.insert(entry.name).second) return damaged(format("two entries are named '{}'", entry.name));
    if (entry.name.ends_with(".npy")) entries.push_back(std::move(entry));
  }
  return entries;
}

// The entry's bytes as they lie in the file.
Result<ByteView> packed_bytes(ByteView file, const Entry& entry) {
  constexpr std::size_t kHeader = 30;
  if ((entry.flags & 1U) != 0) return Error{ErrorCode::unimplemented, format("entry '{}' is encrypted", entry.name)};
  if (!inside(file, entry.header, kHeader) || number<std::uint32_t>(file, entry.header) != kLocalHeader)
    return damaged(format("entry '{}' is not where its directory says", entry.name));
  const std::size_t name = number<std::uint16_t>(file, entry.header + 26);
  const std::size_t extra = number<std::uint16_t>(file, entry.header + 28);
  const std::uint64_t data = entry.header + kHeader + name + extra;
  if (!inside(file, data, entry.packed)) return damaged(format("entry '{}' is cut off", entry.name));
  if (as_text(file.subspan(entry.header + kHeader, name)) != entry.name)
    return damaged(format("entry '{}' has another name in its own header", entry.name));
  return file.subspan(data, entry.packed);
}

Result<Bytes> inflated(ByteView packed, const Entry& entry) {
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) return failed("zlib cannot start");
  struct End {
    z_stream& stream;
    ~End() { inflateEnd(&stream); }
  } const end{stream};
  Bytes out;
  int code = Z_OK;
  while (code == Z_OK && out.size() <= entry.size) {
    if (stream.avail_in == 0 && !packed.empty()) {
      const auto piece = packed.first(std::min<std::size_t>(packed.size(), std::size_t{1} << 30));
      stream.next_in = const_cast<Bytef*>(piece.data());  // zlib only reads there
      stream.avail_in = static_cast<uInt>(piece.size());
      packed = packed.subspan(piece.size());
    }
    // One byte more than is claimed, so that what claims too little is noticed.
    const auto before = out.size();
    const auto step = std::min<std::uint64_t>(std::max<std::size_t>(before, kPiece), entry.size + 1 - before);
    out.resize(before + std::min<std::uint64_t>(step, std::uint64_t{1} << 30));
    stream.next_out = out.data() + before;
    stream.avail_out = static_cast<uInt>(out.size() - before);
    const auto room = stream.avail_out;
    code = inflate(&stream, Z_NO_FLUSH);
    out.resize(before + (room - stream.avail_out));
  }
  if (code != Z_STREAM_END || out.size() != entry.size || stream.avail_in != 0 || !packed.empty())
    return damaged(format("entry '{}' does not unpack to the {} bytes it claims", entry.name, entry.size));
  return out;
}

std::string_view array_name(const Entry& entry) { return std::string_view(entry.name).substr(0, entry.name.size() - 4); }

std::uint32_t crc_of(ByteView bytes) {
  uLong crc = crc32(0, nullptr, 0);
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min<std::size_t>(bytes.size(), std::size_t{1} << 30));
    crc = crc32(crc, piece.data(), static_cast<uInt>(piece.size()));
    bytes = bytes.subspan(piece.size());
  }
  return static_cast<std::uint32_t>(crc);
}

}  // namespace

Result<std::vector<std::string>> npz_names(ByteView file) {
  FALAJ_ASSIGN(const auto entries, read_directory(file));
  std::vector<std::string> names;
  for (const Entry& entry : entries) names.emplace_back(array_name(entry));
  return names;
}

Result<Tensor> read_npz(ByteView file, std::string_view name, DType wanted, std::uint64_t bytes_max) {
  FALAJ_ASSIGN(const auto entries, read_directory(file));
  const auto found = std::ranges::find(entries, name, array_name);
  if (found == entries.end()) {
    std::string there;
    for (const Entry& entry : entries) {
      if (there.size() > 200) {
        there += ", ...";
        break;
      }
      there += (there.empty() ? "" : ", ") + std::string(array_name(entry));
    }
    return Error{ErrorCode::not_found, format("it has no array '{}'; there are: {}", name, there.empty() ? "none" : there)};
  }
  const Entry& entry = *found;
  FALAJ_ASSIGN(const ByteView packed, packed_bytes(file, entry));
  if (entry.size > bytes_max) return invalid(format("array '{}' would take {} bytes, at most {} are read", name, entry.size, bytes_max));
  Bytes unpacked;
  ByteView content = packed;
  if (entry.method == 8) {
    if (entry.size / kDeflateRatioMax > entry.packed + 1)
      return damaged(format("entry '{}' claims {} bytes, more than {} can hold", entry.name, entry.size, entry.packed));
    FALAJ_ASSIGN(unpacked, inflated(packed, entry));
    content = unpacked;
  } else if (entry.method != 0) {
    return Error{ErrorCode::unimplemented,
                 format("array '{}' is packed by method {}: save it by np.savez or np.savez_compressed", name, entry.method)};
  } else if (entry.size != entry.packed) {
    return damaged(format("entry '{}' is stored, but claims two sizes", entry.name));
  }
  if (crc_of(content) != entry.crc) return damaged(format("the checksum of array '{}' does not fit its bytes", name));
  auto tensor = read_npy(content, wanted);
  if (!tensor) return within(format("array '{}'", name), tensor.error());
  return tensor;
}

std::uint64_t deflated_size(ByteView bytes) {
  z_stream stream{};
  if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY) != Z_OK) return bytes.size();
  Bytes piece(kPiece);
  int code = Z_OK;
  std::uint64_t size = 0;
  while (code == Z_OK) {
    if (stream.avail_in == 0 && !bytes.empty()) {
      const auto taken = bytes.first(std::min<std::size_t>(bytes.size(), std::size_t{1} << 30));
      stream.next_in = const_cast<Bytef*>(taken.data());  // zlib only reads there
      stream.avail_in = static_cast<uInt>(taken.size());
      bytes = bytes.subspan(taken.size());
    }
    stream.next_out = piece.data();
    stream.avail_out = static_cast<uInt>(piece.size());
    code = deflate(&stream, bytes.empty() ? Z_FINISH : Z_NO_FLUSH);
    size += piece.size() - stream.avail_out;
  }
  deflateEnd(&stream);
  return size;
}

}  // namespace falaj::kernels
