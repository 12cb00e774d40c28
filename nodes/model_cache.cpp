#include "nodes/model_cache.hpp"

#include <fcntl.h>
#include <link.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/compiled_file.hpp"
#include "nodes/model_files.hpp"
#include "nodes/new_file.hpp"
#include "runtime/base/format.hpp"
#include "storage/digest.hpp"

namespace falaj::nodes {
namespace {

namespace fs = std::filesystem;
using kernels::Compiled;

// A file that was changed within this time may be changed again without its times showing it.
constexpr std::int64_t kSettled = 3;  // seconds

// Which file this is, and since when it is as it is.
struct Identity {
  std::string text;
  bool settled = false;
};
Result<Identity> identity_of(const std::string& path, const Clock& clock) {
  struct stat info{};
  if (stat(path.c_str(), &info) != 0) return error(ErrorCode::not_found, format("{}: {}", path, std::strerror(errno)));
  const auto ns = [](const timespec& t) { return format("{}.{:09}", t.tv_sec, t.tv_nsec); };
  const auto now = clock.wall().unix_ns / 1'000'000'000;
  return Identity{format("{}:{}:{}:{}:{}", info.st_dev, info.st_ino, info.st_size, ns(info.st_mtim), ns(info.st_ctim)),
                  std::max(info.st_mtim.tv_sec, info.st_ctim.tv_sec) + kSettled <= now};
}

// Which build this is: packed forms may change with any of them. The linker's digest of the program.
std::string build_id() {
  std::string id = "none";
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* out) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          const auto* at = reinterpret_cast<const std::uint8_t*>(info->dlpi_addr + header.p_vaddr);
          const auto* const end = at + header.p_memsz;
          while (header.p_type == PT_NOTE && at + sizeof(ElfW(Nhdr)) <= end) {
            ElfW(Nhdr) note;
            std::memcpy(&note, at, sizeof note);
            const auto* const name = at + sizeof note;
            const auto* const value = name + (note.n_namesz + 3) / 4 * 4;
            if (note.n_type == NT_GNU_BUILD_ID) *static_cast<std::string*>(out) = hex({value, note.n_descsz});
            at = value + (note.n_descsz + 3) / 4 * 4;
          }
        }
        return 1;  // the program itself comes first
      },
      &id);
  return id;
}

std::string read_small(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return file ? text.str() : std::string();
}

Status write_small(const std::string& path, std::string_view text) {
  NewFile file(path);
  FALAJ_TRY(file.write(as_bytes(text)));
  return file.finish();
}

std::string folder_of(const std::string& path) {
  const auto folder = fs::path(path).parent_path();
  return folder.empty() ? "." : folder.string();
}

std::string key_of(const ModelCache::Entry& entry) { return fs::path(entry.name).filename().string(); }

}  // namespace

Result<ModelCache> ModelCache::open(const std::string& directory, const Clock& clock) {
  std::error_code code;
  if (fs::create_directories(directory, code)) fs::permissions(directory, fs::perms::owner_all, code);
  struct stat info{};
  if (stat(directory.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))
    return error(ErrorCode::not_found, format("{}: no directory, and none can be made: {}", directory, std::strerror(errno)));
  if (info.st_uid != geteuid() || (info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return error(ErrorCode::denied, format("{}: others may write to it, and what lies there would be believed: chmod 700 it, or take a "
                                           "directory of your own",
                                           directory));
  }
  return ModelCache(directory, clock);
}

Result<ModelCache::Entry> ModelCache::entry(const std::string& path, std::string_view options) const {
  FALAJ_ASSIGN(const auto identity, identity_of(path, *clock_));
  const auto memo = format("{}/{}.digest", directory_, storage::sha256(identity.text).hex());
  auto digest = read_small(memo);
  if (digest.size() != 64) {
    FALAJ_ASSIGN(const auto file, map_model(path));
    digest = storage::sha256(file.view).hex();
    if (identity.settled) FALAJ_TRY(write_small(memo, digest));
  }
  static const std::string kProgram = format("{} / build {}", kernels::backends_version(), build_id());
  const auto variant = storage::sha256(format("{} / {}", options, kProgram)).hex().substr(0, 32);
  return Entry{path, identity.text, format("{}/{}-{}", directory_, digest, variant)};
}

Result<ModelCache::Kept> ModelCache::find(const Entry& entry, const kernels::CompileOptions& options) const {
  auto file = map_model(entry.name + ".model");
  if (!file) return Kept{};
  Kept kept;
  std::istringstream others(read_small(entry.name + ".files"));
  for (std::string name, identity; std::getline(others, name) && std::getline(others, identity);) {
    const auto now = identity_of(folder_of(entry.path) + "/" + name, *clock_);
    if (!now || now->text != identity) return Kept{};
    kept.others.push_back(name);
  }
  auto compiled = kernels::read_compiled(std::move(*file), key_of(entry), options);
  if (!compiled) return Kept{};
  kept.compiled = std::move(*compiled);
  utimensat(AT_FDCWD, (entry.name + ".model").c_str(), nullptr, 0);  // used now
  return kept;
}

Status ModelCache::keep(const Entry& entry, const Kept& kept) const {
  FALAJ_ASSIGN(const auto now, identity_of(entry.path, *clock_));
  if (now.text != entry.identity) return {};  // next time
  std::string files;
  for (const auto& name : kept.others) {
    FALAJ_ASSIGN(const auto identity, identity_of(folder_of(entry.path) + "/" + name, *clock_));
    if (!identity.settled || name.find('\n') != std::string::npos) return {};  // likewise
    files += format("{}\n{}\n", name, identity.text);
  }
  FALAJ_TRY(write_small(entry.name + ".files", files));
  NewFile file(entry.name + ".model");
  FALAJ_TRY(kernels::write_compiled(*kept.compiled, key_of(entry), [&](ByteView part) { return file.write(part); }));
  FALAJ_TRY(file.finish());
  make_room(entry.name);
  return {};
}

void ModelCache::make_room(const std::string& kept) const {
  struct File {
    fs::file_time_type used;
    std::uintmax_t bytes;
    fs::path path;
  };
  std::vector<File> files;
  std::uintmax_t total = 0;
  std::error_code code;
  for (const auto& file : fs::directory_iterator(directory_, code)) {
    File one{file.last_write_time(code), file.file_size(code), file.path()};
    if (code || file.path().string().starts_with(kept)) continue;
    total += one.bytes;
    files.push_back(std::move(one));
  }
  std::ranges::sort(files, {}, &File::used);
  for (std::size_t i = 0; i < files.size() && total > kCacheBytesMax; ++i) {
    total -= files[i].bytes;
    fs::remove(files[i].path, code);
  }
}

}  // namespace falaj::nodes
