// Files as the stores need them: whole-file replacement that survives power loss, one owner for each directory, errors with the code a
// caller acts on (full disk, quota and file-size limit are no_space). Thread rules: free functions, any thread.
#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/bytes.hpp"
#include "runtime/base/result.hpp"

namespace falaj::storage {

// An open file descriptor; closed with the object.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd();
  Fd(Fd&& other) noexcept;
  Fd& operator=(Fd&& other) noexcept;
  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// The code of an errno, and "what: path: reason".
Error errno_error(int code, std::string_view what, const std::filesystem::path& path);

Result<Fd> open_file(const std::filesystem::path& path, int flags, unsigned mode = 0600);
Status write_all(int fd, ByteView bytes, const std::filesystem::path& path);
Status sync_file(int fd, const std::filesystem::path& path);
Status sync_dir(const std::filesystem::path& dir);
Status make_dirs(const std::filesystem::path& dir);  // 0700, synced
Status seek_file(int fd, std::uint64_t position, const std::filesystem::path& path);
Status cut_file(int fd, std::uint64_t size, const std::filesystem::path& path);
Status remove_file(const std::filesystem::path& path);
bool folder_exists(const std::filesystem::path& path);
bool file_exists(const std::filesystem::path& path);
std::uint64_t bytes_of_file(const std::filesystem::path& path);                         // 0: not there
Result<std::vector<std::filesystem::path>> list_dir(const std::filesystem::path& dir);  // sorted
Result<Bytes> read_file(const std::filesystem::path& path, std::uint64_t bytes_max = 1ULL << 30);
// Temporary file in `temp_dir` (same file system), fsync, rename over `path`, fsync of the folder. On error nothing is left.
Status replace_file(const std::filesystem::path& path, ByteView bytes, const std::filesystem::path& temp_dir, unsigned mode = 0600);
inline Status replace_file(const std::filesystem::path& path, ByteView bytes, unsigned mode = 0600) {
  return replace_file(path, bytes, path.parent_path(), mode);
}

// A lock on the file <dir>/<name>: exclusive names its owner's pid in it, for the one who is refused.
class DirLock {
 public:
  enum class Kind : unsigned char { exclusive, shared };
  enum class Wait : unsigned char { no, yes };
  [[nodiscard]] static Result<DirLock> take(const std::filesystem::path& dir, std::string_view name, Kind kind, Wait wait = Wait::no);
  [[nodiscard]] static bool is_taken(const std::filesystem::path& dir, std::string_view name);  // by anybody; takes nothing
  // shared -> exclusive, where no other process holds it; otherwise `overloaded`, still shared.
  [[nodiscard]] Status upgrade();
  void downgrade() noexcept;
  [[nodiscard]] bool held() const { return static_cast<bool>(fd_); }

 private:
  Fd fd_;
  std::filesystem::path path_;
};

// <dir>/FORMAT holds "falaj <kind> <version>\n". Written when the directory is new; a newer version is refused with the remedy.
Status claim_format(const std::filesystem::path& dir, std::string_view kind, std::uint32_t version);
struct Format {
  std::string kind;
  std::uint32_t version = 0;
};
Result<Format> read_format(const std::filesystem::path& dir);
Error newer_format(std::string_view what, std::uint32_t found, std::uint32_t known);

// Little-endian numbers in byte strings: every format of this folder uses these.
template <class T>
void put_le(Bytes& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<std::uint8_t>(static_cast<std::uint64_t>(value) >> (8 * i)));
}
template <class T>
T get_le(const std::uint8_t* from) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) value |= static_cast<std::uint64_t>(from[i]) << (8 * i);
  return static_cast<T>(value);
}

// Reads a byte string front to back; after a read past the end `ok()` is false and all reads give zero or nothing.
class Cut {
 public:
  explicit Cut(ByteView bytes) : rest_(bytes) {}
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool done() const { return ok_ && rest_.empty(); }
  [[nodiscard]] ByteView rest() const { return rest_; }
  template <class T>
  T number() {
    const auto part = take(sizeof(T));
    return part.size() == sizeof(T) ? get_le<T>(part.data()) : T{};
  }
  ByteView take(std::size_t n) {
    if (!ok_ || rest_.size() < n) {
      ok_ = false;
      return {};
    }
    const auto out = rest_.first(n);
    rest_ = rest_.subspan(n);
    return out;
  }
  std::string text() {  // u32 length, bytes
    const auto n = number<std::uint32_t>();
    return std::string(as_text(take(n)));
  }

 private:
  ByteView rest_;
  bool ok_ = true;
};
inline void put_text(Bytes& out, std::string_view text) {
  put_le(out, static_cast<std::uint32_t>(text.size()));
  out.insert(out.end(), text.begin(), text.end());
}
inline void append(Bytes& out, ByteView bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); }

}  // namespace falaj::storage
