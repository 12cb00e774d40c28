// A file that is written piece by piece, and is there when all of it is.
#pragma once
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "runtime/base/bytes.hpp"
#include "runtime/base/format.hpp"
#include "runtime/base/result.hpp"

namespace falaj::nodes {

// Under another name first: whoever finds the file finds all of it.
class NewFile {
 public:
  explicit NewFile(std::string path, mode_t mode = 0600) : path_(std::move(path)), part_(format("{}.{}.part", path_, getpid())) {
    fd_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (fd_ >= 0) close(fd_);
    if (!done_) unlink(part_.c_str());
  }
  Status write(ByteView bytes) {
    while (fd_ >= 0 && !bytes.empty()) {
      const auto written = ::write(fd_, bytes.data(), std::min<std::size_t>(bytes.size(), 1U << 30));
      if (written <= 0) return broken();
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
    return fd_ < 0 ? Status(broken()) : Status();
  }
  Status finish() {
    if (fd_ < 0 || fdatasync(fd_) != 0 || rename(part_.c_str(), path_.c_str()) != 0) return broken();
    done_ = true;
    return {};
  }

 private:
  [[nodiscard]] Error broken() const {
    return error(ErrorCode::no_space, format("{}: cannot be written: {}", path_, std::strerror(errno)));
  }
  std::string path_, part_;
  int fd_ = -1;
  bool done_ = false;
};

}  // namespace falaj::nodes
