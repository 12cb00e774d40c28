#include "nodes/model_files.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>

#include "kernels/onnx/onnx.hpp"
#include "nodes/artifacts.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

namespace fs = std::filesystem;
using kernels::ExternalBytes;

// A whole file, mapped copy-on-write: a model's tensors may be changed in memory, the file never is.
struct Mapping {
  void* data = MAP_FAILED;
  std::size_t size = 0;
  Mapping(void* d, std::size_t n) : data(d), size(n) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data != MAP_FAILED) munmap(data, size);
  }
};

Result<std::shared_ptr<Mapping>> map_file(const fs::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return Error{ErrorCode::not_found, format("{}: {}", path.string(), std::strerror(errno))};
  struct stat info{};
  void* data = MAP_FAILED;
  if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0)
    data = mmap(nullptr, static_cast<std::size_t>(info.st_size), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  close(fd);
  if (data == MAP_FAILED) return invalid(format("{}: this is no file with data", path.string()));
  return std::make_shared<Mapping>(data, static_cast<std::size_t>(info.st_size));
}

// Reads what a model in `folder` refers to.
class Folder {
 public:
  explicit Folder(fs::path folder) : folder_(std::move(folder)) {}

  Result<ExternalBytes> read(std::string_view location, std::uint64_t offset, std::uint64_t length) {
    auto [at, fresh] = files_.try_emplace(std::string(location));
    if (fresh) {
      auto mapped = find(location);
      if (!mapped) {
        files_.erase(at);
        return std::move(mapped).error();
      }
      at->second = std::move(*mapped);
    }
    const auto& file = at->second;
    if (offset > file->size || length > file->size - offset)
      return invalid(format("'{}' has {} bytes; bytes {} to {} are wanted", location, file->size, offset, offset + length));
    return ExternalBytes{file, static_cast<std::byte*>(file->data) + offset};
  }

 private:
  Result<std::shared_ptr<Mapping>> find(std::string_view location) {
    std::error_code code;
    const auto home = fs::canonical(folder_, code);
    const auto path = code ? fs::path() : fs::canonical(home / fs::path(location), code);
    if (code) return Error{ErrorCode::not_found, format("'{}': {}", location, code.message())};
    const auto inside = path.lexically_relative(home);
    if (inside.empty() || *inside.begin() == "..")
      return Error{ErrorCode::denied, format("'{}' leads out of the model's folder", location)};
    return map_file(path);
  }

  fs::path folder_;
  std::map<std::string, std::shared_ptr<Mapping>> files_;
};

}  // namespace

Result<kernels::Graph> load_model(const std::string& path) {
  FALAJ_ASSIGN(const auto content, read_binary_file(path));
  const auto folder = std::make_shared<Folder>(fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path("."));
  return kernels::import_onnx(content, path, [folder](std::string_view location, std::uint64_t offset, std::uint64_t length) {
    return folder->read(location, offset, length);
  });
}

}  // namespace falaj::nodes
