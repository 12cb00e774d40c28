#include "storage/files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <system_error>
#include <utility>

#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"
#include "storage/disk.hpp"
#include "storage/seal.hpp"

namespace falaj::storage {
namespace fs = std::filesystem;

namespace {

constinit thread_local Disk* g_disk = nullptr;

void close_file(int fd) noexcept {
  if (fd >= kSimulatedDescriptor) {
    if (g_disk != nullptr) g_disk->close(fd);
  } else if (fd >= 0) {
    ::close(fd);
  }
}

}  // namespace

DiskScope::DiskScope(Disk& disk) noexcept : before_(std::exchange(g_disk, &disk)) {}
DiskScope::~DiskScope() { g_disk = before_; }
Disk* simulated_disk() noexcept { return g_disk; }

Fd::~Fd() { close_file(fd_); }
Fd::Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    close_file(fd_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

Error errno_error(int code, std::string_view what, const fs::path& path) {
  const auto text = std::generic_category().message(code);
  switch (code) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return error(ErrorCode::no_space, format("{} {}: {}; free some space, then try again", what, path.string(), text));
    case ENOENT:
      return error(ErrorCode::not_found, format("{} {}: {}", what, path.string(), text));
    case EACCES:
    case EPERM:
      return error(ErrorCode::denied, format("{} {}: {}; check the owner and mode of it", what, path.string(), text));
    default:
      return failed(format("{} {}: {}", what, path.string(), text));
  }
}

Result<Fd> open_file(const fs::path& path, int flags, unsigned mode) {
  if (g_disk != nullptr) {
    const int simulated = g_disk->open(path.string(), flags);
    if (simulated < 0) return errno_error(-simulated, "open", path);
    return Fd(simulated);
  }
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  if (fd < 0) return errno_error(errno, "open", path);
  return Fd(fd);
}

Status write_all(int fd, ByteView bytes, const fs::path& path) {
  while (!bytes.empty()) {
    const auto n = g_disk != nullptr ? g_disk->write(fd, bytes) : ::write(fd, bytes.data(), bytes.size());
    if (n < 0) {
      if (g_disk != nullptr) return errno_error(static_cast<int>(-n), "write", path);
      if (errno == EINTR) continue;
      return errno_error(errno, "write", path);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Status sync_file(int fd, const fs::path& path) {
  if (g_disk != nullptr) {
    if (const int code = g_disk->sync(fd); code != 0) return errno_error(-code, "sync", path);
    return {};
  }
  if (::fdatasync(fd) != 0) return errno_error(errno, "sync", path);
  return {};
}

Status sync_dir(const fs::path& dir) {
  FALAJ_ASSIGN(const auto fd, open_file(dir, O_RDONLY | O_DIRECTORY));
  if (g_disk != nullptr) return sync_file(fd.get(), dir);
  if (::fsync(fd.get()) != 0) return errno_error(errno, "sync", dir);
  return {};
}

Status make_dirs(const fs::path& dir) {
  if (dir.empty() || folder_exists(dir)) return {};
  FALAJ_TRY(make_dirs(dir.parent_path()));
  if (g_disk != nullptr) {
    if (const int code = g_disk->make_folder(dir.string()); code != 0 && code != -EEXIST) return errno_error(-code, "make folder", dir);
    return sync_dir(dir.parent_path());
  }
  if (::mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST) return errno_error(errno, "make folder", dir);
  return sync_dir(dir.has_parent_path() ? dir.parent_path() : fs::path("."));
}

Result<Bytes> read_file(const fs::path& path, std::uint64_t bytes_max) {
  FALAJ_ASSIGN(const auto fd, open_file(path, O_RDONLY));
  std::int64_t size = 0;
  if (g_disk != nullptr) {
    size = g_disk->size(path.string());
    if (size < 0) return errno_error(static_cast<int>(-size), "stat", path);
  } else {
    struct stat info{};
    if (::fstat(fd.get(), &info) != 0) return errno_error(errno, "stat", path);
    size = info.st_size;
  }
  if (static_cast<std::uint64_t>(size) > bytes_max)
    return error(ErrorCode::corrupt, format("{}: {} bytes, at most {} were expected", path.string(), size, bytes_max));
  Bytes out(static_cast<std::size_t>(size));
  if (g_disk != nullptr) {
    if (const auto n = g_disk->read(fd.get(), out); n < 0) return errno_error(static_cast<int>(-n), "read", path);
    return out;
  }
  std::size_t done = 0;
  while (done < out.size()) {
    const auto n = ::read(fd.get(), out.data() + done, out.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(errno, "read", path);
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  out.resize(done);
  return out;
}

Status replace_file(const fs::path& path, ByteView bytes, const fs::path& temp_dir, unsigned mode) {
  const auto temp = temp_dir / ("." + random_name() + ".tmp");
  const auto attempt = [&]() -> Status {
    FALAJ_ASSIGN(const auto fd, open_file(temp, O_WRONLY | O_CREAT | O_EXCL, mode));
    FALAJ_TRY(write_all(fd.get(), bytes, path));
    if (!fault::planted("file-not-synced")) FALAJ_TRY(sync_file(fd.get(), path));
    if (g_disk != nullptr) {
      if (const int code = g_disk->rename(temp.string(), path.string()); code != 0) return errno_error(-code, "rename to", path);
      return {};
    }
    if (::rename(temp.c_str(), path.c_str()) != 0) return errno_error(errno, "rename to", path);
    return {};
  };
  auto status = attempt();
  if (!status) {
    static_cast<void>(remove_file(temp));
    return status;
  }
  if (fault::planted("folder-not-synced")) return {};
  return sync_dir(path.has_parent_path() ? path.parent_path() : fs::path("."));
}

Status seek_file(int fd, std::uint64_t position, const fs::path& path) {
  if (g_disk != nullptr) {
    if (const auto code = g_disk->seek(fd, static_cast<std::int64_t>(position)); code < 0)
      return errno_error(static_cast<int>(-code), "seek", path);
    return {};
  }
  if (::lseek(fd, static_cast<off_t>(position), SEEK_SET) < 0) return errno_error(errno, "seek", path);
  return {};
}

Status cut_file(int fd, std::uint64_t size, const fs::path& path) {
  const int code = g_disk != nullptr ? -g_disk->truncate(fd, static_cast<std::int64_t>(size))
                                     : (::ftruncate(fd, static_cast<off_t>(size)) != 0 ? errno : 0);
  if (code != 0) return errno_error(code, "cut", path);
  return {};
}

Status remove_file(const fs::path& path) {
  const int code = g_disk != nullptr ? -g_disk->unlink(path.string()) : (::unlink(path.c_str()) != 0 ? errno : 0);
  if (code != 0) return errno_error(code, "remove", path);
  return {};
}

bool folder_exists(const fs::path& path) {
  if (g_disk != nullptr) return g_disk->is_folder(path.string());
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

bool file_exists(const fs::path& path) {
  if (g_disk != nullptr) return g_disk->size(path.string()) >= 0;
  std::error_code ignored;
  return fs::exists(path, ignored);
}

std::uint64_t bytes_of_file(const fs::path& path) {
  if (g_disk != nullptr) return static_cast<std::uint64_t>(std::max<std::int64_t>(0, g_disk->size(path.string())));
  std::error_code code;
  const auto size = fs::file_size(path, code);
  return code ? 0 : size;
}

Result<std::vector<fs::path>> list_dir(const fs::path& dir) {
  std::vector<fs::path> out;
  if (g_disk != nullptr) {
    std::vector<std::string> names;
    if (const int code = g_disk->list(dir.string(), names); code != 0) return errno_error(-code, "list", dir);
    for (const auto& name : names) out.push_back(dir / name);
    return out;
  }
  std::error_code code;
  for (fs::directory_iterator it(dir, code), end; !code && it != end; it.increment(code)) out.push_back(it->path());
  if (code) return errno_error(code.value(), "list", dir);
  std::ranges::sort(out);
  return out;
}

namespace {

// Open-file-description locks: they belong to the open file, not to the process, so two opens in one process exclude each other
// too, and they can be asked about without being taken.
int lock_file(int fd, short type, bool wait) {
  if (g_disk != nullptr) return -g_disk->lock(fd, type == F_WRLCK ? Disk::Lock::exclusive : Disk::Lock::shared);
  struct flock how{};
  how.l_type = type;
  how.l_whence = SEEK_SET;
  int rc = 0;
  do {
    rc = ::fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &how);
  } while (rc != 0 && errno == EINTR);
  return rc == 0 ? 0 : errno;
}

bool is_busy(int code) { return code == EAGAIN || code == EACCES; }

std::string owner_of(int fd) {
  if (g_disk != nullptr) return "?";
  char pid[24] = {};
  const auto n = ::pread(fd, pid, sizeof(pid) - 1, 0);
  std::string owner = n > 0 ? std::string(pid, static_cast<std::size_t>(n)) : std::string();
  while (!owner.empty() && owner.back() == '\n') owner.pop_back();
  return owner.empty() ? "?" : owner;
}

}  // namespace

Result<DirLock> DirLock::take(const fs::path& dir, std::string_view name, Kind kind, Wait wait) {
  DirLock lock;
  lock.path_ = dir / name;
  FALAJ_ASSIGN(lock.fd_, open_file(lock.path_, O_RDWR | O_CREAT));
  const int code = lock_file(lock.fd_.get(), kind == Kind::exclusive ? F_WRLCK : F_RDLCK, wait == Wait::yes);
  if (code != 0 && !is_busy(code)) return errno_error(code, "lock", lock.path_);
  if (code != 0) {
    return error(ErrorCode::conflict, format("{} is in use by process {}: stop that one first, or use another directory", dir.string(),
                                             owner_of(lock.fd_.get())));
  }
  if (kind == Kind::exclusive && g_disk == nullptr) {
    const auto text = std::to_string(::getpid()) + "\n";
    if (::ftruncate(lock.fd_.get(), 0) != 0 || ::pwrite(lock.fd_.get(), text.data(), text.size(), 0) < 0) {
      // The pid is for a message only; a full disk must not keep a store from opening to make room.
    }
  }
  return lock;
}

bool DirLock::is_taken(const fs::path& dir, std::string_view name) {
  if (g_disk != nullptr) return g_disk->locked((dir / name).string());
  const auto fd = open_file(dir / name, O_RDONLY);
  struct flock how{};
  how.l_type = F_WRLCK;
  how.l_whence = SEEK_SET;
  return fd && ::fcntl(fd->get(), F_OFD_GETLK, &how) == 0 && how.l_type != F_UNLCK;
}

Status DirLock::upgrade() {
  const int code = lock_file(fd_.get(), F_WRLCK, false);
  if (code == 0) return {};
  if (!is_busy(code)) return errno_error(code, "lock", path_);
  return error(ErrorCode::overloaded,
               format("{}: another process uses this store; try again when it is done", path_.parent_path().string()));
}

void DirLock::downgrade() noexcept { lock_file(fd_.get(), F_RDLCK, false); }

Error newer_format(std::string_view what, std::uint32_t found, std::uint32_t known) {
  return error(ErrorCode::unimplemented,
               format("{} has format version {}, this build knows up to {}: made by a newer falaj; upgrade this node", what, found, known));
}

Result<Format> read_format(const fs::path& dir) {
  const auto path = dir / "FORMAT";
  FALAJ_ASSIGN(const auto bytes, read_file(path, 256));
  std::string_view text = as_text(bytes);
  const auto bad = error(ErrorCode::corrupt,
                         format("{}: not \"falaj <kind> <version>\"; this is no store of falaj, or the file is damaged", path.string()));
  if (!text.starts_with("falaj ") || !text.ends_with('\n')) return bad;
  text.remove_prefix(6);
  text.remove_suffix(1);
  const auto space = text.find(' ');
  if (space == std::string_view::npos || space == 0) return bad;
  Format out{.kind = std::string(text.substr(0, space))};
  const auto digits = text.substr(space + 1);
  const auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), out.version);
  if (code != std::errc() || end != digits.data() + digits.size() || out.version == 0) return bad;
  return out;
}

Status claim_format(const fs::path& dir, std::string_view kind, std::uint32_t version) {
  auto found = read_format(dir);
  if (!found && found.error().code == ErrorCode::not_found)
    return replace_file(dir / "FORMAT", as_bytes(format("falaj {} {}\n", kind, version)), 0644);
  if (!found) return found.error();
  if (found->kind != kind) {
    return invalid(
        format("{} holds a store of kind \"{}\", not \"{}\": give each store a directory of its own", dir.string(), found->kind, kind));
  }
  if (found->version > version) return newer_format(dir.string(), found->version, version);
  return {};
}

}  // namespace falaj::storage
