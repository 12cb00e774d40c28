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

#include "kernels/npz.hpp"
#include "kernels/onnx/onnx.hpp"
#include "nodes/array_files.hpp"
#include "nodes/artifacts.hpp"
#include "nodes/new_file.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

namespace fs = std::filesystem;
using kernels::ExternalBytes;
using kernels::Graph;

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
  if (data == MAP_FAILED) return invalid(format("{}: a directory, or no file with data", path.string()));
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
  [[nodiscard]] std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& [name, file] : files_) names.push_back(name);
    return names;
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

Result<kernels::ModelBytes> map_model(const std::string& path) {
  FALAJ_ASSIGN(const auto file, map_file(path));
  return kernels::ModelBytes{{static_cast<const std::uint8_t*>(file->data), file->size}, file};
}

Result<kernels::Graph> load_model(const std::string& path, std::vector<std::string>* others) {
  FALAJ_ASSIGN(auto content, map_model(path));
  const auto folder = std::make_shared<Folder>(fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path("."));
  auto graph = kernels::import_onnx(
      std::move(content), path,
      [folder](std::string_view location, std::uint64_t offset, std::uint64_t length) { return folder->read(location, offset, length); });
  if (graph && others != nullptr) *others = folder->files();
  return graph;
}

namespace {
bool fits_one_file(const Graph& graph) {
  constexpr std::size_t kOneFileMax = (std::size_t{2} << 30) - (std::size_t{64} << 20);  // nodes and names have room in the rest
  std::size_t bytes = 0;
  for (const auto& [name, value] : graph.initializers) bytes += value.bytes();
  return bytes < kOneFileMax;
}
}  // namespace

void add_external_data_option(CLI::App& command, bool& beside) {
  command.add_flag("--external-data", beside,
                   "Weights in a file beside it (OUTPUT.data), as always where they are too large for one file (2 GiB)");
}

Result<ModelSize> model_size(const Graph& graph, bool beside) {
  ModelSize size;
  const auto add = [&](ByteView part) {
    size.bytes += part.size();
    size.packed += kernels::deflated_size(part);
    return Status();
  };
  const kernels::DataFile file{"data", add};
  FALAJ_ASSIGN(const auto model, kernels::export_onnx(graph, beside || !fits_one_file(graph) ? &file : nullptr));
  FALAJ_TRY(add(model));
  return size;
}

Status write_model(const std::string& path, const Graph& graph, bool beside) {
  if (!beside && fits_one_file(graph)) {
    FALAJ_ASSIGN(const auto model, kernels::export_onnx(graph));
    return write_file(path, model);
  }
  const std::string data = path + ".data";
  const auto as_failed = [](const Status& done) { return done ? done : Status(failed(done.error().message)); };
  NewFile out(data, 0666);
  const kernels::DataFile file{fs::path(data).filename().string(), [&](ByteView part) { return as_failed(out.write(part)); }};
  FALAJ_ASSIGN(const auto model, kernels::export_onnx(graph, &file));
  FALAJ_TRY(as_failed(out.finish()));
  auto written = write_file(path, model);
  std::error_code code;
  if (!written) fs::remove(data, code);
  return written;
}

std::string type_text(const kernels::ValueInfo& info) {
  std::string text(to_string(info.dtype));
  if (info.has_shape) {
    std::string shape;
    for (std::size_t d = 0; d < info.shape.rank(); ++d) {
      bool named = info.shape[d] < 0 && d < info.symbols.size() && !info.symbols[d].empty();
      shape += (d > 0 ? ", " : "") + (named ? info.symbols[d] : info.shape[d] < 0 ? std::string("?") : std::to_string(info.shape[d]));
    }
    text += format("[{}]", shape);
  }
  if (info.kind == kernels::ValueKind::sequence) return format("sequence of {}", text);
  if (info.kind == kernels::ValueKind::optional) return format("optional {}", text);
  return text;
}

Result<std::vector<kernels::Value>> read_inputs(const kernels::Graph& graph, const std::vector<std::string>& inputs) {
  std::map<std::string, std::vector<std::string>> files;
  for (const auto& text : inputs) {
    // Names of values may hold "=": the longest name that the model knows is meant.
    std::string name;
    for (const auto& info : graph.inputs) {
      if (info.name.size() >= name.size() && text.starts_with(info.name + "=")) name = info.name;
    }
    if (name.empty()) {
      std::string known;
      for (const auto& info : graph.inputs) known += (known.empty() ? "" : ", ") + info.name;
      return invalid(format("--input {}: write NAME=FILE; the model's inputs are: {}", text, known));
    }
    files[name].push_back(text.substr(name.size() + 1));
  }
  std::vector<kernels::Value> values;
  for (const auto& info : graph.inputs) {
    const auto& given = files[info.name];
    std::vector<kernels::Value> items;
    for (const auto& file : given) {
      auto tensor = read_array(file, info);
      if (!tensor) return within(format("input '{}'", info.name), tensor.error());
      items.emplace_back(std::move(*tensor));
    }
    if (info.kind == kernels::ValueKind::sequence) {
      values.push_back(kernels::Value::sequence(std::move(items)));
    } else if (items.size() == 1) {
      values.push_back(std::move(items[0]));
    } else if (items.empty() && info.kind == kernels::ValueKind::optional) {
      values.emplace_back();
    } else {
      return invalid(format("input '{}' ({}) needs --input {}=FILE.npy (or .npz, .csv), once", info.name, type_text(info), info.name));
    }
  }
  return values;
}

Result<std::vector<kernels::Tensor>> read_rows(kernels::Graph& graph, const std::vector<std::string>& inputs) {
  FALAJ_ASSIGN(auto values, read_inputs(graph, inputs));
  std::vector<kernels::Tensor> rows;
  for (std::size_t i = 0; i < values.size(); ++i) {
    auto& info = graph.inputs[i];
    const kernels::Tensor& tensor = values[i].tensor;
    if (values[i].kind != kernels::Value::Kind::tensor || !info.has_shape || info.shape.empty())
      return invalid(format("input '{}' ({}) has no rows", info.name, type_text(info)));
    bool fits = tensor.shape().rank() == info.shape.rank();
    for (std::size_t d = 1; fits && d < info.shape.rank(); ++d) {
      if (info.shape[d] < 0) info.shape[d] = tensor.shape()[d];
      fits = info.shape[d] == tensor.shape()[d];
    }
    if (!fits) return invalid(format("input '{}' is {}; the array has shape {}", info.name, type_text(info), to_string(tensor.shape())));
    if (i > 0 && tensor.shape()[0] != rows[0].shape()[0]) {
      return invalid(
          format("input '{}' has {} rows, input '{}' {}", info.name, tensor.shape()[0], graph.inputs[0].name, rows[0].shape()[0]));
    }
    rows.push_back(tensor);
  }
  return rows;
}

}  // namespace falaj::nodes
