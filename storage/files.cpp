#include "storage/files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <system_error>
#include <utility>

#include "runtime/base/format.hpp"
#include "storage/seal.hpp"

namespace falaj::storage {
namespace fs = std::filesystem;

Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}
Fd::Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
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
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  if (fd < 0) return errno_error(errno, "open", path);
  return Fd(fd);
}

Status write_all(int fd, ByteView bytes, const fs::path& path) {
  while (!bytes.empty()) {
    const auto n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno_error(errno, "write", path);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Status sync_file(int fd, const fs::path& path) {
  if (::fdatasync(fd) != 0) return errno_error(errno, "sync", path);
  return {};
}

Status sync_dir(const fs::path& dir) {
  FALAJ_ASSIGN(const auto fd, open_file(dir, O_RDONLY | O_DIRECTORY));
  if (::fsync(fd.get()) != 0) return errno_error(errno, "sync", dir);
  return {};
}

Status make_dirs(const fs::path& dir) {
  if (dir.empty() || fs::is_directory(dir)) return {};
  FALAJ_TRY(make_dirs(dir.parent_path()));
  if (::mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST) return errno_error(errno, "make folder", dir);
  return sync_dir(dir.has_parent_path() ? dir.parent_path() : fs::path("."));
}

Result<Bytes> read_file(const fs::path& path, std::uint64_t bytes_max) {
  FALAJ_ASSIGN(const auto fd, open_file(path, O_RDONLY));
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return errno_error(errno, "stat", path);
  if (static_cast<std::uint64_t>(info.st_size) > bytes_max)
    return error(ErrorCode::corrupt, format("{}: {} bytes, at most {} were expected", path.string(), info.st_size, bytes_max));
  Bytes out(static_cast<std::size_t>(info.st_size));
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
    FALAJ_TRY(sync_file(fd.get(), path));
    if (::rename(temp.c_str(), path.c_str()) != 0) return errno_error(errno, "rename to", path);
    return {};
  };
  auto status = attempt();
  if (!status) {
    ::unlink(temp.c_str());
    return status;
  }
  return sync_dir(path.has_parent_path() ? path.parent_path() : fs::path("."));
}

namespace {

// Open-file-description locks: they belong to the open file, not to the process, so two opens in one process exclude each other
// too, and they can be asked about without being taken.
int lock_file(int fd, short type, bool wait) {
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
  if (kind == Kind::exclusive) {
    const auto text = std::to_string(::getpid()) + "\n";
    if (::ftruncate(lock.fd_.get(), 0) != 0 || ::pwrite(lock.fd_.get(), text.data(), text.size(), 0) < 0) {
      // The pid is for a message only; a full disk must not keep a store from opening to make room.
    }
  }
  return lock;
}

bool DirLock::is_taken(const fs::path& dir, std::string_view name) {
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
